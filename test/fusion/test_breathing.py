from dataclasses import replace

import numpy as np
import pytest

from hybrid_guidance.fusion.breathing import Breathing, TissueSight
from hybrid_guidance.geometry.rigid import rotation_from_vector, transform
from hybrid_guidance.simulation.motion import Motion

BREATH = np.array([0.001, -0.003, -0.0015])
MOTION = Motion(BREATH, 0.4, np.zeros(3), 1e9)
NORMAL = np.array([0.0, 0.0, 1.0])
"""Of the slice; the X-ray looks along x."""
BLIND = {'ultrasound': NORMAL, 'fluoroscopy': np.array([1.0, 0.0, 0.0])}


def truth(seconds: float) -> np.ndarray:
    return MOTION.at(seconds)[:3, 3]


def sight(source: str, seconds: float, random: np.random.Generator, reference: float = 0.0,
          mount: np.ndarray | None = None) -> TissueSight:
    """Return what a sensor sees with 0.05 mm of noise, nothing along its blind direction."""
    blind = BLIND[source]
    moved = truth(seconds) - truth(reference) + random.normal(0.0, 5e-5, 3)
    return TissueSight(source, round(seconds * 1e9), round(reference * 1e9),
                       moved - (moved @ blind) * blind,
                       5e-5**2 * np.eye(3) + 0.25 * np.outer(blind, blind),
                       np.eye(4) if mount is None else mount)


def watched(seconds: float, xrays: bool, first: float = 0.0) -> Breathing:
    random, breathing = np.random.default_rng(5), Breathing()
    for k in range(round(first * 15), round(seconds * 15)):
        breathing.add(sight('ultrasound', k / 15.0, random, first))
        if xrays and k % 12 == 0:
            breathing.add(sight('fluoroscopy', k / 15.0, random, first))
    return breathing


def place(breathing: Breathing, seconds: float) -> np.ndarray:
    """Return the displacement from rest."""
    found = breathing.at(round(seconds * 1e9))
    assert found is not None
    return found.offset - breathing.rest().offset


def test_place_in_the_breath_is_found_within_its_deviation_by_both_imagers() -> None:
    breathing = watched(10.0, xrays=True)
    assert breathing.known
    for seconds in np.arange(6.0, 9.5, 0.21):
        miss = place(breathing, seconds) - truth(seconds)
        assert np.linalg.norm(miss) < 3e-4
        covariance = (breathing.at(round(seconds * 1e9)).covariance
                      + breathing.rest().covariance)
        assert miss @ np.linalg.solve(covariance, miss) < 16.3  # χ², 3 degrees, 99.9 %


def test_a_tracker_that_trembles_does_not_turn_the_breath_round() -> None:
    """The slice's normal has no sign in its covariance; of any two images it must be the same."""
    random, breathing = np.random.default_rng(8), Breathing()
    base = rotation_from_vector(np.array([1.2, 0.0, 0.0]))
    for k in range(225):
        trembling = rotation_from_vector(0.001 * random.standard_normal(3)) @ base
        seen = [sight('ultrasound', k / 15.0, random)] + (
            [sight('fluoroscopy', k / 15.0, random)] if k % 12 == 0 else [])
        for each in seen:
            breathing.add(replace(each, displacement=trembling @ each.displacement,
                                  covariance=trembling @ each.covariance @ trembling.T))
        if k > 120:
            miss = place(breathing, k / 15.0) - base @ truth(k / 15.0)
            assert np.linalg.norm(miss) < 3e-4


def test_nothing_is_told_between_two_sights_that_lie_far_apart() -> None:
    """Tissue that moves across the slice is seen for a part of each breath only."""
    random, breathing = np.random.default_rng(6), Breathing()
    for k in range(150):
        if k % 60 < 36:
            breathing.add(sight('ultrasound', k / 15.0, random))
    assert breathing.at(round(50 / 15.0 * 1e9)) is None
    assert breathing.at(round(20.5 / 15.0 * 1e9)) is not None
    assert breathing.known


def test_rest_is_not_known_of_tissue_that_is_seldom_seen() -> None:
    random, breathing = np.random.default_rng(7), Breathing()
    for k in range(150):
        if k % 60 < 16:
            breathing.add(sight('ultrasound', k / 15.0, random))
    assert not breathing.known


def test_rest_is_not_known_where_all_but_the_rest_was_seen() -> None:
    """The reference was taken at full intake, and nothing is like it at the end of the breath."""
    random, breathing = np.random.default_rng(8), Breathing()
    for k in range(150):
        if np.linalg.norm(truth(k / 15.0)) > np.linalg.norm(BREATH) / 3.0:
            breathing.add(sight('ultrasound', k / 15.0, random))
    assert not breathing.known


def test_slice_alone_doubts_what_it_cannot_see_most_where_breath_is_deepest() -> None:
    breathing, alone = watched(10.0, xrays=True), watched(10.0, xrays=False)
    times = np.arange(6.0, 9.5, 0.1)
    deepest = max(times, key=lambda t: np.linalg.norm(truth(t)))
    rest = min(times, key=lambda t: np.linalg.norm(truth(t)))

    def doubt(of: Breathing, seconds: float) -> float:
        return float(np.sqrt(NORMAL @ of.at(round(seconds * 1e9)).covariance @ NORMAL))
    across = abs(place(alone, deepest) - truth(deepest)) @ NORMAL
    assert 1.0e-3 < across < 2.0 * doubt(alone, deepest)
    assert doubt(alone, rest) < 0.2 * doubt(alone, deepest)
    assert doubt(breathing, deepest) < 0.2 * doubt(alone, deepest)


@pytest.mark.parametrize('first', [0.0, 1.0, 2.0, 3.0])
def test_rest_is_found_from_wherever_in_a_breath_watching_began(first: float) -> None:
    breathing = watched(first + 9.0, xrays=True, first=first)
    seconds = first + 8.0
    assert np.linalg.norm(place(breathing, seconds) - truth(seconds)) < 3e-4


def test_rest_is_in_doubt_until_a_breath_was_watched() -> None:
    breathing = watched(3.0, xrays=True)
    assert not breathing.known
    assert np.sqrt(np.trace(breathing.rest().covariance)) > 2e-3


def test_without_tissue_nothing_is_moved_and_everything_in_doubt() -> None:
    breathing, mount = Breathing(deviation=0.002), transform(translation=(0.1, 0.2, 0.3))
    found, doubt = breathing.still(10**9, mount)
    assert np.array_equal(found, mount)
    assert not doubt.any()
    assert not breathing.away().any()
    assert breathing.ready(10**9)
    assert breathing.rest_covariance()[0, 0] == pytest.approx(0.002**2)


def test_a_moment_too_far_ahead_is_waited_for_and_then_in_doubt() -> None:
    breathing = watched(8.0, xrays=True)
    soon, late = round(8.0 * 1e9), round(8.4 * 1e9)
    assert breathing.ready(soon)
    assert not breathing.ready(late)
    foretold = breathing.at(soon)
    assert foretold is not None
    assert np.linalg.norm(foretold.offset - breathing.rest().offset - truth(8.0)) < 4e-4
    _, doubt = breathing.still(late, np.eye(4))
    assert doubt[0, 0] >= 0.0015**2


def test_a_probe_that_was_moved_begins_to_watch_anew() -> None:
    breathing, random = watched(8.0, xrays=True), np.random.default_rng(6)
    moved = transform(translation=(0.01, 0.0, 0.0))
    breathing.add(sight('ultrasound', 9.0, random, 9.0, moved))
    assert not breathing.known


def test_tissue_that_is_seen_anew_rests_where_it_did_before() -> None:
    """The needle lies among it: from a reference at full intake it would seem to have jumped."""
    breathing, random = watched(10.0, xrays=True), np.random.default_rng(7)
    rest = breathing.rest().offset
    first = max(np.arange(11.0, 15.0, 1 / 15), key=lambda time: np.linalg.norm(truth(time)))
    for time in np.arange(first, first + 8.0, 1 / 15):
        breathing.add(sight('ultrasound', time, random, first))
        found = breathing.at(round(time * 1e9))
        miss = found.offset - rest - truth(time)
        deviation = np.sqrt(np.diag(found.covariance + breathing.rest().covariance))
        assert np.all(np.abs(miss) < 3.0 * deviation)
        assert breathing.known or deviation.min() > 1e-3
    assert breathing.known
    np.testing.assert_allclose(breathing.rest().offset, rest, atol=1e-4)
    assert np.linalg.norm(place(breathing, time) - truth(time)) < 3e-4


def test_a_breath_is_away_from_its_rest_as_far_as_nothing_tells_of_it() -> None:
    """The slice alone leaves open what the breath does across it; an X-ray there would be wrong."""
    alone = {seconds: np.linalg.norm(watched(seconds, xrays=False).away())
             for seconds in np.arange(8.0, 12.0, 0.2)}
    deepest = max(alone, key=lambda seconds: np.linalg.norm(truth(seconds)))
    rest = min(alone, key=lambda seconds: np.linalg.norm(truth(seconds)))
    assert alone[deepest] > 0.001
    assert alone[rest] < 0.0002
    assert np.linalg.norm(watched(deepest, xrays=True).away()) < 0.2 * alone[deepest]


def test_a_breath_that_never_comes_to_its_rest_has_its_calmest_moments_all_the_same() -> None:
    """Between two breaths that differ, or with the rest taken a little wrong."""
    breathing = watched(12.0, xrays=False)
    breathing._resting = breathing._resting - 0.001 * breathing._axis
    stamps, moved = list(breathing._stamps), list(breathing._moved)
    away = []
    for last in range(len(stamps) - 60, len(stamps)):
        breathing._stamps, breathing._moved = stamps[:last], moved[:last]
        away.append(float(np.linalg.norm(breathing.away())))
    assert min(away) == 0.0
    assert max(away) > 0.001


def test_a_rest_that_stays_unknown_is_not_waited_for_for_ever() -> None:
    random, breathing, away = np.random.default_rng(7), Breathing(deviation=0.002), []
    for k in range(240):
        if k % 60 < 20:
            breathing.add(sight('ultrasound', k / 15.0, random))
            away.append(float(np.linalg.norm(breathing.away())))
    assert not breathing.known
    assert away[5] == pytest.approx(0.002)
    assert away[-1] == 0.0


def test_a_needle_that_was_seen_at_rest_stays_there_while_the_breath_is_learnt() -> None:
    """What becomes known of the breath across the slice says nothing of its rest."""
    random, breathing, first = np.random.default_rng(5), Breathing(), 1.5
    rest = 4.0 * round((2.0 - MOTION.phase / np.pi * 4.0) / 4.0) + 10.0 - MOTION.phase / np.pi * 4.0
    for k in range(round(first * 15), round(rest * 15) + 1):
        breathing.add(sight('ultrasound', k / 15.0, random, first))
    stamp = round(int(rest * 15) / 15.0 * 1e9)
    before = breathing.at(stamp).offset - breathing.rest().offset
    for k in range(int(rest * 15), int(rest * 15) + 60):
        breathing.add(sight('ultrasound', (k + 1) / 15.0, random, first))
        if k % 12 == 0:
            breathing.add(sight('fluoroscopy', k / 15.0, random, first))
    assert np.linalg.norm(truth(stamp * 1e-9)) < 1e-4
    assert np.linalg.norm(breathing.at(stamp).offset - breathing.rest().offset - before) < 1.5e-4
