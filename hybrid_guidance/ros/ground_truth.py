"""The simulation's own knowledge, for image sources that draw it and for whoever scores."""

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from visualization_msgs.msg import MarkerArray

from hybrid_guidance.fusion.frame_tree import LATEST, FrameTree
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.procedure import Procedure
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import matrix_from_pose, stamp_ns
from hybrid_guidance.simulation.injectate import Injectate
from hybrid_guidance.simulation.instruments import Needle, bent_at, insertion

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


class TrueTools:
    """The needle and the fluid of the simulated patient, as an image source draws them.

    Args:
        node: the subscriber's node.
        procedure: needle, entry and target.
        bend: curvature of the needle in tissue, 1/m.
        seed: of the form of the fluid.
        iodine: in the fluid, kg/m³.
    """

    def __init__(self, node: Node, procedure: Procedure, bend: float, seed: int,
                 iodine: float = 0.0) -> None:
        self._procedure, self._bend, self._seed, self._iodine = procedure, bend, seed, iodine
        self.fluids: list[Injectate] = []
        node.create_subscription(MarkerArray, 'ground_truth/injectate', self._on_injectate,
                                 qos.STATE)

    def needles(self, patient_T_needle: Transform) -> tuple[Needle, ...]:
        """Return the needle of a true pose of the tip, as straight pieces."""
        needle = Needle(patient_T_needle, self._procedure.needle.diameter,
                        self._procedure.needle.length)
        return bent_at(needle, self._bend, insertion(
            needle, self._procedure.entry, self._procedure.target))

    def _on_injectate(self, message: MarkerArray) -> None:
        """Take over the depots: each marker is the ball of its volume."""
        self.fluids = [Injectate(matrix_from_pose(marker.pose), np.pi / 6.0 * marker.scale.x**3,
                                 self._iodine, seed=self._seed + number)
                       for number, marker in enumerate(message.markers) if marker.scale.x > 0.0]
