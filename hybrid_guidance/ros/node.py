"""What every node needs, once: parameters, health, guarded callbacks, paired frames, frames."""

import gc
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import cv2
import rclpy
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image

from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.parameters import ParameterError
from hybrid_guidance.ros import environment, qos, tf
from hybrid_guidance.ros.convert import frame_of, stamp_ns
from hybrid_guidance.ros.executor import MessageExecutor
from hybrid_guidance.ros.health import ERROR, Health
from hybrid_guidance.ros.parameters import Parameters
from hybrid_guidance.ros.partners import Partners
from hybrid_guidance.ros.serialized import SerializedImage, image_from_bytes
from hybrid_guidance.supervisor import end_with_parent

P = TypeVar('P')


class GuidanceNode(Node, Generic[P]):
    """Base of all nodes of the graph.

    A callback that raises is logged with its cause, reported on /diagnostics, and the node
    goes on.

    Args:
        name: node name.
        parameters_type: frozen dataclass made with ``hybrid_guidance.parameters.parameter``.
    """

    def __init__(self, name: str, parameters_type: type[P], **options: Any) -> None:
        self._partners: Partners | None = None
        super().__init__(name, **options)
        self.health = Health(self)
        self._partners = Partners(self, self.health)
        self.create_timer(1.0, self._partners.check)
        self._parameters_table = Parameters(self, parameters_type)

    @property
    def parameters(self) -> P:
        """The present, valid parameter values."""
        return self._parameters_table.values

    def now_ns(self) -> int:
        """Return the graph's time in nanoseconds."""
        return int(self.get_clock().now().nanoseconds)

    def create_subscription(self, msg_type: Any, topic: str, callback: Callable[[Any], None],
                            qos_profile: Any, **options: Any) -> Any:
        """Like rclpy's, with a callback that cannot end the node."""
        if self._partners is not None:
            self._partners.add(topic, qos_profile, publishes=False)
        options.setdefault('event_callbacks',
                           SubscriptionEventCallbacks(use_default_callbacks=False))
        return super().create_subscription(
            msg_type, topic, self._guarded(topic, callback), qos_profile, **options)

    def create_publisher(self, msg_type: Any, topic: str, qos_profile: Any,
                         **options: Any) -> Any:
        """Like rclpy's; ``Partners`` watches its quality of service."""
        if self._partners is not None:
            self._partners.add(topic, qos_profile, publishes=True)
        options.setdefault('event_callbacks', PublisherEventCallbacks(use_default_callbacks=False))
        return super().create_publisher(msg_type, topic, qos_profile, **options)

    def create_timer(self, timer_period_sec: float, callback: Callable[[], None],
                     **options: Any) -> Any:
        """Like rclpy's, with a callback that cannot end the node."""
        return super().create_timer(
            timer_period_sec, self._guarded(_timer_name(callback), callback, takes=0), **options)

    def create_guard_condition(self, callback: Callable[[], None], **options: Any) -> Any:
        """Like rclpy's, with a callback that cannot end the node."""
        return super().create_guard_condition(
            self._guarded(f'trigger {getattr(callback, "__name__", "")}'.strip(), callback,
                          takes=0), **options)

    def create_service(self, srv_type: Any, srv_name: str,
                       callback: Callable[[Any, Any], Any], **options: Any) -> Any:
        """Like rclpy's; a callback that raises answers ``success=False`` with the reason."""
        def answer(request: Any, response: Any) -> Any:
            try:
                return callback(request, response)
            except Exception as error:
                self._report(srv_name, error)
                response.success, response.message = False, str(error)
                return response
        return super().create_service(srv_type, srv_name, answer, **options)

    def _guarded(self, name: str, callback: Callable[..., None],
                 takes: int = 1) -> Callable[..., None]:
        # rclpy counts a callback's parameters, so both shapes keep their own signature.
        def run(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                self._report(name, error)
            else:
                self._recovered(name)
        return (lambda message: run(message)) if takes else (lambda: run())

    def _report(self, name: str, error: Exception) -> None:
        if not self.context.ok():
            return  # Told to stop in the middle of a callback: nothing can be published any more.
        known = self.health.faults.get(name)
        words = f'{type(error).__name__}: {error}'
        self.health.set(name, False, words, ERROR)
        # Refusals speak for themselves; anything else is our fault and needs its trace.
        if known != words and not isinstance(error, (ValueError, tf.TransformException)):
            self.get_logger().error(traceback.format_exc())

    def _recovered(self, name: str) -> None:
        if name in self.health.faults:
            self.health.set(name, True)

    def subscribe_frames(self, sensor: str,
                         callback: Callable[[Frame, str], None]) -> tuple[Any, Any]:
        """Call back with every image of a sensor together with its camera_info, by stamp.

        Only the latest image is kept: one that came and went meanwhile is counted on /diagnostics.

        Args:
            sensor: ``fluoroscopy`` or ``ultrasound``.
            callback: takes the frame and its frame_id.

        Returns:
            Both subscriptions, for whoever wants to end them.
        """
        pairs = _Pairs(callback, lambda count: self.health.value(f'{sensor} images missed', count))
        return (self.create_subscription(CameraInfo, f'{sensor}/camera_info', pairs.info,
                                         qos.CAMERA_INFO),
                self.create_subscription(Image, f'{sensor}/image_raw', pairs.image, qos.IMAGE,
                                         raw=True))

    def listen_to_frames(self, on_transforms: Callable[[], None] | None = None) -> None:
        """Start to follow /tf; ``lookup`` works from then on.

        Args:
            on_transforms: called after transforms that move have arrived.
        """
        self.buffer = tf.Buffer(node=self)
        self.listener = tf.TransformListener(self.buffer, self, on_transforms)

    def lookup(self, target: str, source: str, stamp: int) -> Transform:
        """Return ``target_T_source`` at a stamp in ns (0: the newest), without waiting.

        Raises:
            TransformException: unknown, disconnected, in the future or in the past.
        """
        return self.buffer.lookup_matrix(target, source, Time(
            nanoseconds=stamp, clock_type=self.get_clock().clock_type))


def _timer_name(callback: Callable[[], None]) -> str:
    """Return what a timer is called on /diagnostics, such as ``timer show`` for ``_show``."""
    return f'timer {getattr(callback, "__name__", type(callback).__name__).strip("_")}'


class _Pairs:
    """Joins images and camera_infos that carry the same stamp, whichever comes first.

    Args:
        callback: takes the frame and its frame_id.
        tell: takes how many were missed: one of the two came, and later ones were joined.
    """

    KEPT = 8

    def __init__(self, callback: Callable[[Frame, str], None],
                 tell: Callable[[int], None] = lambda count: None) -> None:
        self._callback, self._tell = callback, tell
        self._missed = 0
        tell(0)
        self._images: dict[int, SerializedImage] = {}
        self._infos: dict[int, CameraInfo] = {}

    def image(self, message: bytes) -> None:
        image = image_from_bytes(message)
        self._match(image.stamp_ns, image, self._images)

    def info(self, message: CameraInfo) -> None:
        self._match(stamp_ns(message.header.stamp), message, self._infos)

    def _match(self, stamp: int, message: Any, waiting: dict[int, Any]) -> None:
        waiting[stamp] = message
        if stamp in self._images and stamp in self._infos:
            image, info = (self._taken(stamp, group) for group in (self._images, self._infos))
            self._callback(frame_of(image, stamp, info), image.frame_id)
        while len(waiting) > self.KEPT:
            self._leave(waiting, next(iter(waiting)))

    def _taken(self, stamp: int, waiting: dict[int, Any]) -> Any:
        """Take what carries a stamp; what came before it waits for nothing any more."""
        while (first := next(iter(waiting))) != stamp:
            self._leave(waiting, first)
        return waiting.pop(stamp)

    def _leave(self, waiting: dict[int, Any], stamp: int) -> None:
        waiting.pop(stamp)
        self._missed += 1
        self._tell(self._missed)


def run(node_type: Callable[[], Node], *, niceness: int = 0, rest: float = 0.0) -> None:
    """Run one node until it is told to stop; what every node's ``main`` does.

    Args:
        node_type: makes the node.
        niceness: from 0 (it guides) to 19: how far it leaves the processors to those that do.
        rest: s for which messages may wait, to be handled together (``MessageExecutor``).
    """
    environment.prepare()
    environment.keep_memory()
    if niceness:
        environment.yield_to_others(niceness)
    else:
        environment.answer_at_once()
    end_with_parent()
    # One thread for each node: the graph itself is the parallelism on few cores.
    cv2.setNumThreads(1)
    node = None
    try:
        # See ``nodes``; before rclpy puts its own handler in front.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rclpy.init()
        node = node_type()
        # What start-up made stays; scanning it again and again would delay images. So would
        # looking for rings of garbage after every few messages: there are hardly any.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        MessageExecutor(node, rest).spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except rclpy_implementation.RCLError:
        # Told to stop while it was still starting.
        if rclpy.ok():
            raise
    except ParameterError as error:
        print(f'{node_type.__name__}: {error}', file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        # A second interrupt must not break the clean end that the first one asked for.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
