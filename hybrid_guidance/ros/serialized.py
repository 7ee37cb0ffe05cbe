"""Needles as the bytes that go from node to node (OMG CDR), without a message in between.

A message of fifty numbers is put together and taken apart one attribute at a time, by code that
has left the processor's caches since the last image: that takes longer than to send it.
"""

import struct
from functools import lru_cache

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.serialization import deserialize_message

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
        seconds, rest, length = struct.unpack_from(f'{order}iII', data, 4)
        name = data[16:15 + length].decode()
        # Doubles begin at a multiple of eight, counted from behind the four bytes of the order.
        numbers = struct.unpack_from(f'{order}{_NUMBERS}d', data, 4 + (12 + length + 7) // 8 * 8)
    except (struct.error, UnicodeDecodeError) as error:
        raise MessageError(f'{len(data)} bytes are no pose with covariance: {error}') from None
    return name, seconds * 1_000_000_000 + rest, NeedleEstimate(
        matrix_from_numbers(numbers[:3], numbers[3:7]),
        valid_covariance(np.array(numbers[7:]).reshape(6, 6)))


@lru_cache(maxsize=16)
def _layout(frame_id: str) -> tuple[struct.Struct, bytes]:
    """Return how a needle in some frame is laid out, and the frame's name as it is written."""
    name = frame_id.encode() + b'\0'
    return struct.Struct(f'<4siII{len(name)}s{-(12 + len(name)) % 8}x{_NUMBERS}d'), name
