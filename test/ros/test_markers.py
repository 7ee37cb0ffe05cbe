"""Markers against what RViz makes of them (measured with the real one)."""

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage
from visualization_msgs.msg import Marker

from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.ros import markers
from hybrid_guidance.ros.convert import matrix_from_pose

CORNERS = np.array([[0.0, 0.0, 0.0], [0.04, 0.0, 0.0], [0.04, 0.03, 0.0], [0.0, 0.03, 0.0]])
RED = np.zeros((30, 40, 3), np.uint8) + np.array([200, 20, 10], np.uint8)


def show(plane: markers.ImagePlane, picture: np.ndarray = RED) -> list[Marker]:
    return plane.show(picture, CORNERS, 'ultrasound_image', 0)


def decoded(texture: CompressedImage) -> np.ndarray:
    bgr = cv2.imdecode(np.frombuffer(bytes(texture.data), np.uint8), cv2.IMREAD_COLOR)
    return bgr[..., ::-1]


def test_old_picture_is_deleted_before_the_new_one_is_added() -> None:
    """The same id again would be drawn over, darker with each picture."""
    plane = markers.ImagePlane('plane')
    there: set[int] = set()
    for _ in range(5):
        gone, quad = show(plane)
        assert (gone.action, quad.action) == (Marker.DELETE, Marker.ADD)
        assert (gone.ns, quad.ns) == ('plane', 'plane')
        assert quad.id not in there
        there.discard(gone.id)
        assert not there, 'two pictures at once'
        there.add(quad.id)


def test_texture_is_embedded_under_a_name_of_its_own() -> None:
    """Without the prefix RViz shows a white quad; two planes must not share a name."""
    names = {show(plane)[1].texture_resource
             for plane in (markers.ImagePlane('fluoroscopy'), markers.ImagePlane('ultrasound'))}
    assert len(names) == 2
    assert all(name.startswith('embedded://') for name in names)


def test_texture_format_is_a_bare_codec_name() -> None:
    """Anything else, such as "image/jpeg", ends RViz."""
    texture = show(markers.ImagePlane('plane'))[1].texture
    assert texture.format in ('jpeg', 'png')
    assert bytes(texture.data[:3]) == b'\xff\xd8\xff'


@pytest.mark.parametrize('picture', [RED, RED[..., 0]])
def test_texture_holds_the_picture_with_its_colours_in_order(picture: np.ndarray) -> None:
    found = decoded(show(markers.ImagePlane('plane'), picture)[1].texture)
    wanted = picture if picture.ndim == 3 else np.repeat(picture[..., np.newaxis], 3, axis=2)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 6


def test_each_point_has_the_texture_coordinate_of_its_corner() -> None:
    quad = show(markers.ImagePlane('plane'))[1]
    assert quad.type == Marker.TRIANGLE_LIST
    assert len(quad.points) == len(quad.uv_coordinates)
    assert len(quad.points) % 3 == 0
    for point, uv in zip(quad.points, quad.uv_coordinates, strict=True):
        # (0, 0) is the top left of the picture, the first corner.
        assert np.allclose([point.x, point.y, point.z], [0.04 * uv.u, 0.03 * uv.v, 0.0])


def test_both_faces_cover_the_whole_picture() -> None:
    quad = show(markers.ImagePlane('plane'))[1]
    points = np.array([[point.x, point.y] for point in quad.points]).reshape(-1, 3, 2)
    first, second = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    areas = 0.5 * (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    assert np.isclose(areas[areas > 0].sum(), 0.04 * 0.03)
    assert np.isclose(areas[areas < 0].sum(), -0.04 * 0.03)


def test_colour_of_the_quad_leaves_the_picture_as_it_is() -> None:
    """RViz multiplies the texture by it, and scales the points by the scale."""
    quad = show(markers.ImagePlane('plane'))[1]
    assert (quad.color.r, quad.color.g, quad.color.b, quad.color.a) == (1.0, 1.0, 1.0, 1.0)
    assert (quad.scale.x, quad.scale.y, quad.scale.z) == (1.0, 1.0, 1.0)
    assert quad.pose.orientation.w == 1.0


def test_needle_lies_behind_its_tip_along_the_shaft() -> None:
    pose = pose_along(np.array([0.01, 0.02, 0.03]), np.array([0.0, 0.6, 0.8]))
    rod, tip = markers.needle('needle', pose, 'patient', 0, 0.09, (1.0, 1.0, 0.0, 1.0)).markers
    assert np.allclose(matrix_from_pose(tip.pose)[:3, 3], pose[:3, 3])
    middle = matrix_from_pose(rod.pose)
    assert np.allclose(middle[:3, 3], pose[:3, 3] - 0.045 * pose[:3, 2])
    assert np.allclose(np.abs(middle[:3, 2] @ pose[:3, 2]), 1.0)
    assert rod.scale.z == pytest.approx(0.09)


def test_ellipsoid_has_the_deviations_as_radii_in_every_direction() -> None:
    """Closed form: along a unit eigenvector v the radius is k sqrt(v' C v)."""
    turn = pose_along(np.zeros(3), np.array([1.0, 2.0, 3.0]))[:3, :3]
    covariance = turn @ np.diag([1e-6, 4e-6, 9e-6]) @ turn.T
    ball = markers.uncertainty(np.zeros(3), covariance, 2.0, 'patient', 0)
    axes = matrix_from_pose(ball.pose)[:3, :3]
    for axis, diameter in zip(axes.T, (ball.scale.x, ball.scale.y, ball.scale.z), strict=True):
        assert diameter == pytest.approx(2 * 2.0 * np.sqrt(axis @ covariance @ axis))
    assert sorted([ball.scale.x, ball.scale.y, ball.scale.z]) == pytest.approx(
        [0.004, 0.008, 0.012])
