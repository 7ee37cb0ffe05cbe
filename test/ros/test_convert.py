import struct

import numpy as np
import pytest
from geometry_msgs.msg import Pose
from sensor_msgs.msg import CameraInfo, Image

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.ros import convert

POSE = pose_along(np.array([0.1, -0.2, 0.3]), np.array([1.0, -2.0, 0.5]))


def test_stamp_survives_to_the_nanosecond() -> None:
    stamp = 1_795_493_378_123_456_789
    assert convert.stamp_ns(convert.time_message(stamp)) == stamp


def test_pose_survives_there_and_back() -> None:
    assert np.allclose(convert.matrix_from_pose(convert.pose_message(POSE)), POSE, atol=1e-12)


def test_quaternion_of_a_quarter_turn_is_in_ros_order() -> None:
    message = convert.pose_message(np.array(
        [[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert message.orientation.z == pytest.approx(np.sqrt(0.5))
    assert message.orientation.w == pytest.approx(np.sqrt(0.5))


@pytest.mark.parametrize('spoil', [
    lambda m: setattr(m.position, 'z', float('nan')),
    lambda m: setattr(m.orientation, 'w', 0.0),
    lambda m: setattr(m.orientation, 'x', float('nan'))])
def test_bad_pose_is_refused(spoil) -> None:
    message = Pose()
    message.orientation.w = 1.0
    spoil(message)
    with pytest.raises(convert.MessageError):
        convert.matrix_from_pose(message)


def test_needle_survives_there_and_back() -> None:
    covariance = np.diag([1e-6, 2e-6, 0.25, 0.1, 0.2, 3.0])
    message = convert.needle_message(NeedleEstimate(POSE, covariance), 'patient', 5)
    back = convert.needle_from_message(message)
    assert np.allclose(back.pose, POSE)
    assert np.allclose(back.covariance, covariance)


def test_needle_with_an_impossible_covariance_is_refused() -> None:
    message = convert.needle_message(NeedleEstimate(POSE, -np.eye(6)), 'patient', 5)
    with pytest.raises(convert.MessageError, match='covariance'):
        convert.needle_from_message(message)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_image_survives_there_and_back(dtype: type) -> None:
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (7, 5)).astype(dtype)
    message = convert.image_message(pixels, 'ultrasound_image', 9)
    assert message.encoding == ('mono8' if dtype is np.uint8 else 'mono16')
    back = convert.pixels_from_message(message)
    assert back.dtype == dtype
    assert np.array_equal(back, pixels)


def test_padded_rows_and_big_endian_pixels_are_understood() -> None:
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 300
    padded = np.zeros((2, 10), np.uint8)
    padded[:, :6] = pixels.astype('>u2').view(np.uint8)
    message = Image(height=2, width=3, encoding='mono16', is_bigendian=1, step=10,
                    data=padded.tobytes())
    assert np.array_equal(convert.pixels_from_message(message), pixels)


def test_colour_becomes_luminance() -> None:
    message = Image(height=1, width=2, encoding='bgr8', step=6, data=bytes([255, 0, 0, 0, 0, 255]))
    assert convert.pixels_from_message(message)[0].tolist() == [29, 76]


@pytest.mark.parametrize('spoil', [
    lambda m: setattr(m, 'encoding', 'bayer_rggb8'), lambda m: setattr(m, 'height', 100),
    lambda m: setattr(m, 'step', 1), lambda m: setattr(m, 'width', 0)])
def test_malformed_image_is_refused(spoil) -> None:
    message = convert.image_message(np.zeros((7, 5), np.uint8), 'x', 0)
    spoil(message)
    with pytest.raises(convert.MessageError):
        convert.pixels_from_message(message)


@pytest.mark.parametrize('projection', [
    Projection.perspective((3400.0, 3300.0), (500.0, 520.0), (64, 48)),
    Projection.orthographic((0.0002, 0.00015), (32.0, 12.0), (64, 48)),
    Projection.orthographic((0.0002, 0.00015), (32.0, 12.0), (64, 48), 9e-6)])
def test_camera_info_carries_the_projection(projection: Projection) -> None:
    info = convert.camera_info_message(projection, 'frame', 3)
    assert info.k[0] != 0.0
    back = convert.projection_from_info(info)
    assert np.allclose(back.matrix, projection.matrix)
    assert np.array_equal(np.reshape(info.k, (3, 3))[:2, :2], projection.matrix[:2, :2])
    assert (back.width, back.height) == (64, 48)


def test_uncalibrated_camera_info_has_no_focal_length() -> None:
    info = convert.camera_info_message(Projection.uncalibrated((64, 48)), 'frame', 3)
    assert info.k[0] == 0.0
    assert not convert.projection_from_info(info).is_calibrated


def test_camera_info_that_is_no_projection_is_refused() -> None:
    info = CameraInfo(width=64, height=48)
    info.k[0] = 100.0
    with pytest.raises(convert.MessageError, match='projection'):
        convert.projection_from_info(info)


def test_image_and_info_of_different_size_are_refused() -> None:
    image = convert.image_message(np.zeros((7, 5), np.uint8), 'x', 0)
    info = convert.camera_info_message(Projection.uncalibrated((64, 48)), 'x', 0)
    with pytest.raises(convert.MessageError, match='64 x 48'):
        convert.frame_from_messages(image, info)


def test_cloud_describes_its_own_layout() -> None:
    points = np.array([[0.001, 0.02, 0.0], [-0.003, 0.021, 0.0]])
    cloud = convert.point_cloud_message(points, np.array([0.5, 0.25]), 'ultrasound_image', 5)
    assert (cloud.height, cloud.width, cloud.row_step) == (1, 2, 2 * cloud.point_step)
    assert [(field.name, field.offset) for field in cloud.fields] == [
        ('x', 0), ('y', 4), ('z', 8), ('intensity', 12)]
    x, y, z, intensity = struct.unpack_from('<4f', bytes(cloud.data), cloud.point_step)
    assert (x, y, z, intensity) == pytest.approx((-0.003, 0.021, 0.0, 0.25))
    assert convert.stamp_ns(cloud.header.stamp) == 5


def test_cloud_without_points_is_a_valid_message() -> None:
    cloud = convert.point_cloud_message(np.zeros((0, 3)), np.zeros(0), 'ultrasound_image', 5)
    assert (cloud.width, cloud.row_step, len(cloud.data)) == (0, 0, 0)
