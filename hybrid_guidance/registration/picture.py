"""The bone of a CT drawn over an X-ray where a registration puts it."""

import cv2
import numpy as np

from hybrid_guidance.geometry.rigid import inverse
from hybrid_guidance.geometry.types import Image, Transform
from hybrid_guidance.imaging.grey import counts_to_grey
from hybrid_guidance.registration.projection import Bone, View
from hybrid_guidance.simulation.xray import coarse_pixels

# Red, green, blue.
RIGHT, REFUSED, START = (80, 255, 120), (255, 96, 64), (255, 200, 60)


def contours(bone: Bone, view: View, fixed_T_moving: Transform, step: int) -> Image:
    """Return where edges of the rendered bone are, (H / step, W / step) bool.

    Args:
        bone: of the CT.
        view: the X-ray.
        fixed_T_moving: (4, 4) pose of the CT.
        step: pixels of the X-ray to one of the result.
    """
    shape = (view.image.shape[0] // step, view.image.shape[1] // step)
    drawn = bone.stacks[-1].integrate(coarse_pixels(step) @ view.projection.matrix,
                                      inverse(fixed_T_moving) @ view.fixed_T_sensor, shape)
    # Thin processes beside thick bodies: the square root brings both into one range.
    level = np.sqrt(drawn / max(float(drawn.max()), 1e-9))
    smooth = cv2.GaussianBlur((255.0 * level).astype(np.uint8), (0, 0), 1.2)
    return np.asarray(cv2.Canny(smooth, 30, 70) > 0)


def over(bone: Bone, view: View, fixed_T_moving: Transform, colour: tuple[int, int, int],
         words: str, largest: int = 640) -> Image:
    """Return an X-ray with the contours of the bone, (H, W, 3) uint8 RGB."""
    step = max(-(-max(view.image.shape) // largest), 1)
    rows, columns = (count // step for count in view.image.shape)
    grey = cv2.resize(counts_to_grey(view.image[:rows * step, :columns * step]), (columns, rows),
                      interpolation=cv2.INTER_AREA)
    canvas = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    canvas[contours(bone, view, fixed_T_moving, step)] = colour
    if view.hidden is not None:
        hidden = view.hidden[:rows * step:step, :columns * step:step]
        canvas[hidden] = canvas[hidden] // 2 + np.array([40, 40, 70], np.uint8)
    for shade, width in (((20, 20, 20), 3), (colour, 1)):
        cv2.putText(canvas, words, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, width,
                    cv2.LINE_AA)
    return np.asarray(canvas)
