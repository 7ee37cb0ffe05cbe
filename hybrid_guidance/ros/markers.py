"""What RViz shows in 3-D: needle, path, uncertainty, and image planes with their pictures."""

from collections.abc import Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Duration
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray, UVCoordinate

from hybrid_guidance.geometry.needle import shaft
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.geometry.types import Array, Image, Points, Transform
from hybrid_guidance.ros.convert import header, point_message, pose_message

Colour = tuple[float, float, float, float]


def _marker(kind: int, namespace: str, number: int, frame_id: str, stamp: int,
            colour: Colour) -> Marker:
    marker = Marker(header=header(frame_id, stamp), ns=namespace, id=number, type=kind,
                    action=Marker.ADD)
    marker.pose.orientation.w = 1.0
    marker.color = ColorRGBA(r=colour[0], g=colour[1], b=colour[2], a=colour[3])
    return marker


def needle(namespace: str, frame_T_needle: Transform, frame_id: str, stamp: int, length: float,
           colour: Colour) -> MarkerArray:
    """Return a needle as a thin cylinder with a ball at its tip (4, 4 pose, length in m)."""
    ends = shaft(frame_T_needle, length)
    rod = _marker(Marker.CYLINDER, namespace, 0, frame_id, stamp, colour)
    rod.pose = pose_message(pose_along(ends.mean(axis=0), frame_T_needle[:3, 2]))
    rod.scale.x = rod.scale.y = 0.0012
    rod.scale.z = length
    tip = _marker(Marker.SPHERE, namespace, 1, frame_id, stamp, colour)
    tip.pose = pose_message(frame_T_needle)
    tip.scale.x = tip.scale.y = tip.scale.z = 0.003
    # Drawn again all the time; gone by itself when nobody does.
    rod.lifetime = tip.lifetime = Duration(sec=3)
    return MarkerArray(markers=[rod, tip])


def fluid(depots: Sequence[tuple[Transform, float]], stamp: int) -> MarkerArray:
    """Return depots ((4, 4) patient_T_depot, m³) as balls that hold as much."""
    balls = []
    for number, (pose, volume) in enumerate(depots):
        ball = _marker(Marker.SPHERE, 'injectate', number, 'patient', stamp, (0.3, 0.6, 1.0, 0.5))
        ball.pose = pose_message(pose)
        ball.scale.x = ball.scale.y = ball.scale.z = float(np.cbrt(6.0 * volume / np.pi))
        balls.append(ball)
    return MarkerArray(markers=balls or [Marker(action=Marker.DELETEALL)])


def path(entry: Points, target: Points, frame_id: str, stamp: int) -> list[Marker]:
    """Return a planned path as a line with a ball at entry and target ((3,) m)."""
    line = _marker(Marker.LINE_STRIP, 'plan', 0, frame_id, stamp, (0.1, 0.8, 1.0, 1.0))
    line.points = [point_message(entry), point_message(target)]
    line.scale.x = 0.0008
    balls = []
    for number, (point, colour) in enumerate(((entry, (0.1, 0.8, 1.0, 1.0)),
                                              (target, (1.0, 0.3, 0.9, 1.0))), start=1):
        ball = _marker(Marker.SPHERE, 'plan', number, frame_id, stamp, colour)
        ball.pose.position = point_message(point)
        ball.scale.x = ball.scale.y = ball.scale.z = 0.004
        balls.append(ball)
    return [line, *balls]


def candidates(entries: Points, costs: Array, ways: Sequence[tuple[Points, Points]],
               frame_id: str, stamp: int) -> list[Marker]:
    """Return the entries of judged paths coloured by cost, and the ranked ways as thin lines.

    Args:
        entries: (N, 3) m.
        costs: (N,) of the paths, infinite where refused: green is best, red worst, grey refused.
        ways: (entry, target) of the ranked paths, (3,) m each.
        frame_id: of the points.
        stamp: ns.
    """
    dots = _marker(Marker.SPHERE_LIST, 'candidates', 0, frame_id, stamp, (1.0, 1.0, 1.0, 1.0))
    dots.scale.x = dots.scale.y = dots.scale.z = 0.001
    allowed = np.isfinite(costs)
    low = float(costs[allowed].min()) if allowed.any() else 0.0
    spread = max(float(np.ptp(costs[allowed])) if allowed.any() else 0.0, 1e-9)
    for entry, cost, free in zip(entries, costs, allowed, strict=True):
        share = float((cost - low) / spread) if free else 0.5
        dots.points.append(point_message(entry))
        dots.colors.append(ColorRGBA(r=share, g=1.0 - share, b=0.1, a=1.0) if free else
                           ColorRGBA(r=0.5, g=0.5, b=0.5, a=0.4))
    lines = _marker(Marker.LINE_LIST, 'candidates', 1, frame_id, stamp, (0.6, 0.8, 0.9, 0.6))
    lines.scale.x = 0.0004
    lines.points = [point_message(point) for way in ways for point in way]
    return [dots, lines]


def words(text: str, point: Points, frame_id: str, stamp: int) -> Marker:
    """Return a line of text that faces the viewer."""
    marker = _marker(Marker.TEXT_VIEW_FACING, 'words', 0, frame_id, stamp, (1.0, 1.0, 1.0, 1.0))
    marker.pose.position = point_message(point)
    marker.scale.z = 0.008
    marker.text = text
    return marker


def uncertainty(tip: Points, covariance: Array, scale: float, frame_id: str,
                stamp: int) -> Marker:
    """Return the ellipsoid of ``scale`` σ of a (3, 3) position covariance at a (3,) tip."""
    variances, axes = np.linalg.eigh(covariance)
    if np.linalg.det(axes) < 0:
        axes[:, 0] *= -1
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = axes, tip
    marker = _marker(Marker.SPHERE, 'uncertainty', 0, frame_id, stamp, (1.0, 0.9, 0.1, 0.35))
    marker.pose = pose_message(pose)
    diameters = 2 * scale * np.sqrt(np.maximum(variances, 1e-10))
    marker.scale.x, marker.scale.y, marker.scale.z = (float(d) for d in diameters)
    return marker


class ImagePlane:
    """A picture in 3-D: a textured quad that is replaced, not stacked.

    RViz adds a texture at each update of the same marker, which darkens it; so each picture gets
    a new id and deletes the one before it in the same message.

    Args:
        namespace: of the markers, one for each picture.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._number = 0

    def show(self, picture: Image, corners: Points, frame_id: str, stamp: int) -> list[Marker]:
        """Return the markers that put a picture in place of the last one.

        Args:
            picture: (H, W) or (H, W, 3) uint8 RGB.
            corners: (4, 3) m: top left, top right, bottom right, bottom left of the picture.
            frame_id: frame of the corners.
            stamp: ns.
        """
        gone = _marker(Marker.TRIANGLE_LIST, self._namespace, self._number, frame_id, stamp,
                       (1.0, 1.0, 1.0, 1.0))
        gone.action = Marker.DELETE
        self._number = 1 - self._number
        quad = _marker(Marker.TRIANGLE_LIST, self._namespace, self._number, frame_id, stamp,
                       (1.0, 1.0, 1.0, 1.0))
        quad.scale.x = quad.scale.y = quad.scale.z = 1.0
        order: Sequence[int] = (0, 1, 2, 0, 2, 3)
        # Both faces, so that the picture is seen from behind, too.
        order = (*order, *reversed(order))
        places = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
        quad.points = [point_message(corners[index]) for index in order]
        quad.uv_coordinates = [UVCoordinate(u=places[index][0], v=places[index][1])
                               for index in order]
        quad.texture_resource = f'embedded://{self._namespace}_{self._number}'
        quad.texture = _texture(picture, frame_id, stamp)
        return [gone, quad]


def _texture(picture: Image, frame_id: str, stamp: int) -> CompressedImage:
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    # RViz ends itself on any format but a bare codec name.
    coded = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return CompressedImage(header=header(frame_id, stamp), format='jpeg', data=coded.tobytes())
