"""The measurement of one line, and of one edge."""

import cv2
import numpy as np
import pytest
from scipy.special import ndtr

from hybrid_guidance.detection.edge import fit_edge
from hybrid_guidance.detection.line import measure
from hybrid_guidance.detection.needle import PixelNeedle, gate, most_probable
from hybrid_guidance.detection.ridge import LineSearch, maximum_subarrays
from hybrid_guidance.detection.shaft import ShaftModel

from .conftest import line_profile, shaft_coordinates


def noisy_line(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    random = np.random.default_rng(seed)
    tip, angle, length = random.uniform(130, 170, 2), random.uniform(-np.pi, np.pi), 100.0
    s, x = shaft_coordinates((300, 300), tip, angle)
    image = line_profile(s, x, length, 1.5, 1.5) + noise * random.normal(size=s.shape)
    return image.astype(np.float32), tip, angle, length


def rough_ends(tip: np.ndarray, angle: float, length: float) -> np.ndarray:
    """Ends as a search gives them: 2 px and 1 degree off."""
    axis = np.array([np.cos(angle + 0.017), np.sin(angle + 0.017)])
    return np.array([tip - (length - 3) * axis, tip - 3 * axis]) + (1.0, -1.5)


def measured(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    image, tip, angle, length = noisy_line(seed, noise)
    model = ShaftModel(systematic=(0.0, 0.0, 0.0))
    shafts = list(measure(image, [rough_ends(tip, angle, length)], model))
    assert len(shafts) == 1
    shaft = shafts[0]
    needle = shaft.needle(1, 1.0)
    axis = np.array([np.cos(angle), np.sin(angle)])
    offset = needle.tip - tip
    turn = np.arctan2(axis[0] * needle.direction[1] - axis[1] * needle.direction[0],
                      axis @ needle.direction)
    return np.array([offset @ needle.direction, offset @ needle.normal, turn]), needle.covariance


def test_covariance_follows_the_noise() -> None:
    """Ten times the noise is a hundred times the variance: nothing of it is a constant."""
    quiet = np.mean([np.diag(measured(seed, 0.03)[1]) for seed in range(10)], axis=0)
    loud = np.mean([np.diag(measured(seed, 0.3)[1]) for seed in range(10)], axis=0)
    assert np.all(loud[1:] > 20.0 * quiet[1:])
    assert loud[0] > 5.0 * quiet[0]


def test_errors_are_as_large_as_the_covariance_says() -> None:
    pairs = [measured(seed, 0.2) for seed in range(80)]
    squared = np.array([error**2 / np.diag(covariance) for error, covariance in pairs])
    assert np.all((np.median(squared, axis=0) > 0.2) & (np.median(squared, axis=0) < 1.1))


def arc(seed: int, curvature: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return an image of a bent line, its tip, and the angle of its tangent there."""
    random = np.random.default_rng(seed)
    tip, angle, length = np.array([230.0, 160.0]), float(random.uniform(-np.pi, np.pi)), 150.0
    s, x = shaft_coordinates((320, 460), tip, angle)
    image = line_profile(s, x - 0.5 * curvature * s * s, length, 2.0, 1.0)
    return image + np.float32(0.05) * random.normal(size=image.shape).astype(
        np.float32), tip, angle


@pytest.mark.parametrize('curvature', [6e-4, -6e-4])
def test_a_bent_shaft_points_along_its_tangent(curvature: float) -> None:
    turns = []
    for seed in range(8):
        image, tip, angle = arc(seed, curvature)
        axis = np.array([np.cos(angle), np.sin(angle)])
        far = tip - 150.0 * axis + 0.5 * curvature * 150.0**2 * np.array([-axis[1], axis[0]])
        shaft = next(measure(image, [np.array([far, tip]) + (1.0, -1.5)],
                             ShaftModel(systematic=(0.0, 0.0, 0.0))))
        needle = shaft.needle(int(shaft.direction @ axis > 0.0), 1.0)
        turns.append(np.arctan2(axis[0] * needle.direction[1] - axis[1] * needle.direction[0],
                                axis @ needle.direction))
        assert needle.curvature == pytest.approx(curvature, rel=0.25)
        assert np.linalg.norm(needle.tip - tip) < 1.0
        assert np.linalg.norm(needle.ends[0] - far) < 3.0
    # The chord is off by curvature times half the length: 0.045 rad.
    assert np.max(np.abs(turns)) < 0.012


def test_a_straight_shaft_is_not_bent_by_noise() -> None:
    image, tip, angle = arc(3, 0.0)
    shaft = next(measure(image, [rough_ends(tip, angle, 150.0)], ShaftModel()))
    assert shaft.needle(1, 1.0).curvature == 0.0


def test_edge_is_where_half_the_shaft_is_left() -> None:
    s = np.arange(-40.0, 25.0)
    random = np.random.default_rng(0)
    errors, variances = [], []
    for _ in range(60):
        edge = random.uniform(-3, 3)
        response = 5.0 * ndtr((edge - s) / 2.0) + 1.0 + 0.4 * random.normal(size=s.size)
        fit = fit_edge(s, response, 2.0)
        errors.append(fit.position - edge)
        variances.append(fit.variance)
    assert abs(np.mean(errors)) < 0.1
    assert 0.5 < np.var(errors) / np.median(variances) < 2.5


def test_pixel_covariance_turns_with_the_shaft() -> None:
    direction = np.array([0.0, 1.0])
    needle = PixelNeedle(np.zeros(2), direction, 50.0, np.diag([4.0, 1.0, 0.01]), 1.0)
    assert np.allclose(needle.pixel_covariance, np.diag([1.0, 4.0, 0.01]))
    assert np.allclose(needle.normal, [-1.0, 0.0])


def test_search_finds_a_line_among_blobs() -> None:
    random = np.random.default_rng(4)
    image, tip, angle, length = noisy_line(4, 0.1)
    for _ in range(20):
        cv2.circle(image, tuple(int(c) for c in random.uniform(0, 300, 2)), 4, 1.0, -1)
    best = LineSearch()(image)[0]
    normal = np.array([-np.sin(angle), np.cos(angle)])
    assert np.all(np.abs((best.ends - tip) @ normal) < 3.0)
    assert np.linalg.norm(best.ends[1] - best.ends[0]) == pytest.approx(length, abs=25.0)


def test_best_stretch_of_a_row() -> None:
    gain = np.array([[-1.0, 2.0, 3.0, -1.0, 2.0, -5.0, 1.0], [1.0, 1.0, -9.0, 3.0, 3.0, 3.0, -1.0]])
    first, last, total = maximum_subarrays(gain, 7)
    assert list(first) == [1, 3]
    assert list(last) == [4, 5]
    assert list(total) == [6.0, 9.0]


def test_gate_is_a_half_at_its_limit() -> None:
    assert gate(2.0, 2.0, 0.1) == 0.5
    assert gate(9.0, 2.0, 0.1) < 1e-6
    assert gate(-9.0, 2.0, 0.1) > 1.0 - 1e-6


def test_the_most_probable_needle_wins() -> None:
    needles = [PixelNeedle(np.zeros(2), np.array([1.0, 0.0]), 50.0, np.eye(3), p)
               for p in (0.2, 0.7, 0.4)]
    best = most_probable(needles, 0.1)
    assert best is not None
    assert best.probability == 0.7
    assert most_probable(needles, 0.8) is None
