"""Our bytes of needles and images against rclpy's own."""

import struct

import numpy as np
import pytest
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.serialization import deserialize_message, serialize_message

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.ros.convert import (
    MessageError,
    image_message,
    needle_from_message,
    needle_message,
    pixels_from_message,
    stamp_ns,
)
from hybrid_guidance.ros.serialized import image_from_bytes, needle_bytes, needle_from_bytes

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


@pytest.mark.parametrize('frame', FRAMES)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_an_image_is_what_its_message_says(frame: str, dtype: type) -> None:
    random = np.random.default_rng(3)
    for shape in ((7, 5), (1, 1), (33, 18)):
        pixels = random.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
        message = image_message(pixels, frame, 10**18 + 7)
        found = image_from_bytes(serialize_message(message))
        assert (found.frame_id, found.stamp_ns) == (frame, 10**18 + 7)
        assert (found.height, found.width, found.step) == (*shape, message.step)
        assert (found.encoding, found.is_bigendian) == (message.encoding, 0)
        assert bytes(found.data) == message.data.tobytes()
        assert np.array_equal(pixels_from_message(found), pixels)


def test_an_image_of_the_other_byte_order_is_read_too() -> None:
    data = (b'\0\0\0\0' + struct.pack('>iII', 5, 6, 2) + b'a\0' + bytes(2)
            + struct.pack('>III', 2, 3, 6) + b'mono8\0' + bytes([1, 0]) + struct.pack('>II', 3, 6)
            + bytes(range(6)))
    found = image_from_bytes(data)
    assert (found.frame_id, found.stamp_ns, found.is_bigendian) == ('a', 5_000_000_006, 1)
    assert pixels_from_message(found).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_image_that_is_cut_off_anywhere_is_refused() -> None:
    data = serialize_message(image_message(np.zeros((3, 4), np.uint8), 'patient', 5))
    image_from_bytes(data)
    for keep in range(4, len(data)):
        with pytest.raises(MessageError):
            image_from_bytes(data[:keep])


@pytest.mark.parametrize('place', [12, 32, 48])
def test_an_image_that_lies_about_a_length_is_refused(place: int) -> None:
    """Of its frame, its encoding, its pixels."""
    data = bytearray(serialize_message(image_message(np.zeros((3, 4), np.uint8), 'patient', 5)))
    (length,) = struct.unpack_from('<I', data, place)
    assert length in (8, 6, 12)
    for wrong in (0xffffffff, 0x7fffffff, 1000):
        data[place:place + 4] = struct.pack('<I', wrong)
        with pytest.raises(MessageError):
            image_from_bytes(bytes(data))
