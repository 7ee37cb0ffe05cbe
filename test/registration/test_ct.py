"""The bone of a CT: a hollow ball of known surface, as thick slices show it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from hybrid_guidance.registration.ct import Scan
from hybrid_guidance.registration.result import RegistrationError

RADIUS, CORTEX = 0.015, 0.0025


def ball(spacing: tuple[float, float, float], marrow: float = 80.0) -> Scan:
    """Return a CT of a ball with a cortex round marrow: each voxel the mean over its edges."""
    fine, half = 0.0005, 0.03
    line = np.arange(-half, half, fine) + fine / 2
    far = np.sqrt(line[:, None, None]**2 + line[:, None]**2 + line**2)
    values = np.where(far < RADIUS, np.where(far < RADIUS - CORTEX, marrow, 1200.0), 50.0)
    steps = [round(edge / fine) for edge in spacing[::-1]]
    values = gaussian_filter(values, 0.7)
    size = [count // step * step for count, step in zip(values.shape, steps, strict=True)]
    blocks = values[:size[0], :size[1], :size[2]].reshape(
        size[0] // steps[0], steps[0], size[1] // steps[1], steps[1], size[2] // steps[2],
        steps[2]).mean(axis=(1, 3, 5))
    return Scan(blocks, -half + 0.5 * np.array(spacing), np.array(spacing))


def around(near: float, far: float) -> np.ndarray:
    random = np.random.default_rng(5)
    direction = random.normal(size=(2000, 3))
    return random.uniform(near, far, (2000, 1)) * direction / np.linalg.norm(
        direction, axis=1, keepdims=True)


@pytest.mark.parametrize('spacing', [(0.001, 0.001, 0.001), (0.001, 0.001, 0.0025)])
def test_surface_lies_where_the_cortex_ends(spacing: tuple[float, float, float]) -> None:
    field = ball(spacing).surface()
    points = around(RADIUS - 0.001, RADIUS + 0.008)
    distance, normal = field(points)
    error = distance - (np.linalg.norm(points, axis=1) - RADIUS)
    assert abs(np.median(error)) < 1.5e-4
    assert np.percentile(np.abs(error), 95) < 6e-4
    outwards = np.einsum('ij,ij->i', normal, points / np.linalg.norm(points, axis=1)[:, None])
    assert np.median(outwards) > 0.99


def test_a_coarse_ct_knows_how_far_its_surface_may_be_off() -> None:
    field = ball((0.003, 0.003, 0.003)).surface()
    points = around(RADIUS, RADIUS)
    distance, _ = field(points)
    assert np.sqrt(np.mean(distance**2)) < 1.2 * field.deviation[0] < 0.0012
    thick = ball((0.001, 0.001, 0.0025)).surface().variance(np.eye(3))
    assert thick[2] == pytest.approx(2.5**2 * thick[0])


def test_marrow_is_inside() -> None:
    distance, _ = ball((0.001, 0.001, 0.0015)).surface()(around(0.0, 0.8 * (RADIUS - CORTEX)))
    assert np.all(distance < -CORTEX / 2)


def test_bone_outside_the_mask_does_not_count() -> None:
    scan = ball((0.001, 0.001, 0.001))
    mask = np.zeros(scan.values.shape, bool)
    mask[:, :, mask.shape[2] // 2:] = True
    distance, _ = Scan(scan.values, scan.origin, scan.spacing, mask).surface()(
        np.array([[RADIUS - 0.5 * CORTEX, 0.0, 0.0], [0.5 * CORTEX - RADIUS, 0.0, 0.0]]))
    assert distance[0] < 0.0 < 0.005 < distance[1]


def test_a_ct_without_bone_or_without_the_target_says_so() -> None:
    water = Scan(zoom(np.zeros((4, 4, 4)), 5), np.zeros(3), np.full(3, 0.001))
    with pytest.raises(RegistrationError, match='no bone near the target'):
        water.surface()
    with pytest.raises(RegistrationError, match='does not hold the target'):
        water.near(np.array([1.0, 0.0, 0.0]), 0.05)
