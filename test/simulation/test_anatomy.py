"""The digital patient against what its solids say, and against itself."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial import cKDTree

from hybrid_guidance.geometry.rigid import perturbed, transform_points
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.anatomy import (
    AnatomyError,
    Grid,
    Patient,
    _trabeculae,
    build_patient,
    build_structures,
)
from hybrid_guidance.simulation.tissues import Tissue


@pytest.fixture(scope='module')
def patient() -> Patient:
    return build_patient('lumbar', 1)


def voxel(patient: Patient, point: np.ndarray) -> tuple[int, int, int]:
    x, y, z = np.round((point - patient.grid.origin) / patient.grid.spacing).astype(int)
    return int(z), int(y), int(x)


def test_shapes_are_distances() -> None:
    """Walking along the gradient by the distance ends on the surface (to first order)."""
    rng = np.random.default_rng(3)
    solids = {
        'capsule': shapes.capsule(np.zeros(3), np.array([0.02, 0.01, 0.0]), 0.004),
        'box': shapes.box(np.zeros(3), np.array([0.01, 0.02, 0.005]), 0.002),
        'ellipsoid': shapes.ellipsoid(np.zeros(3), np.array([0.012, 0.01, 0.008])),
        'drum': shapes.drum(np.zeros(3), np.array([0.02, 0.019, 0.013]), 0.002),
        'superquadric': shapes.superquadric(np.zeros(3), np.array([0.012, 0.01, 0.008]), 3.0),
        'tube': shapes.tube(np.array([[0, 0, 0], [0.01, 0, 0.01], [0.01, 0.01, 0.02]]), 0.003),
    }
    for name, solid in solids.items():
        points = rng.uniform(solid.lower, solid.upper, (4000, 3))
        near = points[np.abs(solid.at(points)) < 0.001]
        step = 1e-5
        slopes = np.stack([(solid.at(near + step * axis) - solid.at(near - step * axis))
                           / (2 * step) for axis in np.eye(3)], axis=-1)
        assert np.median(np.linalg.norm(slopes, axis=-1)) == pytest.approx(1.0, abs=0.05), name
        assert np.all(solid.at(points) > -0.03), name


def test_capsule_distance_is_exact() -> None:
    solid = shapes.capsule(np.zeros(3), np.array([0.0, 0.0, 0.1]), 0.01)
    points = np.array([[0.03, 0.0, 0.05], [0.0, 0.0, 0.13], [0.0, 0.004, 0.05]])
    np.testing.assert_allclose(solid.at(points), [0.02, 0.02, -0.006], atol=1e-9)


def test_rods_measured_at_once_are_as_far_as_each_by_itself() -> None:
    rng = np.random.default_rng(5)
    pose = perturbed(np.eye(4), rng.normal(size=6))
    joints = rng.normal(scale=0.03, size=(6, 3))
    rods = [shapes.capsule(start, end, *rng.uniform(0.002, 0.008, 2))
            for start, end in pairwise(joints)]
    solid = shapes.placed(shapes.union(rods), pose, 1.3)
    points = rng.normal(scale=0.06, size=(50, 3)) + pose[:3, 3]
    one_by_one = np.min([shapes.placed(rod, pose, 1.3).distance(*points.T) for rod in rods],
                        axis=0)
    assert solid.rods is not None
    np.testing.assert_allclose(solid.at(points), one_by_one, atol=1e-12)


def test_what_is_not_made_of_rods_alone_is_measured_by_its_parts() -> None:
    rod = shapes.capsule(np.zeros(3), np.array([0.0, 0.0, 0.1]), 0.01)
    other = shapes.capsule(np.array([0.015, 0.0, 0.0]), np.array([0.015, 0.0, 0.1]), 0.01)
    ball = shapes.ellipsoid(np.array([0.03, 0.0, 0.0]), np.full(3, 0.01))
    between = np.array([0.0075, 0.008, 0.05])
    assert float(shapes.union([rod, ball]).at(ball.lower + 0.01)) < -0.009
    assert float(shapes.union([rod, other], 0.005).at(between)) < float(rod.at(between)) - 1e-4


def test_placing_a_solid_moves_and_scales_its_distances() -> None:
    solid = shapes.ellipsoid(np.zeros(3), np.full(3, 0.01))
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    pose[:3, 3] = (0.1, 0.2, 0.3)
    moved = shapes.placed(solid, pose, 2.0)
    point = transform_points(pose, np.array([0.05, 0.0, 0.0]))
    assert float(moved.at(point)) == pytest.approx(0.03, rel=1e-6)
    np.testing.assert_allclose(moved.upper - moved.lower, 0.04, rtol=1e-6)


def test_cut_takes_away_the_side_that_the_normal_points_to() -> None:
    ball = shapes.ellipsoid(np.zeros(3), np.full(3, 0.01))
    half = shapes.cut(ball, np.zeros(3), np.array([1.0, 0.0, 0.0]))
    assert float(half.at(np.array([0.004, 0.0, 0.0]))) == pytest.approx(0.004)
    assert float(half.at(np.array([-0.004, 0.0, 0.0]))) < 0.0


def test_superquadric_of_power_two_is_the_ellipsoid_and_a_high_one_nears_its_box() -> None:
    radii = np.array([0.012, 0.010, 0.008])
    points = np.random.default_rng(1).uniform(-0.016, 0.016, (500, 3))
    two = shapes.superquadric(np.zeros(3), radii, 2.0).at(points)
    assert np.array_equal(two < 0.0, shapes.ellipsoid(np.zeros(3), radii).at(points) < 0.0)
    high = shapes.superquadric(np.zeros(3), radii, 40.0)
    assert float(high.at(0.9 * radii)) < 0.0
    assert float(shapes.ellipsoid(np.zeros(3), radii).at(0.9 * radii)) > 0.0


def test_a_socket_is_carved_out_of_every_part_of_a_bone() -> None:
    bone = shapes.union([shapes.ellipsoid(np.zeros(3), np.full(3, 0.02)),
                         shapes.capsule(np.zeros(3), np.array([0.05, 0.0, 0.0]), 0.01)], 0.004)
    socket = shapes.carved(bone, np.array([0.0, 0.02, 0.0]), 0.008)
    assert float(socket.at(np.array([0.0, 0.016, 0.0]))) == pytest.approx(0.004, abs=0.0011)
    assert float(socket.at(np.array([0.0, -0.016, 0.0]))) < 0.0


@pytest.mark.parametrize(('region', 'point', 'tissue'), [
    ('hip', (0.0, 0.0, 0.0), Tissue.CANCELLOUS), ('hip', (-0.0101, -0.046, 0.0), Tissue.BLOOD),
    ('hip', (0.003, -0.0455, 0.0), Tissue.NERVE), ('hip', (0.0, -0.058, 0.0), Tissue.FAT),
    ('hip', (0.0, -0.070, 0.0), Tissue.AIR), ('shoulder', (0.0, 0.0, 0.0), Tissue.CANCELLOUS),
    ('shoulder', (0.008, -0.001, 0.0245), Tissue.LIGAMENT),
    ('shoulder', (0.040, 0.0, 0.0), Tissue.MUSCLE)])
def test_organs_of_hip_and_shoulder_are_where_anatomy_says(
        region: str, point: tuple[float, float, float], tissue: Tissue) -> None:
    found = mean_patient(region)
    assert found.labels[voxel(found, np.array(point))] == tissue


@pytest.mark.parametrize(('region', 'moving', 'fixed'), [
    ('hip', 'femur', 'pelvis'), ('shoulder', 'humerus', 'scapula')])
def test_joints_have_a_gap_all_round(region: str, moving: str, fixed: str) -> None:
    """No point is within 0.7 mm of both bones, and some point is within 3 mm of both."""
    solids = build_structures(region, 2)
    points = np.random.default_rng(0).uniform(-0.040, 0.040, (40000, 3))
    nearest = np.maximum(solids[moving].at(points), solids[fixed].at(points)).min()
    assert 0.0007 < nearest < 0.003


def test_fixed_point_keeps_the_anatomy_at_it_and_moves_the_rest() -> None:
    point = np.array([0.0, -0.0436, 0.0])
    near, far = [], []
    for seed in range(6):
        solids = build_structures('hip', seed, point)
        near.append(float(solids['femoral_artery'].at(point)))
        far.append(float(solids['femur'].at(np.array([0.06, 0.02, -0.03]))))
    assert np.ptp(near) < 0.0008
    assert np.ptp(far) > 0.001


def test_voxels_agree_with_the_solids_that_filled_them(patient: Patient) -> None:
    rng = np.random.default_rng(0)
    low = patient.grid.origin
    high = low + patient.grid.spacing * (np.array(patient.grid.shape[::-1]) - 1)
    points = rng.uniform(low, high, (20000, 3))
    x, y, z = np.round((points - low) / patient.grid.spacing).astype(int).T
    centres = low + patient.grid.spacing * np.stack([x, y, z], axis=-1)
    distance = patient.distance('bone', centres)
    bony = np.isin(patient.labels[z, y, x], (Tissue.CORTICAL, Tissue.CANCELLOUS))
    clear = np.abs(distance) > 0.0012  # bones meet bluntly in voxels and smoothly in no union
    assert np.mean(bony[clear] == (distance[clear] < 0.0)) > 0.9995
    assert np.all(patient.bone[z, y, x][distance > 0.001] == 0)
    assert np.all(patient.bone[z, y, x][distance < -0.0015] >= 254)


@pytest.mark.parametrize(('point', 'tissue'), [
    ((0.0, 0.0, 0.0), Tissue.CANCELLOUS), ((0.0, 0.027, 0.0), Tissue.FLUID),
    ((0.0, 0.001, -0.019), Tissue.DISC), ((0.040, 0.004, 0.010), Tissue.MUSCLE),
    ((0.045, 0.055, 0.0), Tissue.MUSCLE), ((0.030, 0.080, 0.0), Tissue.FAT),
    ((0.030, 0.095, 0.0), Tissue.AIR)])
def test_organs_are_where_anatomy_says(point: tuple[float, float, float],
                                       tissue: Tissue) -> None:
    mean = mean_patient()
    assert mean.labels[voxel(mean, np.array(point))] == tissue


_MEAN: dict[str, Patient] = {}


def mean_patient(region: str = 'lumbar') -> Patient:
    if region not in _MEAN:
        _MEAN[region] = build_patient(region, 0)
    return _MEAN[region]


def test_facet_joint_has_a_gap_between_two_bones(patient: Patient) -> None:
    """Along the line across the joint: L4's process, cartilage or ligament, L5's process."""
    joint = build_structures('lumbar', 1)['cartilage_L4_L5_left']
    centre = (joint.lower + joint.upper) / 2
    assert 0.0005 < float(patient.distance('L4', centre)) < 0.003
    assert 0.0005 < float(patient.distance('L5', centre)) < 0.003


def test_patients_differ_but_keep_the_target(patient: Patient) -> None:
    procedure = load_procedure('lumbar_facet_injection')
    other = build_structures('lumbar', 2)
    beside = np.array([0.044, 0.034, 0.040])
    assert abs(float(other['bone'].at(beside)) - float(patient.distance('bone', beside))) > 1e-4
    near = [float(solids['bone'].at(procedure.target))
            for solids in (patient.structures, other)]
    assert near[0] == pytest.approx(near[1], abs=3e-4)


def test_same_seed_builds_the_same_patient(patient: Patient) -> None:
    again = build_patient('lumbar', 1)
    assert np.array_equal(again.labels, patient.labels)
    assert np.array_equal(again.mineral, patient.mineral)


def test_a_seed_goes_on_meaning_the_patient_it_meant() -> None:
    """Recorded results name their seeds: what is added to a region must leave these as they are.

    The numbers are of the lumbar region as it was when it knew one procedure.
    """
    third = build_patient('lumbar', 3)
    assert zlib.crc32(third.bone.tobytes()) == 1004212949
    assert zlib.crc32(third.mineral.tobytes()) == 1120279143
    points = np.array([[0.0204, 0.04, -0.019], [0.03, 0.03, 0.03], [0.0, 0.05, -0.03]])
    np.testing.assert_allclose(third.distance('bone', points),
                               [0.00223793, 0.008344722, -0.001310578], atol=2e-9)
    seventh = build_structures('lumbar', 7)
    point = np.array([0.01, 0.03, 0.02])
    found = [float(seventh[name].at(point)) for name in (
        'L3', 'L5', 'sacrum', 'aorta', 'root_L4_left', 'disc_L4_L5', 'skin')]
    np.testing.assert_allclose(found, [
        0.002584928, 0.031125279, 0.064197389, 0.051718547, 0.016429536, 0.033802109,
        -0.055849059], atol=2e-9)


def test_unknown_region_and_structure_say_what_exists(patient: Patient) -> None:
    with pytest.raises(AnatomyError, match='lumbar'):
        build_patient('elbow', 0)
    with pytest.raises(AnatomyError, match='dural_sac'):
        patient.distance('appendix', np.zeros(3))


def test_grid_window_covers_its_box() -> None:
    grid = Grid.covering(np.zeros(3), np.full(3, 0.01), 0.001)
    assert grid.shape == (10, 10, 10)
    rows = grid.window(np.full(3, 0.0031), np.full(3, 0.0049))
    z = grid.origin[2] + grid.spacing * np.arange(10)[rows[0]]
    assert z[0] <= 0.0031
    assert z[-1] >= 0.0049


@pytest.mark.parametrize('name', ['lumbar_transforaminal_epidural', 'hip_injection',
                                  'shoulder_injection'])
def test_the_field_of_bone_never_tells_more_than_the_distance_to_its_surface(name: str) -> None:
    """The surface is where the field changes sign, on the edges of a grid round the target."""
    procedure = load_procedure(name)
    bone = build_structures(procedure.region, 1, procedure.target)['bone']
    step = 0.0005
    axis = np.arange(-0.010, 0.010, step)
    places = procedure.target + np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), axis=-1)
    field, surface = bone.at(places), []
    for along in range(3):
        first, second = np.delete(field, -1, along), np.delete(field, 0, along)
        rows = (first < 0.0) != (second < 0.0)
        share = first[rows] / (first[rows] - second[rows])
        surface.append(np.delete(places, -1, along)[rows] + share[:, None] * step
                       * np.eye(3)[along])
    exact, _ = cKDTree(np.concatenate(surface)).query(places)
    # What is nearer to the box than to its surface could have a surface outside.
    told = (field > 0.0) & (exact < 0.010 - np.abs(places - procedure.target).max(axis=-1))
    assert told.sum() > 500
    # Points of a surface are further than the surface, at most half an edge's diagonal beside it.
    assert (field - exact)[told].max() < 0.0001


def test_spongy_bone_has_no_seam_where_its_tile_repeats() -> None:
    tile = _trabeculae(3)
    for axis in range(3):
        layers = np.moveaxis(tile, axis, 0)
        within = np.abs(np.diff(layers, axis=0)).mean()
        assert np.abs(layers[0] - layers[-1]).mean() < 1.2 * within
