import numpy as np
import pytest

from hybrid_guidance import overlay
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import pose_along

SLICE = Projection(np.array([[2000.0, 0.0, 0.0, 100.0], [0.0, 2000.0, 0.0, 20.0],
                             [0.0, 0.0, 0.0, 1.0]]), 200, 160)
XRAY = Projection(np.array([[3000.0, 0.0, 127.5, 0.0], [0.0, 3000.0, 127.5, 0.0],
                            [0.0, 0.0, 1.0, 0.0]]), 256, 256)
TIP = np.array([0.01, 0.05, 0.0])


def scene(**changes) -> overlay.Scene:
    needle = NeedleEstimate(pose_along(TIP, np.array([0.0, 1.0, 0.0])), np.eye(6) * 1e-8)
    return overlay.Scene(**{'needle': needle, 'needle_length': 0.03, 'entry': None,
                            'target': None, 'sigmas': 2.0, 'lines': (), 'reasons': (), **changes})


def drawn(**changes) -> np.ndarray:
    return overlay.draw(np.zeros((160, 200, 3), np.uint8), SLICE, np.eye(4), scene(**changes))


def colours(canvas: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(level) for level in colour) for colour in
            np.unique(canvas.reshape(-1, 3), axis=0)}


def test_needle_is_drawn_where_its_tip_projects() -> None:
    """Tip at u = 2000 * 0.01 + 100, v = 2000 * 0.05 + 20; two lines beside the shaft end there."""
    rows, columns = np.nonzero(drawn().max(axis=2) > 100)
    beside = columns[rows < 110]
    assert {116, 124} <= set(beside)
    assert not {119, 120, 121} & set(beside[rows[rows < 110] > 70])
    assert rows[np.abs(columns - 120) > 5].max() == pytest.approx(120, abs=1)


def test_what_is_not_to_be_trusted_is_grey_and_says_why() -> None:
    trusted, doubted = drawn(), drawn(reasons=('ultrasound image is 2.0 s old',))
    assert any(abs(r - b) > 50 for r, _, b in colours(trusted))
    assert all(r == g == b for r, g, b in colours(doubted[:100]))
    assert any(r > 240 and b < 70 for r, _, b in colours(doubted[-40:]))


def test_long_reason_is_wrapped_into_the_picture() -> None:
    """Its last word, which would be far outside, is drawn: two reasons differ only there."""
    words = 'pose of the image unknown: world -> ultrasound_probe: asked for the'
    one, other = drawn(reasons=(f'{words} past',)), drawn(reasons=(f'{words} future',))
    assert np.any(one != other)


def test_uncertainty_grows_with_the_covariance() -> None:
    def reach(sigma: float) -> int:
        needle = NeedleEstimate(scene().needle.pose, np.eye(6) * sigma**2)
        return int(np.count_nonzero(drawn(needle=needle)[125:].max(axis=2) > 100))
    assert reach(0.0001) == 0
    assert reach(0.005) > 20


@pytest.mark.parametrize('spoil', ['nan tip', 'huge covariance', 'behind'])
def test_nonsense_draws_nothing_absurd_and_does_not_fail(spoil: str) -> None:
    pose, covariance = pose_along(TIP + [0, 0, 0.7], np.array([0.0, 1.0, 0.0])), np.eye(6) * 1e-8
    if spoil == 'nan tip':
        pose[:3, 3] = np.nan
    elif spoil == 'huge covariance':
        covariance *= 1e12
    else:
        pose[:3, 3] = [0.0, 0.0, -5.0]
    canvas = overlay.draw(np.zeros((256, 256, 3), np.uint8), XRAY, np.eye(4),
                          scene(needle=NeedleEstimate(pose, covariance)))
    assert canvas.shape == (256, 256, 3)


def test_reduced_picture_keeps_points_where_they_are() -> None:
    pixels = np.zeros((256, 256), np.uint8)
    pixels[100:104, 60:64] = 255
    small, projection = overlay.reduced(pixels, XRAY, 128)
    point = XRAY.back_project(np.array([61.5, 101.5]), 0.7)
    rows, columns = np.nonzero(small)
    assert small.shape == (128, 128)
    assert projection.pixels(point) == pytest.approx([columns.mean(), rows.mean()], abs=1e-9)
