"""A node under test with a peer that hears what it says, and small recordings."""

import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from dicom_files import write_dicom
from rcl_interfaces.msg import Log
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image

from hybrid_guidance.ros import environment
from hybrid_guidance.ros.convert import stamp_ns

LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ERROR = 40


class Peer:
    """Starts nodes and keeps what they publish, deep enough to miss nothing.

    Attributes:
        images: of the sensor, in order of arrival.
        infos: camera_info by stamp in ns.
        logs: (severity, text).
        status: name of a node to its latest (level, message, values).
    """

    def __init__(self, sensor: str, parameters: dict[str, Any]) -> None:
        given = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
        environment.prepare()
        rclpy.init(args=['--ros-args', *given] if given else None)
        self.node = rclpy.create_node('peer')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.nodes: list[Any] = []
        self.images: list[Image] = []
        self.infos: dict[int, CameraInfo] = {}
        self.logs: list[tuple[int, str]] = []
        self.status: dict[str, tuple[int, str, dict[str, str]]] = {}
        hear = self.node.create_subscription
        hear(Image, f'{sensor}/image_raw', self.images.append, 100)
        hear(CameraInfo, f'{sensor}/camera_info', self._on_info, 100)
        hear(Log, '/rosout', lambda log: self.logs.append((log.level, log.msg)), LATCHED)
        hear(DiagnosticArray, '/diagnostics', self._on_diagnostics, 100)

    def _on_info(self, message: CameraInfo) -> None:
        self.infos[stamp_ns(message.header.stamp)] = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.status[status.name] = (status.level[0], status.message, {
                item.key: item.value for item in status.values})

    def start(self, node_type: Callable[[], Any]) -> Any:
        node = node_type()
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def spin(self, until: Callable[[], bool], seconds: float = 8.0) -> None:
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)
        assert until()

    def spin_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, service_type: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(service_type, name)
        self.spin(client.service_is_ready)
        future = client.call_async(request)
        self.spin(future.done)
        return future.result()

    def hears(self, name: str, *words: str, level: int | None = None) -> bool:
        """Tell whether the latest status of a node holds all words."""
        found = self.status.get(name)
        return found is not None and all(word in found[1] for word in words) and (
            level is None or found[0] == level)

    def close(self) -> None:
        self.executor.shutdown()
        for node in (*self.nodes, self.node):
            node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Return the function that makes a peer: sensor, then parameters of every node."""
    made: list[Peer] = []

    def make(sensor: str, **parameters: Any) -> Peer:
        made.append(Peer(sensor, parameters))
        return made[-1]
    yield make
    for one in made:
        one.close()


def write_sequence(path: Path, times: list[float], poses_mm: dict[str, np.ndarray],
                   lost: set[tuple[str, int]] = frozenset(), keep: int | None = None) -> Path:
    """Write a MetaImage sequence as PLUS does; frame n is 6 x 9 pixels of level 20 n.

    ``poses_mm`` holds (N, 4, 4) for names such as ``ProbeToTracker``; (name, frame) pairs in
    ``lost`` are marked invalid.
    """
    images = np.repeat(np.arange(len(times), dtype=np.uint8) * 20, 54)
    lines = ['ObjectType = Image', 'NDims = 3', 'BinaryData = True',
             'BinaryDataByteOrderMSB = False', 'CompressedData = True',
             f'DimSize = 9 6 {len(times)}', 'Kinds = domain domain list',
             'ElementType = MET_UCHAR', 'UltrasoundImageOrientation = MF',
             'UltrasoundImageType = BRIGHTNESS']
    for index, at in enumerate(times):
        start = f'Seq_Frame{index:04d}_'
        for name, poses in poses_mm.items():
            numbers = ' '.join(f'{value:.12g}' for value in poses[index].flat)
            status = 'INVALID' if (name, index) in lost else 'OK'
            lines += [f'{start}{name}Transform = {numbers}',
                      f'{start}{name}TransformStatus = {status}']
        lines += [f'{start}Timestamp = {100.0 + at:.6f}', f'{start}ImageStatus = OK']
    lines.append('ElementDataFile = LOCAL')
    data = zlib.compress(images.tobytes())
    path.write_bytes('\n'.join(lines).encode() + b'\n' + data[:keep])
    return path


@pytest.fixture
def dicom_file() -> Callable[..., Path]:
    return write_dicom


@pytest.fixture
def sequence_file() -> Callable[..., Path]:
    return write_sequence


def make_bad_file(kind: str, folder: Path, modality: str) -> Path:
    """Return a file that no source can use."""
    path = folder / 'bad.dcm'
    if kind == 'directory':
        path.mkdir()
    elif kind == 'text':
        path.write_text('Dear colleague, the images are in the other mail. ' * 20)
    elif kind == 'cut off':
        whole = write_dicom(path, [10, 20, 30], modality).read_bytes()
        path.write_bytes(whole[:len(whole) * 6 // 10])
    elif kind == 'corrupt':
        whole = write_dicom(path, [10, 20, 30], modality).read_bytes()
        path.write_bytes(whole[:200] + b'\xa5' * 400 + whole[600:])
    elif kind == 'no frames':
        write_dicom(path, [10], modality, NumberOfFrames=0)
    elif kind == 'other modality':
        write_dicom(path, [10, 20], 'XA' if modality == 'US' else 'US')
    return path


@pytest.fixture
def bad_file() -> Callable[..., Path]:
    return make_bad_file


BAD_DICOM = {
    'missing': 'no such file', 'directory': 'is a folder', 'text': 'is not a DICOM file',
    'cut off': 'cut off', 'corrupt': 'bad.dcm', 'no frames': 'has no frames',
    'other modality': 'give it to the'}


@pytest.fixture(params=BAD_DICOM)
def bad_dicom(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return a kind of bad DICOM file, and words that must be in the error."""
    return request.param, BAD_DICOM[request.param]


@pytest.fixture
def check_no_source() -> Callable[[Peer, str, str], None]:
    """Return the check that a node says, on log and diagnostics, that it has no source."""
    def check(peer: Peer, name: str, words: str) -> None:
        node = peer.nodes[0]
        peer.spin(lambda: node.count_subscribers('/diagnostics') > 0)
        peer.spin(lambda: peer.hears(name, 'source: no source: ', words, level=2))
        peer.spin(lambda: any(level == ERROR and 'no source: ' in text and words in text
                              for level, text in peer.logs))
        # It goes on living: what it says next comes from the same node.
        peer.status.clear()
        node.health.publish()
        peer.spin(lambda: peer.hears(name, 'no source'))
        assert peer.images == []
    return check
