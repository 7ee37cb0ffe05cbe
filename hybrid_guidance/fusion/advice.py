"""Whether the next X-ray is worth its dose."""

from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along

CONTRADICTED_NS = 2_000_000_000
"""After an X-ray that contradicts ultrasound, another one so soon would show the same."""


@dataclass(frozen=True)
class Advice:
    """What one more exposure would do.

    Attributes:
        expose: whether it is worth its dose.
        now: m, root mean square error expected of the tip as it is known now.
        after: m, the same after one more exposure; NaN where there was none to go by.
        reason: in words.
    """

    expose: bool
    now: float
    after: float
    reason: str


def advise(fusion: NeedleFusion, stamp_ns: int, source: str, limit: float,
           gain: float = 0.2) -> Advice:
    """Compare the tip's uncertainty now with that after another X-ray like the last one.

    Args:
        fusion: what is known.
        stamp_ns: now.
        source: name of the X-ray among the filter's sources.
        limit: m, error of the tip that is good enough.
        gain: share by which an exposure must lessen the error to be worth it.
    """
    needle_filter, last = fusion.filter, fusion.last(source)
    state = needle_filter.predict(stamp_ns)
    if state is None or not fusion.found:
        return Advice(False, float('nan'), float('nan'), 'no needle to look for yet')
    now = _deviation(needle_filter.estimate(state))
    if fusion.refused(source, stamp_ns - CONTRADICTED_NS):
        return Advice(False, now, float('nan'), (
            'not worth it: the last X-ray contradicts ultrasound; see which of them is right'))
    if last is None:
        return Advice(True, now, float('nan'), 'expose: no X-ray has shown the needle yet')
    # As the last one, but of where the needle is by now.
    again = replace(last, stamp_ns=stamp_ns, needle=replace(
        last.needle, pose=pose_along(state.tip, last.needle.direction)))
    after = _deviation(needle_filter.estimate(needle_filter.expect(again)))
    words = f'the tip is known to {now * 1e3:.1f} mm, after an exposure to {after * 1e3:.1f} mm'
    if now < limit:
        return Advice(False, now, after, f'not worth it: {words}')
    if after > (1.0 - gain) * now:
        return Advice(False, now, after, f'not worth it, little would change: {words}')
    return Advice(True, now, after, f'expose: {words}')


def _deviation(needle: NeedleEstimate) -> float:
    return float(np.sqrt(np.trace(needle.covariance[:3, :3])))
