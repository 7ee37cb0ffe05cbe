import cv2
import numpy as np
import pytest

from hybrid_guidance.detection.lift import lift_shift
from hybrid_guidance.detection.tissue import TissueMotion, xray_tissue
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import Frame

SLICE = Projection.orthographic((1e-4, 1e-4), (319.5, 40.0), (640, 480))


def speckle(seed: int, shape: tuple[int, int] = (600, 800)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    rough = cv2.GaussianBlur(noise, (0, 0), 3.0)
    return 120.0 + 30.0 * rough / rough.std()


def window(texture: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """Return a (480, 640) view in which the texture has moved by (u, v) px."""
    move = np.float32([[1.0, 0.0, shift[0] - 60.0], [0.0, 1.0, shift[1] - 60.0]])
    return cv2.warpAffine(texture, move, (640, 480), flags=cv2.INTER_CUBIC)


def frame(image: np.ndarray, number: int, dtype: type = np.uint8) -> Frame:
    return Frame(np.clip(image, 1, np.iinfo(dtype).max).astype(dtype), number, SLICE)


def test_shift_is_found_to_a_part_of_a_pixel_and_counts_from_the_first_image() -> None:
    motion, texture = TissueMotion(), speckle(1)
    assert motion(frame(window(texture, (0.0, 0.0)), 7)) is None
    for k, shift in enumerate(((2.3, -4.1), (6.7, -9.2), (1.0, 3.0)), start=8):
        found = motion(frame(window(texture, shift), k))
        assert found is not None
        assert found.reference_ns == 7
        np.testing.assert_allclose(found.pixels, shift, atol=0.4)
        assert np.all(np.abs(found.pixels - shift) < 3.0 * np.sqrt(np.diag(found.covariance)))


def test_a_bright_line_that_moves_by_itself_is_outvoted() -> None:
    motion, texture = TissueMotion(), speckle(2)
    for k in range(6):
        image = window(texture, (0.0, 1.0 * k))
        cv2.line(image, (100, 100 + 6 * k), (500, 300 + 6 * k), 250.0, 3)
        found = motion(frame(image, k + 1))
    assert found is not None
    np.testing.assert_allclose(found.pixels, (0.0, 5.0), atol=0.6)


def stripes(angle: float) -> np.ndarray:
    """Return a (600, 800) texture of layers, with hardly anything along them."""
    v, u = np.mgrid[:600, :800]
    across = np.cos(angle) * v - np.sin(angle) * u
    return 120.0 + 40.0 * np.sin(across / 9.0) + 40.0 * np.sin(across / 6.1)


@pytest.mark.parametrize('seed', range(4))
def test_layers_that_each_have_a_place_across_them_only_have_one_together(seed: int) -> None:
    texture = 0.1 * (speckle(20 + seed) - 120.0)
    texture[:, :400] += stripes(0.5)[:, :400]
    texture[:, 400:] += stripes(-0.4)[:, 400:]
    noise = np.random.default_rng(seed)
    motion = TissueMotion()
    for k, shift in enumerate(((0.0, 0.0), (-6.0, 9.0), (-10.0, 13.0))):
        image = window(texture, shift) + 6.0 * noise.normal(size=(480, 640))
        found = motion(frame(image, k + 1))
    assert found is not None
    np.testing.assert_allclose(found.pixels, (-10.0, 13.0), atol=0.5)


def test_tissue_that_changes_patch_after_patch_is_followed_by_an_image_kept_in_time() -> None:
    """The patches that are left are as like as ever: only their number tells that others went."""
    motion, lost = TissueMotion(), 0
    before, after = (np.full((600, 800), 120.0) for _ in range(2))
    before[60:380, 60:460], after[60:380, 60:460] = (
        speckle(seed)[60:380, 60:460] for seed in (30, 31))
    for k in range(20):
        edge = 60 + 20 * k
        mixed = np.hstack([after[:, :edge], before[:, edge:]])
        found = motion(frame(window(mixed, (0.0, 0.3 * k)), k + 1))
        lost += k > 0 and found is None
    assert lost == 0
    assert found is not None
    assert found.reference_ns == 1
    np.testing.assert_allclose(found.pixels, (0.0, 0.3 * 19), atol=0.6)


def test_tissue_that_changes_with_the_slice_is_followed_from_one_kept_image_to_the_next() -> None:
    """Half of what is seen has changed after 4 images; the first is like the last no more."""
    motion, layers = TissueMotion(), [speckle(10 + k) for k in range(6)]
    for k in range(25):
        depth = 0.2 * k
        low, share = int(depth), depth % 1.0
        mixed = ((1.0 - share) * layers[low] + share * layers[low + 1] - 120.0) / np.hypot(
            1.0 - share, share) + 120.0
        found = motion(frame(window(mixed, (0.0, 0.5 * k)), k + 1))
    assert found is not None
    assert found.reference_ns == 1
    np.testing.assert_allclose(found.pixels, (0.0, 12.0), atol=1.5)


def test_other_tissue_is_not_followed_and_becomes_another_beginning() -> None:
    motion = TissueMotion(patience=3)
    motion(frame(window(speckle(3), (0.0, 0.0)), 1))
    other = window(speckle(4), (0.0, 0.0))
    assert [motion(frame(other, k)) for k in range(2, 6)] == [None] * 4
    found = motion(frame(other, 6))
    assert found is not None
    assert found.reference_ns == 5


@pytest.mark.parametrize('value', [0, 90, 255])
def test_blank_image_shows_no_tissue(value: int) -> None:
    motion = TissueMotion()
    assert [motion(frame(np.full((480, 640), value), k + 1)) for k in range(3)] == [None] * 3


def test_bone_in_x_rays_is_followed_whatever_their_dose() -> None:
    texture = 1000.0 * np.exp(0.01 * cv2.GaussianBlur(speckle(5, (1200, 1400)), (0, 0), 8.0)**1.0)
    motion = xray_tissue()
    for k, (dose, shift) in enumerate(((1.0, 0.0), (0.5, 14.0)), start=1):
        found = motion(frame(dose * window(texture, (0.0, shift)), k, np.uint16))
    assert found is not None
    np.testing.assert_allclose(found.pixels, (0.0, 14.0), atol=1.0)


def test_displacement_in_metres_is_blind_where_its_sensor_is() -> None:
    moved, covariance = lift_shift(np.array([10.0, -5.0]), 0.25 * np.eye(2), SLICE)
    np.testing.assert_allclose(moved, (1e-3, -5e-4, 0.0), atol=1e-12)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), (5e-5, 5e-5, 0.5))
    perspective = Projection.perspective((3400.0, 3400.0), (511.5, 511.5), (1024, 1024))
    moved, _ = lift_shift(np.array([34.0, 0.0]), np.eye(2), perspective, depth=0.6)
    np.testing.assert_allclose(moved, (6e-3, 0.0, 0.0), atol=1e-12)


def test_tissue_that_a_breath_brings_back_is_found_under_the_first_reference() -> None:
    motion, here, away = TissueMotion(), speckle(5), speckle(6)
    stamps = iter(range(1, 1000))
    for _ in range(3):
        seen = [motion(frame(window(here, (0.0, 1.0)), next(stamps))) for _ in range(30)]
        gone = [motion(frame(window(away, (0.0, 0.0)), next(stamps))) for _ in range(25)]
        assert gone == [None] * 25
        assert seen[-1] is not None
        assert seen[-1].reference_ns == 1


def test_a_reference_that_is_seldom_seen_again_is_given_up_early() -> None:
    """It was taken in the middle of a breath; where tissue rests another one will last."""
    motion, passing, resting = TissueMotion(short=10), speckle(7), speckle(8)
    for k in range(1, 4):
        motion(frame(window(passing, (0.0, 0.0)), k))
    found = [motion(frame(window(resting, (0.0, 0.0)), k)) for k in range(4, 18)]
    assert found[-1] is not None
    assert found[-1].reference_ns == 14
