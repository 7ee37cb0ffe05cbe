"""Bone surface: closed-form solids with known noise, the digital patient, and what must fail."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import chi2

from hybrid_guidance.detection.bone_surface import BoneSurfaceDetector
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.result import RegistrationError, kept
from hybrid_guidance.registration.surface import (
    BoneField,
    Cloud,
    Glimpse,
    register_surface,
    swept,
)
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import ultrasound_renderer
from hybrid_guidance.simulation.shapes import box, ellipsoid, union

BUMPS = union([ellipsoid([-0.02, 0.0, 0.0], [0.012, 0.010, 0.015]),
               ellipsoid([0.018, 0.003, 0.012], [0.010, 0.014, 0.008]),
               ellipsoid([0.010, 0.0, -0.02], [0.014, 0.008, 0.009])])
REACH = np.array([0.05, 0.03, 0.05])
TRUTH = transform(rotation_from_vector(np.array([0.3, -0.2, 0.5])), np.array([0.1, 0.2, -0.05]))
TARGET = np.array([0.005, -0.01, 0.0])


def from_above(shape, random, count: int, noise: float, half: float = 0.035) -> Cloud:
    """Return points of a solid as beams along -y meet it first, in ``fixed``, by ray marching."""
    start = np.stack([random.uniform(-half, half, 4 * count), np.full(4 * count, 0.029),
                      random.uniform(-half, half, 4 * count)], axis=1)
    for _ in range(60):
        start[:, 1] -= 0.7 * shape.at(start)
    hit = start[np.abs(shape.at(start)) < 1e-5][:count]
    hit = hit + noise * random.normal(size=hit.shape)
    beams = np.broadcast_to(TRUTH[:3, :3] @ [0.0, -1.0, 0.0], hit.shape)
    return Cloud(transform_points(TRUTH, hit), beams, np.ones(len(hit)))


def off(shift, turn) -> np.ndarray:
    """Return a start that is shifted and turned about the target."""
    rotation = rotation_from_vector(np.radians(turn))
    return TRUTH @ transform(rotation, TARGET - rotation @ TARGET + np.asarray(shift))


def miss(result, truth, target) -> np.ndarray:
    return transform_points(result.transform, target) - transform_points(truth, target)


@pytest.fixture(scope='module')
def bumps() -> BoneField:
    return BoneField.sampled(BUMPS.at, -REACH, REACH)


def test_distance_and_slope_are_the_solids(bumps) -> None:
    random = np.random.default_rng(0)
    points = random.uniform(-0.03, 0.03, (400, 3)) * [1.0, 0.5, 1.0]
    points = points[np.abs(BUMPS.at(points)) < 0.004]
    value, slope = bumps(points)
    numeric = np.stack([BUMPS.at(points + step) - BUMPS.at(points - step)
                        for step in 1e-4 * np.eye(3)], axis=1)
    numeric /= np.linalg.norm(numeric, axis=1, keepdims=True)
    assert np.median(np.abs(value - BUMPS.at(points))) < 3e-5
    assert np.median(np.einsum('ij,ij->i', slope, numeric)) > 0.998


@pytest.mark.parametrize('seed', range(4))
def test_offset_start_comes_home(bumps, seed: int) -> None:
    random = np.random.default_rng([seed, 1])
    cloud = from_above(BUMPS, random, 500, 0.0003)
    result = register_surface(cloud, bumps, off([0.006, -0.005, 0.005], [6, -5, 5]), TARGET)
    assert result.accepted, result.verdict
    assert np.linalg.norm(miss(result, TRUTH, TARGET)) < 0.0004


def test_covariance_covers_the_errors(bumps) -> None:
    """Independent noise is the best case; the stated covariance must not be below it."""
    squares = []
    for seed in range(12):
        cloud = from_above(BUMPS, np.random.default_rng([seed, 2]), 300, 0.0005)
        result = register_surface(cloud, bumps, TRUTH, TARGET, starts=1)
        error = miss(result, TRUTH, TARGET)
        squares.append(error @ np.linalg.solve(result.target_covariance, error))
    assert np.sum(squares) < chi2.ppf(0.995, 3 * 12)


def test_bone_of_a_coarse_ct_is_held_to_what_the_ct_resolves(bumps) -> None:
    """Its surface is off by 0.9 mm here and there: good enough for what it is known to be."""
    random = np.random.default_rng(6)
    waves = gaussian_filter(random.normal(size=bumps.values.shape), 4.0)
    rough = replace(bumps, values=bumps.values + 0.0009 * waves / waves.std())
    coarse = replace(rough, deviation=np.full(3, 0.0009))
    cloud = from_above(BUMPS, random, 600, 0.0005)
    result = register_surface(cloud, coarse, off([0.005, 0.004, -0.005], [5, -4, 5]), TARGET)
    assert result.accepted, result.verdict
    assert np.linalg.norm(miss(result, TRUTH, TARGET)) < 0.0015
    assert not register_surface(cloud, rough, TRUTH, TARGET).accepted


def test_bone_that_is_too_thick_everywhere_is_in_the_covariance(bumps) -> None:
    cloud = from_above(BUMPS, np.random.default_rng(7), 400, 0.0003)
    thick = replace(bumps, values=bumps.values - 0.0007)
    for deviation, honest in ((0.0, False), (0.0009, True)):
        result = register_surface(cloud, replace(thick, deviation=np.full(3, deviation)), TRUTH,
                                  TARGET, starts=1, common=0.0001)
        error = miss(result, TRUTH, TARGET)
        square = float(error @ np.linalg.solve(result.target_covariance, error))
        assert (square < chi2.ppf(0.95, 3)) == honest, square


def test_exchanged_sides_are_noticed_where_bone_tells_them_apart() -> None:
    """Two knobs beside a ridge, and the right one is the larger."""
    uneven = union([ellipsoid([0.0, 0.004, 0.0], [0.004, 0.008, 0.012]),
                    ellipsoid([-0.02, 0.0, 0.0], [0.008, 0.008, 0.012]),
                    ellipsoid([0.02, 0.002, 0.002], [0.010, 0.008, 0.010])])
    field = BoneField.sampled(uneven.at, -REACH, REACH)
    cloud = from_above(uneven, np.random.default_rng(8), 500, 0.0003)
    right = register_surface(cloud, field, TRUTH, TARGET)
    assert right.accepted
    assert 'alike' not in right.verdict
    wrong = register_surface(cloud, field.mirrored(0.0), TRUTH, TARGET)
    assert not wrong.accepted
    assert 'left and right exchanged fits better' in wrong.verdict


def test_sides_that_look_alike_are_named(spine) -> None:
    cloud, field, target = spine
    assert 'check the side' in register_surface(cloud, field, np.eye(4), target).verdict


def test_flat_bone_is_refused_and_names_what_is_free() -> None:
    plate = box([0.0, 0.0, 0.0], [0.2, 0.01, 0.2], 0.002)
    cloud = from_above(plate, np.random.default_rng(3), 400, 0.0003)
    field = BoneField.sampled(plate.at, -REACH, REACH)
    result = register_surface(cloud, field, TRUTH, TARGET, starts=4)
    assert not result.accepted
    assert 'steep' in result.verdict
    assert abs(result.free @ TRUTH[:3, 1]) < 0.05, 'across the plate it is known'


def test_other_bone_is_refused(bumps) -> None:
    """Negative control: a cloud of a solid that the CT does not show."""
    other = union([box([0.0, 0.0, 0.0], [0.03, 0.004, 0.006], 0.002),
                   box([0.0, 0.0, 0.02], [0.006, 0.012, 0.006], 0.002)])
    cloud = from_above(other, np.random.default_rng(4), 400, 0.0003)
    result = register_surface(cloud, bumps, TRUTH, TARGET)
    assert not result.accepted
    assert result.probability < 0.051


def test_points_on_the_far_side_do_not_count(bumps) -> None:
    """The same points, said to be seen from below: no beam could have reached them."""
    cloud = from_above(BUMPS, np.random.default_rng(5), 400, 0.0003)
    wrong = Cloud(cloud.points, -cloud.beams, cloud.weights)
    result = register_surface(wrong, bumps, TRUTH, TARGET, starts=8)
    assert not result.accepted


def test_curved_probe_looks_away_from_its_centre() -> None:
    lens = Projection.orthographic((0.0002, 0.0002), (320.0, 0.0), (640, 480))
    place = transform(rotation_from_vector(np.array([0.0, 0.0, 0.3])), np.array([0.1, 0.0, 0.0]))
    pixels = np.stack([np.linspace(50, 590, 200), np.linspace(200, 300, 200)], axis=1)
    cloud = swept([Glimpse.seen(pixels, np.ones(200), lens, place, 0.06)], cell=0.0005)
    local = transform_points(inverse(place), cloud.points)
    centre = np.array([0.0, -0.06, 0.0])
    expected = (local - centre) / np.linalg.norm(local - centre, axis=1, keepdims=True)
    assert np.allclose(cloud.beams @ place[:3, :3], expected, atol=0.01)


def test_sweep_without_bone_says_what_to_do() -> None:
    lens = Projection.orthographic((0.0002, 0.0002), (320.0, 0.0), (640, 480))
    empty = Glimpse.seen(np.zeros((0, 2)), np.zeros(0), lens, np.eye(4))
    with pytest.raises(RegistrationError, match='sweep slowly'):
        swept([empty])
    with pytest.raises(RegistrationError, match='calibrate'):
        Glimpse.seen(np.zeros((0, 2)), np.zeros(0), Projection.uncalibrated((640, 480)),
                     np.eye(4))


@pytest.fixture(scope='module')
def spine():
    """A sweep over the digital patient, its bone, and the target: fixed is moving."""
    procedure = load_procedure('lumbar_facet_injection')
    patient = build_patient('lumbar', 11, procedure.target)
    renderer, detector = ultrasound_renderer(procedure, patient, 11), BoneSurfaceDetector()
    base, glimpses = procedure.patient_T_ultrasound(), []
    for side in (-0.02, 0.02):
        for along in np.arange(-0.03, 0.031, 0.006):
            pose = transform(base[:3, :3], np.array([side, base[1, 3], base[2, 3] + along]))
            found = detector(Frame(renderer.render(pose), 0, renderer.projection))
            glimpses.append(Glimpse.seen(*found, renderer.projection, pose, renderer.probe.radius))
    middle = np.array([0.0, *procedure.target[1:]])
    reach = np.array([0.06, 0.04, 0.07])
    field = BoneField.sampled(patient.structures['bone'].at, middle - reach, middle + reach, 0.0015)
    return swept(glimpses), field, procedure.target


def test_sweep_finds_the_spine_of_the_patient(spine) -> None:
    cloud, field, target = spine
    turn = rotation_from_vector(np.radians([5.0, -5.0, 6.0]))
    start = transform(turn, target - turn @ target + [0.005, -0.004, 0.007])
    result = register_surface(cloud, field, start, target, starts=16)
    assert result.accepted, result.verdict
    assert np.linalg.norm(miss(result, np.eye(4), target)) < 0.0015


def test_vertebra_next_door_does_not_replace_a_good_registration(spine) -> None:
    """Negative control: started one vertebra off, and left no way back."""
    cloud, field, target = spine
    good = register_surface(cloud, field, np.eye(4), target, starts=1)
    wrong = register_surface(cloud, field, transform(None, np.array([0.0, 0.0, 0.036])), target,
                             starts=1)
    assert np.linalg.norm(miss(wrong, np.eye(4), target)) > 0.01
    assert not wrong.accepted
    assert kept(good, wrong) is good
