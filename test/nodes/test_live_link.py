"""Images, poses and statuses of an OpenIGTLink server through the image nodes."""

import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import igtl
import numpy as np
import pytest
from tf2_msgs.msg import TFMessage

from hybrid_guidance.geometry.rigid import inverse, perturbed
from hybrid_guidance.nodes.fluoroscopy_node import FluoroscopyNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode
from hybrid_guidance.parameters import ParameterError
from hybrid_guidance.ros.convert import matrix_from_transform, pixels_from_message, stamp_ns
from hybrid_guidance.ros.link import LinkNames

BENCH = Path(__file__).resolve().parents[2] / 'bench' / 'openigtlink.py'
POSE = perturbed(np.eye(4), np.array([0.01, -0.02, 0.03, 0.3, -0.2, 0.1]))
POSE_MM = POSE.copy()
POSE_MM[:3, 3] *= 1e3
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def heard(peer):
    """Return the function that starts an image node on a server: peer and its /tf by child."""
    def start(sensor: str, port: int, **parameters):
        graph = peer(sensor, source='openigtlink', file=f'127.0.0.1:{port}', **parameters)
        found: dict[str, list] = {}

        def hear(message: TFMessage) -> None:
            for item in message.transforms:
                found.setdefault(item.child_frame_id, []).append(item)
        graph.node.create_subscription(TFMessage, '/tf', hear, 100)
        graph.start(UltrasoundNode if sensor == 'ultrasound' else FluoroscopyNode)
        return graph, found
    return start


def repeating(make, pause: float = 0.03):
    """Return a server that sends ``make(number)`` again and again."""
    def serve(line, _) -> None:
        for number in range(400):
            line.sendall(make(number))
            time.sleep(pause)
    return serve


def numbered(number: int) -> np.ndarray:
    return np.full((6, 8), number % 251, np.uint8)


def test_image_and_pose_of_one_moment_carry_one_stamp(heard) -> None:
    """Whatever the server calls its time; the pose is that of the probe in the tracker."""
    with igtl.server(repeating(lambda n: igtl.transform(POSE_MM, 50.0 + n / 30) + igtl.image(
            numbered(n), 50.0 + n / 30))) as port:
        graph, poses = heard('ultrasound', port)
        graph.spin(lambda: len(graph.images) >= 8 and len(poses.get('ultrasound_probe', ())) >= 8)
    image = graph.images[5]
    stamps = np.array([stamp_ns(item.header.stamp) for item in poses['ultrasound_probe']])
    assert np.abs(stamps - stamp_ns(image.header.stamp)).min() < 5e6
    assert abs(stamp_ns(image.header.stamp) - time.time_ns()) < 30e9
    pose = poses['ultrasound_probe'][0]
    assert pose.header.frame_id == 'world'
    assert np.allclose(matrix_from_transform(pose.transform), POSE, atol=1e-6)
    assert np.ptp(pixels_from_message(image)) == 0


@pytest.mark.parametrize(('name', 'frames', 'parent', 'child', 'expected'), [
    ('ProbeToRAS', 'Probe=ultrasound_probe RAS=patient', 'patient', 'ultrasound_probe',
     TO_LPS @ POSE),
    ('RASToTable', 'RAS=room Table=world', 'world', 'room', POSE @ TO_LPS),
    ('WorldToNeedle', 'World=world Needle=stylus', 'world', 'stylus', inverse(POSE)),
    ('LinearTransform_3', 'LinearTransform_3=world:stylus', 'world', 'stylus', POSE)])
def test_names_and_axes_of_the_server_become_those_of_the_graph(
        heard, name: str, frames: str, parent: str, child: str, expected: np.ndarray) -> None:
    with igtl.server(repeating(lambda n: igtl.transform(POSE_MM, 1.0 + n / 30, name))) as port:
        graph, poses = heard('ultrasound', port, link_frames=frames)
        graph.spin(lambda: child in poses)
    assert poses[child][0].header.frame_id == parent
    assert np.allclose(matrix_from_transform(poses[child][0].transform), expected, atol=1e-6)


def test_a_pose_without_a_place_and_one_of_the_graphs_own_frames_are_refused(heard) -> None:
    def both(n: int) -> bytes:
        return (igtl.transform(POSE_MM, 1.0 + n / 30, 'Thing') + igtl.transform(
            POSE_MM, 1.0 + n / 30, 'NeedleTipToTracker'))
    with igtl.server(repeating(both)) as port:
        graph, poses = heard('ultrasound', port)
        graph.spin(lambda: graph.hears(
            'ultrasound_node', 'Thing=parent:child', 'needle_tip belongs to the graph',
            'link_frames'))
    assert poses == {}


def test_a_device_that_is_not_well_is_said_until_it_is(heard) -> None:
    def status(n: int) -> bytes:
        return igtl.message('STATUS', struct.pack('>Hq20s', 13 if n < 40 else 1, 0, b'WARMING'),
                            'Scanner')
    with igtl.server(repeating(status)) as port:
        graph, _ = heard('fluoroscopy', port)
        graph.spin(lambda: graph.hears('fluoroscopy_node', 'device Scanner', 'not ready: WARMING',
                                       level=2))
        graph.spin(lambda: not graph.hears('fluoroscopy_node', 'Scanner'))


def test_of_x_rays_poses_are_not_published_unless_they_are_named(heard) -> None:
    """Both image nodes may read one server: two publishers of one pose would be one too many."""
    with igtl.server(repeating(lambda n: igtl.transform(POSE_MM, 1.0 + n / 30) + igtl.image(
            numbered(n), 1.0 + n / 30))) as port:
        graph, poses = heard('fluoroscopy', port)
        graph.spin(lambda: len(graph.images) >= 5)
    assert poses == {}


def test_nobody_there_and_a_bad_address_are_said(heard, peer) -> None:
    graph, _ = heard('ultrasound', igtl.free_port())
    graph.spin(lambda: graph.hears('ultrasound_node', 'no source', 'Is the server running'))
    graph.close()
    graph = peer('fluoroscopy', source='openigtlink', file='http://slicer')
    graph.start(FluoroscopyNode)
    graph.spin(lambda: graph.hears('fluoroscopy_node', 'no source', 'write host:port', level=2))


def test_names_that_are_none_are_refused() -> None:
    for frames in ('Probe', 'Probe=', 'Needle=world:', '=a:b'):
        with pytest.raises(ParameterError, match=f'link_frames: "{frames}"'):
            LinkNames.parse(frames)
    names = LinkNames.parse('Tracker=world Needle=world:stylus')
    assert names == LinkNames({'Tracker': 'world'}, {'Needle': ('world', 'stylus')})


@pytest.fixture
def pyigtl_server() -> Iterator:
    """Return the function that starts pyigtl's server, 640 x 480 at 30 Hz, in its process."""
    started: list[subprocess.Popen] = []

    def start(port: int) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, str(BENCH), '--serve', str(port)]))
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.wait()


def test_ten_seconds_of_pyigtls_server_arrive_whole_and_come_back_after_it_was_killed(
        heard, pyigtl_server) -> None:
    def numbers() -> list[int]:
        return [int(np.frombuffer(bytes(image.data[:4]), np.uint32)[0]) for image in graph.images]
    port = igtl.free_port()
    server = pyigtl_server(port)
    graph, _ = heard('ultrasound', port)
    graph.spin(lambda: bool(graph.images), 30.0)
    graph.spin_for(10.0)
    found = numbers()
    assert found == list(range(found[0], found[0] + len(found)))
    assert len(found) > 150
    for _ in range(2):
        server.send_signal(signal.SIGKILL)
        server.wait()
        graph.spin(lambda: graph.hears('ultrasound_node', 'no source', 'trying again'))
        graph.images.clear()
        server = pyigtl_server(port)
        graph.spin(lambda: len(graph.images) >= 3, 20.0)
        assert numbers()[0] < 60
