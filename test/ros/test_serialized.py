"""Our bytes of a needle against rclpy's own."""

import struct

import numpy as np
import pytest
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.serialization import deserialize_message, serialize_message

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.ros.convert import MessageError, needle_from_message, needle_message, stamp_ns
from hybrid_guidance.ros.serialized import needle_bytes, needle_from_bytes

FRAMES = '', 'a', 'patient', 'ultrasound_image', 'fluoroscopy_optical_frame', 'Hüfte'
NUMBERS = 28
"""Where they begin in the bytes of a needle in ``patient``."""


def needle(seed: int) -> NeedleEstimate:
    random = np.random.default_rng(seed)
    root = random.standard_normal((6, 6)) * [1e-3, 1e-3, 0.5, 0.01, 1.0, 1.8]
    return NeedleEstimate(pose_along(random.standard_normal(3), random.standard_normal(3)),
                          root @ root.T)


@pytest.mark.parametrize('frame', FRAMES)
def test_the_bytes_are_those_of_the_message(frame: str) -> None:
    for seed in range(20):
        stamp = 1_795_493_378_123_456_789 + 7_777_777_777 * seed
        ours, message = needle_bytes(needle(seed), frame, stamp), needle_message(
            needle(seed), frame, stamp)
        theirs, name = serialize_message(message), 16 + len(frame.encode())
        assert (len(ours), ours[:name]) == (len(theirs), theirs[:name])
        # What is between the name and the numbers means nothing, and rclpy leaves it as it is.
        assert ours[-43 * 8:] == theirs[-43 * 8:]
        assert deserialize_message(ours, PoseWithCovarianceStamped) == message


@pytest.mark.parametrize('frame', FRAMES)
def test_what_is_read_is_what_the_message_says_to_the_bit(frame: str) -> None:
    for seed in range(20):
        message = needle_message(needle(seed), frame, 10**18 + seed)
        name, stamp, found = needle_from_bytes(serialize_message(message))
        expected = needle_from_message(message)
        assert (name, stamp) == (frame, stamp_ns(message.header.stamp))
        assert np.array_equal(found.pose, expected.pose)
        assert np.array_equal(found.covariance, expected.covariance)


def test_the_other_byte_order_is_read_too() -> None:
    data = needle_bytes(needle(1), 'patient', 5_000_000_006)
    numbers = struct.unpack_from('<43d', data, NUMBERS)
    swapped = (b'\0\0\0\0' + struct.pack('>iII', 5, 6, 8) + b'patient\0' + bytes(4)
               + struct.pack('>43d', *numbers))
    name, stamp, found = needle_from_bytes(swapped)
    assert (name, stamp) == ('patient', 5_000_000_006)
    assert np.array_equal(found.covariance, needle(1).covariance)


@pytest.mark.parametrize('keep', [4, 10, 16, 30, 200, 371])
def test_bytes_that_are_cut_off_are_refused(keep: int) -> None:
    data = needle_bytes(needle(1), 'patient', 5)
    assert len(data) == 372
    with pytest.raises(MessageError):
        needle_from_bytes(data[:keep])


def test_a_length_that_lies_is_refused() -> None:
    data = bytearray(needle_bytes(needle(1), 'patient', 5))
    data[12:16] = struct.pack('<I', 0xfffffff0)
    with pytest.raises(MessageError):
        needle_from_bytes(bytes(data))


@pytest.mark.parametrize(('place', 'value', 'words'), [
    (0, np.nan, 'not finite'), (5, 3.0, 'length'), (7, -1.0, 'covariance'), (8, 9.0, 'covariance'),
    (12, np.inf, 'covariance')])
def test_numbers_that_mean_nothing_are_refused(place: int, value: float, words: str) -> None:
    data = bytearray(needle_bytes(needle(1), 'patient', 5))
    data[NUMBERS + 8 * place:NUMBERS + 8 * place + 8] = struct.pack('<d', value)
    with pytest.raises(MessageError, match=words):
        needle_from_bytes(bytes(data))
