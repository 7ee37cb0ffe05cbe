"""Finds the needle in X-ray images, and whether the anatomy has moved."""

from dataclasses import dataclass

from geometry_msgs.msg import PointStamped

from hybrid_guidance.detection.anatomy import AnatomyShift
from hybrid_guidance.detection.lift import lift
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.detection.tissue import xray_tissue
from hybrid_guidance.detection.xray import XrayNeedleDetector
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.agreement import shift_message
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.pace import Pace
from hybrid_guidance.ros.tissue import TissueTracker
from hybrid_guidance.ros.tracker import NeedleTracker


@dataclass(frozen=True)
class FluoroscopyTrackerParameters:
    """Parameters of ``fluoroscopy_tracker_node``."""

    minimum_length: float = parameter(60.0, low=20.0, high=1000.0, unit='px', fixed=True,
                                      meaning='shortest line that counts as a shaft')
    threshold: float = parameter(0.5, low=0.0, high=1.0,
                                 meaning='probability from which a needle is reported')
    depth: float = parameter(0.6, low=0.05, high=2.0, unit='m', meaning=(
        'guess of the distance from the source; its uncertainty is stated as half a metre'))
    tissue_rate: float = parameter(5.0, low=0.1, high=100.0, unit='Hz', fixed=True, meaning=(
        'of how far tissue and anatomy have moved, at most'))
    depth_deviation: float = parameter(0.5, low=0.5, high=10.0, unit='m',
                                       meaning='deviation stated along the ray')


class FluoroscopyTrackerNode(GuidanceNode[FluoroscopyTrackerParameters]):
    """Publishes ``fluoroscopy/needle``: the tip on its ray, with the depth left open.

    And ``fluoroscopy/anatomy_shift``: how far anatomy moved since the X-ray before.
    """

    def __init__(self) -> None:
        super().__init__('fluoroscopy_tracker_node', FluoroscopyTrackerParameters)
        detect = XrayNeedleDetector(minimum_length=self.parameters.minimum_length)
        self._track_needle = NeedleTracker(
            self, 'fluoroscopy', detect, self._lift, lambda: self.parameters.threshold)
        self._track_tissue = TissueTracker(
            self, 'fluoroscopy', xray_tissue(), self.parameters.depth, self.parameters.tissue_rate)
        self._compare, self._pace = AnatomyShift(), Pace()
        self._shift = self.create_publisher(
            PointStamped, 'fluoroscopy/anatomy_shift', qos.OBSERVATION)
        self.subscribe_frames('fluoroscopy', self._on_frame)

    def _on_frame(self, frame: Frame, frame_id: str) -> None:
        # The needle first: it must not wait for what is only watched.
        needle = self._track_needle(frame, frame_id)
        self._track_tissue(frame, frame_id)
        if frame.projection.is_calibrated and self._pace.is_due(
                frame.stamp_ns, self.parameters.tissue_rate):
            shift = self._compare(frame, needle)
            self._shift.publish(shift_message(shift, frame_id, frame.stamp_ns))

    def _lift(self, needle: PixelNeedle, frame: Frame) -> NeedleEstimate:
        return lift(needle, frame.projection, depth=self.parameters.depth,
                    depth_deviation=self.parameters.depth_deviation)


def main() -> None:
    """Run the node."""
    # An X-ray stays true while the ultrasound of this moment is looked at.
    run(FluoroscopyTrackerNode, niceness=5)


if __name__ == '__main__':
    main()
