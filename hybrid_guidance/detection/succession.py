"""A needle is first reported once successive images agree on it; one that is followed at once.

A look-alike that passes for a needle in one picture (a pericardium that beats, a fold of fascia)
seldom does so again in the next, on the same line. A shaft stays: it goes in along itself, and
sideways only as fast as probe, tissue or hand move. How far in it ends is not compared: fascia
cuts an echo short and bone prolongs it. But two sights of one shaft overlap.
"""

from dataclasses import dataclass

from hybrid_guidance.detection.needle import PixelNeedle

_SIDEWAYS, _TURNING = 100.0, 0.3
"""px/s and rad/s: deviations of how fast a shaft moves in the image, across and in angle."""

_LONGEST_S = 0.2
_GATE = 16.0
_OVERLAP = 0.5


@dataclass
class _Line:
    """What images agree on: the needle as seen last, when, in which image, and in how many."""

    needle: PixelNeedle
    stamp_ns: int
    number: int
    images: int = 1


class Succession:
    """Keeps the lines that the last images showed. One instance per stream of images.

    Args:
        confirm: images in a row that must agree before a needle is reported.
        keep_s: s for which a needle that was reported may be unseen and is still known.
    """

    def __init__(self, confirm: int = 3, keep_s: float = 1.0) -> None:
        self._confirm, self._keep_ns = confirm, int(keep_s * 1e9)
        self._lines: list[_Line] = []
        self._number = 0

    def __call__(self, needle: PixelNeedle | None, stamp_ns: int) -> bool:
        """Take what the next image shows, None for no needle; tell whether to report it."""
        self._number += 1
        self._lines = [line for line in self._lines if self._is_known(line, stamp_ns)]
        if needle is None:
            return False
        for line in self._lines:
            if _agree(line, needle, stamp_ns):
                line.needle, line.stamp_ns, line.number = needle, stamp_ns, self._number
                line.images += 1
                return line.images >= self._confirm
        self._lines.append(_Line(needle, stamp_ns, self._number))
        return self._confirm <= 1

    def _is_known(self, line: _Line, stamp_ns: int) -> bool:
        if line.images < self._confirm:
            return line.number == self._number - 1
        return abs(stamp_ns - line.stamp_ns) < self._keep_ns


def _agree(line: _Line, needle: PixelNeedle, stamp_ns: int) -> bool:
    """Tell whether a needle lies on a line, as far as both are known and may have moved."""
    last = line.needle
    (u, v), (du, dv) = (needle.tip - last.tip).tolist(), needle.direction.tolist()
    a, b = last.direction.tolist()
    along, across, turn = a * u + b * v, a * v - b * u, a * dv - b * du
    shared = min(0.0, along) - max(-last.length, along - needle.length)
    if a * du + b * dv < 0.0 or shared < _OVERLAP * min(last.length, needle.length):
        return False
    since = min(abs(stamp_ns - line.stamp_ns) * 1e-9, _LONGEST_S)
    (_, _, _), (_, place, mixed), (_, _, angle) = last.covariance.tolist()
    (_, _, _), (_, other_place, _), (_, _, other_angle) = needle.covariance.tolist()
    # The last shaft is known less well where it has to be prolonged to the tip of this one.
    aside = place + along * (2.0 * mixed + along * angle) + other_place + (_SIDEWAYS * since)**2
    turned = angle + other_angle + (_TURNING * since)**2
    return bool(across * across / aside + turn * turn / turned < _GATE)
