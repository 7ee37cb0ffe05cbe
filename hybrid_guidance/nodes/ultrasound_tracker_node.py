"""Finds the needle, and the surface of bone, in ultrasound images."""

from dataclasses import dataclass

from sensor_msgs.msg import PointCloud2

from hybrid_guidance.detection.bone_surface import BoneSurfaceDetector
from hybrid_guidance.detection.lift import lift
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.detection.tissue import TissueMotion
from hybrid_guidance.detection.ultrasound import UltrasoundNeedleDetector
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import point_cloud_message
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.pace import Pace
from hybrid_guidance.ros.probe import SliceParameters
from hybrid_guidance.ros.tissue import TissueTracker
from hybrid_guidance.ros.tracker import NeedleTracker


@dataclass(frozen=True)
class UltrasoundTrackerParameters(SliceParameters):
    """Parameters of ``ultrasound_tracker_node``."""

    minimum_length: float = parameter(45.0, low=20.0, high=1000.0, unit='px', fixed=True,
                                      meaning='shortest echo line that counts as a shaft')
    threshold: float = parameter(0.5, low=0.0, high=1.0,
                                 meaning='probability from which a needle is reported')
    confirm: int = parameter(3, low=1, high=30, fixed=True, meaning=(
        'images in a row that must agree on a needle before it is first reported'))
    tissue_rate: float = parameter(15.0, low=1.0, high=100.0, unit='Hz', fixed=True, meaning=(
        'of how far tissue has moved, at most; it is looked at only while somebody subscribes'))
    bone_rate: float = parameter(5.0, low=0.1, high=100.0, unit='Hz', meaning=(
        'of the bone surface, at most; it is looked for only while somebody subscribes'))


class UltrasoundTrackerNode(GuidanceNode[UltrasoundTrackerParameters]):
    """Publishes ``ultrasound/needle``, the tip in the slice, and ``ultrasound/bone_surface``."""

    def __init__(self) -> None:
        super().__init__('ultrasound_tracker_node', UltrasoundTrackerParameters)
        detect = UltrasoundNeedleDetector(minimum_length=self.parameters.minimum_length)
        self._track_needle = NeedleTracker(
            self, 'ultrasound', detect, self._lift, lambda: self.parameters.threshold,
            self.parameters.confirm)
        self._track_tissue = TissueTracker(
            self, 'ultrasound', TissueMotion(), 0.0, self.parameters.tissue_rate)
        self._detect_bone = BoneSurfaceDetector()
        self._bone = self.create_publisher(PointCloud2, 'ultrasound/bone_surface', qos.SURFACE)
        self._bone_pace = Pace()
        self.subscribe_frames('ultrasound', self._on_frame)

    def _on_frame(self, frame: Frame, frame_id: str) -> None:
        # The needle first: it must not wait for what is only looked at.
        self._track_needle(frame, frame_id)
        self._track_tissue(frame, frame_id)
        if self._is_bone_due(frame):
            pixels, confidence = self._detect_bone(frame)
            points = frame.projection.back_project(pixels)
            self._bone.publish(
                point_cloud_message(points, confidence, frame_id, frame.stamp_ns))

    def _is_bone_due(self, frame: Frame) -> bool:
        return bool(frame.projection.is_calibrated and self._bone.get_subscription_count()
                    and self._bone_pace.is_due(frame.stamp_ns, self.parameters.bone_rate))

    def _lift(self, needle: PixelNeedle, frame: Frame) -> NeedleEstimate:
        return lift(needle, frame.projection, slice_thickness=self.parameters.slice_thickness)


def main() -> None:
    """Run the node."""
    run(UltrasoundTrackerNode)


if __name__ == '__main__':
    main()
