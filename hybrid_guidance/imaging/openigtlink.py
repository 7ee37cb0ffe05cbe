"""OpenIGTLink messages: what a peer says, checked before it is believed.

Headers, metadata and CRC are pyigtl's, and so is the packing of what is sent (``link_server``).
Bodies are unpacked here: pyigtl knows no TDATA, QTDATA and STATUS, its POSITION is not that of the
protocol, and it believes every length and checks no CRC. Protocol: openigtlink.org, header
versions 1 and 2; the layout of each message is that of the OpenIGTLink library's structures.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pyigtl.messages import CRC64, ImageMessage, MessageBase, PointMessage, TransformMessage

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import from_quaternion, is_rigid, transform_points
from hybrid_guidance.geometry.types import Array, Image, Points, Transform

HEADER_SIZE = int(MessageBase.IGTL_HEADER_SIZE)
PORT = 18944
MAXIMUM_BODY = 64 << 20
"""Bytes; a longer body is taken for a lie: a 4096 x 4096 image of 16 bits has half of that."""

RAS_T_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""3D Slicer's axes are right, anterior, superior; those of DICOM and of ``patient`` are left,
posterior, superior. It is its own inverse."""

POSE_TYPES = ('TRANSFORM', 'POSITION', 'TDATA', 'QTDATA')
KNOWN_TYPES = ('IMAGE', 'STATUS', *POSE_TYPES)

_CRC = struct.Struct('>Q')
_IMAGE_HEADER = struct.Struct('>HBBBB3H12f6H')
_TRACKING = {'TDATA': struct.Struct('>20sBB12f'), 'QTDATA': struct.Struct('>20sBB7f')}
_POINT_ONLY = 3
_MOST_TOOLS = 256
_MOST_METADATA = 1 << 20
_MOST_LETTERS = 300
_STATUS = struct.Struct('>Hq20s')
_SCALARS = {2: 'i1', 3: 'u1', 4: 'i2', 5: 'u2', 10: 'f4', 11: 'f8'}
_STATUS_NAMES = (
    'invalid', 'OK', 'unknown error', 'emergency', 'not found', 'access denied', 'busy',
    'timed out', 'overflow', 'checksum error', 'configuration error', 'out of resources',
    'unknown instruction', 'not ready', 'manual mode', 'disabled', 'not present',
    'unknown version', 'hardware failure', 'shutting down')


class LinkError(ValueError):
    """A message that cannot mean what it says; the text tells what is wrong with it."""


class FramingError(LinkError):
    """Bytes that are no header: where the next message begins is not known any more."""


@dataclass(frozen=True)
class Header:
    """What comes before every message.

    Attributes:
        version: 1, or 2 with an extended header and metadata in the body.
        kind: type of the message, such as ``IMAGE``.
        device: name of the device.
        time: seconds on the peer's clock; 0 where it gave none.
        body_size: bytes that follow.
        crc: of the body.
    """

    version: int
    kind: str
    device: str
    time: float
    body_size: int
    crc: int


@dataclass(frozen=True)
class LinkImage:
    """An image: (H, W) uint8 or uint16, and when the device says that it was taken."""

    device: str
    time: float
    pixels: Image


@dataclass(frozen=True)
class LinkPose:
    """A pose.

    Attributes:
        name: of the transform, such as ``ProbeToTracker``, or of the tool.
        is_tool: whether the name is that of one tool among those of a tracker.
        time: seconds on the peer's clock; 0 where it gave none.
        matrix: (4, 4), metres.
    """

    name: str
    is_tool: bool
    time: float
    matrix: Transform


@dataclass(frozen=True)
class LinkStatus:
    """What a device says of itself: code 1 is OK."""

    device: str
    code: int
    words: str


Message = LinkImage | LinkPose | LinkStatus


def parse_header(data: bytes) -> Header:
    """Return the header in ``HEADER_SIZE`` bytes.

    Raises:
        FramingError: this is no header, or one that announces more than ``MAXIMUM_BODY``.
    """
    try:
        fields = MessageBase.parse_header(data)
    except (UnicodeDecodeError, struct.error) as error:
        raise FramingError(f'no OpenIGTLink header ({error})') from None
    kind, size = fields['message_type'], int(fields['body_size'])
    if not re.fullmatch(r'[A-Z0-9_]{1,12}', kind) or not 1 <= fields['header_version'] <= 9:
        raise FramingError('no OpenIGTLink header: its type or version is none')
    if size > MAXIMUM_BODY:
        raise FramingError(f'{kind} of "{fields["device_name"]}" announces {size} bytes, more than '
                           f'{MAXIMUM_BODY >> 20} MiB')
    return Header(fields['header_version'], kind, fields['device_name'], fields['timestamp'], size,
                  _CRC.unpack(data[-8:])[0])


def decode(header: Header, body: bytes) -> tuple[Message, ...]:
    """Return what a message says: images, poses or a status; nothing where it is of another kind.

    A pose that its peer marks as not tracked is left out.

    Raises:
        LinkError: damaged (CRC), contradicts itself, or of a kind that cannot be used.
    """
    if header.kind not in KNOWN_TYPES:
        return ()
    if CRC64(body) != header.crc:
        raise LinkError(f'{_name(header)}: CRC is wrong: damaged on its way')
    content, metadata = _content(header, body)
    try:
        if header.kind == 'IMAGE':
            return (LinkImage(header.device, header.time, _image(header, content)),)
        if header.kind == 'STATUS':
            return (_status(header, content),)
        if not _is_tracked(metadata):
            return ()
        return _poses(header, content)
    except (struct.error, UnicodeDecodeError) as error:
        raise LinkError(f'{_name(header)}: malformed ({error})') from None


def _name(header: Header) -> str:
    return f'{header.kind} of "{header.device}"'


def _content(header: Header, body: bytes) -> tuple[bytes, dict[str, str]]:
    """Take extended header and metadata off a body, when its version has them."""
    if header.version < 2:
        return body, {}
    message = MessageBase()
    try:
        start, index, values = struct.unpack_from('>HHI', body)
        end = len(body) - index - values
        # Before pyigtl believes them.
        if not 12 <= start <= end or values > _MOST_METADATA:
            raise LinkError(f'{_name(header)}: extended header and metadata do not fit its length')
        # Of the base class, this unpacks all but the content.
        message.unpack({'header_version': header.version, 'message_type': header.kind,
                        'device_name': header.device, 'timestamp': header.time}, body)
    except (struct.error, UnicodeDecodeError) as error:
        raise LinkError(f'{_name(header)}: malformed metadata ({error})') from None
    except TypeError:
        # pyigtl raises words, which is not possible.
        raise LinkError(f'{_name(header)}: malformed metadata') from None
    return body[start:end], dict(message.metadata)


def _is_tracked(metadata: dict[str, str]) -> bool:
    """Tell what PLUS and 3D Slicer say in the metadata of a transform."""
    valid = metadata.get('TransformValid', 'true').lower()
    return valid not in ('false', '0') and metadata.get('TransformStatus', 'OK').upper() == 'OK'


def _image(header: Header, content: bytes) -> Image:
    """Return the pixels of an IMAGE as grey levels.

    Checked here, not by pyigtl: it copies the pixels twice, and lets sizes wrap round.
    """
    values = _IMAGE_HEADER.unpack_from(content)
    _, components, scalar, endian, _, width, height, slices = values[:8]
    if slices != 1 or components not in (1, 3, 4) or values[-6:] != (0, 0, 0, width, height, 1):
        raise LinkError(f'{_name(header)}: {width} x {height} x {slices} with {components} '
                        'components, or a part of a volume, is not one picture; send single slices')
    if scalar not in _SCALARS:
        raise LinkError(f'{_name(header)}: pixels of scalar type {scalar} are no grey levels; '
                        'send 8 or 16 bits')
    dtype = np.dtype(_SCALARS[scalar]).newbyteorder('>' if endian == 1 else '<')
    wanted = width * height * components * dtype.itemsize
    if not wanted or len(content) - _IMAGE_HEADER.size != wanted:
        raise LinkError(f'{_name(header)}: {width} x {height} pixels take {wanted} bytes, it has '
                        f'{len(content) - _IMAGE_HEADER.size}')
    pixels = np.frombuffer(content, dtype, offset=_IMAGE_HEADER.size)
    return _grey(pixels.reshape((height, width, components)))


def _grey(pixels: NDArray[Any]) -> Image:
    """Return (H, W, C) as (H, W) uint8 or uint16.

    Colour becomes luminance, signed numbers are shifted up by half their range, real ones are
    rounded and cut to 0 ... 255: pyigtl's examples send such.
    """
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == 'f':
        pixels = np.clip(np.rint(np.nan_to_num(pixels)), 0, 255).astype(np.uint8)
    elif kind == 'i':
        pixels = (pixels.astype(np.int32) + (1 << (8 * size - 1))).astype(f'u{size}')
    native = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder('='))
    if native.shape[2] == 1:
        return native[..., 0]
    code = cv2.COLOR_RGB2GRAY if native.shape[2] == 3 else cv2.COLOR_RGBA2GRAY
    return np.asarray(cv2.cvtColor(native, code))


def _poses(header: Header, content: bytes) -> tuple[LinkPose, ...]:
    if header.kind == 'TRANSFORM':
        matrix = _matrix(struct.unpack('>12f', content))
        return (_pose(header, header.device, matrix, is_tool=False),)
    if header.kind == 'POSITION':
        return (_pose(header, header.device, _position(header, content), is_tool=False),)
    layout = _TRACKING[header.kind]
    if len(content) % layout.size:
        raise LinkError(f'{_name(header)}: {len(content)} bytes are no whole number of tools')
    if len(content) > _MOST_TOOLS * layout.size:
        raise LinkError(f'{_name(header)}: {len(content) // layout.size} tools, more than '
                        f'{_MOST_TOOLS}')
    poses = []
    for name, kind, _, *numbers in layout.iter_unpack(content):
        # A tool of which only the tip is known has no pose.
        if kind != _POINT_ONLY:
            matrix = _matrix(tuple(numbers)) if len(numbers) == 12 else _turned(tuple(numbers))
            poses.append(_pose(header, _text(name), matrix, is_tool=True))
    return tuple(poses)


def _pose(header: Header, name: str, matrix: Array, is_tool: bool) -> LinkPose:
    if not is_rigid(matrix):
        raise LinkError(f'{_name(header)}: "{name}" is not a rigid transform')
    return LinkPose(name, is_tool, header.time, matrix)


def _matrix(numbers: tuple[float, ...]) -> Array:
    """Return twelve numbers, column by column in millimetres, as a (4, 4) in metres.

    Single precision leaves the axes 1e-7 from right angles: the nearest rotation is taken where
    they are within 1e-3, as recordings have it.
    """
    matrix = np.eye(4)
    matrix[:3] = np.array(numbers).reshape(4, 3).T
    matrix[:3, 3] *= 1e-3
    rotation = matrix[:3, :3]
    if np.isfinite(matrix).all() and np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3:
        left, _, right = np.linalg.svd(rotation)
        matrix[:3, :3] = left @ right
    return matrix


def _turned(numbers: tuple[float, ...]) -> Array:
    """Return a position (mm) and a quaternion (x, y, z, w) as a (4, 4) in metres."""
    norm = math.hypot(*numbers[3:])
    if not abs(norm - 1.0) < 1e-3:
        return np.full((4, 4), np.nan)
    return from_quaternion(np.array(numbers[3:]) / norm, np.array(numbers[:3]) * 1e-3)


def _position(header: Header, content: bytes) -> Array:
    """Return a POSITION: with a quaternion, or with its vector part only (w is then positive)."""
    if len(content) == 12:
        raise LinkError(f'{_name(header)}: a position without an orientation is no pose; send both')
    if len(content) not in (24, 28):
        raise LinkError(f'{_name(header)}: {len(content)} bytes; a position has 24 or 28 (pyigtl '
                        'sends another layout; use its TransformMessage)')
    numbers = struct.unpack(f'>{len(content) // 4}f', content)
    if len(numbers) == 6:
        numbers += (math.sqrt(max(1.0 - math.hypot(*numbers[3:]) ** 2, 0.0)),)
    return _turned(numbers)


def _status(header: Header, content: bytes) -> LinkStatus:
    code, sub_code, name = _STATUS.unpack_from(content)
    known = _STATUS_NAMES[code] if code < len(_STATUS_NAMES) else f'code {code}'
    more = ' '.join(part for part in (_text(name), _text(content[_STATUS.size:])) if part)
    sub = f' ({sub_code})' if sub_code else ''
    words = f'{known}{sub}{": " if more else ""}{more}'
    return LinkStatus(header.device, code, words[:_MOST_LETTERS])


def _text(data: bytes) -> str:
    """Return text up to its first zero byte, printable, whatever it was, and not very long."""
    text = data[:4 * _MOST_LETTERS].split(b'\0', 1)[0].decode('utf-8', 'replace')
    return ''.join(letter if letter.isprintable() else '?' for letter in text).strip()


def pack_image(device: str, seconds: float, pixels: Image, projection: Projection,
               patient_T_sensor: Transform, depth: float) -> bytes:
    """Return an IMAGE that 3D Slicer shows where it lies in the patient, in RAS and millimetres.

    Args:
        device: its name, at most 20 letters.
        seconds: when it was taken.
        pixels: (H, W).
        projection: of the pixels; a perspective image is put on the plane at ``depth``.
        patient_T_sensor: (4, 4) in LPS, metres.
        depth: metres from the source of a perspective image.
    """
    corner, right, below = projection.back_project(
        np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), depth if projection.is_perspective else 0.0)
    sensor_T_pixels = np.eye(4)
    # Slicer wants a thickness: 1 mm.
    sensor_T_pixels[:3] = np.column_stack(
        [right - corner, below - corner, (0.0, 0.0, 1e-3), corner])
    return bytes(ImageMessage(
        pixels[None], _millimetres(RAS_T_LPS @ patient_T_sensor @ sensor_T_pixels, columns=4),
        'ras', seconds, device).pack())


def pack_pose(device: str, seconds: float, patient_T_frame: Transform,
              is_seen: bool = True) -> bytes:
    """Return a TRANSFORM of a frame in the patient, in RAS and millimetres.

    One that is not seen any more says so in its metadata, as PLUS does.
    """
    message = TransformMessage(_millimetres(RAS_T_LPS @ patient_T_frame), seconds, device)
    if not is_seen:
        message.header_version = 2
        message.metadata = {'TransformStatus': 'MISSING', 'TransformValid': 'false'}
    return bytes(message.pack())


def pack_points(device: str, seconds: float, names: tuple[str, ...], points: Points) -> bytes:
    """Return a POINT message of (N, 3) points in the patient (LPS, m), in RAS and millimetres."""
    positions = transform_points(RAS_T_LPS, points) * 1e3
    return bytes(PointMessage(positions.tolist(), list(names), timestamp=seconds,
                              device_name=device).pack())


def _millimetres(matrix: Transform, columns: int = 1) -> Transform:
    """Return a (4, 4) with its last columns in millimetres."""
    scaled = matrix.copy()
    scaled[:3, 4 - columns:] *= 1e3
    return scaled
