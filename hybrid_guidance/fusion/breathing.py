"""Where breathing has carried the patient, from tissue that both imagers watch.

One source leads: it sees tissue often, but not across its slice (ultrasound). Another sees it
seldom, and from elsewhere (X-ray); it tells how far tissue goes across the slice for each
millimetre in it. A breath rests longest at its end (Lujan et al., Med Phys 1999;26:715), so the
place where tissue stays most of the time is where the patient was registered. Until a breath
has been watched nobody can know that place, and the doubt says so.

Everything is a displacement in ``world``; what breathing turns is left out.
"""

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.geometry.small import squared
from hybrid_guidance.geometry.types import Array, Points, Transform

BLIND = 0.05
"""m: a displacement less sure than this was not seen."""

_THREE = np.eye(3)
_AHEAD_S, _SLOPE_S, _BEND = 0.1, 0.2, 0.005
"""How far ahead a breath is foretold, from how long a stretch, and how it bends, m/s²."""

_SLANT, _USUAL_PULL, _NOISE = 0.08, 0.5, 3e-5
"""Metres in the slice that what slants through it feigns for each across it, and of these for each
in it; m, of one sight. What a reference image is wrong by counts for nothing: the rest is seen
from the same one."""

_DWELL, _NARROW, _FINE = 0.18, 0.1, 1e-4
"""Share of the time that tissue spends within a tenth of its way from its rest, or 0.1 mm: a breath
that goes with cos⁴ rests there for 26 to 38 %, and turns at full intake within as much for 7 to 14
%, be it seen all the way or a part of it."""

_GAP_NS = 400_000_000
"""For longer nothing is known of tissue between two sights."""

_PULL, _REST, _CALMEST, _STILL, _SCALE = 1.5, 0.25, 0.2, 4e-4, 0.05
"""σ across the slice per metre in it before it was seen; share of the time that tissue rests, and
of which the calmest moments are worth waiting for;
m, a span that is no breath; share by which the scale of an X-ray's tissue may be wrong."""


@dataclass(frozen=True)
class TissueSight:
    """How far one sensor saw tissue move, in ``world``.

    Attributes:
        source: name of the sensor.
        stamp_ns: acquisition time.
        reference_ns: of the image from which the displacement counts.
        displacement: (3,) m.
        covariance: (3, 3) m², large where the sensor is blind.
        mount: (4, 4) where the sensor's tracked body was.
    """

    source: str
    stamp_ns: int
    reference_ns: int
    displacement: Points
    covariance: Array
    mount: Transform


@dataclass(frozen=True)
class Displacement:
    """(3,) m in ``world`` and its (3, 3) covariance."""

    offset: Points
    covariance: Array


class Breathing:
    """Follows the patient's breath.

    Args:
        lead: the source that sees tissue often.
        deviation: m, of a place in a breath that has not been watched.
        watch_s: how long tissue is watched before its rest is known: longer than one breath.
        memory_s: how long it is remembered.
        still: m, a sensor that was moved further sees tissue from a new beginning.
    """

    def __init__(self, lead: str = 'ultrasound', deviation: float = 0.0015, watch_s: float = 5.0,
                 memory_s: float = 15.0, still: float = 0.001) -> None:
        self._lead, self._deviation, self._still = lead, deviation, still
        self._watch_ns, self._memory_ns = int(watch_s * 1e9), int(memory_s * 1e9)
        self._stamps: list[int] = []
        self._moved: list[Points] = []
        self._begun: dict[str, TissueSight] = {}
        self._seldom: deque[tuple[Points, Array, Points]] = deque(maxlen=40)
        self._pending: deque[TissueSight] = deque(maxlen=40)
        self._led_at: dict[int, Points] = {}
        self._normal = self._axis = np.zeros(3)
        self._base, self._resting = np.zeros(3), np.zeros(3)
        self._before: Points | None = None
        self._known = False
        self._pull, self._pull_variance, self._residual = 0.0, _PULL**2, 0.0
        self._learnt_ns = 0
        self._asked: tuple[int, Displacement | None] | None = None
        self._at_rest: Displacement | None = None
        self._trend: tuple[Points, Array] | None = None

    @property
    def newest_ns(self) -> int | None:
        """When tissue was seen last by the source that leads; None: never."""
        return self._stamps[-1] if self._stamps else None

    @property
    def known(self) -> bool:
        """Whether the place at rest is known: a breath was watched, and its rest was seen."""
        return self._known

    def add(self, sight: TissueSight) -> None:
        """Take what a sensor saw."""
        self._asked = self._at_rest = None
        begun = self._begun.get(sight.source)
        anew = begun is None or begun.reference_ns != sight.reference_ns or float(
            np.linalg.norm(sight.mount[:3, 3] - begun.mount[:3, 3])) > self._still
        if anew:
            self._begin(sight)
        if sight.source != self._lead:
            self._pending.append(sight)
        elif not self._stamps or sight.stamp_ns > self._stamps[-1]:
            self._stamps.append(sight.stamp_ns)
            self._moved.append(self._base + self._seen(sight))
            self._forget()
            if sight.stamp_ns - self._learnt_ns > 200_000_000:
                self._learnt_ns = sight.stamp_ns
                self._learn()
            self._trend = self._fit()

    def at(self, stamp_ns: int) -> Displacement | None:
        """Return how far tissue is displaced; None where unknown.

        In the slice since it was first seen, across it from where it rests.

        Between two sights it is interpolated, a little ahead of the last it is foretold.
        """
        # Asked more than once for each needle.
        if self._asked is None or self._asked[0] != stamp_ns:
            self._asked = stamp_ns, self._at(stamp_ns)
        return self._asked[1]

    def _at(self, stamp_ns: int) -> Displacement | None:
        moved = self._lead_at(stamp_ns)
        if moved is None:
            return None
        offset, doubt = moved
        away, across = float(self._axis @ (offset - self._resting)), squared(self._normal)
        beside = self._pull_variance * away**2 + self._residual**2
        feigned = _SLANT**2 * (_USUAL_PULL**2 + self._pull**2) * away**2
        if self._before is not None:
            doubt = math.hypot(doubt, self._deviation)
        return Displacement(
            offset + self._pull * away * self._normal,
            (feigned + _NOISE**2) * (_THREE - across) + doubt**2 * _THREE + beside * across)

    def away(self) -> Points:
        """Return (3,) m, one σ of what tissue, when last seen, did beside its calmest.

        It is that across the slice, in ``world``: what an X-ray shows there is wrong by it, and
        would be less so at the end of a breath. Of a breath that was not watched for long enough
        nothing is known; 0 without tissue.
        """
        if not self._stamps:
            return np.zeros(3)
        if not self.known:
            # A rest that cannot be known is not waited for for ever.
            watched_ns = self._stamps[-1] - self._stamps[0]
            return self._deviation * (watched_ns < 2 * self._watch_ns) * self._normal
        squares = ((np.array(self._moved) - self._resting) @ self._axis)**2
        # The rest is a mean: a breath that never comes back to it has a best moment all the same.
        beside = float(squares[-1] - np.quantile(squares, _CALMEST))
        return math.sqrt(max(beside, 0.0) * self._pull_variance) * self._normal

    def rest(self) -> Displacement:
        """Return the same where the patient is at rest, as it was registered."""
        # Nothing across the slice: that is told from here, or all that was seen before what the
        # breath does there was learnt would lie elsewhere.
        if self._at_rest is None:
            sure = 5e-5 if self.known or self._before is not None else self._deviation
            self._at_rest = Displacement(self._resting, sure**2 * _THREE)
        return self._at_rest

    def still(self, stamp_ns: int, mount: Transform) -> tuple[Transform, Array]:
        """Return a sensor's mount as tissue sees it that does not move, and (3, 3) m² of doubt.

        Args:
            stamp_ns: acquisition time.
            mount: (4, 4) pose of the tracked body, in ``world``.
        """
        found = self.at(stamp_ns)
        if found is None and not self._stamps:
            return mount, np.zeros((3, 3))
        if found is None:
            found = Displacement(self.rest().offset, self._deviation**2 * np.eye(3))
        still_T_mount = mount.copy()
        still_T_mount[:3, 3] -= found.offset
        return still_T_mount, found.covariance

    def ready(self, stamp_ns: int) -> bool:
        """Tell whether more need not be waited for to know the breath at a stamp."""
        return not self._stamps or stamp_ns <= self._stamps[-1] + int(_AHEAD_S * 1e9)

    def world_T_still(self, stamp_ns: int) -> Transform:
        """Return (4, 4) where tissue that does not move is in ``world``."""
        found = self.at(stamp_ns)
        return transform(translation=np.zeros(3) if found is None else found.offset)

    def registered(self, world_T_patient: Transform) -> Transform:
        """Return (4, 4) the patient among tissue that does not move, from where it rests."""
        still_T_patient = world_T_patient.copy()
        still_T_patient[:3, 3] -= self.rest().offset
        return still_T_patient

    def rest_covariance(self) -> Array:
        """Return (6, 6) how sure that is, beside the registration."""
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = self.rest().covariance
        return covariance

    def _begin(self, sight: TissueSight) -> None:
        """Begin from another image; what the lead had found before goes on from there.

        Where it does not reach that far nobody knows where in its breath that image shows tissue,
        until its rest is seen again: it is the rest of before, among which the needle lies.
        """
        self._begun[sight.source] = sight
        if sight.source != self._lead:
            return
        before = self._lead_at(sight.reference_ns)
        if before is None:
            if self.known:
                self._before = self._resting
            self._stamps, self._moved, self._known = [], [], False
            self._led_at.clear()
            self._base = np.zeros(3) if self._before is None else self._before
        else:
            self._base = before[0]

    def _seen(self, sight: TissueSight) -> Points:
        """Return the displacement in the plane of the lead, and keep that plane."""
        variances, axes = np.linalg.eigh(sight.covariance)
        normal = axes[:, -1] if variances[-1] > BLIND**2 else np.zeros(3)
        # An eigenvector has no sign; what was learnt of the way across the slice has one.
        self._normal = -normal if float(normal @ self._normal) < 0.0 else normal
        seen = np.eye(3) - np.outer(self._normal, self._normal)
        return np.asarray(seen @ sight.displacement)

    def _lead_at(self, stamp_ns: int) -> tuple[Points, float] | None:
        """Return what the lead saw at a stamp, and the doubt of having to foretell it, m."""
        stamps, moved = self._stamps, self._moved
        after = bisect_right(stamps, stamp_ns)
        if after == 0 or (after == len(stamps)
                          and stamp_ns - stamps[-1] > int(_AHEAD_S * 1e9)):
            return None
        if after < len(stamps) and stamps[after] - stamps[after - 1] > _GAP_NS:
            return None
        if after < len(stamps):
            share = (stamp_ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
            return moved[after - 1] + share * (moved[after] - moved[after - 1]), 0.0
        ahead = (stamp_ns - stamps[-1]) * 1e-9
        if ahead == 0.0:
            return moved[-1], 0.0
        if self._trend is None:
            return moved[-1], self._deviation
        now, slope = self._trend
        return now + ahead * slope, _BEND * ahead * (ahead + _SLOPE_S)

    def _fit(self) -> tuple[Points, Array] | None:
        """Return where tissue was at the last stamp, and m/s: a line through the last sights."""
        first = bisect_right(self._stamps, self._stamps[-1] - int(_SLOPE_S * 1e9))
        times = (np.array(self._stamps[first:]) - self._stamps[-1]) * 1e-9
        if len(times) < 3:
            return None
        places = np.array(self._moved[first:])
        centred = times - times.mean()
        slope = centred @ places / float(centred @ centred)
        return places.mean(axis=0) - times.mean() * slope, slope

    def _forget(self) -> None:
        old = bisect_right(self._stamps, self._stamps[-1] - self._memory_ns)
        del self._stamps[:old], self._moved[:old]

    def _learn(self) -> None:
        """Find the line of the breath, its rest, and how far it goes across the slice."""
        moved = np.array(self._moved)
        spread = moved - moved.mean(axis=0)
        self._axis = np.linalg.svd(spread.T @ spread)[0][:, 0]
        self._resting = moved.mean(axis=0)
        near, share = _from_rest(spread @ self._axis)
        stamps = np.array(self._stamps)
        elapsed = stamps[-1] - stamps[0]
        seen = len(stamps) * float(np.median(np.diff(stamps))) / elapsed if elapsed else 0.0
        self._known = bool(elapsed >= self._watch_ns and share * seen >= _DWELL)
        if self._known and float(np.ptp(near)) > _STILL:
            self._resting = moved[near <= np.quantile(near, _REST)].mean(axis=0)
        if self._before is not None:
            self._go_on(self._before)
        self._compare()

    def _go_on(self, before: Points) -> None:
        """Take where tissue rests for where it did before it was seen from another image."""
        if self.known:
            shift = before - self._resting
            self._moved = [place + shift for place in self._moved]
            self._base, self._before = self._base + shift, None
        self._resting = before

    def _compare(self) -> None:
        """Learn from what was seen seldom how far tissue goes where the lead is blind."""
        for _ in range(len(self._pending)):
            sight = self._pending.popleft()
            if sight.stamp_ns > self._stamps[-1]:
                self._pending.append(sight)
                continue
            then, now = self._reference(sight.reference_ns), self._lead_at(sight.stamp_ns)
            if then is not None and now is not None:
                self._seldom.append((sight.displacement, sight.covariance, now[0] - then))
        rows = [self._row(*item) for item in self._seldom]
        pulls = np.array([row for row in rows if row is not None]).reshape(-1, 3)
        along, across, variance = pulls.T
        known = 1.0 / _PULL**2 + float(np.sum(along**2 / variance))
        self._pull = float(np.sum(along * across / variance)) / known
        misses = (across - self._pull * along)**2 / variance
        excess = max(float(np.mean(misses)) if len(misses) else 0.0, 1.0)
        self._pull_variance = excess / known
        self._residual = float(np.sqrt(np.mean(variance) * (excess - 1.0))) if len(misses) else 0.0

    def _reference(self, stamp_ns: int) -> Points | None:
        """Return what the lead saw at the stamp of a reference, also when that is long ago."""
        found = self._lead_at(stamp_ns)
        if stamp_ns not in self._led_at and found is not None:
            self._led_at[stamp_ns] = found[0]
        return self._led_at.get(stamp_ns)

    def _row(self, seen: Points, covariance: Array, led: Points
             ) -> tuple[float, float, float] | None:
        """Return metres along the breath, metres across the slice, and the variance of these."""
        variances, axes = np.linalg.eigh(covariance)
        sharp = axes[:, variances < BLIND**2]
        view = sharp.T @ self._normal
        strength = float(view @ view)
        if strength < 0.1:
            return None
        weights = sharp @ view / strength
        across = float(weights @ (seen - led))
        doubt = float(weights @ covariance @ weights) + (
            _SCALE**2 * float(seen @ seen) + 1e-10) / strength
        return float(self._axis @ led), across, doubt


def _from_rest(along: Array) -> tuple[Array, float]:
    """Return how far (N,) places on a line are from the end where most are, and their share.

    That is the share within ``_NARROW`` of the line's length, all of it where that is no breath.
    """
    ordered = np.sort(along)
    low, high = np.percentile(ordered, (1.0, 99.0))
    width = _STILL if high - low < _STILL else max(_NARROW * (high - low), _FINE)
    within = np.searchsorted(ordered, ordered + width, side='right') - np.arange(len(ordered))
    first = int(within.argmax())
    is_low = ordered[first] + 0.5 * width < 0.5 * (low + high)
    return along if is_low else -along, float(within[first]) / len(ordered)
