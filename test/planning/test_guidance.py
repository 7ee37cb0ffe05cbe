import numpy as np
import pytest

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import perturbed
from hybrid_guidance.planning.guidance import Guidance, GuidanceSettings, Phase
from hybrid_guidance.planning.path import Path

PATH = Path(np.array([0.0, 0.03, 0.04]), np.array([0.0, 0.0, 0.0]))
SETTINGS = GuidanceSettings()


def needle(depth: float, offset: tuple[float, ...] = (0, 0, 0, 0, 0, 0),
           blind: tuple[float, ...] = (0, 0, 0)) -> NeedleEstimate:
    """A needle known to 0.1 mm, and to 5 mm along ``blind``."""
    covariance = np.eye(6) * 1e-8
    covariance[:3, :3] += 0.005**2 * np.outer(blind, blind)
    return NeedleEstimate(perturbed(PATH.pose_at(depth), np.array(offset)), covariance)


@pytest.fixture
def guidance() -> Guidance:
    return Guidance(PATH, SETTINGS)


def test_by_eye_it_approaches_then_goes_no_deeper_than_allowed(guidance: Guidance) -> None:
    first = guidance.by_eye(10**9)
    later = guidance.by_eye(10**9 + int(1.1e9 * SETTINGS.dwell))
    assert first.phase is Phase.APPROACH
    assert PATH.deviation(first.pose[:3, 3])[2] == pytest.approx(-0.05 - SETTINGS.standoff)
    assert later.phase is Phase.ALIGN
    assert PATH.deviation(later.pose[:3, 3])[2] == pytest.approx(-0.05 + SETTINGS.first_depth)


def test_a_needle_inserted_by_eye_and_not_seen_is_drawn_back_and_tried_again(
        guidance: Guidance) -> None:
    """It has the time to get there, then a breath to be seen."""
    back = SETTINGS.first_depth / SETTINGS.by_eye
    inside = back + SETTINGS.standoff / SETTINGS.by_eye + SETTINGS.patience
    times = np.arange(0.0, SETTINGS.dwell + 2 * inside + back, 0.1)
    depths = np.array([PATH.length + PATH.deviation(
        guidance.by_eye(10**9 + int(time * 1e9)).pose[:3, 3])[2] for time in times])
    told_in = depths > 1e-6
    assert np.count_nonzero(np.diff(told_in.astype(int)) > 0) == 2
    assert np.min(depths[times > SETTINGS.dwell]) == pytest.approx(0.0, abs=1e-9)
    assert np.sum(told_in) * 0.1 == pytest.approx(2 * inside, abs=0.3)


def test_on_the_path_it_advances_one_step(guidance: Guidance) -> None:
    command = guidance.by_image(needle(0.02))
    assert command.phase is Phase.ADVANCE
    assert np.allclose(command.pose, PATH.pose_at(0.02 + SETTINGS.step))


def test_near_the_target_it_slows_down_and_ends_at_the_target(guidance: Guidance) -> None:
    steps = []
    depth = 0.05 - 0.003
    while guidance.by_image(needle(depth)).phase is Phase.ADVANCE:
        command = guidance.by_image(needle(depth))
        steps.append(PATH.deviation(command.pose[:3, 3])[2] + PATH.length - depth)
        depth += steps[-1]
    assert steps[0] < 0.001
    assert np.all(np.diff(steps) < 0.0)
    assert depth == pytest.approx(0.05, abs=SETTINGS.target_tolerance)


def test_too_deep_it_withdraws(guidance: Guidance) -> None:
    command = guidance.by_image(needle(0.053))
    assert command.phase is Phase.ADVANCE
    assert PATH.deviation(command.pose[:3, 3])[2] < 0.003


def test_it_does_not_advance_while_the_depth_is_in_doubt(guidance: Guidance) -> None:
    command = guidance.by_image(needle(0.02, blind=tuple(PATH.direction)))
    assert command.phase is Phase.HOLD
    assert np.allclose(command.pose, PATH.pose_at(0.02))
    assert 'expose' in command.words


def test_the_less_sure_the_depth_the_smaller_the_step_most_of_all_near_the_target(
        guidance: Guidance) -> None:
    def step(depth: float, deviation: float) -> float:
        unsure = needle(depth)
        unsure.covariance[:3, :3] = deviation**2 * np.eye(3)
        return PATH.deviation(guidance.by_image(unsure).pose[:3, 3])[2] + PATH.length - depth
    doubt = SETTINGS.depth_doubt
    assert step(0.02, 0.4 * doubt) == pytest.approx(SETTINGS.step)
    assert 0.0 < step(0.02, 0.8 * doubt) < step(0.02, 0.6 * doubt) < SETTINGS.step
    assert step(0.049, 0.4 * doubt) > 0.0
    assert step(0.049, 0.8 * doubt) == pytest.approx(0.0, abs=1e-12)


def test_it_corrects_only_where_the_needle_was_seen(guidance: Guidance) -> None:
    """A hand that corrects what no image shows would go on correcting for ever."""
    off = (0.003, 0, 0, 0, 0, 0)
    assert guidance.by_image(needle(0.02, off)).phase is Phase.ALIGN
    command = guidance.by_image(needle(0.02, off, blind=(1, 0, 0)))
    assert command.phase is Phase.ADVANCE
    assert PATH.deviation(command.pose[:3, 3])[:2] == pytest.approx(
        PATH.deviation(needle(0.02, off).tip)[:2])


@pytest.mark.parametrize('offset', [(0.003, 0, 0, 0, 0, 0), (0, 0, 0, 0.1, 0, 0)])
def test_off_the_path_it_corrects_at_the_same_depth(guidance: Guidance, offset) -> None:
    command = guidance.by_image(needle(0.02, offset))
    assert command.phase is Phase.ALIGN
    depth = PATH.deviation(command.pose[:3, 3])[2] + PATH.length
    assert depth == pytest.approx(0.02, abs=1e-4)
    assert np.allclose(PATH.deviation(command.pose[:3, 3])[:2], 0.0, atol=1e-9)


def test_outside_it_brings_the_tip_to_the_entry(guidance: Guidance) -> None:
    command = guidance.by_image(needle(-0.01))
    assert command.phase is Phase.APPROACH
    assert np.allclose(command.pose[:3, 3], PATH.entry)


def test_at_the_target_it_holds_where_it_is_although_the_estimate_wanders(
        guidance: Guidance) -> None:
    assert guidance.by_image(needle(0.05)).phase is Phase.HOLD
    wandered = needle(0.05 - 0.9 * SETTINGS.release)
    command = guidance.by_image(wandered)
    assert command.phase is Phase.HOLD
    assert np.allclose(command.pose, wandered.pose)
    assert guidance.by_image(needle(0.04)).phase is Phase.ADVANCE


@pytest.mark.parametrize(('depth', 'aside', 'turn'), [
    (0.02, 1.1 * SETTINGS.reach, 0.0), (0.05 + 1.1 * SETTINGS.reach, 0.0, 0.0),
    (0.02, 0.0, 1.1 * SETTINGS.angle_reach)], ids=['beside', 'beyond', 'turned'])
def test_what_is_far_from_the_path_is_not_led(guidance: Guidance, depth, aside, turn) -> None:
    far = needle(depth, (aside, 0, 0, turn, 0, 0))
    command = guidance.by_image(far)
    assert command.phase is Phase.HOLD
    assert np.allclose(command.pose, far.pose)
    assert 'check that this is the needle' in command.words


def test_what_no_image_has_shown_since_it_was_corrected_is_not_corrected_again(
        guidance: Guidance) -> None:
    """X-ray at 1.0 s, ultrasound after it; each is told of 0.2 s later."""
    def told(seconds: float, sigma: float) -> float:
        covariance = np.eye(6) * 1e-8
        covariance[0, 0] = sigma**2
        seen = NeedleEstimate(perturbed(PATH.pose_at(0.02), np.array([0.0005, 0, 0, 0, 0, 0])),
                              covariance)
        command = guidance.by_image(seen, int(seconds * 1e9), int((seconds + 0.2) * 1e9))
        return float(command.pose[0, 3] - seen.tip[0])
    assert told(1.00, 3e-4) == pytest.approx(-0.0005)
    # Images taken before the hand could move.
    assert told(1.10, 3.5e-4) == pytest.approx(-0.0005)
    # It has moved; only the doubt has grown.
    assert told(1.30, 4e-4) == told(1.60, 5e-4) == pytest.approx(0.0, abs=1e-9)
    # The next X-ray.
    assert told(1.70, 3e-4) == pytest.approx(-0.0005)


def test_what_every_image_shows_is_corrected_in_every_image(guidance: Guidance) -> None:
    off = needle(0.02, (0.0005, 0, 0, 0, 0, 0), blind=(0.0, 1.0, 0.0))
    for k in range(1, 6):
        command = guidance.by_image(off, k * 10**8, k * 10**8 + 2 * 10**8)
        assert command.pose[0, 3] == pytest.approx(0.0, abs=1e-9)
