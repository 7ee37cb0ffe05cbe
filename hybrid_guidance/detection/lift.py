"""From a needle in pixels to a needle in space, with what the projection cannot see left open."""

import math

import numpy as np

from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import cross, pose_along, skew
from hybrid_guidance.geometry.types import Array, Pixels, Points

MINIMUM_RAY_DEVIATION = 0.5
"""Metres: a perspective image says nothing of the depth along its ray."""

_FWHM_PER_SIGMA = 2.3548


def lift(needle: PixelNeedle, projection: Projection, *, depth: float = 0.0,
         depth_deviation: float = MINIMUM_RAY_DEVIATION, slice_thickness: float = 0.003,
         ) -> NeedleEstimate:
    """Place a needle seen in an image into the sensor's frame.

    Shaft and rays span a plane. The tip is put on its ray, the shaft into the plane at right
    angles to the ray: exact for a slice, a guess for a perspective image. The covariance is
    that of the pixels, carried to first order, plus what is blind: the tip along its ray, the
    rotation about the plane's normal, the roll about the shaft.

    Args:
        needle: tip, direction and their covariance, in pixels.
        projection: of the image, calibrated.
        depth: metres, z of the tip in a perspective image; not used for a slice.
        depth_deviation: metres along the ray, for a perspective image; values below
            ``MINIMUM_RAY_DEVIATION`` are raised to it.
        slice_thickness: metres, full width at half maximum of a slice's beam.

    Returns:
        The needle in the sensor's frame; covariance (6, 6) in the sensor's axes, as
        ``rigid.perturbed`` defines it.

    Raises:
        ValueError: the projection is not calibrated, or the depth of a perspective image or
            the thickness of a slice is not positive.
    """
    _check(projection, depth, slice_thickness)
    z = depth if projection.is_perspective else 0.0
    tip, direction, jacobian = _pose(needle, projection, z)
    covariance = jacobian @ needle.covariance @ jacobian.T
    ray = projection.ray(needle.tip)
    normal = cross(ray, direction)
    covariance += _blind(_blind_deviations(needle, projection, depth_deviation, slice_thickness),
                         ray, normal, direction)
    return NeedleEstimate(pose_along(tip, direction), 0.5 * (covariance + covariance.T),
                          needle.probability)


def lift_shift(pixels: Pixels, covariance: Array, projection: Projection, *,
               depth: float = 0.0) -> tuple[Points, Array]:
    """Take a displacement of tissue from pixels to the sensor's frame.

    Args:
        pixels: (2,) px.
        covariance: (2, 2) px².
        projection: of the image, calibrated.
        depth: metres, z of the tissue in a perspective image; not used for a slice.

    Returns:
        (3,) m and (3, 3) m², with half a metre of deviation along the ray, or across the slice.

    Raises:
        ValueError: as ``lift``.
    """
    _check(projection, depth, 1.0)
    to_metres = projection.metres_per_pixel(depth if projection.is_perspective else 0.0)
    blind = MINIMUM_RAY_DEVIATION**2 * np.outer((0.0, 0.0, 1.0), (0.0, 0.0, 1.0))
    return to_metres @ pixels, to_metres @ covariance @ to_metres.T + blind


def _check(projection: Projection, depth: float, slice_thickness: float) -> None:
    if not projection.is_calibrated:
        raise ValueError('the image is not calibrated (k[0] == 0): its pixels have no place in '
                         'space; calibrate the sensor, or take its scale from the source')
    if projection.is_perspective and not depth > 0.0:
        raise ValueError(f'a perspective image needs a depth above zero, got {depth} m')
    if not projection.is_perspective and not slice_thickness > 0.0:
        raise ValueError(f'a slice needs a thickness above zero, got {slice_thickness} m')


def _pose(needle: PixelNeedle, projection: Projection, z: float) -> tuple[Points, Array, Array]:
    """Return tip, direction, and their (6, 3) derivative by (along px, across px, angle rad).

    Back-projection to one depth is linear in the pixel; so is the ray before it is given unit
    length. The last three rows are the smallest rotation that turns the direction: roll is left
    to the blind part.
    """
    to_metres = projection.metres_per_pixel(z)
    # Each column: how the pixel of the tip, and how the unit axis in the image, change.
    pixel, axis = np.zeros((2, 3)), np.zeros((2, 3))
    pixel[:, 0], pixel[:, 1], axis[:, 2] = needle.direction, needle.normal, needle.normal
    tip, ray = projection.back_project(needle.tip, z), projection.ray(needle.tip)
    shaft, shaft_change = to_metres @ needle.direction, to_metres @ axis
    shaft_on_ray = float(ray @ shaft)
    across = shaft - shaft_on_ray * ray
    across_change = shaft_change - np.outer(ray, ray @ shaft_change)
    if projection.is_perspective:
        ray_change = _unit_change(projection.metres_per_pixel(1.0) @ pixel, ray,
                                  1.0 / float(ray[2]))
        across_change -= np.outer(ray, shaft @ ray_change) + shaft_on_ray * ray_change
    length = math.hypot(*across.tolist())
    direction = across / length
    jacobian = np.empty((6, 3))
    jacobian[:3] = to_metres @ pixel
    jacobian[3:] = skew(direction) @ across_change / length
    return tip, direction, jacobian


def _unit_change(change: Array, unit: Array, length: float) -> Array:
    """Return how (3, N) changes of a vector of some length change the unit vector along it."""
    return np.asarray((change - np.outer(unit, unit @ change)) / length)


def _blind_deviations(needle: PixelNeedle, projection: Projection, depth_deviation: float,
                      slice_thickness: float) -> tuple[float, float, float]:
    """Return σ along the ray (m), σ about the plane's normal (rad), and their correlation."""
    if projection.is_perspective:
        return max(depth_deviation, MINIMUM_RAY_DEVIATION), np.pi / 2.0, 0.0
    deviation = slice_thickness / _FWHM_PER_SIGMA
    shaft = projection.metres_per_pixel() @ needle.direction
    visible = needle.length * math.hypot(*shaft.tolist())
    # Both ends lie in the slice, each with this deviation on its own.
    tilt = min(2.0**0.5 * deviation / visible, np.pi / 2.0)
    return deviation, tilt, -deviation / (visible * tilt)


def _blind(deviations: tuple[float, float, float], ray: Array, normal: Array, direction: Array
           ) -> Array:
    """Return the (6, 6) covariance of what the projection cannot see."""
    along_ray, about_normal, correlation = deviations
    # Columns: the tip along its ray, the tilt out of the plane, the roll.
    blind = np.zeros((6, 3))
    blind[:3, 0] = along_ray * ray
    blind[3:, 1], blind[3:, 2] = about_normal * normal, np.pi * direction
    mixed = np.array([[1.0, correlation, 0.0], [correlation, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return np.asarray(blind @ mixed @ blind.T)
