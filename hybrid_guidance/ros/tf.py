"""tf2_ros where it is installed; elsewhere the same four names over our own frame tree.

``Buffer``, ``TransformListener``, ``TransformBroadcaster`` and ``StaticTransformBroadcaster``
hold one contract either way, a little stricter than what tf2_ros alone promises: a second
parent and a loop are refused, the future and the past fail with different errors, a clock that
jumps back clears what moves, and a static transform can be replaced. Both are tested by the
same tests.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

if find_spec('tf2_ros'):
    from hybrid_guidance.ros import tf_installed as backend
else:
    from hybrid_guidance.ros import tf_builtin as backend  # type: ignore[no-redef]

IMPLEMENTATION = backend.IMPLEMENTATION
CACHE = backend.CACHE
TransformBroadcaster = backend.TransformBroadcaster
TransformException = backend.TransformException
LookupException = backend.LookupException
ConnectivityException = backend.ConnectivityException
ExtrapolationException = backend.ExtrapolationException
FutureException = backend.FutureException
PastException = backend.PastException
RefusedException = backend.RefusedException


class Buffer(backend.Buffer):
    """Where every frame was, for the last ten seconds.

    ``set_transform`` and ``set_transform_static`` raise ``RefusedException`` for a loop, a second
    parent, and what is no finite rigid transform.

    Args:
        cache_time: how far back.
        node: whose clock to watch; when it jumps back, everything that moves is forgotten.
    """

    def __init__(self, cache_time: Duration = CACHE, node: Node | None = None) -> None:
        super().__init__(cache_time, node)
        if node is not None:
            threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
            self._jump = node.get_clock().create_jump_callback(
                threshold, post_callback=lambda _: self.clear())


class TransformListener(backend.TransformListener):
    """Feeds a buffer from /tf and /tf_static, and remembers in words what it refused.

    Args:
        buffer: what to feed.
        node: whose subscriptions.
        on_transforms: called after transforms that move were taken.

    Attributes:
        refused: child frame to the reason why its latest bad transform was not taken.
    """

    def __init__(self, buffer: Buffer, node: Node,
                 on_transforms: Callable[[], None] | None = None) -> None:
        self.refused: dict[str, str] = {}
        self._on_transforms = on_transforms
        super().__init__(buffer, node)

    def callback(self, data: TFMessage) -> None:
        """Take transforms that move."""
        for transform in data.transforms:
            self._take(self.buffer.set_transform, transform)
        if self._on_transforms is not None:
            self._on_transforms()

    def static_callback(self, data: TFMessage) -> None:
        """Take static transforms."""
        for transform in data.transforms:
            self._take(self.buffer.set_transform_static, transform)

    def _take(self, setter: Any, transform: TransformStamped) -> None:
        try:
            setter(transform, 'default_authority')
        except TransformException as error:
            self.refused[transform.child_frame_id] = str(error)


class StaticTransformBroadcaster(backend.StaticTransformBroadcaster):
    """Publishes latched transforms on /tf_static; a frame sent again is replaced.

    tf2_ros alone keeps the first transform of a frame for ever, so that a recalibration would
    not be heard until the node is restarted.
    """

    def sendTransform(
            self, transform: TransformStamped | list[TransformStamped]) -> None:
        """Send one transform or several, beside those of other frames sent before."""
        transforms = transform if isinstance(transform, list) else [transform]
        replaced = {new.child_frame_id for new in transforms}
        self.net_message.transforms = [old for old in self.net_message.transforms
                                       if old.child_frame_id not in replaced]
        super().sendTransform(transforms)
