"""Whether the next X-ray is worth its dose."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from hybrid_guidance.fusion.needle_filter import Observation, State
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.geometry.covariance import distance_deviation
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.geometry.small import squared
from hybrid_guidance.geometry.types import Points

CONTRADICTED_NS = 2_000_000_000
"""After an X-ray that contradicts ultrasound, another one so soon would show the same."""

IN_VAIN_NS, IN_VAIN_LONGEST_NS = 1_000_000_000, 8_000_000_000
"""After an X-ray that does not show the needle; twice as long after each further one."""

AWAY = 0.25e-3
"""m of σ by which a breath may make an X-ray wrong that is to be taken now, in any case."""

UNDERWAY_NS = 500_000_000
"""How late an image may arrive and still tell what the needle does now."""


@dataclass(frozen=True)
class Limits:
    """When an exposure is worth its dose.

    Attributes:
        tip: m, root mean square error of the tip that is good enough.
        depth: m, deviation of the tip along the shaft that is: with less, a planner advances.
        gain: share by which an exposure must lessen that error.
        risk: probability of touching what must not be touched that is low enough.
        unchecked: m, how far the needle may go in beyond where an X-ray has shown it.
    """

    tip: float = 0.00065
    depth: float = 0.0005
    gain: float = 0.35
    risk: float = 0.01
    unchecked: float = 0.015


@dataclass(frozen=True)
class Advice:
    """What one more exposure would do.

    Attributes:
        expose: whether it is worth its dose.
        reason: in words.
        now: m, root mean square error expected of the tip as it is known now.
        after: m, the same after one more exposure; NaN where there was none to go by.
        risk_now: probability that the tip touches the nearest structure; NaN if none is known.
        risk_after: the same after one more exposure, at the same place.
    """

    expose: bool
    reason: str
    now: float = math.nan
    after: float = math.nan
    risk_now: float = math.nan
    risk_after: float = math.nan


@dataclass(frozen=True)
class Circumstances:
    """What else an exposure depends on.

    Attributes:
        danger: (3,) m, from the tip to what it must not touch, in the filter's axes.
        dose: Gy, air kerma of one exposure.
        away: (3,) m, one σ of what a breath has done that an X-ray would take for the needle's
            place, in the filter's axes.
        unsettled: what only an X-ray can settle, in words.
    """

    danger: Points | None = None
    dose: float = math.nan
    away: Points = field(default_factory=lambda: np.zeros(3))
    unsettled: str = ''


def advise(fusion: NeedleFusion, stamp_ns: int, source: str, limits: Limits | None = None,
           given: Circumstances | None = None) -> Advice:
    """Compare what is known of the tip now with what would be after an X-ray like the last one.

    Args:
        fusion: what is known.
        stamp_ns: now.
        source: name of the X-ray among the filter's sources.
        limits: when it is worth its dose.
        given: what else it depends on.
    """
    limits = limits or Limits()
    given, (vain, taken_ns) = given or Circumstances(), fusion.in_vain(source)
    pause_ns = min(IN_VAIN_NS << max(vain - 1, 0), IN_VAIN_LONGEST_NS) if vain else 0
    waiting = 0 <= stamp_ns - taken_ns < pause_ns  # A clock may jump back.
    # Pictures that were taken are still on their way: they, not an X-ray, tell of the last moment.
    stamp_ns = max(stamp_ns - UNDERWAY_NS, min(stamp_ns, fusion.latest_ns))
    state, last = fusion.filter.predict(stamp_ns), fusion.last(source)
    if state is None or not fusion.found:
        return Advice(False, 'no needle to look for yet')
    needle = fusion.filter.estimate(state)
    now, risk = _deviation(needle), _risk(needle, given.danger)
    if fusion.refused(source, stamp_ns - CONTRADICTED_NS):
        return Advice(False, 'not worth it: the last X-ray contradicts ultrasound; see which of '
                      'them is right', now, risk_now=risk)
    if waiting:
        return Advice(False, f'not worth it: {vain} X-rays in a row have not shown the needle that '
                      'ultrasound shows; see whether it is one', now, risk_now=risk)
    if given.unsettled:
        return Advice(True, f'expose: an X-ray tells {given.unsettled}', now, risk_now=risk)
    if last is None:
        advice = Advice(True, 'expose: no X-ray has shown the needle yet', now, risk_now=risk)
        return _at_rest(advice, given.away)
    seen = fusion.filter.estimate(fusion.filter.expect(_again(last, state)))
    depth, depth_after = (distance_deviation(each.covariance, state.direction)
                          for each in (needle, seen))
    after, risk_after = _deviation(seen), _risk(seen, given.danger)
    expose, reason = _judge(limits, (now, after), (risk, risk_after), (depth, depth_after),
                            _beyond(fusion, source, state))
    price = '' if math.isnan(given.dose) else f', for {given.dose * 1e6:.1f} µGy'
    advice = Advice(expose, f'{reason}{price}', now, after, risk, risk_after)
    if expose and _is_enough(fusion, _again(last, state, given.away), limits):
        return advice
    return _at_rest(advice, given.away)


def _again(last: Observation, state: State, away: Points | None = None) -> Observation:
    """Return an image as the last one, of where the needle is by now.

    Args:
        last: the image.
        state: where the needle is.
        away: (3,) m, one σ of what a breath does to it; None: the image of a better moment.
    """
    covariance = last.needle.covariance.copy()
    passing = np.zeros((3, 3)) if away is None else squared(away)
    covariance[:3, :3] += passing - last.passing
    return replace(last, stamp_ns=state.stamp_ns, passing=passing, needle=NeedleEstimate(
        pose_along(state.tip, last.needle.direction), covariance, last.needle.probability))


def _is_enough(fusion: NeedleFusion, image: Observation, limits: Limits) -> bool:
    """Tell whether an image would leave the tip and its depth known well enough."""
    state = fusion.filter.expect(image)
    needle = fusion.filter.estimate(state)
    return (_deviation(needle) < limits.tip
            and distance_deviation(needle.covariance, state.direction) < limits.depth)


def _at_rest(advice: Advice, away: Points) -> Advice:
    """Put an exposure off until the breath is at its end, where it tells most."""
    sigma = float(np.linalg.norm(away))
    if not advice.expose or sigma < AWAY:
        return advice
    return replace(advice, expose=False, reason=(
        f'wait for the end of the breath, which is known to {sigma * 1e3:.1f} mm now; then '
        f'{advice.reason}'))


def _judge(limits: Limits, errors: tuple[float, float], risks: tuple[float, float],
           depths: tuple[float, float], beyond: float) -> tuple[bool, str]:
    """Return whether to expose, and why, from error, risk and depth's deviation (now, after)."""
    (now, after), (risk, risk_after), (depth, depth_after) = errors, risks, depths
    words = f'the tip is known to {now * 1e3:.1f} mm, after an exposure to {after * 1e3:.1f} mm'
    if beyond > limits.unchecked:
        return True, f'expose: {beyond * 1e3:.0f} mm deeper than the last X-ray has shown; {words}'
    if risk > limits.risk and risk_after < 0.5 * risk:
        return True, (f'expose: {risk:.0%} risk of touching what must not be touched, after an '
                      f'exposure {risk_after:.1%}; {words}')
    if depth > limits.depth and depth_after < (1.0 - limits.gain) * depth:
        return True, (f'expose: the depth is known to {depth * 1e3:.1f} mm, after an exposure to '
                      f'{depth_after * 1e3:.1f} mm; {words}')
    if now < limits.tip:
        return False, f'not worth it: {words}'
    if after > (1.0 - limits.gain) * now:
        return False, f'not worth it, little would change: {words}'
    return True, f'expose: {words}'


def _beyond(fusion: NeedleFusion, source: str, state: State) -> float:
    """Return how much deeper the tip is than where a source showed it last, m."""
    shown = fusion.last_tip(source)
    return 0.0 if shown is None else float((state.tip - shown) @ state.direction)


def _deviation(needle: NeedleEstimate) -> float:
    return float(np.sqrt(np.trace(needle.covariance[:3, :3])))


def _risk(needle: NeedleEstimate, danger: Points | None) -> float:
    """Return the probability that the tip is as far along ``danger`` as that is long."""
    if danger is None:
        return math.nan
    distance = float(np.linalg.norm(danger))
    sigma = distance_deviation(needle.covariance, danger / max(distance, 1e-9))
    return 0.5 * math.erfc(distance / max(sigma, 1e-9) / math.sqrt(2.0))
