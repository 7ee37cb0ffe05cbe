import cv2
import numpy as np
import pytest

from hybrid_guidance.imaging.sector import View, find_sector, tightened


def speckle(shape: tuple[int, int, int], seed: int = 3) -> np.ndarray:
    """Return images of smoothed noise that changes, between 10 and 200."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.normal(size=shape[1:]), (0, 0), 1.5) for _ in range(shape[0])]
    return np.clip(80.0 + 150.0 * np.stack(noise), 10, 200).astype(np.uint8)


def screen(frames: int) -> np.ndarray:
    """Return black screens of 240 x 320 with speckle in (60:200, 80:240)."""
    images = np.zeros((frames, 240, 320), np.uint8)
    images[:, 60:200, 80:240] = speckle((frames, 140, 160))
    return images


def shown(stack: np.ndarray) -> np.ndarray:
    """Return what is left of each image."""
    mask = find_sector(stack)[0]
    assert mask is not None
    return np.where(mask, stack, 0)


@pytest.mark.parametrize('frames', [1, 6])
def test_what_is_drawn_around_the_sector_goes_and_every_echo_stays(frames: int) -> None:
    clean = screen(frames)
    drawn = clean.copy()
    for image in drawn:
        cv2.putText(image, 'DOE JOHN 1951', (5, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
        image[70:190, 290:304] = np.linspace(255, 0, 120, dtype=np.uint8)[:, None]
        image[60:200:20, 246:250] = 255
    np.testing.assert_array_equal(shown(drawn), clean)


def test_a_fan_keeps_its_echoes_and_loses_a_sweeping_trace() -> None:
    rows, columns = np.mgrid[:240, :320]
    radius, angle = np.hypot(rows + 10, columns - 160), np.arctan2(columns - 160, rows + 10)
    fan = (radius < 200) & (np.abs(angle) < 0.7) & (radius > 20)
    clean = np.where(fan, speckle((16, 240, 320), 1), 0).astype(np.uint8)
    drawn = clean.copy()
    for index, image in enumerate(drawn):
        trace = np.column_stack([np.arange(90), 225 + 6 * np.sin(np.arange(90) / 5)])
        cv2.polylines(image, [trace.astype(np.int32)], False, 255, 1)
        image[210:, 5 * index:5 * index + 10] = 0
    different = shown(drawn) != clean
    assert not different[:, ~fan].any()
    assert different[:, fan].mean(axis=1).max() < 0.01


def test_text_over_the_echoes_is_blanked_as_one_block() -> None:
    clean = speckle((6, 140, 160)) // 3
    drawn = clean.copy()
    for image in drawn:
        cv2.putText(image, 'Right Supraspinatus', (10, 130), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1)
    found = shown(drawn)
    assert any(note.startswith('text in the image blanked') for note in find_sector(drawn)[1])
    assert found.max() <= clean.max()
    assert (found == 0).all(axis=0)[118:131, 12:140].mean() > 0.95
    np.testing.assert_array_equal(found[:, :105], drawn[:, :105])


def test_a_still_bright_needle_is_not_taken_for_a_drawing() -> None:
    """Negative control of everything that blanks: slanted shaft and tip, same in each frame."""
    images = speckle((6, 140, 160)) // 3
    for image in images:
        cv2.line(image, (15, 15), (120, 90), 250, 3)
        cv2.circle(image, (120, 90), 3, 255, -1)
    np.testing.assert_array_equal(shown(images), images)


def test_black_images_have_no_sector() -> None:
    mask, notes = find_sector(np.zeros((2, 40, 50), np.uint8))
    assert mask is None
    assert notes == ('no sector found in the pixels: the region is shown whole',)


def test_a_window_shrinks_to_what_its_mask_keeps() -> None:
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8)
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    mask[1, 3] = False
    view, inner = tightened(View((1, 5, 1, 7)), mask)
    assert inner is not None
    np.testing.assert_array_equal(View(view.window, inner)(pixels), [[19, 0, 21], [27, 28, 29]])
