import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PointStamped, PoseStamped, PoseWithCovarianceStamped
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import inverse, pose_along, transform
from hybrid_guidance.nodes.fusion_node import SENSORS, FusionNode
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.calibration import load_calibrations
from hybrid_guidance.ros.convert import (
    camera_info_message,
    header,
    needle_from_message,
    needle_message,
    point_message,
    pose_stamped,
    stamp_ns,
    transform_message,
)

PROCEDURE = load_procedure('lumbar_facet_injection')
NEEDLE = pose_along(PROCEDURE.target, PROCEDURE.target - PROCEDURE.entry)
SIGHT = {'ultrasound': PROCEDURE.patient_T_ultrasound(),
         'fluoroscopy': PROCEDURE.patient_T_fluoroscopy()}


def noise(name: str, pose: np.ndarray) -> np.ndarray:
    """A slice across its z is blind to 1 mm and 6°, an X-ray along its ray to 0.5 m and 90°."""
    tip, direction = pose[:3, 3], pose[:3, 2]
    ray = np.array([0.0, 0.0, 1.0]) if name == 'ultrasound' else tip / np.linalg.norm(tip)
    place, tilt = (1e-3, 0.1) if name == 'ultrasound' else (0.5, np.pi / 2)
    turn = np.cross(ray, direction)
    covariance = np.diag([1e-4, 1e-4, 1e-4, 0.005, 0.005, 0.005])**2
    covariance[:3, :3] += place**2 * np.outer(ray, ray)
    covariance[3:, 3:] += tilt**2 * np.outer(turn, turn) + 10.0 * np.outer(direction, direction)
    return covariance


class Stage:
    """Plays trackers to a fusion node, and hears what it makes of them."""

    def __init__(self, peer) -> None:
        self.peer = peer
        self.poses: list[PoseWithCovarianceStamped] = []
        self.advice: list[DiagnosticStatus] = []
        self.agreement: list[DiagnosticStatus] = []
        self.consistency: list[float] = []
        node = peer.node
        self.fusion = peer.start(FusionNode)
        self.calibrations = load_calibrations('simulated')
        self.broadcaster = tf.TransformBroadcaster(node)
        self.needles = {name: node.create_publisher(
            PoseWithCovarianceStamped, f'{name}/needle', qos.OBSERVATION) for name in SENSORS}
        node.create_subscription(PoseWithCovarianceStamped, 'needle/pose', self.poses.append,
                                 qos.OBSERVATION)
        node.create_subscription(DiagnosticStatus, 'fusion/exposure_advice', self.advice.append,
                                 qos.OBSERVATION)
        node.create_subscription(DiagnosticStatus, 'fusion/agreement', self.agreement.append,
                                 qos.OBSERVATION)
        node.create_subscription(Float64, 'fusion/consistency', lambda message:
                                 self.consistency.append(message.data), qos.OBSERVATION)
        self.info = node.create_publisher(CameraInfo, 'fluoroscopy/camera_info', qos.CAMERA_INFO)
        self.shift = node.create_publisher(PointStamped, 'fluoroscopy/anatomy_shift',
                                           qos.OBSERVATION)
        self.diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        peer.spin(lambda: all(item.get_subscription_count() for item in (
            *self.needles.values(), self.info, self.shift)))
        self.track()

    def track(self) -> int:
        """Tell where both imagers are now; return the stamp."""
        now = self.fusion.now_ns()
        world_T_patient = self.calibrations['patient'].transform
        self.broadcaster.sendTransform([transform_message(
            'world', self.calibrations[frame].parent, now,
            world_T_patient @ SIGHT[name] @ inverse(self.calibrations[frame].transform))
            for name, frame in SENSORS.items()])
        return now

    def tell(self) -> None:
        """Tell the projection of the X-rays that follow."""
        self.info.publish(camera_info_message(
            PROCEDURE.fluoroscopy_projection(), SENSORS['fluoroscopy'], self.fusion.now_ns()))
        self.peer.spin(lambda: self.fusion._projection is not None)

    def agrees(self, state: str, *faults: str) -> bool:
        """Tell whether the newest agreement has this state and names exactly these faults."""
        if not self.agreement:
            return False
        values = {item.key: item.value for item in self.agreement[-1].values}
        return values['state'] == state and values['faults'] == ', '.join(faults)

    def see_anatomy(self, *shift: float) -> None:
        stamp = self.track()
        self.peer.spin_for(0.02)
        self.track()
        message = PointStamped(header=header(SENSORS['fluoroscopy'], stamp))
        message.point.x, message.point.y, message.point.z = shift
        self.shift.publish(message)
        self.peer.spin_for(0.05)

    def see(self, name: str, patient_T_needle=NEEDLE, frame: str | None = None) -> None:
        before = self.track()
        sensor_T_needle = inverse(SIGHT[name]) @ patient_T_needle
        self.peer.spin_for(0.02)
        self.track()
        seen = NeedleEstimate(sensor_T_needle, noise(name, sensor_T_needle))
        self.needles[name].publish(needle_message(seen, frame or SENSORS[name], before))
        self.peer.spin_for(0.02)


@pytest.fixture
def stage(peer) -> Stage:
    return Stage(peer('ultrasound'))


def test_needle_of_both_modalities_is_published_in_patient_where_it_is(stage: Stage) -> None:
    for _ in range(6):
        stage.see('ultrasound')
    assert stage.poses == []
    assert stage.peer.hears('fusion_node', 'only one modality')
    stage.see('fluoroscopy')
    stage.see('ultrasound')
    stage.peer.spin(lambda: len(stage.poses) >= 2)
    found = needle_from_message(stage.poses[-1])
    assert stage.poses[-1].header.frame_id == 'patient'
    assert np.linalg.norm(found.tip - NEEDLE[:3, 3]) < 2e-4
    assert 1e-4 < np.sqrt(found.covariance[0, 0]) < 2e-3


def test_exposure_is_advised_when_ultrasound_alone_shows_a_needle(stage: Stage) -> None:
    stage.peer.spin(lambda: len(stage.advice) > 0)
    assert stage.advice[-1].level == DiagnosticStatus.OK
    for _ in range(6):
        stage.see('ultrasound')
    stage.peer.spin(lambda: stage.advice[-1].level == DiagnosticStatus.WARN)
    assert 'no X-ray' in stage.advice[-1].message


def test_advice_names_the_dose_and_the_risk_of_touching_what_is_near(stage: Stage) -> None:
    node = stage.peer.node
    kerma = node.create_publisher(Float64, 'fluoroscopy/air_kerma', qos.STATE)
    nearest = node.create_publisher(PointStamped, 'plan/nearest_structure', qos.OBSERVATION)
    stage.peer.spin(lambda: kerma.get_subscription_count() and nearest.get_subscription_count())
    for gray in (1.0e-5, 2.2e-5):
        kerma.publish(Float64(data=gray))
        stage.peer.spin_for(0.1)
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy')
    stage.peer.spin(lambda: len(stage.poses) > 0)
    for _ in range(3):
        stage.see('ultrasound')
        # Across the slice, where ultrasound is blind, 0.3 mm away.
        across = NEEDLE[:3, :3].T @ SIGHT['ultrasound'][:3, 2]
        nearest.publish(PointStamped(header=header('needle_tip', stamp_ns(
            stage.poses[-1].header.stamp)), point=point_message(0.3e-3 * across)))
    stage.peer.spin(lambda: 'for 12.0 µGy' in stage.advice[-1].message and float({
        item.key: item.value for item in stage.advice[-1].values}['risk now']) > 0.05)


def test_needle_asked_aside_is_less_sure_until_it_is_seen(peer) -> None:
    # A breath that no image shows would be all that its place is doubted for.
    stage = Stage(peer('ultrasound', breathing_deviation=0.0))
    told = stage.peer.node.create_publisher(PoseStamped, 'plan/needle_pose', qos.COMMAND)
    stage.peer.spin(lambda: told.get_subscription_count())
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy')
    stage.see('ultrasound')
    stage.peer.spin(lambda: len(stage.poses) >= 2)

    def across() -> float:
        axis = SIGHT['ultrasound'][:3, 2]
        return float(axis @ needle_from_message(stage.poses[-1]).covariance[:3, :3] @ axis)**0.5
    before = across()
    pose = NEEDLE.copy()
    pose[:3, 3] += 0.003 * SIGHT['ultrasound'][:3, 2]
    told.publish(pose_stamped(pose, 'patient', stamp_ns(stage.poses[-1].header.stamp)))
    stage.peer.spin_for(0.3)
    stage.see('ultrasound')
    stage.peer.spin(lambda: across() > 1.5 * before)


def test_needle_in_a_wrong_frame_is_refused_in_words_and_the_node_lives(stage: Stage) -> None:
    stage.see('ultrasound', frame='fluoroscopy_optical_frame')
    stage.peer.spin(lambda: stage.peer.hears('fusion_node', 'fluoroscopy_optical_frame', 'not in'))
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy')
    stage.peer.spin(lambda: len(stage.poses) > 0)


def test_xray_that_contradicts_ultrasound_is_said_and_nothing_is_published(stage: Stage) -> None:
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy', transform(translation=np.array([0.0, 0.0, 0.02])) @ NEEDLE)
    stage.peer.spin(lambda: stage.peer.hears('fusion_node', 'fluoroscopy needle', 'mm beside'))
    assert stage.poses == []
    stage.peer.spin(lambda: 'contradicts' in stage.advice[-1].message)


def test_needle_without_a_tracked_pose_is_given_up_in_words(stage: Stage) -> None:
    def see_untracked() -> None:
        stage.needles['ultrasound'].publish(needle_message(
            NeedleEstimate(NEEDLE, noise('ultrasound', NEEDLE)), SENSORS['ultrasound'],
            stage.fusion.now_ns()))
    see_untracked()
    stage.peer.spin_for(1.5 * stage.fusion.parameters.wait)
    assert not stage.peer.hears('fusion_node', 'not tracked')
    see_untracked()
    stage.peer.spin(lambda: stage.peer.hears('fusion_node', 'ultrasound_probe', 'not tracked'))
    assert stage.poses == []


def test_calibration_that_is_gone_is_reported_and_the_old_one_stays(stage: Stage) -> None:
    stage.fusion.set_parameters([Parameter('calibration_file', value='nowhere.yaml')])
    answer = stage.peer.call(Trigger, 'fusion/reload_calibration', Trigger.Request())
    assert not answer.success
    assert 'nowhere' in answer.message
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy')
    stage.peer.spin(lambda: len(stage.poses) > 0)


def test_images_that_agree_are_said_to_in_pixels_and_sigma(stage: Stage) -> None:
    stage.peer.spin(lambda: stage.agrees('none'))
    stage.tell()
    for _ in range(5):
        stage.see('ultrasound')
    stage.peer.spin(lambda: stage.agrees('only one'))
    stage.see('fluoroscopy')
    stage.see('ultrasound')
    stage.peer.spin(lambda: stage.agrees('consistent') and bool(stage.consistency))
    assert stage.agreement[-1].level == DiagnosticStatus.OK
    assert 'agree' in stage.agreement[-1].message
    assert max(stage.consistency) < 2.0


def test_images_that_contradict_are_reported_in_words(stage: Stage) -> None:
    """20 mm beside in the X-ray."""
    stage.tell()
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy', transform(translation=np.array([0.0, 0.0, 0.02])) @ NEEDLE)
    for _ in range(3):
        stage.see('ultrasound')
    stage.peer.spin(lambda: stage.agrees('contradicting', 'contradiction'))
    assert stage.agreement[-1].level == DiagnosticStatus.ERROR
    assert 'contradict each other' in stage.agreement[-1].message
    stage.peer.spin(lambda: stage.peer.hears('fusion_node', 'contradict each other', level=2))
    assert stage.consistency[-1] > 50.0
    assert stage.poses == []


def test_a_patient_who_moved_is_named_and_makes_the_pose_less_sure(stage: Stage) -> None:
    """3 mm at 0.6 m are 17 px."""
    stage.tell()
    for _ in range(6):
        stage.see('ultrasound')
    stage.see('fluoroscopy')
    stage.see('ultrasound')
    stage.see_anatomy(0.0, 0.0, 0.0)
    stage.see_anatomy(0.1, 0.0, 0.5)
    stage.see('ultrasound')
    before = np.sqrt(needle_from_message(stage.poses[-1]).covariance[0, 0])
    stage.see_anatomy(17.0, 0.0, 0.5)
    stage.peer.spin(lambda: 'patient has moved by 3' in stage.agreement[-1].message)
    stage.see('ultrasound')
    stage.peer.spin_for(0.1)
    after = np.sqrt(needle_from_message(stage.poses[-1]).covariance[0, 0])
    assert before < 0.002 < after
    assert stage.peer.call(Trigger, 'fusion/reload_calibration', Trigger.Request()).success
    stage.peer.spin(lambda: 'patient' not in stage.agreement[-1].message)


def test_a_frozen_image_that_a_tracker_tells_of_is_named(stage: Stage) -> None:
    def tell(level: bytes, words: str) -> None:
        stage.diagnostics.publish(DiagnosticArray(status=[DiagnosticStatus(
            level=level, name='ultrasound_tracker_node', message=words)]))
    stage.peer.spin(lambda: stage.diagnostics.get_subscription_count() >= 2)
    tell(DiagnosticStatus.ERROR, 'picture: image does not change: the same for 0.3 s; see to it')
    stage.peer.spin(lambda: stage.agrees('none', 'frozen'))
    assert 'ultrasound tracker: image does not change' in stage.agreement[-1].message
    tell(DiagnosticStatus.OK, 'good')
    stage.peer.spin(lambda: stage.agrees('none'))


def test_a_needle_that_comes_twice_is_used_once_and_named(stage: Stage) -> None:
    stage.tell()
    stamp = stage.track()
    stage.peer.spin_for(0.02)
    stage.track()
    seen = inverse(SIGHT['ultrasound']) @ NEEDLE
    message = needle_message(NeedleEstimate(seen, noise('ultrasound', seen)),
                             SENSORS['ultrasound'], stamp)
    for _ in range(6):
        stage.needles['ultrasound'].publish(message)
    stage.peer.spin(lambda: stage.agrees('only one', 'duplicated') or stage.agrees(
        'none', 'duplicated'))
    assert not stage.fusion._watched.fusion.found
