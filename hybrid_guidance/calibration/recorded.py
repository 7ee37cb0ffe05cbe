"""What calibrations need out of recordings: tracks of frames, and images with their times."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.imaging.sequence import SequenceRecording

Pair = tuple[str, str]


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
    if len(times) < 2:
        names = sorted({name for pair in recording.pairs for name in pair})
        raise CalibrationError(f'{path}: {child} is never seen together with {parent}; the file '
                               f'has the frames {", ".join(names) or "none"}: name them as there')
    return Track(np.array(times), np.array(poses))


def read_tf(path: Path, parent: str, child: str) -> Track:
    """Return the track of one frame in another from /tf and /tf_static of a rosbag2 recording.

    Every transform on the way is read at one and the same time, between its samples.

    Args:
        path: folder of the bag, or its .mcap file.
        parent: frame to take points to.
        child: frame to take points from.

    Raises:
        CalibrationError: not a bag, or the frames are not connected.
    """
    fixed, moving = _edges(path)
    shape = {pair: np.eye(4) for pair in (*fixed, *moving)}
    if connect(shape, parent, child) is None:
        names = sorted({name for pair in shape for name in pair})
        raise CalibrationError(f'{path}: {child} and {parent} are not connected on /tf; the '
                               f'recording has the frames {", ".join(names) or "none"}')
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


def _edges(path: Path) -> tuple[dict[Pair, Transform], dict[Pair, dict[float, Transform]]]:
    """Return transforms that stand still, and by seconds those that move."""
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.typesys import Stores, get_typestore
    fixed: dict[Pair, Transform] = {}
    moving: dict[Pair, dict[float, Transform]] = {}
    folder = path.parent if path.suffix == '.mcap' else path
    try:
        with AnyReader([folder], default_typestore=get_typestore(Stores.LATEST)) as reader:
            topics = [item for item in reader.connections if item.topic in ('/tf', '/tf_static')]
            for connection, _, data in reader.messages(connections=topics):
                message: Any = reader.deserialize(data, connection.msgtype)
                for item in message.transforms:
                    pair, pose = (item.header.frame_id, item.child_frame_id), _pose(item.transform)
                    if connection.topic == '/tf_static':
                        fixed[pair] = pose
                    else:
                        stamp = item.header.stamp
                        moving.setdefault(pair, {})[stamp.sec + stamp.nanosec * 1e-9] = pose
    except (AnyReaderError, OSError, ValueError, KeyError) as error:
        raise CalibrationError(f'{path}: is not a rosbag2 recording that can be read ({error}); '
                               'name the folder that "ros2 bag record" made') from error
    return fixed, {pair: samples for pair, samples in moving.items() if len(samples) > 1}


def _pose(message: Any) -> Transform:
    q, t = message.rotation, message.translation
    return rigid.from_quaternion(np.array([q.x, q.y, q.z, q.w]), np.array([t.x, t.y, t.z]))
