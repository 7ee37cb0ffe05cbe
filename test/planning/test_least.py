import numpy as np
import pytest

from hybrid_guidance.planning.anatomy_map import AnatomyMap, build_map
from hybrid_guidance.planning.candidates import Task
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.least import LEVELS, STEEPEST, LeastClearances, _bundled, _neighbours
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.anatomy import build_structures

TARGET = np.array([0.001, -0.002, -0.022])
DOUBT = Doubt(2.0, 0.0003, 0.0004, 0.01)
RADIUS, HORIZON, LONGEST = 0.0004, 0.009, 0.055
MARGINS = {'rod': HORIZON, 'plate': HORIZON, 'blocks': 0.004, 'far': 0.002}
# Thin, sharp and hollow: where a distance's slope jumps.
SOLIDS = {
    'rod': shapes.capsule(np.array([-0.02, 0.004, 0.002]), np.array([0.02, -0.006, 0.006]), 0.0006),
    'plate': shapes.box(np.array([0.004, 0.008, -0.010]), np.array([0.006, 0.0008, 0.006]), 0.0),
    'blocks': shapes.union([shapes.box(np.array([x, -0.008, -0.004]), np.full(3, 0.002), 0.0)
                            for x in (-0.008, -0.003, 0.002, 0.007)]),
    'far': shapes.ellipsoid(np.array([0.0, 0.060, -0.02]), np.full(3, 0.004))}


@pytest.fixture(scope='module')
def anatomy() -> AnatomyMap:
    return build_map(SOLIDS, np.full(3, -0.025), np.full(3, 0.028), band=0.013)


def some_ways(count: int, seed: int) -> np.ndarray:
    """Entries in a disc, in no order."""
    flat = np.random.default_rng(seed).uniform(-0.018, 0.018, (count, 2))
    return np.column_stack([flat, np.full(count, 0.024)]) - TARGET


def plain(anatomy: AnatomyMap, name: str, ways: np.ndarray, samples: int) -> np.ndarray:
    """Every sample of every path."""
    shares = np.linspace(0.0, 1.0, samples)[:, None]
    slack = DOUBT.slack(shares * np.linalg.norm(ways, axis=1)) + RADIUS
    return (anatomy.at(name, TARGET + shares[..., None] * ways) - slack).min(axis=0)


@pytest.mark.parametrize('count', [1, 7, 700, 6000])
def test_the_least_is_that_of_reading_every_sample(anatomy: AnatomyMap, count: int) -> None:
    ways = some_ways(count, count)
    search = LeastClearances(anatomy, TARGET, DOUBT, RADIUS, MARGINS, LONGEST, 0.001)
    assert search.names == ['rod', 'plate', 'blocks']
    for name, found in zip(search.names, search(ways), strict=True):
        exact = np.minimum(plain(anatomy, name, ways, 56), MARGINS[name])
        assert np.abs(found - exact).max() < 1e-7
        if count == 6000:
            assert np.count_nonzero(found < MARGINS[name]) > 600
            assert found.min() < 0.0


def test_little_of_the_map_is_read(anatomy: AnatomyMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it quick: of 6000 paths, 56 samples and 3 structures under half."""
    read = []
    whole = LeastClearances._read

    def counted(*arguments):
        values, spread = whole(*arguments)
        read.append(values.size)
        return values, spread
    monkeypatch.setattr(LeastClearances, '_read', counted)
    LeastClearances(anatomy, TARGET, DOUBT, RADIUS, MARGINS, LONGEST, 0.001)(some_ways(6000, 1))
    assert len(read) == len(LEVELS)
    assert sum(read) < 6000 * 56 * 3 / 2


@pytest.mark.parametrize('name', ['', 'hip_injection', 'lumbar_sympathetic_block'])
def test_a_map_is_no_steeper_than_the_bounds_count_with(anatomy: AnatomyMap, name: str) -> None:
    if name:
        procedure = load_procedure(name)
        task = Task.of(procedure)
        solids = build_structures(procedure.region, 101, procedure.target)
        anatomy = build_map({key: solids[key] for key in task.avoid}, *task.region(),
                            band=task.band)
    steepest = max(float(np.abs(np.diff(anatomy.fields, axis=axis)).max()) for axis in (1, 2, 3))
    assert steepest < STEEPEST * anatomy.grid.spacing


def test_bundles_hold_neighbours(anatomy: AnatomyMap) -> None:
    """Eight of 6000 paths in a square of 36 mm lie within about a millimetre."""
    ways = some_ways(6000, 2)
    rays = ways.T.astype(np.float32)
    order = _neighbours(rays)
    assert np.array_equal(np.sort(order), np.arange(6000))
    away = _bundled(rays[:, order], 8)[4]
    assert np.median(away) < 0.0015
    members = rays[:, order].reshape(3, -1, 8)
    assert np.allclose(np.linalg.norm(members - members.mean(axis=2, keepdims=True),
                                      axis=0).max(axis=1), away, atol=1e-7)
