import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import is_rigid
from hybrid_guidance.planning.path import Path, PlanError

PATH = Path(np.array([0.0, 0.03, 0.04]), np.array([0.0, 0.0, 0.0]))


def test_plan_frame_has_its_origin_at_the_target_and_z_from_the_entry() -> None:
    assert PATH.length == pytest.approx(0.05)
    assert is_rigid(PATH.patient_T_plan)
    assert np.allclose(PATH.patient_T_plan[:3, 2], [0.0, -0.6, -0.8])
    assert np.allclose(PATH.patient_T_plan[:3, 3], PATH.target)


def test_deviation_is_lateral_and_depth_still_to_go() -> None:
    aside = np.array([0.002, 0.0, 0.0])
    x, y, z = PATH.deviation(PATH.entry + 0.02 * PATH.direction + aside)
    assert np.hypot(x, y) == pytest.approx(0.002)
    assert z == pytest.approx(-0.03)


def test_poses_lie_on_the_path_and_look_along_it() -> None:
    pose = PATH.pose_at(-0.01)
    assert np.allclose(pose[:3, 3], PATH.entry - 0.01 * PATH.direction)
    assert np.allclose(pose[:3, 2], PATH.direction)


def test_waypoints_reach_from_entry_to_target_in_small_steps() -> None:
    points = np.array([pose[:3, 3] for pose in PATH.waypoints(0.004)])
    assert np.allclose(points[0], PATH.entry)
    assert np.allclose(points[-1], PATH.target)
    assert np.max(np.linalg.norm(np.diff(points, axis=0), axis=1)) <= 0.004 + 1e-12


@pytest.mark.parametrize(('entry', 'words'), [
    ([0.0, 0.0, 0.0005], '1 mm'), ([np.nan, 0.0, 0.0], 'finite')])
def test_impossible_path_is_refused_in_words(entry: list[float], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Path(np.array(entry), np.zeros(3))
