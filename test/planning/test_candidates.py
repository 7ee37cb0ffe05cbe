import re
from dataclasses import replace

import numpy as np
import pytest
from balls import BALLS, BODY, ball

from hybrid_guidance.planning.anatomy_map import AnatomyMap, MapError, build_map
from hybrid_guidance.planning.candidates import (
    Task,
    entry_window,
    in_unit,
    judge,
    search,
)
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.procedure import PlanningSetup
from hybrid_guidance.simulation import shapes


def entries_of(task: Task, count: int = 300) -> np.ndarray:
    """Places on the ball of skin, in the window."""
    random = np.random.default_rng(8)
    flat = random.uniform(-0.018, 0.018, (count, 2))
    places = np.column_stack([np.full(count, BODY), flat])
    return BODY * places / np.linalg.norm(places, axis=1, keepdims=True)


def to_segment(point: np.ndarray, start: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distance of a point to segments, and how far from their start its foot is."""
    ways = ends - start
    lengths = np.linalg.norm(ways, axis=1)
    along = np.clip(ways @ (point - start) / lengths**2, 0.0, 1.0)
    return np.linalg.norm(start + along[:, None] * ways - point, axis=1), along * lengths


def test_clearance_is_distance_to_the_line_less_needle_and_doubt(
        task: Task, anatomy: AnatomyMap) -> None:
    """Closed form, for a doubt that is the same everywhere."""
    even = replace(task, doubt=Doubt(2.0, 0.0003, 0.0004, 0.0))
    entries = entries_of(task)
    found = judge(even, anatomy, entries)
    for name in ('bone', 'artery'):
        centre, radius = BALLS[name]
        exact = to_segment(centre, task.target, entries)[0] - radius - 0.0004 - 2 * 0.0005
        term = found.terms[name]
        near = exact < term.capped - 0.0003
        assert near.sum() > 30
        assert np.abs(term.value[near] - exact[near]).max() < 3e-4
        assert np.all(term.value[~near] > term.capped - 6e-4)


def test_doubt_of_the_registration_grows_with_the_distance_from_the_target(task: Task) -> None:
    assert float(task.doubt.slack(np.array(0.0))) == pytest.approx(2 * 0.0005)
    assert float(task.doubt.slack(np.array(0.12))) == pytest.approx(2 * np.hypot(0.0005, 0.0012))


def test_doubt_of_covariances_takes_the_worst_direction() -> None:
    tip = np.diag([1e-8, 9e-8, 4e-8, 1.0, 1.0, 1.0])
    registration = np.diag([1e-8, 1e-8, 16e-8, 1e-4, 4e-4, 1e-4])
    doubt = Doubt.of(2.0, tip, registration)
    assert (doubt.tip, doubt.registration, doubt.turn) == pytest.approx((3e-4, 4e-4, 0.02))


def test_the_pass_over_arrays_is_as_good_as_each_path_by_itself(
        task: Task, anatomy: AnatomyMap) -> None:
    """Against the map read closely along every path, with nothing left out."""
    entries = entries_of(task)
    found = judge(task, anatomy, entries)
    shares = np.linspace(0.0, 1.0, 400)[:, None, None]
    places = task.target + shares * (entries - task.target)
    slack = task.doubt.slack(shares[..., 0] * np.linalg.norm(entries - task.target, axis=1))
    for name in ('bone', 'artery'):
        exact = (anatomy.at(name, places) - slack).min(axis=0) - task.needle_radius
        term = found.terms[name]
        assert np.all(np.abs(np.minimum(exact, term.capped) - term.value) < 1.5e-4)


def test_angles_and_slice_are_those_of_geometry(task: Task, anatomy: AnatomyMap) -> None:
    """In the slice's own axes the beam is -x, the X-ray nearly z, the normal of the skin radial."""
    entries = entries_of(task)
    terms = judge(task, anatomy, entries).terms
    shafts = entries - task.target
    shafts /= np.linalg.norm(shafts, axis=1, keepdims=True)
    ray = (task.target - task.source) / np.linalg.norm(task.target - task.source)
    assert np.allclose(np.cos(terms['beam_angle'].value), np.abs(shafts[:, 0]))
    assert np.allclose(np.cos(terms['ray_angle'].value), np.abs(shafts @ ray))
    assert np.allclose(terms['out_of_slice'].value, 0.015 * np.abs(shafts[:, 2]))
    assert np.allclose(terms['length'].value, np.linalg.norm(entries - task.target, axis=1))
    exact = np.arccos(np.sum(entries / BODY * shafts, axis=1))
    assert np.abs(terms['skin_angle'].value - exact).max() < np.radians(1.5)


def test_window_lies_on_the_skin_and_is_dense(task: Task, anatomy: AnatomyMap) -> None:
    entries, off = entry_window(task, anatomy)
    assert len(entries) >= 10_000
    assert off == 0.0
    assert np.abs(np.linalg.norm(entries, axis=1) - BODY).max() < 3e-4
    away = np.linalg.norm(entries - task.window, axis=1)
    assert task.setup.window - 0.002 < away.max() < task.setup.window + 0.004


def test_best_path_keeps_every_limit_in_the_truth(task: Task, anatomy: AnatomyMap) -> None:
    found = search(task, anatomy)
    best = found.entries[int(np.argmin(found.cost))]
    for name, margin in task.avoid.items():
        centre, radius = BALLS[name]
        away = to_segment(centre, task.target, best[None])[0][0] - radius - task.needle_radius
        assert away > margin


def refused(task: Task, anatomy: AnatomyMap) -> str:
    with pytest.raises(PlanError) as error:
        search(task, anatomy, 0.001)
    return str(error.value)


def test_target_in_bone_is_the_reason_and_how_deep(task: Task, anatomy: AnatomyMap) -> None:
    inside = replace(task, target=BALLS['bone'][0] + (0.0, -0.004, 0.0))
    assert 'target is in bone, 2.0 mm deep' in refused(inside, anatomy)


def test_target_too_near_is_the_reason_and_how_much_is_short(
        task: Task, anatomy: AnatomyMap) -> None:
    """10 mm from the middle, 6 mm radius, 0.4 mm needle, 1 mm doubt: 2.6 of the 5 mm to keep."""
    near = replace(task, avoid={'bone': 0.005}, target=np.array([0.040, 0.006, 0.0]))
    assert '2.4 mm short of the limit of 5.0 mm' in refused(near, anatomy)


def test_short_needle_is_the_reason_and_by_how_much(task: Task, anatomy: AnatomyMap) -> None:
    """The shortest way is 40 mm; 3 mm stay outside."""
    words = refused(replace(task, needle_length=0.041), anatomy)
    assert 'length: 2.0 mm over the limit of 38.0 mm' in words


def test_blocked_window_names_what_blocks_it(task: Task) -> None:
    """A plate of bone above the target, wider than the window."""
    solids = {name: ball(*value) for name, value in BALLS.items()}
    solids['bone'] = shapes.box(np.array([0.06, 0, 0]), np.array([0.002, 0.03, 0.03]),
                                         0.001)
    blocked = build_map(solids, *task.region(), band=task.band)
    words = refused(task, blocked)
    assert 'none of' in words
    assert 'fails by bone:' in words
    # Through the middle of the plate: 2 mm deep, needle, doubt and limit beside; the deepest
    # sheet of a thin solid lies between voxels.
    short = re.search(r'bone: (\d\.\d) mm short of the limit of 0.2 mm', words)
    assert float(short[1]) == pytest.approx(2.0 + 0.4 + 1.08 + 0.2, abs=0.6)


def test_window_off_the_skin_is_the_reason(task: Task, anatomy: AnatomyMap) -> None:
    """A window that lies in the air and far from the skin, by hand 30 mm above it."""
    setup = PlanningSetup(window=0.004)
    off = replace(task, window=np.array([BODY + 0.03, 0.0, 0.0]), setup=setup)
    wide = build_map({name: ball(*value) for name, value in BALLS.items()},
                     *off.region(), band=0.04)
    assert 'lies off the skin' in refused(off, wide)


def test_paths_beside_the_map_and_structures_not_in_it_are_refused(
        task: Task, anatomy: AnatomyMap) -> None:
    with pytest.raises(MapError, match='leave the map'):
        judge(task, anatomy, np.array([[0.3, 0.0, 0.0]]))
    with pytest.raises(MapError, match='lacks nerve'):
        judge(replace(task, avoid={'nerve': 0.001}), anatomy, entries_of(task, 3))


def test_weights_and_limits_are_the_procedure_s(task: Task, anatomy: AnatomyMap) -> None:
    entries = entries_of(task, 20)
    plain = judge(task, anatomy, entries)
    setup = PlanningSetup(weights={**task.setup.weights, 'length': 5.0},
                          limits={**task.setup.limits, 'skin_angle': np.radians(5.0)})
    changed = judge(replace(task, setup=setup), anatomy, entries)
    assert np.allclose(changed.terms['length'].cost, 10.0 * plain.terms['length'].cost)
    steep = plain.terms['skin_angle'].value > np.radians(5.0)
    assert steep.any()
    assert not changed.allowed[steep].any()


def test_values_are_shown_in_units() -> None:
    assert [in_unit(0.0123, 'mm'), in_unit(np.pi / 4, '°'), in_unit(0.5, '')] == [
        '12.3 mm', '45°', '0.50']
