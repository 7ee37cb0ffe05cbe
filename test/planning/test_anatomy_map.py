import numpy as np
import open3d
import pytest

from hybrid_guidance.planning.anatomy_map import (
    AnatomyMap,
    LabelSource,
    MapError,
    MeshSource,
    build_map,
)
from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.anatomy import Grid

BAND = 0.012
LOWER, UPPER = np.full(3, -0.016), np.full(3, 0.016)
ROD = shapes.capsule(np.array([-0.004, 0.001, -0.030]), np.array([0.006, -0.002, 0.030]), 0.002)
EXACT = 3e-4


def places(count: int = 20000) -> np.ndarray:
    return np.random.default_rng(3).uniform(LOWER + 0.001, UPPER - 0.001, (count, 3))


def outside_error(anatomy: AnatomyMap, name: str, exact: np.ndarray) -> float:
    """Largest error where there is a distance to tell: outside, and well within the band."""
    told = (exact > 0.0) & (exact < BAND - 0.001)
    assert told.sum() > 1000
    return float(np.abs(anatomy.at(name, places())[told] - exact[told]).max())


def test_distance_to_a_rod_is_that_of_its_closed_form() -> None:
    anatomy = build_map({'rod': ROD}, LOWER, UPPER, band=BAND)
    assert outside_error(anatomy, 'rod', ROD.at(places())) < EXACT


def test_a_field_that_is_right_only_at_its_surface_does_not_reach_the_map() -> None:
    """Far too steep outside, as where fields are formed of formulas; the surface is the rod's."""
    def steep(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        away = ROD.distance(x, y, z)
        return away * (1.5 + 200.0 * np.maximum(away, 0.0))
    solid = shapes.Shape(steep, ROD.lower, ROD.upper)
    anatomy = build_map({'rod': solid}, LOWER, UPPER, band=BAND)
    assert outside_error(anatomy, 'rod', ROD.at(places())) < EXACT


def test_parts_that_melt_far_apart_are_sampled_together() -> None:
    """Wide blends reach far beyond the boxes of the parts; the whole field knows the signs."""
    parts = [shapes.capsule(np.array([-0.02, 0, z]), np.array([0.02, 0, z]), 0.003)
             for z in (-0.006, 0.006)]
    melted = shapes.union(parts, 0.014)
    anatomy = build_map({'melted': melted}, LOWER, UPPER, band=BAND)
    sign = np.sign(melted.at(places()))
    assert np.mean(np.sign(anatomy.at('melted', places())) == sign) > 0.99


def test_many_absent_parts_do_not_melt_into_one() -> None:
    """Many parts side by side melt; where none is near, nothing must appear."""
    parts = [shapes.capsule(np.array([0.001 * k, 0, 0.012]), np.array([0.001 * k, 0, 0.02]),
                            0.002) for k in range(-10, 10)]
    anatomy = build_map({'row': shapes.union(parts, 0.006)}, LOWER, UPPER, band=BAND)
    below = places()[places()[:, 2] < 0.0]
    assert np.all(anatomy.at('row', below) > 0.005)


def test_labels_are_exact_to_a_part_of_a_voxel() -> None:
    grid = Grid.covering(LOWER - 0.004, UPPER + 0.004, 0.0007)
    affine = np.diag([0.0007] * 3 + [1.0])
    affine[:3, 3] = grid.origin
    mask = np.broadcast_to(ROD.distance(*grid.axes()) < 0.0, grid.shape)
    anatomy = build_map({'rod': LabelSource(mask, affine)}, LOWER, UPPER, band=BAND)
    # The labels themselves are off by up to half a voxel's diagonal where the rod is thin.
    assert outside_error(anatomy, 'rod', ROD.at(places())) < 0.0006
    exact = ROD.at(places())
    told = (exact > 0.0) & (exact < BAND - 0.001)
    error = anatomy.at('rod', places())[told] - exact[told]
    assert abs(np.median(error)) < 0.0001


def test_turned_labels_lie_where_their_affine_says() -> None:
    """A box of labels, turned by 30 degrees about z and moved, against its own corners."""
    turn = np.radians(30.0)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= 0.0005
    affine[:3, 3] = (0.002, -0.003, 0.001)
    mask = np.zeros((8, 12, 16), bool)
    mask[1:7, 1:11, 1:15] = True
    anatomy = build_map({'box': LabelSource(mask, affine)}, LOWER, UPPER, band=BAND)
    local = (places() - affine[:3, 3]) @ affine[:3, :3] / 0.0005**2
    half = np.array([7.0, 5.0, 3.0])
    excess = np.abs(local - [7.5, 5.5, 3.5]) - half
    exact = 0.0005 * (np.linalg.norm(np.maximum(excess, 0.0), axis=1)
                      + np.minimum(excess.max(axis=1), 0.0))
    # Labels in steps: at edges and corners half a voxel's diagonal (0.43 mm) each way.
    assert outside_error(anatomy, 'box', exact) < 0.00087
    # Before the middle of a face there is no step.
    faced = (np.sum(excess > -2.0, axis=1) == 1) & (exact > 0.0) & (exact < BAND - 0.001)
    assert faced.sum() > 200
    assert np.abs(anatomy.at('box', places())[faced] - exact[faced]).max() < EXACT


def test_a_body_that_a_scan_cuts_off_has_no_skin_there() -> None:
    """Half a space of labels: its only surface is the plane x = 0, also beside the scan."""
    affine = np.diag([0.0008, 0.0008, 0.0008, 1.0])
    affine[:3, 3] = -0.0096 - 0.0004
    mask = np.zeros((25, 25, 25), bool)
    mask[:, :, :13] = True
    for angle in (0.0, 0.5):
        turned = np.eye(4)
        turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        anatomy = build_map({'skin': LabelSource(mask, turned @ affine)}, LOWER, UPPER, band=BAND)
        exact = places() @ turned[:3, 0]
        told = np.abs(exact) < BAND - 0.001
        assert np.abs(anatomy.at('skin', places())[told] - exact[told]).max() < EXACT


def test_mesh_agrees_with_open3d() -> None:
    mesh = open3d.geometry.TriangleMesh.create_torus(0.009, 0.003, 60, 40)
    vertices, triangles = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(open3d.core.Tensor.from_numpy(np.float32(1e3 * vertices)),
                        open3d.core.Tensor.from_numpy(np.uint32(triangles)))
    exact = 1e-3 * scene.compute_signed_distance(
        open3d.core.Tensor.from_numpy(np.float32(1e3 * places()))).numpy()
    anatomy = build_map({'ring': MeshSource(vertices, triangles)}, LOWER, UPPER, band=BAND)
    assert outside_error(anatomy, 'ring', exact) < EXACT
    deep = exact < -0.001
    assert deep.any()
    assert np.all(anatomy.at('ring', places()[deep]) < 0.0)


def test_surface_outside_the_region_counts() -> None:
    beside = shapes.ellipsoid(np.array([0.024, 0.0, 0.0]), np.full(3, 0.005))
    anatomy = build_map({'beside': beside}, LOWER, UPPER, band=BAND)
    point = np.array([0.013, 0.0, 0.0])
    assert anatomy.at('beside', point) == pytest.approx(0.006, abs=EXACT)


def test_beyond_the_band_and_beside_the_grid_it_never_overstates() -> None:
    anatomy = build_map({'rod': ROD}, LOWER, UPPER, band=BAND)
    wide = np.random.default_rng(4).uniform(-0.04, 0.04, (5000, 3))
    assert np.all(anatomy.at('rod', wide) < np.maximum(ROD.at(wide), 0.0) + EXACT)
    assert np.max(anatomy.at('rod', places())) == pytest.approx(BAND)


def test_says_what_is_not_there() -> None:
    anatomy = build_map({'rod': ROD}, LOWER, UPPER, band=BAND)
    with pytest.raises(MapError, match=r'"vein".*rod'):
        anatomy.at('vein', np.zeros(3))
    with pytest.raises(MapError, match='empty'):
        build_map({'rod': ROD}, UPPER, LOWER)
    with pytest.raises(MapError, match='no voxel'):
        build_map({'none': LabelSource(np.zeros((3, 3, 3)), np.eye(4))}, LOWER, UPPER)
