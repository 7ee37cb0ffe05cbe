"""One straight shaft as it was measured, and what the shafts of a modality look like."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.detection.centre_line import Bow
from hybrid_guidance.detection.edge import Edge, Gap, fit_edge, next_rise, reach_beyond
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.geometry.types import Array, Image, Pixels

OPEN = 6.0


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
        bow: of the centre line, s measured from its origin.
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
    bow: Bow
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
        """Return the needle whose tip is end 0 or 1, the tip measured to a fraction of a px.

        Of a shaft that is bent, the direction is that of the tangent at the tip.
        """
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
        tip, direction, curvature = self.origin + edge * self.direction, self.direction, 0.0
        if self.bow.is_sure:
            offset, slope = self.bow.shape(edge)
            rise, variance = self.bow.rise, self.bow.variance
            normal = np.array([-direction[1], direction[0]])
            tip = tip + rise * offset * normal
            direction = direction + rise * slope * normal
            direction = direction * (1.0 / math.hypot(*direction.tolist()))
            curvature = sign * 2.0 * rise / self.bow.half**2
            aside, lever = aside + variance * offset**2, lever + sign * variance * offset * slope
            turn += variance * slope**2
        covariance = np.array([[edge_variance + along * along, 0.0, 0.0],
                               [0.0, aside, lever], [0.0, lever, turn]])
        return PixelNeedle(tip, sign * direction, length, covariance, probability, curvature)

    def _tip(self, sign: float) -> tuple[float, float]:
        """Return s of the end at rising (+1) or falling (-1) s, and its variance in px²."""
        s, response = (self.s, self.response) if sign > 0.0 else (-self.s[::-1],
                                                                  self.response[::-1])
        coarse = sign * float(self.edges[int(sign > 0.0)])
        if s[-1] - coarse < OPEN:
            return sign * coarse, 25.0
        edge = self._fit_end(s, response, coarse, self.windows[0])
        # Where background or shaft change near the tip, the two windows disagree.
        other = self._fit_end(s, response, edge.position, self.windows[1], edge.blur)
        apart = other.position - edge.position
        variance = edge.variance + 0.5 * apart * apart
        if self.doubt:
            beyond = reach_beyond(s, response, edge.position, self.length)
            variance += self.doubt * beyond * beyond
        return sign * edge.position, variance

    def _fit_end(self, s: Array, response: Array, guess: float, window: tuple[float, float],
                 blur: float | None = None) -> 'Edge':
        inner = min(window[0], 0.6 * self.length)
        rows = slice(int(s.searchsorted(guess - inner, 'right')),
                     int(s.searchsorted(guess + window[1])))
        s, response = s[rows], response[rows]
        edge = min(int(s.searchsorted(guess)), s.size - 1)
        stop = next_rise(response, edge, self.brighter)
        if stop is None:
            # The tip touches bone: it lies anywhere between what is surely shaft and the bone.
            bone = float(s[edge + int(response[edge:].argmax())])
            return Gap(0.5 * (guess + bone), (bone - guess)**2 / 12.0 + 4.0)
        return fit_edge(s[:stop], response[:stop], guess, blur)


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
