from dataclasses import replace

import numpy as np
import pytest
from wire_phantom import phantom

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
from hybrid_guidance.simulation.calibrations import (
    Errors,
    random_pose,
    smooth,
    spoiled,
    sweep_point,
    sweep_wires,
)

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


def test_a_turned_registration_is_found_and_only_a_turned_one() -> None:
    views, held = recorded(12), recorded(13, 15.0, Errors(outliers=0.0))
    middle = phantom().wires.reshape(-1, 3).mean(axis=0)
    turn = np.deg2rad([0.3, -0.4, 1.5])
    rotation = rigid.rotation_from_vector(turn)
    wrong = rigid.transform(rotation, middle - rotation @ middle)

    def misregistered(right: WireViews) -> WireViews:
        return replace(right, track=Track(right.track.times, right.track.poses @ wrong))
    found = calibrate_wires(misregistered(views), ORIGIN, solve_delay=False)
    np.testing.assert_allclose(found.turn, -turn, atol=np.deg2rad(0.5))
    kept = calibrate_wires(misregistered(views), ORIGIN, turn=False, solve_delay=False)
    assert off_truth(found) < 0.6 * off_truth(kept)
    assert wire_errors(found, misregistered(held)).mean() < 0.6e-3
    assert found.left_out_kept == kept.left_out
    assert not np.any(calibrate_wires(views, ORIGIN, solve_delay=False).turn)


def test_a_registration_that_is_turned_very_much_is_refused() -> None:
    views, middle = recorded(15, 15.0), phantom().wires.reshape(-1, 3).mean(axis=0)
    rotation = rigid.rotation_from_vector(np.deg2rad([0.0, 0.0, 6.0]))
    wrong = rigid.transform(rotation, middle - rotation @ middle)
    with pytest.raises(GateError, match=r'turned by [4-7]\.\d° .* register the phantom again'):
        calibrate_wires(replace(views, track=Track(
            views.track.times, views.track.poses @ wrong)), ORIGIN, solve_delay=False)


def test_what_the_registration_is_not_known_by_goes_into_the_covariance() -> None:
    views = recorded(14, 15.0)
    plain, told = (calibrate_wires(views, ORIGIN, turn=False, registration=known,
                                    solve_delay=False)
                   for known in (None, np.diag([1e-6, 0.0, 0.0, 0.0, 0.0, 0.0])))
    shift = rigid.transform(translation=np.array([1e-3, 0.0, 0.0]))
    moved = calibrate_wires(replace(views, track=Track(
        views.track.times, views.track.poses @ shift)), ORIGIN, turn=False, solve_delay=False)
    offset = moved.transform[:3, 3] - plain.transform[:3, 3]
    assert 0.7e-3 < np.linalg.norm(offset) < 1.2e-3
    np.testing.assert_allclose(told.covariance[:3, :3] - plain.covariance[:3, :3],
                               np.outer(offset, offset), atol=0.1e-6)


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


def pointed(seed: int, count: int = 120, errors: Errors | None = None) -> PointViews:
    sweep = sweep_point(np.random.default_rng(seed), mount(0), SPACING, ORIGIN, count,
                        errors or Errors())
    return PointViews(sweep.pixels, sweep.times, Track(sweep.tracked_times, sweep.tracked))


def test_one_point_seen_from_all_sides_gives_plane_and_scale_without_a_guess() -> None:
    views = pointed(6)
    # Poses taken one by one: there is no motion that could show a delay.
    found = calibrate_point(views, ORIGIN, solve_delay=False)
    assert off_truth(found) < 0.4e-3
    np.testing.assert_allclose(found.geometry.spacing, SPACING, rtol=0.005)
    assert np.median(point_errors(found, views)) < 0.8e-3
    held = pointed(16, errors=Errors(outliers=0.0))
    # The point of another recording is elsewhere: what must hold is that it stays.
    poses, _ = held.track.at(held.times)
    world = np.einsum('nij,nj->ni', poses[:, :3, :3], found.points(held.pixels)) + poses[:, :3, 3]
    assert np.linalg.norm(world - np.median(world, axis=0), axis=1).mean() < 0.8e-3


def test_a_delay_is_found_where_the_hand_wanders_about_the_point() -> None:
    random, times = np.random.default_rng(11), np.arange(0.0, 30.0, 0.05)
    waves = smooth(random, times, 5, 6.0)
    pixels = np.array([400.0, 350.0]) + waves[:, :2] * [120.0, 90.0]
    poses = []
    for pixel, wave in zip(pixels, waves[:, 2:], strict=True):
        turn = rigid.rotation_from_vector(np.deg2rad(18.0) * wave)
        local = np.array([*(pixel - ORIGIN) * SPACING, 0.0])
        poses.append(rigid.transform(turn, -turn @ local) @ rigid.inverse(mount(0)))
    track = Track(times, spoiled(random, np.array(poses), Errors()))
    views = PointViews(pixels + random.normal(0.0, 0.2, pixels.shape), times + 0.06, track)
    found = calibrate_point(views.subset(np.arange(40, 520, 4)), ORIGIN)
    assert abs(found.delay - 0.06) < 0.01
    assert off_truth(found) < 0.5e-3


def test_of_a_point_outliers_are_left_out_and_a_given_scale_stays() -> None:
    views = pointed(8, errors=Errors(outliers=0.15))
    found = calibrate_point(views, ORIGIN, spacing=SPACING, solve_delay=False)
    assert found.geometry.spacing == SPACING
    assert found.delay == 0.0
    assert off_truth(found) < 0.6e-3
    # Of the images and of the poses 15 % each are wrong: 72 % are good.
    assert 0.62 * found.samples < found.inliers < 0.82 * found.samples


def test_a_point_seen_from_one_side_is_refused_with_the_motion_that_is_missing() -> None:
    views = pointed(7, errors=Errors(outliers=0.0))
    mean = views.track.poses[0]
    poses = [mean @ rigid.transform(rigid.rotation_from_vector(np.array([0.0, 0.0, angle])))
             for angle in np.linspace(-0.5, 0.5, len(views))]
    track = Track(views.track.times, np.array(poses))
    with pytest.raises(GateError, match=r"its marker's [xy] and its marker's [xy] axis"):
        calibrate_point(replace(views, track=track), ORIGIN)


def test_two_images_of_a_point_never_pass() -> None:
    with pytest.raises(GateError, match=r'2 usable images.*30 are needed'):
        calibrate_point(pointed(9).subset(np.array([3, 40])), ORIGIN)


def test_a_point_that_stays_in_one_place_of_the_image_does_not_determine_the_plane() -> None:
    views = pointed(10, errors=Errors(outliers=0.0, pixel=0.0, position=0.0, rotation=0.0,
                                      bias=0.0))
    pixel = np.array([400.0, 300.0])
    local = mount(0) @ rigid.transform(translation=np.array([*(pixel - ORIGIN) * SPACING, 0.0]))
    # The same rotations, about that pixel.
    poses = []
    for pose in views.track.poses:
        turned = pose.copy()
        turned[:3, 3] = -pose[:3, :3] @ local[:3, 3]
        poses.append(turned)
    track = Track(views.track.times, np.array(poses))
    with pytest.raises(GateError, match='do not determine'):
        calibrate_point(replace(views, track=track, pixels=np.tile(pixel, (len(views), 1))
                                + np.random.default_rng(1).normal(0.0, 0.2, (len(views), 2))),
                        ORIGIN)
