"""Needles and images as the bytes that go from node to node (OMG CDR), without a message between.

A message of fifty numbers is put together and taken apart one attribute at a time, by code that
has left the processor's caches since the last image: that takes longer than to send it. A large
image is filled with zeros and copied once more on its way into a message.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import quaternion
from hybrid_guidance.ros.convert import (
    MessageError,
    matrix_from_numbers,
    needle_from_message,
    stamp_ns,
    valid_covariance,
)

_ORDERS = {b'\0\0\0\0': '>', b'\0\1\0\0': '<'}
_NUMBERS = 3 + 4 + 36


def needle_bytes(needle: NeedleEstimate, frame_id: str, nanoseconds: int) -> bytes:
    """Return a needle as a serialized PoseWithCovarianceStamped, as ``needle_message`` makes it.

    Args:
        needle: in ``frame_id``.
        frame_id: of its pose.
        nanoseconds: acquisition time.
    """
    layout, name = _layout(frame_id)
    return layout.pack(
        b'\0\1\0\0', *divmod(nanoseconds, 1_000_000_000), len(name), name,
        *needle.pose[:3, 3].tolist(), *quaternion(needle.pose).tolist(),
        *needle.covariance.ravel().tolist())


def needle_from_bytes(data: bytes) -> tuple[str, int, NeedleEstimate]:
    """Return frame, stamp (ns) and needle of a serialized PoseWithCovarianceStamped.

    Raises:
        MessageError: cut off, not finite, not a unit quaternion, or the covariance is not one.
    """
    order = _ORDERS.get(data[:4])
    if order is None:
        message = deserialize_message(data, PoseWithCovarianceStamped)
        return message.header.frame_id, stamp_ns(message.header.stamp), needle_from_message(message)
    try:
        frame_id, nanoseconds, end = _header(data, order)
        numbers = struct.unpack_from(f'{order}{_NUMBERS}d', data, _aligned(end, 8))
    except (struct.error, UnicodeDecodeError) as error:
        raise MessageError(f'{len(data)} bytes are no pose with covariance: {error}') from None
    return frame_id, nanoseconds, NeedleEstimate(
        matrix_from_numbers(numbers[:3], numbers[3:7]),
        valid_covariance(np.array(numbers[7:]).reshape(6, 6)))


@dataclass
class SerializedImage:
    """What an Image says; ``data`` is a view of the bytes that came, not to be written to."""

    frame_id: str
    stamp_ns: int
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview


def image_from_bytes(data: bytes) -> SerializedImage:
    """Return a serialized Image.

    Raises:
        MessageError: cut off, or its parts lie about their lengths.
    """
    order = _ORDERS.get(data[:4])
    if order is None:
        image = deserialize_message(data, Image)
        return SerializedImage(
            image.header.frame_id, stamp_ns(image.header.stamp), image.height, image.width,
            image.encoding, image.is_bigendian, image.step, memoryview(image.data))
    try:
        frame_id, nanoseconds, end = _header(data, order)
        start = _aligned(end, 4)
        height, width = struct.unpack_from(f'{order}II', data, start)
        encoding, end = _string(data, order, start + 8)
        is_bigendian = data[end]
        step, count = struct.unpack_from(f'{order}II', data, start := _aligned(end + 1, 4))
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise MessageError(f'{len(data)} bytes are no image: {error}') from None
    pixels = memoryview(data)[start + 8:start + 8 + count]
    if len(pixels) < count:
        raise MessageError(f'an image of {count} bytes is cut off after {len(pixels)}')
    return SerializedImage(frame_id, nanoseconds, height, width, encoding, is_bigendian, step,
                           pixels)


def _header(data: bytes, order: str) -> tuple[str, int, int]:
    """Return frame and stamp of the header that comes first, and where it ends."""
    seconds, rest = struct.unpack_from(f'{order}iI', data, 4)
    frame_id, end = _string(data, order, 12)
    return frame_id, seconds * 1_000_000_000 + rest, end


def _string(data: bytes, order: str, start: int) -> tuple[str, int]:
    """Return the string that begins with its length, and where it ends."""
    (length,) = struct.unpack_from(f'{order}I', data, start)
    end = start + 4 + length
    return data[start + 4:end - 1].decode(), end


def _aligned(place: int, size: int) -> int:
    """Return where a number of some bytes begins: counted from behind the four of the order."""
    return place + -(place - 4) % size


@lru_cache(maxsize=16)
def _layout(frame_id: str) -> tuple[struct.Struct, bytes]:
    """Return how a needle in some frame is laid out, and the frame's name as it is written."""
    name = frame_id.encode() + b'\0'
    return struct.Struct(f'<4siII{len(name)}s{-(12 + len(name)) % 8}x{_NUMBERS}d'), name
