"""How to hold the probe so that ultrasound shows the needle and its tip."""

import math
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.types import Array


@dataclass(frozen=True)
class ProbeLimits:
    """What is not worth a word.

    Attributes:
        outside: probability that the tip is outside the slice that is low enough.
        crossing: rad, between shaft and slice that is.
        oblique: rad, by which a beam may miss the shaft's perpendicular.
        steer: rad, how far a linear probe can steer its beam.
    """

    outside: float = 0.5
    crossing: float = math.radians(10.0)
    oblique: float = math.radians(10.0)
    steer: float = math.radians(20.0)


@dataclass(frozen=True)
class ProbeAdvice:
    """Where a needle is, as seen by the probe.

    Attributes:
        offset: m, of the tip from the middle of the slice along +z, away from who looks at it.
        sigma: m, its deviation.
        outside: probability that the tip is outside the slice, 0 to 1.
        crossing: rad, angle between shaft and slice.
        oblique: rad, by which the beam at the tip would have to turn to +x to meet the shaft at
            a right angle, where its echo is brightest.
        words: what to do; empty where the probe is held well.
    """

    offset: float
    sigma: float
    outside: float
    crossing: float
    oblique: float
    words: str


def advise_probe(needle: NeedleEstimate, thickness: float, apex: Array | None = None,
                 limits: ProbeLimits | None = None) -> ProbeAdvice:
    """Compare a needle with the slice and its beams.

    Args:
        needle: in ``ultrasound_image`` (x lateral, y deep, z across the slice).
        thickness: m, of the slice: full width at half maximum of the beam in elevation.
        apex: (2,) m, x and y where the beams of a curved probe meet; None: they are parallel.
        limits: what is not worth a word.
    """
    limits = limits or ProbeLimits()
    offset, sigma = float(needle.tip[2]), math.sqrt(max(float(needle.covariance[2, 2]), 1e-18))
    outside = sum(0.5 * math.erfc((0.5 * thickness + side * offset) / (sigma * math.sqrt(2.0)))
                  for side in (-1.0, 1.0))
    along = needle.direction[:2]
    crossing = math.atan2(abs(float(needle.direction[2])), float(np.hypot(*along)))
    beam = np.array([0.0, 1.0]) if apex is None else needle.tip[:2] - apex
    square = np.array([-along[1], along[0]])
    if square @ beam < 0.0:
        square = -square
    oblique = math.atan2(beam[1] * square[0] - beam[0] * square[1], float(beam @ square))
    return ProbeAdvice(offset, sigma, outside, crossing, oblique, _words(
        limits, offset, outside, crossing, oblique))


def _words(limits: ProbeLimits, offset: float, outside: float, crossing: float,
           oblique: float) -> str:
    if outside > limits.outside:
        side = 'behind' if offset > 0.0 else 'in front of'
        return f'tip {abs(offset) * 1e3:.1f} mm {side} the slice: move the probe there'
    if crossing > limits.crossing:
        return f'shaft crosses the slice at {math.degrees(crossing):.0f} deg: turn the probe'
    if abs(oblique) > limits.oblique:
        turn = math.degrees(min(abs(oblique), limits.steer))
        return f'steer the beam {turn:.0f} deg to the {"right" if oblique > 0.0 else "left"}'
    return ''
