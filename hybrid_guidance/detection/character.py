"""What tells a needle from other lines: the character of a shaft that has been measured."""

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np

from hybrid_guidance.detection.profile import Template, gaussian_template, row_bulk
from hybrid_guidance.detection.series import median
from hybrid_guidance.detection.shaft import OPEN, Shaft
from hybrid_guidance.detection.strip import Strip
from hybrid_guidance.geometry.types import Array, Image

_FAN_STEP = np.deg2rad(3.0)
_FAN_RADII = np.arange(7.0, 31.0)


def describe(strip: Strip, inner: Array, response: Array) -> Shaft:
    """Measure ends and character of a strip that is aligned with its shaft."""
    run, template = strip.run, strip.template
    edges = strip.s[[run.start, run.stop - 1]]
    rows = slice(run.start + 2, run.stop - 2) if strip.run_length >= 14 else run
    inner = inner[rows]
    halves = np.add.reduceat(strip.pixels[rows], (0, (inner.size + 1) // 2), axis=0)
    profile = (halves[0] + halves[1]) / inner.size
    level = float(np.add.reduce(inner)) / inner.size
    blocks = _blocks(inner)
    sides, far_sides = _sides(profile, template.width)
    asymmetry = abs(float(sides[1] - sides[0])) / max(level, 1e-6)
    return Shaft(
        strip.origin, strip.direction, edges, strip.s, response,
        strip.model.systematic, strip.model.windows, strip.model.doubt, strip.model.brighter,
        strip.trail, strip.line_covariance,
        level, template.width, _significance(profile, template, level),
        float(np.add.reduce(blocks > 0.4 * level)) / max(blocks.size, 1),
        _unevenness(inner, blocks, level), asymmetry, strip.bow, _taper(halves),
        _continuations(strip, edges, level), np.array([strip.is_open(end) for end in (0, 1)]),
        np.array([_bulk(strip, end) if strip.model.hub else 0.0 for end in (0, 1)]),
        sides, far_sides, _half_levels(halves, template.width, inner.size))


def _half_levels(halves: Image, width: float, rows: int) -> Array:
    """Return the (2,) grey levels beside the (2, W) summed halves of a shaft of some rows."""
    far = _side_filters(halves.shape[1], width)[2:]
    first = (rows + 1) // 2
    return np.asarray(np.add.reduce(halves @ far.T, axis=1)
                      / (2.0 * first, 2.0 * max(rows - first, 1)))


def _significance(profile: Array, template: Template, level: float) -> float:
    """Return the amplitude over the root mean square of what parallel lines show.

    The shaft itself is taken out first: its side lobes are no clutter.
    """
    bell, filters = _aside(template.width, template.half, profile.size)
    response = filters @ (profile - level * bell)
    return level / (float(response @ response) / len(filters))**0.5 if len(filters) else 0.0


@lru_cache(maxsize=64)
def _aside(width: float, half: int, columns: int) -> tuple[Array, Array]:
    """Return (W,) the shaft's profile, and (M, W) what gives the amplitudes of lines beside it."""
    template, middle = gaussian_template(width, half), columns // 2
    bell = np.exp(-0.5 * ((np.arange(columns) - middle) / width) ** 2)
    places = [place for place in range(half, columns - half)
              if abs(place - middle) > 2.0 * width + 2.0]
    filters = np.zeros((len(places), columns))
    for row, place in zip(filters, places, strict=True):
        row[place - half:place + half + 1] = template.profile / float(
            template.profile @ template.profile)
    return bell, filters


def _blocks(inner: Array, size: int = 9) -> Array:
    """Return the means of blocks of an amplitude."""
    count = inner.size // size
    return np.asarray(np.add.reduce(
        inner[:count * size].reshape(count, size), axis=1) / size)


def _unevenness(inner: Array, blocks: Array, level: float) -> float:
    """Return the coefficient of variation of the amplitude, noise from rows 2 apart removed."""
    steps = inner[3:] - inner[:-3]
    noise = float(steps @ steps) / steps.size / 2.0 / 3.0
    mean = float(np.add.reduce(blocks)) / blocks.size
    variance = float(blocks @ blocks) / blocks.size - mean * mean
    return math.sqrt(max(variance - noise, 0.0)) / max(level, 1e-6)


def _sides(profile: Array, width: float) -> tuple[Array, Array]:
    """Return mean grey levels (negative side, positive side), close by and farther away."""
    levels = (_side_filters(profile.size, width) @ profile).reshape(2, 2)
    return levels[0], levels[1]


@lru_cache(maxsize=64)
def _side_filters(columns: int, width: float) -> Array:
    """Return (4, W) means: negative and positive side, close by, then farther away."""
    x = np.arange(columns) - columns // 2
    near = int(np.ceil(2.5 * width + 1.0))
    stop = min(near + 6, columns // 2)
    kept = [(x >= -stop) & (x <= -near), (x >= near) & (x <= stop), x <= -stop, x >= stop]
    return np.array([side / np.count_nonzero(side) for side in kept])


def _taper(halves: Image) -> float:
    """Return the ratio of the profile widths of the (2, W) halves of a shaft."""
    middle = halves.shape[1] // 2
    profiles = np.maximum(halves[:, middle - 9:middle + 10] @ _level_filter(), 0.0)
    sums = np.add.reduce(profiles, axis=1).tolist()
    heights = np.maximum.reduce(profiles, axis=1).tolist()
    first, second = (float(total / max(height, 1e-6)) + 1e-3
                     for total, height in zip(sums, heights, strict=True))
    return float(max(first, second) / min(first, second))


@cache
def _level_filter() -> Image:
    """Return (19, 19) float32 that take off a profile the line between its ends' means."""
    ramp = np.linspace(0.0, 1.0, 19)
    ends = np.zeros((19, 2))
    ends[:3, 0] = ends[-3:, 1] = 1.0 / 3.0
    return (np.eye(19) - ends @ np.stack([1.0 - ramp, ramp])).astype(np.float32)


def _continuations(strip: Strip, edges: Array, level: float) -> Array:
    """Return the (2,) mean amplitude, relative to the shaft, of the best path beyond each end.

    Arcs around the end, 7 to 30 px away, to either side as far as the model's ``turn``: a
    curved catheter that turns away is followed, too.
    """
    fan = _fan(strip.model.turn)
    first, last = (strip.origin + edge * strip.direction for edge in edges)
    axes = np.array([strip.direction, strip.normal, first, last], np.float32)
    pixels = strip.model.grey(cv2.remap(
        strip.image, (fan.offsets @ axes).reshape(len(_FAN_RADII), -1, 2), None,
        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    arcs = np.add.reduce(pixels.reshape(-1, 3, 2, fan.ahead.shape[1]), axis=1)
    filters = _arc_filters(strip.model.turn, strip.template.width)
    responses = arcs @ filters * np.float32(1.0 / 3.0 / level)
    np.minimum(np.maximum(responses, -0.5, out=responses), 1.5, out=responses)
    best = fan.ahead
    for response, reach in zip(responses, fan.reaches, strict=True):
        best = cv2.dilate(best, reach)
        best += response
    onward = np.maximum.reduce(best, axis=1).tolist()
    beyond = edges[0] - strip.s[0], strip.s[-1] - edges[1]
    return np.array([0.0 if room < OPEN else amplitude / len(arcs)
                     for room, amplitude in zip(beyond, onward, strict=True)])


@dataclass(frozen=True)
class _Fan:
    """Directions in which a line may go on beyond an end.

    Attributes:
        offsets: (R 2 F, 4) float32 px along the shaft and across, and from which of its ends
            (1, 0 or 0, 1).
        ahead: (2, F) float32, 0 where a path may begin, far below elsewhere.
        reaches: for each arc, the (1, N) kernel of how far aside it may lead on.
    """

    offsets: Image
    ahead: Image
    reaches: list[Image]


@cache
def _fan(turn: float) -> _Fan:
    angles = np.arange(-turn, turn + 1e-6, _FAN_STEP)
    reaches = [np.ones((1, 2 * int(np.ceil(4.0 / (radius * _FAN_STEP))) + 1), np.uint8)
               for radius in _FAN_RADII[1::3]]
    rays = np.column_stack([np.cos(angles), np.sin(angles)])
    offsets = np.zeros((_FAN_RADII.size, 2, angles.size, 4), np.float32)
    offsets[..., :2] = _FAN_RADII[:, None, None, None] * np.stack([rays * (-1.0, 1.0), rays])
    offsets[:, 0, :, 2] = offsets[:, 1, :, 3] = 1.0
    ahead = np.where(np.abs(angles) < 0.7, 0.0, -9.0).astype(np.float32)
    return _Fan(offsets.reshape(-1, 4), np.stack([ahead, ahead]), reaches)


@lru_cache(maxsize=64)
def _arc_filters(turn: float, width: float) -> Image:
    """Return (A, F, F) float32 that take the grey levels of an arc to the profile's amplitude."""
    count = _fan(turn).ahead.shape[1]
    filters = np.zeros((_FAN_RADII[1::3].size, count, count))
    for matrix, radius in zip(filters, _FAN_RADII[1::3], strict=True):
        half = int(np.ceil((3.0 * width + 2.5) / (radius * _FAN_STEP)))
        x = np.arange(-half, half + 1.0) * radius * _FAN_STEP
        bell = np.exp(-0.5 * (x / width) ** 2)
        profile = (bell - bell.mean()) / float(np.sum((bell - bell.mean()) ** 2))
        # Beyond the ends of the arc its outermost grey levels go on.
        source = np.clip(np.arange(count)[:, None] + np.arange(-half, half + 1), 0, count - 1)
        np.add.at(matrix, (source, np.arange(count)[:, None]), profile[None])
    return filters.astype(np.float32)


def _bulk(strip: Strip, end: int) -> float:
    """Return the grey level integrated across, just beyond an end, relative to the shaft's."""
    first, last = strip.run.start, strip.run.stop - 1
    outside = (strip.pixels[last + 2:last + 25] if end else
               strip.pixels[max(first - 24, 0):max(first - 1, 0)])
    inside = (strip.pixels[max(last - 59, 0):max(last - 8, 0)] if end else
              strip.pixels[first + 9:first + 60])
    if len(outside) < 5 or len(inside) < 5:
        return 0.0
    ratios = []
    for half, far in ((10, 15), (21, 29)):
        shaft = median(row_bulk(inside, half, far).ravel())
        hub = median(row_bulk(outside, half, far).ravel())
        ratios.append(hub / max(shaft, 2.0 * strip.level))
    return max(ratios)
