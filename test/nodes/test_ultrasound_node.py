"""ultrasound_node with recordings: good ones play, bad ones are refused in words."""

from datetime import datetime

import numpy as np
import pytest
import rclpy.time
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage

from hybrid_guidance.calibration.file import save
from hybrid_guidance.calibration.plus import read_plus_config
from hybrid_guidance.nodes.fusion_node import FusionNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode
from hybrid_guidance.parameters import ParameterError
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.convert import matrix_from_transform, pixels_from_message, stamp_ns

LEVELS = [10, 60, 110, 160]
TIMES = [0.0, 0.05, 0.13, 0.18]
IMAGE_TO_PROBE = np.array([[-0.0016, 0.0786, -0.0080, 15.4], [-0.0839, 0.0037, 0.0154, 49.6],
                           [0.0159, 0.0071, 0.0804, -8.6], [0.0, 0.0, 0.0, 1.0]])


def poses_mm(seed: int) -> np.ndarray:
    poses = np.stack([np.eye(4)] * len(TIMES))
    poses[:, :3, :3] = Rotation.random(len(TIMES), random_state=seed).as_matrix()
    poses[:, :3, 3] = np.random.default_rng(seed).normal(size=(len(TIMES), 3)) * 100.0
    return poses


@pytest.fixture
def calibration(tmp_path):
    """A calibration file made from PLUS's sheared matrix."""
    numbers = ' '.join(repr(float(number)) for number in IMAGE_TO_PROBE.flat)
    (tmp_path / 'plus.xml').write_text(
        '<PlusConfiguration><CoordinateDefinitions><Transform From="Image" To="Probe" '
        f'Matrix="{numbers}" Error="0.5"/></CoordinateDefinitions></PlusConfiguration>')
    save(tmp_path / 'calibration.yaml', [read_plus_config(
        tmp_path / 'plus.xml', 9, 6, date=datetime(2012, 1, 1), expires=datetime(2090, 1, 1))])
    return tmp_path / 'calibration.yaml'


def test_a_dicom_file_that_cannot_be_played_is_reported_and_the_node_stays_up(
        peer, bad_file, bad_dicom, check_no_source, tmp_path) -> None:
    kind, words = bad_dicom
    file = bad_file(kind, tmp_path, 'US')
    graph = peer('ultrasound', source='dicom', file=file)
    graph.start(UltrasoundNode)
    check_no_source(graph, 'ultrasound_node', words)


@pytest.mark.parametrize(('kind', 'words'), [
    ('cut off', 'cut off, holds'), ('text', 'is not a sequence file'), ('missing', 'no such file'),
    ('directory', 'is a folder')])
def test_a_sequence_that_cannot_be_played_is_reported_and_the_node_stays_up(
        peer, bad_file, sequence_file, check_no_source, calibration, tmp_path, kind: str,
        words: str) -> None:
    file = (sequence_file(tmp_path / 'a.mha', TIMES, {}, keep=8) if kind == 'cut off'
            else bad_file(kind, tmp_path, 'US'))
    graph = peer('ultrasound', source='sequence', file=file, calibration_file=calibration)
    graph.start(UltrasoundNode)
    check_no_source(graph, 'ultrasound_node', words)


def test_a_clip_plays_looped_with_the_scale_of_its_file(peer, dicom_file, tmp_path) -> None:
    graph = peer('ultrasound', source='dicom', file=dicom_file(tmp_path / 'a.dcm', LEVELS, 'US'))
    graph.start(UltrasoundNode)
    graph.spin(lambda: len(graph.images) >= 10 and len(graph.infos) >= 10)
    shown = [LEVELS.index(int(pixels_from_message(image).max())) for image in graph.images]
    assert shown == [(shown[0] + count) % 4 for count in range(len(shown))]
    stamps = np.array([stamp_ns(image.header.stamp) for image in graph.images])
    np.testing.assert_allclose(np.diff(stamps), 50e6, atol=2)
    info = graph.infos[stamps[0]]
    np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:2], [
        [1 / 2e-4, 0.0, 0.0, 32.0], [0.0, 1 / 3e-4, 0.0, 0.0]])
    assert graph.images[0].header.frame_id == 'ultrasound_image'


def test_the_pixels_of_a_sequence_lie_where_plus_puts_them(
        peer, sequence_file, calibration, tmp_path) -> None:
    """Through CameraInfo, /tf_static and /tf, against PLUS's own product in millimetres."""
    probe, stylus = poses_mm(1), poses_mm(2)
    path = sequence_file(tmp_path / 'a.mha', TIMES, {
        'ProbeToTracker': probe, 'StylusTipToTracker': stylus}, lost={('StylusTipToTracker', 2)})
    graph = peer('ultrasound', source='sequence', file=path, calibration_file=calibration)
    buffer = tf.Buffer()
    listener = tf.TransformListener(buffer, graph.node)
    graph.start(FusionNode)
    graph.start(UltrasoundNode)
    graph.spin(lambda: buffer.can_transform('world', 'ultrasound_image', rclpy.time.Time()))
    del graph.images[:]
    graph.spin(lambda: len(graph.images) >= 9)
    images = graph.images[1:9]
    last = stamp_ns(images[-1].header.stamp)
    graph.spin(lambda: last in graph.infos and buffer.can_transform(
        'world', 'ultrasound_image', rclpy.time.Time(nanoseconds=last)))
    assert listener.refused == {}
    corners = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 5.0], [8.0, 5.0]])
    for image in images:
        stamp = stamp_ns(image.header.stamp)
        index = int(pixels_from_message(image).max()) // 20
        world_T_image = matrix_from_transform(buffer.lookup_transform(
            'world', 'ultrasound_image', rclpy.time.Time(nanoseconds=stamp)).transform)
        to_pixel = np.reshape(graph.infos[stamp].p, (3, 4))[:, [0, 1, 3]]
        for u, v in corners:
            x, y, w = np.linalg.solve(to_pixel, [u, v, 1.0])
            point_mm = 1e3 * (world_T_image @ [x / w, y / w, 0.0, 1.0])[:3]
            expected_mm = (probe[index] @ IMAGE_TO_PROBE @ [u, v, 0.0, 1.0])[:3]
            np.testing.assert_allclose(point_mm, expected_mm, rtol=0.0, atol=1e-5)


def test_poses_carry_the_stamps_of_their_images_and_lost_ones_are_not_sent(
        peer, sequence_file, calibration, tmp_path) -> None:
    path = sequence_file(tmp_path / 'a.mha', TIMES, {
        'ProbeToTracker': poses_mm(1), 'StylusTipToTracker': poses_mm(2)},
        lost={('StylusTipToTracker', 2)})
    graph = peer('ultrasound', source='sequence', file=path, calibration_file=calibration)
    sent: dict[int, set[tuple[str, str]]] = {}

    def keep(message: TFMessage) -> None:
        for item in message.transforms:
            sent.setdefault(stamp_ns(item.header.stamp), set()).add(
                (item.header.frame_id, item.child_frame_id))
    graph.node.create_subscription(TFMessage, '/tf', keep, 100)
    graph.start(UltrasoundNode)
    graph.spin(lambda: len(sent) > 0)
    del graph.images[:]
    graph.spin(lambda: len(graph.images) >= 10)
    graph.spin(lambda: stamp_ns(graph.images[9].header.stamp) in sent)
    for image in graph.images[1:10]:
        lost = int(pixels_from_message(image).max()) == 40
        assert sent[stamp_ns(image.header.stamp)] == {
            ('world', 'ultrasound_probe')} | (set() if lost else {('world', 'stylus_tip')})


def test_poses_that_do_not_fit_the_graph_are_left_out_in_words(
        peer, sequence_file, calibration, tmp_path) -> None:
    names = ('ProbeToReference', 'NeedleTipToTracker', 'TrackerToReference', 'ProbeToTracker',
             'PatientToTracker')
    path = sequence_file(tmp_path / 'a.mha', TIMES, {name: poses_mm(3) for name in names})
    graph = peer('ultrasound', source='sequence', file=path, calibration_file=calibration)
    frames = set()
    graph.node.create_subscription(TFMessage, '/tf', lambda message: frames.update(
        (item.header.frame_id, item.child_frame_id) for item in message.transforms), 100)
    graph.start(UltrasoundNode)
    graph.spin(lambda: len(graph.images) >= 4)
    graph.spin(lambda: graph.hears(
        'ultrasound_node', 'ProbeToReference is not published: ultrasound_probe has the parent '
        'world', 'needle_tip belongs to the graph', 'patient belongs to the graph', level=1))
    assert frames == {('world', 'ultrasound_probe'), ('world', 'reference')}


@pytest.mark.parametrize(('name', 'words'), [
    ('simulated', 'is of the simulated probe'), ('none.yaml', 'no pixel spacing'),
    ('plain', 'has no image of kind ultrasound-spatial')])
def test_a_sequence_without_its_calibration_plays_uncalibrated_and_says_why(
        peer, sequence_file, calibration, tmp_path, name: str, words: str) -> None:
    if name == 'plain':
        text = calibration.read_text()
        name = tmp_path / 'plain.yaml'
        name.write_text(text[:text.index('  image:')])
    path = sequence_file(tmp_path / 'a.mha', TIMES, {'ProbeToTracker': poses_mm(1)})
    graph = peer('ultrasound', source='sequence', file=path, calibration_file=name)
    graph.start(UltrasoundNode)
    graph.spin(lambda: len(graph.images) >= 2 and len(graph.infos) >= 2)
    graph.spin(lambda: graph.hears('ultrasound_node', 'calibration: no pixel spacing: ', words,
                                   'geometry: uncalibrated', level=2))
    assert all(info.k[0] == 0.0 for info in graph.infos.values())


def test_names_that_are_no_names_are_refused_at_start(peer) -> None:
    peer('ultrasound', source='sequence', sequence_frames='Probe')
    with pytest.raises(ParameterError, match='"Probe" is not of the form Recorded=frame'):
        UltrasoundNode()


def test_what_a_recording_is_can_only_be_set_at_start(peer, dicom_file, tmp_path) -> None:
    graph = peer('ultrasound', source='dicom', file=dicom_file(tmp_path / 'a.dcm', LEVELS, 'US'))
    node = graph.start(UltrasoundNode)
    result = node.set_parameters([Parameter('file', value='/other.dcm')])[0]
    assert not result.successful
