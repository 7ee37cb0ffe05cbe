"""Where a registration puts the bone of a CT: over an X-ray, and on what ultrasound saw of it."""

import cv2
import numpy as np

from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Array, Image, Points, Transform
from hybrid_guidance.imaging.grey import counts_to_grey
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.ct import Scan
from hybrid_guidance.registration.outline import contours
from hybrid_guidance.registration.surface import BoneField, Cloud, SurfaceRegistration
from hybrid_guidance.registration.view import View

# Red, green, blue.
RIGHT, REFUSED, START = (80, 255, 120), (255, 96, 64), (255, 200, 60)


def over(bone: Bone, view: View, fixed_T_moving: Transform, colour: tuple[int, int, int],
         words: str, largest: int = 640) -> Image:
    """Return an X-ray with the contours of the bone, (H, W, 3) uint8 RGB."""
    step = max(-(-max(view.image.shape) // largest), 1)
    rows, columns = (count // step for count in view.image.shape)
    grey = cv2.resize(counts_to_grey(view.image[:rows * step, :columns * step]), (columns, rows),
                      interpolation=cv2.INTER_AREA)
    canvas = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    canvas[contours(bone, view.projection, inverse(fixed_T_moving) @ view.fixed_T_sensor,
                    step)] = colour
    if view.hidden is not None:
        hidden = view.hidden[:rows * step:step, :columns * step:step]
        canvas[hidden] = canvas[hidden] // 2 + np.array([40, 40, 70], np.uint8)
    _write(canvas, words, colour)
    return np.asarray(canvas)


def _write(canvas: Image, words: str, colour: tuple[int, int, int]) -> None:
    for shade, width in (((20, 20, 20), 3), (colour, 1)):
        cv2.putText(canvas, words, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, width,
                    cv2.LINE_AA)


# Name of a slice; which axes of the patient run right and down in it, and which across it.
_SLICES = (('axial', (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
           ('sagittal', (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
           ('coronal', (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)))


def slices(scan: Scan, bone: BoneField, cloud: Cloud, start: Transform,
           found: SurfaceRegistration, pixel: float = 0.0004, thick: float = 0.0015) -> Image:
    """Return three slices of a CT with the points that ultrasound saw, (H, W, 3) uint8 RGB.

    Upper row at the start, lower row as registered: axial, sagittal and coronal through the
    middle of the points, each with the edge of the bone and the points within ``thick``.

    Args:
        scan: of the CT near the target.
        bone: its surface.
        cloud: of the sweep, in ``fixed``.
        start: (4, 4) ``fixed_T_moving``.
        found: where the CT is.
        pixel: metres.
        thick: metres to either side of a slice.
    """
    rows = []
    placed = transform_points(inverse(found.transform), cloud.points)
    # Most of the points, and not a slice between two bones.
    middle = placed[np.argmin(np.linalg.norm(placed - np.median(placed, axis=0), axis=1))]
    for pose, colour, words in (
            (start, START, 'start'),
            (found.transform, RIGHT if found.accepted else REFUSED,
             'accepted' if found.accepted else 'REFUSED')):
        points = transform_points(inverse(pose), cloud.points)
        panels = [_slice(scan, bone, points, middle, np.array([right, down]), pixel, thick, colour)
                  for _, right, down in _SLICES]
        for panel, (name, _, _) in zip(panels, _SLICES, strict=True):
            _write(panel, f'{name}, {words}', colour)
        rows.append(np.hstack(panels))
    return np.vstack(rows)


def _slice(scan: Scan, bone: BoneField, points: Points, middle: Points, axes: Array, pixel: float,
           thick: float, colour: tuple[int, int, int], size: int = 360) -> Image:
    offsets = (np.arange(size) - size / 2) * pixel
    grid = middle + offsets[:, None, None] * axes[1] + offsets[:, None] * axes[0]
    cells = np.rint((grid - scan.origin) / scan.spacing).astype(int)
    last = np.array(scan.values.shape[::-1]) - 1
    inside = np.all((cells >= 0) & (cells <= last), axis=-1)
    x, y, z = np.moveaxis(np.clip(cells, 0, last), -1, 0)
    grey = np.clip((scan.values[z, y, x].astype(np.float32) + 150.0) / 1000.0 * 200.0, 0, 200)
    canvas = np.repeat((grey * inside).astype(np.uint8)[..., None], 3, axis=2)
    solid = (bone(grid.reshape(-1, 3))[0].reshape(size, size) < 0.0).astype(np.uint8)
    canvas[(cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0)
           & inside] = (90, 150, 255)
    away = points - middle
    near = away[np.abs(away @ np.cross(axes[0], axes[1])) < thick]
    for column, row in np.rint(near @ axes.T / pixel + size / 2).astype(int):
        cv2.circle(canvas, (int(column), int(row)), 1, colour, -1)
    return canvas
