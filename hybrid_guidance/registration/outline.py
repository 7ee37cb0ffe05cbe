"""The edge of the bone of a CT in a live image: a rendered X-ray's contours, or a slice's."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, rotation_angle, transform_points
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.ct import REACH, named_scan
from hybrid_guidance.registration.surface import BoneField
from hybrid_guidance.simulation.xray import coarse_pixels

# Pixels of the image to one of the rendered X-ray, and to one sample of the slice.
_XRAY_STEP, _SLICE_STEP = 2, 3
_XRAY_REACH = 0.11
# A rotation moves what is this far away, metres: how turns are weighed against shifts.
_LEVER = 0.1

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Outline:
    """The bone of a CT, ready to be drawn.

    Attributes:
        bone: rendered for X-rays.
        field: cut by slices.
    """

    bone: Bone
    field: BoneField

    def seen(self, projection: Projection, sensor_T_patient: Transform) -> Mask:
        """Return (H, W) True on the edges of bone in an image.

        Args:
            projection: of the image, calibrated.
            sensor_T_patient: (4, 4).
        """
        small = (self._in_xray if projection.is_perspective else self._in_slice)(
            projection, inverse(sensor_T_patient))
        size = (projection.width, projection.height)
        return np.asarray(cv2.resize(small.astype(np.uint8), size,
                                     interpolation=cv2.INTER_NEAREST) > 0)

    def _in_xray(self, projection: Projection, patient_T_sensor: Transform) -> Mask:
        return contours(self.bone, projection, patient_T_sensor, _XRAY_STEP)

    def _in_slice(self, projection: Projection, patient_T_sensor: Transform) -> Mask:
        v, u = np.mgrid[0:projection.height:_SLICE_STEP, 0:projection.width:_SLICE_STEP]
        pixels = np.stack([u, v], axis=-1).reshape(-1, 2).astype(float)
        points = transform_points(patient_T_sensor, projection.back_project(pixels))
        # Cells are larger than pixels: the mean of distances has no steps.
        distance = cv2.blur(self.field.nearest(points).reshape(u.shape), (5, 5))
        solid = (distance < 0.0).astype(np.uint8)
        return np.asarray(solid ^ cv2.erode(solid, np.ones((3, 3), np.uint8)), bool)


def contours(bone: Bone, projection: Projection, moving_T_sensor: Transform, step: int) -> Mask:
    """Return where edges of the rendered bone are, (H / step, W / step) bool.

    Args:
        bone: of the CT.
        projection: of the X-ray.
        moving_T_sensor: (4, 4) of the X-ray source in the CT.
        step: pixels of the X-ray to one of the result.
    """
    shape = (projection.height // step, projection.width // step)
    drawn = bone.stacks[-1].integrate(coarse_pixels(step) @ projection.matrix, moving_T_sensor,
                                      shape)
    # Thin processes beside thick bodies: the square root brings both into one range.
    level = np.sqrt(drawn / max(float(drawn.max()), 1e-9))
    smooth = cv2.GaussianBlur((255.0 * level).astype(np.uint8), (0, 0), 1.2)
    return np.asarray(cv2.Canny(smooth, 30, 70) > 0)


def make_outline(ct: str, procedure: str, seed: int) -> Outline:
    """Return the bone near a procedure's target, of the CT that a parameter names."""
    setup = load_procedure(procedure)
    scan = named_scan(ct, setup, seed)
    bone = scan.near(setup.target, _XRAY_REACH).bone()
    # Contours need the finest voxels only.
    return Outline(replace(bone, stacks=bone.stacks[-1:], spacings=bone.spacings[-1:]),
                   scan.near(setup.target, REACH).surface())


class OutlineMemory:
    """The outline in each sensor's image, made anew only where something has moved.

    Args:
        outline: of the bone.
        moved: metres at the patient that sensor or patient may move before it is made anew.
    """

    def __init__(self, outline: Outline, moved: float) -> None:
        self._outline, self._moved = outline, moved
        self._kept: dict[str, tuple[Projection, Transform, Mask]] = {}

    def seen(self, sensor: str, projection: Projection, sensor_T_patient: Transform) -> Mask:
        """Return (H, W) True on the edges of bone in an image of a sensor."""
        known = self._kept.get(sensor)
        if known is not None and np.array_equal(known[0].matrix, projection.matrix):
            change = known[1] @ inverse(sensor_T_patient)
            shift = np.linalg.norm(known[1][:3, 3] - sensor_T_patient[:3, 3])
            if shift + _LEVER * rotation_angle(change[:3, :3]) < self._moved:
                return known[2]
        mask = self._outline.seen(projection, sensor_T_patient)
        self._kept[sensor] = projection, sensor_T_patient, mask
        return mask
