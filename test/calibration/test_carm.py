import numpy as np
import pytest

from hybrid_guidance.calibration.beads import find_beads, match_beads
from hybrid_guidance.calibration.carm import BeadView, calibrate_carm, locate_probe
from hybrid_guidance.calibration.gates import GateError
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array
from hybrid_guidance.simulation.calibrations import (
    Errors,
    bead_image,
    bead_pixels,
    random_pose,
    scatter_beads,
)

CAMERA = np.array([[5400.0, 0.0, 530.0], [0.0, 5400.0, 505.0], [0.0, 0.0, 1.0]])
DISTORTION = np.array([-0.3, 0.0, 0.0, 0.0, 0.0])
SIZE = (1024, 1024)


def phantom(seed: int = 1) -> Array:
    return scatter_beads(np.random.default_rng(seed), 28, np.full(3, 0.09), 0.008)


def views(seed: int, tilt: float = 0.35, count: int = 10,
          errors: Errors | None = None) -> list[BeadView]:
    random, beads = np.random.default_rng(seed), phantom()
    poses = [rigid.transform(rigid.rotation_from_vector(random.normal(0.0, tilt, 3)),
                             np.array([*random.normal(0.0, 0.005, 2), 0.75]))
             for _ in range(count)]
    return [BeadView(beads, bead_pixels(random, beads, pose, CAMERA,
                                        errors or Errors(pixel=0.1), DISTORTION))
            for pose in poses]


def test_intrinsics_and_distortion_are_found_among_wrong_matches() -> None:
    found = calibrate_carm(views(2), SIZE, 5400.0 * 1.03)
    assert abs(found.camera.focal[0] / 5400.0 - 1.0) < 0.005
    assert found.held_out < 0.3
    assert found.model.startswith('k1')
    assert abs(found.camera.distortion[0] + 0.3) < 0.1
    assert found.inliers < found.samples


def test_focal_length_and_first_pose_are_as_well_known_as_is_said() -> None:
    """NEES inside its 95 % band; without the focal length's share of the depth it is far out."""
    focal, nees = [], []
    for seed in range(12):
        random, beads = np.random.default_rng(seed), phantom()
        poses = [rigid.transform(rigid.rotation_from_vector(random.normal(0.0, 0.35, 3)),
                                 np.array([*random.normal(0.0, 0.005, 2), 0.75]))
                 for _ in range(6)]
        found = calibrate_carm([BeadView(beads, bead_pixels(
            random, beads, pose, CAMERA, Errors(pixel=0.1, outliers=0.0), DISTORTION))
            for pose in poses], SIZE, 5400.0)
        offset = np.concatenate([
            found.poses[0][:3, 3] - poses[0][:3, 3],
            rigid.vector_from_rotation(found.poses[0][:3, :3] @ poses[0][:3, :3].T)])
        nees.append(offset @ np.linalg.solve(found.covariance, offset))
        focal.append((found.camera.focal[0] - 5400.0) / found.focal_deviation)
    half = 1.96 * np.sqrt(2.0 * 6.0 / len(nees))
    assert 6.0 - half < np.mean(nees) < 6.0 + half
    assert 0.7 < np.sqrt(np.mean(np.square(focal))) < 1.35


def test_views_from_one_side_do_not_tell_focal_length_from_distance() -> None:
    with pytest.raises(GateError, match=r'turned too little|tilt the phantom'):
        calibrate_carm(views(3, tilt=0.01), SIZE, 5400.0)


def test_a_list_of_beads_in_the_wrong_order_is_refused() -> None:
    shuffled = [BeadView(view.beads[::-1], view.pixels) for view in views(4, count=6)]
    with pytest.raises(GateError, match='check the list of beads'):
        calibrate_carm(shuffled, SIZE, 5400.0)


def test_two_views_never_pass() -> None:
    with pytest.raises(GateError, match='2 usable views'):
        calibrate_carm(views(5, count=2), SIZE, 5400.0)


def test_beads_are_found_to_a_tenth_of_a_pixel_and_told_apart_without_a_first_guess() -> None:
    random, beads = np.random.default_rng(6), phantom()
    pose = rigid.transform(random_pose(random)[:3, :3], np.array([0.004, -0.003, 0.75]))
    truth = bead_pixels(random, beads, pose, CAMERA, Errors(pixel=0.0, outliers=0.0))
    shown = truth[3:]
    clutter = random.uniform(150.0, 850.0, (3, 2))
    image = bead_image(random, np.vstack([shown, clutter]), 5.0, SIZE)
    spots = find_beads(image, 5.0)
    gaps = np.linalg.norm(spots[:, None] - shown, axis=-1).min(axis=0)
    # Beads whose shadows touch are no discs any more.
    assert np.mean(gaps < 0.1) > 0.85
    match = match_beads(spots, beads, CAMERA)
    assert match is not None
    right = np.linalg.norm(truth[match.beads] - spots[match.spots], axis=1) < 3.0
    assert right.mean() > 0.95
    np.testing.assert_allclose(match.pose[:3, :3], pose[:3, :3], atol=0.01)


def located(seed: int, errors: Errors, off: float = 0.001) -> tuple[Array, Array]:
    """Return offset from the truth and stated covariance; the intrinsics are a little off."""
    random = np.random.default_rng(seed)
    beads = scatter_beads(random, 14, np.array([0.05, 0.04, 0.06]), 0.006)
    pose = rigid.transform(random_pose(random)[:3, :3], np.array([0.02, -0.01, 0.7]))
    believed = CAMERA.copy()
    believed[[0, 1], [0, 1]] += random.normal(0.0, off * 5400.0)
    believed[:2, 2] += random.normal(0.0, 2.0, 2)
    found = locate_probe(BeadView(beads, bead_pixels(random, beads, pose, CAMERA, errors)),
                         believed, focal_deviation=off * 5400.0, centre_deviation=2.0)
    offset = np.concatenate([found.transform[:3, 3] - pose[:3, 3], rigid.vector_from_rotation(
        found.transform[:3, :3] @ pose[:3, :3].T)])
    return offset, found.covariance


def test_covariance_of_a_probe_is_honest_across_and_along_the_beam() -> None:
    """NEES inside its 95 % band; a covariance that forgot the focal length would be far out."""
    found = [located(seed, Errors(pixel=0.3)) for seed in range(60)]
    across = max(np.hypot(*offset[:2]) for offset, _ in found)
    assert across < 1e-3
    nees = np.array([offset @ np.linalg.solve(covariance, offset) for offset, covariance in found])
    half = 1.96 * np.sqrt(2.0 * 6.0 / len(nees))
    assert 6.0 - half < nees.mean() < 6.0 + half
    along = np.array([offset[2]**2 / covariance[2, 2] for offset, covariance in found])
    assert 0.6 < along.mean() < 1.6
    assert all(covariance[2, 2] > 4.0 * covariance[0, 0] for _, covariance in found)


def test_a_probe_that_stands_just_as_the_c_arm_is_located_like_any_other() -> None:
    beads = scatter_beads(np.random.default_rng(3), 12, np.full(3, 0.05), 0.006)
    pose = rigid.transform(np.eye(3), np.array([0.01, 0.0, 0.7]))
    found = locate_probe(BeadView(beads, bead_pixels(
        np.random.default_rng(3), beads, pose, CAMERA, Errors(pixel=0.0, outliers=0.0))), CAMERA)
    np.testing.assert_allclose(found.transform, pose, atol=1e-6)


def test_few_beads_of_a_probe_are_refused() -> None:
    random = np.random.default_rng(1)
    beads = scatter_beads(random, 5, np.full(3, 0.05), 0.006)
    pose = rigid.transform(np.eye(3), np.array([0.0, 0.0, 0.7]))
    with pytest.raises(GateError, match='5 usable beads of the probe, 7 are needed'):
        locate_probe(BeadView(beads, bead_pixels(random, beads, pose, CAMERA, Errors())), CAMERA)


def test_beads_on_one_line_give_no_pose() -> None:
    random = np.random.default_rng(2)
    beads = np.outer(np.linspace(-0.03, 0.03, 10), [1.0, 0.2, 0.1])
    pose = rigid.transform(np.eye(3), np.array([0.0, 0.0, 0.7]))
    with pytest.raises(GateError, match=r'do not determine|give no pose|agree'):
        locate_probe(BeadView(beads, bead_pixels(
            random, beads, pose, CAMERA, Errors(pixel=0.05, outliers=0.0))), CAMERA)
