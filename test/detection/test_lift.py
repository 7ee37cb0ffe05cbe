"""Lifting against Monte Carlo, and against the image it came from."""

import numpy as np
import pytest

from hybrid_guidance.detection.lift import lift
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.geometry import covariance as cov
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import is_rigid

XRAY = Projection.perspective((3400.0, 3400.0), (511.5, 511.5), (1024, 1024))
SLICE = Projection.orthographic((2e-4, 1.5e-4), (319.5, 20.0), (640, 480))
COVARIANCE = np.array([[0.25, 0.0, 0.0], [0.0, 0.04, 2e-4], [0.0, 2e-4, 4e-6]])


def pixel_needle(tip=(700.0, 400.0), angle: float = 0.6, length: float = 150.0) -> PixelNeedle:
    direction = np.array([np.cos(angle), np.sin(angle)])
    return PixelNeedle(np.array(tip), direction, length, COVARIANCE, 0.8)


@pytest.mark.parametrize('projection', [XRAY, SLICE])
@pytest.mark.parametrize('angle', np.linspace(-3.0, 3.0, 7))
def test_tip_and_shaft_project_onto_the_line_in_the_image(projection, angle: float) -> None:
    needle = pixel_needle((400.0, 300.0), angle)
    estimate = lift(needle, projection, depth=0.6)
    points = estimate.tip - np.array([0.0, 0.005, 0.02])[:, None] * estimate.direction
    offset = projection.pixels(points) - needle.tip
    assert is_rigid(estimate.pose)
    assert np.allclose(offset @ needle.normal, 0.0, atol=1e-6)
    assert np.allclose(offset[0], 0.0, atol=1e-6)
    assert np.all(np.diff(offset @ needle.direction) < 0.0)
    assert estimate.probability == needle.probability


@pytest.mark.parametrize('projection', [XRAY, SLICE])
def test_what_the_image_sees_agrees_with_monte_carlo(projection) -> None:
    """Noisy tips and angles, lifted one by one; compared where the image is not blind."""
    random = np.random.default_rng(0)
    needle = pixel_needle((400.0, 300.0))
    estimate = lift(needle, projection, depth=0.6)
    ray = projection.ray(needle.tip)
    normal = np.cross(ray, estimate.direction)
    seen = np.zeros((3, 6))
    seen[0, :3] = np.cross(normal, ray)
    seen[1, :3], seen[2, 3:] = normal, ray
    draws = []
    for along, across, angle in random.multivariate_normal(np.zeros(3), COVARIANCE, 1500):
        turned = np.cos(angle) * needle.direction + np.sin(angle) * needle.normal
        moved = PixelNeedle(
            needle.tip + along * needle.direction + across * needle.normal, turned,
            needle.length, COVARIANCE, 0.8)
        other = lift(moved, projection, depth=0.6)
        rotation = np.cross(estimate.direction, other.direction)
        draws.append(seen @ np.concatenate([other.tip - estimate.tip, rotation]))
    predicted = seen @ estimate.covariance @ seen.T
    deviation = np.sqrt(np.diag(predicted))
    found = np.cov(np.array(draws).T)
    assert np.allclose(found / np.outer(deviation, deviation),
                       predicted / np.outer(deviation, deviation), atol=0.12)


def test_depth_is_open_along_the_ray_and_not_along_z() -> None:
    needle = pixel_needle((1000.0, 100.0))
    estimate = lift(needle, XRAY, depth=0.6, depth_deviation=0.7)
    ray = XRAY.ray(needle.tip)
    across = np.cross(ray, [0.0, 0.0, 1.0])
    assert cov.distance_deviation(estimate.covariance, ray) == pytest.approx(0.7, rel=1e-3)
    assert cov.distance_deviation(estimate.covariance, across / np.linalg.norm(across)) < 2e-4


def test_depth_deviation_is_never_below_half_a_metre() -> None:
    needle = pixel_needle()
    estimate = lift(needle, XRAY, depth=0.6, depth_deviation=0.01)
    assert cov.distance_deviation(estimate.covariance, XRAY.ray(needle.tip)) >= 0.5


def test_rotation_is_blind_in_the_plane_of_the_rays_and_about_the_shaft() -> None:
    needle = pixel_needle()
    estimate = lift(needle, XRAY, depth=0.6)
    ray = XRAY.ray(needle.tip)
    rotation = estimate.covariance[3:, 3:]
    normal = np.cross(ray, estimate.direction)
    assert abs(float(estimate.direction @ ray)) < 1e-9
    assert normal @ rotation @ normal > (np.pi / 2) ** 2 - 1e-12
    assert estimate.direction @ rotation @ estimate.direction > np.pi**2 - 1e-12
    assert ray @ rotation @ ray < (3 * 0.002) ** 2


def test_slice_tip_and_far_end_lie_within_its_thickness() -> None:
    """Both ends deviate from the slice by its σ, each on its own."""
    needle = pixel_needle((400.0, 300.0))
    estimate = lift(needle, SLICE, slice_thickness=0.003)
    deviation = 0.003 / np.sqrt(8.0 * np.log(2.0))
    length = float(np.linalg.norm(needle.length * needle.direction * (2e-4, 1.5e-4)))
    random = np.random.default_rng(1)
    offset = random.normal(size=(20000, 6)) @ np.linalg.cholesky(
        estimate.covariance + 1e-15 * np.eye(6)).T
    tip = offset[:, 2]
    far = tip - length * np.cross(offset[:, 3:], estimate.direction)[:, 2]
    assert np.std(tip) == pytest.approx(deviation, rel=0.03)
    assert np.std(far) == pytest.approx(deviation, rel=0.03)
    assert abs(np.corrcoef(tip, far)[0, 1]) < 0.03
    assert estimate.tip[2] == 0.0


@pytest.mark.parametrize('projection', [XRAY, SLICE])
def test_covariance_is_valid(projection) -> None:
    assert cov.is_valid(lift(pixel_needle((400.0, 300.0)), projection, depth=0.6).covariance)


def test_uncalibrated_image_is_refused() -> None:
    with pytest.raises(ValueError, match='not calibrated'):
        lift(pixel_needle(), Projection.uncalibrated((640, 480)), depth=0.6)


def test_perspective_image_needs_a_depth() -> None:
    with pytest.raises(ValueError, match='depth'):
        lift(pixel_needle(), XRAY, depth=0.0)


def test_slice_needs_a_thickness() -> None:
    with pytest.raises(ValueError, match='thickness'):
        lift(pixel_needle((400.0, 300.0)), SLICE, slice_thickness=0.0)
