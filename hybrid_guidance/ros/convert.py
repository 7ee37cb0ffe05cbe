"""Between ROS messages and numpy, in one place: quaternion order, stamps, image layout."""

import array
import math
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseStamped,
    PoseWithCovarianceStamped,
    Quaternion,
    TransformStamped,
    Vector3,
)
from geometry_msgs.msg import Transform as TransformMessage
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from hybrid_guidance.fusion.advice import Advice
from hybrid_guidance.geometry import covariance as pose_covariance
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import from_quaternion, quaternion, transform
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.geometry.types import Image as Pixels
from hybrid_guidance.imaging.frame import Frame

DTYPES = {'mono8': np.uint8, '8UC1': np.uint8, 'mono16': np.uint16, '16UC1': np.uint16,
          'rgb8': np.uint8, 'bgr8': np.uint8, 'rgba8': np.uint8, 'bgra8': np.uint8}
GREY = {'rgb8': cv2.COLOR_RGB2GRAY, 'bgr8': cv2.COLOR_BGR2GRAY,
        'rgba8': cv2.COLOR_RGBA2GRAY, 'bgra8': cv2.COLOR_BGRA2GRAY}


_TISSUE = 'tissue_'


class MessageError(ValueError):
    """A message that cannot mean anything; the text says what is wrong with it."""


def stamp_ns(stamp: Time) -> int:
    """Return a ROS stamp in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def time_message(nanoseconds: int) -> Time:
    """Return nanoseconds as a ROS stamp."""
    return Time(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)


def header(frame_id: str, nanoseconds: int) -> Header:
    """Return a header."""
    return Header(frame_id=frame_id, stamp=time_message(nanoseconds))


def point_message(point: Points) -> Point:
    """Return (3,) metres as a Point."""
    return Point(x=float(point[0]), y=float(point[1]), z=float(point[2]))


def point_array(point: Point | Vector3) -> Points:
    """Return a Point or Vector3 as (3,) metres.

    Raises:
        MessageError: not finite.
    """
    if not (math.isfinite(point.x) and math.isfinite(point.y) and math.isfinite(point.z)):
        raise MessageError(f'the point ({point.x}, {point.y}, {point.z}) is not finite')
    return np.array((point.x, point.y, point.z))


def matrix_from_numbers(xyz: tuple[float, ...], xyzw: tuple[float, ...]) -> Transform:
    """Return (3,) metres and a quaternion as a (4, 4) transform.

    Raises:
        MessageError: not finite, or the quaternion is not of unit length.
    """
    if not all(map(math.isfinite, xyz)):
        raise MessageError(f'the point {xyz} is not finite')
    norm = math.hypot(*xyzw)
    if not abs(norm - 1.0) < 1e-3:
        raise MessageError(f'the quaternion {list(xyzw)} (x, y, z, w) has length {norm:.4g}, '
                           'not 1')
    return from_quaternion(xyzw, xyz)


def _matrix(translation: Point | Vector3, rotation: Quaternion) -> Transform:
    return matrix_from_numbers((translation.x, translation.y, translation.z),
                               (rotation.x, rotation.y, rotation.z, rotation.w))


def matrix_from_pose(pose: Pose) -> Transform:
    """Return a Pose as a (4, 4) transform; raises like ``matrix_from_numbers``."""
    return _matrix(pose.position, pose.orientation)


def matrix_from_transform(message: TransformMessage) -> Transform:
    """Return a Transform message as a (4, 4) transform; raises like ``matrix_from_numbers``."""
    return _matrix(message.translation, message.rotation)


def _fill(into: Header, frame_id: str, nanoseconds: int) -> None:
    # A message brings its parts along: to fill them takes half the time of making others.
    into.frame_id, stamp = frame_id, into.stamp
    stamp.sec, stamp.nanosec = divmod(nanoseconds, 1_000_000_000)


def _place(matrix: Transform, position: Point | Vector3, rotation: Quaternion) -> None:
    position.x, position.y, position.z = matrix[:3, 3].tolist()
    rotation.x, rotation.y, rotation.z, rotation.w = quaternion(matrix).tolist()


def pose_message(matrix: Transform) -> Pose:
    """Return a (4, 4) transform as a Pose."""
    message = Pose()
    _place(matrix, message.position, message.orientation)
    return message


def pose_stamped(matrix: Transform, frame_id: str, nanoseconds: int) -> PoseStamped:
    """Return a (4, 4) transform as a PoseStamped in ``frame_id``."""
    return PoseStamped(header=header(frame_id, nanoseconds), pose=pose_message(matrix))


def transform_message(parent: str, child: str, nanoseconds: int,
                      parent_T_child: Transform) -> TransformStamped:
    """Return a (4, 4) transform as a TransformStamped."""
    message = TransformStamped(child_frame_id=child)
    _fill(message.header, parent, nanoseconds)
    _place(parent_T_child, message.transform.translation, message.transform.rotation)
    return message


def needle_message(needle: NeedleEstimate, frame_id: str,
                   nanoseconds: int) -> PoseWithCovarianceStamped:
    """Return a needle as a message: tip, shaft along +z, 6x6 covariance in ``frame_id``.

    Args:
        needle: in ``frame_id``.
        frame_id: of its pose.
        nanoseconds: acquisition time.
    """
    message = PoseWithCovarianceStamped(header=header(frame_id, nanoseconds))
    message.pose.pose = pose_message(needle.pose)
    message.pose.covariance = needle.covariance.ravel()
    return message


def valid_covariance(covariance: Array) -> Array:
    """Return a (6, 6) covariance of a pose.

    Raises:
        MessageError: it is none.
    """
    if not pose_covariance.is_valid(covariance):
        raise MessageError('the pose covariance is not finite, symmetric and positive')
    return covariance


def needle_from_message(message: PoseWithCovarianceStamped) -> NeedleEstimate:
    """Return a needle message as an estimate.

    Raises:
        MessageError: not finite, not a unit quaternion, or the covariance is not one.
    """
    covariance = np.asarray(message.pose.covariance, dtype=float).reshape(6, 6)
    return NeedleEstimate(matrix_from_pose(message.pose.pose), valid_covariance(covariance))


def tissue_message(displacement: Points, covariance: Array, reference_ns: int, frame_id: str,
                   nanoseconds: int) -> Odometry:
    """Return how far tissue has moved as a message.

    ``child_frame_id`` names the tissue by the stamp of the image from which its way counts.

    Args:
        displacement: (3,) m, in ``frame_id``.
        covariance: (3, 3) m².
        reference_ns: stamp of that image.
        frame_id: the sensor's frame.
        nanoseconds: stamp of the present image.
    """
    message = Odometry(header=header(frame_id, nanoseconds),
                       child_frame_id=f'{_TISSUE}{reference_ns}')
    message.pose.pose = pose_message(transform(translation=displacement))
    both = np.zeros((6, 6))
    both[:3, :3] = covariance
    message.pose.covariance = both.ravel()
    return message


def tissue_from_message(message: Odometry) -> tuple[Points, Array, int]:
    """Return displacement (3,) m, covariance (3, 3) m² and reference stamp of a tissue message.

    Raises:
        MessageError: not finite, no covariance, or ``child_frame_id`` is not ``tissue_<ns>``.
    """
    covariance = valid_covariance(
        np.asarray(message.pose.covariance, dtype=float).reshape(6, 6))
    number = message.child_frame_id.removeprefix(_TISSUE)
    if number == message.child_frame_id or not number.isdecimal():
        raise MessageError(f'child_frame_id is "{message.child_frame_id}", not '
                           f'"{_TISSUE}<nanoseconds of the first image>"')
    return (matrix_from_pose(message.pose.pose)[:3, 3], covariance[:3, :3], int(number))


def image_message(pixels: Pixels, frame_id: str, nanoseconds: int) -> Image:
    """Return (H, W) uint8 or uint16 as mono8 or mono16, (H, W, 3) uint8 as rgb8."""
    encoding = 'rgb8' if pixels.ndim == 3 else 'mono16' if pixels.itemsize == 2 else 'mono8'
    message = Image(header=header(frame_id, nanoseconds), height=pixels.shape[0],
                    width=pixels.shape[1], encoding=encoding, is_bigendian=0,
                    step=pixels.shape[1] * pixels.itemsize * (3 if pixels.ndim == 3 else 1))
    # array.array is taken as it is; an ndarray would be checked number by number (64 ms a MiB).
    message.data = array.array('B', np.ascontiguousarray(pixels).tobytes())
    return message


class Picture(Protocol):
    """What says how the bytes of an image are to be read: an Image, or what is left of one."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


def pixels_from_message(message: Picture) -> Pixels:
    """Return an Image as (H, W) grey levels; colour becomes luminance.

    Raises:
        MessageError: an encoding that is not an image of grey levels or colours, or a size that
            does not fit the data.
    """
    dtype = DTYPES.get(message.encoding)
    if dtype is None:
        raise MessageError(f'encoding "{message.encoding}" is not one of {", ".join(DTYPES)}')
    channels = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4}.get(message.encoding, 1)
    row = message.width * channels * np.dtype(dtype).itemsize
    if message.step < row or len(message.data) < message.step * message.height or not row:
        raise MessageError(f'{message.width} x {message.height} {message.encoding} with step '
                           f'{message.step} does not fit {len(message.data)} bytes')
    data = np.frombuffer(message.data, np.uint8, message.step * message.height)
    rows = data.reshape(message.height, message.step)[:, :row]
    pixels: Pixels = np.ascontiguousarray(rows).view(
        np.dtype(dtype).newbyteorder('>' if message.is_bigendian else '<'))
    if channels > 1:
        colour = pixels.reshape(message.height, message.width, channels)
        return np.asarray(cv2.cvtColor(colour, GREY[message.encoding]))
    return pixels.astype(dtype, copy=False)


def point_cloud_message(points: Points, confidence: Array, frame_id: str,
                        nanoseconds: int) -> PointCloud2:
    """Return points as an unorganised cloud of float32 x, y, z and intensity.

    Args:
        points: (N, 3) metres in ``frame_id``; an empty cloud says that nothing was found.
        confidence: (N,) from 0 to 1; RViz and Foxglove know it as ``intensity``.
        frame_id: of the points.
        nanoseconds: acquisition time.
    """
    names = ('x', 'y', 'z', 'intensity')
    rows = np.column_stack([points, confidence]).astype('<f4')
    message = PointCloud2(header=header(frame_id, nanoseconds), height=1, width=len(rows),
                          is_bigendian=False, is_dense=True, point_step=4 * len(names),
                          row_step=rows.nbytes)
    message.fields = [PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
                      for index, name in enumerate(names)]
    message.data = array.array('B', rows.tobytes())
    return message


def points_from_cloud(message: PointCloud2) -> tuple[Points, Array]:
    """Return (N, 3) metres and (N,) confidences of a cloud of ``point_cloud_message``.

    Raises:
        MessageError: its fields are others, it is cut off, or a point is not finite.
    """
    names = [field.name for field in message.fields]
    if names != ['x', 'y', 'z', 'intensity'] or message.point_step != 16 or message.is_bigendian:
        raise MessageError(f'a cloud of bone has float32 x, y, z and intensity, not {names}')
    count = message.width * message.height
    if len(message.data) < 16 * count:
        raise MessageError(f'{count} points do not fit {len(message.data)} bytes')
    rows = np.frombuffer(message.data, '<f4', 4 * count).reshape(count, 4).astype(float)
    if not np.isfinite(rows).all():
        raise MessageError('a point of the cloud is not finite')
    return rows[:, :3], rows[:, 3]


def camera_info_message(projection: Projection, frame_id: str, nanoseconds: int) -> CameraInfo:
    """Return a projection as CameraInfo; an uncalibrated one has ``k[0] == 0``."""
    matrix = projection.matrix
    k = np.array([[matrix[0, 0], matrix[0, 1], matrix[0, 2] + matrix[0, 3]],
                  [matrix[1, 0], matrix[1, 1], matrix[1, 2] + matrix[1, 3]], [0.0, 0.0, 1.0]])
    info = CameraInfo(header=header(frame_id, nanoseconds),
                      width=projection.width, height=projection.height)
    info.p = matrix.ravel()
    if projection.is_calibrated:
        info.distortion_model = 'plumb_bob'
        info.d = [0.0] * 5
        info.k = k.ravel()
        info.r = np.eye(3).ravel()
    return info


def projection_from_info(info: CameraInfo) -> Projection:
    """Return the projection of a CameraInfo; uncalibrated when ``k[0] == 0``.

    Raises:
        MessageError: not finite, or no size.
    """
    if not info.width or not info.height:
        raise MessageError('camera_info has no width or height')
    size = (int(info.width), int(info.height))
    if info.k[0] == 0.0:
        return Projection.uncalibrated(size)
    return _projection(tuple(info.p.tolist()), *size)


@lru_cache(maxsize=4)
def _projection(p: tuple[float, ...], width: int, height: int) -> Projection:
    """Return the projection of ``CameraInfo.p``: checked once, as it seldom changes."""
    matrix = np.array(p).reshape(3, 4)
    if not np.all(np.isfinite(matrix)) or np.linalg.matrix_rank(matrix) < 3:
        raise MessageError(f'camera_info.p is not a projection: {matrix.tolist()}')
    matrix.setflags(write=False)
    return Projection(matrix, width, height)


def frame_from_messages(image: Image, info: CameraInfo) -> Frame:
    """Return the pair as a Frame.

    Raises:
        MessageError: either is malformed, or the two sizes differ.
    """
    return frame_of(image, stamp_ns(image.header.stamp), info)


def frame_of(image: Picture, nanoseconds: int, info: CameraInfo) -> Frame:
    """Return an image with its stamp and its camera_info as a Frame; raises likewise."""
    if (image.width, image.height) != (info.width, info.height):
        raise MessageError(f'image is {image.width} x {image.height}, its camera_info says '
                           f'{info.width} x {info.height}')
    return Frame(pixels_from_message(image), nanoseconds, projection_from_info(info))


def advice_message(advice: Advice) -> DiagnosticStatus:
    """Return an advice as a status: WARN where an exposure is worth its dose."""
    return DiagnosticStatus(
        level=DiagnosticStatus.WARN if advice.expose else DiagnosticStatus.OK,
        name='exposure', message=advice.reason, values=[
            KeyValue(key='tip error now, m', value=f'{advice.now:.6f}'),
            KeyValue(key='tip error after, m', value=f'{advice.after:.6f}'),
            KeyValue(key='risk now', value=f'{advice.risk_now:.4f}'),
            KeyValue(key='risk after', value=f'{advice.risk_after:.4f}')])
