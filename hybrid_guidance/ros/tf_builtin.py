"""The four names of tf2_ros over our own frame tree, for machines without tf2_ros."""

from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from hybrid_guidance.fusion import frame_tree
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.ros.convert import (
    MessageError,
    matrix_from_transform,
    stamp_ns,
    transform_message,
)

IMPLEMENTATION = 'built-in'
DYNAMIC_QOS = QoSProfile(depth=100)
STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CACHE = Duration(seconds=10)

TransformException = frame_tree.FrameTreeError
LookupException = frame_tree.UnknownFrameError
ConnectivityException = frame_tree.DisconnectedError
ExtrapolationException = frame_tree.ExtrapolationError
FutureException = frame_tree.FutureError
PastException = frame_tree.PastError
RefusedException = frame_tree.RefusedError

class Buffer:
    """tf2_ros.Buffer's methods, over ``FrameTree``."""

    def __init__(self, cache_time: Duration = CACHE, node: Node | None = None) -> None:
        self._tree = frame_tree.FrameTree(cache_time.nanoseconds * 1e-9)

    def clear(self) -> None:
        """Forget every transform that moves."""
        self._tree.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform that moves."""
        self._add(transform, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add a transform that holds at any time."""
        self._add(transform, static=True)

    def _add(self, transform: TransformStamped, static: bool) -> None:
        parent, child = transform.header.frame_id, transform.child_frame_id
        try:
            matrix = matrix_from_transform(transform.transform)
        except MessageError as error:
            raise RefusedException(f'{parent} -> {child}: {error}') from None
        self._tree.set(parent.lstrip('/'), child.lstrip('/'), stamp_ns(transform.header.stamp),
                       matrix, static)

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time,
                         timeout: Duration | None = None) -> TransformStamped:
        """Return where ``source_frame`` was in ``target_frame`` at a time, without waiting."""
        matrix, stamp = self._tree.lookup_stamped(target_frame.lstrip('/'),
                                                  source_frame.lstrip('/'), time.nanoseconds)
        return transform_message(target_frame, source_frame, stamp, matrix)

    def lookup_matrix(self, target_frame: str, source_frame: str, time: Time) -> Transform:
        """Like ``lookup_transform``, as a (4, 4): a message there and back takes longer."""
        return self._tree.lookup(target_frame.lstrip('/'), source_frame.lstrip('/'),
                                 time.nanoseconds)

    def can_transform(self, target_frame: str, source_frame: str, time: Time,
                      timeout: Duration | None = None) -> bool:
        """Tell whether ``lookup_transform`` would succeed."""
        try:
            self.lookup_transform(target_frame, source_frame, time)
        except TransformException:
            return False
        return True

class TransformListener:
    """tf2_ros.TransformListener's subscriptions."""

    def __init__(self, buffer: Any, node: Node) -> None:
        self.buffer = buffer
        self.tf_sub = node.create_subscription(
            TFMessage, '/tf', self.callback, DYNAMIC_QOS)
        self.tf_static_sub = node.create_subscription(
            TFMessage, '/tf_static', self.static_callback, STATIC_QOS)

    def callback(self, data: TFMessage) -> None:
        """Take transforms that move."""

    def static_callback(self, data: TFMessage) -> None:
        """Take static transforms."""

class TransformBroadcaster:
    """Publishes transforms that move on /tf."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(TFMessage, '/tf', DYNAMIC_QOS)

    def sendTransform(
            self, transform: TransformStamped | list[TransformStamped]) -> None:
        """Send one transform or several in one message."""
        transforms = transform if isinstance(transform, list) else [transform]
        self._publisher.publish(TFMessage(transforms=transforms))

class StaticTransformBroadcaster:
    """Publishes latched transforms on /tf_static: every one sent so far, each time."""

    def __init__(self, node: Node) -> None:
        self.net_message = TFMessage()
        self._publisher = node.create_publisher(
            TFMessage, '/tf_static',
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))

    def sendTransform(
            self, transform: TransformStamped | list[TransformStamped]) -> None:
        """Send one transform or several, beside those sent before."""
        self.net_message.transforms.extend(
            transform if isinstance(transform, list) else [transform])
        self._publisher.publish(self.net_message)
