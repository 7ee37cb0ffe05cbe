"""One contract for tf2_ros and for the built-in, whichever this machine has."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from hybrid_guidance.geometry.rigid import interpolate, pose_along, transform
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.convert import matrix_from_transform, transform_message

SECOND = 1_000_000_000


def along(x: float) -> np.ndarray:
    return transform(translation=np.array([x, 0.0, 0.0]))


def at(seconds: float) -> Time:
    return Time(nanoseconds=int(seconds * SECOND))


@pytest.fixture
def buffer() -> tf.Buffer:
    buffer = tf.Buffer()
    for second in (100, 101, 102):
        buffer.set_transform(
            transform_message('world', 'probe', second * SECOND, along(second - 100.0)), 'test')
    buffer.set_transform_static(transform_message('probe', 'image', 0, along(10.0)), 'test')
    return buffer


def test_position_is_linear_and_rotation_slerped_between_stamps() -> None:
    buffer = tf.Buffer()
    first = pose_along(np.zeros(3), np.array([0.0, 0.0, 1.0]))
    second = pose_along(np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.2, 1.0]))
    buffer.set_transform(transform_message('world', 'probe', 100 * SECOND, first), 'test')
    buffer.set_transform(transform_message('world', 'probe', 101 * SECOND, second), 'test')
    found = buffer.lookup_transform('world', 'probe', at(100.3))
    assert np.allclose(matrix_from_transform(found.transform),
                       interpolate(first, second, 0.3), atol=1e-9)


def test_frames_and_stamp_of_the_answer(buffer: tf.Buffer) -> None:
    found = buffer.lookup_transform('world', 'image', at(101.5))
    assert (found.header.frame_id, found.child_frame_id) == ('world', 'image')
    assert found.header.stamp.sec == 101
    assert found.transform.translation.x == pytest.approx(11.5)


def test_future_and_past_fail_differently(buffer: tf.Buffer) -> None:
    with pytest.raises(tf.FutureException):
        buffer.lookup_transform('world', 'probe', at(102.001))
    with pytest.raises(tf.PastException):
        buffer.lookup_transform('world', 'probe', at(99.9))
    assert issubclass(tf.FutureException, tf.ExtrapolationException)
    assert issubclass(tf.PastException, tf.ExtrapolationException)


@pytest.mark.parametrize('sample', [0.5, 100.0, 1_795_493_378.25])
def test_a_single_sample_holds_at_its_own_time_only(sample: float) -> None:
    """Of a single one tf2 does not say which way it would extrapolate."""
    buffer = tf.Buffer()
    buffer.set_transform(
        transform_message('world', 'probe', int(sample * SECOND), along(3.0)), 'test')
    for before in (0.001, 0.4):
        with pytest.raises(tf.PastException):
            buffer.lookup_transform('world', 'probe', at(sample - before))
    for after in (0.001, 20.0):
        with pytest.raises(tf.FutureException):
            buffer.lookup_transform('world', 'probe', at(sample + after))
    assert buffer.lookup_transform('world', 'probe', at(sample)).transform.translation.x == 3.0
    assert buffer.lookup_transform('world', 'probe', Time()).transform.translation.x == 3.0


def test_a_single_sample_in_a_chain_is_past_too(buffer: tf.Buffer) -> None:
    buffer.set_transform(transform_message('world', 'carm', 101 * SECOND, along(5.0)), 'test')
    with pytest.raises(tf.PastException):
        buffer.lookup_transform('image', 'carm', at(100.5))
    assert buffer.lookup_transform('world', 'carm', at(101.0)).transform.translation.x == 5.0


def test_a_looked_up_matrix_is_that_of_the_message(buffer: tf.Buffer) -> None:
    for seconds in (100.0, 101.25, 102.0):
        found = buffer.lookup_transform('image', 'world', at(seconds))
        assert np.allclose(buffer.lookup_matrix('image', 'world', at(seconds)),
                           matrix_from_transform(found.transform), atol=1e-12)
    with pytest.raises(tf.FutureException):
        buffer.lookup_matrix('image', 'world', at(102.1))


def test_time_zero_is_the_latest(buffer: tf.Buffer) -> None:
    assert buffer.lookup_transform('world', 'image', Time()).transform.translation.x == 12.0


def test_static_transform_holds_at_any_time(buffer: tf.Buffer) -> None:
    for seconds in (0.001, 5.0, 1e6):
        found = buffer.lookup_transform('probe', 'image', at(seconds))
        assert found.transform.translation.x == 10.0


def test_static_transform_can_be_replaced(buffer: tf.Buffer) -> None:
    buffer.set_transform_static(transform_message('probe', 'image', 0, along(20.0)), 'test')
    assert buffer.lookup_transform('probe', 'image', Time()).transform.translation.x == 20.0


def test_unknown_and_disconnected_frames_fail_differently(buffer: tf.Buffer) -> None:
    buffer.set_transform(transform_message('island', 'hut', 100 * SECOND, along(0.0)), 'test')
    with pytest.raises(tf.LookupException):
        buffer.lookup_transform('world', 'ghost', Time())
    with pytest.raises(tf.ConnectivityException):
        buffer.lookup_transform('world', 'hut', Time())


def test_can_transform_tells_without_raising(buffer: tf.Buffer) -> None:
    assert buffer.can_transform('world', 'image', at(101.0))
    assert not buffer.can_transform('world', 'image', at(200.0))


def test_second_parent_is_refused(buffer: tf.Buffer) -> None:
    with pytest.raises(tf.RefusedException, match='already has the parent'):
        buffer.set_transform(transform_message('carm', 'probe', 102 * SECOND, along(0.0)), 'test')
    assert buffer.lookup_transform('world', 'probe', Time()).transform.translation.x == 2.0


def test_loop_is_refused(buffer: tf.Buffer) -> None:
    with pytest.raises(tf.RefusedException, match='loop'):
        buffer.set_transform(transform_message('image', 'world', 102 * SECOND, along(0.0)), 'test')


@pytest.mark.parametrize('spoil', [
    lambda m: setattr(m.transform.translation, 'x', float('nan')),
    lambda m: setattr(m.transform.rotation, 'w', 0.5)])
def test_what_is_not_rigid_is_refused(buffer: tf.Buffer, spoil) -> None:
    message = transform_message('world', 'probe', 103 * SECOND, along(0.0))
    spoil(message)
    with pytest.raises(tf.RefusedException):
        buffer.set_transform(message, 'test')


def test_clear_forgets_what_moves(buffer: tf.Buffer) -> None:
    buffer.clear()
    with pytest.raises(tf.TransformException):
        buffer.lookup_transform('world', 'probe', Time())
    assert buffer.lookup_transform('probe', 'image', Time()).transform.translation.x == 10.0


@pytest.fixture
def node(ros: None) -> Iterator[Node]:
    node = rclpy.create_node('tf_test')
    yield node
    node.destroy_node()


def spin(node: Node, until, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.05)
    assert until()


def test_broadcast_transforms_reach_a_listener(node: Node) -> None:
    buffer = tf.Buffer(node=node)
    listener = tf.TransformListener(buffer, node)
    moving, static = tf.TransformBroadcaster(node), tf.StaticTransformBroadcaster(node)
    static.sendTransform(transform_message('probe', 'image', 0, along(10.0)))

    def arrived() -> bool:
        moving.sendTransform([transform_message('world', 'probe', 100 * SECOND, along(1.0))])
        return buffer.can_transform('world', 'image', at(100.0))
    spin(node, arrived)
    assert not listener.refused


def test_listener_survives_and_names_a_bad_transform(node: Node) -> None:
    buffer = tf.Buffer(node=node)
    listener = tf.TransformListener(buffer, node)
    bad = transform_message('world', 'probe', 100 * SECOND, along(0.0))
    bad.transform.translation.y = float('inf')
    good = transform_message('world', 'carm', 100 * SECOND, along(0.0))
    listener.callback(_message(bad, good))
    assert 'not finite' in listener.refused['probe']
    assert buffer.can_transform('world', 'carm', Time())


def _message(*transforms: TransformStamped):
    from tf2_msgs.msg import TFMessage
    return TFMessage(transforms=list(transforms))


def test_static_broadcaster_replaces_a_frame_for_late_listeners(node: Node) -> None:
    static = tf.StaticTransformBroadcaster(node)
    static.sendTransform(transform_message('probe', 'image', 0, along(1.0)))
    static.sendTransform(transform_message('carm', 'optical', 0, along(3.0)))
    static.sendTransform(transform_message('probe', 'image', 0, along(2.0)))
    buffer = tf.Buffer(node=node)
    listener = tf.TransformListener(buffer, node)
    spin(node, lambda: buffer.can_transform('probe', 'image', Time())
         and buffer.can_transform('carm', 'optical', Time()))
    assert buffer.lookup_transform('probe', 'image', Time()).transform.translation.x == 2.0
    assert not listener.refused


def test_clock_that_jumps_back_clears_what_moves(ros: None) -> None:
    node = rclpy.create_node('tf_jump_test', parameter_overrides=[
        Parameter('use_sim_time', value=True)])
    clock = node.create_publisher(Clock, '/clock', 10)
    buffer = tf.Buffer(node=node)

    def now_is(seconds: int) -> bool:
        message = Clock()
        message.clock.sec = seconds
        clock.publish(message)
        return node.get_clock().now().nanoseconds == seconds * SECOND
    spin(node, lambda: now_is(200))
    buffer.set_transform(transform_message('world', 'probe', 200 * SECOND, along(1.0)), 'test')
    spin(node, lambda: now_is(50))
    assert not buffer.can_transform('world', 'probe', Time())
    node.destroy_node()
