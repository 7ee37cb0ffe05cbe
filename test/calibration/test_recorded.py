from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.recorded import read_tf
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Transform

STORE = get_typestore(Stores.ROS2_JAZZY)


def probe_at(time: float) -> Transform:
    return rigid.transform(rigid.rotation_from_vector(np.array([0.1, 0.2, 0.5]) * time),
                           np.array([0.2 * time, 0.1, 0.0]))


def reference_at(time: float) -> Transform:
    return rigid.transform(rigid.rotation_from_vector(np.array([0.0, 0.3, 0.0]) * time),
                           np.array([0.0, 0.0, 0.1 * time]))


def message(child: str, time: float, pose: Transform, parent: str = 'tracker') -> bytes:
    types = STORE.types
    x, y, z, w = rigid.quaternion(pose)
    stamp = types['builtin_interfaces/msg/Time'](sec=int(time), nanosec=round((time % 1) * 1e9))
    transform = types['geometry_msgs/msg/Transform'](
        translation=types['geometry_msgs/msg/Vector3'](*pose[:3, 3].tolist()),
        rotation=types['geometry_msgs/msg/Quaternion'](x, y, z, w))
    stamped = types['geometry_msgs/msg/TransformStamped'](
        header=types['std_msgs/msg/Header'](stamp=stamp, frame_id=parent),
        child_frame_id=child, transform=transform)
    return bytes(STORE.serialize_cdr(types['tf2_msgs/msg/TFMessage']([stamped]),
                                     'tf2_msgs/msg/TFMessage'))


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """Two markers, 20 and 15 times a second, out of step, and a tool fixed to one of them."""
    path = tmp_path / 'bag'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        moving, fixed = (writer.add_connection(topic, 'tf2_msgs/msg/TFMessage', typestore=STORE)
                         for topic in ('/tf', '/tf_static'))
        tool = rigid.transform(translation=np.array([0.0, 0.0, 0.05]))
        writer.write(fixed, 0, message('tool', 0.0, tool, 'probe'))
        for time in np.arange(1.0, 4.0, 0.05).tolist():
            writer.write(moving, int(time * 1e9), message('probe', time, probe_at(time)))
        for time in np.arange(1.013, 4.0, 1.0 / 15.0).tolist():
            writer.write(moving, int(time * 1e9), message('reference', time, reference_at(time)))
    return path


def test_a_bag_is_read_at_one_time_for_all_markers(bag: Path) -> None:
    """Markers out of step: the pose of the newest of each would be up to 20 mm off."""
    track = read_tf(bag, 'reference', 'tool')
    assert len(track.times) > 50
    for time, pose in zip(track.times, track.poses, strict=True):
        truth = rigid.inverse(reference_at(time)) @ probe_at(time)
        truth = truth @ rigid.transform(translation=np.array([0.0, 0.0, 0.05]))
        np.testing.assert_allclose(pose, truth, atol=2e-4)


def test_frames_that_nothing_connects_are_named(bag: Path) -> None:
    with pytest.raises(CalibrationError, match='probe, reference, tool, tracker'):
        read_tf(bag, 'reference', 'stylus')


def test_a_track_between_samples_is_the_motion_and_beyond_them_nothing() -> None:
    times = np.arange(0.0, 2.0, 0.1)
    track = Track(times, np.array([probe_at(time) for time in times]))
    wanted = np.array([0.03, 1.27, 1.95, -0.1])
    poses, inside = track.at(wanted)
    np.testing.assert_allclose(poses[:2], [probe_at(time) for time in wanted[:2]], atol=1e-9)
    assert inside.tolist() == [True, True, False, False]


def test_glitches_are_left_out_of_a_track_and_motion_is_not() -> None:
    times = np.arange(0.0, 4.0, 0.05)
    poses = np.array([probe_at(0.2 * time) for time in times])
    poses[[10, 30, 31, 55], 0, 3] += 0.03
    kept = Track(times, poses).without_glitches()
    assert sorted(set(times) - set(kept.times)) == times[[10, 30, 31, 55]].tolist()
