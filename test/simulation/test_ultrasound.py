"""B-mode against speckle statistics, attenuation, shadows and the needle's geometry."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import inverse, perturbed, pose_along, transform_points
from hybrid_guidance.procedure import Probe, Procedure, load_procedure
from hybrid_guidance.simulation.anatomy import Grid, Patient, build_patient, empty_patient
from hybrid_guidance.simulation.beams import Scan
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.render import procedure_needle, ultrasound_renderer
from hybrid_guidance.simulation.tissues import PROPERTIES, Tissue
from hybrid_guidance.simulation.ultrasound import UltrasoundRenderer

CURVED = Probe('curvilinear', 0.060, float(np.radians(58)), 5e6)
LINEAR = Probe('linear', float('inf'), 0.040, 8e6)
POSE = np.eye(4)


@pytest.fixture(scope='module')
def procedure() -> Procedure:
    return load_procedure('lumbar_facet_injection')


def block(tissue: Tissue) -> Patient:
    """A homogeneous block round the slice z = 0."""
    grid = Grid.covering(np.array([-0.08, -0.02, -0.01]), np.array([0.08, 0.09, 0.01]), 0.001)
    return empty_patient(grid, labels=np.full(grid.shape, tissue, np.uint8))


def renderer(patient: Patient, procedure: Procedure, probe: Probe = CURVED,
             seed: int = 0) -> UltrasoundRenderer:
    return UltrasoundRenderer(patient, probe, procedure.ultrasound_projection(), seed)


@pytest.mark.parametrize('probe', [CURVED, LINEAR])
def test_speckle_in_homogeneous_tissue_is_rayleigh(procedure: Procedure, probe: Probe) -> None:
    """Mean over standard deviation of the envelope is sqrt(pi / (4 - pi)) = 1.91."""
    scanner = renderer(block(Tissue.VISCERA), procedure, probe)
    envelope = scanner.envelope(POSE, noise=False)
    rows = envelope[(scanner.beams.ranges > 0.015) & (scanner.beams.ranges < 0.065)]
    level = rows / rows.mean(axis=1, keepdims=True)
    assert level.mean() / level.std() == pytest.approx(1.91, abs=0.1)


@pytest.mark.parametrize('tissue', [Tissue.VISCERA, Tissue.LIGAMENT])
def test_echo_falls_with_depth_as_the_coefficient_says(procedure: Procedure,
                                                       tissue: Tissue) -> None:
    """There and back: 2 · α · f dB per centimetre."""
    scanner = renderer(block(tissue), procedure)
    power = np.mean([scanner.envelope(perturbed(POSE, np.array([0, 0, z, 0, 0, 0])),
                                      noise=False) ** 2
                     for z in (-0.004, -0.002, 0.0, 0.002, 0.004)], axis=(0, 2))
    deep = (scanner.beams.ranges > 0.012) & (scanner.beams.ranges < 0.055)
    slope = np.polyfit(100.0 * scanner.beams.ranges[deep], 10.0 * np.log10(power[deep]), 1)[0]
    assert -slope == pytest.approx(2.0 * PROPERTIES[tissue].attenuation * 5.0, rel=0.05)


def test_speckle_has_the_level_of_its_tissue(procedure: Procedure) -> None:
    powers = []
    for tissue in (Tissue.VISCERA, Tissue.DISC):
        scanner = renderer(block(tissue), procedure)
        near = (scanner.beams.ranges > 0.006) & (scanner.beams.ranges < 0.009)
        powers.append(10 * np.log10(np.mean(scanner.envelope(POSE, noise=False)[near] ** 2)))
    expected = PROPERTIES[Tissue.DISC].scatter_db - PROPERTIES[Tissue.VISCERA].scatter_db
    assert powers[1] - powers[0] == pytest.approx(expected, abs=4.0)


def test_bone_is_bright_and_throws_a_shadow(procedure: Procedure) -> None:
    patient = block(Tissue.VISCERA)
    bone = np.zeros(patient.grid.shape, np.uint8)
    labels = patient.labels.copy()
    bone[:, 55:60, :80] = 255  # 5 mm from y = 35 mm, on the side x < 0
    labels[:, 55:60, :80] = Tissue.CORTICAL
    scanner = renderer(replace(patient, bone=bone, labels=labels), procedure)
    envelope = scanner.envelope(POSE, noise=False)
    below = (scanner.beams.ranges > 0.046) & (scanner.beams.ranges < 0.060)
    half = scanner.scan.beams // 2
    dark = np.mean(envelope[below][:, 20:half - 30] ** 2)
    light = np.mean(envelope[below][:, half + 30:-20] ** 2)
    assert 10 * np.log10(light / dark) > 20.0
    surface = np.abs(scanner.beams.ranges - 0.035) < 0.0015
    behind = np.abs(scanner.beams.ranges - 0.025) < 0.005
    peak = np.max(envelope[surface][:, half - 20:half - 5], axis=0).mean()
    assert 20 * np.log10(peak / envelope[behind][:, half - 20:half - 5].mean()) > 15.0


def along_shaft(picture: np.ndarray, tip: np.ndarray, hub: np.ndarray) -> np.ndarray:
    """Sample every 0.1 pixel from 15 pixels beyond the tip to 60 pixels up the shaft."""
    direction = (hub - tip) / np.linalg.norm(hub - tip)
    places = tip + np.arange(-15.0, 60.0, 0.1)[:, None] * direction
    return np.asarray(cv2.remap(picture, places[None, :, 0].astype(np.float32),
                                places[None, :, 1].astype(np.float32), cv2.INTER_LINEAR))[0]


def scan_converted(scanner: UltrasoundRenderer, field: np.ndarray) -> np.ndarray:
    """Put a polar field into the picture, linear in amplitude."""
    size = (scanner.projection.width, scanner.projection.height)
    grid = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), -1).astype(float)
    beams, samples = scanner.beams.polar(scanner.projection.back_project(grid)[..., :2])
    return np.asarray(cv2.remap(field.astype(np.float32), beams.astype(np.float32),
                                samples.astype(np.float32), cv2.INTER_LINEAR))


def needle_echo(scanner: UltrasoundRenderer, needle: Needle) -> np.ndarray:
    """The needle's own echo in the picture, linear in amplitude."""
    scanner._complex(POSE, [needle], 0.0, noise=False)
    both = scanner._frame.copy()
    scanner._complex(POSE, [], 0.0, noise=False)
    return scan_converted(scanner, np.hypot(*(both - scanner._frame)))


@pytest.mark.parametrize('probe', [CURVED, LINEAR])
def test_an_echo_is_within_half_a_pixel_of_geometry(procedure: Procedure, probe: Probe) -> None:
    """A grain of steel anywhere in the slice: the middle of its echo against P @ x."""
    scanner = UltrasoundRenderer(block(Tissue.FLUID), probe, procedure.ultrasound_projection(), 0,
                                 Scan(reverberation=0.0))
    rows, columns = np.indices((480, 640))
    for x, y in ((-0.015, 0.015), (0.0, 0.030), (0.012, 0.045), (0.0031, 0.0577), (-0.010, 0.060)):
        tip = np.array([x, y, 0.0])
        grain = Needle(pose_along(tip, np.array([1.0, 0.0, 0.0])), 0.0007, 0.00013)
        echo = needle_echo(scanner, grain) ** 2
        middle = np.array([(echo * columns).sum(), (echo * rows).sum()]) / echo.sum()
        # Its two scatterers are 0.06 mm behind the tip in the mean.
        true = scanner.projection.pixels((tip - (0.00006, 0.0, 0.0))[None])[0]
        assert np.linalg.norm(middle - true) < 0.5


@pytest.mark.parametrize('depth', [0.040, 0.050, 0.0582])
def test_shaft_is_within_half_a_pixel_of_geometry(procedure: Procedure, depth: float) -> None:
    """The crest of a shaft's echo, and half height of its end, against P @ x.

    Without sound that goes to and fro in the steel: its tail lies beyond shaft and tip. The end is
    brighter and rough, so that half of its height is off by a part of the beam's width.
    """
    scanner = UltrasoundRenderer(block(Tissue.FLUID), CURVED, procedure.ultrasound_projection(), 0,
                                 Scan(reverberation=0.0))
    needle = procedure_needle(procedure, depth)
    image_T_patient = inverse(procedure.patient_T_ultrasound())
    in_image = replace(needle, pose=image_T_patient @ needle.pose)
    echo = needle_echo(scanner, in_image)
    hub, tip = scanner.projection.pixels(transform_points(POSE, in_image.shaft))
    profile = along_shaft(echo, tip, hub)
    peak = profile[150:210].max()
    end = -15.0 + 0.1 * int(np.argmax(profile > peak / 2))
    assert abs(end) < 1.0
    across = np.array([[0.0, -1.0], [1.0, 0.0]]) @ (hub - tip) / np.linalg.norm(hub - tip)
    middle = tip + 40.0 * (hub - tip) / np.linalg.norm(hub - tip)
    offsets = np.arange(-12.0, 12.1, 0.25)
    places = middle + offsets[:, None] * across
    line = cv2.remap(echo, places[None, :, 0].astype(np.float32),
                     places[None, :, 1].astype(np.float32), cv2.INTER_LINEAR)[0]
    assert abs(offsets[int(np.argmax(line))]) <= 0.5


def test_needle_leaves_the_picture_with_the_slice(procedure: Procedure) -> None:
    scanner = renderer(block(Tissue.FLUID), procedure)
    tip = np.array([0.005, 0.040, 0.0])
    level = []
    for off in (0.0, 0.0015, 0.006):
        pose = pose_along(tip + off * np.eye(3)[2], np.array([-1.0, 1.0, 0.0]))
        needle = Needle(pose, 0.0007, 0.09)
        echo = scanner.envelope(POSE, [needle], noise=False)
        level.append(float(echo[scanner.beams.ranges > 0.015].max()))
    assert level[0] > level[1] > 20.0 * level[2]


def test_needle_square_to_the_beam_is_brighter(procedure: Procedure) -> None:
    scanner = renderer(block(Tissue.FLUID), procedure)
    peaks = []
    for direction in ((-1.0, 0.05, 0.0), (-1.0, 1.0, 0.0)):
        needle = Needle(pose_along(np.array([-0.01, 0.04, 0.0]), np.array(direction)),
                        0.0007, 0.09)
        peaks.append(np.median(np.sort(scanner.envelope(POSE, [needle], noise=False),
                                       axis=0)[-1, 100:130]))
    assert peaks[0] > 1.5 * peaks[1]


@pytest.mark.parametrize('seed', range(1, 21, 4))
def test_needle_is_plain_to_see_at_the_target(procedure: Procedure, seed: int) -> None:
    """Last 25 mm: brighter on the line than 3 mm beside it, by far."""
    scanner = ultrasound_renderer(procedure, build_patient('lumbar', seed), seed)
    needle = procedure_needle(procedure)
    picture = scanner.render(procedure.patient_T_ultrasound(), [needle]).astype(np.float32)
    hub, tip = scanner.projection.pixels(
        transform_points(inverse(procedure.patient_T_ultrasound()), needle.shaft))
    on = along_shaft(picture, tip, hub)[150:]
    beside = np.array([hub[1] - tip[1], tip[0] - hub[0]]) * 16.0 / np.linalg.norm(hub - tip)
    off = np.concatenate([along_shaft(picture, tip + sign * beside, hub + sign * beside)[150:]
                          for sign in (-1, 1)])
    assert on.mean() > off.mean() + 50.0
    assert on[:100].mean() > 110.0


@pytest.fixture(scope='module')
def lumbar(procedure: Procedure) -> UltrasoundRenderer:
    return ultrasound_renderer(procedure, build_patient('lumbar', 1), 1)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    seen = (first > 0) | (second > 0)
    return float(np.corrcoef(first[seen].astype(float), second[seen].astype(float))[0, 1])


@pytest.mark.parametrize('offset', [
    (0.002, 0, 0, 0, 0, 0), (0, 0, 0.002, 0, 0, 0),
    (0, 0, 0, 0, 0.035, 0), (0, 0, 0, 0, 0, 0.035)])
def test_misposed_probe_looks_clearly_different(
        lumbar: UltrasoundRenderer, procedure: Procedure, offset: tuple[float, ...]) -> None:
    """Negative control: 2 mm or 2 degrees cost far more than noise."""
    pose = procedure.patient_T_ultrasound()
    true = lumbar.render(pose, time=0.0)
    again = lumbar.render(pose, time=1.0)
    moved = lumbar.render(perturbed(pose, np.array(offset)), time=2.0)
    assert correlation(true, again) > 0.9
    assert 1.0 - correlation(true, moved) > 3.0 * (1.0 - correlation(true, again))


def test_speckle_moves_with_the_tissue(lumbar: UltrasoundRenderer, procedure: Procedure) -> None:
    """A probe moved by whole pixels along its face shows the same tissue elsewhere."""
    scanner = UltrasoundRenderer(lumbar.patient, LINEAR, procedure.ultrasound_projection(), 1)
    pose = procedure.patient_T_ultrasound()
    step = 8 * procedure.ultrasound.pixel_spacing
    moved = pose.copy()
    moved[:3, 3] += step * pose[:3, 0]
    first = scanner.render(pose)[120:300, 260:380].astype(float)
    there = scanner.render(moved)
    same = there[120:300, 252:372].astype(float)
    unshifted = there[120:300, 260:380].astype(float)
    followed, lost = (np.corrcoef(first.ravel(), other.ravel())[0, 1]
                      for other in (same, unshifted))
    assert followed > 0.85
    assert 1.0 - lost > 2.5 * (1.0 - followed)


def test_same_seed_and_time_give_the_same_frame(procedure: Procedure,
                                                lumbar: UltrasoundRenderer) -> None:
    pose = procedure.patient_T_ultrasound()
    needle = [procedure_needle(procedure)]
    other = ultrasound_renderer(procedure, lumbar.patient, 1)
    other.render(perturbed(pose, np.array([0.001, 0, 0, 0, 0, 0])), time=9.0)
    frame = lumbar.render(pose, needle, 0.5)
    assert np.array_equal(frame, other.render(pose, needle, 0.5))
    assert not np.array_equal(frame, lumbar.render(pose, needle, 0.6))


def test_probe_in_the_air_sees_nothing(lumbar: UltrasoundRenderer, procedure: Procedure) -> None:
    pose = procedure.patient_T_ultrasound()
    lifted = pose.copy()
    lifted[:3, 3] -= 0.03 * pose[:3, 1]
    assert lumbar.render(lifted)[200:300, 250:390].mean() < 0.6 * lumbar.render(
        pose)[200:300, 250:390].mean()


def test_picture_is_black_outside_the_sector(lumbar: UltrasoundRenderer,
                                             procedure: Procedure) -> None:
    frame = lumbar.render(procedure.patient_T_ultrasound())
    assert frame.shape == (480, 640)
    assert frame[:10, :100].max() == 0
    assert frame[240, 320] > 0


def test_scan_defaults_are_the_frozen_table() -> None:
    assert Scan().depth == pytest.approx(0.075)
