"""fluoroscopy_node in place of a tracker: the C-arm's own angles as ``carm`` on /tf."""

from pathlib import Path

import numpy as np
import pytest
from rclpy.parameter import Parameter
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

from hybrid_guidance import cli
from hybrid_guidance.calibration.carm import gantry_covariance
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.carm import patient_T_optical
from hybrid_guidance.geometry.covariance import of_point
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.nodes.fluoroscopy_node import FluoroscopyNode
from hybrid_guidance.nodes.fusion_node import FusionNode
from hybrid_guidance.parameters import ParameterError
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.convert import (
    matrix_from_transform,
    pixels_from_message,
    projection_from_info,
    stamp_ns,
    transform_message,
)

LEFT, BACK, HEAD = np.eye(3)
WHOLE = {'DistanceSourceToDetector': 1000, 'DistanceSourceToPatient': 750,
         'ImagerPixelSpacing': [4.0, 4.0]}


class Ears:
    """Every transform of ``carm`` that is published: stamp in ns to (4, 4), and its parents."""

    def __init__(self, graph) -> None:
        self.poses: dict[int, np.ndarray] = {}
        self.parents: set[str] = set()
        graph.node.create_subscription(TFMessage, '/tf', self._hear, 100)

    def _hear(self, message: TFMessage) -> None:
        for item in message.transforms:
            if item.child_frame_id == 'carm':
                self.poses[stamp_ns(item.header.stamp)] = matrix_from_transform(item.transform)
                self.parents.add(item.header.frame_id)


def play(peer, path: Path, **parameters):
    """Start the node with a file; return the graph, what it says of carm, and the node."""
    graph = peer('fluoroscopy', source='dicom', file=path, **{'gantry': 'file', **parameters})
    ears = Ears(graph)
    return graph, ears, graph.start(FluoroscopyNode)


@pytest.mark.parametrize(('primary', 'secondary', 'detector'), [
    (0, 0, -BACK), (90, 0, LEFT), (-90, 0, -LEFT), (180, 0, BACK),
    (0, 80, np.cos(np.radians(80)) * -BACK + np.sin(np.radians(80)) * HEAD)])
def test_the_source_is_opposite_to_where_dicom_puts_the_detector(
        peer, dicom_file, tmp_path, primary, secondary, detector) -> None:
    """PS3.3 C.8.7.5.1.2: 0 at the chest, LAO +90 left, RAO -90 right, cranial to the head."""
    path = dicom_file(tmp_path / 'a.dcm', [10, 20], PositionerPrimaryAngle=primary,
                      PositionerSecondaryAngle=secondary, **WHOLE)
    graph, ears, _ = play(peer, path)
    graph.spin(lambda: len(ears.poses) > 3 and len(graph.images) > 3)
    assert ears.parents == {'world'}
    for image in graph.images[:3]:
        pose = ears.poses[stamp_ns(image.header.stamp)]
        np.testing.assert_allclose(pose[:3, 3], -0.75 * detector, atol=1e-9)
        np.testing.assert_allclose(pose[:3, 2], detector, atol=1e-9)


@pytest.mark.parametrize(('primary', 'side'), [(40, 1.0), (-40, -1.0)])
def test_a_spine_seen_by_radiologists_is_where_the_published_geometry_has_it(
        peer, dicom_file, tmp_path, primary, side) -> None:
    """The cardiologists' rule: in LAO the spine is on the right of the heart, in RAO on its left.

    Stored as they look at it; the heart is at the isocentre, the spine 60 mm behind it.
    """
    pose = patient_T_optical(np.radians(primary), 0.0, 0.75, np.zeros(3))
    truth = Projection.perspective((250.0, 250.0), (31.5, 23.5), (64, 48))
    spine = 0.06 * BACK
    u, v = np.rint(truth.pixels(rigid.transform_points(rigid.inverse(pose), spine))).astype(int)
    stored = np.zeros((48, 64), np.uint8)
    stored[v, 63 - u] = 255
    assert np.sign((63 - u) - 31.5) == side
    path = dicom_file(tmp_path / 'a.dcm', [0], PixelData=stored.tobytes(),
                      PositionerPrimaryAngle=primary, PositionerSecondaryAngle=0,
                      PatientOrientation=['L', 'F'], **WHOLE)
    graph, ears, _ = play(peer, path)
    graph.spin(lambda: bool(graph.images and graph.infos and ears.poses))
    image = graph.images[0]
    stamp = stamp_ns(image.header.stamp)
    graph.spin(lambda: stamp in ears.poses and stamp in graph.infos)
    seen = projection_from_info(graph.infos[stamp]).pixels(
        rigid.transform_points(rigid.inverse(ears.poses[stamp]), spine))
    row, column = np.argwhere(pixels_from_message(image) == 255)[0]
    np.testing.assert_allclose(seen, [column, row], atol=0.51)


def test_a_run_of_a_turning_arm_has_the_angles_of_each_frame(peer, dicom_file, tmp_path) -> None:
    """PS3.3 C.8.7.5.1.3: one value is the step of every frame, a vector is offsets."""
    path = dicom_file(tmp_path / 'a.dcm', [10, 60, 110], PositionerPrimaryAngle=-20,
                      PositionerSecondaryAngle=5, PositionerMotion='DYNAMIC',
                      PositionerPrimaryAngleIncrement=['0', '15', '40'],
                      PositionerSecondaryAngleIncrement='-2', **WHOLE)
    graph, ears, _ = play(peer, path)
    graph.spin(lambda: len(graph.images) > 3 and len(ears.poses) > 4)
    for image in graph.images[:3]:
        index = (10, 60, 110).index(int(pixels_from_message(image)[0, 0]))
        angles = np.radians([-20 + (0, 15, 40)[index], 5 - 2 * index])
        np.testing.assert_allclose(ears.poses[stamp_ns(image.header.stamp)],
                                   patient_T_optical(*angles, 0.75, np.zeros(3)), atol=1e-9)


def test_what_the_file_does_not_say_is_asked_for_and_can_be_given(
        peer, dicom_file, tmp_path) -> None:
    path = dicom_file(tmp_path / 'a.dcm', [10, 20], PositionerPrimaryAngle=10,
                      PositionerSecondaryAngle=0)
    graph, ears, _ = play(peer, path)
    graph.spin(lambda: graph.hears('fluoroscopy_node', 'gantry: the file does not say',
                                   'set source_to_isocentre', level=2))
    assert not ears.poses
    graph.close()
    graph, ears, _ = play(peer, path, source_to_isocentre=0.8, source_to_detector=1.2,
                          pixel_pitch=0.0003)
    graph.spin(lambda: bool(ears.poses and graph.infos))
    assert np.linalg.norm(next(iter(ears.poses.values()))[:3, 3]) == pytest.approx(0.8)
    assert next(iter(graph.infos.values())).k[0] == pytest.approx(4000.0)


def test_angles_of_a_console_can_be_set_while_it_runs(peer, tmp_path) -> None:
    import cv2
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((48, 64), 90, np.uint8))
    graph = peer('fluoroscopy', source='images', file=tmp_path, gantry='console',
                 gantry_frame='isocentre', source_to_isocentre=0.7, calibration_file='none.yaml',
                 source_to_detector=1.0, pixel_pitch=0.0004)
    ears = Ears(graph)
    node = graph.start(FluoroscopyNode)
    graph.spin(lambda: bool(ears.poses and graph.infos))
    assert ears.parents == {'isocentre'}
    np.testing.assert_allclose(next(iter(ears.poses.values()))[:3, 2], -BACK, atol=1e-9)
    assert next(iter(graph.infos.values())).k[0] == pytest.approx(2500.0)
    assert node.set_parameters([Parameter('primary_angle_deg', value=90.0)])[0].successful
    graph.spin(lambda: bool(np.allclose(list(ears.poses.values())[-1][:3, 2], LEFT)))


def test_it_gives_way_to_somebody_else_who_publishes_carm(peer, dicom_file, tmp_path) -> None:
    path = dicom_file(tmp_path / 'a.dcm', [10, 20], PositionerPrimaryAngle=10,
                      PositionerSecondaryAngle=0, **WHOLE)
    graph, ears, node = play(peer, path)
    graph.spin(lambda: len(ears.poses) > 2)
    assert not graph.hears('fluoroscopy_node', 'gantry')
    tracker = tf.TransformBroadcaster(graph.node)
    tracker.sendTransform([transform_message('world', 'carm', node.now_ns(), np.eye(4))])
    graph.spin(lambda: graph.hears('fluoroscopy_node', 'gantry: somebody else publishes world -> '
                                   'carm', 'set gantry to tracked', level=2))
    graph.spin_for(0.1)
    ears.poses.clear()
    shown = len(graph.images)
    graph.spin(lambda: len(graph.images) > shown + 3)
    assert not ears.poses


@pytest.mark.parametrize(('given', 'words'), [
    ({'gantry': 'file'}, 'patient_node publishes carm'),
    ({'gantry': 'file', 'source': 'video'}, 'the source video has no angles'),
    ({'gantry': 'console', 'source': 'openigtlink', 'link_frames': '"Tracker=world Arm=carm"'},
     'link_frames makes carm')])
def test_two_publishers_of_carm_are_refused_at_start(peer, given, words) -> None:
    peer('fluoroscopy', **given)
    with pytest.raises(ParameterError, match=words):
        FluoroscopyNode()


def test_with_its_entry_of_the_calibration_the_graph_knows_the_source(
        peer, dicom_file, tmp_path) -> None:
    """``calibrate gantry`` leaves the mount to fusion_node: one publisher for each transform."""
    lab = tmp_path / 'lab.yaml'
    assert cli.main(['calibrate', 'gantry', '--source-to-isocentre', '750',
                     '--output', str(lab)]) == 0
    path = dicom_file(tmp_path / 'a.dcm', [10, 20], PositionerPrimaryAngle=25,
                      PositionerSecondaryAngle=-15, **WHOLE)
    graph = peer('fluoroscopy', source='dicom', file=path, gantry='file', calibration_file=lab)
    buffer = tf.Buffer(node=graph.node)
    listener = tf.TransformListener(buffer, graph.node)
    graph.start(FusionNode)
    graph.start(FluoroscopyNode)
    wanted = ('world', 'fluoroscopy_optical_frame')
    graph.spin(lambda: buffer.can_transform(*wanted, Time()))
    np.testing.assert_allclose(buffer.lookup_matrix(*wanted, Time()), patient_T_optical(
        *np.radians([25, -15]), 0.75, np.zeros(3)), atol=1e-9)
    assert not listener.refused


def test_a_wrong_angle_does_not_move_what_lies_at_the_isocentre() -> None:
    """Against angles drawn at random about a C-arm, to what lies 100 mm beyond as well."""
    random, deviation = np.random.default_rng(5), np.radians(0.5)
    covariance = gantry_covariance(0.75, deviation, 1e-9, 1e-9)
    centre = np.array([0.0, 0.0, 0.75])
    turns = [rigid.rotation_from_vector(vector)
             for vector in random.normal(0.0, deviation, (4000, 3))]
    for point in (centre, centre + [0.02, 0.0, 0.1]):
        places = np.array([centre + turn @ (point - centre) for turn in turns])
        np.testing.assert_allclose(of_point(np.eye(4), covariance, point), np.cov(places.T),
                                   atol=0.06 * (deviation * 0.1)**2)
