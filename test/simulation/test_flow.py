"""Blood, heartbeat, injected fluid and bent needles against geometry and conservation."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import pose_along, transform_points
from hybrid_guidance.procedure import Probe, load_procedure
from hybrid_guidance.simulation import shapes, xray
from hybrid_guidance.simulation.anatomy import Grid, Patient, empty_patient
from hybrid_guidance.simulation.beams import Scan
from hybrid_guidance.simulation.flow import heartbeat, make_blood
from hybrid_guidance.simulation.injectate import Injectate
from hybrid_guidance.simulation.instruments import Needle, bent, bent_at, insertion
from hybrid_guidance.simulation.tissues import Tissue
from hybrid_guidance.simulation.ultrasound import UltrasoundRenderer
from hybrid_guidance.simulation.xray import Technique, XrayRenderer

LINEAR = Probe('linear', float('inf'), 0.040, 8e6)
PROJECTION = load_procedure('lumbar_facet_injection').ultrasound_projection()
RADIUS, PITCH = 0.005, np.radians(40.0)
AXIS = np.array([0.0, np.sin(PITCH), np.cos(PITCH)])
MIDDLE = np.array([0.0, 0.030, 0.0])


@pytest.fixture(scope='module')
def vessel() -> Patient:
    """Tissue with one artery that dives from the head end of the box to the foot end."""
    grid = Grid.covering(np.array([-0.03, -0.01, -0.03]), np.array([0.03, 0.07, 0.03]), 0.0007)
    artery = shapes.capsule(MIDDLE - 0.08 * AXIS, MIDDLE + 0.08 * AXIS, RADIUS)
    labels = np.full(grid.shape, Tissue.VISCERA, np.uint8)
    labels[artery.distance(*grid.axes()) < 0.0] = Tissue.BLOOD
    return replace(empty_patient(grid, labels=labels), structures={'test_artery': artery})


def scanner(patient: Patient, pulsation: float = 0.0) -> UltrasoundRenderer:
    return UltrasoundRenderer(patient, LINEAR, PROJECTION, 1, Scan(), pulsation)


def test_flow_is_along_the_vessel_with_a_parabolic_profile(vessel: Patient) -> None:
    blood = make_blood(vessel)
    z, y, x = np.nonzero(np.any(blood.vectors[..., :3] != 0.0, axis=-1))
    points = blood.grid.origin + blood.grid.spacing * np.stack([x, y, z], axis=-1)
    well = np.all(np.abs(points - MIDDLE) < 0.02, axis=1)
    velocity, points = blood.vectors[z, y, x, :3][well], points[well]
    away = np.linalg.norm(np.cross(points - MIDDLE, AXIS), axis=1)
    speed = -velocity @ AXIS
    assert np.abs(np.linalg.norm(velocity, axis=1) - speed).max() < 0.02  # nothing across
    assert speed.max() == pytest.approx(0.9, rel=0.05)  # on the axis, towards the feet
    expected = 0.9 * (1.0 - (away / RADIUS) ** 2)
    assert np.abs(speed - expected).max() < 0.12


def colour_of(picture: np.ndarray, point: np.ndarray) -> np.ndarray:
    u, v = np.rint(PROJECTION.pixels(np.append(point, 0.0)[None])[0]).astype(int)
    return np.asarray(picture[v - 3:v + 4, u - 3:u + 4].reshape(-1, 3).mean(axis=0))


def test_doppler_tells_towards_from_away_and_is_blind_across(vessel: Patient) -> None:
    """The artery flows up to a face on the skin; seen from the other side it flows away."""
    device = scanner(vessel)
    face = np.eye(4)
    frame = device.render(face)
    red = colour_of(device.doppler(frame, face, 0.2, scale=1.0), MIDDLE[:2])
    assert red[2] > 90 > red[0]  # blue, green, red
    turned = np.diag([1.0, -1.0, -1.0, 1.0])
    turned[1, 3] = 0.06
    blue = colour_of(device.doppler(device.render(turned), turned, 0.2, scale=1.0),
                     np.array([0.0, 0.03]))
    assert blue[0] > 90 > blue[2]
    across = np.column_stack([AXIS, np.cross([1.0, 0, 0], AXIS), [1.0, 0, 0]])
    pose = np.eye(4)
    pose[:3, :3] = across
    pose[:3, 3] = MIDDLE - 0.030 * pose[:3, 1]
    grey = colour_of(device.doppler(device.render(pose), pose, 0.2, scale=1.0),
                     np.array([0.0, 0.03]))
    assert np.ptp(grey) < 2.0


def test_without_doppler_and_pulsation_nothing_of_it_shows(vessel: Patient) -> None:
    device = scanner(vessel)
    assert np.array_equal(device.render(np.eye(4), time=0.2),
                          scanner(vessel, 1e-9).render(np.eye(4), time=0.2))


def test_an_artery_swells_by_the_share_that_was_set(vessel: Patient) -> None:
    """Its cross-section, a flat ellipse in the slice: area grows by (1 + share)² - 1."""
    share = 0.15
    device = scanner(vessel, share)
    areas = []
    for time in (0.0, systole()):
        echo = cv2.GaussianBlur(device.envelope(np.eye(4), time=time, noise=False), (0, 0), 3.0)
        rows = (device.beams.ranges > 0.018) & (device.beams.ranges < 0.042)
        level = np.median(echo[rows][:, :20], axis=1, keepdims=True)
        areas.append(float((echo[rows] < 0.4 * level).sum()))
    assert areas[1] / areas[0] == pytest.approx((1.0 + share) ** 2, abs=0.12)
    assert heartbeat(systole()) == pytest.approx(1.0, abs=1e-3)


def systole() -> float:
    times = np.arange(0.0, 0.86, 0.001)
    return float(times[int(np.argmax([heartbeat(time) for time in times]))])


def test_contrast_medium_is_conserved_on_the_detector() -> None:
    """Sum of iodine over the detector's area, taken back to the fluid's plane: all of it."""
    grid = Grid.covering(np.full(3, -0.03), np.full(3, 0.03), 0.002)
    projection = Projection.perspective((2000.0, 2000.0), (150.0, 150.0), (301, 301))
    clean = Technique(blur=0.0, scatter_to_primary=0.0, equalisation=0.0, noise=False)
    renderer = XrayRenderer(empty_patient(grid), projection, clean)
    pose = pose_along(np.array([0.0, -0.7, 0.0]), np.array([0.0, 1.0, 0.0]))
    empty = renderer.expected(pose).copy()
    for volume, iodine in ((1e-6, 1.0), (4e-6, 0.5)):
        fluid = Injectate(np.eye(4), volume, iodine, seed=4)
        # So little that attenuation is linear: the mean coefficient of the spectrum.
        lost = -np.log(renderer.expected(pose, (), [fluid]) / empty)
        mean = float(np.dot(renderer._weights, xray.IODINE))
        rays = np.hypot(*np.meshgrid(*[(np.arange(301) - 150) / 2000.0] * 2))
        area = (0.7 / 2000.0) ** 2 * np.ones_like(lost) / np.sqrt(1.0 + rays**2)
        assert (lost * area).sum() / mean == pytest.approx(volume * iodine, rel=0.03)


def test_a_single_lobe_is_an_ellipsoid_of_its_volume() -> None:
    fluid = Injectate(np.eye(4), 2e-6, lobes=1)
    _, radii = fluid.ellipsoids
    assert 4.0 / 3.0 * np.pi * np.prod(radii[0]) == pytest.approx(2e-6)
    across = fluid.chords(np.array([0.0, 0.0, -0.5]), np.eye(3), np.zeros(1), np.zeros(1))
    assert float(across[0, 0]) == pytest.approx(2.0 * radii[0, 2], rel=1e-4)
    grown = Injectate(np.eye(4), 16e-6, lobes=1).ellipsoids[1]
    assert np.allclose(grown, 2.0 * radii)


def test_fluid_is_dark_in_ultrasound_and_brightens_what_is_behind(vessel: Patient) -> None:
    device = scanner(vessel)
    pose = np.eye(4)
    fluid = Injectate(pose_along(np.array([-0.012, 0.020, 0.0]), np.array([0.0, 0.0, 1.0])), 1e-6,
                      seed=2, lobes=1)
    before = device.envelope(pose, noise=False)
    after = device.envelope(pose, noise=False, fluids=[fluid])
    beams, samples = device.beams.polar(np.array([[-0.012, 0.020]]))
    u, v = int(beams[0]), int(samples[0])
    inside = after[v - 12:v + 12, u - 8:u + 8].mean() / before[v - 12:v + 12, u - 8:u + 8].mean()
    assert 20.0 * np.log10(inside) < -10.0
    below = slice(v + 90, v + 160)
    assert after[below, u - 8:u + 8].mean() > 1.2 * before[below, u - 8:u + 8].mean()
    assert np.array_equal(after[:, 150:], before[:, 150:])


def test_a_bent_needle_is_an_arc_and_a_rigid_one_the_needle_itself() -> None:
    needle = Needle(pose_along(np.array([0.01, 0.02, 0.03]), np.array([0.3, 1.0, 0.2])), 0.0007,
                    0.09)
    assert bent(needle, 0.0, 0.05) == (needle,)
    curvature, inserted = 2.0, 0.06
    parts = bent(needle, curvature, inserted, 12)
    joints = np.array([parts[0].pose[:3, 3], *(part.shaft[0] for part in parts[:-1])])
    local = transform_points(np.linalg.inv(needle.pose), joints)
    centre = np.array([1.0 / curvature, 0.0, -inserted])
    assert np.allclose(np.linalg.norm(local - centre, axis=1), 1.0 / curvature, atol=1e-9)
    assert np.allclose(local[:, 1], 0.0, atol=1e-12)
    assert local[0, 0] == pytest.approx(0.5 * curvature * inserted**2, rel=0.01)
    assert sum(part.length for part in parts) == pytest.approx(needle.length)
    # Outside the skin it is where the rigid needle was.
    assert np.allclose(parts[-1].shaft[0], needle.shaft[0], atol=1e-12)
    assert [part.glint for part in parts] == [True] + [False] * (len(parts) - 1)


def test_a_bent_needle_of_a_known_tip_is_that_of_the_hand() -> None:
    """There and back: the pieces behind a true tip are those that the rigid needle bends to."""
    entry, target = np.array([0.01, 0.0, 0.0]), np.array([0.03, 0.06, 0.02])
    path = (target - entry) / np.linalg.norm(target - entry)
    rigid = Needle(pose_along(entry + 0.05 * path, path), 0.0007, 0.09)
    assert insertion(rigid, entry, target) == pytest.approx(0.05)
    assert insertion(rigid.at(pose_along(entry - 0.01 * path, path)), entry, target) == 0.0
    pieces = bent(rigid, 2.0, 0.05)
    again = bent_at(rigid.at(pieces[0].pose), 2.0, 0.05)
    for piece, other in zip(pieces, again, strict=True):
        assert np.allclose(piece.pose, other.pose, atol=1e-12)
