"""Tissue on the wire: trackers tell how far it has moved, fusion makes the breath of it."""

from nav_msgs.msg import Odometry

from hybrid_guidance.calibration.file import Calibration
from hybrid_guidance.detection.lift import lift_shift
from hybrid_guidance.detection.tissue import TissueMotion
from hybrid_guidance.fusion.breathing import Breathing, TissueSight
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import stamp_ns, tissue_from_message, tissue_message
from hybrid_guidance.ros.node import GuidanceNode
from hybrid_guidance.ros.pace import Pace
from hybrid_guidance.ros.waiting import WaitingForPose

_OLD_NS = 500_000_000
"""A breath that was not seen for so long is not known any more."""


class TissueTracker:
    """Publishes ``<sensor>/tissue``: how far tissue has moved since it was first seen.

    Args:
        node: the node.
        sensor: ``fluoroscopy`` or ``ultrasound``.
        motion: follows tissue from image to image.
        depth: m, guess of its distance from the source of a perspective image.
        rate: Hz, at most.
    """

    def __init__(self, node: GuidanceNode, sensor: str, motion: TissueMotion,  # type: ignore[type-arg]
                 depth: float, rate: float) -> None:
        self._motion, self._depth, self._rate, self._pace = motion, depth, rate, Pace()
        self._publisher = node.create_publisher(Odometry, f'{sensor}/tissue', qos.OBSERVATION)

    def __call__(self, frame: Frame, frame_id: str) -> None:
        """Look at one frame, if it is time and somebody listens."""
        if (not frame.projection.is_calibrated or not self._publisher.get_subscription_count()
                or not self._pace.is_due(frame.stamp_ns, self._rate)):
            return
        shift = self._motion(frame)
        if shift is not None:
            self._publisher.publish(tissue_message(*lift_shift(
                shift.pixels, shift.covariance, frame.projection, depth=self._depth),
                shift.reference_ns, frame_id, frame.stamp_ns))


class TissueWatch:
    """Listens to ``<sensor>/tissue``, and knows the breath of it.

    Args:
        node: fusion.
        calibration: sensor to its frame's calibration, None where there is none.
        heard: called with a stamp when the breath is known up to it.
    """

    def __init__(self, node, sensors, calibration, heard) -> None:  # type: ignore[no-untyped-def]
        self._node, self._calibration, self._heard = node, calibration, heard
        self.breathing = Breathing()
        self._waiting: WaitingForPose[tuple[str, Odometry]] = WaitingForPose(
            node, self._take, lambda: node.parameters.wait)
        self.work = self._waiting.work
        for name in sensors:
            node.create_subscription(Odometry, f'{name}/tissue',
                                     lambda message, name=name: self._on_tissue(name, message),
                                     qos.OBSERVATION)

    def begin(self, deviation: float) -> None:
        """Forget everything: calibrations are new."""
        self.breathing = Breathing(deviation=deviation)

    def _on_tissue(self, name: str, message: Odometry) -> None:
        calibration: Calibration | None = self._calibration(name)
        if calibration is None:
            return
        if message.header.frame_id != calibration.child:
            raise ValueError(f'{name}/tissue is in "{message.header.frame_id}", not in '
                             f'"{calibration.child}"')
        self._waiting.add(calibration.parent, stamp_ns(message.header.stamp), (name, message))

    def _take(self, seen: tuple[str, Odometry], world_T_mount: Transform) -> None:
        name, message = seen
        calibration = self._calibration(name)
        if calibration is None:
            return
        moved, covariance, reference = tissue_from_message(message)
        turn = (world_T_mount @ calibration.transform)[:3, :3]
        stamp = stamp_ns(message.header.stamp)
        self.breathing.add(TissueSight(name, stamp, reference, turn @ moved,
                                       turn @ covariance @ turn.T, world_T_mount))
        self._heard(stamp)

    def world_T_patient(self, registration: Transform, stamp: int) -> Transform:
        """Return (4, 4) where the patient is at a stamp, from where it rests."""
        return self.breathing.world_T_still(stamp) @ self.breathing.registered(registration)

    def describe(self, now: int) -> str:
        """Return in words why the breath is not known, '' if it is."""
        newest = self.breathing.newest_ns
        if newest is None:
            return ('tissue is not seen in ultrasound: how far breathing carries the patient is '
                    'in doubt')
        if now - newest > _OLD_NS:
            return 'tissue is not seen any more in ultrasound: hold the breath, or the needle'
        return '' if self.breathing.known else 'watching a breath: where it rests is not known yet'

