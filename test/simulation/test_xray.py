"""X-ray against closed forms: chords, projection, photon statistics, dose."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, pose_along, transform_points
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import Grid, Patient, build_patient, empty_patient
from hybrid_guidance.simulation.instruments import Marker, Needle
from hybrid_guidance.simulation.render import procedure_needle, xray_renderer
from hybrid_guidance.simulation.tissues import Tissue
from hybrid_guidance.simulation.xray import _PITCH, STEEL, Technique, XrayRenderer

SIZE = 256
PROJECTION = Projection.perspective((SIZE / 0.3, SIZE / 0.3), ((SIZE - 1) / 2,) * 2, (SIZE, SIZE))
CLEAN = Technique(blur=0.0, scatter_to_primary=0.0, equalisation=0.0, noise=False,
                  electronic_noise=0.0, full_scale_kerma=60e-6)


def grid(count: int = 100, spacing: float = 0.001) -> Grid:
    half = count * spacing / 2
    return Grid.covering(np.full(3, -half), np.full(3, half), spacing)


def look(direction: np.ndarray, distance: float = 0.6) -> np.ndarray:
    unit = direction / np.linalg.norm(direction)
    return pose_along(-distance * unit, unit)


def rays(pose: np.ndarray, step: int) -> np.ndarray:
    """Unit directions in ``patient`` of the integrated rays, (H, W, 3)."""
    pixels = np.stack(np.meshgrid(np.arange(SIZE // step), np.arange(SIZE // step)), -1) * step
    points = PROJECTION.back_project(pixels + (step - 1) / 2, 1.0)
    directions = points @ pose[:3, :3].T
    return np.asarray(directions / np.linalg.norm(directions, axis=-1, keepdims=True))


def coverage(distance: np.ndarray, spacing: float) -> np.ndarray:
    return np.asarray(255.0 * np.clip(0.5 - distance / spacing, 0, 1) + 0.5, np.uint8)


@pytest.mark.parametrize('direction', [(0.0, 0.0, 1.0), (0.2, 1.0, 0.1), (-0.76, 0.64, 0.0)])
@pytest.mark.parametrize('step', [1, 2])
def test_sphere_attenuates_like_its_chord(direction: tuple[float, float, float],
                                          step: int) -> None:
    """A ray at distance d from the centre of a ball of radius r crosses 2 sqrt(r² - d²)."""
    cells, radius = grid(), 0.040
    x, y, z = cells.axes()
    ball = coverage(np.sqrt(x**2 + y**2 + z**2) - radius, cells.spacing)
    renderer = XrayRenderer(empty_patient(cells, mineral=ball), PROJECTION, CLEAN,
                            anatomy_step=step)
    pose = look(np.array(direction))
    _, bone = renderer.line_integrals(pose)
    beside = np.linalg.norm(np.cross(rays(pose, step), -pose[:3, 3]), axis=-1)
    inner = beside < 0.8 * radius
    chord = 2.0 * np.sqrt(radius**2 - beside[inner] ** 2)
    error = bone[inner] / chord - 1.0
    assert np.sqrt(np.mean(error**2)) < 0.005
    assert abs(np.mean(error)) < 0.002
    # Outside the ball: half a voxel belongs to it, and bilinear interpolation spreads that over the
    # diagonal of one. The common plane is resampled by four cubic samples each way: no further.
    touched = (0.5 + np.sqrt(2.0)) * cells.spacing
    nearest, farthest = 0.6 - cells.spacing * 50, 0.6 + cells.spacing * 50
    pitch = max(_PITCH * cells.spacing, nearest * step * 0.3 / SIZE) * farthest / nearest
    cubic = 2.0 * np.sqrt(2.0) * pitch
    assert np.max(bone[beside > radius + touched + cubic], initial=0.0) == 0.0
    # Nearer, what is left of a cubic kernel that may not fall below zero: the two corners towards
    # the ball, each the square of its side lobe (OpenCV's A = -0.75: 4/27 of that), times a chord.
    deepest = 2.0 * np.sqrt((radius + touched) ** 2 - (radius + touched - cubic) ** 2)
    halo = 2.0 * (0.75 * 4.0 / 27.0) ** 2 * deepest
    assert np.max(bone[beside > radius + touched], initial=0.0) < halo


def test_slab_of_muscle_attenuates_like_its_thickness() -> None:
    cells = grid()
    labels = np.zeros(cells.shape, np.uint8)
    labels[30:70] = Tissue.MUSCLE
    renderer = XrayRenderer(empty_patient(cells, labels=labels), PROJECTION, CLEAN)
    pose = look(np.array([0.0, 0.0, 1.0]))
    soft, _ = renderer.line_integrals(pose)
    middle = slice(SIZE // 4 - 20, SIZE // 4 + 20)
    cosine = np.abs(rays(pose, 2)[middle, middle] @ (0, 0, 1))
    np.testing.assert_allclose(soft[middle, middle], 1.04 * 0.040 / cosine, rtol=0.005)


def test_cylinder_of_bone_attenuates_like_its_chord() -> None:
    cells, radius = grid(), 0.030
    x, y, _ = cells.axes()
    distance = np.broadcast_to(np.hypot(x, y) - radius, cells.shape)
    renderer = XrayRenderer(empty_patient(cells, mineral=coverage(distance, cells.spacing)),
                            PROJECTION, CLEAN)
    pose = look(np.array([0.3, 1.0, 0.0]))
    _, bone = renderer.line_integrals(pose)
    direction = rays(pose, 2)
    source = pose[:3, 3]
    a = np.hypot(direction[..., 0], direction[..., 1])
    beside = np.abs(source[0] * direction[..., 1] - source[1] * direction[..., 0]) / a
    chord = 2.0 * np.sqrt(np.maximum(radius**2 - beside**2, 0.0)) / a
    inner = (beside < 0.8 * radius) & (np.abs(direction[..., 2]) < 0.05)
    assert np.sqrt(np.mean((bone[inner] / chord[inner] - 1.0) ** 2)) < 0.005


def test_body_goes_on_without_a_seam_outside_the_voxels(patient: Patient) -> None:
    """Rays that graze a face of the volume cross as much as their neighbours."""
    procedure = load_procedure('lumbar_facet_injection')
    renderer = XrayRenderer(patient, procedure.fluoroscopy_projection(), CLEAN)
    pose = np.eye(4)
    pose[:3, :3] = np.column_stack([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    pose[:3, 3] = (0.060, -0.600, 0.0)
    soft, _ = renderer.line_integrals(pose)
    edge = int(511.5 + 3413.3 * 0.031 / 0.65) // 2
    strip = soft[200:280, edge - 60:edge + 60].mean(axis=0)
    assert np.max(np.abs(np.diff(strip))) < 0.003
    # Nor is there a line along the upper face, 73 mm above the source, before bowel and muscle.
    top = int(511.5 - 3413.3 * 0.073 / 0.6) // 2
    columns = slice(int(511.5 - 3413.3 * 0.010 / 0.6) // 2, int(511.5) // 2)
    across = soft[max(top - 40, 0):top + 60, columns].mean(axis=1)
    rows = np.arange(len(across))
    line = np.polyval(np.polyfit(rows, across, 2), rows)
    assert np.max(np.abs(across - line)) < 0.003


def empty(technique: Technique = CLEAN, seed: int = 0) -> XrayRenderer:
    return XrayRenderer(empty_patient(grid(10)), PROJECTION, technique, seed)


def test_steel_rod_attenuates_like_its_chord_at_every_energy() -> None:
    """Monochromatic shares exp(-µ·chord) add up; pixels here are 1/40 of the rod."""
    projection = Projection.perspective((4000.0, 4000.0), (64.0, 64.0), (129, 129))
    renderer = XrayRenderer(empty_patient(grid(10)), projection, CLEAN)
    pose = look(np.array([0.0, 0.0, 1.0]))
    air = renderer.expected(pose).copy()
    rod = Needle(pose_along(np.array([0.05, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])), 0.006, 0.1,
                 hub_diameter=0.001, hub_length=0.001)
    pose[:3, :3] = np.eye(3)
    ratio = renderer.expected(pose, [rod])[:, 64] / air[:, 64]
    rows = 64 + np.arange(-14, 15)
    down = projection.back_project(np.stack([np.full(29, 64.0), rows], axis=-1), 1.0)
    sine = down[:, 1] / np.linalg.norm(down, axis=1)
    chord = 2.0 * np.sqrt(0.003**2 - (0.6 * sine) ** 2)
    expected = sum(weight * np.exp(-steel * chord)
                   for weight, steel in zip(renderer._weights, STEEL, strict=True))
    np.testing.assert_allclose(ratio[rows], expected, rtol=0.005)


def test_hollow_rod_lets_more_through() -> None:
    renderer = empty()
    pose = look(np.array([0.0, 0.0, 1.0]))
    axis = pose_along(np.array([0.05, 0.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    solid = renderer.expected(pose, [Needle(axis, 0.008, 0.1)])[128, 128].copy()
    hollow = renderer.expected(pose, [Needle(axis, 0.008, 0.1, bore=0.006)])[128, 128]
    assert hollow > 2.0 * solid


def test_needle_along_the_beam_attenuates_like_its_length() -> None:
    """The view down the barrel: a dot as dark as the needle is long."""
    renderer = empty()
    pose = look(np.array([0.0, 0.0, 1.0]))
    air = renderer.expected(pose).copy()
    rod = Needle(pose_along(np.zeros(3), np.array([0.0, 0.0, 1.0])), 0.010, 0.002,
                 hub_diameter=0.0001, hub_length=0.0001)
    ratio = renderer.expected(pose, [rod])[127:129, 127:129] / air[127:129, 127:129]
    expected = sum(weight * np.exp(-steel * 0.002)
                   for weight, steel in zip(renderer._weights, STEEL, strict=True))
    np.testing.assert_allclose(ratio, expected, rtol=0.01)


@pytest.mark.parametrize('roll', [0.0, 0.7])
def test_steel_balls_darken_their_chords_where_the_matrix_says(roll: float) -> None:
    """Turned detector, principal point off centre, pixels twice as high as wide; mixed to scale."""
    wide = Projection.perspective((6000.0, 3000.0), (230.0, 90.0), (401, 203))
    renderer = XrayRenderer(empty_patient(grid(10)), wide, replace(
        CLEAN, detector_size=(401 / 6000, 203 / 3000)))
    pose = look(np.array([0.3, 1.0, 0.2]))
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    pose[:3, :3] = pose[:3, :3] @ turn
    balls = [Marker(np.array(place), 0.003) for place in (
        (0.006, -0.002, 0.004), (-0.001, 0.012, -0.003))]
    air = renderer.expected(pose).copy()
    ratio = renderer.expected(pose, markers=balls) / air
    for ball in balls:
        seen = inverse(pose) @ np.append(ball.centre, 1.0)
        place = wide.pixels(seen[:3])
        column, row = np.rint(place).astype(int)
        ray = wide.back_project(np.array([column, row], float), 1.0)
        beside = np.linalg.norm(np.cross(ray, seen[:3])) / np.linalg.norm(ray)
        chord = 2.0 * np.sqrt(0.0015**2 - beside**2)
        expected = sum(weight * np.exp(-steel * chord)
                       for weight, steel in zip(renderer._weights, STEEL, strict=True))
        assert ratio[row, column] == pytest.approx(expected, rel=0.01)
        window = np.ones_like(ratio)
        near = slice(row - 12, row + 13), slice(column - 24, column + 25)
        window[near] = ratio[near]
        np.testing.assert_allclose(centroid(window), place, atol=0.1)


def test_two_needles_each_darken_their_own_place() -> None:
    renderer = empty()
    pose = look(np.array([0.0, 0.0, 1.0]))
    air = renderer.expected(pose).copy()
    first, second = (Needle(pose_along(np.array([0.0, y, 0.0]), np.array([1.0, 0.0, 0.0])),
                            0.004, 0.03) for y in (-0.03, 0.03))
    alone = [1.0 - renderer.expected(pose, [needle]) / air for needle in (first, second)]
    both = 1.0 - renderer.expected(pose, [first, second]) / air
    np.testing.assert_allclose(both, alone[0] + alone[1], atol=1e-5)
    assert alone[0].max() > 0.5
    assert alone[1].max() > 0.5


@pytest.fixture(scope='module')
def patient() -> Patient:
    return build_patient('lumbar', 1)


def test_needle_projects_where_the_matrix_says(patient: Patient) -> None:
    """Centroids of the shadow across the shaft, and its end, against P @ x."""
    procedure = load_procedure('lumbar_facet_injection')
    renderer = XrayRenderer(patient, procedure.fluoroscopy_projection(),
                            Technique(noise=False, full_scale_kerma=60e-6))
    pose = procedure.patient_T_fluoroscopy()
    needle = procedure_needle(procedure)
    without = renderer.expected(pose).copy()
    shadow = 1.0 - renderer.expected(pose, [needle]) / without
    hub, tip = procedure.fluoroscopy_projection().pixels(
        transform_points(inverse(pose), needle.shaft))
    columns = np.arange(int(tip[0]) + 20, int(hub[0]) - 20, 7)
    slope = (hub[1] - tip[1]) / (hub[0] - tip[0])
    for column in columns:
        row = tip[1] + slope * (column - tip[0])
        rows = np.arange(int(row) - 8, int(row) + 9)
        weight = shadow[rows, column]
        assert np.sum(rows * weight) / np.sum(weight) == pytest.approx(row, abs=0.1)
    depth = shadow[int(tip[1]) - 10:int(tip[1]) + 11].sum(axis=0)
    hub_rows = slice(int(hub[1]) - 30, int(hub[1]) + 31)
    full = np.median(depth[columns[:10]])
    first = int(np.argmax(depth > full / 2))
    end = first - (depth[first] - full / 2) / (depth[first] - depth[first - 1])
    assert end == pytest.approx(tip[0], abs=0.2)
    assert shadow[hub_rows, int(hub[0]) + 10].sum() > 1.5 * full


@pytest.mark.parametrize('seed', range(1, 21, 4))
def test_needle_is_plain_to_see_at_the_target(seed: int) -> None:
    """The shadow near the tip stands several standard deviations out of the noise."""
    procedure = load_procedure('lumbar_facet_injection')
    renderer = xray_renderer(procedure, build_patient('lumbar', seed), seed)
    pose = procedure.patient_T_fluoroscopy()
    needle = procedure_needle(procedure)
    without = renderer.expected(pose).copy()
    lost = without - renderer.expected(pose, [needle])
    tip = procedure.fluoroscopy_projection().pixels(
        transform_points(inverse(pose), needle.pose[:3, 3]))
    column = int(tip[0]) + 6
    rows = slice(int(tip[1]) - 3, int(tip[1]) + 5)
    assert np.max(lost[rows, column] / without[rows, column]) > 0.15
    assert np.max(lost[rows, column] / np.sqrt(without[rows, column])) > 2.5


def test_air_is_bright_and_counts_are_proportional_to_charge() -> None:
    pose = look(np.array([0.0, 0.0, 1.0]))
    counts = [empty(replace(CLEAN, mas_per_pulse=mas)).render(pose).mean() for mas in (0.3, 0.6)]
    assert counts[1] == pytest.approx(2.0 * counts[0], rel=1e-3)
    assert counts[1] > 20000


@pytest.mark.parametrize('mas', [0.2, 0.8])
def test_noise_variance_is_the_number_of_photons(mas: float) -> None:
    """Poisson: variance over mean is one photon, whatever the exposure."""
    renderer = empty(replace(CLEAN, noise=True, mas_per_pulse=mas, full_scale_kerma=80e-6), 5)
    pose = look(np.array([0.0, 0.0, 1.0]))
    photons = float(renderer.expected(pose).mean())
    first, second = (renderer.render(pose).astype(float) for _ in range(2))
    scale = photons / first.mean()
    assert np.var(first * scale) == pytest.approx(photons, rel=0.03)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_kerma_falls_with_the_square_of_distance_and_area_product_does_not() -> None:
    renderer = empty()
    assert renderer.air_kerma_per_pulse(0.5) == pytest.approx(4.0 * renderer.air_kerma_per_pulse(
        1.0))
    width, height = renderer.technique.detector_size
    for distance in (0.5, 0.7, 1.0):
        scale = (distance / renderer.technique.source_to_detector) ** 2
        product = renderer.air_kerma_per_pulse(distance) * width * height * scale
        assert product == pytest.approx(renderer.kerma_area_product_per_pulse())
    assert renderer.air_kerma_per_pulse() == pytest.approx(
        renderer.air_kerma_per_pulse(renderer.technique.reference_distance))


def test_kerma_and_area_product_are_linear_in_the_charge() -> None:
    doses = [(renderer.air_kerma_per_pulse(), renderer.kerma_area_product_per_pulse())
             for renderer in (empty(replace(CLEAN, mas_per_pulse=mas)) for mas in (0.2, 0.4, 1.0))]
    np.testing.assert_allclose(np.array(doses) / doses[0], [[1, 1], [2, 2], [5, 5]])


def test_blades_darken_what_they_cover_and_save_its_dose() -> None:
    """Two of four detector quarters covered: half the area product, no photons under lead."""
    blades = replace(CLEAN, collimation=(0.15, 0.0, 0.0, 0.0))
    covered, bare = empty(blades), empty()
    pose = look(np.array([0.0, 0.0, 1.0]))
    picture, air = covered.expected(pose), bare.expected(pose)
    assert picture[:, :127].max() == 0.0
    np.testing.assert_allclose(picture[:, 130:], air[:, 130:])
    assert covered.kerma_area_product_per_pulse() == pytest.approx(
        bare.kerma_area_product_per_pulse() / 2)
    assert covered.air_kerma_per_pulse() == bare.air_kerma_per_pulse()


def test_glare_brings_its_share_of_light_behind_a_blade_and_keeps_the_sum() -> None:
    """At d beyond an edge: the share times the normal integral from d; no light made or lost."""
    blades = replace(CLEAN, collimation=(0.15, 0.0, 0.0, 0.0))
    pose = look(np.array([0.0, 0.0, 1.0]))
    sharp = empty(blades).expected(pose)
    veiled = empty(replace(blades, glare=0.08, glare_reach=0.02)).expected(pose)
    assert veiled.sum() == pytest.approx(sharp.sum(), rel=0.005)
    for column in (60, 100, 124):
        beyond = (127.5 - column) * 0.3 / SIZE / 0.02
        assert veiled[128, column] / sharp[128, 200] == pytest.approx(
            0.08 * norm.sf(beyond), abs=0.0005)


def test_distortion_shows_a_marker_where_the_cubic_says() -> None:
    """Centroid of a ball 5/8 out, of a field with 4 % at the middle of a side."""
    cells, place = grid(160), np.array([0.050, 0.020, 0.0])
    x, y, z = cells.axes()
    ball = np.sqrt((x - place[0])**2 + (y - place[1])**2 + (z - place[2])**2) - 0.004
    patient = empty_patient(cells, mineral=coverage(ball, cells.spacing))
    pose = look(np.array([0.0, 0.0, 1.0]))
    flat, bent = (centroid(XrayRenderer(patient, PROJECTION, replace(CLEAN, distortion=share),
                                        anatomy_step=1).render(pose)) for share in (0.0, 0.04))
    middle, half = (SIZE - 1) / 2, SIZE / 2
    away = (flat - middle) / half
    np.testing.assert_allclose(bent, middle + half * away * (1 + 0.04 * away @ away), atol=0.15)


def centroid(picture: np.ndarray) -> np.ndarray:
    """Column and row of what a picture shows in front of bare air."""
    depth = np.maximum(np.log(picture.max() / np.maximum(picture, 1e-3)) - 0.02, 0.0)
    rows, columns = np.indices(picture.shape)
    return np.array([np.sum(columns * depth), np.sum(rows * depth)]) / depth.sum()


@pytest.mark.parametrize('roll', [0.0, 0.7, 2.0])
@pytest.mark.parametrize('steel', [True, False])
def test_markers_project_where_the_matrix_says(roll: float, steel: bool) -> None:
    """Detector turned about its normal, principal point off centre, pixels twice as high as wide.

    Steel by its chord, bone by its voxels; both within a tenth of a pixel of P @ x.
    """
    wide = Projection.perspective((1500.0, 750.0), (230.0, 90.0), (401, 203))
    cells, place = grid(), np.array([0.012, -0.020, 0.015])
    x, y, z = cells.axes()
    ball = np.sqrt((x - place[0])**2 + (y - place[1])**2 + (z - place[2])**2) - 0.005
    mineral = coverage(ball, cells.spacing) * np.uint8(not steel)
    technique = replace(CLEAN, detector_size=(401 / 1500, 203 / 750))
    renderer = XrayRenderer(empty_patient(cells, mineral=mineral), wide, technique)
    pose = look(np.array([0.3, 1.0, 0.2]))
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    pose[:3, :3] = pose[:3, :3] @ turn
    axis = np.array([0.5, 0.2, 1.0]) / np.linalg.norm([0.5, 0.2, 1.0])
    rod = Needle(pose_along(place + 0.002 * axis, axis), 0.004, 0.004, hub_diameter=1e-6,
                 hub_length=1e-6)
    seen = centroid(renderer.expected(pose, [rod] if steel else []))
    np.testing.assert_allclose(seen, wide.pixels(transform_points(inverse(pose), place)), atol=0.1)


def test_standing_c_arm_shows_the_same_anatomy_and_forgets_old_needles(patient: Patient) -> None:
    procedure = load_procedure('lumbar_facet_injection')
    renderer = XrayRenderer(patient, procedure.fluoroscopy_projection(), Technique(noise=False))
    pose = procedure.patient_T_fluoroscopy()
    before = renderer.render(pose)
    renderer.render(pose, [procedure_needle(procedure)])
    renderer.render(pose, [procedure_needle(procedure, 0.02)])
    assert np.array_equal(renderer.render(pose), before)
    fresh = XrayRenderer(patient, procedure.fluoroscopy_projection(), Technique(noise=False))
    assert np.array_equal(fresh.render(pose), before)


def test_same_seed_gives_the_same_pulses() -> None:
    pose = look(np.array([0.0, 0.0, 1.0]))
    noisy = replace(CLEAN, noise=True)
    first, second, other = empty(noisy, 1), empty(noisy, 1), empty(noisy, 2)
    for _ in range(3):
        picture = first.render(pose)
        assert np.array_equal(picture, second.render(pose))
        assert not np.array_equal(picture, other.render(pose))


def test_scatter_is_the_share_that_was_asked_for(patient: Patient) -> None:
    procedure = load_procedure('lumbar_facet_injection')
    pose = procedure.patient_T_fluoroscopy()
    means = []
    for ratio in (0.0, 0.5):
        technique = Technique(scatter_to_primary=ratio, equalisation=0.0)
        renderer = XrayRenderer(patient, procedure.fluoroscopy_projection(), technique)
        picture = renderer.expected(pose)
        means.append(picture[picture < 0.4 * renderer._photons].mean())
    assert means[1] / means[0] == pytest.approx(1.5, abs=0.1)
