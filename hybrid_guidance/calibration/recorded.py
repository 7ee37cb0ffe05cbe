"""What calibrations need out of recordings: tracks of frames, and images with their times."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Image, Transform
from hybrid_guidance.imaging.sequence import SequenceRecording, snake_case

Pair = tuple[str, str]

DELAY = 'delay taken off, s'
"""What an image node calls, on /diagnostics, the delay it has taken off its stamps already."""

_NAMES = {'Probe': 'ultrasound_probe', 'Tracker': 'world'}
_MOST_BYTES = 2 << 30
_COLOURS = {'rgb8': cv2.COLOR_RGB2GRAY, 'bgr8': cv2.COLOR_BGR2GRAY}
_DEPTHS = {'mono8': 1, '8UC1': 1, 'mono16': 2, '16UC1': 2}


@dataclass(frozen=True)
class Pictures:
    """Images of a recording.

    Attributes:
        times: (N,) seconds, on the clock of the recorded poses.
        read: returns the (H, W) grey levels of one.
        numbers: (N,) as the device counted them, if it did.
    """

    times: Array
    read: Callable[[int], Image]
    numbers: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.times)


def is_bag(path: Path) -> bool:
    """Tell whether a recording is one of rosbag2."""
    return path.is_dir() or path.suffix == '.mcap'


def graph_frame(name: str, known: 'set[str] | frozenset[str]') -> str:
    """Return what the graph calls a frame: the name itself, or that of PLUS in its own words."""
    return name if name in known else _NAMES.get(name, snake_case(name))


def connect(transforms: Mapping[Pair, Transform], parent: str, child: str) -> Transform | None:
    """Return ``parent_T_child`` through whatever frames connect the two; None if nothing does.

    Args:
        transforms: (parent, child) to ``parent_T_child``.
        parent: frame to take points to.
        child: frame to take points from.
    """
    edges: dict[str, list[tuple[str, Transform]]] = {}
    for (above, below), a_T_b in transforms.items():
        edges.setdefault(above, []).append((below, a_T_b))
        edges.setdefault(below, []).append((above, rigid.inverse(a_T_b)))
    reached = {parent: np.eye(4)}
    front = [parent]
    while front and child not in reached:
        frame = front.pop(0)
        for other, frame_T_other in edges.get(frame, ()):
            if other not in reached:
                reached[other] = reached[frame] @ frame_T_other
                front.append(other)
    return reached.get(child)


def track_of(recording: SequenceRecording, path: Path, parent: str, child: str) -> Track:
    """Return the track of one frame in another, on the recording's own clock.

    Raises:
        CalibrationError: no such frames, or never seen together.
    """
    times, poses = [], []
    for index in range(len(recording)):
        frame = recording[index]
        pose = connect(frame.transforms, parent, child)
        if pose is not None:
            times.append(recording.start_time + frame.time)
            poses.append(pose)
    names = sorted({name for pair in recording.pairs for name in pair})
    if not names:
        raise CalibrationError(f'{path}: no pose in it is OK and rigid; record again with the '
                               'markers in view of the tracker')
    if not times:
        raise CalibrationError(f'{path}: {child} is never seen together with {parent}; the file '
                               f'has the frames {", ".join(names)}: name them as there')
    if len(times) < 2:
        raise CalibrationError(f'{path}: {child} is seen together with {parent} at one time only; '
                               'record for longer and keep both in view')
    return Track(np.array(times), np.array(poses))


def read_tf(path: Path, parent: str, child: str) -> Track:
    """Return the track of one frame in another from /tf and /tf_static of a rosbag2 recording.

    Every transform on the way is read at one and the same time, between its samples.

    Args:
        path: folder of the bag, or its .mcap file.
        parent: frame to take points to; PLUS's names are understood (``graph_frame``).
        child: frame to take points from.

    Raises:
        CalibrationError: not a bag, or the frames are not connected.
    """
    fixed, moving = _edges(path)
    shape = {pair: np.eye(4) for pair in (*fixed, *moving)}
    names = {name for pair in shape for name in pair}
    parent, child = graph_frame(parent, names), graph_frame(child, names)
    if connect(shape, parent, child) is None:
        raise CalibrationError(
            f'{path}: {child} and {parent} are not connected on /tf; the recording has the frames '
            f'{", ".join(sorted(names)) or "none"}')
    # Only what lies on the way: another tracker's pause must not cost samples.
    used = {pair: samples for pair, samples in moving.items() if connect(
        {other: pose for other, pose in shape.items() if other != pair}, parent, child) is None}
    tracks = {pair: Track(np.array(sorted(samples)), np.array(
        [samples[time] for time in sorted(samples)])) for pair, samples in used.items()}
    if not tracks:
        raise CalibrationError(f'{path}: {child} does not move against {parent}; name the frames '
                               'of the tracker')
    times = max((track.times for track in tracks.values()), key=len)
    read = {pair: track.at(times) for pair, track in tracks.items()}
    good = np.all([inside for _, inside in read.values()], axis=0)
    poses = [connect(fixed | {pair: poses[index] for pair, (poses, _) in read.items()},
                     parent, child) for index in np.flatnonzero(good)]
    return Track(times[good], np.array(poses))


def read_images(path: Path, topic: str) -> Pictures:
    """Return the images of one topic of a rosbag2 recording, in order of their stamps.

    What a node of this graph took off their stamps, and said on /diagnostics, is put back: a
    calibration must find the whole delay, not what an earlier one left over.

    Raises:
        CalibrationError: not a bag, no images on the topic, of a kind that is no image of grey
            levels, or more than memory should hold.
    """
    found: dict[float, Image] = {}
    delay, size, node = 0.0, 0, f'{topic.rpartition("/")[0].rpartition("/")[2]}_node'
    for name, kind, message in _messages(path, (topic, '/diagnostics')):
        if name == topic and kind == 'sensor_msgs/msg/Image':
            pixels = _grey(path, message)
            size += pixels.nbytes
            found[_seconds(message.header.stamp)] = pixels
            if size > _MOST_BYTES:
                raise CalibrationError(f'{path}: holds more than {_MOST_BYTES >> 30} GiB of '
                                       'images; record for a shorter time')
        elif name == '/diagnostics':
            delay = _delay_taken_off(message, node, delay)
    if not found:
        raise CalibrationError(f'{path}: has no images on {topic}; record it with the poses')
    stamps = sorted(found)
    return Pictures(np.array(stamps) + delay, [found[stamp] for stamp in stamps].__getitem__)


def _delay_taken_off(message: Any, node: str, known: float) -> float:
    """Return the seconds that a node says it took off, or what was known before."""
    for status in message.status:
        if status.name.strip('/').split('/')[-1] == node:
            for item in status.values:
                if item.key == DELAY:
                    return float(item.value)
    return known


def _grey(path: Path, message: Any) -> Image:
    """Return (H, W) grey levels of an image message."""
    colour = _COLOURS.get(message.encoding)
    depth = 3 if colour is not None else _DEPTHS.get(message.encoding, 0)
    row = message.width * depth
    data = np.frombuffer(message.data, np.uint8)
    if not row or message.step < row or len(data) < message.step * message.height:
        raise CalibrationError(f'{path}: an image of {message.width} x {message.height} '
                               f'{message.encoding} cannot be read; record mono8, mono16, rgb8 or '
                               'bgr8')
    rows = data[:message.step * message.height].reshape(message.height, message.step)[:, :row]
    if colour is not None:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(rows).reshape(
            message.height, message.width, 3), colour))
    kind = np.dtype(np.uint8 if depth == 1 else '>u2' if message.is_bigendian else '<u2')
    return np.ascontiguousarray(rows).view(kind).astype(kind.newbyteorder('='))


def _messages(path: Path, topics: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Yield (topic, type, message) of a rosbag2 recording, as they were recorded.

    Raises:
        CalibrationError: no recording that can be read.
    """
    if find_spec('rosbags') is None:
        raise CalibrationError(f'{path}: recordings of ROS 2 need rosbags: pip install rosbags')
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.typesys import Stores, get_typestore
    folder = path.parent if path.suffix == '.mcap' else path
    try:
        with AnyReader([folder], default_typestore=get_typestore(Stores.LATEST)) as reader:
            wanted = [item for item in reader.connections if item.topic in topics]
            # No connection at all would mean all of them.
            for connection, _, data in reader.messages(connections=wanted) if wanted else ():
                yield (connection.topic, connection.msgtype,
                       reader.deserialize(data, connection.msgtype))
    except (AnyReaderError, OSError, ValueError, KeyError) as error:
        raise CalibrationError(f'{path}: is not a rosbag2 recording that can be read '
                               f'({" ".join(str(error).split())[:300]}); '
                               'name the folder that "ros2 bag record" made') from error


def _edges(path: Path) -> tuple[dict[Pair, Transform], dict[Pair, dict[float, Transform]]]:
    """Return transforms that stand still, and by seconds those that move."""
    fixed: dict[Pair, Transform] = {}
    moving: dict[Pair, dict[float, Transform]] = {}
    for topic, _, message in _messages(path, ('/tf', '/tf_static')):
        for item in message.transforms:
            pair, pose = (item.header.frame_id, item.child_frame_id), _pose(item.transform)
            if topic == '/tf_static':
                fixed[pair] = pose
            else:
                moving.setdefault(pair, {})[_seconds(item.header.stamp)] = pose
    return fixed, {pair: samples for pair, samples in moving.items() if len(samples) > 1}


def _seconds(stamp: Any) -> float:
    return float(stamp.sec + stamp.nanosec * 1e-9)


def _pose(message: Any) -> Transform:
    q, t = message.rotation, message.translation
    return rigid.from_quaternion(np.array([q.x, q.y, q.z, q.w]), np.array([t.x, t.y, t.z]))
