import cv2
import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection

XRAY = Projection.perspective((3400.0, 3300.0), (500.0, 520.0), (1024, 1000))
SLICE = Projection.orthographic((0.0002, 0.00015), (320.0, 12.0), (640, 480))


def test_perspective_agrees_with_opencv() -> None:
    points = np.random.default_rng(1).normal(0, 0.05, (20, 3)) + [0, 0, 0.7]
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), XRAY.matrix[:, :3], None)
    assert np.allclose(XRAY.pixels(points), expected[:, 0], atol=1e-6)


def test_slice_maps_millimetres_to_pixels() -> None:
    assert np.allclose(SLICE.pixels(np.array([0.002, 0.003, 0.7])), [330.0, 32.0])


@pytest.mark.parametrize(('projection', 'depth'), [(XRAY, 0.7), (SLICE, 0.0)])
def test_back_projection_undoes_projection(projection: Projection, depth: float) -> None:
    pixels = np.random.default_rng(2).uniform(0, 400, (4, 5, 2))
    points = projection.back_project(pixels, depth)
    assert points.shape == (4, 5, 3)
    assert np.allclose(points[..., 2], depth)
    assert np.allclose(projection.pixels(points), pixels)


@pytest.mark.parametrize('projection', [XRAY, SLICE])
def test_jacobian_agrees_with_differences(projection: Projection) -> None:
    point, step = np.array([0.01, -0.02, 0.6]), 1e-6
    numeric = np.stack([(projection.pixels(point + step * axis)
                         - projection.pixels(point - step * axis)) / (2 * step)
                        for axis in np.eye(3)], axis=1)
    assert np.allclose(projection.jacobian(point), numeric, rtol=1e-5, atol=1e-3)


def test_ray_runs_through_every_depth_of_its_pixel() -> None:
    pixel = np.array([123.0, 456.0])
    assert np.allclose(np.cross(XRAY.ray(pixel), XRAY.back_project(pixel, 0.9)), 0, atol=1e-12)


def test_uncalibrated_says_so() -> None:
    assert not Projection.uncalibrated((640, 480)).is_calibrated
    assert XRAY.is_calibrated
    assert SLICE.is_calibrated


def test_contains_keeps_a_margin_from_the_edge() -> None:
    inside = SLICE.contains(np.array([[0.0, 0.0], [5.0, 5.0], [639.0, 479.0], [640.0, 5.0]]), 2.0)
    assert inside.tolist() == [False, True, False, False]


def test_a_skewed_slice_puts_pixels_where_its_definition_does() -> None:
    """Against x = sx (u - u0) + skew (v - v0), y = sy (v - v0), written out."""
    spacing, origin, skew = (2e-4, 1.5e-4), (320.0, 12.0), 7e-6
    projection = Projection.orthographic(spacing, origin, (640, 480), skew)
    u, v = np.random.default_rng(2).uniform(0.0, 600.0, (2, 50))
    points = np.column_stack([spacing[0] * (u - origin[0]) + skew * (v - origin[1]),
                              spacing[1] * (v - origin[1]), np.zeros(50)])
    pixels = np.column_stack([u, v])
    np.testing.assert_allclose(projection.back_project(pixels), points, rtol=0.0, atol=1e-15)
    np.testing.assert_allclose(projection.pixels(points), pixels, rtol=0.0, atol=1e-9)
