"""A needle as a line of pixels, and how likely it is one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.types import Array, Pixels

CERTAIN = 0.9
"""Probability from which a needle ends the search for a better one."""


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
        curvature: 1/px, positive where the shaft, followed towards the tip, turns towards
            ``normal``; zero unless it is bent for certain. The direction is the tangent's.
    """

    tip: Pixels
    direction: Array
    length: float
    covariance: Array
    probability: float
    curvature: float = 0.0

    @property
    def ends(self) -> Pixels:
        """The (2, 2) far end of the visible shaft, and the tip."""
        back = self.tip - self.length * self.direction
        return np.array([back + 0.5 * self.curvature * self.length**2 * self.normal, self.tip])

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
