"""A needle that left its path: straight on, drawn back and aimed anew, or out."""

import re

import numpy as np
import pytest

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.planning.candidates import Task
from hybrid_guidance.planning.clearance import Distance
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.guidance import GuidanceSettings, Phase
from hybrid_guidance.planning.path import Path
from hybrid_guidance.planning.planner import Planner
from hybrid_guidance.planning.redirect import Redirector, Steering
from hybrid_guidance.procedure import Probe

PLAN = Path(np.array([0.0, 0.0, 0.06]), np.zeros(3))
DOUBT = Doubt(2.0, 0.0003, 0.0004, 0.0)
RADIUS, STEERING = 0.0004, Steering()
STRAIGHT = np.array([0.0, 0.0, -1.0])


def task(length: float = 0.09) -> Task:
    return Task(PLAN.target, PLAN.entry, length, RADIUS, {'vessel': 0.002}, np.eye(4),
                Probe('linear', np.inf, 0.04), np.array([0.0, 0.6, 0.0]), doubt=DOUBT)


def ball(*centre: float, radius: float = 0.003) -> Distance:
    return lambda points: np.linalg.norm(points - np.array(centre), axis=-1) - radius


def redirector(*centre: float, **more: float) -> Redirector:
    return Redirector(task(), {'vessel': ball(*(centre or (1.0, 0.0, 0.0)), **more)})


def test_on_its_path_and_a_little_beside_it_a_needle_goes_straight_on() -> None:
    look = redirector().look
    for aside in (0.0, 0.002, 0.004):
        assert look(PLAN, np.array([aside, 0.0, 0.03]), STRAIGHT) is None


def test_what_the_plan_itself_passes_near_is_no_reason_to_withdraw() -> None:
    """3.5 mm from the axis: less needle and k·σ 0.1 mm, where 2 mm are asked."""
    look = redirector(0.0045, 0.0, 0.02).look
    assert look(PLAN, np.array([0.0, 0.0, 0.03]), STRAIGHT) is None


def test_a_vessel_on_the_way_is_named_with_what_is_short() -> None:
    """Closed form: the way goes through the middle of a ball that the plan passes at 1.6 mm."""
    look = redirector(0.004, 0.0, 0.015, radius=0.001).look
    found = look(PLAN, np.array([0.006, 0.0, 0.0225]), STRAIGHT)
    assert found is not None
    words = re.search(r'vessel at (.*) mm less .* k·σ, (.*) mm short .* 1\.6 mm', found.words)
    assert words is not None
    # Sampled once a millimetre.
    assert float(words[1]) == pytest.approx(-2.4, abs=0.5)
    assert float(words[2]) - 1.6 == pytest.approx(-float(words[1]), abs=0.11)


@pytest.mark.parametrize('aside', [0.010, 0.014])
def test_it_is_drawn_back_no_further_than_it_must_and_then_all_limits_hold(aside: float) -> None:
    look, tip = redirector().look, np.array([aside, 0.0, 0.012])
    found = look(PLAN, tip, STRAIGHT)
    assert found is not None
    assert found.path is not None
    assert 0.0 < found.withdraw < 0.048
    turning = tip - found.withdraw * STRAIGHT
    assert look(PLAN, turning, STRAIGHT) is None
    turns = [np.arctan2(aside, turning[2] - further) for further in (0.0, 0.0015)]
    pushes = [(0.06 - turning[2] + further) * np.sin(turn)
              for further, turn in zip((0.0, 0.0015), turns, strict=True)]
    assert turns[0] <= STEERING.turn
    assert pushes[0] <= STEERING.push
    assert turns[1] > STEERING.turn or pushes[1] > STEERING.push
    # The new path passes the turning point, as deep as the needle is then.
    assert np.linalg.norm(np.cross(found.path.direction, turning - found.path.entry)) < 1e-9
    assert np.linalg.norm(turning - found.path.entry) == pytest.approx(0.048 - found.withdraw)


def test_where_no_way_along_the_track_is_free_it_must_leave_the_body() -> None:
    """A wall of 20 mm between track and target: nothing within reach gets round it."""
    def wall(points: np.ndarray) -> np.ndarray:
        # Thin in x, between the target at 0 and the track at 12 mm; beside the plan by 3 mm.
        return np.maximum(np.abs(points[..., 0] - 0.006) - 0.0025, points[..., 2] - 0.058)

    look = Redirector(task(), {'vessel': wall}).look
    found = look(PLAN, np.array([0.014, 0.0, 0.01]), STRAIGHT)
    assert found is not None
    assert found.path is None
    assert 'Withdraw the needle and plan anew' in found.words


def test_a_needle_that_is_too_short_for_the_detour_says_by_how_much() -> None:
    """A tip 40 mm in and 30 mm beside: 40 + 36.1 mm where 66 mm can be used."""
    look = Redirector(task(0.069), {'vessel': ball(1.0, 0.0, 0.0)}).look
    found = look(PLAN, np.array([0.03, 0.0, 0.02]), STRAIGHT)
    assert found is not None
    assert 'the needle is 10.1 mm too short' in found.words


def estimate(tip: np.ndarray, sigma: float = 1e-4) -> NeedleEstimate:
    return NeedleEstimate(pose_along(tip, STRAIGHT), np.eye(6) * sigma**2)


def test_a_plan_begins_anew_from_the_tip_and_withdraws_first() -> None:
    planner = Planner({'entry': PLAN.entry, 'target': PLAN.target}, GuidanceSettings(),
                      redirector=redirector())
    tip = np.array([0.012, 0.0, 0.012])
    assert planner.look(estimate(tip)) is None  # one may be an outlier
    found = planner.look(estimate(tip))
    assert found is not None
    depths, last = [], Phase.WITHDRAW
    for _ in range(40):
        command = planner.guidance.by_image(estimate(tip))
        if command.phase is not Phase.WITHDRAW:
            last = command.phase
            break
        assert np.allclose(command.pose[:2, 3], tip[:2])  # on its own track
        tip = command.pose[:3, 3]
        depths.append(tip[2])
    assert tip[2] - 0.012 == pytest.approx(found.withdraw, abs=0.0006)
    assert np.all(np.diff(depths) > 0.0)
    assert last in (Phase.ALIGN, Phase.ADVANCE)
    assert planner.look(estimate(tip)) is None


def test_a_needle_of_which_little_is_known_changes_no_plan() -> None:
    planner = Planner({'entry': PLAN.entry, 'target': PLAN.target}, GuidanceSettings(),
                      redirector=redirector())
    for _ in range(5):
        assert planner.look(estimate(np.array([0.012, 0.0, 0.012]), sigma=0.002)) is None


def test_without_a_way_the_plan_stays_as_it_was() -> None:
    planner = Planner({'entry': PLAN.entry, 'target': PLAN.target}, GuidanceSettings(),
                      redirector=redirector(0.006, 0.0, 0.006, radius=0.0055))
    path = planner.path
    found = [planner.look(estimate(np.array([0.014, 0.0, 0.004]))) for _ in range(2)][-1]
    assert found is not None
    assert (found.path is None) == (planner.path is path)
