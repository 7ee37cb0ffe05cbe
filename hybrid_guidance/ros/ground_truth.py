"""The simulation's own knowledge, for image sources that draw it and for whoever scores."""

from collections.abc import Sequence

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node

from hybrid_guidance.fusion.frame_tree import LATEST, FrameTree
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import matrix_from_pose, stamp_ns

NAMES = ('needle', 'patient', 'carm', 'ultrasound_probe')


class GroundTruth:
    """Follows ``ground_truth/*``; every pose is in ``world``.

    Args:
        node: the subscriber's node.
        names: which of ``NAMES`` to follow.
    """

    def __init__(self, node: Node, names: Sequence[str] = NAMES) -> None:
        self._tree = FrameTree()
        self._names = names
        for name in names:
            node.create_subscription(PoseStamped, f'ground_truth/{name}', self._taker(name),
                                     qos.GROUND_TRUTH)

    def _taker(self, name: str):  # type: ignore[no-untyped-def]
        def take(message: PoseStamped) -> None:
            self._tree.set('world', name, stamp_ns(message.header.stamp),
                           matrix_from_pose(message.pose))
        return take

    def latest(self, target: str, source: str) -> tuple[Transform, int]:
        """Return ``target_T_source`` and the newest stamp at which both are known.

        Raises:
            FrameTreeError: not known yet.
        """
        return self._tree.lookup_stamped(target, source, LATEST)

    def newest(self) -> int:
        """Return the newest stamp in ns at which all that is followed is known.

        Raises:
            FrameTreeError: not known yet.
        """
        return min(self.latest('world', name)[1] for name in self._names)

    def lookup(self, target: str, source: str, stamp: int) -> Transform:
        """Return ``target_T_source`` at a stamp in ns; raises like ``latest``."""
        return self._tree.lookup(target, source, stamp)
