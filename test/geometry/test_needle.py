import numpy as np

from hybrid_guidance.geometry.needle import NeedleEstimate, shaft
from hybrid_guidance.geometry.rigid import pose_along


def test_shaft_runs_from_the_hub_to_the_tip() -> None:
    pose = pose_along(np.array([0.0, 0.0, 0.05]), np.array([0.0, 0.0, 1.0]))
    assert np.allclose(shaft(pose, 0.09), [[0, 0, -0.04], [0, 0, 0.05]])


def test_estimate_names_tip_and_direction_of_its_pose() -> None:
    pose = pose_along(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0]))
    estimate = NeedleEstimate(pose, np.eye(6))
    assert np.allclose(estimate.tip, [1, 2, 3])
    assert np.allclose(estimate.direction, np.array([0, 1, 1]) / np.sqrt(2))
