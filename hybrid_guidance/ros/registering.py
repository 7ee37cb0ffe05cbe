"""``fusion/register``: what was seen of bone lately, laid on the CT in a process of its own."""

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import Trigger

from hybrid_guidance.calibration.file import Calibration
from hybrid_guidance.geometry.needle import shaft
from hybrid_guidance.geometry.rigid import rotation_angle
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.entry import entry_of
from hybrid_guidance.registration.patient import Answer, Job, register_patient
from hybrid_guidance.registration.surface import Glimpse, beams_to
from hybrid_guidance.registration.view import View, shadow
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import (
    frame_from_messages,
    needle_from_message,
    points_from_cloud,
    stamp_ns,
    transform_message,
)
from hybrid_guidance.ros.node import GuidanceNode
from hybrid_guidance.ros.waiting import WaitingForPose
from hybrid_guidance.worker import Worker, WorkerError

# X-rays from directions nearer than this show the same: the newer one counts.
_ASIDE = float(np.radians(10.0))
_VIEWS = 2
_VALID_FOR = timedelta(hours=12)


@dataclass(frozen=True)
class RegisteringParameters:
    """Parameters of ``fusion/register``."""

    ct: str = parameter('none', fixed=True, meaning=(
        'CT that fusion/register lays the patient on: simulated, none, .nii.gz, .nrrd, folder of '
        'DICOM slices, or patient.yaml of an imported patient'))
    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning=(
        'name or YAML file of the procedure: where the registration must be good; its probe'))
    seed: int = parameter(1, low=0, high=2**31 - 1, fixed=True, meaning='of the simulated CT')
    sweep_age: float = parameter(60.0, low=1.0, high=3600.0, unit='s', meaning=(
        'bone seen in ultrasound longer ago does not count for fusion/register'))
    xray_age: float = parameter(600.0, low=1.0, high=36000.0, unit='s', meaning=(
        'an X-ray taken longer ago does not count for fusion/register'))


@dataclass(frozen=True)
class _Seen:
    """What was seen, with the tracked pose of what saw it.

    Attributes:
        stamp: ns.
        what: (points, confidence) of ultrasound, or the serialised image of an X-ray.
        world_T_mount: (4, 4) of the probe or the C-arm.
    """

    stamp: int
    what: Any
    world_T_mount: Transform


class PatientRegistration:
    """Collects bone surfaces and X-rays, and registers the patient when it is asked.

    Images are kept as they came over the wire: nothing is decoded until it is needed.

    Args:
        node: fusion's; its parameters hold ``RegisteringParameters`` and the deviations of
            tracking.
        static: publishes ``world -> patient``.
        calibrations: returns child frame to its calibration; an accepted registration takes the
            place of ``patient`` in it.
    """

    def __init__(self, node: GuidanceNode[Any], static: Any,
                 calibrations: Callable[[], dict[str, Calibration]]) -> None:
        self._node, self._static, self._calibrations = node, static, calibrations
        self._worker: Worker[Answer] | None = None
        self._clouds: deque[_Seen] = deque(maxlen=600)
        self._xrays: list[_Seen] = []
        self._infos: deque[CameraInfo] = deque(maxlen=60)
        self._needle: Any = None
        self._waiting: WaitingForPose[Callable[[Transform], None]] = WaitingForPose(
            node, lambda take, pose: take(pose), lambda: node.parameters.wait)
        self._service = node.create_service(Trigger, 'fusion/register', self._on_call)
        # rclpy answers when a callback returns; this answer is sent when the work is done.
        self._send, self._service.send_response = self._service.send_response, self._later
        self._asked: Any = None
        self._header: Any = None
        if node.parameters.ct == 'none':
            return
        procedure = load_procedure(node.parameters.procedure)
        self._radius, self._length = procedure.ultrasound.probe.radius, procedure.needle.length
        hear = node.create_subscription
        hear(PointCloud2, 'ultrasound/bone_surface', self._on_cloud, qos.SURFACE)
        hear(CameraInfo, 'fluoroscopy/camera_info', self._infos.append, qos.CAMERA_INFO)
        hear(PoseWithCovarianceStamped, 'fluoroscopy/needle', self._on_needle, qos.OBSERVATION)
        hear(Image, 'fluoroscopy/image_raw', self._on_xray, qos.IMAGE, raw=True)

    def _on_cloud(self, message: PointCloud2) -> None:
        calibration = self._calibrations().get(message.header.frame_id)
        if calibration is None:
            raise ValueError(f'ultrasound/bone_surface is in "{message.header.frame_id}", which '
                             'is not calibrated')
        stamp, seen = stamp_ns(message.header.stamp), points_from_cloud(message)
        self._waiting.add(calibration.parent, stamp,
                          lambda pose: self._clouds.append(_Seen(stamp, seen, pose)))

    def _on_needle(self, message: PoseWithCovarianceStamped) -> None:
        self._needle = message

    def _on_xray(self, data: bytes) -> None:
        # An image begins with its stamp, after four bytes that say how it is written.
        seconds, rest = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
        stamp = seconds * 1_000_000_000 + rest
        calibration = self._calibrations().get('fluoroscopy_optical_frame')
        if calibration is not None:
            self._waiting.add(calibration.parent, stamp,
                              lambda pose: self._keep(_Seen(stamp, data, pose)))

    def _keep(self, new: _Seen) -> None:
        others = [old for old in self._xrays if rotation_angle(
            old.world_T_mount[:3, :3].T @ new.world_T_mount[:3, :3]) > _ASIDE]
        self._xrays = [*others, new][-_VIEWS:]

    def _on_call(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        reason = self._reason()
        if reason:
            response.success, response.message = False, reason
            return response
        self._waiting.work()
        self._worker = Worker(register_patient, self._job())
        self._asked = response
        self._timer = self._node.create_timer(0.1, self._look)
        return response

    def _reason(self) -> str:
        """Return why nothing can be registered now, or nothing."""
        if self._node.parameters.ct == 'none':
            return 'no CT to lay the patient on; name it with the parameter "ct" (up --ct)'
        if self._worker is not None:
            return 'a registration is under way; wait for its answer'
        if 'patient' not in self._calibrations():
            return ('nothing says where the patient is, coarsely; put an entry "registration" into '
                    'the calibration file')
        return ''

    def _later(self, response: Trigger.Response, header: Any) -> None:
        if response is self._asked:
            self._header = header
        else:
            self._send(response, header)

    def _job(self) -> Job:
        parameters, now = self._node.parameters, self._node.now_ns()
        known = self._calibrations()
        glimpses = []
        if 'ultrasound_image' in known:
            for seen in self._clouds:
                points, confidence = seen.what
                if 0 <= now - seen.stamp < parameters.sweep_age * 1e9 and len(points):
                    glimpses.append(Glimpse(
                        points, beams_to(points, self._radius), confidence,
                        seen.world_T_mount @ known['ultrasound_image'].transform))
        views = [self._view(seen) for seen in self._xrays
                 if 0 <= now - seen.stamp < parameters.xray_age * 1e9]
        return Job(parameters.ct, parameters.procedure, parameters.seed,
                   known['patient'].transform, tuple(glimpses),
                   tuple(view for view in views if view is not None))

    def _view(self, seen: _Seen) -> View | None:
        info = next((info for info in reversed(self._infos)
                     if stamp_ns(info.header.stamp) == seen.stamp), None)
        mounted = self._calibrations()['fluoroscopy_optical_frame']
        if info is None:
            return None
        frame = frame_from_messages(deserialize_message(seen.what, Image), info)
        if not frame.projection.is_calibrated:
            return None
        hidden = None
        if self._needle is not None and stamp_ns(self._needle.header.stamp) == seen.stamp:
            ends = shaft(needle_from_message(self._needle).pose, self._length)
            size = (frame.projection.width, frame.projection.height)
            hidden = shadow(size, [frame.projection.pixels(ends)], 0.03 * size[0])
        parameters = self._node.parameters
        variances = np.diag(mounted.covariance)
        return View(frame.pixels, frame.projection, seen.world_T_mount @ mounted.transform, hidden,
                    float(np.sqrt(variances[:3].mean() + parameters.tracking_position**2)),
                    float(np.sqrt(variances[3:].mean() + parameters.carm_rotation**2)))

    def _look(self) -> None:
        """See whether the worker is done; then say so, and use what it found."""
        if self._worker is None or self._header is None or not self._worker.is_done():
            return
        self._node.destroy_timer(self._timer)
        try:
            answer = self._worker.result()
        except WorkerError as error:
            answer = Answer(f'refused, the patient stays where it was: {error}')
        response, header = self._asked, self._header
        self._worker = self._asked = self._header = None
        self._use(answer)
        response.success, response.message = answer.found is not None, answer.words
        self._send(response, header)

    def _use(self, answer: Answer) -> None:
        node = self._node
        node.health.value('registration', answer.words)
        if answer.found is None:
            node.get_logger().warning(f'registration {answer.words}')
        else:
            now = datetime.now(timezone.utc)
            entry = entry_of(answer.found, now, now + _VALID_FOR)
            self._calibrations()[entry.child] = entry
            self._static.sendTransform(transform_message(
                entry.parent, entry.child, node.now_ns(), entry.transform))
            node.get_logger().info(f'registration {answer.words}')
        node.health.publish()
