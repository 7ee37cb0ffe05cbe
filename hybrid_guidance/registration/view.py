"""A calibrated X-ray, and what of it is compared with rendered bone: normalised gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, skew, transform_points
from hybrid_guidance.geometry.types import Array, Image, Points, Transform
from hybrid_guidance.registration.bone import Picture
from hybrid_guidance.registration.result import RegistrationError
from hybrid_guidance.simulation.xray import coarse_pixels

# Deviation of the size of what a view shows, as a share of it; of one alone, whose depth nothing
# else tells, with what voxels and contrast medium do to the edges of real bone.
_SCALE, _SCALE_ALONE = 0.0017, 0.003
_LOCAL = 5.0
_FLOOR = 0.5


@dataclass(frozen=True)
class View:
    """A calibrated X-ray.

    Attributes:
        image: (H, W) counts, proportional to photons: air is bright.
        projection: perspective.
        fixed_T_sensor: (4, 4) of the X-ray source, as tracked.
        hidden: (H, W) True where something lies that the CT has not (needle, markers); None
            where nothing does.
        position_sigma: metres, deviation per axis of the tracked source.
        rotation_sigma: radians, deviation per axis of its tracked rotation.
    """

    image: Image
    projection: Projection
    fixed_T_sensor: Transform
    hidden: NDArray[np.bool_] | None = None
    position_sigma: float = 0.0002
    rotation_sigma: float = 0.0002

    def doubt(self, pivot: Points, alone: bool) -> Array:
        """Return the (6, 6) covariance of where a point of ``fixed`` is for this X-ray.

        The size of what is seen errs as well (focal length, where in its blur an edge is): that
        is a shift along the rays.

        Args:
            pivot: (3,) metres, in ``fixed``.
            alone: whether there is no other X-ray.
        """
        ray = pivot - self.fixed_T_sensor[:3, 3]
        lever = np.vstack([-skew(ray), np.eye(3)])
        result = self.rotation_sigma**2 * lever @ lever.T
        scale = _SCALE_ALONE if alone else _SCALE
        result[:3, :3] += self.position_sigma**2 * np.eye(3) + scale**2 * np.outer(ray, ray)
        return np.asarray(result)


def shadow(size: tuple[int, int], lines: Sequence[Array] = (), width: float = 12.0,
           discs: Sequence[Array] = ()) -> NDArray[np.bool_]:
    """Return the pixels that needles and markers hide, (H, W).

    Args:
        size: (width, height) px.
        lines: (2, 2) px, ends of each needle.
        width: px, of the strip about a needle.
        discs: (u, v, radius) px of each marker.
    """
    mask = np.zeros(size[::-1], np.uint8)
    for line in lines:
        ends = [tuple(int(value) for value in np.clip(np.rint(end), -30000, 30000))
                for end in line]
        cv2.line(mask, ends[0], ends[1], 1, max(round(width), 1))
    for u, v, radius in discs:
        cv2.circle(mask, (round(u), round(v)), int(np.ceil(radius)), 1, -1)
    return np.asarray(mask, bool)


@dataclass(frozen=True)
class Plate:
    """A view at one resolution.

    Attributes:
        feature: (2, h, w) normalised gradients.
        valid: (h, w) 0 where pixels do not count.
        matrix: (3, 4) projection to these pixels.
        fixed_T_sensor: (4, 4).
        pixel: metres at the patient.
    """

    feature: Picture
    valid: Picture
    matrix: Array
    fixed_T_sensor: Transform
    pixel: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.valid.shape
        return rows, columns


def plate_of(view: View, edge: float, depth: float) -> Plate:
    """Bring a view to pixels as large, at the patient, as a voxel's edge."""
    focal = float(view.projection.matrix[0, 0])
    step = max(round(0.9 * edge * focal / depth), 1)
    rows, columns = (count // step * step for count in view.image.shape)
    counts = np.asarray(view.image[:rows, :columns], np.float32)
    hidden = (np.zeros(view.image.shape, bool) if view.hidden is None
              else view.hidden)[:rows, :columns]
    # What blades cover is dark beyond what any patient makes.
    dark = counts < max(1e-3 * float(np.percentile(counts, 99.0)), 1.0)
    bad = (hidden | dark).astype(np.float32)
    size = (columns // step, rows // step)
    small = cv2.resize(counts * (1.0 - bad), size, interpolation=cv2.INTER_AREA)
    covered = np.asarray(cv2.resize(bad, size, interpolation=cv2.INTER_AREA), np.float32)
    seen = np.maximum(1.0 - covered, 1e-3)
    integral = -cv2.log(np.maximum(small / seen, 1.0))
    outside = cv2.dilate((covered > 0.3).astype(np.uint8), np.ones((5, 5), np.uint8))
    valid = np.asarray(1 - outside, np.float32)
    valid[:2] = valid[-2:] = valid[:, :2] = valid[:, -2:] = 0.0
    feature, _ = features(np.asarray(integral, np.float32), valid)
    return Plate(feature, valid, coarse_pixels(step) @ view.projection.matrix,
                 view.fixed_T_sensor, step * depth / focal)


def features(integral: Picture, valid: Picture | None = None) -> tuple[Picture, Picture]:
    """Return gradients over their local strength, (2, h, w), and how strong they are, 0 to 1."""
    smooth = cv2.GaussianBlur(integral, (0, 0), 0.8)
    gradient = np.stack([cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3),
                         cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3)])
    if valid is not None:
        gradient *= valid
    power = gradient[0] ** 2 + gradient[1] ** 2
    local = cv2.GaussianBlur(power, (0, 0), _LOCAL)
    if valid is not None:
        local = local / np.maximum(cv2.GaussianBlur(valid, (0, 0), _LOCAL), 0.05)
    some = local[local > 1e-3 * float(local.max() + 1e-20)]
    floor = _FLOOR * float(np.mean(some)) if some.size else 1.0
    strength = local / (local + floor)
    return np.asarray(gradient / np.sqrt(local + floor), np.float32), np.asarray(strength,
                                                                               np.float32)


def depth_of(view: View, pivot: Points) -> float:
    """Return how far a point of ``fixed`` is in front of the source, metres."""
    depth = float(transform_points(inverse(view.fixed_T_sensor), pivot)[2])
    if depth <= 0.05:
        raise RegistrationError('the target is not in front of the X-ray source; check the pose '
                                'of the C-arm and the start')
    return depth
