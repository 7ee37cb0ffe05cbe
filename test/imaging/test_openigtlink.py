"""OpenIGTLink messages: against pyigtl's packing, against the library's reference, and lies."""

import struct
import tracemalloc

import igtl
import numpy as np
import pyigtl
import pytest

from hybrid_guidance.geometry.rigid import from_quaternion, perturbed
from hybrid_guidance.imaging.openigtlink import (
    HEADER_SIZE,
    MAXIMUM_BODY,
    FramingError,
    LinkError,
    LinkPose,
    decode,
    parse_header,
)

POSE = perturbed(np.eye(4), np.array([0.01, -0.02, 0.03, 0.3, -0.2, 0.1]))
POSE_MM = POSE.copy()
POSE_MM[:3, 3] *= 1e3


def decoded(data: bytes):
    return decode(parse_header(data[:HEADER_SIZE]), data[HEADER_SIZE:])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_pixels_that_pyigtl_packs_come_out_as_they_were(dtype) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (4, 6)).astype(dtype)
    found, = decoded(igtl.image(pixels, 12.25, 'Probe 1'))
    assert np.array_equal(found.pixels, pixels)
    assert found.pixels.dtype == dtype
    assert (found.device, found.time) == ('Probe 1', pytest.approx(12.25))


def test_pixels_of_the_other_byte_order_are_the_same_pixels() -> None:
    """Byte 4 of an image's header: 1 big, 2 little."""
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    body = bytearray(igtl.image(pixels)[HEADER_SIZE:])
    body[4], body[72:] = 1, pixels.astype('>u2').tobytes()
    found, = decoded(igtl.message('IMAGE', bytes(body)))
    assert np.array_equal(found.pixels, pixels)
    assert found.pixels.dtype.isnative


def test_signed_real_and_coloured_pixels_become_grey_levels() -> None:
    signed, = decoded(igtl.image(np.array([[-32768, 0, 32767]], np.int16)))
    assert signed.pixels.tolist() == [[0, 32768, 65535]]
    real, = decoded(igtl.image(np.array([[-3.0, 1.6, np.nan, 300.0]])))
    assert real.pixels.tolist() == [[0, 2, 0, 255]]
    colour = np.zeros((1, 2, 2, 3), np.uint8)
    colour[..., 1] = 200
    grey, = decoded(bytes(pyigtl.ImageMessage(colour).pack()))
    assert np.all(grey.pixels == round(0.587 * 200))


@pytest.mark.parametrize('version', [1, 2])
def test_a_transform_that_pyigtl_packs_comes_out_in_metres(version: int) -> None:
    sent = pyigtl.TransformMessage(POSE_MM, timestamp=5.5, device_name='ProbeToTracker')
    sent.header_version = version
    sent.metadata = {'TransformStatus': 'OK', 'Who': 'PLUS'} if version == 2 else {}
    found, = decoded(sent.pack())
    assert isinstance(found, LinkPose)
    assert (found.name, found.is_tool) == ('ProbeToTracker', False)
    assert found.time == pytest.approx(5.5)
    assert np.allclose(found.matrix, POSE, atol=1e-6)


@pytest.mark.parametrize('metadata', [{'TransformStatus': 'INVALID'}, {'TransformValid': 'false'}])
def test_a_pose_that_plus_marks_as_lost_is_no_pose(metadata: dict[str, str]) -> None:
    sent = pyigtl.TransformMessage(POSE_MM, timestamp=5.5, device_name='ProbeToTracker')
    sent.header_version, sent.metadata = 2, metadata
    assert decoded(sent.pack()) == ()


def test_tracking_data_are_those_of_the_librarys_reference_message() -> None:
    """Three tools; the CRC is the one that the OpenIGTLink library's own test holds."""
    numbers = struct.pack('>12f', -0.954892, 0.196632, -0.222525, -0.196632, 0.142857, 0.970014,
                          0.222525, 0.970014, -0.0977491, 46.0531, 19.4709, 46.0531)
    body = b''.join(struct.pack('>20sBB', f'Tracker{tool}'.encode(), 2, 0) + numbers
                    for tool in range(3))
    found = decoded(igtl.message('TDATA', body, 'DeviceName', 1234567892.0,
                                 crc=0x5c7cebfd27676877))
    assert [pose.name for pose in found] == ['Tracker0', 'Tracker1', 'Tracker2']
    assert all(pose.is_tool for pose in found)
    assert np.allclose(found[2].matrix[:3, 0], (-0.954892, 0.196632, -0.222525), atol=1e-5)
    assert np.allclose(found[2].matrix[:3, 3], (0.0460531, 0.0194709, 0.0460531), atol=1e-8)


def test_a_status_is_that_of_the_librarys_reference_message() -> None:
    body = struct.pack('>Hq20s', 15, 10, b'ACTUATOR_DISABLED') + b'Actuator A is disabled.\0'
    found, = decoded(igtl.message('STATUS', body, 'DeviceName', crc=0x98ee43eed8e431cf))
    assert (found.device, found.code) == ('DeviceName', 15)
    assert found.words == 'disabled (10): ACTUATOR_DISABLED Actuator A is disabled.'


def test_a_status_that_talks_without_end_is_cut_before_it_costs_memory() -> None:
    body = struct.pack('>Hq20s', 2, 0, b'COLD') + b'y' * (8 << 20)
    data = igtl.message('STATUS', body)
    tracemalloc.start()
    status, = decoded(data)
    grown = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(status.words) == 300
    # The body itself is cut out of the bytes, once.
    assert grown < 2.5 * len(body)


def test_quaternions_are_x_y_z_w_and_may_leave_w_out() -> None:
    quaternion = np.array([0.1, -0.2, 0.3, np.sqrt(1 - 0.14)])
    expected = from_quaternion(quaternion, np.array([0.001, 0.002, 0.003]))
    numbers = (1.0, 2.0, 3.0, *quaternion)
    body = struct.pack('>20sBB7f', b'Needle', 2, 0, *numbers)
    tip_only = struct.pack('>20sBB7f', b'Point', 3, 0, *numbers)
    tools = decoded(igtl.message('QTDATA', body + tip_only))
    assert [tool.name for tool in tools] == ['Needle']
    for found in (tools[0], *decoded(igtl.message('POSITION', struct.pack('>7f', *numbers))),
                  *decoded(igtl.message('POSITION', struct.pack('>6f', *numbers[:6])))):
        assert np.allclose(found.matrix, expected, atol=1e-6)


@pytest.mark.parametrize(('data', 'words'), [
    (igtl.message('POSITION', struct.pack('>3f', 1, 2, 3)), 'without an orientation'),
    (igtl.message('POSITION', struct.pack('>7f', 46, 19, 46, 0, .577, .577, .333)), 'not a rigid'),
    (igtl.message('TRANSFORM', struct.pack('>12f', *(2 * x for x in igtl.IDENTITY))), 'rigid'),
    (igtl.message('TRANSFORM', struct.pack('>12f', *[float('nan')] * 12)), 'rigid'),
    (igtl.message('TRANSFORM', struct.pack('>12f', -1, *igtl.IDENTITY[1:])), 'rigid'),
    (igtl.message('TRANSFORM', b'short'), 'malformed'),
    (igtl.message('TDATA', b'x' * 71), 'no whole number'),
    (igtl.message('STATUS', b'x'), 'malformed'),
    (igtl.message('IMAGE', b'x' * 10), 'malformed'),
    (igtl.message('TRANSFORM', struct.pack('>12f', *igtl.IDENTITY), crc=1), 'CRC'),
    (igtl.message('TRANSFORM', b'\0\x0c\xff\xff\xff\xff\xff\xff' + bytes(52), version=2), 'meta'),
    (igtl.message('TRANSFORM', struct.pack('>HHI', 12, 4, 2**31 - 1) + bytes(60), version=2),
     'extended header and metadata do not fit'),
    (igtl.message('TDATA', struct.pack('>20sBB12f', b'T', 2, 0, *igtl.IDENTITY) * 257),
     '257 tools, more than 256'),
    (igtl.image(np.zeros((2, 3, 4), np.uint8)), 'single slices'),
    (igtl.image(np.zeros((3, 4), np.uint32)), 'no grey levels'),
])
def test_what_contradicts_itself_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(LinkError, match=words):
        decoded(data)


def test_an_image_of_another_size_than_it_says_is_refused() -> None:
    whole = igtl.image(np.zeros((3, 4), np.uint8))
    for body in (whole[HEADER_SIZE:-1], whole[HEADER_SIZE:] + b'\0'):
        with pytest.raises(LinkError, match='4 x 3 pixels take 12 bytes'):
            decoded(igtl.message('IMAGE', body))


@pytest.mark.parametrize('data', [
    b'\xff' * HEADER_SIZE, bytes(HEADER_SIZE), b'GET / HTTP/1.1\r\n'.ljust(HEADER_SIZE, b'x'),
    igtl.message('IMAGE', b'', size=MAXIMUM_BODY + 1), igtl.message('IMAGE', b'', size=2**63)])
def test_bytes_that_are_no_header_are_told_from_a_bad_message(data: bytes) -> None:
    with pytest.raises(FramingError):
        parse_header(data)


def test_kinds_that_are_not_used_say_nothing() -> None:
    assert decoded(bytes(pyigtl.StringMessage('hello').pack())) == ()
