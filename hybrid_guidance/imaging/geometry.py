"""Where pixels lie: in the plane of an ultrasound image, or as rays of an X-ray image."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image


@dataclass(frozen=True)
class ImageGeometry:
    """Pixel spacing and origin of an ultrasound image, as a calibration finds them.

    Pixel (u, v) lies at ``x = spacing[0] * (u - u0) + skew * (v - v0)`` and
    ``y = spacing[1] * (v - v0)``. A skew is no property of a scanner: it is how a calibration
    that was fitted without the constraint of right angles absorbed its errors.

    Attributes:
        spacing: metres per pixel, (x lateral, y depth).
        origin: pixel (u0, v0) of the frame's origin, which is the mid transducer face.
        skew: metres along x per pixel along v.
    """

    spacing: tuple[float, float]
    origin: tuple[float, float]
    skew: float = 0.0

    def projection(self, size: tuple[int, int]) -> Projection:
        """Return the orthographic projection for an image of ``size`` (width, height)."""
        return Projection.orthographic(self.spacing, self.origin, size, self.skew)


@dataclass(frozen=True)
class CameraGeometry:
    """Intrinsics of an X-ray image, as a calibration finds them.

    Attributes:
        focal: pixels (fx, fy).
        centre: pixel (cx, cy) of the principal point.
        distortion: (k1, k2, p1, p2, k3) of OpenCV.
        size: (width, height) of the image that was calibrated.
    """

    focal: tuple[float, float]
    centre: tuple[float, float]
    distortion: tuple[float, float, float, float, float]
    size: tuple[int, int]

    def projection(self) -> Projection:
        """Return the projection of undistorted pixels."""
        return Projection.perspective(self.focal, self.centre, self.size)

    def undistorted(self, image: Image) -> Image:
        """Return a (H, W) image of this size as one without distortion."""
        if not any(self.distortion):
            return image
        return np.asarray(cv2.remap(image, *self._maps, cv2.INTER_LINEAR))

    @cached_property
    def _maps(self) -> tuple[Image, Image]:
        matrix = np.array([[self.focal[0], 0.0, self.centre[0]],
                           [0.0, self.focal[1], self.centre[1]], [0.0, 0.0, 1.0]])
        return cv2.initUndistortRectifyMap(matrix, np.array(self.distortion), np.eye(3), matrix,
                                           self.size, cv2.CV_16SC2)
