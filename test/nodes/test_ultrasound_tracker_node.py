"""ultrasound_tracker_node: the bone surface in metres, beside the needle and after it."""

from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseWithCovarianceStamped
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.nodes import ultrasound_tracker_node as tracker
from hybrid_guidance.nodes.ultrasound_tracker_node import UltrasoundTrackerNode
from hybrid_guidance.ros import node, qos
from hybrid_guidance.ros.convert import camera_info_message, image_message, stamp_ns
from hybrid_guidance.ros.tracker import NeedleTracker

SIZE = (640, 480)
SCALE = Projection.orthographic((1.0e-4, 1.25e-4), (320.0, 10.0), SIZE)
RADIUS, CENTRE = 120.0, (330.0, 420.0)
PERIOD = 33_333_333


def bone() -> np.ndarray:
    """Return (480, 640) uint8: speckle, and a round bone of RADIUS px with its shadow."""
    v, u = np.mgrid[:SIZE[1], :SIZE[0]]
    below = v - (CENTRE[1] - np.sqrt(np.maximum(RADIUS**2 - (u - CENTRE[0])**2, 0.0)))
    beside = np.abs(u - CENTRE[0]) > 0.7 * RADIUS
    echo = np.where(beside, 0.0, 350.0 * np.exp(-0.5 * (below / 2.5)**2))
    tissue = np.where(beside | (below < 0.0), 8.0, 0.2)
    envelope = tissue * np.hypot(*np.random.default_rng(1).normal(size=(2, *v.shape))) + echo
    return np.clip(85.0 * np.log10(np.maximum(envelope, 1.0)), 0, 255).astype(np.uint8)


class Bench:
    """The node, a source of images, and what comes out of it."""

    def __init__(self, peer, **parameters) -> None:
        self.peer = peer('ultrasound', **parameters)
        self.node = self.peer.start(UltrasoundTrackerNode)
        publish = self.peer.node.create_publisher
        self._image = publish(Image, 'ultrasound/image_raw', qos.IMAGE)
        self._info = publish(CameraInfo, 'ultrasound/camera_info', qos.CAMERA_INFO)
        self.clouds: list[PointCloud2] = []
        self._frames = 0
        # The peer's own subscriptions count, too.
        self.peer.spin(lambda: self._image.get_subscription_count() == 2
                       and self._info.get_subscription_count() == 2)

    def listen(self) -> None:
        self.peer.node.create_subscription(
            PointCloud2, 'ultrasound/bone_surface', self.clouds.append, 100)
        self.peer.spin(lambda: self.node.count_subscribers('ultrasound/bone_surface') == 1
                       and self.node._bone.get_subscription_count() == 1)

    def show(self, pixels: np.ndarray, stamp: int, projection: Projection = SCALE) -> None:
        """Send one image and wait until the node has looked at it."""
        self._info.publish(camera_info_message(projection, 'ultrasound_image', stamp))
        self._image.publish(image_message(pixels, 'ultrasound_image', stamp))
        self._frames += 1
        self.peer.spin(lambda: self.node.health._values.get('frames') == str(self._frames))
        self.peer.spin_for(0.05)


@pytest.fixture
def bench(peer) -> Bench:
    return Bench(peer)


def points(cloud: PointCloud2) -> np.ndarray:
    """Return (N, 4) by the fields' own description."""
    columns = {field.name: np.ndarray((cloud.width,), '<f4', bytes(cloud.data), field.offset,
                                      (cloud.point_step,)) for field in cloud.fields}
    return np.column_stack([columns[name] for name in ('x', 'y', 'z', 'intensity')])


def test_surface_lies_in_metres_where_it_was_drawn(bench: Bench) -> None:
    """A circle in pixels is an ellipse in metres, whose equation the points must satisfy."""
    bench.listen()
    bench.show(bone(), 7 * PERIOD)
    bench.peer.spin(lambda: len(bench.clouds) == 1)
    cloud = bench.clouds[0]
    assert (cloud.header.frame_id, stamp_ns(cloud.header.stamp)) == ('ultrasound_image', 7 * PERIOD)
    found = points(cloud)
    assert len(found) > 20
    u, v = 320.0 + found[:, 0] / 1.0e-4, 10.0 + found[:, 1] / 1.25e-4
    off = np.hypot(u - CENTRE[0], v - CENTRE[1]) - RADIUS
    assert np.median(np.abs(off)) < 2.0
    assert np.mean(np.abs(off) < 6.0) > 0.95
    assert np.all(found[:, 2] == 0.0)
    assert np.all((found[:, 3] > 0.0) & (found[:, 3] <= 1.0))


def test_no_bone_is_an_empty_cloud(bench: Bench) -> None:
    """So that nobody goes on showing the surface of an earlier image."""
    bench.listen()
    bench.show(np.zeros((480, 640), np.uint8), PERIOD)
    bench.peer.spin(lambda: len(bench.clouds) == 1)
    assert (bench.clouds[0].width, len(bench.clouds[0].data)) == (0, 0)


def test_uncalibrated_image_has_no_surface(bench: Bench) -> None:
    bench.listen()
    bench.show(bone(), PERIOD, Projection.uncalibrated(SIZE))
    bench.show(bone(), 2 * PERIOD)
    bench.peer.spin(lambda: len(bench.clouds) == 1)
    assert stamp_ns(bench.clouds[0].header.stamp) == 2 * PERIOD


def test_rate_is_held_in_the_time_of_the_images(peer) -> None:
    """Of 30 images a second every third at 10 Hz; one that starts over is not waited for."""
    bench = Bench(peer, bone_rate=10.1)
    bench.listen()
    stamps = [1_000_000_000 + PERIOD * index for index in range(8)] + [PERIOD]
    for stamp in stamps:
        bench.show(bone(), stamp)
    assert [stamps.index(stamp_ns(cloud.header.stamp)) for cloud in bench.clouds] == [0, 3, 6, 8]


def test_nothing_is_looked_for_while_nobody_listens(bench: Bench) -> None:
    looked = []
    detect = bench.node._detect_bone
    bench.node._detect_bone = lambda frame: looked.append(frame.stamp_ns) or detect(frame)
    bench.show(bone(), PERIOD)
    assert looked == []
    bench.listen()
    bench.show(bone(), 2 * PERIOD)
    assert looked == [2 * PERIOD]


def test_needle_is_published_once_three_images_agree_and_before_bone_is_looked_for(peer) -> None:
    bench = Bench(peer, bone_rate=100.0)
    needles, before = [], []
    bench.peer.node.create_subscription(
        PoseWithCovarianceStamped, 'ultrasound/needle', needles.append, 10)
    bench.listen()
    bench.peer.spin(lambda: bench.node.count_subscribers('ultrasound/needle') == 1)
    publish, detect = bench.node._track_needle._publisher.publish, bench.node._detect_bone
    bench.node._track_needle._publisher.publish = (
        lambda message: before.append('needle') or publish(message))
    bench.node._detect_bone = lambda frame: before.append('bone') or detect(frame)
    pixels = bone()
    v, u = np.mgrid[:SIZE[1], :SIZE[0]]
    # A shaft as bright as bone, 35° to the beams, that ends above it.
    along, across = (v - 200.0) * 0.82 + (u - 250.0) * 0.57, (u - 250.0) * 0.82 - (v - 200.0) * 0.57
    shaft = (along < 0.0) & (along > -150.0)
    pixels = np.maximum(pixels, np.where(
        shaft, 230.0 * np.exp(-0.5 * (across / 2.2)**2), 0.0)).astype(np.uint8)
    for number in range(1, 5):
        pixels[-1, -1] = number  # The same picture again would be none.
        bench.show(pixels, number * PERIOD)
    bench.peer.spin(lambda: len(needles) == 2 and len(bench.clouds) == 4)
    assert before == ['bone', 'bone', 'needle', 'bone', 'needle', 'bone']
    assert [stamp_ns(needle.header.stamp) for needle in needles] == [3 * PERIOD, 4 * PERIOD]


def test_a_frozen_image_is_said_on_diagnostics_and_one_that_changes_ends_it(bench: Bench) -> None:
    frozen = bone()
    for number in range(12):
        bench.show(frozen, 10**9 + number * PERIOD)
    bench.peer.spin(lambda: bench.peer.hears(
        'ultrasound_tracker_node', 'image does not change', level=2))
    bench.show(frozen[::-1].copy(), 10**9 + 12 * PERIOD)
    bench.peer.spin(lambda: not bench.peer.hears('ultrasound_tracker_node', 'does not change'))


def test_a_detector_of_ones_own_takes_the_place_of_the_tracker(peer) -> None:
    """The example of the documentation, as it stands there."""
    text = (Path(__file__).parents[2] / 'docs' / 'interfaces.md').read_text()
    example = text.split('## A better detector')[1].split('```python')[1].split('```')[0]
    found = PixelNeedle(np.array([400.0, 210.0]), np.array([0.6, 0.8]), 100.0,
                        np.diag([4.0, 1.0, 1e-4]), 0.9)
    names = {**vars(tracker), **vars(node), 'network': lambda frame: found,
             'NeedleTracker': NeedleTracker}
    exec(example, names)
    own = peer('ultrasound')
    own.start(names['NetworkTracker'])
    needles: list[PoseWithCovarianceStamped] = []
    own.node.create_subscription(
        PoseWithCovarianceStamped, 'ultrasound/needle', needles.append, 100)
    image = own.node.create_publisher(Image, 'ultrasound/image_raw', qos.IMAGE)
    info = own.node.create_publisher(CameraInfo, 'ultrasound/camera_info', qos.CAMERA_INFO)
    own.spin(lambda: image.get_subscription_count() == 2 and info.get_subscription_count() == 2)
    for number in range(1, 5):
        info.publish(camera_info_message(SCALE, 'ultrasound_image', number * PERIOD))
        image.publish(image_message(np.full((480, 640), number, np.uint8), 'ultrasound_image',
                                    number * PERIOD))
        own.spin_for(0.1)
    own.spin(lambda: len(needles) == 2)
    where = needles[0].pose.pose.position
    assert (where.x, where.y) == pytest.approx((0.008, 0.025))
