"""``hybrid-guidance calibrate … --record``: a live graph of real publishers, to the entry."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from hybrid_guidance.calibration.file import load, load_delays
from hybrid_guidance.cli import main
from hybrid_guidance.geometry import rigid
from hybrid_guidance.ros import environment, tf
from hybrid_guidance.ros.convert import image_message, transform_message
from hybrid_guidance.simulation.calibrations import Errors, bobbing, pivoting

NOW = datetime.now(timezone.utc)
Item = tuple[float, Callable[[], None]]


class Laboratory:
    """A node of its own that plays a schedule, again and again, a few times as fast as true.

    Calibrations go by stamps: what was taken in 20 s is told in five.
    """

    SPEED = 4.0

    def __init__(self) -> None:
        environment.prepare()
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node('laboratory', context=self._context)
        self._tf = tf.TransformBroadcaster(self.node)
        self._static = tf.StaticTransformBroadcaster(self.node)
        self._image = self.node.create_publisher(
            Image, 'ultrasound/image_raw', QoSProfile(depth=10))
        self._diagnostics = self.node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._items: list[Item] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def pose(self, at: float, parent: str, child: str, pose: np.ndarray) -> None:
        message = transform_message(parent, child, round(at * 1e9), pose)
        self._items.append((at, lambda: self._tf.sendTransform([message])))

    def fixed(self, parent: str, child: str, pose: np.ndarray) -> None:
        self._static.sendTransform([transform_message(parent, child, 0, pose)])

    def image(self, at: float, stamp: float, pixels: np.ndarray) -> None:
        message = image_message(pixels, 'ultrasound_image', round(stamp * 1e9))
        self._items.append((at, lambda: self._image.publish(message)))

    def took_off(self, delay: float) -> None:
        """Say what ultrasound_node says of the delay that it takes off."""
        message = DiagnosticArray(status=[DiagnosticStatus(
            name='ultrasound_node', values=[KeyValue(key='delay taken off, s', value=str(delay))])])
        self._items += [(at, lambda: self._diagnostics.publish(message)) for at in (3.0, 6.0)]

    def start(self) -> None:
        self._items.sort(key=lambda item: item[0])
        self._thread.start()

    def _play(self) -> None:
        while not self._end.is_set():
            begun = time.monotonic()
            first = self._items[0][0]
            for at, say in self._items:
                while (due := begun + (at - first) / self.SPEED) > time.monotonic():
                    if self._end.wait(min(due - time.monotonic(), 0.1)):
                        return
                say()

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
    entry, = load(output, NOW)
    assert np.linalg.norm(entry.transform[:3, 3] - tip) < 0.5e-3
    # The recording stays, and is read again as any other.
    assert main(['calibrate', 'pivot', str(bag), '--output', str(output)]) == 0
    assert main(['calibrate', 'pivot', str(bag), '--record', '5', '--output', str(output)]) == 2
    assert 'nothing to record' in capsys.readouterr().err


def floor_image(row: float) -> np.ndarray:
    rows = np.arange(200.0)[:, None]
    return np.repeat(200.0 * np.exp(-((rows - row) / 2.5)**2), 160, axis=1).astype(np.uint8)


@pytest.mark.parametrize('taken_off', [0.0, 0.05])
def test_delay_from_live_images_and_poses_is_all_of_it(
        laboratory: Laboratory, tmp_path: Path, taken_off: float) -> None:
    """What the image node has taken off by an earlier calibration is put back."""
    stamps, floor, times, poses = bobbing(np.random.default_rng(2), 0.08, 14.0,
                                          Errors(outliers=0.0))
    for at, pose in zip(times, poses, strict=True):
        laboratory.pose(10.0 + at, 'world', 'ultrasound_probe', pose)
    for stamp, row in zip(stamps, floor, strict=True):
        laboratory.image(10.0 + stamp, 10.0 + stamp - taken_off,
                         floor_image(100.0 + 0.3 * (row - 300.0)))
    if taken_off:
        laboratory.took_off(taken_off)
    laboratory.start()
    output = tmp_path / 'lab.yaml'
    assert main(['calibrate', 'ultrasound-temporal', str(tmp_path / 'bag'), '--record', '4',
                 '--reference', 'world', '--output', str(output)]) == 0
    assert abs(load_delays(output, NOW)['ultrasound'].delay - 0.08) < 0.005


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
    assert list(tmp_path.iterdir()) == []
