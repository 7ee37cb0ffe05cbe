"""Finds the needle in ultrasound images."""

from dataclasses import dataclass

from hybrid_guidance.detection.lift import lift
from hybrid_guidance.detection.line import PixelNeedle
from hybrid_guidance.detection.ultrasound import UltrasoundNeedleDetector
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.tracker import NeedleTracker


@dataclass(frozen=True)
class UltrasoundTrackerParameters:
    """Parameters of ``ultrasound_tracker_node``."""

    minimum_length: float = parameter(45.0, low=20.0, high=1000.0, unit='px', fixed=True,
                                      meaning='shortest echo line that counts as a shaft')
    threshold: float = parameter(0.5, low=0.0, high=1.0,
                                 meaning='probability from which a needle is reported')
    slice_thickness: float = parameter(0.003, low=0.0005, high=0.02, unit='m', meaning=(
        'full width at half maximum of the beam in elevation'))


class UltrasoundTrackerNode(GuidanceNode[UltrasoundTrackerParameters]):
    """Publishes ``ultrasound/needle``: the tip in the slice, open across it."""

    def __init__(self) -> None:
        super().__init__('ultrasound_tracker_node', UltrasoundTrackerParameters)
        detect = UltrasoundNeedleDetector(minimum_length=self.parameters.minimum_length)
        self.subscribe_frames('ultrasound', NeedleTracker(
            self, 'ultrasound', detect, self._lift, lambda: self.parameters.threshold))

    def _lift(self, needle: PixelNeedle, frame: Frame) -> NeedleEstimate:
        return lift(needle, frame.projection, slice_thickness=self.parameters.slice_thickness)


def main() -> None:
    """Run the node."""
    run(UltrasoundTrackerNode)


if __name__ == '__main__':
    main()
