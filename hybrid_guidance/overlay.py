"""Drawing what is known over an image: needle, plan, uncertainty, and why it may be wrong."""

from dataclasses import dataclass
from textwrap import wrap

import cv2
import numpy as np

from hybrid_guidance.geometry.needle import NeedleEstimate, shaft
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Array, Image, Pixels, Points, Transform
from hybrid_guidance.imaging.grey import counts_to_grey

Colour = tuple[int, int, int]

NEEDLE: Colour = (255, 215, 0)
PLAN: Colour = (64, 200, 255)
TARGET: Colour = (255, 90, 220)
GREY: Colour = (150, 150, 150)
GOOD: Colour = (235, 235, 235)
ALARM: Colour = (255, 96, 64)

_LETTER = 11
"""px, width of a letter."""
_SHIFT = 4
_SUBPIXEL = 1 << _SHIFT


@dataclass(frozen=True)
class Scene:
    """What to draw, all in ``patient``.

    Attributes:
        needle: the fused needle, or None.
        needle_length: m of shaft to draw.
        entry: (3,) m of the planned path, or None.
        target: (3,) m of the planned path, or None.
        sigmas: how many σ the ellipse of the tip shows.
        lines: words for the top left corner.
        reasons: why nothing here should be trusted; empty when it may be.
    """

    needle: NeedleEstimate | None
    needle_length: float
    entry: Points | None
    target: Points | None
    sigmas: float
    lines: tuple[str, ...]
    reasons: tuple[str, ...]


def reduced(pixels: Image, projection: Projection, largest: int) -> tuple[Image, Projection]:
    """Return a picture no larger than ``largest`` px on either side, and its projection."""
    scale = min(largest / max(pixels.shape), 1.0)
    if scale == 1.0:
        return pixels, projection
    size = (round(projection.width * scale), round(projection.height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    # The centre of the first pixel is (0, 0): scaling is about the corner half a pixel off.
    zoom = np.diag([size[0] / projection.width, size[1] / projection.height, 1.0])
    zoom[:2, 2] = 0.5 * (np.diag(zoom)[:2] - 1.0)
    return small, Projection(zoom @ projection.matrix, *size)


def picture(pixels: Image) -> Image:
    """Return (H, W) uint8 or uint16 grey levels as (H, W, 3) uint8 RGB; 16 bit by logarithm."""
    grey = pixels if pixels.dtype == np.uint8 else counts_to_grey(pixels)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


def draw(canvas: Image, projection: Projection, sensor_T_patient: Transform | None,
         scene: Scene) -> Image:
    """Draw a scene over a picture, in place.

    Args:
        canvas: (H, W, 3) uint8 RGB.
        projection: of the picture.
        sensor_T_patient: (4, 4) at the time of the picture; None: unknown, nothing is drawn.
        scene: what to draw; grey when it has reasons.

    Returns:
        The canvas.
    """
    trusted = not scene.reasons
    if sensor_T_patient is not None and projection.is_calibrated:
        _plan(canvas, projection, sensor_T_patient, scene, trusted)
        if scene.needle is not None:
            _needle(canvas, projection, sensor_T_patient, scene, trusted)
        _scale_bar(canvas, projection, sensor_T_patient, scene)
    for number, line in enumerate(scene.lines):
        _text(canvas, line, (12, 26 + 22 * number), GOOD if trusted else GREY)
    _banner(canvas, scene.reasons)
    return canvas


def _plan(canvas: Image, projection: Projection, sensor_T_patient: Transform, scene: Scene,
          trusted: bool) -> None:
    if scene.entry is None or scene.target is None:
        return
    steps = np.linspace(0.0, 1.0, 25)[:, None]
    path = projection.pixels(transform_points(
        sensor_T_patient, scene.entry + steps * (scene.target - scene.entry)))
    for first, second in zip(path[:-1:2], path[1::2], strict=False):
        _line(canvas, first, second, PLAN if trusted else GREY, 1)
    for radius in (5, 9):
        _circle(canvas, path[-1], radius, TARGET if trusted else GREY)


def _needle(canvas: Image, projection: Projection, sensor_T_patient: Transform, scene: Scene,
            trusted: bool) -> None:
    assert scene.needle is not None
    colour = NEEDLE if trusted else GREY
    ends = transform_points(sensor_T_patient, shaft(scene.needle.pose, scene.needle_length))
    hub, tip = projection.pixels(ends)
    away = (tip - hub) / max(float(np.linalg.norm(tip - hub)), 1e-9)
    # Two thin lines beside the shaft leave the shaft itself to be seen.
    aside = 4.0 * np.array([-away[1], away[0]])
    for side in (aside, -aside):
        _line(canvas, hub + side, tip + side, colour, 1)
    _line(canvas, tip - 2 * aside, tip + 2 * aside, colour, 1)
    rotation = sensor_T_patient[:3, :3]
    jacobian = projection.jacobian(ends[1]) @ rotation
    _ellipse(canvas, tip, scene.sigmas**2 * jacobian @ scene.needle.covariance[:3, :3]
             @ jacobian.T, colour)


def _ellipse(canvas: Image, centre: Pixels, covariance: Array, colour: Colour) -> None:
    variances, axes = np.linalg.eigh(covariance)
    radii = np.sqrt(np.maximum(variances, 0.25))
    if not np.all(np.isfinite(radii)) or radii[1] > 4 * max(canvas.shape):
        return
    angle = float(np.degrees(np.arctan2(axes[1, 1], axes[0, 1])))
    x, y = _fixed(centre)
    cv2.ellipse(canvas, (x, y), (int(radii[1] * _SUBPIXEL), int(radii[0] * _SUBPIXEL)), angle,
                0, 360, colour, 1, cv2.LINE_AA, _SHIFT)


def _scale_bar(canvas: Image, projection: Projection, sensor_T_patient: Transform,
               scene: Scene) -> None:
    """Draw 10 mm at the depth of the target."""
    depth = 0.0
    if projection.is_perspective:
        if scene.target is None:
            return
        depth = float(transform_points(sensor_T_patient, scene.target)[2])
    ends = projection.pixels(np.array([[0.0, 0.0, depth], [0.01, 0.0, depth]]))
    length = float(np.linalg.norm(ends[1] - ends[0]))
    right, bottom = canvas.shape[1] - 16, canvas.shape[0] - 40
    begin, end = np.array([right - length, float(bottom)]), np.array([float(right), float(bottom)])
    for tint, width in (((0, 0, 0), 4), (GOOD, 2)):
        _line(canvas, begin, end, tint, width)
    _text(canvas, '10 mm', (int(min(begin[0], right - 55)), bottom - 8), GOOD)


def _banner(canvas: Image, reasons: tuple[str, ...]) -> None:
    if not reasons:
        return
    columns = max(canvas.shape[1] // _LETTER - 2, 10)
    lines = [line for reason in reasons for line in wrap(reason, columns)]
    top = max(canvas.shape[0] - 8 - 22 * len(lines), 0)
    canvas[top:] = canvas[top:] // 4
    for number, line in enumerate(lines):
        _text(canvas, line, (12, top + 20 + 22 * number), ALARM)


def _text(canvas: Image, text: str, place: tuple[int, int], colour: Colour) -> None:
    # OpenCV's fonts have no µ, ± or °.
    plain = text.replace('±', '+/-').replace('°', ' deg').replace('µ', 'u').replace('σ', 'sigma')
    for tint, width in (((0, 0, 0), 3), (colour, 1)):
        cv2.putText(canvas, plain, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, tint, width,
                    cv2.LINE_AA)


def _fixed(pixel: Pixels) -> tuple[int, int]:
    limited = np.clip(np.nan_to_num(pixel), -1e5, 1e5)
    return int(limited[0] * _SUBPIXEL + 0.5), int(limited[1] * _SUBPIXEL + 0.5)


def _line(canvas: Image, first: Pixels, second: Pixels, colour: Colour, width: int) -> None:
    cv2.line(canvas, _fixed(first), _fixed(second), colour, width, cv2.LINE_AA, _SHIFT)


def _circle(canvas: Image, centre: Pixels, radius: float, colour: Colour) -> None:
    cv2.circle(canvas, _fixed(centre), int(radius * _SUBPIXEL), colour, 1, cv2.LINE_AA, _SHIFT)
