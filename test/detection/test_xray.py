"""The X-ray detector against images whose needle is known by construction."""

import cv2
import numpy as np
import pytest

from hybrid_guidance.detection.xray import XrayNeedleDetector
from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import procedure_needle, xray_renderer

from .conftest import (
    as_frame,
    is_honest,
    line_profile,
    pixel_errors,
    reported,
    shaft_coordinates,
    xray_scene,
)

SEEDS = range(70)


@pytest.fixture(scope='module')
def detector() -> XrayNeedleDetector:
    return XrayNeedleDetector()


@pytest.fixture(scope='module')
def found(detector) -> list:
    return reported(detector, xray_scene, SEEDS)


def test_most_needles_are_reported(found) -> None:
    assert len(found) >= 0.85 * len(SEEDS)


def test_tip_and_angle_are_exact_to_a_fraction_of_a_pixel(found) -> None:
    errors = np.array([pixel_errors(*pair) for pair in found])
    assert np.median(np.hypot(errors[:, 0], errors[:, 1])) <= 0.5
    assert np.median(np.abs(np.rad2deg(errors[:, 2]))) <= 0.3
    assert np.percentile(np.abs(np.rad2deg(errors[:, 2])), 95) <= 0.5


def test_hub_and_tip_are_not_confused(found) -> None:
    aligned = [float(needle.direction @ scene.direction) > 0.9 for scene, needle in found]
    assert np.mean(aligned) >= 0.97


def test_covariance_is_neither_too_small_nor_too_large(found) -> None:
    errors = np.array([pixel_errors(*pair) for pair in found])
    covariances = np.array([needle.covariance for _, needle in found])
    assert len(errors) >= 59
    assert is_honest(errors, covariances)
    assert not is_honest(errors, 0.1 * covariances)
    assert not is_honest(errors, 10.0 * covariances)


def test_at_most_one_in_a_hundred_images_without_needle_is_reported(detector) -> None:
    needles = [detector(xray_scene(seed, needle=False).frame) for seed in range(1000, 1100)]
    assert sum(needle is not None and needle.probability >= 0.5 for needle in needles) <= 1


@pytest.mark.parametrize(('turn', 'flip'), [(1, False), (2, False), (3, False), (0, True)])
def test_turned_image_gives_the_turned_needle(detector, turn: int, flip: bool) -> None:
    scene = xray_scene(3)
    pixels = scene.frame.pixels
    side = pixels.shape[0] - 1
    straight = detector(scene.frame)
    moved = detector(as_frame(np.rot90(np.fliplr(pixels) if flip else pixels, turn)))
    assert straight is not None
    assert moved is not None
    tip, direction = straight.tip, straight.direction
    if flip:
        tip, direction = np.array([side - tip[0], tip[1]]), direction * (-1.0, 1.0)
    for _ in range(turn):
        tip, direction = np.array([tip[1], side - tip[0]]), np.array([direction[1], -direction[0]])
    assert np.linalg.norm(moved.tip - tip) < 0.2
    assert float(moved.direction @ direction) > np.cos(np.deg2rad(0.05))


def test_without_hub_the_tip_is_the_end_nearer_the_centre(detector) -> None:
    scene = xray_scene(8, hub=False)
    needle = detector(scene.frame)
    assert needle is not None
    centre = 0.5 * (np.array(scene.frame.pixels.shape[::-1]) - 1.0)
    other = needle.tip - needle.length * needle.direction
    assert np.linalg.norm(needle.tip - centre) < np.linalg.norm(other - centre)


def test_curved_catheter_is_not_a_needle(detector) -> None:
    """A thin ridge of constant contrast, but bent: radius 150 to 400 px."""
    reports = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        radius = random.uniform(150, 400)
        v, u = np.mgrid[:640, :640]
        centre = 320 + random.uniform(-1, 1, 2) * radius
        ridge = np.exp(-0.5 * ((np.hypot(u - centre[0], v - centre[1]) - radius) / 1.5) ** 2)
        counts = random.poisson(800 * np.exp(-0.35 * ridge))
        needle = detector(as_frame((10 * counts).astype(np.uint16)))
        reports += needle is not None and needle.probability >= 0.5
    assert reports <= 1


def test_straight_bone_edge_is_not_a_needle(detector) -> None:
    """One-sided: as straight and as sharp as a shaft, but a step."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        v, u = np.mgrid[:640, :640]
        angle = random.uniform(-np.pi, np.pi)
        across = (u - 320) * np.cos(angle) + (v - 320) * np.sin(angle)
        bone = 0.4 / (1.0 + np.exp(-across / 1.5))
        counts = random.poisson(800 * np.exp(-bone))
        needle = detector(as_frame((10 * counts).astype(np.uint16)))
        assert needle is None or needle.probability < 0.5


def test_eight_bits_give_the_same_needle(detector) -> None:
    scene = xray_scene(3)
    wide = detector(scene.frame)
    scale = 255.0 / float(scene.frame.pixels.max())
    narrow = detector(as_frame((scene.frame.pixels * scale).astype(np.uint8)))
    assert wide is not None
    assert narrow is not None
    assert np.linalg.norm(wide.tip - narrow.tip) < 0.5


@pytest.mark.parametrize('value', [0, 1, 40000, 65535])
def test_blank_image_has_no_needle(detector, value: int) -> None:
    assert detector(as_frame(np.full((512, 640), value, np.uint16))) is None


def test_an_18_gauge_needle_in_a_field_of_20_cm_is_not_too_wide(detector) -> None:
    procedure = load_procedure('femoral_vein_access')
    renderer = xray_renderer(procedure, build_patient(procedure.region, 101, procedure.target), 101)
    needle, pose = procedure_needle(procedure), procedure.patient_T_fluoroscopy()
    tip = renderer.projection.pixels(transform_points(inverse(pose), needle.pose[:3, 3]))
    detector.forget()
    found = detector(Frame(renderer.render(pose, [needle]), 1, renderer.projection))
    detector.forget()
    bare = detector(Frame(renderer.render(pose), 2, renderer.projection))
    assert found is not None
    assert found.probability > 0.9
    assert np.linalg.norm(found.tip - tip) < 0.6
    assert bare is None or bare.probability < 0.5


def test_bone_that_the_tip_touches_is_no_hub(detector) -> None:
    """Dense bone begins at the tip, as thick as a hub: but outside the body there is no bone."""
    shape, angle, ends = (640, 640), 0.2, []
    tip = np.array([330.0, 320.0])
    s, x = shaft_coordinates(shape, tip, angle)
    shaft = 0.4 * line_profile(s, x, 200.0, 1.3, 1.0)
    hub = 0.35 * ((np.abs(x) < 8.0) & (s < -200.0) & (s > -250.0))
    bone = 0.3 * (np.hypot(s - 23.0, x) < 20.0)
    for body in (0.004, -0.004):
        clean = shaft + cv2.GaussianBlur((hub + bone).astype(np.float32), (0, 0), 1.0) + 1.0
        counts = np.random.default_rng(3).poisson(1000.0 * np.exp(-clean - body * (s + 100.0)))
        detector.forget()
        ends.append(detector(as_frame((12.0 * counts).astype(np.uint16))))
    # The same picture with the body on the other side: what was bone is the hub.
    assert np.linalg.norm(ends[0].tip - tip) < 3.0
    assert float(ends[0].direction @ ends[1].direction) < -0.99


def test_a_rib_that_ends_in_the_image_is_no_needle(detector) -> None:
    """As straight, even and thin as a thick needle, but a fourth as dark; steel there is one."""
    s, x = shaft_coordinates((640, 640), np.array([330.0, 300.0]), -0.15)
    found = []
    for contrast in (0.22, 0.9):
        line = contrast * line_profile(s, x, 110.0, 4.0, 2.0)
        counts = np.random.default_rng(5).poisson(2000.0 * np.exp(-1.0 - line))
        detector.forget()
        needle = detector(as_frame((12.0 * counts).astype(np.uint16)))
        found.append(needle is not None and needle.probability > 0.5)
    assert found == [False, True]
