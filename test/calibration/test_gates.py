"""Every gate that other tests here do not trip by name: a case made for it, and what it advises."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from wire_phantom import phantom

from hybrid_guidance.calibrating import ultrasound
from hybrid_guidance.calibration import gates
from hybrid_guidance.calibration.carm import BeadView, calibrate_carm, locate_probe
from hybrid_guidance.calibration.gates import GateError
from hybrid_guidance.calibration.hand_eye import calibrate_hand_eye
from hybrid_guidance.calibration.pivot import calibrate_pivot
from hybrid_guidance.calibration.temporal import calibrate_delay
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.calibration.ultrasound_spatial import (
    WireViews,
    calibrate_wires,
    wire_errors,
)
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array
from hybrid_guidance.simulation.calibrations import (
    Errors,
    bead_pixels,
    bobbing,
    pivoting,
    random_pose,
    robot_poses,
    scatter_beads,
    sweep_wires,
)

NONE = Errors(0.0, 0.0, 0.0, 0.0, 0.0)
TIP = np.array([0.13, 0.008, -0.003])
CAMERA = np.array([[5400.0, 0.0, 530.0], [0.0, 5400.0, 505.0], [0.0, 0.0, 1.0]])
SIZE, FEW = (1024, 1024), r'only \d+ of \d+ {} agree, at least \d+% must; '
LOOSE, BEADS = FEW + 'look for a loose marker', FEW.format('beads') + 'check the list of beads'


@pytest.fixture
def no_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the gate before it, that of the normal equations must hold."""
    monkeypatch.setattr(gates, 'require_rotation_spread', lambda *_, **__: None)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def about_z(count: int) -> Array:
    return np.array([rigid.transform(rigid.rotation_from_vector(np.array([0.0, 0.0, angle])))
                     for angle in np.linspace(-0.6, 0.6, count)])


def test_a_pointer_that_does_not_turn_needs_two_axes() -> None:
    poses = pivoting(rng(), 60, TIP, NONE)
    poses[:, :3, :3] = poses[0, :3, :3]
    with pytest.raises(GateError, match=r'about two of its axes \(x, y, z\): record again'):
        calibrate_pivot(poses)


def test_pivot_with_a_marker_that_jumps() -> None:
    poses = pivoting(rng(), 200, TIP, NONE)
    poses[::2, :3, 3] += rng(2).normal(0.0, 0.02, (100, 3))
    with pytest.raises(GateError, match=LOOSE.format('poses')):
        calibrate_pivot(poses)


def test_pivot_with_a_tip_that_creeps() -> None:
    poses = pivoting(rng(), 200, TIP, NONE)
    poses[:, :3, 3] += np.linspace(-1.0, 1.0, 200)[:, None] * [3e-3, 0.0, 0.0]
    with pytest.raises(GateError, match=r'held-out error .* mm; keep the tip seated in its divot'):
        calibrate_pivot(poses)


@pytest.mark.usefixtures('no_spread')
def test_pivot_about_one_axis() -> None:
    poses = about_z(200)
    poses[:, :3, 3] = -poses[:, :3, :3] @ TIP
    with pytest.raises(GateError, match=r'do not determine .*; turn the pointer about all'):
        calibrate_pivot(poses)


def test_hand_eye_with_a_target_that_was_moved() -> None:
    hands, seen = robot_poses(rng(5), 30, random_pose(rng(5), 0.1), NONE)
    seen[::2, :3, 3] += [0.05, 0.0, 0.0]
    with pytest.raises(GateError, match=LOOSE.format('poses')):
        calibrate_hand_eye(hands, seen)


def test_hand_eye_with_a_coarse_sensor() -> None:
    hands, seen = robot_poses(rng(6), 30, random_pose(rng(6), 0.1),
                              Errors(2e-3, 0.01, outliers=0.0))
    with pytest.raises(GateError, match=r'held-out error .* let the robot stand still'):
        calibrate_hand_eye(hands, seen)


@pytest.mark.usefixtures('no_spread')
def test_hand_eye_about_one_axis() -> None:
    truth, target, hands = random_pose(rng(4), 0.1), random_pose(rng(7)), about_z(20)
    seen = np.array([rigid.inverse(hand @ truth) @ target for hand in hands])
    with pytest.raises(GateError, match=r'do not determine .*; turn the flange about two axes'):
        calibrate_hand_eye(hands, seen)


def views(tilt: float = 0.35, count: int = 6, pixel: float = 0.1, beads: int = 20,
          roll: float = 0.0, depth: float = 0.09) -> list[BeadView]:
    random = rng(8)
    places = scatter_beads(random, beads, np.array([0.09, 0.09, depth]), 0.008)
    found = []
    for _ in range(count):
        turn = rigid.rotation_from_vector(random.normal(0.0, tilt, 3)) @ \
            rigid.rotation_from_vector(np.array([0.0, 0.0, random.normal(0.0, roll)]))
        pose = rigid.transform(turn, np.array([*random.normal(0.0, 0.005, 2), 0.75]))
        found.append(BeadView(places, bead_pixels(random, places, pose, CAMERA, Errors(
            pixel=pixel, outliers=0.0))))
    return found


def carm(seen: list[BeadView]) -> None:
    calibrate_carm(seen, SIZE, 5400.0)


def moved(view: BeadView, count: int, by: float) -> BeadView:
    pixels = view.pixels.copy()
    pixels[:count] += rng(9).choice([-by, by], (count, 2))
    return replace(view, pixels=pixels)


@pytest.mark.parametrize(('seen', 'words'), [
    (lambda: views(beads=9), r'9 usable beads in view 1, 10 are needed; record for longer'),
    (lambda: [moved(view, 7, 60.0) for view in views()], BEADS),
    (lambda: [moved(views(beads=10)[0], 3, 5.0), *views(beads=10)[1:]],
     r'\d usable beads that agree in view 1, 8 are needed'),
    (lambda: views(pixel=1.2), r'held-out error .* px; check the list of beads and their order'),
    (lambda: views(tilt=0.005), r'turned too little: .* record again and turn it that way'),
    (lambda: views(tilt=0.002, roll=0.5, depth=0.0005),
     r'focal length is known to .* tilt the phantom by 20°'),
    (lambda: [moved(view, 18, 200.0) for view in views()], 'do not fit any pose; check the list')])
def test_carm(seen: Callable[[], list[BeadView]], words: str) -> None:
    with pytest.raises(GateError, match=words):
        carm(seen())


@pytest.mark.parametrize(('beads', 'wrong', 'by', 'pixel', 'words'), [
    (14, 6, 60.0, 0.1, BEADS),
    (9, 3, 60.0, 0.1, '6 usable beads of the probe that agree, 7 are needed'),
    (14, 0, 0.0, 1.6, r'held-out error .* px; check the list of beads and the intrinsics')])
def test_probe(beads: int, wrong: int, by: float, pixel: float, words: str) -> None:
    view = moved(views(count=1, beads=beads, pixel=pixel)[0], wrong, by)
    with pytest.raises(GateError, match=words):
        locate_probe(view, CAMERA)


def test_probe_whose_beads_lie_on_one_line() -> None:
    beads = np.outer(np.linspace(-0.03, 0.03, 10), [1.0, 0.2, 0.1])
    pose = rigid.transform(np.eye(3), np.array([0.0, 0.0, 0.7]))
    pixels = bead_pixels(rng(2), beads, pose, CAMERA, Errors(pixel=0.05, outliers=0.0))
    with pytest.raises(GateError, match=r'beads agree, .* beads must not lie on one line'):
        locate_probe(BeadView(beads, pixels), CAMERA)


def test_probe_whose_beads_nearly_lie_on_one_line() -> None:
    beads = np.outer(np.linspace(-0.03, 0.03, 10), [1.0, 0.2, 0.1])
    beads += rng(3).normal(0.0, 0.1e-3, beads.shape)
    pose = rigid.transform(np.eye(3), np.array([0.0, 0.0, 0.7]))
    with pytest.raises(GateError, match=r'do not determine the .*; use beads that do not lie'):
        locate_probe(BeadView(beads, bead_pixels(rng(2), beads, pose, CAMERA, Errors(
            pixel=0.05, outliers=0.0))), CAMERA)


def test_delay_with_a_floor_that_is_something_else_half_of_the_time() -> None:
    stamps, floor, times, poses = bobbing(rng(), 0.0, 15.0, NONE)
    wrong = rng(5).random(len(floor)) < 0.43
    floor[wrong] += rng(6).choice([-200.0, 200.0], int(wrong.sum()))
    with pytest.raises(GateError, match=LOOSE.format('images')):
        calibrate_delay(stamps, floor, Track(times, poses))


def test_delay_beyond_what_is_looked_for() -> None:
    stamps, floor, times, poses = bobbing(rng(), 0.2, 15.0, NONE)
    with pytest.raises(GateError, match=r'no delay within ±0.1 s fits; .* larger --span'):
        calibrate_delay(stamps, floor, Track(times, poses), span=0.1)


def test_delay_of_motion_that_the_image_does_not_show() -> None:
    stamps, floor, times, poses = bobbing(rng(), 0.0, 15.0, NONE)
    with pytest.raises(GateError, match=r'held-out .* move the probe straight up and down'):
        calibrate_delay(stamps, 300.0 + 0.1 * (floor - 300.0) + 30.0 * np.sin(3.1 * stamps)
                        * np.sin(0.7 * stamps), Track(times, poses))


def swept(seconds: float = 12.0, errors: Errors = NONE) -> WireViews:
    sweep = sweep_wires(rng(3), phantom().wires, random_pose(rng(103), 0.08), (8e-5, 7.5e-5),
                        (410.0, 0.0), seconds, errors)
    return WireViews(sweep.pixels, sweep.times, Track(sweep.tracked_times, np.array(
        [rigid.inverse(pose) for pose in sweep.tracked])), phantom())


def test_wires_mistaken_in_half_of_the_images() -> None:
    seen = swept()
    pixels = seen.pixels.copy()
    pixels[::2, :, 1, 0] += rng(4).normal(0.0, 80.0, pixels[::2, :, 1, 0].shape)
    with pytest.raises(GateError, match=LOOSE.format('images')):
        calibrate_wires(replace(seen, pixels=pixels), (410.0, 0.0), solve_delay=False)


def spatial(limit_mm: float, held: WireViews) -> None:
    """Run the command on views as if they came from two recordings."""
    recordings = {Path('used'): swept(), Path('held'): held}
    arguments = argparse.Namespace(
        recording=Path('used'), validation=Path('held'), spacing=None, no_delay=True,
        origin=(410.0, 0.0), phantom=None, limit=limit_mm)
    ultrasound._spatial_of(arguments, ultrasound._Target(
        'all wires', lambda path: (recordings[path], len(recordings[path])), calibrate_wires,
        wire_errors, lambda errors: float(errors.mean()), ultrasound._wire_panels))


def test_a_second_recording_that_is_not_predicted() -> None:
    held = swept()
    shifted = replace(held, pixels=held.pixels + [20.0, 0.0])
    with pytest.raises(GateError, match=r'held-out error .* limit 1 mm; check that the target'):
        spatial(1.0, shifted)


def test_a_second_recording_with_hardly_an_image_of_the_target() -> None:
    with pytest.raises(GateError, match=r'4 usable held-out images .* 5 are needed'):
        spatial(1.0, swept().subset(np.arange(4)))
