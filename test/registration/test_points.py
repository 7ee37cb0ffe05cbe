"""Point sets against Fitzpatrick's closed form, Monte Carlo, and cases that must be refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    perturbed,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.registration.points import (
    Sight,
    register_pairs,
    register_sets,
    triangulate,
    triangulate_all,
)
from hybrid_guidance.registration.result import RegistrationError, chi_square_tail, kept

SIGMA = 0.0003
TARGET = np.array([0.01, 0.08, 0.02])


def markers(random: np.random.Generator, count: int = 6) -> np.ndarray:
    """Return markers at least 20 mm apart, as a person would stick them."""
    points = np.zeros((0, 3))
    while len(points) < count:
        point = random.uniform([-0.08, -0.02, -0.08], [0.08, 0.02, 0.08])
        if np.all(np.linalg.norm(points - point, axis=1) > 0.02):
            points = np.vstack([points, point])
    return points


def pose(random: np.random.Generator) -> np.ndarray:
    return transform(rotation_from_vector(random.normal(size=3)), random.normal(size=3))


def target_error(result, truth: np.ndarray) -> np.ndarray:
    return transform_points(result.transform, TARGET) - transform_points(truth, TARGET)


def test_expected_error_is_fitzpatricks() -> None:
    """Fitzpatrick 1998, eq. 46: FLE²/N (1 + 1/3 Σ d²/f²), about the principal axes."""
    random = np.random.default_rng(1)
    points, truth = markers(random), pose(random)
    result = register_pairs(points, transform_points(truth, points), SIGMA, TARGET)
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred)[2]
    place, spread = axes @ (TARGET - points.mean(axis=0)), centred @ axes.T
    share = sum((place @ place - place[k] ** 2)
                / np.mean(np.sum(np.delete(spread, k, axis=1) ** 2, axis=1)) for k in range(3))
    expected = np.sqrt(3 * SIGMA**2 / len(points) * (1 + share / 3))
    assert result.target_error == pytest.approx(expected, rel=1e-3)


def test_covariance_of_unequal_markers_is_that_of_the_errors() -> None:
    random = np.random.default_rng(2)
    points, truth = markers(random), pose(random)
    sigmas = np.array([1, 1, 2, 3, 5, 1]) * SIGMA
    squares, plain = [], []
    for _ in range(1000):
        fixed = transform_points(truth, points) + random.normal(size=(6, 3)) * sigmas[:, None]
        result = register_pairs(points, fixed, sigmas, TARGET)
        error = target_error(result, truth)
        squares.append(error @ np.linalg.solve(result.target_covariance, error))
        plain.append(error @ error)
    low, high = chi2.ppf([0.005, 0.995], 3 * 1000) / 1000
    # Pairs that the gate drops by chance (one in 10⁴) widen the band a little.
    assert low * 0.97 < np.mean(squares) < high * 1.03
    assert np.sqrt(np.mean(plain)) == pytest.approx(result.target_error, rel=0.05)


def test_moved_marker_is_left_out() -> None:
    random = np.random.default_rng(3)
    points, truth = markers(random), pose(random)
    fixed = transform_points(truth, points) + SIGMA * random.normal(size=(6, 3))
    fixed[2] += [0.008, 0.0, 0.0]
    result = register_pairs(points, fixed, SIGMA, TARGET)
    assert result.accepted
    assert 2 not in result.pairs[:, 0]
    assert np.linalg.norm(target_error(result, truth)) < 3 * result.target_error


def test_partners_are_found_among_outliers() -> None:
    for seed in range(6):
        random = np.random.default_rng([seed, 4])
        points, truth = markers(random, 7), pose(random)
        fixed = transform_points(truth, points) + SIGMA * random.normal(size=(7, 3))
        fixed[0] = transform_points(truth, random.uniform(-0.08, 0.08, 3))
        order = random.permutation(7)
        result = register_sets(points, fixed[order][:6], SIGMA, TARGET)
        assert result.accepted, result.verdict
        assert np.all(order[result.pairs[:, 1]] == result.pairs[:, 0])
        assert np.linalg.norm(target_error(result, truth)) < 4 * result.target_error


def test_unrelated_points_are_refused() -> None:
    """Negative control: any pose that comes out is chance."""
    for seed in range(15):
        random = np.random.default_rng([seed, 5])
        try:
            result = register_sets(markers(random), markers(random), SIGMA, TARGET)
        except RegistrationError:
            continue
        assert not result.accepted
        assert result.probability < 0.051


def test_symmetric_markers_without_partners_are_refused() -> None:
    square = 0.05 * np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0.0]])
    result = register_sets(square, square[[2, 3, 0, 1]], SIGMA, TARGET)
    assert not result.accepted
    assert 'another way' in result.verdict


def test_collinear_markers_are_refused() -> None:
    line = np.outer([-0.08, -0.03, 0.01, 0.06], [1.0, 0.0, 0.0])
    result = register_pairs(line, line, SIGMA, TARGET)
    assert not result.accepted
    assert 'spread fiducials' in result.verdict


def test_residuals_beyond_their_deviation_are_refused() -> None:
    random = np.random.default_rng(6)
    points = markers(random)
    result = register_pairs(points, points + 4 * SIGMA * random.normal(size=(6, 3)), SIGMA, TARGET)
    assert not result.accepted


def test_refused_registration_does_not_replace_a_good_one() -> None:
    random = np.random.default_rng(7)
    points = markers(random)
    good = register_pairs(points, points, SIGMA, TARGET)
    bad = register_pairs(points, markers(random), SIGMA, TARGET)
    assert kept(good, bad) is good
    assert kept(None, bad) is None
    assert kept(good, good) is good


def test_too_few_pairs_say_what_to_do() -> None:
    points = np.eye(3)
    points[0] = np.nan
    with pytest.raises(RegistrationError, match='add fiducials'):
        register_pairs(points, np.eye(3), SIGMA, TARGET)


def test_tail_is_scipys() -> None:
    for freedom in (1, 3, 12, 30):
        for share in (0.5, 0.05, 0.001):
            value = chi2.isf(share, freedom)
            assert chi_square_tail(value, freedom) == pytest.approx(share, rel=0.2, abs=0.02)


def xrays(angles: tuple[float, ...]) -> list[tuple[Projection, np.ndarray]]:
    """Return C-arms 0.7 m from the origin, turned about its z axis."""
    lens = Projection.perspective((2500.0, 2500.0), (511.5, 511.5), (1024, 1024))
    back = transform(None, np.array([0.0, 0.0, -0.7]))
    views = []
    for angle in angles:
        turn = rotation_from_vector(np.array([0.0, angle, 0.0]))
        views.append((lens, transform(turn) @ back))
    return views


def seen(views, points, noise) -> list[Sight]:
    return [Sight(lens, place, lens.pixels(transform_points(inverse(place), point)) + shift)
            for (lens, place), point, shift in zip(views, points, noise, strict=True)]


def test_triangulation_is_as_good_as_it_says() -> None:
    random = np.random.default_rng(8)
    views = xrays((0.0, 0.5, 1.2))
    squares, refused = [], 0
    for _ in range(400):
        point = random.uniform(-0.05, 0.05, 3)
        found = triangulate(seen(views, [point] * 3, 0.5 * random.normal(size=(3, 2))))
        error = found.point - point
        squares.append(error @ np.linalg.solve(found.covariance, error))
        refused += bool(found.reasons)
    low, high = chi2.ppf([0.005, 0.995], 1200) / 400
    assert low < np.mean(squares) < high
    assert refused <= 4


def test_rays_to_different_markers_are_refused() -> None:
    """The views turn about y: only a shift along y cannot be a depth."""
    views = xrays((0.0, 1.2))
    found = triangulate(seen(views, [np.zeros(3), np.array([0.0, 0.004, 0.0])], np.zeros((2, 2))))
    assert 'different markers' in found.reasons[0]


def test_views_from_one_side_leave_the_depth_open() -> None:
    views = [(lens, perturbed(place, np.array([1e-4, 0, 0, 0, 0, 0])))
             for lens, place in xrays((0.0, 0.001))]
    found = triangulate(seen(views, [np.zeros(3)] * 2, np.zeros((2, 2))))
    assert any('another side' in reason for reason in found.reasons)


@pytest.mark.parametrize(('angles', 'ghosts'), [((0.0, 1.2), 2), ((0.0, 0.5, 1.2), 0)])
def test_markers_without_names_are_found_in_several_x_rays(angles, ghosts: int) -> None:
    """Six markers, one hidden in the first X-ray, another a clip that only the last one shows."""
    random = np.random.default_rng(12)
    views, beads = xrays(angles), random.uniform(-0.05, 0.05, (6, 3))
    sights = [[Sight(lens, place, lens.pixels(transform_points(inverse(place), bead))
                     + 0.3 * random.normal(size=2)) for bead in random.permutation(beads)]
              for lens, place in views]
    hidden = views[0][0].pixels(transform_points(inverse(views[0][1]), beads[5]))
    sights[0] = [each for each in sights[0] if np.linalg.norm(each.pixel - hidden) > 3.0]
    sights[-1].append(replace(sights[-1][0], pixel=np.array([200.0, 800.0])))
    found = triangulate_all(sights)
    apart = np.linalg.norm(found[:, None] - beads, axis=2).min(axis=1)
    seen_twice = 6 if len(angles) > 2 else 5
    assert np.sum(apart < 0.0005) == seen_twice
    assert len(found) <= seen_twice + ghosts
