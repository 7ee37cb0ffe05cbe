"""How to hold the probe: whether the tip is in the slice, and how the beam meets the shaft."""

import numpy as np
import pytest

from hybrid_guidance.fusion.probe_advice import ProbeAdvice, advise_probe
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along

THICKNESS = 0.003


def held(tip: tuple[float, float, float], direction: tuple[float, float, float],
         sigma: float = 0.5e-3, apex: np.ndarray | None = None) -> ProbeAdvice:
    covariance = np.diag([sigma**2] * 3 + [0.01**2] * 3)
    way = np.array(direction) / np.linalg.norm(direction)
    return advise_probe(NeedleEstimate(pose_along(np.array(tip), way), covariance), THICKNESS, apex)


@pytest.mark.parametrize('offset', [-0.004, -0.001, 0.0, 0.0018])
def test_the_share_of_tips_outside_the_slice_is_that_of_drawn_ones(offset: float) -> None:
    drawn = np.random.default_rng(3).normal(offset, 0.8e-3, 200_000)
    advice = held((0.0, 0.04, offset), (1.0, 0.0, 0.0), sigma=0.8e-3)
    assert advice.outside == pytest.approx(np.mean(np.abs(drawn) > THICKNESS / 2), abs=0.004)


def test_a_tip_beside_the_slice_is_told_with_its_side() -> None:
    assert 'behind the slice' in held((0.0, 0.04, 0.003), (1.0, 0.2, 0.0)).words
    assert 'in front of the slice' in held((0.0, 0.04, -0.003), (1.0, 0.2, 0.0)).words
    assert held((0.0, 0.04, 0.0005), (1.0, 0.1, 0.0)).words == ''


@pytest.mark.parametrize('apex', [None, np.array([0.0, -0.06]), np.array([0.002, -0.03])])
@pytest.mark.parametrize('direction', [(1.0, 0.6, 0.0), (-1.0, 0.3, 0.0), (0.4, 1.0, 0.1)])
def test_a_beam_that_turns_as_told_meets_the_shaft_at_a_right_angle(
        apex: np.ndarray | None, direction: tuple[float, float, float]) -> None:
    tip = (0.012, 0.04, 0.0)
    turn = held(tip, direction, apex=apex).oblique
    beam = np.array([0.0, 1.0]) if apex is None else np.array(tip[:2]) - apex
    angle = np.arctan2(beam[0], beam[1]) + turn
    assert np.dot((np.sin(angle), np.cos(angle)), direction[:2]) == pytest.approx(0.0, abs=1e-9)
    assert abs(turn) <= np.pi / 2


def test_a_needle_that_comes_down_to_the_right_is_met_by_a_beam_to_the_left() -> None:
    assert 'to the left' in held((0.0, 0.04, 0.0), (1.0, 0.5, 0.0)).words
    assert 'to the right' in held((0.0, 0.04, 0.0), (-1.0, 0.5, 0.0)).words


def test_a_shaft_across_the_slice_is_told_with_its_angle() -> None:
    assert 'crosses the slice at 45 deg' in held((0.0, 0.04, 0.0), (1.0, 0.0, 1.0)).words
