import numpy as np
import pytest

from hybrid_guidance.planning.clearance import Clearance
from hybrid_guidance.planning.path import Path

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
