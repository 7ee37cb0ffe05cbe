"""fusion/register: a patient that lies elsewhere than believed, seen by a sweep and by X-rays."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from scipy.stats import chi2
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger

from hybrid_guidance.calibration.file import Calibration, save
from hybrid_guidance.detection.bone_surface import BoneSurfaceDetector
from hybrid_guidance.geometry.covariance import of_point
from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.imaging.volume import Volume, write_nifti
from hybrid_guidance.nodes.fusion_node import FusionNode
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.calibration import load_calibrations
from hybrid_guidance.ros.convert import point_cloud_message, transform_message
from hybrid_guidance.ros.frames import FramePublisher
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.motion import probe_sweep
from hybrid_guidance.simulation.render import (
    procedure_needle,
    standard_views,
    ultrasound_renderer,
    xray_renderer,
)
from hybrid_guidance.simulation.scanner import scanned

PROCEDURE = load_procedure('lumbar_facet_injection')
TARGET = PROCEDURE.target
SEED = 47
BELIEVED = load_calibrations('simulated')
TRUTH = BELIEVED['patient'].transform


@pytest.fixture(scope='module')
def patient():
    return build_patient(PROCEDURE.region, SEED, TARGET)


@pytest.fixture(scope='module')
def ct(patient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the file of the patient's CT."""
    made = scanned(patient, SEED)
    path = tmp_path_factory.mktemp('ct') / 'ct.nii.gz'
    write_nifti(path, Volume(made.volume, transform(np.diag(made.spacing), made.origin)))
    return str(path)


@pytest.fixture(scope='module')
def clouds(patient):
    """Return (patient_T_image, points, confidence) along a sweep."""
    renderer, detect = ultrasound_renderer(PROCEDURE, patient, SEED), BoneSurfaceDetector()
    found = []
    for time in np.arange(0.0, 18.0, 0.4):
        pose = PROCEDURE.patient_T_ultrasound() @ probe_sweep(float(time), 0.035)
        pixels, confidence = detect(
            Frame(renderer.render(pose, (), float(time)), 0, renderer.projection))
        found.append((pose, renderer.projection.back_project(pixels), confidence))
    return found


def off_by(shift_m: float, turn_deg: float) -> np.ndarray:
    """Return the true pose of the patient, shifted and turned about the target."""
    turn = rotation_from_vector(np.radians(turn_deg) * np.array([0.6, -0.64, 0.48]))
    return TRUTH @ transform(turn, TARGET - turn @ TARGET
                             + shift_m * np.array([0.48, 0.6, -0.64]))


class Theatre:
    """A fusion node that was told a wrong place of the patient, and its trackers."""

    def __init__(self, peer, file, ct: str, start, seed: int = SEED) -> None:
        now = datetime.now(timezone.utc)
        save(file, [*(item for child, item in BELIEVED.items() if child != 'patient'), Calibration(
            'registration', 'world', 'patient', start,
            np.diag([0.004**2] * 3 + [0.05**2] * 3), 'by eye', now, now + timedelta(days=1), None,
            None, None, None, 'test')])
        self.peer = peer('ultrasound', calibration_file=str(file), ct=ct, seed=seed)
        self.fusion = self.peer.start(FusionNode)
        self.start = self.patient
        node = self.peer.node
        self.trackers = tf.TransformBroadcaster(node)
        self.cloud = node.create_publisher(PointCloud2, 'ultrasound/bone_surface', qos.SURFACE)
        self.xray = FramePublisher(node, 'fluoroscopy', 'fluoroscopy_optical_frame')
        if ct != 'none':
            self.peer.spin(lambda: self.cloud.get_subscription_count() > 0
                           and self.xray.has_reader)

    @property
    def patient(self) -> Calibration:
        return self.fusion._calibrations['patient']

    def track(self, frame: str, patient_T_sensor: np.ndarray) -> int:
        """Tell where a sensor is; return the stamp."""
        now, mounted = self.fusion.now_ns(), BELIEVED[frame]
        self.trackers.sendTransform(transform_message(
            'world', mounted.parent, now, TRUTH @ patient_T_sensor @ inverse(mounted.transform)))
        return now

    def sweep(self, clouds) -> None:
        for pose, points, confidence in clouds:
            stamp = self.track('ultrasound_image', pose)
            self.cloud.publish(point_cloud_message(points, confidence, 'ultrasound_image', stamp))
            self.peer.spin_for(0.02)

    def expose(self, patient) -> None:
        for name in ('fluoroscopy_ap', 'fluoroscopy_lateral'):
            own = standard_views(PROCEDURE)[name]
            pose, needle = own.patient_T_fluoroscopy(), procedure_needle(PROCEDURE)
            image = xray_renderer(own, patient, SEED).render(pose, (needle,))
            stamp = self.track('fluoroscopy_optical_frame', pose)
            self.xray.publish(Frame(image, stamp, own.fluoroscopy_projection()))
            self.peer.spin_for(0.1)

    def register(self):
        client = self.peer.node.create_client(Trigger, 'fusion/register')
        self.peer.spin(client.service_is_ready)
        future = client.call_async(Trigger.Request())
        self.peer.spin(future.done, 170.0)
        return future.result()

    def world_T_patient(self) -> np.ndarray:
        """Return what is heard on /tf_static, once that is what the node believes."""
        def heard() -> np.ndarray:
            try:
                return self.fusion.lookup('world', 'patient', 0)
            except tf.TransformException:
                return np.zeros((4, 4))
        self.peer.spin(lambda: np.allclose(heard(), self.patient.transform, atol=1e-9))
        return heard()

    def miss(self) -> np.ndarray:
        return (transform_points(self.world_T_patient(), TARGET)
                - transform_points(TRUTH, TARGET))


@pytest.fixture
def theatre(peer, tmp_path, ct):
    return lambda start, **named: Theatre(
        peer, tmp_path / 'off.yaml', start=start, **{'ct': ct, **named})


def test_sweep_puts_a_patient_right_who_was_6_mm_and_4_degrees_off(theatre, clouds) -> None:
    room = theatre(off_by(0.006, 4.0))
    assert np.linalg.norm(room.miss()) == pytest.approx(0.006, abs=1e-5)
    room.sweep(clouds)
    answer = room.register()
    assert answer.success, answer.message
    assert 'by ultrasound accepted' in answer.message
    miss = room.miss()
    told = room.patient
    covariance = of_point(told.transform, told.covariance, TARGET)
    assert np.linalg.norm(miss) < 0.0015
    assert miss @ np.linalg.solve(covariance, miss) < chi2.ppf(0.999, 3)
    room.peer.spin(lambda: 'by ultrasound accepted' in room.peer.status.get(
        'fusion_node', (0, '', {}))[2].get('registration', ''))


def test_two_x_rays_put_the_patient_right(theatre, patient) -> None:
    room = theatre(off_by(0.006, 4.0))
    room.expose(patient)
    answer = room.register()
    assert answer.success, answer.message
    assert 'by X-ray accepted' in answer.message
    assert np.linalg.norm(room.miss()) < 0.001


def test_where_nothing_was_seen_the_patient_stays_and_the_answer_says_what_to_do(theatre) -> None:
    room = theatre(off_by(0.006, 4.0))
    answer = room.register()
    assert not answer.success
    assert 'sweep' in answer.message
    assert 'no X-ray' in answer.message
    assert np.array_equal(room.patient.transform, room.start.transform)


def test_ct_of_somebody_larger_changes_nothing(theatre, clouds, patient, tmp_path) -> None:
    """Vertebrae a quarter larger: no pose lays them on what was seen."""
    made = scanned(patient, SEED)
    about = transform(translation=TARGET) @ np.diag([1.25, 1.25, 1.25, 1.0]) @ transform(
        translation=-TARGET)
    larger = about @ transform(np.diag(made.spacing), made.origin)
    write_nifti(tmp_path / 'larger.nii.gz', Volume(made.volume, larger))
    room = theatre(TRUTH, ct=str(tmp_path / 'larger.nii.gz'))
    room.sweep(clouds)
    answer = room.register()
    assert not answer.success
    assert 'refused' in answer.message
    assert room.patient is room.start
    assert np.linalg.norm(room.miss()) < 1e-6


def test_guidance_goes_on_while_a_registration_is_under_way(theatre, clouds) -> None:
    room = theatre(off_by(0.003, 2.0))
    room.sweep(clouds)
    node = room.peer.node
    first, second = (node.create_client(Trigger, 'fusion/register') for _ in range(2))
    other = node.create_client(Trigger, 'fusion/reload_calibration')
    room.peer.spin(lambda: all(each.service_is_ready() for each in (first, second, other)))
    slow = first.call_async(Trigger.Request())
    room.peer.spin_for(0.3)
    early, reload = second.call_async(Trigger.Request()), other.call_async(Trigger.Request())
    room.peer.spin(lambda: early.done() and reload.done())
    assert not slow.done()
    assert 'under way' in early.result().message
    assert reload.result().success
    room.peer.spin(slow.done, 170.0)
    assert slow.result().success


def test_without_a_ct_the_answer_names_the_parameter(theatre) -> None:
    answer = theatre(TRUTH, ct='none').register()
    assert not answer.success
    assert '"ct"' in answer.message
