"""Live video through the image nodes: geometry and delay of the calibration file, and faults."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest

from hybrid_guidance.calibration.file import Calibration, Delay, save
from hybrid_guidance.calibration.recorded import DELAY
from hybrid_guidance.imaging.geometry import CameraGeometry, ImageGeometry
from hybrid_guidance.nodes.fluoroscopy_node import FluoroscopyNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode
from hybrid_guidance.ros.convert import pixels_from_message, projection_from_info, stamp_ns

NOW = datetime.now(timezone.utc)
KNOWN = Calibration('ultrasound-spatial', 'ultrasound_probe', 'ultrasound_image', np.eye(4),
                    np.eye(6) * 1e-8, 'test', NOW, NOW + timedelta(days=1), None, None, None, None,
                    'test', image=ImageGeometry((1e-4, 2e-4), (20.0, 3.0)))
LATE = Delay('ultrasound', 0.15, 0.001, 'test', NOW, NOW + timedelta(days=1), None, None, None,
             None, 'test')


@pytest.fixture
def video(tmp_path) -> str:
    """Ten pictures, 20 a second, of 64 x 48; a white box that moves."""
    writer = cv2.VideoWriter(str(tmp_path / 'a.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 20.0,
                             (64, 48))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no video')
    for place in range(10):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[16:24, 3 * place:3 * place + 8] = 255
        writer.write(picture)
    writer.release()
    return str(tmp_path / 'a.avi')


def paired(graph) -> list:
    """Return the images whose camera_info has arrived as well."""
    return [image for image in graph.images if stamp_ns(image.header.stamp) in graph.infos]


def test_ultrasound_video_is_cropped_calibrated_and_stamped_when_it_was_taken(
        peer, video, tmp_path) -> None:
    save(tmp_path / 'c.yaml', [KNOWN], [LATE])
    graph = peer('ultrasound', source='video', file=video, crop='0 8 48 32',
                 calibration_file=str(tmp_path / 'c.yaml'))
    node = graph.start(UltrasoundNode)
    graph.spin(lambda: len(paired(graph)) >= 5)
    image = paired(graph)[-1]
    age = (node.now_ns() - stamp_ns(image.header.stamp)) * 1e-9
    assert 0.15 <= age < 0.4
    pixels = pixels_from_message(image)
    assert pixels.shape == (32, 48)
    assert pixels[8:16].max() > 200
    assert pixels[20:].max() < 50
    projection = projection_from_info(graph.infos[stamp_ns(image.header.stamp)])
    assert np.allclose(projection.matrix, KNOWN.image.projection((48, 32)).matrix)
    # A recording for calibration puts back what the node says it took off.
    graph.spin(lambda: 'ultrasound_node' in graph.status
               and graph.status['ultrasound_node'][2].get(DELAY) == '0.15')


def test_x_ray_video_without_intrinsics_is_uncalibrated_and_says_so(peer, video) -> None:
    graph = peer('fluoroscopy', source='video', file=video)
    graph.start(FluoroscopyNode)
    graph.spin(lambda: len(graph.images) >= 2 and graph.hears(
        'fluoroscopy_node', 'uncalibrated', '64 x 48', 'hybrid-guidance calibrate'))
    assert all(info.k[0] == 0.0 for info in graph.infos.values())


def test_x_ray_video_is_undistorted_as_its_calibration_says(peer, video, tmp_path) -> None:
    camera = CameraGeometry((200.0, 200.0), (32.0, 24.0), (2.0, 0.0, 0.0, 0.0, 0.0), (64, 48))
    carm = replace(KNOWN, kind='carm', parent='carm', child='fluoroscopy_optical_frame',
                   image=None, camera=camera)
    save(tmp_path / 'c.yaml', [carm])
    graph = peer('fluoroscopy', source='video', file=video,
                 calibration_file=str(tmp_path / 'c.yaml'))
    graph.start(FluoroscopyNode)
    graph.spin(lambda: len(paired(graph)) >= 2)
    image = paired(graph)[0]
    info = graph.infos[stamp_ns(image.header.stamp)]
    assert np.allclose(projection_from_info(info).matrix, camera.projection().matrix)
    _, raw = cv2.VideoCapture(video).read()
    expected = camera.undistorted(cv2.cvtColor(raw, cv2.COLOR_BGR2GRAY))
    assert np.array_equal(pixels_from_message(image), expected)


@pytest.mark.parametrize(('file', 'words'), [
    ('', 'is empty'), ('/nowhere/video9', 'cannot be opened')])
def test_a_video_that_cannot_be_opened_is_reported_and_the_node_stays_up(
        peer, file: str, words: str) -> None:
    given = {'file': file} if file else {}
    graph = peer('ultrasound', source='video', **given)
    graph.start(UltrasoundNode)
    graph.spin(lambda: graph.hears('ultrasound_node', 'no source', words))


def test_a_crop_that_does_not_fit_is_reported_and_nothing_is_published(peer, video) -> None:
    graph = peer('ultrasound', source='video', file=video, crop='0 0 100 100')
    graph.start(UltrasoundNode)
    graph.spin(lambda: graph.hears('ultrasound_node', 'not inside the picture of 64 x 48'))
    assert graph.images == []
