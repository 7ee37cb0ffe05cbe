"""Advice on the probe: a topic for programs, words for the overlay."""

from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from hybrid_guidance.detection.ultrasound import Beams, sector_mask
from hybrid_guidance.fusion.probe_advice import ProbeAdvice, advise_probe
from hybrid_guidance.geometry.covariance import rotate
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.node import GuidanceNode


@dataclass(frozen=True)
class SliceParameters:
    """Parameters of the slice that ultrasound shows."""

    slice_thickness: float = parameter(0.003, low=0.0005, high=0.02, unit='m', meaning=(
        'full width at half maximum of the beam in elevation'))


class ProbeAdviser:
    """Publishes ``ultrasound/probe_advice``.

    Args:
        node: the overlay's; it has ``SliceParameters``.
    """

    def __init__(self, node: GuidanceNode[Any]) -> None:
        self._node = node
        self._advice = node.create_publisher(
            DiagnosticStatus, 'ultrasound/probe_advice', qos.OBSERVATION)

    @property
    def is_watched(self) -> bool:
        """Whether anybody listens."""
        return bool(self._advice.get_subscription_count())

    def publish(self, frame: Frame, image_T_patient: Transform, needle: NeedleEstimate) -> str:
        """Say how to hold the probe, and return the words.

        Args:
            frame: a calibrated ultrasound image.
            image_T_patient: (4, 4) at its time.
            needle: in ``patient``.
        """
        apex = Beams.of(sector_mask(frame.pixels)).apex
        advice = advise_probe(
            NeedleEstimate(image_T_patient @ needle.pose,
                           rotate(image_T_patient, needle.covariance)),
            self._node.parameters.slice_thickness,
            None if apex is None else frame.projection.back_project(apex[None])[0, :2])
        self._advice.publish(_message(advice))
        return advice.words


def _message(advice: ProbeAdvice) -> DiagnosticStatus:
    """Return an advice as a status: WARN where the probe should be held otherwise."""
    values = {'tip behind the slice, m': f'{advice.offset:.6f}',
              'deviation, m': f'{advice.sigma:.6f}',
              'probability outside': f'{advice.outside:.4f}',
              'shaft to slice, rad': f'{advice.crossing:.4f}',
              'beam to turn to the right, rad': f'{advice.oblique:.4f}'}
    return DiagnosticStatus(
        level=DiagnosticStatus.WARN if advice.words else DiagnosticStatus.OK, name='probe',
        message=advice.words or 'tip in the slice, beam square to the shaft',
        values=[KeyValue(key=key, value=value) for key, value in values.items()])
