from dataclasses import replace

import numpy as np
import pytest
from test_wires import phantom

from hybrid_guidance.calibration.gates import GateError
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.calibration.ultrasound_spatial import (
    PointViews,
    ProbeCalibration,
    WireViews,
    calibrate_point,
    calibrate_wires,
    point_errors,
    wire_errors,
)
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array
from hybrid_guidance.imaging.geometry import ImageGeometry
from hybrid_guidance.simulation.calibrations import Errors, random_pose, sweep_point, sweep_wires

SPACING, ORIGIN = (8.0e-5, 7.5e-5), (410.0, 0.0)
CORNERS = np.array([[100.0, 100.0], [700.0, 100.0], [700.0, 500.0], [100.0, 500.0]])


def mount(seed: int) -> Array:
    return random_pose(np.random.default_rng(100 + seed), 0.08)


def recorded(seed: int, seconds: float = 30.0, errors: Errors | None = None,
             delay: float = 0.0) -> WireViews:
    sweep = sweep_wires(np.random.default_rng(seed), phantom().wires, mount(0), SPACING, ORIGIN,
                        seconds, errors or Errors(), delay)
    return WireViews(sweep.pixels, sweep.times, Track(sweep.tracked_times, np.array(
        [rigid.inverse(pose) for pose in sweep.tracked])), phantom())


def off_truth(found: ProbeCalibration) -> float:
    truth = rigid.transform_points(
        mount(0), ImageGeometry(SPACING, ORIGIN).projection((1, 1)).back_project(CORNERS))
    return float(np.linalg.norm(found.points(CORNERS) - truth, axis=1).max())


def test_wires_give_plane_scale_and_delay_among_outliers() -> None:
    found = calibrate_wires(recorded(1, delay=0.05), ORIGIN)
    held = wire_errors(found, recorded(2, errors=Errors(outliers=0.0), delay=0.05))
    assert held.mean() < 0.6e-3
    assert off_truth(found) < 0.4e-3
    assert abs(found.delay - 0.05) < 0.015
    np.testing.assert_allclose(found.geometry.spacing, SPACING, rtol=0.005)
    assert found.inliers < found.samples


def test_a_given_scale_stays() -> None:
    found = calibrate_wires(recorded(1, 15.0), ORIGIN, spacing=SPACING, solve_delay=False)
    assert found.geometry.spacing == SPACING
    assert found.delay == 0.0


def test_a_probe_held_still_is_refused_and_told_how_to_turn() -> None:
    views = recorded(3, 15.0, Errors(outliers=0.0, rotation=0.0))
    middle = views.track.poses[0]
    still = Track(views.track.times, np.tile(middle, (len(views.track.times), 1, 1)))
    with pytest.raises(GateError, match=r'the probe turned too little.*record again'):
        calibrate_wires(replace(views, track=still), ORIGIN)


def test_two_images_of_wires_never_pass() -> None:
    with pytest.raises(GateError, match=r'2 usable images.*20 are needed'):
        calibrate_wires(recorded(4, 15.0).subset(np.array([3, 40])), ORIGIN)


def test_wires_all_in_one_row_do_not_determine_the_plane() -> None:
    views = recorded(5, 20.0, Errors(outliers=0.0))
    # Every spot squeezed onto one line: the tilt about it and the scale across are open.
    flat = views.pixels.copy()
    flat[..., 1] = 250.0
    with pytest.raises(GateError, match=r'do not determine|agree, at least'):
        calibrate_wires(replace(views, pixels=flat), ORIGIN)


def rough(seed: int) -> ProbeCalibration:
    random = np.random.default_rng(seed)
    pose = rigid.perturbed(mount(0), np.concatenate([random.normal(0.0, 0.01, 3),
                                                     random.normal(0.0, 0.15, 3)]))
    return ProbeCalibration(pose, ImageGeometry((7.7e-5, 7.7e-5), ORIGIN), np.eye(6), 0.0, 0.0, 0,
                            0, np.zeros(1))


def pointed(seed: int, count: int = 120, errors: Errors | None = None) -> PointViews:
    sweep = sweep_point(np.random.default_rng(seed), mount(0), SPACING, ORIGIN, count,
                        errors or Errors())
    return PointViews(sweep.pixels, sweep.times, Track(sweep.tracked_times, sweep.tracked))


def test_one_point_seen_from_all_sides_gives_plane_and_scale() -> None:
    views = pointed(6)
    found = calibrate_point(views, rough(1))
    assert off_truth(found) < 0.4e-3
    np.testing.assert_allclose(found.geometry.spacing, SPACING, rtol=0.005)
    assert np.median(point_errors(found, views)) < 0.8e-3


def test_a_point_seen_from_one_side_is_refused_with_the_motion_that_is_missing() -> None:
    views = pointed(7, errors=Errors(outliers=0.0))
    mean = views.track.poses[0] @ mount(0)
    poses = []
    for angle in np.linspace(-0.5, 0.5, len(views)):
        turn = rigid.rotation_from_vector(np.array([0.0, 0.0, angle]))
        poses.append(mean @ rigid.transform(turn) @ rigid.inverse(mount(0)))
    track = Track(views.track.times, np.array(poses))
    truth = replace(rough(1), transform=mount(0))
    with pytest.raises(GateError, match=r'its [xy] \(\w+\) and its [xy] \(\w+\) axis'):
        calibrate_point(replace(views, track=track), truth)
