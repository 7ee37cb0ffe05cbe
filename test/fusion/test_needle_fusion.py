from dataclasses import replace

import numpy as np
import pytest
from needle_sights import CALIBRATION, ELSEWHERE, HERE, fluoroscopy, ultrasound, watching

from hybrid_guidance.fusion.advice import advise
from hybrid_guidance.fusion.needle_filter import Ending, NeedleFilter
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along


@pytest.fixture
def fusion() -> NeedleFusion:
    return watching()


def see(fusion: NeedleFusion, begin: float, end: float, tip: np.ndarray = HERE):
    return [fusion.add(ultrasound(time, tip)) for time in np.arange(begin, end, 1 / 30)]


def test_a_needle_counts_once_several_observations_agree(fusion: NeedleFusion) -> None:
    updates = see(fusion, 1.0, 1.25)
    assert [update.accepted for update in updates[:5]] == [False] * 4 + [True]
    assert '4 of 5' in updates[3].reason
    assert all(update.state is None for update in updates[:4])


def test_one_false_first_observation_does_not_win(fusion: NeedleFusion) -> None:
    fusion.add(ultrasound(0.99, ELSEWHERE))
    updates = see(fusion, 1.0, 1.3)
    assert updates[-1].accepted
    assert np.allclose(fusion.filter.state.tip, HERE, atol=1e-4)


def test_a_single_outlier_is_refused_in_words_and_changes_nothing(fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 1.5)
    before = fusion.filter.state
    update = fusion.add(ultrasound(1.52, ELSEWHERE))
    assert not update.accepted
    assert 'mm' in update.reason
    assert fusion.filter.state is before


def test_a_needle_found_elsewhere_takes_over_within_half_a_second(fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 2.0)
    updates = see(fusion, 2.0, 2.6, ELSEWHERE)
    first = next(index for index, update in enumerate(updates) if update.accepted)
    assert 5 <= first <= 15
    assert 'starts over' in updates[first].reason
    assert np.allclose(fusion.filter.state.tip, ELSEWHERE, atol=1e-3)


def test_what_xrays_confirm_is_not_given_up_for_one_modality(fusion: NeedleFusion) -> None:
    """The ultrasound tracker follows something else; X-rays go on showing the needle."""
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    for second in np.arange(2.0, 5.0, 0.3):
        assert not any(update.accepted for update in see(
            fusion, second + 0.01, second + 0.29, ELSEWHERE))
        assert fusion.add(fluoroscopy(second + 0.3)).accepted
    assert abs(fusion.filter.state.tip[0] - HERE[0]) < 1e-3


def test_a_needle_that_only_ultrasound_shows_does_not_count_where_both_are_needed() -> None:
    fusion = NeedleFusion(lambda: NeedleFilter(CALIBRATION), needed=CALIBRATION)
    updates = see(fusion, 1.0, 2.0, ELSEWHERE)
    assert fusion.found
    assert not any(update.accepted for update in updates)
    assert 'only one modality' in updates[-1].reason
    assert advise(fusion, int(2.0e9), 'fluoroscopy').expose
    assert not fusion.add(fluoroscopy(2.0, HERE + [0.03, 0.0, 0.0])).accepted
    advice = advise(fusion, int(2.1e9), 'fluoroscopy')
    assert not advice.expose
    assert 'contradicts' in advice.reason
    assert fusion.add(fluoroscopy(2.2, ELSEWHERE)).accepted
    assert fusion.confirmed


def test_a_needle_takes_over_from_a_look_alike_that_no_xray_shows() -> None:
    fusion = NeedleFusion(lambda: NeedleFilter(CALIBRATION), needed=CALIBRATION)
    see(fusion, 1.0, 2.0, ELSEWHERE)
    see(fusion, 2.0, 3.0)
    assert fusion.add(fluoroscopy(3.0)).accepted
    assert np.allclose(fusion.filter.state.tip, HERE, atol=1e-3)


def test_a_look_alike_in_line_with_the_xray_gives_way_to_the_needle_both_show() -> None:
    """An X-ray along the slice shows all that is in the slice as one line."""
    fusion = NeedleFusion(lambda: NeedleFilter(CALIBRATION, endings={
        'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True)}), needed=CALIBRATION)
    edge_on = np.diag([0.1e-3**2, 0.5**2, 0.5**2, 1.6**2, 0.002**2, 1.6**2])

    def expose(time: float):
        return fusion.add(replace(fluoroscopy(time), needle=NeedleEstimate(
            pose_along(HERE, np.array([0.0, 0.0, 1.0])), edge_on)))
    see(fusion, 1.0, 1.5, ELSEWHERE)
    assert expose(1.5).accepted
    for second in np.arange(1.5, 3.0, 0.3):
        see(fusion, second + 0.01, second + 0.29)
        expose(second + 0.3)
    see(fusion, 3.31, 3.5)
    assert fusion.confirmed
    assert np.allclose(fusion.filter.state.tip, HERE, atol=2e-3)


def moved_when_asked(fusion: NeedleFusion) -> float:
    """Return how far, m, the needle is thought to have gone after it was asked to go 3 mm."""
    state = fusion.filter.state
    fusion.ask(state.stamp_ns, pose_along(state.tip + [0.003, 0.0, 0.0], state.direction),
               state.stamp_ns)
    later = fusion.filter.predict(state.stamp_ns + 400_000_000)
    return float(np.linalg.norm(later.tip - state.tip))


def test_a_needle_is_thought_to_go_where_it_is_asked_to_once_somebody_has_seen_where_it_is(
        fusion: NeedleFusion) -> None:
    """Before, it is led by eye: not by as much as it lies beside an estimate."""
    see(fusion, 1.0, 1.1)
    assert not fusion.confirmed
    assert moved_when_asked(fusion) < 1e-4
    see(fusion, 1.1, 1.5)
    assert fusion.confirmed
    assert moved_when_asked(fusion) > 1e-3
