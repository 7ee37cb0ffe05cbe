"""A shaft resampled into a strip whose rows run along it, and measured there.

Correlating each row with a Gaussian profile gives the shaft's amplitude, with the profile's
derivative its lateral offset; both are linear in the image, so their noise is the image's noise.
"""

import math

import cv2
import numpy as np

from hybrid_guidance.detection.centre_line import (
    LEAST_LINE_VARIANCE,
    Bow,
    Fit,
    robust_line,
    uncertainty,
)
from hybrid_guidance.detection.profile import (
    NARROW,
    block_widths,
    fit_tail,
    gaussian_template,
    pixel_noise,
    row_bulk,
)
from hybrid_guidance.detection.ridge import maximum_subarray
from hybrid_guidance.detection.series import lower_quartile, median
from hybrid_guidance.detection.shaft import OPEN, ShaftModel
from hybrid_guidance.geometry.types import Array, Image, Pixels

Amplitudes = tuple[Array, Array]
"""(S,) of each row, as the image shows it, and as the fit of an end takes it."""

HALF_WIDTH = 30
_DEEP = 60
PULL = (2.6, 1.8)
"""px: the wide profile pulls in from three pixels away, the narrow one sees less clutter."""
_LOOKS = 3
_BLUR_REACH = np.ones((1, 9), np.uint8)
_NEAR = 0.2


def resample(image: Image, start: Pixels, step: Array, normal: Array, size: tuple[int, int]
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


class Strip:
    """A resampled neighbourhood of a line: rows along it (s, px), columns across it."""

    def __init__(self, image: Image, mask: Image | None, model: ShaftModel, origin: Pixels,
                 direction: Array, s: Array) -> None:
        self.image, self.mask, self.model = image, mask, model
        self.origin, self.direction = origin, direction
        self.s = s
        self.run = slice(0, s.size)
        self.line_covariance = LEAST_LINE_VARIANCE
        self.pixels: Image = np.zeros((0, 0), np.float32)
        self.template = gaussian_template(max(1.8, model.widths[0]))
        self.responses = np.zeros((4, 0))
        self.bow = Bow(0.0, 1.0, 1.0, 0.0)
        self.level = self.trail = self.moved = 0.0

    @classmethod
    def around(cls, image: Image, mask: Image | None, ends: Pixels, model: ShaftModel
               ) -> 'Strip':
        """Lay a strip over (2, 2) px rough ends, and beyond them."""
        axis = ends[1] - ends[0]
        length = math.hypot(*axis.tolist())
        reach = np.ceil(0.5 * length + min(30.0 + 0.3 * length, 90.0))
        return cls(image, mask, model, 0.5 * (ends[0] + ends[1]), axis / length,
                   np.arange(-reach, reach + 1.0))

    def searched(self) -> Amplitudes | None:
        """Lay a roughly aligned strip along its shaft; return its amplitudes."""
        self.sample(NARROW)
        self._view(max(1.8, self.model.widths[0]))
        if not self.find_run() or self.run_length < 0.6 * self.model.minimum_length:
            return None
        self._view(_best_width(self))
        self._move_onto(self._centre_line())
        self._span_run(min(30.0 + 0.3 * self.run_length, 90.0))
        self.sample(HALF_WIDTH)
        self._view(self.template.width)
        return self._measured() if self.find_run() else None

    def followed(self, length: float) -> Amplitudes | None:
        """Do so with the shaft that the last image had on some px about the strip's middle."""
        half = 0.5 * length
        width = max(PULL[0], self.model.widths[0])
        for more in reversed(range(_LOOKS + 1)):
            self.sample(HALF_WIDTH)
            self.run = slice(*self.s.searchsorted((-half, half)).tolist())
            if self.run_length < 0.6 * self.model.minimum_length:
                return None
            self._view(width)
            self.level = median(self.responses[0, self.run])
            if self.level <= 0.0:
                return None
            fit = self._centre_line(2)
            width = _best_width(self)
            if not more or abs(fit.intercept) + half * abs(fit.slope) < _NEAR * width:
                break
            self._move_onto(fit)
        self._view(width)
        level = median(self.responses[0, self.run])
        return self._measured() if self.find_run(level) else None

    def _measured(self) -> Amplitudes | None:
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
        return inner, response

    def _view(self, width: float) -> None:
        """Look at the pixels with the profile of a σ in px."""
        self.template = gaussian_template(width)
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
        u, v = (self.origin + (s + sign * (OPEN + 2.0)) * self.direction).tolist()
        height, width = self.image.shape
        if not (1.0 <= u <= width - 2.0 and 1.0 <= v <= height - 2.0):
            return True
        return self.mask is not None and not self.mask[round(v), round(u)]

    def _expand(self) -> None:
        """Undo the logarithm: echoes add as amplitudes, so there the noise is even."""
        if not self.model.compression:
            return
        middle = self.pixels.shape[1] // 2
        self.pixels = self.pixels[:, middle - NARROW:middle + NARROW + 1] - np.float32(255.0)
        self.pixels *= np.float32(1.0 / self.model.compression)
        cv2.exp(self.pixels, dst=self.pixels)
        self._view(_best_width(self))
        self.level = max(median(self.responses[0, self.run]), 1e-9)
        amplitude = self._crossed()
        smooth = cv2.blur(amplitude[None], (3, 1))[0]
        relative = smooth * (1.0 / max(median(amplitude[self.run]), 1e-9))
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
        relative = relative * (1.0 / max(median(relative[:reach]), 1e-9))
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
        rows = self.pixels[self.run, middle - NARROW:middle + NARROW + 1]
        side = math.copysign(1.0, across)
        shift, delay = fit_tail(np.add.reduce(rows)[::int(side)])
        # The profile is one of the strip as it lay before the line was fitted.
        self.origin = self.origin + (side * shift - self.moved) * self.normal
        # Along the beam the echoes are late by delay / |across|; this much lies along the shaft.
        self.trail = delay * along / max(abs(across), 0.25)

    @property
    def normal(self) -> Array:
        """The (2,) unit vector across the shaft."""
        u, v = self.direction.tolist()
        return np.array([-v, u])

    @property
    def run_length(self) -> int:
        """Rows on which the shaft is visible."""
        return self.run.stop - self.run.start

    def sample(self, half_width: int) -> None:
        """Resample the image, keeping only rows whose centre is inside it and its mask."""
        self._trim()
        self._resample(half_width)

    def _resample(self, half_width: int) -> None:
        self.pixels = self.model.grey(resample(
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
            level = median(near_rows) if near_rows.size else 0.0
        for _ in range(rounds):
            if level <= 0.0:
                return False
            # Far above the shaft's own level is not the shaft but something it crosses.
            relative = amplitude * (1.0 / level)
            gain = np.minimum(np.maximum(relative, -0.5), 1.5) - 0.5
            np.minimum(gain, np.maximum(2.2 - relative, -1.0), out=gain)
            first, last = maximum_subarray(gain, 30)
            level = median(amplitude[first:last + 1])
        self.run, self.level = slice(first, last + 1), level
        if self.model.hub:
            self._cut_hub()
        return level > 0.0

    def _cut_hub(self) -> None:
        """Take a hub, much thicker than the shaft, off either end of the run."""
        pixels = self.pixels[self.run]
        bulk = cv2.blur(row_bulk(pixels), (1, 9)).ravel()
        usual = float(np.partition(bulk, bulk.size // 5)[bulk.size // 5])
        typical = max(usual, 2.5 * self.template.width * self.level)
        low, high = self.model.widths
        widths = block_widths(pixels, max(self.run_length // 8, 1), (low, 2.0 * high))
        wide = np.repeat(widths > 1.5 * lower_quartile(widths), 8)
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
        floor = (pixel_noise(self.pixels, self.template.half) / self.level) ** 2 / float(
            self.template.derivative @ self.template.derivative)
        self.line_covariance, self.bow = uncertainty(fit, floor)
        if self.bow.is_sure:
            self.bow = self.bow.scaled(1.0 / self._offset_gain())
        self.moved = fit.intercept
        self._move_onto(fit)

    def _offset_gain(self) -> float:
        """Return by how much the offset measured grows per px: 1 for a profile like the template.

        A straight line is moved until the offset is zero, whatever the gain; the bow stays.
        """
        profile = np.pad(np.add.reduce(self.pixels[self.run]), 1, mode='edge')
        middle, half = profile.size // 2, self.template.half
        before, beyond = (self.template.filters[:2] @ profile[
            middle + step - half:middle + step + half + 1] for step in (1, -1))
        gain = 0.5 * float(beyond[1] / beyond[0] - before[1] / before[0])
        return min(max(gain, 0.5), 2.0)

    def _centre_line(self, rounds: int = 4) -> 'Fit':
        """Return the centre line of the run, about its middle."""
        s = self.s[self.run]
        amplitude, offset = self.responses[:2, self.run]
        # An uneven shaft whose profile is not symmetric would seem turned, were all its rows
        # divided by one level.
        local = cv2.blur(amplitude[None], (25, 1))[0]
        offset = offset / np.maximum(local, 0.4 * self.level)
        offset = np.minimum(np.maximum(offset, -6.0), 6.0)
        middle = float(np.rint(0.5 * (s[0] + s[-1])))
        return robust_line(s - middle, offset, middle, rounds)

    def _move_onto(self, fit: 'Fit') -> None:
        normal = self.normal
        self.origin = self.origin + fit.middle * self.direction + fit.intercept * normal
        direction = self.direction + fit.slope * normal
        self.direction = direction * (1.0 / math.sqrt(1.0 + fit.slope * fit.slope))
        self.s = self.s - fit.middle


def _best_width(strip: Strip) -> float:
    """Return the σ whose profile explains most of the shaft, were part of it hub or crossed."""
    count = max(min(8, strip.run_length // 12), 1)
    widths = block_widths(strip.pixels[strip.run], count, strip.model.widths)
    return lower_quartile(widths)
