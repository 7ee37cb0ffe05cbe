"""What both tracker nodes do: find the needle in each frame and say where, and how surely."""

from collections.abc import Callable

from geometry_msgs.msg import PoseWithCovarianceStamped

from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.detection.repeats import Repeats
from hybrid_guidance.detection.succession import Succession
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode
from hybrid_guidance.ros.serialized import needle_bytes


class NeedleTracker:
    """Publishes the needle of each frame, when there is one and the image has a geometry.

    A picture that only repeats the one before shows where the needle was, not where it is.

    Args:
        node: the node.
        sensor: ``fluoroscopy`` or ``ultrasound``.
        detect: finds a needle in a frame.
        lift: places it in the sensor's frame.
        threshold: probability from which a needle is reported.
        confirm: images in a row that must agree before a needle is first reported.
    """

    def __init__(self, node: GuidanceNode, sensor: str,  # type: ignore[type-arg]
                 detect: Callable[[Frame], PixelNeedle | None],
                 lift: Callable[[PixelNeedle, Frame], NeedleEstimate],
                 threshold: Callable[[], float], confirm: int = 1) -> None:
        self._node, self._detect, self._lift, self._threshold = node, detect, lift, threshold
        self._publisher = node.create_publisher(
            PoseWithCovarianceStamped, f'{sensor}/needle', qos.OBSERVATION)
        self._repeats, self._agrees = Repeats(), Succession(confirm)
        self._frames = self._needles = 0

    def __call__(self, frame: Frame, frame_id: str) -> PixelNeedle | None:
        """Look at one frame; return the needle in it, for those who look on."""
        found, seen = None, False
        if not self._repeats(frame):
            found = self._detect(frame)
            likely = found is not None and found.probability >= self._threshold()
            seen = self._agrees(found if likely else None, frame.stamp_ns)
        calibrated = frame.projection.is_calibrated
        # First what guides, then what is said about it.
        if found is not None and seen and calibrated:
            self._publisher.publish(needle_bytes(
                self._lift(found, frame), frame_id, frame.stamp_ns))
            self._needles += 1
        self._frames += 1
        health = self._node.health
        words = self._repeats.words
        health.set('picture', not words, words, ERROR)
        health.set('geometry', calibrated, (
            'the image is uncalibrated (k[0] == 0): a needle in it has no place in space'))
        health.value('frames', self._frames)
        health.value('needles', self._needles)
        health.value('probability', f'{found.probability:.3f}' if found else '0')
        return found if seen else None
