"""Keeps the frames, and fuses both modalities into one needle."""

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from hybrid_guidance.calibration.file import Calibration, CalibrationError
from hybrid_guidance.fusion.advice import Limits
from hybrid_guidance.fusion.needle_filter import Ending, Motion, NeedleFilter, Observation, State
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.fusion.observe import distance_to_shaft, observe
from hybrid_guidance.geometry.covariance import relative
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.calibration import load_calibrations
from hybrid_guidance.ros.convert import (
    matrix_from_pose,
    needle_from_message,
    needle_message,
    projection_from_info,
    stamp_ns,
    transform_message,
)
from hybrid_guidance.ros.exposure import ExposureAdviser
from hybrid_guidance.ros.health import ERROR
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.registering import PatientRegistration, RegisteringParameters
from hybrid_guidance.ros.tissue import TissueWatch
from hybrid_guidance.ros.waiting import WaitingForPose

SENSORS = {'fluoroscopy': 'fluoroscopy_optical_frame', 'ultrasound': 'ultrasound_image'}
ENDINGS = {'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True), 'ultrasound': Ending()}
"""Metal ends sharply in an X-ray; an echo ends at fascia and runs on into bone."""


@dataclass(frozen=True)
class FusionParameters(RegisteringParameters):
    """Parameters of ``fusion_node``."""

    calibration_file: str = parameter('simulated', meaning=(
        'name or file of the calibration; read again by fusion/reload_calibration'))
    gate: float = parameter(5.0, low=2.0, high=20.0, unit='sigma', fixed=True,
                            meaning='a needle further off than this is refused')
    tip_motion: float = parameter(0.0008, low=0.0, high=0.1, unit='m/sqrt(s)', fixed=True,
                                  meaning='how much the tip wanders sideways')
    speed_motion: float = parameter(0.010, low=0.0, high=1.0, unit='m/s/sqrt(s)', fixed=True,
                                    meaning='how much the insertion speed changes')
    tracking_position: float = parameter(0.1e-3, low=0.0, high=0.01, unit='m',
                                         meaning='deviation of one tracked position')
    tracking_rotation: float = parameter(0.001, low=0.0, high=0.1, unit='rad', meaning=(
        'deviation of one tracked rotation of the probe'))
    carm_rotation: float = parameter(0.0002, low=0.0, high=0.1, unit='rad', meaning=(
        'deviation of one tracked rotation of the C-arm'))
    wait: float = parameter(0.3, low=0.01, high=5.0, unit='s', meaning=(
        'how long a needle waits for the tracked pose at its time'))
    stale: float = parameter(0.5, low=0.05, high=10.0, unit='s',
                             meaning='no needle for this long is reported')
    confirm: int = parameter(5, low=1, high=100, fixed=True, meaning=(
        'needles that must agree before one is published'))
    require_both: bool = parameter(True, fixed=True, meaning=(
        'publish only a needle that X-ray and ultrasound have both shown'))
    recover: float = parameter(0.4, low=0.1, high=60.0, unit='s', fixed=True, meaning=(
        'when nothing fits for this long, a needle seen elsewhere takes over'))
    breathing_deviation: float = parameter(0.0015, low=0.0, high=0.02, unit='m', fixed=True,
        meaning='of a place in a breath that no image has shown; 0: nobody breathes')
    exposure_limit: float = parameter(0.0012, low=0.0001, high=0.1, unit='m', meaning=(
        'tip error above which fusion/exposure_advice says expose, if that would help'))
    exposure_risk: float = parameter(0.01, low=0.0, high=1.0, meaning=(
        'probability of touching what must not be touched, above which it does'))
    unchecked: float = parameter(0.015, low=0.001, high=1.0, unit='m', meaning=(
        'how much deeper than an X-ray has shown it the needle may be before it does'))


class FusionNode(GuidanceNode[FusionParameters]):
    """Publishes the frames of the calibration, the needle's frame, and ``needle/pose``."""

    def __init__(self) -> None:
        super().__init__('fusion_node', FusionParameters)
        self._static = tf.StaticTransformBroadcaster(self)
        self._broadcaster = tf.TransformBroadcaster(self)
        publish = self.create_publisher
        self._pose = publish(PoseWithCovarianceStamped, 'needle/pose', qos.OBSERVATION)
        self._consistency = publish(Float64, 'fusion/consistency', qos.OBSERVATION)
        self._exposure = ExposureAdviser(self, 'fluoroscopy', lambda: Limits(
            self.parameters.exposure_limit, risk=self.parameters.exposure_risk,
            unchecked=self.parameters.unchecked))
        self._calibrations: dict[str, Calibration] = {}
        self._fusion = NeedleFusion(lambda: NeedleFilter({}))
        self._tissue = TissueWatch(self, SENSORS, lambda name: self._calibrations.get(
            SENSORS[name]), self._on_breath)
        self._waiting = WaitingForPose(self, self._fuse, lambda: self.parameters.wait,
                                       lambda stamp: self._tissue.breathing.ready(stamp))
        self._projection: Projection | None = None
        self._last_xray: tuple[NeedleEstimate, Transform] | None = None
        self.listen_to_frames(self._work)
        self.reload()
        for name in SENSORS:
            self.create_subscription(PoseWithCovarianceStamped, f'{name}/needle',
                                     lambda message, name=name: self._on_needle(name, message),
                                     qos.OBSERVATION)
        self.create_subscription(CameraInfo, 'fluoroscopy/camera_info', self._on_info,
                                 qos.CAMERA_INFO)
        self.create_subscription(PoseStamped, 'plan/needle_pose', self._on_asked, qos.COMMAND)
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
        self._fusion = NeedleFusion(
            lambda: NeedleFilter(covariances, motion, ENDINGS, self.parameters.gate**2),
            covariances if self.parameters.require_both else (),
            self.parameters.confirm, self.parameters.recover)
        self._last_xray = None
        self._tissue.begin(self.parameters.breathing_deviation)
        now = self.now_ns()
        self._static.sendTransform([transform_message(item.parent, child, now, item.transform)
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

    def _on_needle(self, name: str, message: PoseWithCovarianceStamped) -> None:
        frame = SENSORS[name]
        if message.header.frame_id != frame:
            raise ValueError(f'{name}/needle is in "{message.header.frame_id}", not in "{frame}"')
        if frame in self._calibrations:
            stamp = stamp_ns(message.header.stamp)
            self._waiting.add(self._calibrations[frame].parent, stamp,
                              (name, stamp, needle_from_message(message)))

    def _work(self) -> None:
        self._tissue.work()
        self._waiting.work()

    def _on_breath(self, stamp: int) -> None:
        registration = self._calibrations.get('patient')
        if registration is not None:
            self._broadcaster.sendTransform(transform_message(
                'world', 'patient', stamp,
                self._tissue.world_T_patient(registration.transform, stamp)))
        self._waiting.work()

    def _on_asked(self, message: PoseStamped) -> None:
        """Reckon with a needle that goes where the plan asks it to."""
        registration = self._calibrations.get(message.header.frame_id)
        if registration is not None:
            self._fusion.ask(stamp_ns(message.header.stamp),
                             self._tissue.breathing.registered(registration.transform)
                             @ matrix_from_pose(message.pose))

    def _fuse(self, seen: tuple[str, int, NeedleEstimate], world_T_mount: Transform) -> None:
        name, stamp, needle = seen
        mount_T_sensor = self._calibrations[SENSORS[name]].transform
        observation = observe(name, stamp, needle, mount_T_sensor, *self._tissue.breathing.still(
            stamp, world_T_mount, self._tracking(name)))
        update = self._fusion.add(observation)
        # First what guides, then what is said about it.
        if update.state is not None:
            self._publish(update.state)
        self._compare(name, observation, needle, world_T_mount @ mount_T_sensor)
        self.health.set(f'{name} needle', update.accepted, update.reason)
        if update.accepted and update.reason:
            self.get_logger().warning(update.reason)

    def _tracking(self, name: str):  # type: ignore[no-untyped-def]
        rotation = (self.parameters.carm_rotation if name == 'fluoroscopy'
                    else self.parameters.tracking_rotation)
        return np.diag([self.parameters.tracking_position**2] * 3 + [rotation**2] * 3)

    def _compare(self, name: str, observation: Observation, needle: NeedleEstimate,
                 world_T_sensor: Transform) -> None:
        if name == 'fluoroscopy':
            self._last_xray = (needle, inverse(world_T_sensor))
        elif self._last_xray is not None and self._projection is not None:
            seen, xray_T_world = self._last_xray
            self._consistency.publish(Float64(data=distance_to_shaft(
                observation.needle.tip, xray_T_world, seen, self._projection)))

    def _publish(self, state: State) -> None:
        among_tissue, stamp = self._fusion.filter.estimate(state), state.stamp_ns
        breathing, frames = self._tissue.breathing, []
        world_T_still = breathing.world_T_still(stamp)
        registration = self._calibrations.get('patient')
        if registration is not None:
            still_T_patient = breathing.registered(registration.transform)
            patient = NeedleEstimate(
                inverse(still_T_patient) @ among_tissue.pose, relative(
                    still_T_patient, registration.covariance + breathing.rest_covariance(),
                    among_tissue.pose, among_tissue.covariance))
            self._pose.publish(needle_message(patient, 'patient', stamp))
            frames = [transform_message('world', 'patient', stamp,
                                        world_T_still @ still_T_patient)]
        self._broadcaster.sendTransform([*frames, transform_message(
            'world', 'needle_tip', stamp, world_T_still @ among_tissue.pose)])

    def _watch(self) -> None:
        now, state = self.now_ns(), self._fusion.filter.state
        seen = self._fusion.confirmed
        age = (now - state.stamp_ns) * 1e-9 if seen else np.inf
        self.health.set('needle', age < self.parameters.stale, (
            'not seen any more; the pose is old' if seen else 'not seen yet'))
        doubt = self._tissue.describe(now)
        self.health.set('breathing', not doubt, doubt)
        self.health.set('tf', not self.listener.refused, '; '.join(self.listener.refused.values()))
        self._exposure.publish(self._fusion)


def main() -> None:
    """Run the node."""
    run(FusionNode)


if __name__ == '__main__':
    main()
