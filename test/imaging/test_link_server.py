"""A server of packed messages: several clients, slow ones, rude ones."""

import socket
import time

import igtl
import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import perturbed, transform_points
from hybrid_guidance.imaging.link_server import LinkServer
from hybrid_guidance.imaging.openigtlink import (
    HEADER_SIZE,
    decode,
    pack_image,
    pack_pose,
    parse_header,
)

POSE = perturbed(np.eye(4), np.array([0.01, -0.02, 0.03, 0.3, -0.2, 0.1]))


@pytest.fixture
def server():
    made = LinkServer('127.0.0.1', 0)
    yield made
    made.close()


def connect(server: LinkServer) -> socket.socket:
    before = server.clients
    line = socket.create_connection(('127.0.0.1', server.port), timeout=5.0)
    igtl.wait(lambda: server.clients > before)
    return line


def read(line: socket.socket, size: int) -> bytes:
    data = b''
    while len(data) < size:
        data += line.recv(size - len(data))
    return data


def test_every_client_gets_every_name(server: LinkServer) -> None:
    lines = [connect(server) for _ in range(3)]
    server.send('a', b'first')
    server.send('b', b'other')
    assert [read(line, 10) for line in lines] == [b'firstother'] * 3


def test_a_slow_client_gets_whole_messages_and_the_newest_last(server: LinkServer) -> None:
    """Each message is 1 MB of one letter: more than the line takes, so most are replaced."""
    line, quick = connect(server), connect(server)
    quick.close()
    for letter in b'abcdefghijklmnop':
        server.send('image', bytes([letter]) * 1_000_000)
        time.sleep(0.005)
    seen = b''
    while not seen.endswith(b'p'):
        whole = read(line, 1_000_000)
        assert len(set(whole)) == 1
        seen += whole[:1]
    assert seen == bytes(sorted(seen))
    assert server.replaced >= 16 - len(seen)


def test_clients_that_leave_or_talk_do_not_disturb_the_others(server: LinkServer) -> None:
    good, rude = connect(server), connect(server)
    rude.sendall(b'x' * 500_000)
    gone = connect(server)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
    gone.close()
    igtl.wait(lambda: server.clients == 2)
    server.send('a', b'hello')
    assert read(good, 5) == read(rude, 5) == b'hello'


def test_one_who_takes_nothing_is_let_go(server: LinkServer) -> None:
    line = connect(server)
    server.send('image', bytes(50_000_000))
    igtl.wait(lambda: server.clients == 0)
    line.close()


@pytest.mark.parametrize('projection', [
    Projection.orthographic((2e-4, 3e-4), (31.5, 4.0), (64, 48), 1e-5),
    Projection.perspective((800.0, 820.0), (30.0, 25.0), (64, 48))])
def test_a_pixel_is_where_it_is_in_the_patient_in_ras(projection: Projection) -> None:
    """Unpacked by pyigtl, whose matrix takes (i, j, k) to millimetres."""
    import pyigtl
    data = pack_image('Ultrasound', 7.5, np.zeros((48, 64), np.uint8), projection, POSE, 0.9)
    found = pyigtl.ImageMessage()
    found.unpack(pyigtl.ImageMessage.parse_header(data[:HEADER_SIZE]), data[HEADER_SIZE:])
    pixel = np.array([12.0, 40.0])
    x, y, z = transform_points(POSE, projection.back_project(
        pixel, 0.9 if projection.is_perspective else 0.0))
    ras = found.ijk_to_world_matrix @ (*pixel, 0.0, 1.0)
    assert np.allclose(ras[:3], (-1e3 * x, -1e3 * y, 1e3 * z), atol=1e-3)
    assert found.world_coordinate_system == 'ras'
    assert found.timestamp == pytest.approx(7.5)


def test_a_needle_that_is_not_seen_says_so_to_our_own_client_too() -> None:
    for is_seen in (True, False):
        data = pack_pose('NeedleToRAS', 1.0, POSE, is_seen)
        found = decode(parse_header(data[:HEADER_SIZE]), data[HEADER_SIZE:])
        assert len(found) == is_seen
