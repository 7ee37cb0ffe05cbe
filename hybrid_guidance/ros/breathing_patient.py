"""Where the patient and the needle are, while the patient breathes: tf and ``needle/pose``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped

from hybrid_guidance.calibration.file import Calibration
from hybrid_guidance.fusion.needle_filter import State
from hybrid_guidance.fusion.watched import WatchedFusion
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import (
    matrix_from_pose,
    stamp_ns,
    transform_message,
)
from hybrid_guidance.ros.node import GuidanceNode
from hybrid_guidance.ros.serialized import needle_bytes
from hybrid_guidance.ros.tissue import TissueWatch

_RECENT_NS = 100_000_000

SENSORS = {'fluoroscopy': 'fluoroscopy_optical_frame', 'ultrasound': 'ultrasound_image'}


@dataclass(frozen=True)
class BreathingParameters:
    """Parameters of the breath."""

    breathing_deviation: float = parameter(0.0015, low=0.0, high=0.02, unit='m', fixed=True,
        meaning='of a place in a breath that no image has shown; 0: nobody breathes')


class BreathingPatient:
    """Publishes ``needle/pose``, ``world -> needle_tip`` and, as it breathes, ``world -> patient``.

    The needle is filtered among tissue at rest: the breath is taken out of what is seen, and put
    into where it is shown.

    Args:
        node: fusion.
        calibrations: returns child frame to its calibration.
        watched: returns the fusion.
        ready: called when the breath is known up to a later stamp.
    """

    def __init__(self, node: GuidanceNode[Any], calibrations: Callable[[], Mapping[
            str, Calibration]], watched: Callable[[], WatchedFusion],
            ready: Callable[[], None]) -> None:
        self._calibrations, self._watched, self._ready = calibrations, watched, ready
        self._broadcaster, self._now_ns = tf.TransformBroadcaster(node), node.now_ns
        self._shown_ns = 0
        self._pose = node.create_publisher(
            PoseWithCovarianceStamped, 'needle/pose', qos.OBSERVATION)
        self.tissue = TissueWatch(
            node, SENSORS, lambda name: calibrations().get(SENSORS[name]), self._on_breath)
        node.create_subscription(PoseStamped, 'plan/needle_pose', self._on_asked, qos.COMMAND)

    @property
    def moves(self) -> bool:
        """Whether tissue is seen, so that its movement is that of the patient."""
        return self.tissue.breathing.newest_ns is not None

    def show(self, state: State) -> None:
        """Publish the needle of a state."""
        breathing, stamp, frames = self.tissue.breathing, state.stamp_ns, []
        needle, still_T_patient = self._watched().fusion.filter.estimate(state), None
        if registration := self._calibrations().get('patient'):
            still_T_patient = breathing.registered(registration.transform)
            self._pose.publish(needle_bytes(self._watched().in_patient(
                needle, still_T_patient, registration.covariance + breathing.rest_covariance()),
                'patient', stamp))
        self._shown_ns = stamp
        # First what guides; where it is in the room comes after.
        world_T_still = breathing.world_T_still(stamp)
        if still_T_patient is not None:
            frames = self._patient_at(stamp, world_T_still @ still_T_patient)
        self._broadcaster.sendTransform([*frames, transform_message(
            'world', 'needle_tip', stamp, world_T_still @ needle.pose)])

    def _patient_at(self, stamp: int, world_T_patient: Transform) -> list[Any]:
        return ([transform_message('world', 'patient', stamp, world_T_patient)]
                if self.moves else [])

    def _on_breath(self, stamp: int) -> None:
        registration = self._calibrations().get('patient')
        # A needle that is shown brings the patient along.
        if registration and abs(stamp - self._shown_ns) > _RECENT_NS:
            self._broadcaster.sendTransform(self._patient_at(
                stamp, self.tissue.world_T_patient(registration.transform, stamp)))
        self._ready()

    def _on_asked(self, message: PoseStamped) -> None:
        """Reckon with a needle that goes where the plan asks it to."""
        if registration := self._calibrations().get(message.header.frame_id):
            self._watched().fusion.ask(
                stamp_ns(message.header.stamp), self.tissue.breathing.registered(
                    registration.transform) @ matrix_from_pose(message.pose), self._now_ns())
