"""Where the pixels of an ultrasound image lie in its own plane."""

from dataclasses import dataclass

from hybrid_guidance.geometry.projection import Projection


@dataclass(frozen=True)
class ImageGeometry:
    """Pixel spacing and origin of an ultrasound image, as a calibration finds them.

    Attributes:
        spacing: metres per pixel, (x lateral, y depth).
        origin: pixel (u0, v0) of the frame's origin, which is the mid transducer face.
    """

    spacing: tuple[float, float]
    origin: tuple[float, float]

    def projection(self, size: tuple[int, int]) -> Projection:
        """Return the orthographic projection for an image of ``size`` (width, height)."""
        return Projection.orthographic(self.spacing, self.origin, size)
