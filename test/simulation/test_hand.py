import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import pose_along, transform
from hybrid_guidance.simulation.hand import Hand, HandSkill

DOWN = np.array([0.0, 0.0, 1.0])
START = pose_along(np.zeros(3), DOWN)


def deeper(depth: float) -> np.ndarray:
    return pose_along(depth * DOWN, DOWN)


def wait(hand: Hand, seconds: float) -> None:
    for _ in range(int(seconds * 50)):
        hand.advance(0.02)


def test_told_while_shown_wrongly_it_moves_by_the_difference() -> None:
    hand, shown = Hand(START, HandSkill(), 1), transform(translation=np.array([0.002, 0.0, 0.0]))
    hand.follow(shown @ deeper(0.01), shown, hand.held)
    wait(hand, 4.0)
    assert np.allclose(hand.held[:3, 3], [0.0, 0.0, 0.01], atol=1e-9)


def test_it_is_no_faster_than_its_skill() -> None:
    hand = Hand(START, HandSkill(speed=0.005), 1)
    hand.follow(deeper(0.05), START, hand.held)
    wait(hand, 2.0)
    assert hand.held[2, 3] == pytest.approx(0.01, rel=1e-6)


def test_told_to_stay_it_trembles_but_does_not_wander() -> None:
    hand = Hand(START, HandSkill(), 2)
    places = []
    for _ in range(1500):
        hand.follow(START, START, hand.held)
        hand.advance(0.02)
        places.append(hand.pose[:3, 3])
    assert np.allclose(hand.held, START, atol=1e-12)
    assert np.std(places, axis=0) == pytest.approx(HandSkill().tremor, rel=0.3)


def test_bone_stops_the_tip_but_lets_it_be_drawn_back() -> None:
    hand = Hand(START, HandSkill(), 3, bone=lambda points: 0.01 - points[..., 2])
    hand.follow(deeper(0.03), START, hand.held)
    wait(hand, 8.0)
    assert hand.held[2, 3] == pytest.approx(0.01, abs=0.2e-3)
    hand.follow(START, hand.held, hand.held)
    wait(hand, 4.0)
    assert hand.held[2, 3] == pytest.approx(0.0, abs=1e-9)


def test_stopped_it_keeps_still() -> None:
    hand = Hand(START, HandSkill(), 4)
    hand.follow(deeper(0.03), START, hand.held)
    hand.stop()
    wait(hand, 1.0)
    assert np.allclose(hand.held, START)


def test_by_eye_it_errs_alike_until_it_aims_anew() -> None:
    """A goal a little ahead, or behind, is the same attempt; one far ahead is another."""
    skill = HandSkill()
    hand = Hand(START, skill, 5)
    errors = []
    for depth in (0.0, 0.5 * skill.aim, -2.0 * skill.aim, 0.0):
        for _ in range(2):
            hand.follow(deeper(depth), None, hand.held)
            wait(hand, 10.0)
        errors.append(hand.held[:3, 3] - deeper(depth)[:3, 3])
    assert np.allclose(errors[:3], errors[0], atol=1e-9)
    assert 0.1 * skill.eye_position < np.linalg.norm(errors[3] - errors[0]) < 0.01
