"""One projection for both modalities: a 3x4 matrix takes metres in the sensor to pixels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hybrid_guidance.geometry.types import Array, Pixels, Points


@dataclass(frozen=True)
class Projection:
    """How a sensor maps a point of its own frame to a pixel: ``u ~ P @ [x, y, z, 1]``.

    An X-ray is a perspective camera (third row ``[0, 0, 1, 0]``), an ultrasound slice an
    orthographic one (third row ``[0, 0, 0, 1]``). The arithmetic is the same.

    Attributes:
        matrix: (3, 4), metres to pixels.
        width: image width in pixels.
        height: image height in pixels.
    """

    matrix: Array
    width: int
    height: int

    @classmethod
    def perspective(cls, focal: tuple[float, float], centre: tuple[float, float],
                    size: tuple[int, int]) -> 'Projection':
        """Pinhole: focal length (fx, fy) and principal point in pixels, size (width, height)."""
        matrix = np.array([[focal[0], 0.0, centre[0], 0.0],
                           [0.0, focal[1], centre[1], 0.0],
                           [0.0, 0.0, 1.0, 0.0]])
        return cls(matrix, *size)

    @classmethod
    def orthographic(cls, spacing: tuple[float, float], origin: tuple[float, float],
                     size: tuple[int, int], skew: float = 0.0) -> 'Projection':
        """Slice: pixel spacing (x, y) in metres, pixel of the frame's origin, size (w, h).

        ``skew`` is how many metres along x one pixel along v is: zero where the image's axes
        are at right angles.
        """
        across = -skew / (spacing[0] * spacing[1])
        matrix = np.array([[1.0 / spacing[0], across, 0.0, origin[0]],
                           [0.0, 1.0 / spacing[1], 0.0, origin[1]],
                           [0.0, 0.0, 0.0, 1.0]])
        return cls(matrix, *size)

    @classmethod
    def uncalibrated(cls, size: tuple[int, int]) -> 'Projection':
        """Pixels without geometry: nobody may measure in them."""
        return cls(np.zeros((3, 4)), *size)

    @property
    def is_calibrated(self) -> bool:
        """Whether pixels mean something in metres (``k[0] != 0`` on the wire)."""
        return bool(self.matrix[0, 0] != 0.0)

    @cached_property
    def is_perspective(self) -> bool:
        """Whether rays diverge from a point; otherwise they are parallel to z."""
        return bool(self.matrix[2, 2] != 0.0)

    def pixels(self, points: Points) -> Pixels:
        """Project (..., 3) points in metres to (..., 2) pixels."""
        homogeneous = points @ self.matrix[:, :3].T + self.matrix[:, 3]
        return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])

    def corners(self, depth: float) -> Points:
        """Return the (4, 3) corners of the image in the sensor's frame, clockwise from the first.

        Args:
            depth: metres, z of the corners of a perspective image; not used for a slice.
        """
        right, bottom = self.width - 0.5, self.height - 0.5
        return self.back_project(np.array([[-0.5, -0.5], [right, -0.5], [right, bottom],
                                           [-0.5, bottom]]), depth if self.is_perspective else 0.0)

    def back_project(self, pixels: Pixels, depth: float | Array = 0.0) -> Points:
        """Return the (..., 3) points in metres on (..., 2) pixels at z = depth (metres).

        A perspective image needs a depth above zero; a slice lies at depth zero.
        """
        pixels, depth = np.asarray(pixels, dtype=float), np.asarray(depth, dtype=float)
        points = np.empty((*pixels.shape[:-1], 3))
        points[..., 2] = depth
        scale = points[..., 2:]
        across = pixels * scale if self.is_perspective else pixels
        across = across - (scale * self.matrix[:2, 2] + self.matrix[:2, 3])
        points[..., :2] = across @ self._metres_per_pixel[:2].T
        return points

    def metres_per_pixel(self, depth: float = 0.0) -> Array:
        """Return the (3, 2) derivative of ``back_project`` by the pixel, at a depth in metres."""
        derivative = self._metres_per_pixel
        return derivative * depth if self.is_perspective else derivative

    @cached_property
    def _metres_per_pixel(self) -> Array:
        derivative = np.zeros((3, 2))
        derivative[:2] = _inverse(self.matrix[:2, :2])
        derivative.setflags(write=False)
        return derivative

    def ray(self, pixel: Pixels) -> Array:
        """Return the (3,) unit direction, in the sensor frame, that a (2,) pixel looks along."""
        if not self.is_perspective:
            return np.array([0.0, 0.0, 1.0])
        direction = self.back_project(pixel, 1.0)
        return np.asarray(direction / np.linalg.norm(direction))

    def jacobian(self, point: Points) -> Array:
        """Return the (2, 3) derivative of the pixel by a (3,) point, in pixels per metre."""
        homogeneous = self.matrix[:, :3] @ point + self.matrix[:, 3]
        pixel = homogeneous[:2] / homogeneous[2]
        return np.asarray((self.matrix[:2, :3] - np.outer(pixel, self.matrix[2, :3]))
                          / homogeneous[2])

    def contains(self, pixels: Pixels, margin: float = 0.0) -> Array:
        """Tell which (..., 2) pixels lie inside the image, at least ``margin`` from its edge."""
        upper = np.array([self.width - 1, self.height - 1]) - margin
        return np.asarray(np.all((pixels >= margin) & (pixels <= upper), axis=-1))


def _inverse(matrix: Array) -> Array:
    """Return the inverse of a (2, 2) matrix; ``numpy.linalg.inv`` takes ten times as long."""
    (a, b), (c, d) = matrix.tolist()
    determinant = a * d - b * c
    return np.array([[d / determinant, -b / determinant], [-c / determinant, a / determinant]])
