"""X-rays on a CT: geometry against a projected ball, the digital patient, and what must fail."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_angle,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.imaging.volume import Volume
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.ct import aligned
from hybrid_guidance.registration.projection import Acceptance, register_views
from hybrid_guidance.registration.result import RegistrationError, kept
from hybrid_guidance.registration.search import Search
from hybrid_guidance.registration.view import View, shadow
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import procedure_needle, standard_views, xray_renderer
from hybrid_guidance.simulation.scanner import scanned

PROCEDURE = load_procedure('lumbar_facet_injection')
TARGET = PROCEDURE.target
SEED = 31


def bone_of(seed: int) -> Bone:
    made = scanned(build_patient('lumbar', seed, TARGET), seed)
    return Bone.from_hounsfield(made.volume, made.origin, made.spacing)


@pytest.fixture(scope='module')
def bone() -> Bone:
    return bone_of(SEED)


@pytest.fixture(scope='module')
def views() -> list[View]:
    """Return the anteroposterior and the lateral X-ray, noisy and with a needle."""
    patient, needle, result = build_patient('lumbar', SEED, TARGET), procedure_needle(PROCEDURE), []
    for name in ('fluoroscopy_ap', 'fluoroscopy_lateral'):
        own = standard_views(PROCEDURE)[name]
        pose, projection = own.patient_T_fluoroscopy(), own.fluoroscopy_projection()
        line = projection.pixels(transform_points(inverse(pose), needle.shaft))
        image = xray_renderer(own, patient, SEED).render(pose, (needle,))
        result.append(View(image, projection, pose, shadow(
            (projection.width, projection.height), [line], 40.0)))
    return result


QUICK = Search(starts=12, kept=3)


def off(shift, turn) -> np.ndarray:
    """Return a start that is shifted and turned about the target."""
    rotation = rotation_from_vector(np.radians(turn))
    return transform(rotation, TARGET - rotation @ TARGET + np.asarray(shift))


def miss(found) -> np.ndarray:
    return transform_points(found.transform, TARGET) - TARGET


def test_two_views_bring_a_start_that_is_far_off_to_the_target(bone: Bone, views) -> None:
    found = register_views(views, bone, off([0.010, -0.008, 0.012], [6.0, 4.0, -5.0]), TARGET)
    assert found.accepted, found.verdict
    assert np.linalg.norm(miss(found)) < 0.0008
    assert np.degrees(rotation_angle(found.transform[:3, :3])) < 0.9
    error = miss(found)
    assert error @ np.linalg.solve(found.target_covariance, error) < chi2.ppf(0.999, 3)


def test_one_view_is_sure_across_its_rays_and_says_how_unsure_along_them(bone, views) -> None:
    found = register_views(views[1:], bone, off([0.006, 0.004, -0.007], [3.0, -3.0, 4.0]), TARGET)
    ray = views[1].fixed_T_sensor[:3, 2]
    along = float(miss(found) @ ray)
    sigma = float(np.sqrt(ray @ found.target_covariance @ ray))
    across = np.cross(ray, [0.0, 0.0, 1.0])
    assert found.across_only, found.verdict
    assert np.linalg.norm(miss(found) - along * ray) < 0.001
    assert abs(along) < 2.6 * sigma
    assert sigma > 2.0 * float(np.sqrt(across @ found.target_covariance @ across))


def test_one_view_of_somebody_else_is_refused_though_depth_makes_up_for_size(views) -> None:
    found = register_views(views[:1], bone_of(SEED + 1), off([0.002, 0.0, 0.002], [1.0, 0.0, 1.0]),
                           TARGET, search=QUICK)
    assert not found.accepted
    assert not found.across_only
    assert 'whose CT' in found.verdict
    assert found.probability < 0.051


def test_one_view_whose_depth_is_too_open_for_the_limit_is_right_across_only(bone, views) -> None:
    found = register_views(views[:1], bone, off([0.002, 0.0, 0.002], [1.0, 0.0, 1.0]), TARGET,
                           search=QUICK, acceptance=Acceptance(limit=0.0015))
    assert found.across_only
    assert not found.accepted
    assert 'across the rays' in found.verdict
    assert 'another side' in found.verdict
    assert kept(None, found) is None
    ray = views[0].fixed_T_sensor[:3, 2]
    assert np.linalg.norm(miss(found) - (miss(found) @ ray) * ray) < 0.001
    assert abs(miss(found) @ ray) < 2.6 * found.depth_deviation


def test_one_vertebra_off_is_refused(bone: Bone, views) -> None:
    found = register_views(views, bone, off([0.0, 0.0, 0.035], [2.0, 0.0, 3.0]), TARGET,
                           search=QUICK)
    assert np.linalg.norm(miss(found)) < 0.003 or not found.accepted


def test_a_c_arm_that_is_told_six_degrees_wrong_is_refused(bone: Bone, views) -> None:
    turn = off([0.0, 0.0, 0.0], [0.0, 4.0, 4.5])
    wrong = replace(views[1], fixed_T_sensor=turn @ views[1].fixed_T_sensor)
    found = register_views([views[0], wrong], bone, off([0.003, 0.0, 0.003], [1.0, 0.0, 1.0]),
                           TARGET, search=QUICK)
    assert not found.accepted
    assert 'do not agree' in found.verdict


def test_an_x_ray_that_shows_nothing_is_refused(bone: Bone, views) -> None:
    blank = replace(views[0], image=np.full_like(views[0].image, 30000))
    assert not register_views([blank], bone, np.eye(4), TARGET, search=QUICK).accepted


def test_a_patient_beside_the_picture_is_named(bone: Bone, views) -> None:
    aside = transform(translation=0.4 * views[0].fixed_T_sensor[:3, 0])
    beside = replace(views[0], fixed_T_sensor=aside @ views[0].fixed_T_sensor)
    with pytest.raises(RegistrationError, match='nothing like the bone'):
        register_views([beside], bone, np.eye(4), TARGET, search=QUICK)


def test_a_voxel_is_drawn_where_its_place_projects_at_every_resolution() -> None:
    """Closed form: a ball's shadow is centred on the projection of its centre (nearly: 0.1 px)."""
    origin, spacing = np.array([-0.05, -0.03, -0.06]), np.array([0.0008, 0.0011, 0.0025])
    centre = np.array([0.0123, -0.0041, 0.0077])
    z, y, x = (start + step * np.arange(count) for start, step, count in zip(
        origin[::-1], spacing[::-1], (50, 60, 120), strict=True))
    inside = ((x - centre[0])**2 + (y[:, None] - centre[1])**2
              + (z[:, None, None] - centre[2])**2) < 0.012**2
    bone = Bone.from_hounsfield(np.where(inside, 900, 0), origin, spacing)
    assert np.allclose(bone.centre, centre, atol=2e-4)
    projection = Projection.perspective((800.0, 800.0), (127.5, 127.5), (256, 256))
    sensor = transform(rotation_from_vector(np.array([0.4, 0.1, -0.2])), np.zeros(3))
    sensor[:3, 3] = centre - 0.6 * sensor[:3, 2] + 0.01 * sensor[:3, 0]
    expected = projection.pixels(transform_points(inverse(sensor), centre))
    for stack in bone.stacks:
        picture = stack.integrate(projection.matrix, sensor, (256, 256))
        rows, columns = np.nonzero(picture > 0.0)
        weight = picture[rows, columns]
        found = [np.average(columns, weights=weight), np.average(rows, weights=weight)]
        assert found == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize('turn', [
    np.diag([-1.0, -1.0, 1.0]), np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    rotation_from_vector(np.array([0.05, -0.1, 0.2]))])
def test_a_volume_keeps_its_place_however_its_file_is_turned(turn: np.ndarray) -> None:
    """Closed form: values that are a linear function of the place, whatever the axes."""
    patient_T_voxel = transform(turn @ np.diag([0.001, 0.0012, 0.002]), np.array([0.1, -0.2, 0.3]))
    index = np.stack(np.meshgrid(*(np.arange(count) for count in (9, 8, 7)), indexing='ij'), -1)
    slope = np.array([1000.0, 2000.0, -500.0])
    stored = transform_points(patient_T_voxel, index) @ slope
    values, origin, spacing = aligned(Volume(stored.transpose(2, 1, 0), patient_T_voxel))
    z, y, x = np.nonzero(values > stored.min() + 1e-9)
    expected = (origin + spacing * np.stack([x, y, z], axis=-1)) @ slope
    inside = np.linalg.inv(patient_T_voxel) @ np.vstack(
        [(origin + spacing * np.stack([x, y, z], axis=-1)).T, np.ones(len(x))])
    kept = np.all((inside[:3].T > 0.01) & (inside[:3].T < [7.99, 6.99, 5.99]), axis=1)
    assert kept.sum() > 100
    assert np.allclose(values[z, y, x][kept], expected[kept], atol=1e-6 * 2000)


def test_a_ct_without_bone_and_an_x_ray_without_calibration_are_named(bone, views) -> None:
    with pytest.raises(RegistrationError, match='no bone'):
        Bone.from_hounsfield(np.full((20, 20, 20), 40), np.zeros(3), np.full(3, 0.001))
    blind = replace(views[0], projection=Projection.uncalibrated((1024, 1024)))
    with pytest.raises(RegistrationError, match='calibrate the C-arm'):
        register_views([blind], bone, np.eye(4), TARGET)
