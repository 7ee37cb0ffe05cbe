import numpy as np
import pytest

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import perturbed
from hybrid_guidance.planning.guidance import Guidance, GuidanceSettings, Phase
from hybrid_guidance.planning.path import Path

PATH = Path(np.array([0.0, 0.03, 0.04]), np.array([0.0, 0.0, 0.0]))
SETTINGS = GuidanceSettings()


def needle(depth: float, offset: tuple[float, ...] = (0, 0, 0, 0, 0, 0)) -> NeedleEstimate:
    return NeedleEstimate(perturbed(PATH.pose_at(depth), np.array(offset)), np.eye(6) * 1e-8)


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


def test_on_the_path_it_advances_one_step(guidance: Guidance) -> None:
    command = guidance.by_image(needle(0.02))
    assert command.phase is Phase.ADVANCE
    assert np.allclose(command.pose, PATH.pose_at(0.02 + SETTINGS.step))


def test_near_the_target_the_step_ends_at_the_target(guidance: Guidance) -> None:
    command = guidance.by_image(needle(0.05 - 0.001))
    assert np.allclose(command.pose[:3, 3], PATH.target)


def test_too_deep_it_withdraws(guidance: Guidance) -> None:
    command = guidance.by_image(needle(0.053))
    assert command.phase is Phase.ADVANCE
    assert np.allclose(command.pose[:3, 3], PATH.target)


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


def test_at_the_target_it_holds_although_the_estimate_wanders(guidance: Guidance) -> None:
    assert guidance.by_image(needle(0.05)).phase is Phase.HOLD
    assert guidance.by_image(needle(0.049)).phase is Phase.HOLD
    assert guidance.by_image(needle(0.04)).phase is Phase.ADVANCE


def test_at_the_target_a_jump_of_the_estimate_moves_nothing(guidance: Guidance) -> None:
    """An echo that ends 5 mm short at bone must not push the needle 5 mm on."""
    guidance.by_image(needle(0.05))
    short = needle(0.045)
    command = guidance.by_image(short)
    assert command.phase is Phase.HOLD
    assert np.allclose(command.pose, short.pose)
