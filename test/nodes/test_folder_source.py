"""A folder of images through either image node."""

import cv2
import numpy as np
import pytest

from hybrid_guidance.nodes.fluoroscopy_node import FluoroscopyNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode
from hybrid_guidance.ros.convert import pixels_from_message, stamp_ns


@pytest.mark.parametrize(('sensor', 'node'), [
    ('fluoroscopy', FluoroscopyNode), ('ultrasound', UltrasoundNode)])
def test_a_folder_of_images_is_played_at_its_rate_and_bad_files_are_said(
        peer, tmp_path, sensor: str, node: type) -> None:
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.full((4, 6), 20 * number, np.uint8))
    (tmp_path / '3.png').write_text('no')
    graph = peer(sensor, source='images', file=str(tmp_path), rate=10.0)
    graph.start(node)
    graph.spin(lambda: len(graph.images) >= 6)
    levels = [int(pixels_from_message(image)[0, 0]) for image in graph.images]
    start = levels.index(20)
    assert levels[start:start + 3] == [20, 40, 200]
    stamps = [stamp_ns(image.header.stamp) * 1e-9 for image in graph.images]
    assert stamps[start + 2] - stamps[start + 1] == pytest.approx(0.2, abs=1e-3)
    graph.spin(lambda: graph.hears(f'{sensor}_node', '1 of 4 are damaged', '3.png', level=2))
    assert graph.hears(f'{sensor}_node', 'uncalibrated')
