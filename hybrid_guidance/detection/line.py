"""The needle as a line of pixels, and the sub-pixel measurement of a straight bright shaft.

A shaft is resampled into a strip whose rows run along it. Correlating each row with a Gaussian
profile gives the shaft's amplitude, with the profile's derivative its lateral offset; both are
linear in the image, so their noise is the image's noise and their covariance follows from the
residuals and their correlation along the shaft (Newey and West, Econometrica 1987). The centre
line is a robust weighted least-squares fit of the offsets, each end a fit of an error function
to the amplitudes (the edge response of a Gaussian blur; Steger, PAMI 1998).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.detection.ridge import maximum_subarray, maximum_subarrays
from hybrid_guidance.geometry.types import Array, Image, Pixels

CERTAIN = 0.9
"""Probability from which a needle ends the search for a better one."""

_HALF_WIDTH = 30
_AHEAD = 50.0
_NARROW = 14
_LAGS = 16
_OPEN = 6.0
_ROWS = 128
_COLUMNS = np.arange(-_NARROW, _NARROW + 1.0)
_DEEP = 60
_FAINT, _NEXT, _FARTHEST = 0.25, 3, 30
_SETTLED = 5e-2
_SCAN_EDGES = np.repeat(np.arange(-10.0, 10.5, 1.0), 3)
_SCAN_BLURS = np.tile([1.0, 2.0, 3.5], 21)
_EVEN = np.linspace(-0.5, 0.5, _ROWS)
_POWERS = np.stack([np.ones(_ROWS), _EVEN, _EVEN * _EVEN])
_PULL = (2.6, 1.8)
"""px: the wide profile pulls in from three pixels away, the narrow one sees less clutter."""
_LOOKS = 3
_BLUR_REACH = np.ones((1, 9), np.uint8)
_NEAR = 0.2
_LEAST_LINE_VARIANCE = np.diag([1e-6, 1e-10])
_ROOT_TWO_PI = float(np.sqrt(2.0 * np.pi))
_FAN_STEP = np.deg2rad(3.0)
_FAN_RADII = np.arange(7.0, 31.0)


@dataclass(frozen=True)
class PixelNeedle:
    """A needle in one image.

    Attributes:
        tip: (2,) pixel (u, v).
        direction: (2,) unit vector along the shaft, towards the tip.
        length: px of visible shaft, from its far end to the tip.
        covariance: (3, 3) of (tip along the shaft in px, tip across the shaft in px, angle of
            the shaft in rad). Across is positive along ``normal``; a positive angle turns
            ``direction`` towards ``normal`` (from u towards v, clockwise on the screen).
        probability: that this is a needle at all, 0 to 1.
    """

    tip: Pixels
    direction: Array
    length: float
    covariance: Array
    probability: float

    @property
    def normal(self) -> Array:
        """The (2,) unit vector across the shaft: ``direction`` turned from u towards v."""
        return np.array([-self.direction[1], self.direction[0]])

    @property
    def pixel_covariance(self) -> Array:
        """The (3, 3) covariance of (tip u px, tip v px, angle rad)."""
        axes = np.eye(3)
        axes[:2, 0], axes[:2, 1] = self.direction, self.normal
        return np.asarray(axes @ self.covariance @ axes.T)


@dataclass(frozen=True)
class Shaft:
    """What was measured of one straight shaft; end 0 lies at smaller s than end 1.

    Attributes:
        origin: (2,) px, a point of the centre line, where s is zero.
        direction: (2,) unit vector of increasing s.
        edges: (2,) px, s of the two ends, to about two pixels.
        s: (S,) px, evenly spaced by one; the shaft and what lies beyond its ends.
        response: (S,) amplitude at each s.
        systematic: px, as in the model.
        windows: px, as in the model.
        doubt: as in the model.
        brighter: as in the model.
        trail: px along the shaft by which echoes trail off.
        line_covariance: (2, 2) of (offset at s = 0 in px, slope in px/px).
        amplitude: grey levels above the surroundings.
        width: px, σ of the Gaussian profile that fits best.
        significance: amplitude over its deviation among parallel lines nearby.
        coverage: fraction of the length on which the shaft is visible.
        unevenness: deviation of the amplitude along the shaft over its mean, noise removed.
        asymmetry: step between the two sides over the amplitude; above 1 is an edge.
        sagitta: px, bow of the centre line, less what noise explains.
        taper: ratio of the widths of the two halves, at least 1.
        continuation: (2,) amplitude of the best path that leads on beyond each end, relative.
        open_end: (2,) whether the shaft leaves the image at that end.
        bulk: (2,) integrated profile just beyond each end relative to the shaft's: the hub;
            zero where the model knows none.
        sides: (2,) grey level on the negative and positive side of the shaft, close by.
        far_sides: (2,) the same, farther away.
        halves: (2,) grey level of both far sides beside the half towards each end.
    """

    origin: Pixels
    direction: Array
    edges: Array
    s: Array
    response: Array
    systematic: tuple[float, float, float]
    windows: tuple[tuple[float, float], tuple[float, float]]
    doubt: float
    brighter: float
    trail: float
    line_covariance: Array
    amplitude: float
    width: float
    significance: float
    coverage: float
    unevenness: float
    asymmetry: float
    sagitta: float
    taper: float
    continuation: Array
    open_end: Array
    bulk: Array
    sides: Array
    far_sides: Array
    halves: Array

    @property
    def length(self) -> float:
        """Visible length in px."""
        return float(self.edges[1] - self.edges[0])

    @property
    def ends(self) -> Pixels:
        """The (2, 2) end points in px."""
        return np.asarray(self.origin + self.edges[:, None] * self.direction)

    def needle(self, tip_end: int, probability: float) -> PixelNeedle:
        """Return the needle whose tip is end 0 or 1, the tip measured to a fraction of a px."""
        sign = 1.0 if tip_end else -1.0
        edge, edge_variance = self._tip(sign)
        edge -= self.trail
        (a, b), (_, d) = self.line_covariance.tolist()
        along, beside, across = self.systematic
        length = abs(edge - float(self.edges[1 - tip_end]))
        # Either end's own deviation turns the shaft between them, what both share does not.
        across *= across
        turn = d + 2.0 * across / length**2
        # Seen from the other end the normal turns over, the sense of rotation does not.
        lever = sign * (b + edge * d) + across / length
        aside = a + edge * (2.0 * b + edge * d) + across + beside * beside
        covariance = np.array([[edge_variance + along * along, 0.0, 0.0],
                               [0.0, aside, lever], [0.0, lever, turn]])
        return PixelNeedle(self.origin + edge * self.direction, sign * self.direction, length,
                           covariance, probability)

    def _tip(self, sign: float) -> tuple[float, float]:
        """Return s of the end at rising (+1) or falling (-1) s, and its variance in px²."""
        s, response = (self.s, self.response) if sign > 0.0 else (-self.s[::-1],
                                                                  self.response[::-1])
        coarse = sign * float(self.edges[int(sign > 0.0)])
        if s[-1] - coarse < _OPEN:
            return sign * coarse, 25.0
        edge = self._fit_end(s, response, coarse, self.windows[0])
        # Where background or shaft change near the tip, the two windows disagree.
        other = self._fit_end(s, response, edge.position, self.windows[1], edge.blur)
        apart = other.position - edge.position
        variance = edge.variance + 0.5 * apart * apart
        if self.doubt:
            beyond = _reach_beyond(s, response, edge.position, self.length)
            variance += self.doubt * beyond * beyond
        return sign * edge.position, variance

    def _fit_end(self, s: Array, response: Array, guess: float, window: tuple[float, float],
                 blur: float | None = None) -> '_Edge':
        inner = min(window[0], 0.6 * self.length)
        rows = slice(int(s.searchsorted(guess - inner, 'right')),
                     int(s.searchsorted(guess + window[1])))
        s, response = s[rows], response[rows]
        edge = min(int(s.searchsorted(guess)), s.size - 1)
        stop = _next_rise(response, edge, self.brighter)
        if stop is None:
            # The tip touches bone: it lies anywhere between what is surely shaft and the bone.
            bone = float(s[edge + int(response[edge:].argmax())])
            return _Gap(0.5 * (guess + bone), (bone - guess)**2 / 12.0 + 4.0)
        return fit_edge(s[:stop], response[:stop], guess, blur)


class _Edge(Protocol):
    @property
    def position(self) -> float: ...

    @property
    def variance(self) -> float: ...

    @property
    def blur(self) -> float | None: ...


@dataclass(frozen=True)
class _Gap:
    position: float
    variance: float
    blur: float | None = None


@dataclass(frozen=True)
class _Template:
    """Profile and its derivative on columns x, free of constant and linear background.

    Attributes:
        width: px, σ.
        half: px, columns on either side of the middle.
        profile: (2 half + 1,) the profile.
        derivative: (2 half + 1,) its derivative.
        filters: (4, 2 half + 1) float32, what gives a row's amplitude, lateral offset ×
            amplitude, and the amplitude above one side only, negative and positive.
    """

    width: float
    half: int
    profile: Array
    derivative: Array
    filters: Image

    def responses(self, strip: Image) -> Array:
        """Return (..., 4, S): what each of the filters gives of each row of (..., S, W) pixels."""
        middle = strip.shape[-1] // 2
        columns = strip[..., middle - self.half:middle + self.half + 1]
        return (self.filters @ columns.swapaxes(-1, -2)).astype(float)


@lru_cache(maxsize=256)
def _gaussian_template(width: float, limit: int = _NARROW) -> _Template:
    half = min(limit, int(np.ceil(3.0 * width + 2.5)))
    x = np.arange(-half, half + 1.0)
    bell = np.exp(-0.5 * (x / width) ** 2)
    profile = bell - bell.mean()
    slope = x / width**2 * bell
    derivative = slope - x * float(slope @ x) / float(x @ x)
    above = [_above(bell, side * x <= 1.2 * width) for side in (1.0, -1.0)]
    filters = np.array([profile / float(profile @ profile),
                        derivative / float(derivative @ derivative), *above], np.float32)
    return _Template(width, half, profile, derivative, filters)


def _above(bell: Array, columns: NDArray[np.bool_]) -> Array:
    """Return what gives the height of a bell above the level, seen on some columns only."""
    profile = np.where(columns, bell - bell[columns].mean(), 0.0)
    return np.asarray(profile / float(profile @ profile))


@dataclass(frozen=True)
class ShaftModel:
    """What the shafts of one modality look like.

    Attributes:
        minimum_length: px.
        widths: px, range of σ of the profile.
        systematic: px, deviations that no residual shows (an uneven profile, a blur that is not
            Gaussian): along, across at both ends alike, across at each end on its own.
        hub: whether a thick end may be in the image.
        turn: rad; a line that goes on beyond an end is looked for up to this far to the side.
        compression: grey levels per factor e of echo, where the image is the logarithm of what
            the point spread function blurs; zero where the image is linear.
        tail: the (2,) direction in which each echo trails off (reverberation), or None.
        windows: px before and beyond an end that the edge fit takes, and the same of a second
            fit whose difference from the first counts as uncertainty. Short where the last
            stretch of the shaft may be brighter or darker than the rest.
        doubt: the tip's variance per square of the px beyond an end up to which something may
            still be shaft: it goes on behind a gap, or out of the slice.
        brighter: times the shaft's own level from which what follows an end is bone: above what
            a ground tip reflects.
        grey: turns resampled pixels into float32 on which lines are bright.
    """

    minimum_length: float = 40.0
    widths: tuple[float, float] = (0.8, 5.0)
    systematic: tuple[float, float, float] = (0.1, 0.0, 0.02)
    hub: bool = True
    turn: float = np.deg2rad(108.0)
    compression: float = 0.0
    tail: tuple[float, float] | None = None
    windows: tuple[tuple[float, float], tuple[float, float]] = ((45.0, 22.0), (20.0, 12.0))
    doubt: float = 0.0
    brighter: float = 1.6
    grey: Callable[[Image], Image] = np.asarray


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
            shaft = _Strip.around(image, mask, ends[k], model).shaft()
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
    shaft = _Strip(image, mask, model, 0.5 * (segment[0] + segment[1]), axis * (1.0 / length),
                   np.arange(-0.5 * length - _AHEAD, 0.5 * length + _AHEAD + 0.5)).followed(length)
    return shaft if shaft is not None and shaft.length >= model.minimum_length else None


def followed_window(segment: Pixels) -> tuple[slice, slice]:
    """Return the rows and columns of an image that ``follow`` looks at for a (2, 2) px segment."""
    (u, v), (x, y) = segment.tolist()
    reach = _AHEAD + 1.5 * _HALF_WIDTH
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
    for width in _PULL:
        template = _gaussian_template(max(width, model.widths[0]))
        axis = ends[:, 1] - ends[:, 0]
        length = np.sqrt(np.square(axis).sum(axis=1))[:, None]
        axis /= length
        normal = axis[:, ::-1] * (-1.0, 1.0)
        centre, reach = 0.5 * (ends[:, 0] + ends[:, 1]), 1.3 * length + 30.0
        steps, starts = reach / (_ROWS - 1.0) * axis, centre - 0.5 * reach * axis
        strips = [_resample(image, *start, (_ROWS, _NARROW))
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


def _fit_lines(pixels: Image, reach: Array, template: _Template) -> _Lines:
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
    step = (profile[:, _NARROW + near:_NARROW + near + 6].sum(axis=1)
            - profile[:, _NARROW - near - 5:_NARROW - near + 1].sum(axis=1)) / 6.0
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


def _resample(image: Image, start: Pixels, step: Array, normal: Array, size: tuple[int, int]
              ) -> Image:
    """Return pixels of rows that begin at a point and go on in even steps.

    Args:
        image: (H, W).
        start: (2,) px, middle of the first row.
        step: (2,) px from row to row.
        normal: (2,) unit vector along the rows.
        size: number of rows S, and half number of columns.

    Returns:
        (S, 2 half + 1), interpolated linearly, of the image's type.
    """
    rows, half = size
    corner = start - half * normal
    matrix = np.array([[normal[0], step[0], corner[0]], [normal[1], step[1], corner[1]]])
    return np.asarray(cv2.warpAffine(
        image, matrix, (2 * half + 1, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE))


def _median(values: Array) -> float:
    """Return the upper median of (N,) values."""
    ordered, middle = values.copy(), values.size // 2
    ordered.partition(middle)
    return float(ordered[middle])


def _lower_quartile(values: Array) -> float:
    """Return the 25th percentile, interpolated."""
    rank = 0.25 * (values.size - 1)
    below = int(rank)
    ordered = sorted(values.tolist())[below:below + 2]
    return float(ordered[0] + (rank - below) * (ordered[-1] - ordered[0]))


class _Strip:
    """A resampled neighbourhood of a line: rows along it (s, px), columns across it."""

    def __init__(self, image: Image, mask: Image | None, model: ShaftModel, origin: Pixels,
                 direction: Array, s: Array) -> None:
        self.image, self.mask, self.model = image, mask, model
        self.origin, self.direction = origin, direction
        self.s = s
        self.run = slice(0, s.size)
        self.line_covariance = _LEAST_LINE_VARIANCE
        self.pixels: Image = np.zeros((0, 0), np.float32)
        self.template = _gaussian_template(max(1.8, model.widths[0]))
        self.responses = np.zeros((4, 0))
        self.sagitta = self.level = self.trail = self.moved = 0.0

    @classmethod
    def around(cls, image: Image, mask: Image | None, ends: Pixels, model: ShaftModel
               ) -> '_Strip':
        axis = ends[1] - ends[0]
        length = math.hypot(*axis.tolist())
        reach = np.ceil(0.5 * length + min(30.0 + 0.3 * length, 90.0))
        return cls(image, mask, model, 0.5 * (ends[0] + ends[1]), axis / length,
                   np.arange(-reach, reach + 1.0))

    def shaft(self) -> Shaft | None:
        """Measure the shaft of a roughly aligned strip."""
        self.sample(_NARROW)
        self._view(max(1.8, self.model.widths[0]))
        if not self.find_run() or self.run_length < 0.6 * self.model.minimum_length:
            return None
        self._view(_best_width(self))
        self._move_onto(self._centre_line())
        self._span_run(min(30.0 + 0.3 * self.run_length, 90.0))
        self.sample(_HALF_WIDTH)
        self._view(self.template.width)
        return self._measured() if self.find_run() else None

    def followed(self, length: float) -> Shaft | None:
        """Measure the shaft that the last image had on some px about the strip's middle."""
        half = 0.5 * length
        width = max(_PULL[0], self.model.widths[0])
        for more in reversed(range(_LOOKS + 1)):
            self.sample(_HALF_WIDTH)
            self.run = slice(*self.s.searchsorted((-half, half)).tolist())
            if self.run_length < 0.6 * self.model.minimum_length:
                return None
            self._view(width)
            self.level = _median(self.responses[0, self.run])
            if self.level <= 0.0:
                return None
            fit = self._centre_line(2)
            width = _best_width(self)
            if not more or abs(fit.intercept) + half * abs(fit.slope) < _NEAR * width:
                break
            self._move_onto(fit)
        self._view(width)
        level = _median(self.responses[0, self.run])
        return self._measured() if self.find_run(level) else None

    def _measured(self) -> Shaft | None:
        """Measure the shaft on the rows found of an aligned strip."""
        if self.run_length < 0.8 * self.model.minimum_length:
            return None
        grey = self.pixels, self.template, self.level
        inner = self.responses[0]
        self._expand()
        self.fit_line()
        self._correct_tail()
        response = self._crossed() if self.model.compression else self.responses[0]
        self.pixels, self.template, self.level = grey
        return _describe(self, inner, response)

    def _view(self, width: float) -> None:
        """Look at the pixels with the profile of a σ in px."""
        self.template = _gaussian_template(width)
        self.responses = self.template.responses(self.pixels)

    def _crossed(self) -> Array:
        """Return the (S,) amplitude of each row above the darker of its two sides.

        A bright line beside the shaft, or across it, would otherwise pass for the end of it.
        """
        return np.asarray(np.maximum(self.responses[2], self.responses[3]))

    def _span_run(self, beyond: float) -> None:
        """Lay the strip over the run found and some px beyond it, wherever it began."""
        first, last = self.s[self.run.start], self.s[self.run.stop - 1]
        self.s = np.arange(first - beyond, last + beyond + 1.0)

    def is_open(self, end: int) -> bool:
        """Tell whether the run reaches an end of the strip because the image ends there."""
        sign = 1.0 if end else -1.0
        s = float(self.s[self.run.stop - 1] if end else self.s[self.run.start])
        u, v = (self.origin + (s + sign * (_OPEN + 2.0)) * self.direction).tolist()
        height, width = self.image.shape
        if not (1.0 <= u <= width - 2.0 and 1.0 <= v <= height - 2.0):
            return True
        return self.mask is not None and not self.mask[round(v), round(u)]

    def _expand(self) -> None:
        """Undo the logarithm: echoes add as amplitudes, so there the noise is even."""
        if not self.model.compression:
            return
        middle = self.pixels.shape[1] // 2
        self.pixels = self.pixels[:, middle - _NARROW:middle + _NARROW + 1] - np.float32(255.0)
        self.pixels *= np.float32(1.0 / self.model.compression)
        cv2.exp(self.pixels, dst=self.pixels)
        self._view(_best_width(self))
        self.level = max(_median(self.responses[0, self.run]), 1e-9)
        amplitude = self._crossed()
        smooth = cv2.blur(amplitude[None], (3, 1))[0]
        relative = smooth * (1.0 / max(_median(amplitude[self.run]), 1e-9))
        gain = np.minimum(np.maximum(relative, -0.5), 1.2) - 0.5
        self._doubt_depth(smooth, gain)
        first, last = maximum_subarray(gain, 40)
        # Grey levels told the run only roughly where something bright lies beside its deep end.
        before, beyond = (8, 30) if self.direction[1] > 0.0 else (30, 8)
        run = slice(max(first, self.run.start - before), min(last + 1, self.run.stop + beyond))
        self.run = run if run.stop - run.start > 0.5 * self.run_length else self.run

    def _doubt_depth(self, amplitude: Array, gain: Array) -> None:
        """Lower the (S,) gain of what lies about the tip and cannot be shaft.

        Beyond a gap may be fascia or bone. Bone is far brighter, with all that its blur reaches.
        In the other half the shaft may cross skin and muscle.
        """
        reach = min(_DEEP, self.run_length // 2)
        if self.direction[1] > 0.0:
            deep, towards = slice(self.run.stop - reach, None), slice(None)
        else:
            deep, towards = slice(0, self.run.start + reach), slice(None, None, -1)
        relative = amplitude[deep][towards]
        relative = relative * (1.0 / max(_median(relative[:reach]), 1e-9))
        after_gap = np.maximum.accumulate(relative < 0.4)
        # A shaft's own glints reach three times its level, but not behind a gap.
        bright = (relative > np.where(after_gap, 2.0, self.model.brighter)).astype(np.uint8)
        bone = cv2.dilate(bright[None], _BLUR_REACH)[0] > 0
        # Shafts pale to a third of their level, gaps are darker.
        dark = np.minimum(np.maximum(0.3 - relative, 0.0), 0.4)
        lowered = np.minimum(relative, 1.2) - 0.5 - 6.0 * dark
        gain[deep] = np.where(bone, -0.2, lowered)[towards]

    def _correct_tail(self) -> None:
        """Move the line from the middle of a profile that trails off to where it begins."""
        if self.model.tail is None:
            return
        (x, y), (u, v) = self.model.tail, self.direction.tolist()
        along, across = x * u + y * v, y * u - x * v
        middle = self.pixels.shape[1] // 2
        rows = self.pixels[self.run, middle - _NARROW:middle + _NARROW + 1]
        side = math.copysign(1.0, across)
        shift, delay = _fit_tail(np.add.reduce(rows)[::int(side)])
        # The profile is one of the strip as it lay before the line was fitted.
        self.origin = self.origin + (side * shift - self.moved) * self.normal
        # Along the beam the echoes are late by delay / |across|; this much lies along the shaft.
        self.trail = delay * along / max(abs(across), 0.25)

    @property
    def normal(self) -> Array:
        u, v = self.direction.tolist()
        return np.array([-v, u])

    @property
    def run_length(self) -> int:
        return self.run.stop - self.run.start

    def sample(self, half_width: int) -> None:
        """Resample the image, keeping only rows whose centre is inside it and its mask."""
        self._trim()
        self._resample(half_width)

    def _resample(self, half_width: int) -> None:
        self.pixels = self.model.grey(_resample(
            self.image, self.origin + self.s[0] * self.direction, self.direction, self.normal,
            (self.s.size, half_width)))

    def _trim(self) -> None:
        """Keep the rows from the first to the last whose centre is inside."""
        middle, end = self.s.size // 2, self.s.size - 1
        if self._is_inside(middle):
            first, last = self._reach(middle, 0), self._reach(middle, end)
            if first or last < end:
                self.s = self.s[first:last + 1]

    def _reach(self, inside: int, end: int) -> int:
        """Return the last row inside on the way from one that is to an end of the strip."""
        if self._is_inside(end):
            return end
        while abs(end - inside) > 1:
            between = (inside + end) // 2
            inside, end = (between, end) if self._is_inside(between) else (inside, between)
        return inside

    def _is_inside(self, row: int) -> bool:
        """Tell whether the centre of a row is inside the image and its mask."""
        s, (height, width) = float(self.s[0]) + row, self.image.shape
        (u, v), (x, y) = self.origin.tolist(), self.direction.tolist()
        u, v = u + s * x, v + s * y
        return 1.0 <= u <= width - 2.0 and 1.0 <= v <= height - 2.0 and (
            self.mask is None or bool(self.mask.item(int(v + 0.5), int(u + 0.5))))

    def find_run(self, level: float | None = None) -> bool:
        """Find the rows on which the shaft is visible; False when there is none.

        Args:
            level: amplitude of the shaft, where that is known.
        """
        if self.s.size < 20:
            return False
        amplitude = cv2.blur(self.responses[:1], (5, 1))[0]
        rounds = 2 if level is None else 1
        if level is None:
            near = 0.35 * float(self.s[-1] - self.s[0])
            near_rows = amplitude[slice(*self.s.searchsorted((-near, near)).tolist())]
            level = _median(near_rows) if near_rows.size else 0.0
        for _ in range(rounds):
            if level <= 0.0:
                return False
            # Far above the shaft's own level is not the shaft but something it crosses.
            relative = amplitude * (1.0 / level)
            gain = np.minimum(np.maximum(relative, -0.5), 1.5) - 0.5
            np.minimum(gain, np.maximum(2.2 - relative, -1.0), out=gain)
            first, last = maximum_subarray(gain, 30)
            level = _median(amplitude[first:last + 1])
        self.run, self.level = slice(first, last + 1), level
        if self.model.hub:
            self._cut_hub()
        return level > 0.0

    def _cut_hub(self) -> None:
        """Take a hub, much thicker than the shaft, off either end of the run."""
        pixels = self.pixels[self.run]
        bulk = cv2.blur(_row_bulk(pixels), (1, 9)).ravel()
        usual = float(np.partition(bulk, bulk.size // 5)[bulk.size // 5])
        typical = max(usual, 2.5 * self.template.width * self.level)
        low, high = self.model.widths
        widths = _block_widths(pixels, max(self.run_length // 8, 1), (low, 2.0 * high))
        wide = np.repeat(widths > 1.5 * _lower_quartile(widths), 8)
        wide = np.pad(wide, (0, self.run_length), mode='edge')[:self.run_length]
        # Bone that the shaft crosses adds to the bulk, but leaves the shaft its width.
        thick = (bulk > 2.0 * typical) & wide
        count = np.arange(1, thick.size + 1)
        from_start, from_end = (
            int(np.max(count * (np.cumsum(flags) > 0.8 * count)))
            for flags in (thick, thick[::-1]))
        start = self.run.start + (from_start if from_start > 8 else 0)
        stop = self.run.stop - (from_end if from_end > 8 else 0)
        if stop - start > 20:
            self.run = slice(start, stop)

    def fit_line(self) -> None:
        """Move origin and direction onto the centre line of the run, and say how surely."""
        fit = self._centre_line()
        floor = (_pixel_noise(self.pixels, self.template.half) / self.level) ** 2 / float(
            self.template.derivative @ self.template.derivative)
        self.line_covariance, self.sagitta = _uncertainty(fit, floor)
        self.moved = fit.intercept
        self._move_onto(fit)

    def _centre_line(self, rounds: int = 4) -> '_Fit':
        """Return the centre line of the run, about its middle."""
        s = self.s[self.run]
        amplitude, offset = self.responses[:2, self.run]
        # An uneven shaft whose profile is not symmetric would seem turned, were all its rows
        # divided by one level.
        local = cv2.blur(amplitude[None], (25, 1))[0]
        offset = offset / np.maximum(local, 0.4 * self.level)
        offset = np.minimum(np.maximum(offset, -6.0), 6.0)
        middle = float(np.rint(0.5 * (s[0] + s[-1])))
        return _robust_line(s - middle, offset, middle, rounds)

    def _move_onto(self, fit: '_Fit') -> None:
        normal = self.normal
        self.origin = self.origin + fit.middle * self.direction + fit.intercept * normal
        direction = self.direction + fit.slope * normal
        self.direction = direction * (1.0 / math.sqrt(1.0 + fit.slope * fit.slope))
        self.s = self.s - fit.middle


@dataclass(frozen=True)
class _Fit:
    """A line ``intercept + slope s``: (N,) s, weights and residuals, and what s is measured from.

    The moments are the sums of the weights, of weighted s, and of weighted s².
    """

    s: Array
    weight: Array
    residual: Array
    intercept: float
    slope: float
    moments: tuple[float, float, float]
    middle: float


def _robust_line(s: Array, offset: Array, middle: float, rounds: int) -> _Fit:
    """Fit offset = intercept + slope s with Tukey's weights; s is measured from ``middle``."""
    powers = np.empty((5, s.size))
    powers[0], powers[1], powers[3] = 1.0, s, offset
    np.multiply(powers[1::2], s, out=powers[2::2])
    intercept, slope = _median(offset), 0.0
    for _ in range(rounds):
        residual = s * slope
        np.subtract(offset, residual, out=residual)
        residual -= intercept
        np.abs(residual, out=residual)
        residual *= 1.0 / (4.685 * max(1.4826 * _median(residual), 0.15))
        residual *= residual
        weight = np.maximum(1.0 - residual, 1e-3)
        weight *= weight
        total, first, second, target, turned = (powers @ weight).tolist()
        determinant = total * second - first * first
        intercept = (second * target - first * turned) / determinant
        slope = (total * turned - first * target) / determinant
    return _Fit(s, weight, offset - (intercept + slope * s), intercept, slope,
                (total, first, second), middle)


def _uncertainty(fit: _Fit, floor: float) -> tuple[Array, float]:
    """Return how sure a line is, its residuals correlated along the shaft, and if it bows.

    Returns:
        The (2, 2) sandwich covariance of intercept and slope, and px by which the residuals bow,
        less twice its own deviation.
    """
    total, first, second = fit.moments
    weight, residual = fit.weight, fit.residual
    squared = float((residual * residual) @ weight) / total
    correlation = _autocorrelation(residual * np.sqrt(weight))
    freedom = max(total - 2.0, 1.0) / total
    variance = max(squared / freedom, floor)
    turned = weight * fit.s
    spread, spread_turned = _correlate(weight, correlation), _correlate(turned, correlation)
    a, b, d = float(weight @ spread), float(turned @ spread), float(turned @ spread_turned)
    bread = np.array([[second, -first], [-first, total]]) / (total * second - first * first)
    covariance = bread @ np.array([[a, b], [b, d]]) @ bread * variance + _LEAST_LINE_VARIANCE
    return covariance, _sagitta(fit, squared * (1.0 + 2.0 * float(np.add.reduce(correlation[1:]))))


def _autocorrelation(residual: Array) -> Array:
    """Return (K,) autocorrelation from lag 0, tapered (Bartlett) so that it stays positive."""
    centred = residual - np.add.reduce(residual) / residual.size
    lags = int(min(_LAGS, max(centred.size // 5, 1)))
    raw = np.correlate(np.concatenate([centred, np.zeros(lags - 1)]), centred, 'valid')
    # A fitted line takes correlation away from a short series; the taper does so from all.
    return np.asarray(np.maximum(raw, 0.0) * (_taper_of(lags) / (float(raw[0]) + 1e-12)))


@cache
def _taper_of(lags: int) -> Array:
    return np.asarray(np.sqrt(1.0 - np.arange(lags) / (lags + 1.0)))


def _correlate(values: Array, correlation: Array) -> Array:
    """Apply the banded Toeplitz matrix of a shorter autocorrelation to (N,) values."""
    kernel = np.concatenate([correlation[:0:-1], correlation])
    return np.correlate(values, kernel, 'same')


def _sagitta(fit: _Fit, variance: float) -> float:
    """Return the bow of residuals of a variance in px, less twice its own deviation."""
    half = max(float(fit.s[-1] - fit.s[0]) / 2.0, 1.0)
    total, _, second = fit.moments
    bow = (fit.s * fit.s - second / total) * (1.0 / half**2)
    weighted = fit.weight * bow
    power = float(weighted @ bow)
    rise = float(weighted @ fit.residual) / power
    return max(abs(rise) - 2.0 * math.sqrt(variance / power), 0.0)


def _pixel_noise(pixels: Image, half: int) -> float:
    """Deviation of the image noise beside the shaft, from differences between columns."""
    # A fourth of the rows tells it as well as all of them.
    pixels = pixels[::4]
    flank = np.concatenate([pixels[:, :-2 * half - 1], pixels[:, 2 * half + 1:]], axis=1)
    flank = flank if flank.shape[1] > 3 else pixels
    steps = flank[:, 1:] - flank[:, :-1]
    return 1.4826 / 2**0.5 * _median(np.abs(steps, out=steps).ravel())


def _fit_tail(profile: Array) -> tuple[float, float]:
    """Return where a profile begins and the mean delay of its echoes, px towards larger x."""
    shapes, places = _tail_shapes()
    return places[int((shapes @ profile).argmax())]


@cache
def _tail_shapes() -> tuple[Image, list[tuple[float, float]]]:
    """Return profiles of a Gaussian echoed at even spacing, each with shift and mean delay.

    They are (M, W) float32 of unit norm and no mean.
    """
    order = np.arange(8)
    shapes, places = [], []
    echoes = [(1.2, 0.0), *product((1.2, 1.8, 2.6, 3.6), (0.12, 0.24, 0.36, 0.48))]
    for width, (spacing, ratio), shift in product(
            (1.2, 1.5, 1.9, 2.3, 2.8, 3.4), echoes, np.arange(-3.0, 2.1, 0.2).tolist()):
        weight = ratio**order / np.sum(ratio**order)
        z = (_COLUMNS[:, None] - shift - spacing * order) / width
        shape = np.exp(-0.5 * z**2) @ weight
        shape = shape - shape.mean()
        shapes.append(shape / np.linalg.norm(shape))
        places.append((shift, spacing * float(weight @ order)))
    return np.array(shapes, np.float32), places


def _best_width(strip: _Strip) -> float:
    """Return the σ whose profile explains most of the shaft, were part of it hub or crossed."""
    count = max(min(8, strip.run_length // 12), 1)
    widths = _block_widths(strip.pixels[strip.run], count, strip.model.widths)
    return _lower_quartile(widths)


def _block_widths(pixels: Image, count: int, limits: tuple[float, float]) -> Array:
    """Return the (count,) σ of the profile that explains most of each block of rows."""
    blocks = np.add.reduceat(pixels, np.arange(count) * len(pixels) // count, axis=0)
    candidates, profiles = _profile_bank(limits, pixels.shape[1] // 2)
    return np.asarray(candidates[(blocks @ profiles).argmax(axis=1)])


@cache
def _profile_bank(limits: tuple[float, float], half: int) -> tuple[Array, Image]:
    """Return (11,) widths and (2 half + 1, 11) float32 profiles of unit norm."""
    candidates = np.geomspace(*limits, 11)
    profiles = np.zeros((2 * half + 1, candidates.size), np.float32)
    for k, width in enumerate(candidates):
        template = _gaussian_template(float(width), min(half, _NARROW))
        profiles[half - template.half:half + template.half + 1, k] = (
            template.profile / np.linalg.norm(template.profile))
    return candidates, profiles


def _describe(strip: _Strip, inner: Array, response: Array) -> Shaft:
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
        _unevenness(inner, blocks, level), asymmetry, strip.sagitta, _taper(halves),
        _continuations(strip, edges, level), np.array([strip.is_open(end) for end in (0, 1)]),
        np.array([_bulk(strip, end) if strip.model.hub else 0.0 for end in (0, 1)]),
        sides, far_sides, _half_levels(halves, template.width, inner.size))


def _half_levels(halves: Image, width: float, rows: int) -> Array:
    """Return the (2,) grey levels beside the (2, W) summed halves of a shaft of some rows."""
    far = _side_filters(halves.shape[1], width)[2:]
    first = (rows + 1) // 2
    return np.asarray(np.add.reduce(halves @ far.T, axis=1)
                      / (2.0 * first, 2.0 * max(rows - first, 1)))


def fit_edge(s: Array, response: Array, guess: float, blur: float | None = None
             ) -> 'EdgeFit':
    """Fit a falling edge, ``low + (high - low) Φ((position - s) / blur)``.

    The shaft ends abruptly and the image is blurred: Φ is the cumulative normal distribution.

    Args:
        s: (N,) px, increasing, evenly spaced by one.
        response: (N,) amplitudes, any unit.
        guess: px, edge to within about ten pixels; to within two where the blur is known.
        blur: px, of another fit to the same end.
    """
    edge, blur = _scan_edge(s, response, guess) if blur is None else (guess, blur)
    fit = EdgeFit(s, response, edge, blur)
    for _ in range(4):
        shift, growth = fit.change
        edge += min(max(shift, -2.0), 2.0)
        blur = min(max(blur + min(max(growth, -0.5), 0.5), 0.7), 5.0)
        if abs(shift) < _SETTLED:
            break
        fit = EdgeFit(s, response, edge, blur)
    return fit


def _next_rise(response: Array, edge: int, brighter: float) -> int | None:
    """Return the number of rows up to where, beyond an edge, something brighter begins: bone.

    None where there is no gap between them, and so no edge to be seen.
    """
    inside = _median(response[:edge]) if edge > 3 else np.inf
    bone = (response[edge + 3:] > brighter * inside).nonzero()[0]
    if not bone.size:
        return response.size
    gap = edge + int(response[edge:edge + 3 + int(bone[0])].argmin())
    return gap + 1 if response[gap] < 0.6 * inside else None


def _reach_beyond(s: Array, response: Array, edge: float, length: float) -> float:
    """Return px beyond an end up to which something has a fourth of the shaft's level."""
    first, last = s.searchsorted((edge - length, edge)).tolist()
    if last - first < 4:
        return 0.0
    smooth = cv2.blur(response[None], (5, 1))[0]
    level = _FAINT * _median(response[first:last])
    beyond = smooth[last + _NEXT:last + _FARTHEST]
    seen = (beyond > level).nonzero()[0]
    return float(seen[-1]) + _NEXT if seen.size else 0.0


def _scan_edge(s: Array, response: Array, guess: float) -> tuple[float, float]:
    """Return edge and blur on a coarse grid: the shape that explains most of the response."""
    nearest = min(max(round(guess - float(s[0])), 0), s.size - 1)
    shapes, power = _edge_shapes(s.size, nearest)
    projection = np.maximum(shapes @ (response - np.add.reduce(response) / s.size), 0.0)
    best = int((projection * projection / power).argmax())
    return float(s[nearest]) + float(_SCAN_EDGES[best]), float(_SCAN_BLURS[best])


@lru_cache(maxsize=64)
def _edge_shapes(size: int, nearest: int) -> tuple[Array, Array]:
    """Return (63, size) edges about a sample, and (63,) their power about their mean."""
    shapes = _normal((nearest - np.arange(size) + _SCAN_EDGES[:, None]) / _SCAN_BLURS[:, None])
    return shapes, size * shapes.var(axis=1) + 1e-9


def _normal(z: Array) -> Array:
    """Return the cumulative normal distribution (Page 1977, good to 2e-4)."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.7979 * z * (1.0 + 0.044715 * z * z)))


class EdgeFit:
    """A response near ``low + (high - low) Φ((position - s) / blur)``, to first order.

    High and low are what fits best: all is taken about its mean, and apart from the edge's shape.

    Attributes:
        position: px.
        blur: px.
        change: px, by how much position and blur miss the least-squares fit.
    """

    def __init__(self, s: Array, response: Array, position: float, blur: float) -> None:
        self.position, self.blur = position, blur
        rows = self._rows = np.empty((4, s.size))
        slope, stretch, step, rows[3] = rows[0], rows[1], rows[2], response
        z = (position - s) * (1.0 / blur)
        squared = z * z
        np.tanh(z * (0.7979 + 0.7979 * 0.044715 * squared), out=step)
        np.exp(-0.5 * squared, out=slope)
        np.multiply(slope, -z, out=stretch)
        rows -= np.add.reduce(rows, axis=1, keepdims=True) * (1.0 / s.size)
        first, second, third, _ = (rows @ rows.T).tolist()
        power = third[2] + 1e-12
        along, aside, rise = third[0] / power, third[1] / power, third[3] / power
        # The cumulative normal distribution is half of the step.
        height = 2.0 * rise / (blur * _ROOT_TWO_PI)
        a = height * height * (first[0] - along * third[0])
        b = height * height * (first[1] - along * third[1])
        d = height * height * (second[1] - aside * third[1])
        firmness = 1e-9 * (a + d) + 1e-12
        a, d = a + firmness, d + firmness
        scale = height / (a * d - b * b)
        moved, widened = first[3] - along * third[3], second[3] - aside * third[3]
        self.change = scale * (d * moved - b * widened), scale * (a * widened - b * moved)
        self._rise = rise
        self._weights = scale * d, -scale * b, scale * (b * aside - d * along)

    @property
    def variance(self) -> float:
        """px², of the position: from the residuals and their correlation."""
        residual = self._rows[3] - self._rise * self._rows[2]
        influence = np.array(self._weights) @ self._rows[:3]
        spread = float(influence @ _correlate(influence, _autocorrelation(residual)))
        return float(spread * (residual @ residual) / max(residual.size - 4, 1))


def _significance(profile: Array, template: _Template, level: float) -> float:
    """Return the amplitude over the root mean square of what parallel lines show.

    The shaft itself is taken out first: its side lobes are no clutter.
    """
    bell, filters = _aside(template.width, template.half, profile.size)
    response = filters @ (profile - level * bell)
    return level / (float(response @ response) / len(filters))**0.5 if len(filters) else 0.0


@lru_cache(maxsize=64)
def _aside(width: float, half: int, columns: int) -> tuple[Array, Array]:
    """Return (W,) the shaft's profile, and (M, W) what gives the amplitudes of lines beside it."""
    template, middle = _gaussian_template(width, half), columns // 2
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


def _continuations(strip: _Strip, edges: Array, level: float) -> Array:
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
    return np.array([0.0 if room < _OPEN else amplitude / len(arcs)
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


def _bulk(strip: _Strip, end: int) -> float:
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
        shaft = _median(_row_bulk(inside, half, far).ravel())
        hub = _median(_row_bulk(outside, half, far).ravel())
        ratios.append(hub / max(shaft, 2.0 * strip.level))
    return max(ratios)


def _row_bulk(pixels: Image, half: int = 10, far: int = 15) -> Image:
    """Return (S, 1) grey level integrated over ±half columns, above the level up to ±far."""
    return np.asarray(pixels @ _bulk_filter(pixels.shape[1], half, far))


@cache
def _bulk_filter(columns: int, half: int, far: int) -> Image:
    x = np.abs(np.arange(columns) - columns // 2)[:, None]
    beside = (x > half) & (x < far)
    return np.where(x <= half, 1.0, -(2.0 * half + 1.0) / beside.sum() * beside).astype(np.float32)


def gate(value: float, limit: float, softness: float) -> float:
    """Return a probability that falls from 1 to 0 as value passes limit (logistic)."""
    return 1.0 / (1.0 + math.exp(min(max((value - limit) / softness, -50.0), 50.0)))


def most_probable(needles: Iterable[PixelNeedle], minimum: float) -> PixelNeedle | None:
    """Return the most probable needle, or None below a minimum; stops at a certain one."""
    best: PixelNeedle | None = None
    for needle in needles:
        if best is None or needle.probability > best.probability:
            best = needle
        if best.probability >= CERTAIN:
            break
    return best if best is not None and best.probability >= minimum else None
