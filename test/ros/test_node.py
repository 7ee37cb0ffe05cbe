"""GuidanceNode: parameters, guarded callbacks, pairing of image and camera_info."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.parameters import ParameterError, parameter
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.convert import camera_info_message, image_message
from hybrid_guidance.ros.node import GuidanceNode


@dataclass(frozen=True)
class ExampleParameters:
    gain: float = parameter(1.0, low=0.0, high=2.0, unit='m', meaning='a number')
    source: str = parameter('a', choices=('a', 'b'), fixed=True, meaning='a word')


class ExampleNode(GuidanceNode[ExampleParameters]):
    def __init__(self, **options) -> None:
        super().__init__('example_node', ExampleParameters, **options)
        self.frames = []
        self.heard = []
        self.subscribe_frames('ultrasound', lambda frame, frame_id: self.frames.append(
            (frame, frame_id)))
        self.create_subscription(Float64, 'number', self._on_number, 10)
        self.create_service(Trigger, 'fail', self._on_fail)

    def _on_number(self, message: Float64) -> None:
        if message.data < 0:
            raise ValueError('a negative number')
        self.heard.append(message.data)

    def _on_fail(self, request, response):
        raise RuntimeError('it broke')


@pytest.fixture
def graph(ros: None) -> Iterator:
    node, peer = ExampleNode(), rclpy.create_node('peer')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(peer)

    def spin(until, seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.02)
        assert until()
    yield node, peer, spin
    executor.shutdown()
    node.destroy_node()
    peer.destroy_node()


@pytest.mark.parametrize(('name', 'value', 'words'), [
    ('gain', float('nan'), 'gain'), ('gain', 3.0, 'gain'), ('gain', 'x', 'not a float'),
    ('source', 'b', 'read-only')])
def test_bad_parameter_is_refused_with_words(graph, name: str, value: object,
                                             words: str) -> None:
    node = graph[0]
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    assert words in result.reason
    assert node.parameters == ExampleParameters()


def test_good_parameter_takes_effect_as_a_whole(graph) -> None:
    node = graph[0]
    assert node.set_parameters([Parameter('gain', value=2)])[0].successful
    assert node.parameters.gain == 2.0
    assert isinstance(node.parameters.gain, float)


@pytest.mark.parametrize('value', [5.0, float('nan'), 'much'])
def test_bad_parameter_at_start_is_refused_with_its_name(ros: None, value: object) -> None:
    with pytest.raises(ParameterError, match='gain'):
        ExampleNode(parameter_overrides=[Parameter('gain', value=value)])


def test_callback_that_raises_is_reported_and_the_node_goes_on(graph) -> None:
    node, peer, spin = graph
    statuses = []
    peer.create_subscription(DiagnosticArray, '/diagnostics', lambda message: statuses.extend(
        message.status), 10)
    numbers = peer.create_publisher(Float64, 'number', 10)
    spin(lambda: numbers.get_subscription_count() > 0
         and node.count_subscribers('/diagnostics') > 0)
    numbers.publish(Float64(data=-1.0))
    spin(lambda: any('a negative number' in status.message and status.level == b'\x02'
                     for status in statuses))
    numbers.publish(Float64(data=4.0))
    spin(lambda: node.heard == [4.0])
    assert node.health.faults == {}


def test_timers_fail_and_recover_each_under_its_own_name(graph) -> None:
    """With one name for all, a timer that works would hide one that fails."""
    node, _, spin = graph
    broken, ticks = [True], []

    def _measure() -> None:
        if broken[0]:
            raise ValueError('no reading')

    def _show() -> None:
        ticks.append(1)
    node.create_timer(0.01, _measure)
    node.create_timer(0.01, _show)
    spin(lambda: len(ticks) > 5)
    assert node.health.faults == {'timer measure': 'ValueError: no reading'}
    broken[0] = False
    spin(lambda: node.health.faults == {})


def test_told_to_stop_within_a_callback_it_ends_without_complaint(capfd) -> None:
    """What it can no longer publish is no fault of the graph."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = ExampleNode(context=context)

    def _tick() -> None:
        rclpy.shutdown(context=context)
        node.health.publish()
    timer = node.create_timer(1.0, _tick)
    timer.callback()
    assert node.health.faults == {}
    assert 'RCLError' not in ''.join(capfd.readouterr())


def test_service_that_raises_answers_with_the_reason(graph) -> None:
    _, peer, spin = graph
    client = peer.create_client(Trigger, 'fail')
    spin(client.service_is_ready)
    future = client.call_async(Trigger.Request())
    spin(future.done)
    assert not future.result().success
    assert 'it broke' in future.result().message


def test_a_publisher_that_cannot_be_heard_is_named_until_it_is_gone(graph) -> None:
    node, peer, spin = graph
    quiet = peer.create_publisher(Float64, 'number', QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    spin(lambda: any('peer' in words and 'best effort' in words.lower().replace('_', ' ')
                     for topic, words in node.health.faults.items() if topic.endswith('/number')),
         15.0)
    peer.destroy_publisher(quiet)
    spin(lambda: not node.health.faults, 15.0)


def test_partners_that_fit_are_not_reported(graph) -> None:
    """Ours and another node's, of every topic, both ways."""
    node, peer, spin = graph
    loud = peer.create_publisher(Float64, 'number', 10)
    peer.create_subscription(DiagnosticArray, '/diagnostics', lambda message: None, 10)
    images = node.create_publisher(Image, 'ultrasound/image_raw', qos.IMAGE)
    spin(lambda: loud.get_subscription_count() > 0 and images.get_subscription_count() > 0)
    for _ in range(12):
        node._partners.check()
        assert node.health.faults == {}


@pytest.mark.parametrize('image_first', [True, False])
def test_image_and_info_are_paired_by_stamp_whichever_comes_first(graph, image_first) -> None:
    node, peer, spin = graph
    projection = Projection.orthographic((1e-4, 1e-4), (2.0, 0.0), (5, 4))
    images = peer.create_publisher(Image, 'ultrasound/image_raw', qos.IMAGE)
    infos = peer.create_publisher(CameraInfo, 'ultrasound/camera_info', qos.CAMERA_INFO)
    spin(lambda: images.get_subscription_count() > 0 and infos.get_subscription_count() > 0)
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)

    def send_image() -> None:
        images.publish(image_message(pixels, 'ultrasound_image', 7))

    def send_info() -> None:
        infos.publish(camera_info_message(projection, 'ultrasound_image', 7))
    infos.publish(camera_info_message(projection, 'ultrasound_image', 6))
    for send in (send_image, send_info) if image_first else (send_info, send_image):
        send()
        for _ in range(5):
            spin(lambda: True)
    spin(lambda: len(node.frames) == 1)
    frame, frame_id = node.frames[0]
    assert (frame.stamp_ns, frame_id) == (7, 'ultrasound_image')
    assert np.array_equal(frame.pixels, pixels)
    assert np.allclose(frame.projection.matrix, projection.matrix)
    # The camera_info of 6 came, its image did not and will not.
    assert node.health._values['ultrasound images missed'] == '1'


def test_no_image_is_missed_of_those_that_all_come(graph) -> None:
    node, peer, spin = graph
    projection = Projection.orthographic((1e-4, 1e-4), (2.0, 0.0), (5, 4))
    images = peer.create_publisher(Image, 'ultrasound/image_raw', qos.IMAGE)
    infos = peer.create_publisher(CameraInfo, 'ultrasound/camera_info', qos.CAMERA_INFO)
    spin(lambda: images.get_subscription_count() > 0 and infos.get_subscription_count() > 0)
    for stamp in range(5):
        infos.publish(camera_info_message(projection, 'ultrasound_image', stamp))
        images.publish(image_message(np.zeros((4, 5), np.uint8), 'ultrasound_image', stamp))
        spin(lambda stamp=stamp: len(node.frames) == stamp + 1)
    assert node.health._values['ultrasound images missed'] == '0'
