"""The demo's operator: approves the plan, exposes now and then, watches, and keeps score."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PointStamped, PoseWithCovarianceStamped
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from hybrid_guidance.fusion.frame_tree import FrameTreeError, FutureError
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.parameters import parameter
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import needle_from_message, point_array, stamp_ns
from hybrid_guidance.ros.ground_truth import GroundTruth
from hybrid_guidance.ros.node import GuidanceNode
from hybrid_guidance.scoring import Sample, compare, percentiles, summarise

SENSORS = ('fluoroscopy', 'ultrasound')


@dataclass(frozen=True)
class OperatorParameters:
    """Parameters of ``operator_node``."""

    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning='what is done')
    exposure_interval: float = parameter(0.4, low=0.1, high=60.0, unit='s', meaning=(
        'least time between two X-ray pulses; they are taken when fusion advises it'))
    tolerance: float = parameter(0.8e-3, low=0.1e-3, high=0.01, unit='m', meaning=(
        'distance to the target at which the needle counts as there'))
    dwell: float = parameter(1.5, low=0.0, high=10.0, unit='s',
                             meaning='how long the needle must stay there')
    output: str = parameter('demo-output', fixed=True, meaning='folder for pictures')


class OperatorNode(GuidanceNode[OperatorParameters]):
    """Runs one procedure; ``done`` tells the end, ``summary`` how it went."""

    def __init__(self, **options: Any) -> None:
        super().__init__('operator_node', OperatorParameters, **options)
        self.done = False
        self.phase = 'waiting for the graph'
        self._procedure = load_procedure(self.parameters.procedure)
        self._truth = GroundTruth(self, ('needle', 'patient'))
        self._pending: list[tuple[int, NeedleEstimate]] = []
        self.samples: list[Sample] = []
        self._latency: list[float] = []
        self._deviation: np.ndarray | None = None
        self._numbers: dict[str, float] = {}
        self._published, self._missed = (dict.fromkeys(SENSORS, 0) for _ in range(2))
        self._exposures = 0
        self._exposed_ns = self._arrived_ns = 0
        self._advised, self._path_clearance = False, ''
        self._pictures: list[Any] = []
        clients = (('plan/compute', Trigger), ('plan/approve', SetBool),
                   ('fluoroscopy/expose', Trigger))
        self._buttons = {name: self.create_client(kind, name) for name, kind in clients}
        subscribe = self.create_subscription
        subscribe(PoseWithCovarianceStamped, 'needle/pose', self._on_needle, qos.OBSERVATION)
        subscribe(PointStamped, 'plan/deviation', self._on_deviation, qos.OBSERVATION)
        subscribe(DiagnosticStatus, 'fusion/exposure_advice', self._on_advice, qos.OBSERVATION)
        subscribe(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)
        for topic in ('fluoroscopy/air_kerma', 'fluoroscopy/kerma_area_product'):
            subscribe(Float64, topic, lambda message, topic=topic: self._numbers.update(
                {topic: message.data}), qos.STATE)
        subscribe(Float64, 'plan/clearance', lambda message: self._numbers.update(
            {'clearance': min(message.data, self._numbers.get('clearance', np.inf))}),
            qos.OBSERVATION)
        for sensor in SENSORS:
            subscribe(CameraInfo, f'{sensor}/camera_info', lambda _, sensor=sensor: (
                self._published.update({sensor: self._published[sensor] + 1})), 50)
        self.create_timer(0.05, self._act)

    def _act(self) -> None:
        self._score()
        if self.phase == 'waiting for the graph':
            ready = all(client.service_is_ready() for client in self._buttons.values())
            if ready and self._published['ultrasound'] > 5:
                self._call('plan/compute', Trigger.Request(), self._on_plan)
                self._call('plan/approve', SetBool.Request(data=True), lambda answer: None)
                self.phase = 'by eye'
        elif self.phase == 'by eye' and self._deviation is not None:
            self.phase = 'guided'
        if self.phase in ('by eye', 'guided'):
            self._expose_as_advised()
        if self.phase == 'guided':
            self._guide()

    def _expose_as_advised(self) -> None:
        now = self.now_ns()
        if self._advised and (now - self._exposed_ns) * 1e-9 >= self.parameters.exposure_interval:
            self._exposed_ns, self._advised = now, False
            self._call('fluoroscopy/expose', Trigger.Request(), self._on_exposed)

    def _guide(self) -> None:
        now = self.now_ns()
        if np.linalg.norm(self._deviation) >= self.parameters.tolerance:
            self._arrived_ns = 0
        elif not self._arrived_ns:
            self._arrived_ns = now
        elif (now - self._arrived_ns) * 1e-9 > self.parameters.dwell:
            self._call('plan/approve', SetBool.Request(data=False), lambda answer: None)
            self.phase = 'finished'
            self._save_pictures('end', self._finish)
        if len(self._pictures) == 0 and -self._deviation[2] < 0.5 * self._procedure.path_length:
            self._save_pictures('halfway', lambda: None)

    def _finish(self) -> None:
        self.done = True

    def _on_plan(self, answer: Trigger.Response) -> None:
        self._path_clearance = answer.message

    def _on_exposed(self, answer: Trigger.Response) -> None:
        self._exposures += answer.success
        self.health.set('exposure', answer.success, answer.message)

    def _call(self, name: str, request: Any, then: Any) -> None:
        self._buttons[name].call_async(request).add_done_callback(
            lambda future: then(future.result()))

    def _on_needle(self, message: PoseWithCovarianceStamped) -> None:
        stamp = stamp_ns(message.header.stamp)
        self._latency.append((self.now_ns() - stamp) * 1e-9)
        self._pending.append((stamp, needle_from_message(message)))

    def _score(self) -> None:
        waiting = []
        for stamp, needle in self._pending:
            try:
                truth = self._truth.lookup('patient', 'needle', stamp)
            except FutureError:
                waiting.append((stamp, needle))
            except FrameTreeError:
                continue
            else:
                self.samples.append(compare(needle, truth))
        self._pending = waiting

    def _on_deviation(self, message: PointStamped) -> None:
        self._deviation = point_array(message.point)

    def _on_advice(self, message: DiagnosticStatus) -> None:
        self._advised = message.level == DiagnosticStatus.WARN

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            for sensor in SENSORS:
                if status.name.endswith(f'{sensor}_tracker_node'):
                    values = {item.key: item.value for item in status.values}
                    self._missed[sensor] = int(values.get(f'{sensor} images missed', 0))

    def _save_pictures(self, when: str, then: Any) -> None:
        missing, asked = set(SENSORS), self.now_ns()

        def save(sensor: str, message: Image) -> None:
            # On a machine under load the first picture may be of before: wait a little for a newer.
            age, waited = ((self.now_ns() - then_ns) * 1e-9
                           for then_ns in (stamp_ns(message.header.stamp), asked))
            is_old = sensor == 'ultrasound' and age > 0.3 and waited < 3.0
            if sensor not in missing or is_old:
                return
            missing.discard(sensor)
            rgb = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
            cv2.imwrite(f'{self.parameters.output}/{sensor}_{when}.png', rgb[..., ::-1])
            if not missing:
                then()

        self._pictures += [self.create_subscription(
            Image, f'{sensor}/overlay', lambda message, sensor=sensor: save(sensor, message),
            qos.OVERLAY) for sensor in SENSORS]

    def summary(self) -> dict[str, Any]:
        """Return how it went: errors against the truth, dose, frames lost, latency."""
        self._score()
        result: dict[str, Any] = {'simulated': True, 'procedure': self._procedure.name,
                                  'phase': self.phase, 'target_reached': False}
        try:
            true_tip = self._truth.latest('patient', 'needle')[0][:3, 3]
        except FrameTreeError:
            return result
        miss = float(np.linalg.norm(true_tip - self._procedure.target))
        result |= {
            'target_reached': self.phase == 'finished' and miss < 3e-3,
            'tip_to_target_mm': round(miss * 1e3, 3), **summarise(self.samples),
            'plan': self._path_clearance,
            'least_clearance_mm': round(self._numbers.get('clearance', np.nan) * 1e3, 2),
            'exposures': self._exposures,
            'air_kerma_mgy': round(self._numbers.get('fluoroscopy/air_kerma', 0.0) * 1e3, 5),
            'kerma_area_product_cgycm2': round(
                self._numbers.get('fluoroscopy/kerma_area_product', 0.0) * 1e6, 5),
            'frames': dict(self._published), 'frames_lost': dict(self._missed),
            'latency_ms': percentiles(self._latency, 1e3)}
        return result
