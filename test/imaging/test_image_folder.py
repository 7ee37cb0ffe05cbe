"""A folder of image files as a recording."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.image_folder import open_images


def write(path: Path, level: int, dtype=np.uint8, shape=(4, 6)) -> Path:
    assert cv2.imwrite(str(path), np.full(shape, level, dtype))
    return path


def test_files_come_in_natural_order_at_their_rate(tmp_path: Path) -> None:
    for number in (10, 2, 1, 33):
        write(tmp_path / f'Scan{number}.PNG', number)
    (tmp_path / 'notes.txt').write_text('not an image')
    (tmp_path / 'below').mkdir()
    write(tmp_path / 'below' / 'x.png', 99)
    recording = open_images(tmp_path, 4.0)
    assert [int(recording[i].pixels[0, 0]) for i in range(len(recording))] == [1, 2, 10, 33]
    assert recording.times == (0.0, 0.25, 0.5, 0.75)
    assert recording.period == 1.0


@pytest.mark.parametrize(('name', 'dtype', 'level', 'tolerance'), [
    ('a.png', np.uint8, 77, 0), ('a.png', np.uint16, 40000, 0), ('a.tif', np.uint16, 40000, 0),
    ('a.tiff', np.uint8, 77, 0), ('a.jpg', np.uint8, 77, 1)])
def test_every_format_keeps_its_levels(tmp_path: Path, name, dtype, level, tolerance) -> None:
    pixels = open_images(write(tmp_path / name, level, dtype), 1.0)[0].pixels
    assert pixels.dtype == dtype
    assert np.abs(pixels.astype(int) - level).max() <= tolerance


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    green = np.zeros((4, 6, 3), np.uint8)
    green[..., 1] = 200
    cv2.imwrite(str(tmp_path / 'c.png'), green)
    assert np.all(open_images(tmp_path, 1.0)[0].pixels == round(0.587 * 200))


def test_a_pattern_chooses_files_and_the_projection_is_asked_for_their_size(tmp_path: Path) -> None:
    write(tmp_path / 'left1.png', 1)
    write(tmp_path / 'right1.png', 2)
    known = Projection.perspective((100.0, 100.0), (3.0, 2.0), (6, 4))
    recording = open_images(str(tmp_path / 'left*.png'), 1.0, lambda size: {(6, 4): known}[size],
                            lambda image: image + 100)
    assert len(recording) == 1
    assert recording[0].pixels[0, 0] == 101
    assert recording.projection is known
    assert not any('uncalibrated' in note for note in recording.notes)


def test_a_bad_file_is_an_error_of_its_own_frame(tmp_path: Path) -> None:
    write(tmp_path / '2.png', 20)
    write(tmp_path / '4.png', 40, shape=(5, 6))
    (tmp_path / '1.png').write_bytes(b'')
    whole = (tmp_path / '2.png').read_bytes()
    (tmp_path / '3.png').write_bytes(whole[:30])
    recording = open_images(tmp_path, 1.0)
    assert any('1.png: is damaged' in note for note in recording.notes)
    for index, words in ((0, '1.png: is damaged'), (2, '3.png: is damaged'),
                         (3, '4.png: is 6 x 5, the first image is 6 x 4')):
        with pytest.raises(SourceError, match=words):
            recording[index]
    assert np.all(recording[1].pixels == 20)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / 'none*.png', tmp_path / 'missing.png'):
        with pytest.raises(SourceError, match='no image file there'):
            open_images(name, 1.0)
    (tmp_path / 'a.png').write_text('no')
    with pytest.raises(SourceError, match='not one of 1 files'):
        open_images(tmp_path, 1.0)
    cv2.imwrite(str(tmp_path / 'f.tif'), np.zeros((4, 6), np.float32))
    with pytest.raises(SourceError, match='float32'):
        open_images(tmp_path / 'f.tif', 1.0)
