"""The sub-pixel measurement of straight bright shafts near rough segments, or where one was."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.detection.character import describe
from hybrid_guidance.detection.profile import NARROW, Template, gaussian_template
from hybrid_guidance.detection.ridge import maximum_subarrays
from hybrid_guidance.detection.shaft import Shaft, ShaftModel
from hybrid_guidance.detection.strip import HALF_WIDTH, PULL, Amplitudes, Strip, resample
from hybrid_guidance.geometry.types import Array, Image, Pixels

_AHEAD = 50.0
_ROWS = 128
_EVEN = np.linspace(-0.5, 0.5, _ROWS)
_POWERS = np.stack([np.ones(_ROWS), _EVEN, _EVEN * _EVEN])


def measure(image: Image, segments: Sequence[Pixels], model: ShaftModel, *,
            mask: Image | None = None, count: int = 2,
            accept: Callable[[Array], NDArray[np.bool_]] | None = None) -> Iterator[Shaft]:
    """Measure the bright straight shafts near rough segments.

    Args:
        image: (H, W) uint8, uint16 or float32; ``model.grey`` makes lines bright.
        segments: (2, 2) px each, rough ends, a few pixels off at most.
        model: what a shaft looks like.
        mask: (H, W) uint8, zero where the image means nothing.
        count: shafts measured in full at most: those that align best with a straight line.
        accept: tells which of (K, 2, 2) aligned ends are worth measuring, (K,) bool.

    Yields:
        The shafts, best aligned first; fewer than ``count`` where there are no more.
    """
    if not segments:
        return
    ends, merit = _align(image, np.stack(segments), model)
    if accept is not None:
        merit = np.where(accept(ends), merit, 0.0)
    for k in np.argsort(-merit)[:count]:
        if merit[k] > 0.0:
            strip = Strip.around(image, mask, ends[k], model)
            shaft = _described(strip, strip.searched())
            if shaft is not None and shaft.length >= model.minimum_length:
                yield shaft


def follow(image: Image, segment: Pixels, model: ShaftModel, *, mask: Image | None = None
           ) -> Shaft | None:
    """Measure the shaft that the last image had at a (2, 2) px segment.

    It has hardly moved, so that its own length of rows, seen with the wide profile, tells where
    the line is now. The rest is as in ``measure``.
    """
    axis = segment[1] - segment[0]
    length = math.hypot(*axis.tolist())
    strip = Strip(image, mask, model, 0.5 * (segment[0] + segment[1]), axis * (1.0 / length),
                  np.arange(-0.5 * length - _AHEAD, 0.5 * length + _AHEAD + 0.5))
    shaft = _described(strip, strip.followed(length))
    return shaft if shaft is not None and shaft.length >= model.minimum_length else None


def _described(strip: Strip, seen: Amplitudes | None) -> Shaft | None:
    return None if seen is None else describe(strip, *seen)


def followed_window(segment: Pixels) -> tuple[slice, slice]:
    """Return the rows and columns of an image that ``follow`` looks at for a (2, 2) px segment."""
    (u, v), (x, y) = segment.tolist()
    reach = _AHEAD + 1.5 * HALF_WIDTH
    return (slice(max(int(min(v, y) - reach), 0), max(int(max(v, y) + reach), 1)),
            slice(max(int(min(u, x) - reach), 0), max(int(max(u, x) + reach), 1)))


def _align(image: Image, ends: Array, model: ShaftModel) -> tuple[Array, Array]:
    """Lay (K, 2, 2) segments along the lines beneath them, all at once.

    Args:
        image: as in ``measure``.
        ends: (K, 2, 2) px.
        model: what a shaft looks like.

    Returns:
        The (K, 2, 2) ends, and (K,) how well each passes for a line: long, straight, alike on
        both sides; zero where there is none.
    """
    for width in PULL:
        template = gaussian_template(max(width, model.widths[0]))
        axis = ends[:, 1] - ends[:, 0]
        length = np.sqrt(np.square(axis).sum(axis=1))[:, None]
        axis /= length
        normal = axis[:, ::-1] * (-1.0, 1.0)
        centre, reach = 0.5 * (ends[:, 0] + ends[:, 1]), 1.3 * length + 30.0
        steps, starts = reach / (_ROWS - 1.0) * axis, centre - 0.5 * reach * axis
        strips = [resample(image, *start, (_ROWS, NARROW))
                  for start in zip(starts, steps, normal, strict=True)]
        pixels = model.grey(np.concatenate(strips)).reshape(len(strips), _ROWS, -1)
        fit = _fit_lines(pixels, reach, template)
        ends = (centre[:, None] + fit.span[..., None] * axis[:, None]
                + fit.offset[..., None] * normal[:, None])
    long_enough = fit.span[:, 1] - fit.span[:, 0] >= 0.6 * model.minimum_length
    return ends, np.where(long_enough, fit.merit, 0.0)


@dataclass(frozen=True)
class _Lines:
    """What a rough fit of K lines gives: s of their ends, offsets there, and their merit."""

    span: Array
    offset: Array
    merit: Array


def _fit_lines(pixels: Image, reach: Array, template: Template) -> _Lines:
    """Fit a line to each of the (K, S, W) strips that are (K, 1) px long."""
    amplitude, offset = template.responses(pixels)[:, :2].swapaxes(0, 1)
    quarter = _ROWS // 4
    level = np.maximum(_medians(amplitude[:, quarter:-quarter]), 1e-6)[:, None]
    gain = np.minimum(np.maximum(amplitude / level, -0.5), 1.5) - 0.5
    first, last, _ = maximum_subarrays(gain, _ROWS // 8)
    span = _EVEN[np.stack([first, last], axis=1)]
    inside = ((span[:, :1] <= _EVEN) & (span[:, 1:] >= _EVEN)).astype(float)
    count = inside.sum(axis=1) + 1.0
    offset = np.minimum(np.maximum(offset / level, -6.0), 6.0)
    weight = inside
    for _ in range(3):
        intercept, slope = _weighted_line(offset, weight)
        squared = np.square(offset - intercept - slope * _EVEN)
        weight = inside / (1.0 + squared)
    scatter = np.sqrt((squared * inside).sum(axis=1) / count)
    profile = np.matmul(inside[:, None].astype(np.float32), pixels)[:, 0]
    near = int(np.ceil(2.5 * template.width + 1.0))
    step = (profile[:, NARROW + near:NARROW + near + 6].sum(axis=1)
            - profile[:, NARROW - near - 5:NARROW - near + 1].sum(axis=1)) / 6.0
    asymmetry = step / count / level[:, 0]
    pixel_span = reach * span
    length = pixel_span[:, 1] - pixel_span[:, 0]
    merit = np.sqrt(length) / ((0.3 + scatter) * (1.0 + 2.0 * asymmetry**2))
    return _Lines(pixel_span, intercept + slope * span, merit)


def _medians(values: Array) -> Array:
    """Return the (K,) upper medians of (K, S) rows."""
    middle = values.shape[1] // 2
    return np.asarray(np.partition(values, middle, axis=1)[:, middle])


def _weighted_line(offset: Array, weight: Array) -> tuple[Array, Array]:
    """Return (K, 1) intercepts and slopes, over the strip's length, of K weighted lines."""
    total, first, second = (weight @ _POWERS.T).T
    mean, moment = ((weight * offset) @ _POWERS[:2].T).T
    determinant = total * second - first * first + 1e-9
    slope = (total * moment - first * mean) / determinant
    return (((mean - slope * first) / (total + 1e-9))[:, None], slope[:, None])
