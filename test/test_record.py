"""``hybrid-guidance calibrate … --record``: a live graph of real publishers, to the entry."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from wire_phantom import ROWS, phantom

from hybrid_guidance.calibration.file import Calibration, load, load_delays
from hybrid_guidance.cli import main
from hybrid_guidance.geometry import rigid
from hybrid_guidance.imaging.geometry import ImageGeometry
from hybrid_guidance.ros import environment, tf
from hybrid_guidance.ros.convert import image_message, transform_message
from hybrid_guidance.simulation.calibrations import (
    Errors,
    bead_image,
    bead_pixels,
    bobbing,
    pivoting,
    scatter_beads,
    smooth,
    spoiled,
    sweep_wires,
)

Item = tuple[float, Callable[[float], None]]


class Laboratory:
    """A node of its own that plays a schedule a few times as fast as true, again and again.

    Calibrations go by stamps: what was taken in 20 s is told in five. Each turn is stamped later
    than the one before, with a gap that no calibration bridges.
    """

    SPEED = 4.0

    def __init__(self) -> None:
        environment.prepare()
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node('laboratory', context=self._context)
        self._tf = tf.TransformBroadcaster(self.node)
        self._static = tf.StaticTransformBroadcaster(self.node)
        self._image = {name: self.node.create_publisher(
            Image, f'{name}/image_raw', QoSProfile(depth=10))
            for name in ('ultrasound', 'fluoroscopy')}
        self._diagnostics = self.node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._items: list[Item] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def pose(self, at: float, parent: str, child: str, pose: np.ndarray) -> None:
        self._items.append((at, lambda later: self._tf.sendTransform(
            [transform_message(parent, child, round((at + later) * 1e9), pose)])))

    def fixed(self, parent: str, child: str, pose: np.ndarray) -> None:
        self._static.sendTransform([transform_message(parent, child, 0, pose)])

    def image(self, at: float, stamp: float, pixels: np.ndarray,
              sensor: str = 'ultrasound') -> None:
        self._items.append((at, lambda later: self._image[sensor].publish(
            image_message(pixels, 'ultrasound_image', round((stamp + later) * 1e9)))))

    def took_off(self, delay: float) -> None:
        """Say what ultrasound_node says of the delay that it takes off."""
        message = DiagnosticArray(status=[DiagnosticStatus(
            name='ultrasound_node', values=[KeyValue(key='delay taken off, s', value=str(delay))])])
        self._items += [(at, lambda _: self._diagnostics.publish(message)) for at in (12.0, 18.0)]

    def start(self) -> None:
        self._items.sort(key=lambda item: item[0])
        self._thread.start()

    def _play(self) -> None:
        begun, (first, _), (last, _) = time.monotonic(), self._items[0], self._items[-1]
        for turn in count():
            later = turn * (last - first + 0.6)
            for at, say in self._items:
                wait = begun + (at - first + later) / self.SPEED - time.monotonic()
                if self._end.wait(max(wait, 0.0)):
                    return
                say(later)

    def close(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    one = Laboratory()
    yield one
    one.close()


def test_pivot_from_a_live_tracker(laboratory: Laboratory, tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """Marker and reference are both tracked, so that their common frame has to be found."""
    tip = np.array([0.12, 0.0, 0.01])
    poses = pivoting(np.random.default_rng(1), 400, tip, Errors())
    world_T_reference = rigid.transform(translation=np.array([0.1, 0.2, 0.3]))
    laboratory.fixed('world', 'reference', world_T_reference)
    for index, pose in enumerate(poses):
        laboratory.pose(10.0 + index / 20.0, 'world', 'stylus', world_T_reference @ pose)
    laboratory.start()
    output, bag = tmp_path / 'lab.yaml', tmp_path / 'bag'
    assert main(['calibrate', 'pivot', str(bag), '--record', '5', '--output', str(output)]) == 0
    said = capsys.readouterr().out
    assert 'Stylus: moved by' in said
    assert 'deg (sd) about its x, y, z' in said
    entry, = load(output, datetime.now(timezone.utc))
    assert np.linalg.norm(entry.transform[:3, 3] - tip) < 0.5e-3
    # The recording stays, and is read again as any other.
    assert main(['calibrate', 'pivot', str(bag), '--output', str(output)]) == 0
    assert main(['calibrate', 'pivot', str(bag), '--record', '5', '--output', str(output)]) == 2
    assert 'nothing to record' in capsys.readouterr().err


def floor_image(row: float) -> np.ndarray:
    rows = np.arange(200.0)[:, None]
    return np.repeat(200.0 * np.exp(-((rows - row) / 2.5)**2), 160, axis=1).astype(np.uint8)


def test_delay_from_live_images_and_poses_is_all_of_it(
        laboratory: Laboratory, tmp_path: Path) -> None:
    """What the image node has taken off by an earlier calibration is put back."""
    taken_off = 0.05
    stamps, floor, times, poses = bobbing(np.random.default_rng(2), 0.08, 14.0,
                                          Errors(outliers=0.0))
    for at, pose in zip(times, poses, strict=True):
        laboratory.pose(10.0 + at, 'world', 'ultrasound_probe', pose)
    for stamp, row in zip(stamps, floor, strict=True):
        laboratory.image(10.0 + stamp, 10.0 + stamp - taken_off,
                         floor_image(100.0 + 0.3 * (row - 300.0)))
    laboratory.took_off(taken_off)
    laboratory.start()
    output = tmp_path / 'lab.yaml'
    assert main(['calibrate', 'ultrasound-temporal', str(tmp_path / 'bag'), '--record', '4',
                 '--reference', 'world', '--output', str(output)]) == 0
    assert abs(load_delays(output, datetime.now(timezone.utc))['ultrasound'].delay - 0.08) < 0.005


SPACING, ORIGIN = (1.6e-4, 1.5e-4), (205.0, 0.0)
MOUNT = rigid.transform(rigid.rotation_from_vector(np.array([0.4, -1.1, 0.7])),
                        np.array([0.02, -0.03, 0.05]))


def spots_image(random: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Return 410 x 308 pixels with spots twice as wide as high, and speckle."""
    image = 4.0 * random.rayleigh(1.0, (308, 410))
    for u, v in pixels.reshape(-1, 2):
        left, top = max(round(u) - 15, 0), max(round(v) - 10, 0)
        patch = image[top:top + 21, left:left + 31]
        rows, columns = np.mgrid[:patch.shape[0], :patch.shape[1]]
        patch += 180.0 * np.exp(-((columns + left - u) / 5.0)**2 - ((rows + top - v) / 2.5)**2)
    return np.clip(image, 0, 255).astype(np.uint8)


def device_set(path: Path) -> Path:
    """Write a PLUS device set with the Ns of ``wire_phantom``, in millimetres."""
    patterns = ''
    for number, (fronts, backs, z) in enumerate(ROWS):
        wires = ''.join(
            f'<Wire Name="{number}:{index}" EndPointFront="{front} 0 {z}" '
            f'EndPointBack="{back} 40 {z}"/>'
            for index, (front, back) in enumerate(zip(fronts, backs, strict=True)))
        patterns += f'<Pattern Type="NWire">{wires}</Pattern>'
    path.write_text(f'<PlusConfiguration><PhantomDefinition><Geometry>{patterns}</Geometry>'
                    '</PhantomDefinition><CoordinateDefinitions><Transform From="Phantom" '
                    'To="Reference" Matrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"/>'
                    '</CoordinateDefinitions></PlusConfiguration>')
    return path


def off_mount(found: Calibration) -> float:
    """Return metres by which corners of the image are off."""
    assert found.image is not None
    corners = np.array([[50.0, 50.0], [360.0, 50.0], [360.0, 260.0], [50.0, 260.0]])
    places = [rigid.transform_points(pose, geometry.projection((1, 1)).back_project(corners))
              for pose, geometry in ((found.transform, found.image),
                                     (MOUNT, ImageGeometry(SPACING, ORIGIN)))]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def test_probe_by_wires_from_a_live_graph(laboratory: Laboratory, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    sweep = sweep_wires(random, phantom().wires, MOUNT, SPACING, ORIGIN, 18.0, Errors(outliers=0.0))
    for at, pose in zip(sweep.tracked_times, sweep.tracked, strict=True):
        laboratory.pose(10.0 + at, 'reference', 'ultrasound_probe', pose)
    for at, pixels in zip(sweep.times, sweep.pixels, strict=True):
        laboratory.image(10.0 + at, 10.0 + at, spots_image(random, pixels))
    laboratory.start()
    output = tmp_path / 'lab.yaml'
    # A sweep that is played twice has its noise twice: chance would pass for a turned phantom.
    assert main(['calibrate', 'ultrasound-spatial', str(tmp_path / 'bag'), '--record', '9',
                 '--phantom', str(device_set(tmp_path / 'wires.xml')), '--keep-registration',
                 '--origin', *map(str, ORIGIN), '--output', str(output)]) == 0
    entry, = load(output, datetime.now(timezone.utc))
    assert off_mount(entry) < 0.5e-3
    assert entry.held_out_error is not None
    assert entry.held_out_error < 0.6e-3


def test_probe_by_one_point_from_a_live_graph(laboratory: Laboratory, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    random, times = np.random.default_rng(4), np.arange(0.0, 18.0, 0.05)
    waves = smooth(random, times, 5, 6.0)
    pixels = np.array([200.0, 160.0]) + waves[:, :2] * [55.0, 45.0]
    poses = []
    for pixel, wave in zip(pixels, waves[:, 2:], strict=True):
        turn = rigid.rotation_from_vector(np.deg2rad(18.0) * wave)
        local = np.array([*(pixel - ORIGIN) * SPACING, 0.0])
        poses.append(rigid.transform(turn, [0.1, 0.2, 0.3] - turn @ local) @ rigid.inverse(MOUNT))
    for at, pose in zip(times, spoiled(random, np.array(poses), Errors()), strict=True):
        laboratory.pose(10.0 + at, 'world', 'ultrasound_probe', pose)
    for at, pixel in zip(times[::2], pixels[::2], strict=True):
        # Now and then something else is brighter.
        wrong = random.random() < 0.08
        seen = random.uniform((60, 60), (350, 250)) if wrong else pixel
        laboratory.image(10.0 + at, 10.0 + at + 0.03, spots_image(random, seen))
    laboratory.start()
    output, bag = tmp_path / 'lab.yaml', str(tmp_path / 'bag')
    assert main(['calibrate', 'ultrasound-spatial', bag, '--record', '6', '--target', 'point',
                 '--reference', 'world', '--origin', *map(str, ORIGIN),
                 '--output', str(output)]) == 0
    entry, = load(output, datetime.now(timezone.utc))
    # What came through a busy machine in six seconds: how exact it can be is tested elsewhere.
    assert off_mount(entry) < 1.5e-3
    assert entry.samples is not None
    assert entry.inliers is not None
    assert 30 <= entry.inliers < entry.samples
    assert 'from one fixed point' in capsys.readouterr().out


def test_carm_from_live_xrays_of_a_phantom_that_is_moved_in_between(
        laboratory: Laboratory, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    camera = np.array([[2700.0, 0.0, 262.0], [0.0, 2700.0, 250.0], [0.0, 0.0, 1.0]])
    beads = scatter_beads(random, 14, np.array([0.08, 0.08, 0.08]), 0.014)
    np.savetxt(tmp_path / 'phantom.txt', beads * 1e3)
    for number in range(7):
        pose = rigid.transform(rigid.rotation_from_vector(random.normal(0.0, 0.35, 3)),
                               np.array([0.003, -0.002, 0.75]))
        pixels = bead_pixels(random, beads, pose, camera, Errors(pixel=0.0, outliers=0.0))
        if number == 3:
            pixels += 600.0  # not in the image
        laboratory.image(1.0 + number, 1.0 + number, bead_image(random, pixels, 4.0, (512, 512)),
                         'fluoroscopy')
    laboratory.start()
    output = tmp_path / 'lab.yaml'
    assert main(['calibrate', 'carm', str(tmp_path / 'bag'), '--record', '2.5', '--beads',
                 str(tmp_path / 'phantom.txt'), '--focal', '2650', '--radius', '4',
                 '--output', str(output)]) == 0
    entry, = load(output, datetime.now(timezone.utc))
    assert entry.camera is not None
    assert abs(entry.camera.focal[0] / 2700.0 - 1.0) < 0.01
    assert ' 0 images left out' not in (tmp_path / 'lab-carm.txt').read_text()
    # The same beads for those of a probe: of the live images the first that shows them.
    assert main(['calibrate', 'fluoroscopy-ultrasound', str(tmp_path / 'shot'), '--record', '1.5',
                 '--beads', str(tmp_path / 'phantom.txt'), '--camera', str(output), '--radius', '4',
                 '--output', str(output)]) == 0
    probe = {item.kind: item for item in load(output, datetime.now(timezone.utc))}[
        'fluoroscopy-ultrasound']
    assert probe.transform[2, 3] == pytest.approx(0.75, abs=0.01)


def test_wires_without_their_description_are_refused(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['calibrate', 'ultrasound-spatial', str(tmp_path / 'none.igs.mha')]) == 2
    assert '--phantom: name the description of the N-wires' in capsys.readouterr().err


def test_what_does_not_come_is_named_and_nothing_is_left_behind(
        laboratory: Laboratory, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('hybrid_guidance.record._START_S', 1.0)
    laboratory.pose(1.0, 'world', 'stylus', np.eye(4))
    laboratory.start()
    for kind, words in (('pivot', 'no pose of stylus in reference'),
                        ('ultrasound-temporal', 'no image on /ultrasound/image_raw')):
        assert main(['calibrate', kind, str(tmp_path / 'bag'), '--record', '5']) == 2
        assert words in capsys.readouterr().err
    assert main(['calibrate', 'pivot', str(tmp_path / 'bag.mcap'), '--record', '5']) == 2
    assert 'name it without ".mcap"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
