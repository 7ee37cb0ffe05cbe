import cv2
import numpy as np
import pytest

from hybrid_guidance.calibration import hand_eye
from hybrid_guidance.calibration.gates import GateError
from hybrid_guidance.calibration.hand_eye import calibrate_hand_eye, park_martin
from hybrid_guidance.geometry import rigid
from hybrid_guidance.simulation.calibrations import Errors, random_pose, robot_poses

NOISE = Errors(0.3e-3)


def off(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return (float(np.linalg.norm(found[:3, 3] - truth[:3, 3])),
            rigid.rotation_angle(found[:3, :3] @ truth[:3, :3].T))


def test_sensor_on_a_flange_is_found_among_outliers() -> None:
    for seed in range(2):
        random = np.random.default_rng(seed)
        truth = random_pose(random, 0.1)
        found = calibrate_hand_eye(*robot_poses(random, 60, truth, NOISE))
        distance, angle = off(found.transform, truth)
        assert distance < 0.5e-3
        assert angle < np.deg2rad(0.3)
        assert found.held_out == min(found.ranking.values())


def test_own_solver_is_exact_without_noise_and_agrees_with_opencv() -> None:
    random = np.random.default_rng(7)
    truth = random_pose(random, 0.1)
    hands, seen = robot_poses(random, 15, truth, Errors(0.0, 0.0, 0.0, 0.0, 0.0))
    distance, angle = off(park_martin(hands, seen), truth)
    # The simulated robot itself is good to 0.1 mm and 0.03°.
    assert distance < 0.3e-3
    assert angle < np.deg2rad(0.1)
    if hasattr(cv2, 'calibrateHandEye'):
        theirs = hand_eye._opencv(cv2.CALIB_HAND_EYE_PARK)(hands, seen)
        distance, angle = off(park_martin(hands, seen), theirs)
        assert distance < 1e-4
        assert angle < 1e-3


def test_it_works_where_opencv_has_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV 5 has none."""
    monkeypatch.delattr(cv2, 'calibrateHandEye', raising=False)
    random = np.random.default_rng(2)
    truth = random_pose(random, 0.1)
    found = calibrate_hand_eye(*robot_poses(random, 60, truth, NOISE))
    assert 'own' in found.method
    assert off(found.transform, truth)[0] < 0.5e-3


def test_two_poses_of_the_robot_never_pass() -> None:
    random = np.random.default_rng(3)
    with pytest.raises(GateError, match='2 usable poses of the robot'):
        calibrate_hand_eye(*robot_poses(random, 2, random_pose(random, 0.1), NOISE))


def test_a_flange_that_turns_about_one_axis_is_told_which_motion_is_missing() -> None:
    random = np.random.default_rng(4)
    truth, target = random_pose(random, 0.1), random_pose(random)
    hands = np.array([rigid.transform(rigid.rotation_from_vector(np.array([0.0, 0.0, angle])),
                                      random.normal(0.0, 0.1, 3))
                      for angle in np.linspace(-0.6, 0.6, 30)])
    seen = np.array([rigid.inverse(hand @ truth) @ target for hand in hands])
    with pytest.raises(GateError, match='missing is rotation about its x or its y axis'):
        calibrate_hand_eye(hands, seen)


def test_a_target_that_was_moved_half_way_is_refused() -> None:
    random = np.random.default_rng(5)
    hands, seen = robot_poses(random, 60, random_pose(random, 0.1), NOISE)
    seen[30:, :3, 3] += [0.02, 0.0, 0.0]
    with pytest.raises(GateError, match=r'agree, at least|held-out error'):
        calibrate_hand_eye(hands, seen)
