"""Keeps the frames, and fuses both modalities into one needle."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PointStamped, PoseWithCovarianceStamped
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from hybrid_guidance.calibration.file import Calibration, CalibrationError
from hybrid_guidance.fusion.holder import Motion
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.fusion.patient_shift import AnatomyMotion
from hybrid_guidance.fusion.watched import WatchedFusion
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.agreement import listen_to_trackers, say_agreement
from hybrid_guidance.ros.breathing_patient import (
    SENSORS,
    BreathingParameters,
    BreathingPatient,
)
from hybrid_guidance.ros.calibration import load_calibrations
from hybrid_guidance.ros.convert import (
    point_array,
    projection_from_info,
    stamp_ns,
    transform_message,
)
from hybrid_guidance.ros.exposure import ExposureAdviser, ExposureParameters
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.registering import PatientRegistration, RegisteringParameters
from hybrid_guidance.ros.serialized import needle_from_bytes
from hybrid_guidance.ros.waiting import TrackedPoseParameters, WaitingForPose


@dataclass(frozen=True)
class FusionParameters(RegisteringParameters, ExposureParameters, BreathingParameters,
                       TrackedPoseParameters):
    """Parameters of ``fusion_node``."""

    calibration_file: str = parameter('simulated', meaning=(
        'name or file of the calibration; read again by fusion/reload_calibration'))
    gate: float = parameter(5.0, low=2.0, high=20.0, unit='sigma', fixed=True,
                            meaning='a needle further off than this is refused')
    tip_motion: float = parameter(0.0008, low=0.0, high=0.1, unit='m/sqrt(s)', fixed=True,
                                  meaning='how much the tip wanders sideways')
    speed_motion: float = parameter(0.010, low=0.0, high=1.0, unit='m/s/sqrt(s)', fixed=True,
                                    meaning='how much the insertion speed changes')
    stale: float = parameter(0.5, low=0.05, high=10.0, unit='s',
                             meaning='no needle for this long is reported')
    confirm: int = parameter(5, low=1, high=100, fixed=True, meaning=(
        'needles that must agree before one is published'))
    require_both: bool = parameter(True, fixed=True, meaning=(
        'publish only a needle that X-ray and ultrasound have both shown'))
    recover: float = parameter(0.4, low=0.1, high=60.0, unit='s', fixed=True, meaning=(
        'when nothing fits for this long, a needle seen elsewhere takes over'))


class FusionNode(GuidanceNode[FusionParameters]):
    """Publishes the frames of the calibration, the needle, and whether its images agree."""

    def __init__(self) -> None:
        super().__init__('fusion_node', FusionParameters)
        self._static = tf.StaticTransformBroadcaster(self)
        publish, subscribe = self.create_publisher, self.create_subscription
        self._consistency = publish(Float64, 'fusion/consistency', qos.OBSERVATION)
        self._agreement = publish(DiagnosticStatus, 'fusion/agreement', qos.OBSERVATION)
        # What is subscribed first is taken first, when several messages wait.
        for name in SENSORS:
            subscribe(PoseWithCovarianceStamped, f'{name}/needle',
                      partial(self._on_needle, name), qos.OBSERVATION, raw=True)
        self._exposure = ExposureAdviser(self, 'fluoroscopy')
        self._calibrations: dict[str, Calibration] = {}
        self._watched = WatchedFusion({})
        self._waiting = WaitingForPose(
            self, lambda take, pose: take(pose), lambda: self.parameters.wait,
            lambda stamp: self._patient.tissue.breathing.ready(stamp))
        self._patient = BreathingPatient(self, lambda: self._calibrations, lambda: self._watched,
                                         self._waiting.work)
        self._projection: Projection | None = None
        self.listen_to_frames(self._work)
        self.reload()
        subscribe(CameraInfo, 'fluoroscopy/camera_info', self._on_info, qos.CAMERA_INFO)
        subscribe(PointStamped, 'fluoroscopy/anatomy_shift', self._on_anatomy, qos.OBSERVATION)
        listen_to_trackers(self, SENSORS, lambda: self._watched)
        self.create_service(Trigger, 'fusion/reload_calibration', self._on_reload)
        self._register = PatientRegistration(self, self._static, lambda: self._calibrations)
        self.create_timer(0.1, self._watch)

    def reload(self) -> None:
        """Read the calibration file; a bad one is reported and changes nothing."""
        try:
            found = load_calibrations(self.parameters.calibration_file)
        except (CalibrationError, FileNotFoundError) as error:
            self.health.set('calibration', False, str(error), ERROR)
            return
        self._calibrations = found
        covariances = {name: found[frame].covariance
                       for name, frame in SENSORS.items() if frame in found}
        motion = Motion(tip=self.parameters.tip_motion, speed=self.parameters.speed_motion)
        self._watched = WatchedFusion(
            covariances, motion, self.parameters.gate,
            covariances if self.parameters.require_both else (),
            self.parameters.confirm, self.parameters.recover)
        self._patient.tissue.begin(self.parameters.breathing_deviation)
        self._static.sendTransform([
            transform_message(item.parent, child, self.now_ns(), item.transform)
            for child, item in found.items()])
        missing = ', '.join(sorted({*SENSORS.values(), 'patient'} - set(found)))
        self.health.set('calibration', not missing, (
            f'nothing is known of {missing}; add it to {self.parameters.calibration_file}'))

    def _on_reload(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.reload()
        response.message = self.health.faults.get('calibration', 'calibration in use')
        response.success = 'calibration' not in self.health.faults
        return response

    def _on_info(self, message: CameraInfo) -> None:
        projection = projection_from_info(message)
        self._projection = projection if projection.is_calibrated else None
        self._watched.exposed(stamp_ns(message.header.stamp))

    def _on_needle(self, name: str, message: bytes) -> None:
        frame, (frame_id, stamp, needle) = SENSORS[name], needle_from_bytes(message)
        if frame_id != frame:
            raise ValueError(f'{name}/needle is in "{frame_id}", not in "{frame}"')
        if frame in self._calibrations and self._watched.arrived(name, stamp, self.now_ns()):
            self._waiting.add(self._calibrations[frame].parent, stamp, partial(
                self._fuse, name, stamp, needle))

    def _work(self) -> None:
        self._patient.tissue.work()
        self._waiting.work()

    def _on_anatomy(self, message: PointStamped) -> None:
        calibration = self._calibrations.get(SENSORS['fluoroscopy'])
        # Where tissue is followed its movement is known, and a breath would pass for a shift.
        if (calibration is not None and self._projection is not None
                and not self._patient.moves):
            motion = partial(AnatomyMotion, point_array(message.point), self._projection,
                             calibration.transform, self.parameters.tracking('fluoroscopy'))
            self._waiting.add(calibration.parent, stamp_ns(message.header.stamp),
                              lambda pose: self._watched.anatomy(motion(pose)))

    def _fuse(self, name: str, stamp: int, needle: NeedleEstimate,
              world_T_mount: Transform) -> None:
        calibration = self._calibrations[SENSORS[name]]
        still_T_mount, breath = self._patient.tissue.breathing.still(stamp, world_T_mount)
        sighting = Sighting(name, stamp, needle, calibration.transform, still_T_mount,
                            self.parameters.tracking(name), calibration.covariance,
                            world_T_mount, breath)
        self._watched.follows_tissue = self._patient.moves
        projection = self._projection if name == 'fluoroscopy' else None
        update = self._watched.fuse(sighting, projection)
        # First what guides, then what is said about it.
        if update.state is not None:
            self._patient.show(update.state)
        found = self._watched.judge(sighting, update, projection)
        if found is not None and name == 'ultrasound':
            self._consistency.publish(Float64(data=abs(found.pixels)))
        self.health.set(f'{name} needle', update.accepted, update.reason)

    def _watch(self) -> None:
        now, fusion = self.now_ns(), self._watched.fusion
        state, seen = fusion.filter.state, fusion.confirmed
        age = (now - state.stamp_ns) * 1e-9 if seen else np.inf
        self.health.set('needle', age < self.parameters.stale, (
            'not seen any more; the pose is old' if seen else 'not seen yet'))
        self.health.set('tf', not self.listener.refused, '; '.join(self.listener.refused.values()))
        say_agreement(self, self._agreement, self._watched.report(now))
        doubt = self._patient.tissue.describe(now)
        self.health.set('breathing', not doubt, doubt)
        self._exposure.publish(self._watched, self._patient.tissue.breathing.away())


def main() -> None:
    """Run the node."""
    run(FusionNode)


if __name__ == '__main__':
    main()
