"""Whether an exposure is worth its dose: what it would tell, against what is known already."""

import numpy as np
import pytest
from needle_sights import DIRECTION, HERE, fluoroscopy, ultrasound, watching

from hybrid_guidance.fusion.advice import Advice, Circumstances, Limits, advise
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.geometry.rigid import pose_along


@pytest.fixture
def fusion() -> NeedleFusion:
    return watching()


def see(fusion: NeedleFusion, begin: float, end: float, speed: float = 0.0) -> None:
    """Show the needle in ultrasound, going in at some m/s."""
    for time in np.arange(begin, end, 1 / 30):
        fusion.add(ultrasound(time, HERE + speed * (time - begin) * DIRECTION))


def ask(fusion: NeedleFusion, time: float, **limits: float) -> Advice:
    return advise(fusion, int(time * 1e9), 'fluoroscopy', Limits(**limits))


def test_an_exposure_is_advised_before_the_first_xray_and_not_right_after_one(
        fusion: NeedleFusion) -> None:
    assert not ask(fusion, 1.0).expose
    see(fusion, 1.0, 2.0)
    assert ask(fusion, 2.0).expose
    fusion.add(fluoroscopy(2.0))
    assert not ask(fusion, 2.0).expose
    see(fusion, 2.01, 8.0)
    assert ask(fusion, 8.0).expose


def test_the_advice_foretells_what_the_exposure_does(fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    see(fusion, 2.01, 6.0)
    time = fusion.latest_ns * 1e-9
    told = ask(fusion, time, tip=0.0005)
    fusion.add(fluoroscopy(time, fusion.filter.state.tip))
    after = np.trace(fusion.filter.estimate(fusion.filter.state).covariance[:3, :3])**0.5
    assert told.after == pytest.approx(after, rel=0.02)
    assert told.after < told.now


def test_an_xray_at_the_moment_of_the_last_one_is_foretold_to_tell_nothing(
        fusion: NeedleFusion) -> None:
    """What repeats an image counts for nothing: its variance grows, but not beyond all numbers."""
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    told = ask(fusion, 2.0, tip=1e-5)
    assert told.after == pytest.approx(told.now, rel=0.05)
    state = fusion.filter.expect(fluoroscopy(2.0))
    assert np.linalg.eigvalsh(state.covariance)[0] > 0.0


def test_an_exposure_that_would_change_little_is_not_worth_it(fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    advice = ask(fusion, 2.0, tip=1e-5)
    assert not advice.expose
    assert 'little would change' in advice.reason


def test_what_late_ultrasound_will_tell_by_itself_needs_no_exposure(fusion: NeedleFusion) -> None:
    """A scanner 0.3 s late: the last moment is open, and its images are on their way."""
    see(fusion, 1.0, 2.0, speed=0.01)
    fusion.add(fluoroscopy(1.98, HERE + 0.0098 * DIRECTION))
    at_once = ask(fusion, fusion.latest_ns * 1e-9, tip=0.0)
    late = ask(fusion, fusion.latest_ns * 1e-9 + 0.3, tip=0.0)
    assert late.now == pytest.approx(at_once.now, rel=1e-6)
    lost = ask(fusion, fusion.latest_ns * 1e-9 + 2.0, tip=0.0)
    assert lost.now > 2.0 * at_once.now


def test_a_needle_deeper_than_an_xray_has_shown_is_to_be_checked(fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 1.5)
    fusion.add(fluoroscopy(1.5))
    see(fusion, 1.5, 3.5, speed=0.008)
    assert not ask(fusion, 3.5, tip=1.0, unchecked=0.018).expose
    advice = ask(fusion, 3.5, tip=1.0, unchecked=0.014)
    assert advice.expose
    assert '16 mm deeper' in advice.reason
    fusion.add(fluoroscopy(3.5, HERE + 0.016 * DIRECTION))
    assert not ask(fusion, 3.5, tip=1.0, unchecked=0.014).expose


def test_danger_across_the_slice_is_worth_an_exposure_and_in_it_is_not(
        fusion: NeedleFusion) -> None:
    """Ultrasound is blind across its slice: that way a structure could be touched unseen."""
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    see(fusion, 2.01, 6.0)
    now = fusion.latest_ns
    across, within = np.array([0.002, 0.0, 0.0]), np.array([0.0, 0.0, 0.002])
    limits = Limits(tip=1.0)
    advice = advise(fusion, now, 'fluoroscopy', limits, Circumstances(across, 12e-6))
    assert advice.expose
    assert advice.risk_after < 0.5 * advice.risk_now
    assert 'risk' in advice.reason
    assert '12.0 µGy' in advice.reason
    safe = advise(fusion, now, 'fluoroscopy', limits, Circumstances(within))
    assert not safe.expose
    assert safe.risk_now < limits.risk


def test_the_risk_is_the_share_of_needles_that_touch(fusion: NeedleFusion) -> None:
    """Against draws from the published covariance."""
    see(fusion, 1.0, 2.0)
    danger = np.array([0.001, 0.0, 0.0004])
    needle = fusion.filter.estimate(fusion.filter.state)
    tips = np.random.default_rng(5).multivariate_normal(
        np.zeros(3), needle.covariance[:3, :3], 200_000)
    length = np.linalg.norm(danger)
    told = advise(fusion, fusion.latest_ns, 'fluoroscopy', given=Circumstances(danger))
    assert told.risk_now == pytest.approx(np.mean(tips @ danger / length > length), abs=0.003)


def test_a_depth_that_a_planner_would_wait_for_is_worth_an_exposure() -> None:
    """Echoes end anywhere for two seconds; no limit but that of the depth is exceeded."""
    advices = []
    for depth in (Limits().depth, np.inf):
        fusion = watching()
        for step in range(30):
            fusion.add(ultrasound(1.0 + step / 30))
        fusion.add(fluoroscopy(2.0))
        for step in range(1, 60):
            time = 2.0 + step / 30
            fusion.add(ultrasound(time, HERE + 0.015 * (-1)**step * DIRECTION))
            fusion.filter.ask(int(time * 1e9), pose_along(HERE, DIRECTION))
        limits = Limits(tip=0.01, depth=depth)
        advices.append(advise(fusion, int(4.0e9), 'fluoroscopy', limits))
    assert [each.expose for each in advices] == [True, False]
    assert 'the depth is known to' in advices[0].reason


def test_xrays_that_do_not_show_what_ultrasound_shows_are_taken_ever_more_seldom(
        fusion: NeedleFusion) -> None:
    """An echo of fascia before the needle is in: an X-ray every half second would show nothing."""
    taken = []
    for step in range(20 * 30):
        time = 1.0 + step / 30
        fusion.add(ultrasound(time))
        if ask(fusion, time).expose:
            fusion.taken('fluoroscopy', int(time * 1e9))
            taken.append(time)
    assert np.allclose(np.diff(taken)[:4], [1.0, 2.0, 4.0, 8.0], atol=0.07)
    time = taken[-1] + 8.1
    fusion.add(fluoroscopy(time))
    assert fusion.in_vain('fluoroscopy')[0] == 0


def test_an_exposure_waits_for_the_end_of_a_breath_that_is_not_known_well(
        fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 2.0)
    now = int(2.0e9)
    away = np.array([0.5e-3, 0.0, 0.0])
    put_off = advise(fusion, now, 'fluoroscopy', given=Circumstances(away=away))
    assert not put_off.expose
    assert 'end of the breath' in put_off.reason
    assert advise(fusion, now, 'fluoroscopy', given=Circumstances(away=0.2 * away)).expose


def test_an_exposure_does_not_wait_for_a_breath_that_leaves_it_good_enough(
        fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    see(fusion, 2.01, 8.0)
    limits, found = Limits(tip=0.7e-3, depth=0.5e-3, unchecked=0.0), {}
    see(fusion, 8.0, 9.0, speed=0.001)
    for words, away in (('little', (0.5e-3, 0.0, 0.0)), ('much', (5e-3, 0.0, 0.0)),
                        ('much, along the ray', (0.0, 5e-3, 0.0))):
        found[words] = advise(fusion, fusion.latest_ns, 'fluoroscopy', limits,
                              Circumstances(away=np.array(away)))
    assert {words: each.expose for words, each in found.items()} == {
        'little': True, 'much': False, 'much, along the ray': True}
    assert 'end of the breath' in found['much'].reason


def test_what_only_an_xray_can_settle_is_worth_one(fusion: NeedleFusion) -> None:
    see(fusion, 1.0, 2.0)
    fusion.add(fluoroscopy(2.0))
    given = Circumstances(unsettled='whether the image is mirrored')
    assert not ask(fusion, 2.0).expose
    advice = advise(fusion, int(2.0e9), 'fluoroscopy', given=given)
    assert advice.expose
    assert 'mirrored' in advice.reason


def test_a_clock_that_jumps_back_is_not_waited_for(fusion: NeedleFusion) -> None:
    fusion.taken('fluoroscopy', int(500e9))
    see(fusion, 1.0, 2.0)
    assert ask(fusion, 2.0).expose
