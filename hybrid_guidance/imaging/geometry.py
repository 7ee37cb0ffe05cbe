"""Where the pixels of an ultrasound image lie in its own plane."""

from dataclasses import dataclass

from hybrid_guidance.geometry.projection import Projection


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
