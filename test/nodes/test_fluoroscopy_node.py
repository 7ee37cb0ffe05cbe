"""fluoroscopy_node with recordings: good ones play, bad ones are refused in words."""

import numpy as np
import pytest
from std_srvs.srv import SetBool, Trigger

from hybrid_guidance.nodes.fluoroscopy_node import FluoroscopyNode
from hybrid_guidance.ros.convert import pixels_from_message, projection_from_info, stamp_ns

LEVELS = [10, 60, 110, 160, 210]


def test_a_file_that_cannot_be_played_is_reported_and_the_node_stays_up(
        peer, bad_file, bad_dicom, check_no_source, tmp_path) -> None:
    kind, words = bad_dicom
    file = bad_file(kind, tmp_path, 'XA')
    graph = peer('fluoroscopy', source='dicom', file=file)
    graph.start(FluoroscopyNode)
    check_no_source(graph, 'fluoroscopy_node', words)


def test_no_file_given_is_reported(peer, check_no_source) -> None:
    graph = peer('fluoroscopy', source='dicom')
    graph.start(FluoroscopyNode)
    check_no_source(graph, 'fluoroscopy_node', 'the parameter "file" is empty')


def test_a_recording_cannot_be_exposed(peer, dicom_file, tmp_path) -> None:
    graph = peer('fluoroscopy', source='dicom', file=dicom_file(tmp_path / 'a.dcm', LEVELS))
    graph.start(FluoroscopyNode)
    answer = graph.call(Trigger, 'fluoroscopy/expose', Trigger.Request())
    assert not answer.success
    assert 'a recording cannot be exposed' in answer.message
    for pressed in (True, False):
        answer = graph.call(SetBool, 'fluoroscopy/pedal', SetBool.Request(data=pressed))
        assert answer.success is not pressed
        assert 'a recording cannot be exposed' in answer.message


@pytest.mark.parametrize('calibrated', [True, False])
def test_a_cine_plays_at_its_own_rate_every_frame_once_and_in_order(
        peer, dicom_file, tmp_path, calibrated: bool) -> None:
    tags = {'DistanceSourceToDetector': '1000', 'ImagerPixelSpacing': ['0.4', '0.2']}
    path = dicom_file(tmp_path / 'a.dcm', LEVELS, FrameTimeVector=['0', '30', '50', '40', '60'],
                      **(tags if calibrated else {}))
    graph = peer('fluoroscopy', source='dicom', file=path)
    graph.start(FluoroscopyNode)
    graph.spin(lambda: len(graph.images) >= 13 and len(graph.infos) >= 13)
    shown = [LEVELS.index(int(pixels_from_message(image).max())) for image in graph.images]
    assert shown == [(shown[0] + count) % 5 for count in range(len(shown))]
    stamps = np.array([stamp_ns(image.header.stamp) for image in graph.images])
    # The loop starts over after the median step, 45 ms.
    steps_ms = np.array([45, 30, 50, 40, 60])[shown[1:]]
    np.testing.assert_allclose(np.diff(stamps), steps_ms * 1e6, atol=2)
    projection = projection_from_info(graph.infos[stamps[3]])
    assert projection.is_calibrated is calibrated
    assert graph.images[3].header.frame_id == 'fluoroscopy_optical_frame'
    if calibrated:
        # A millimetre at half the distance is two on the detector: ten pixels of 0.2 mm.
        pixel = projection.pixels(np.array([1e-3, 0.0, 0.5])) - projection.pixels(
            np.array([0.0, 0.0, 0.5]))
        np.testing.assert_allclose(pixel, [10.0, 0.0])
    else:
        graph.spin(lambda: graph.hears('fluoroscopy_node', 'geometry: uncalibrated: Distance',
                                       level=1))


def test_a_cine_played_once_waits_for_a_reader_and_says_when_it_has_ended(
        peer, dicom_file, tmp_path) -> None:
    path = dicom_file(tmp_path / 'a.dcm', LEVELS)
    graph = peer('fluoroscopy', source='dicom', file=path, loop='false')
    graph.start(FluoroscopyNode)
    graph.spin(lambda: graph.hears('fluoroscopy_node', 'source: the recording has ended'))
    graph.spin_for(0.2)
    assert [int(pixels_from_message(image).max()) for image in graph.images] == LEVELS
    assert graph.status['fluoroscopy_node'][2]['frames'] == '5'
