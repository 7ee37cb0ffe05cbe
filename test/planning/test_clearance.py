import numpy as np
import pytest
from scipy.spatial import cKDTree

from hybrid_guidance.planning.clearance import Clearance, true_distances
from hybrid_guidance.planning.path import Path
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.anatomy import build_structures

SPHERES = {'vessel': (np.array([0.0, 0.02, 0.0]), 0.005),
           'nerve': (np.array([0.03, 0.0, 0.0]), 0.002)}


def ball(centre: np.ndarray, radius: float):
    return lambda points: np.linalg.norm(points - centre, axis=-1) - radius


STRUCTURES = {name: ball(*sphere) for name, sphere in SPHERES.items()}
COVARIANCE = np.diag([1e-6, 4e-6, 1e-6])


def test_nearest_point_distance_and_clearance_of_a_sphere() -> None:
    """Closed form: 20 mm from the centre, 5 mm radius, 2 mm σ towards it, k = 2."""
    found = Clearance(STRUCTURES, 2.0).nearest(np.zeros(3), COVARIANCE)
    assert found.name == 'vessel'
    assert found.distance == pytest.approx(0.015, abs=1e-9)
    assert found.clearance == pytest.approx(0.011, abs=1e-7)
    assert np.allclose(found.point, [0.0, 0.015, 0.0], atol=1e-6)


def test_inside_is_negative() -> None:
    found = Clearance(STRUCTURES, 0.0).nearest(np.array([0.0, 0.018, 0.0]), COVARIANCE)
    assert found.clearance == pytest.approx(-0.003, abs=1e-9)


def test_skipping_what_is_far_changes_no_answer() -> None:
    """Against a fresh measurement of everything, along a random walk."""
    random, walker = np.random.default_rng(1), Clearance(STRUCTURES, 2.0)
    tip = np.zeros(3)
    for _ in range(300):
        tip = tip + random.normal(0, 0.002, 3)
        fresh = Clearance(STRUCTURES, 2.0).nearest(tip, COVARIANCE)
        found = walker.nearest(tip, COVARIANCE)
        assert (found.name, found.clearance) == (fresh.name, pytest.approx(fresh.clearance))


def test_without_structures_nothing_is_near() -> None:
    clearance = Clearance({}, 2.0)
    assert clearance.nearest(np.zeros(3), COVARIANCE) is None
    assert clearance.along(Path(np.zeros(3), np.ones(3))) == np.inf


def test_least_distance_along_a_path() -> None:
    path = Path(np.array([-0.05, 0.01, 0.0]), np.array([0.05, 0.01, 0.0]))
    assert Clearance(STRUCTURES, 2.0).along(path) == pytest.approx(0.005, abs=2e-5)


def surface_points(solid, lower: np.ndarray, upper: np.ndarray, spacing: float) -> np.ndarray:
    """Return where a solid's field changes its sign, on the edges of a grid."""
    axes = [np.arange(low, high, spacing) for low, high in zip(lower, upper, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)
    field = solid.at(places)
    found = []
    for axis in range(3):
        first, second = (np.delete(array, index, axis) for array in (field,)
                         for index in (-1, 0))
        start = np.delete(places, -1, axis)
        rows = (first < 0.0) != (second < 0.0)
        share = first[rows] / (first[rows] - second[rows])
        found.append(start[rows] + share[:, None] * spacing * np.eye(3)[axis])
    return np.concatenate(found)


def test_distance_to_what_melts_is_that_to_its_surface() -> None:
    """A nerve of melted strands: its field is millimetres too small a centimetre away."""
    procedure = load_procedure('femoral_nerve_block')
    nerve = build_structures(procedure.region, 1, procedure.target)['femoral_nerve']
    ends = np.stack([procedure.entry, procedure.target])
    lower, upper = ends.min(axis=0), ends.max(axis=0)
    distance = true_distances({'femoral_nerve': nerve}, lower, upper)['femoral_nerve']
    places = np.random.default_rng(5).uniform(lower - 0.004, upper + 0.004, (400, 3))
    reach = 0.022
    surface = surface_points(nerve, np.maximum(nerve.lower, lower - reach) - 0.001,
                             np.minimum(nerve.upper, upper + reach) + 0.001, 0.0004)
    exact, _ = cKDTree(surface).query(places)
    told = (exact < reach - 0.004) & (nerve.at(places) > 0.0)
    assert told.sum() > 200
    # Points of a surface are further than the surface, most so where it is near.
    assert np.abs(distance(places) - exact)[told].max() < 0.0003
    assert (nerve.at(places) - exact)[told].min() < -0.001


def test_what_is_far_is_at_least_so_far_and_has_no_place() -> None:
    flat = shapes.ellipsoid(np.array([0.0, 0.0, -0.05]), np.array([0.003, 0.003, 0.003]))
    clearance = Clearance(true_distances({'organ': flat}, np.zeros(3), np.full(3, 0.01)), 2.0)
    far = clearance.nearest(np.array([0.005, 0.005, 0.005]), COVARIANCE)
    assert far.point is None
    assert 0.02 < far.distance < 0.0523
    assert far.clearance == pytest.approx(far.distance - 0.004)
    # Far outside the map it tells what a box tells, and nothing negative.
    assert clearance.nearest(np.array([0.0, 0.0, 0.5]), COVARIANCE).distance == pytest.approx(0.547)
