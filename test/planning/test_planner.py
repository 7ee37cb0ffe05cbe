import numpy as np
import pytest

from hybrid_guidance.planning.approval import Approval
from hybrid_guidance.planning.guidance import GuidanceSettings
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.planning.planner import Planner

ENTRY, TARGET = np.array([0.0, 0.03, 0.04]), np.zeros(3)


def test_a_point_that_leaves_no_path_changes_nothing() -> None:
    planner = Planner({'entry': ENTRY, 'target': TARGET}, GuidanceSettings())
    guidance = planner.guidance
    with pytest.raises(PlanError):
        planner.move('target', ENTRY)
    assert planner.guidance is guidance
    assert np.array_equal(planner.points['target'], TARGET)


def test_a_moved_entry_is_a_new_path_and_computing_keeps_it_where_there_is_no_choice() -> None:
    planner = Planner({'entry': ENTRY, 'target': TARGET}, GuidanceSettings())
    planner.move('entry', 2.0 * ENTRY)
    assert planner.compute() is None
    assert planner.path.length == pytest.approx(0.1)


def test_where_there_is_no_plan_nothing_is_approved_until_there_is_one() -> None:
    approval = Approval(0.003)
    assert approval.answer(True) == (True, 'guiding')
    approval.refuse('too short')
    assert not approval.given
    assert approval.answer(True) == (False, 'nothing to approve: too short')
    assert not approval.given
    approval.renew('planned anew')
    assert approval.answer(True) == (True, 'guiding')
    assert approval.given


def test_a_person_takes_the_approval_back() -> None:
    approval = Approval(0.003)
    approval.answer(True)
    assert approval.answer(False) == (True, 'approval withdrawn; nothing moves')
    assert not approval.given
    assert 'withdrawn by plan/approve' in approval.why_not


def test_another_plan_takes_the_approval_with_it_and_says_why() -> None:
    approval = Approval(0.003)
    approval.answer(True)
    approval.renew('target moved')
    assert not approval.given
    assert 'target moved' in approval.why_not
