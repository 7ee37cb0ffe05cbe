"""The ultrasound detector against speckle whose needle is known, and real frames without one."""

import cv2
import numpy as np
import pytest

from hybrid_guidance.detection.ultrasound import (
    Beams,
    Skin,
    UltrasoundNeedleDetector,
    sector_mask,
)

from .conftest import (
    Scene,
    as_frame,
    is_honest,
    pixel_errors,
    plus_frames,
    reported,
    ultrasound_scene,
)

SEEDS = range(70)


@pytest.fixture(scope='module')
def detector() -> UltrasoundNeedleDetector:
    return UltrasoundNeedleDetector()


@pytest.fixture(scope='module')
def found(detector) -> list:
    return reported(detector, ultrasound_scene, SEEDS)


def test_most_needles_are_reported(found) -> None:
    assert len(found) >= 0.85 * len(SEEDS)


def test_tip_and_angle_are_exact_to_a_pixel_or_two(found) -> None:
    errors = np.array([pixel_errors(*pair) for pair in found])
    assert np.median(np.hypot(errors[:, 0], errors[:, 1])) <= 1.5
    assert np.median(np.abs(np.rad2deg(errors[:, 2]))) <= 1.0
    assert np.percentile(np.abs(np.rad2deg(errors[:, 2])), 95) <= 1.0


def test_covariance_is_neither_too_small_nor_too_large(found) -> None:
    errors = np.array([pixel_errors(*pair) for pair in found])
    covariances = np.array([needle.covariance for _, needle in found])
    assert len(errors) >= 60
    assert is_honest(errors, covariances)
    assert not is_honest(errors, 0.1 * covariances)
    assert not is_honest(errors, 10.0 * covariances)


def test_a_line_that_a_scanner_draws_is_no_needle(detector) -> None:
    """The side of a colour box; the same line as wide as an echo is one."""
    def is_needle(pixels: np.ndarray) -> bool:
        detector.forget()
        found = detector(as_frame(pixels))
        return found is not None and bool(found.probability > 0.5)
    drawn, echoes = [], []
    for seed in range(8):
        pixels = ultrasound_scene(seed, needle=False).frame.pixels
        height, width = pixels.shape
        ends = (int(0.55 * width), int(0.25 * height)), (int(0.70 * width), int(0.70 * height))
        drawn.append(is_needle(cv2.line(pixels.copy(), *ends, 255, 1, cv2.LINE_AA)))
        line = cv2.line(np.zeros_like(pixels), *ends, 255, 3, cv2.LINE_AA)
        echoes.append(is_needle(np.maximum(pixels, cv2.GaussianBlur(line, (0, 0), 2.0))))
    assert not any(drawn)
    assert sum(echoes) >= 6


def test_skin_tells_how_far_from_the_probe_a_line_comes_in() -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[10:90, 50:150] = 1
    skin = Skin.of(mask)
    # Down and to the left at 45 degrees: 30 px beside the right edge, 20 px below the skin.
    assert skin.gap(np.array([160.0, 30.0]), np.array([110.0, 80.0])) == pytest.approx(0.30)
    assert skin.gap(np.array([40.0, 30.0]), np.array([90.0, 80.0])) == pytest.approx(0.30)
    assert skin.gap(np.array([110.0, 40.0]), np.array([90.0, 60.0])) == pytest.approx(-0.10)


def test_a_dim_line_that_comes_in_far_from_the_probe_is_fascia(detector) -> None:
    """The same echo is a needle where it comes in next to the probe, or is bright."""
    def count(top: int, grey: float) -> int:
        needles = 0
        for seed in range(8):
            detector.forget()
            speckle = np.hypot(*(cv2.GaussianBlur(layer, (0, 0), sigmaX=2.0, sigmaY=1.2)
                                 for layer in np.random.default_rng(seed).standard_normal(
                                     (2, 480, 640), np.float32)))
            line = cv2.line(np.zeros((480, 640), np.float32), (-20, top - 9), (160, top + 72), 1.0,
                            3, cv2.LINE_AA)
            line = cv2.GaussianBlur(line, (0, 0), 2.0)
            pixels = np.maximum(85.0 * np.log10(20.0 * speckle + 1.0), grey * line / line.max())
            found = detector(as_frame(np.clip(pixels, 0, 255).astype(np.uint8)))
            needles += found is not None and found.probability > 0.5
        return needles
    assert count(40, 150.0) >= 7
    assert count(270, 150.0) == 0
    assert count(270, 250.0) >= 7


def with_bone_beyond(scene: Scene, distance: float) -> Scene:
    """Return the scene with a flat, very bright echo some px beyond the tip, and its shadow."""
    pixels = scene.frame.pixels.copy()
    v, u = np.mgrid[:pixels.shape[0], :pixels.shape[1]]
    centre = scene.tip + distance * scene.direction
    squared = ((u - centre[0]) / 14.0) ** 2 + ((v - centre[1]) / 3.0) ** 2
    decibels = -10.0 * np.log10(np.e) * squared
    shadow = (v > centre[1]) & (np.abs(u - centre[0]) < 30.0)
    pixels[shadow] //= 4
    echo = np.clip(255.0 + 255.0 / 60.0 * (6.0 + decibels), 0.0, 255.0)
    return Scene(as_frame(np.maximum(pixels, echo).astype(np.uint8)), scene.tip, scene.angle,
                 scene.length)


def test_bone_beyond_the_tip_is_not_taken_for_the_tip() -> None:
    along = []
    for seed in range(20):
        scene = with_bone_beyond(ultrasound_scene(seed, bone=False, longer=400.0), 22.0)
        needle = UltrasoundNeedleDetector()(scene.frame)
        if needle is not None and needle.probability >= 0.5:
            along.append(float(pixel_errors(scene, needle)[0]))
    assert len(along) >= 15
    assert np.median(np.abs(along)) < 1.5
    assert np.mean(np.abs(along) > 5.0) <= 0.1


def test_at_most_one_in_a_hundred_images_without_needle_is_reported(detector) -> None:
    needles = [detector(ultrasound_scene(seed, needle=False).frame)
               for seed in range(1000, 1100)]
    assert sum(needle is not None and needle.probability >= 0.5 for needle in needles) <= 1


def test_mirrored_image_gives_the_mirrored_needle(detector) -> None:
    scene = ultrasound_scene(1)
    straight = detector(scene.frame)
    mirrored = detector(as_frame(np.fliplr(scene.frame.pixels)))
    assert straight is not None
    assert mirrored is not None
    width = scene.frame.pixels.shape[1]
    assert np.allclose(mirrored.tip, [width - 1 - straight.tip[0], straight.tip[1]], atol=0.5)
    assert np.allclose(mirrored.direction, straight.direction * (-1.0, 1.0), atol=5e-3)


def test_other_image_sizes_are_taken(detector) -> None:
    scene = ultrasound_scene(1, shape=(616, 820))
    needle = detector(scene.frame)
    assert needle is not None
    assert np.linalg.norm(needle.tip - scene.tip) < 5.0


@pytest.mark.parametrize(('name', 'step'), [
    ('SpinePhantomFreehand.igs.mha', 1), ('BoneUltrasound_L14.igs.mha', 1),
    ('fCal_Test_Calibration_3NWires_fCal2.0.igs.mha', 5),
    ('fCal_Test_Validation_3NWires_fCal2.0.igs.mha', 5),
    ('WaterTankBottomTranslationVideoBuffer.igs.mha', 10)])
def test_real_frames_without_needle_are_not_reported(detector, recordings, name: str,
                                                     step: int) -> None:
    needles = [detector(as_frame(pixels)) for pixels in plus_frames(recordings / name, step)]
    assert all(needle is None or needle.probability < 0.5 for needle in needles)


def test_beams_meet_where_the_sides_of_the_sector_do() -> None:
    scene = ultrasound_scene(0)
    beams = Beams.of(sector_mask(scene.frame.pixels))
    assert beams.apex is not None
    assert np.allclose(beams.apex, [320.0, -250.0], atol=12.0)


def test_beams_of_a_rectangle_are_parallel() -> None:
    pixels = np.zeros((400, 600), np.uint8)
    pixels[20:380, 150:450] = 90
    assert Beams.of(sector_mask(pixels)).apex is None


def test_shadow_that_reaches_the_lower_edge_is_inside_the_sector() -> None:
    pixels = np.zeros((400, 600), np.uint8)
    pixels[20:, 150:450] = 90
    pixels[200:, 250:350] = 0
    mask = sector_mask(pixels)
    assert np.all(mask[220:380, 260:340] == 1)
    assert not np.any(mask[:, :140])


@pytest.mark.parametrize('value', [0, 90, 255])
def test_blank_image_has_no_needle(detector, value: int) -> None:
    assert detector(as_frame(np.full((480, 640), value, np.uint8))) is None
