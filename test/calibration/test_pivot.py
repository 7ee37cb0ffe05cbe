import numpy as np
import pytest

from hybrid_guidance.calibration.gates import GateError
from hybrid_guidance.calibration.pivot import (
    calibrate_pivot,
    pointer_covariance,
    pointer_pose,
    register_phantom,
)
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry import rigid
from hybrid_guidance.simulation.calibrations import Errors, pivoting, random_pose

TIP = np.array([0.13, 0.008, -0.003])
LANDMARKS = np.array([[104.3, 5, 20], [104.3, 45, 20], [104.3, 45, 0], [104.3, -5, 0],
                      [-34.3, 45, 15], [-34.3, -5, 20], [-34.3, -5, 0]]) * 1e-3


def test_tip_and_axis_are_found_among_outliers() -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        tip = calibrate_pivot(pivoting(random, 400, TIP, Errors()))
        second = calibrate_pivot(pivoting(random, 400, 0.5 * TIP, Errors()))
        assert np.linalg.norm(tip.tip - TIP) < 0.5e-3
        pose = pointer_pose(tip.tip, second.tip)
        assert rigid.angle_between(pose[:3, 2], TIP) < np.deg2rad(0.5)
        assert tip.inliers < tip.samples


def test_covariance_of_the_axis_is_that_of_its_two_points() -> None:
    """Monte Carlo: draw both points, look at the spread of the direction."""
    random = np.random.default_rng(3)
    tip = calibrate_pivot(pivoting(random, 300, TIP, Errors()))
    second = calibrate_pivot(pivoting(random, 300, 0.3 * TIP, Errors()))
    stated = pointer_covariance(tip, second)
    drawn = [random.multivariate_normal(tip.tip, tip.covariance)
             - random.multivariate_normal(second.tip, second.covariance) for _ in range(4000)]
    shaft = tip.tip - second.tip
    turns = np.array([np.cross(shaft, one) / (shaft @ shaft) for one in drawn])
    np.testing.assert_allclose(np.cov(turns.T), stated[3:, 3:], rtol=0.15,
                               atol=0.1 * np.trace(stated[3:, 3:]))


def test_two_poses_never_pass() -> None:
    poses = pivoting(np.random.default_rng(1), 2, TIP, Errors(outliers=0.0))
    with pytest.raises(GateError, match=r'2 usable poses.*record for longer'):
        calibrate_pivot(poses)


def test_a_pointer_that_turns_about_one_axis_only_is_refused_and_told_how_to_turn() -> None:
    base = rigid.transform(np.eye(3), np.array([0.0, 0.0, 0.1]))
    poses = []
    for angle in np.linspace(-0.5, 0.5, 200):
        rotation = rigid.rotation_from_vector(np.array([0.0, angle, 0.0]))
        poses.append(rigid.transform(rotation, -rotation @ TIP) @ base)
    with pytest.raises(GateError, match='missing is rotation about its x or its z axis'):
        calibrate_pivot(np.array(poses))


def test_a_pivot_that_slips_is_refused() -> None:
    random = np.random.default_rng(2)
    poses = pivoting(random, 400, TIP, Errors(outliers=0.0))
    poses[:, :3, 3] += np.linspace(-1.0, 1.0, 400)[:, None] * [4e-3, 0.0, 0.0]
    with pytest.raises(GateError, match=r'keep the tip seated|look for a loose marker'):
        calibrate_pivot(poses)


def touching(seed: int, tip: np.ndarray, order: np.ndarray = LANDMARKS) -> tuple[Track, np.ndarray]:
    """Return a track of a pointer that touches landmarks, and ``reference_T_phantom``."""
    random = np.random.default_rng(seed)
    truth = random_pose(random)
    poses, places = [], [order[0] + [0.0, 0.0, 0.1], *order, order[-1] + [0.0, 0.0, 0.1]]
    for number, place in enumerate(places):
        # From the side on which the landmark is, as a hand would.
        outward = np.array([0.0, np.pi / 2 * np.sign(place[0]), 0.0])
        for turn in np.linspace(-0.4, 0.4, 45):
            tilt = np.array([turn, np.sqrt(max(0.16 - turn**2, 0.0)), 0.0])
            rotation = (truth[:3, :3] @ rigid.rotation_from_vector(outward)
                        @ rigid.rotation_from_vector(tilt))
            at = rigid.transform_points(truth, place) + random.normal(0.0, 0.2e-3, 3)
            poses.append(rigid.transform(rotation, at - rotation @ tip))
        if number + 1 < len(places):
            for share in np.linspace(0.0, 1.0, 12):
                moved = rigid.transform_points(truth, place + share * (places[number + 1] - place))
                poses.append(rigid.transform(poses[-1][:3, :3],
                                             moved - poses[-1][:3, :3] @ tip))
    return Track(np.arange(len(poses)) / 15.0, np.array(poses)), truth


def test_phantom_is_found_where_it_is_though_the_pointer_rested_elsewhere_too() -> None:
    track, truth = touching(1, TIP)
    found = register_phantom(track, TIP, LANDMARKS)
    assert found.errors.mean() < 0.2e-3
    np.testing.assert_allclose(found.transform[:3, 3], truth[:3, 3], atol=0.3e-3)


def test_a_tip_that_is_off_is_adjusted_and_only_then() -> None:
    track, truth = touching(2, TIP)
    wrong = TIP + [0.8e-3, -0.3e-3, 0.4e-3]
    kept = register_phantom(track, wrong, LANDMARKS, refine=False)
    found = register_phantom(track, wrong, LANDMARKS)
    assert found.refined
    assert found.held_out < 0.8 * kept.held_out
    # Along the pointer both sides tell; across, in y, all touches are alike and nothing does.
    assert abs(found.tip[0] - TIP[0]) < 0.7 * abs(wrong[0] - TIP[0])
    assert abs(found.tip[1] - wrong[1]) < 0.3e-3
    centre = LANDMARKS.mean(axis=0)
    assert np.linalg.norm(rigid.transform_points(found.transform, centre)
                          - rigid.transform_points(truth, centre)) < 0.5e-3


def test_landmarks_in_the_wrong_order_are_refused() -> None:
    track, _ = touching(3, TIP, LANDMARKS[[1, 0, 2, 3, 4, 5, 6]])
    with pytest.raises(GateError, match='check the order'):
        register_phantom(track, TIP, LANDMARKS)


def test_landmarks_on_one_line_are_refused() -> None:
    line = np.outer(np.arange(5.0), [0.02, 0.0, 0.0])
    track, _ = touching(4, TIP)
    with pytest.raises(GateError, match='on one line'):
        register_phantom(track, TIP, line)


def test_a_landmark_that_was_left_out_is_missed() -> None:
    track, _ = touching(5, TIP, LANDMARKS[:4])
    with pytest.raises(GateError, match='touch them in their order'):
        register_phantom(track, TIP, LANDMARKS)
