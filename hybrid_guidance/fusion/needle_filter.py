"""One filter for both modalities: where the needle is, and how surely.

An error-state Kalman filter (Sola, "Quaternion kinematics for the error-state Kalman filter",
2017; direction on the unit sphere) over the tip, the direction and the insertion speed, and over
the slow error of each sensor's calibration. Frame after frame repeats the same calibration
error, so averaging must not make it vanish: it is a state of its own.

Each observation enters in its own geometry through its covariance. Where that covariance is
blind (an X-ray along its ray, a slice across its plane) nothing is used, and no line here asks
which modality it was.

A shaft is easy to see, its tip is not: an echo ends where fascia crosses it and runs on where
bone lies behind it, for many frames alike. So the end of a shaft is a measurement of its own,
along the shaft only, that is either the tip or has nothing to do with it (probabilistic data
association, Bar-Shalom and Fortmann 1988, with a memory per sensor).
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hybrid_guidance.fusion.holder import Asked, Going, Holder, Motion
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import cross, perpendiculars, pose_along, skew
from hybrid_guidance.geometry.small import inverse, length, squared, widest
from hybrid_guidance.geometry.types import Array, Points, Transform

BLIND_ROTATION = 0.6
"""rad: a direction less sure than this says nothing that is linear enough to use."""

ROLL_VARIANCE = np.pi**2 / 3.0
"""rad²: of a uniform roll; a straight shaft looks the same from every side."""

TIP, DIRECTION, SPEED, IDLE, CORE = slice(0, 3), slice(3, 5), 5, 6, 7
_SIX = np.eye(6)
_BRIEFEST_NS = 1_000_000
"""No sensor has images closer than this; a variance divided by less would drown all others."""
_AGAINST = -0.3
"""Cosine between two directions below which they point to opposite ends of a line."""

_HEED = 0.05
"""How soon a needle is held for restless whose images fit worse than they should."""

FURTHEST = 0.010
"""m: no echo of a needle runs on further than this beyond an end that is sure, whatever σ says."""

OVERRULED = 3.0
"""σ along the shaft beyond which a sure end shows that the estimate was led astray."""


@dataclass(frozen=True)
class Observation:
    """A needle as one image shows it, already in the filter's frame.

    Attributes:
        source: name of the sensor.
        stamp_ns: acquisition time.
        needle: pose and covariance (of the image and the tracker, without the calibration).
        mount: (4, 4) the axes of the tracked body that carries the sensor, at the sensor's
            origin, in the filter's frame: about it the calibration's error turns.
        passing: (3, 3) m², what of the needle's covariance a better moment would not have.
    """

    source: str
    stamp_ns: int
    needle: NeedleEstimate
    mount: Transform
    passing: Array = field(default_factory=lambda: np.zeros((3, 3)))


@dataclass(frozen=True)
class Ending:
    """What the visible end of a shaft is worth in the images of one sensor.

    Attributes:
        tip: share of images in which it is the tip.
        memory: s, for which an end that is not the tip stays so, and fits by chance.
        stray: m, deviation of an end that is not the tip from the tip.
        sure: whether it overrules the estimate where the two differ along the shaft.
    """

    tip: float = 0.92
    memory: float = 1.0
    stray: float = 0.005
    sure: bool = False


@dataclass(frozen=True)
class State:
    """The filter at one time.

    Attributes:
        stamp_ns: when.
        tip: (3,) m.
        direction: (3,) unit.
        speed: m/s along the direction, beside what was asked.
        idle: share of what was asked that whoever holds the needle leaves undone.
        restless: how many times more than a steady needle it has been seen to wander.
        errors: (n, 6) calibration error of each source, in its mount's axes (m, rad).
        ends: (n,) probability that the end each source shows is the tip.
        seen_ns: (n,) when each source showed the needle last; 0: never.
        covariance: (7 + 6 n, 7 + 6 n) of tip, direction (tangent plane), speed, idle, errors.
    """

    stamp_ns: int
    tip: Points
    direction: Array
    speed: float
    idle: float
    restless: float
    errors: Array
    ends: Array
    seen_ns: tuple[int, ...]
    covariance: Array

    @cached_property
    def basis(self) -> Array:
        """(2, 3) unit vectors that span the tangent plane of the direction."""
        return perpendiculars(self.direction)


@dataclass(frozen=True)
class Update:
    """What an observation did.

    Attributes:
        accepted: whether it was used.
        distance: normalised innovation squared of the shaft's line: position and direction,
            each only where the sensor is not blind.
        reason: why not, in words.
        state: of the filter at the observation's time, when it was used.
        late: whether newer ones had been used before; they know more than ``state``.
    """

    accepted: bool
    distance: float = 0.0
    reason: str = ''
    state: State | None = None
    late: bool = False


@dataclass
class _Entry:
    observation: Observation
    state: State


class NeedleFilter:
    """Fuses observations in the order of their stamps, whatever the order they arrive in.

    Args:
        calibration: source to the (6, 6) covariance of ``mount -> sensor``, in the mount's axes.
        motion: process noise.
        endings: what the ends seen by a source are worth; sources not named get the default.
        gate: largest normalised innovation squared of the shaft's line that is believed.
        horizon_s: how long observations are kept, so that a late one can take its place.
    """

    def __init__(self, calibration: Mapping[str, Array], motion: Motion | None = None,
                 endings: Mapping[str, Ending] | None = None,
                 gate: float = 25.0, horizon_s: float = 1.0) -> None:
        self._sources = tuple(calibration)
        self._endings = [(endings or {}).get(name, Ending()) for name in self._sources]
        self._calibration = [np.asarray(calibration[name]) for name in self._sources]
        self._motion = motion = motion or Motion()
        self._size = CORE + 6 * len(self._sources)
        self._noise = np.zeros(self._size)
        self._noise[IDLE] = motion.fickle**2
        for index, block in enumerate(self._calibration):
            self._noise[_place(index)] = motion.calibration**2 * np.diag(block)
        self._identity = np.eye(self._size)
        self._gate = gate
        self._horizon_ns = int(horizon_s * 1e9)
        self._log: list[_Entry] = []
        self._holder = Holder(motion)

    def ask(self, stamp_ns: int, pose: Transform, heard_ns: int | None = None) -> None:
        """Take where whoever holds the needle is asked to bring it.

        A sensor that is blind sideways does not show whether it was done. What other sensors,
        and the same in other directions, show of it tells how much of what is asked is done.

        Args:
            stamp_ns: of the estimate that this comes of.
            pose: (4, 4) of the needle, in the filter's frame.
            heard_ns: when it was asked; by default at that stamp.
        """
        state = self.predict(stamp_ns)
        if state is not None:
            self._holder.ask(Asked(
                stamp_ns, stamp_ns if heard_ns is None else heard_ns, state.tip, state.direction,
                pose[:3, 3] - state.tip, pose[:3, 2] - state.direction))

    @property
    def state(self) -> State | None:
        """The newest state, or None before the first usable observation."""
        return self._log[-1].state if self._log else None

    def reset(self) -> None:
        """Forget everything."""
        self._log.clear()

    def add(self, observation: Observation) -> Update:
        """Take an observation at its own time; later ones are applied again after it."""
        if observation.source not in self._sources:
            return Update(False, reason=f'no calibration for {observation.source}')
        if not self._log:
            return self._start(observation)
        index = bisect_right(self._log, observation.stamp_ns, key=_stamp)
        if index == 0:
            return Update(False, reason='older than everything kept')
        state, update = self._step(self._log[index - 1].state, observation)
        if not update.accepted:
            return update
        later = [entry.observation for entry in self._log[index:]]
        self._log[index:] = [_Entry(observation, state)]
        for item in later:
            state, _ = self._step(state, item)
            self._log.append(_Entry(item, state))
        self._forget()
        return replace(update, late=True) if later else update

    def predict(self, stamp_ns: int) -> State | None:
        """Return the state at a stamp, without changing anything; None before the first."""
        index = bisect_right(self._log, stamp_ns, key=_stamp)
        return self.foretell(self._log[index - 1].state, stamp_ns) if index else None

    def foretell(self, state: State, stamp_ns: int) -> State:
        """Return where a needle in a state will be at a stamp, by how it moves and is led."""
        dt = (stamp_ns - state.stamp_ns) * 1e-9
        if dt == 0.0:
            return state
        motion, along, (first, second) = self._motion, state.direction, state.basis
        slowed = math.exp(-abs(dt) / motion.pause)
        going = self._holder.going(state.tip, along, state.stamp_ns, stamp_ns, self._shown)
        step = self._identity.copy()
        step[TIP, 3], step[TIP, 4] = dt * state.speed * first, dt * state.speed * second
        step[TIP, SPEED], step[SPEED, SPEED] = dt * along, slowed
        step[TIP, IDLE], step[DIRECTION, IDLE] = -going.shift, -(state.basis @ going.turn)
        covariance = step @ state.covariance @ step.T
        calm = state.restless * motion.steady if going.led else 1.0
        diagonal = covariance.reshape(-1)[::self._size + 1]
        diagonal += abs(dt) * self._noise
        diagonal[TIP] += abs(dt) * (calm * motion.tip)**2
        diagonal[DIRECTION] += abs(dt) * (calm * motion.direction)**2
        diagonal[SPEED] += abs(dt) * self._surge(going)**2
        covariance[TIP, TIP] += going.shift_spread + abs(dt) * (
            motion.slip**2 - (calm * motion.tip)**2) * squared(along)
        covariance[DIRECTION, DIRECTION] += state.basis @ going.turn_spread @ state.basis.T
        return self._moved(state, stamp_ns, going, slowed, covariance)

    def expect(self, observation: Observation) -> State:
        """Return the state as it would be after an observation, without taking it.

        Raises:
            ValueError: nothing was observed yet.
        """
        state = self.predict(observation.stamp_ns)
        if state is None:
            raise ValueError('there is no needle to expect anything of; add an observation first')
        return self._step(state, observation)[0]

    def estimate(self, state: State) -> NeedleEstimate:
        """Return a state as a needle with its (6, 6) pose covariance."""
        first, second = state.basis
        # A step along `first` is a turn about `second`; along `second`, about -`first`.
        turn = np.zeros((6, 5))
        turn[0, 0] = turn[1, 1] = turn[2, 2] = 1.0
        turn[3:, 3], turn[3:, 4] = second, -first
        covariance = turn @ state.covariance[:5, :5] @ turn.T
        covariance[3:, 3:] += ROLL_VARIANCE * squared(state.direction)
        return NeedleEstimate(pose_along(state.tip, state.direction), covariance)

    def _start(self, observation: Observation) -> Update:
        needle = observation.needle
        first, second = perpendiculars(needle.direction)
        turns = np.column_stack([second, -first])
        rotation = turns.T @ needle.covariance[3:, 3:] @ turns
        if np.linalg.eigvalsh(rotation)[-1] > BLIND_ROTATION**2:
            return Update(False, reason='one view leaves the direction open; waiting for another')
        size, source = self._size, self._sources.index(observation.source)
        covariance = np.zeros((size, size))
        for index, block in enumerate(self._calibration):
            covariance[_place(index), _place(index)] = block
        covariance[SPEED, SPEED], covariance[IDLE, IDLE] = 0.01**2, self._motion.idle**2
        # The needle is known no better than the calibration through which it was seen.
        measured = np.zeros((5, size))
        effect = _effect(observation)
        measured[:3, _place(source)] = effect[:3]
        measured[3:, _place(source)] = turns.T @ effect[3:]
        away = np.zeros((size, size))
        away[:5] = -measured
        away += np.eye(size)
        covariance = away @ covariance @ away.T
        pick = np.zeros((5, 6))
        pick[:3, :3], pick[3:, 3:] = np.eye(3), turns.T
        covariance[:5, :5] += pick @ needle.covariance @ pick.T
        ending = self._endings[source]
        covariance[TIP, TIP] += (1.0 - ending.tip) * ending.stray**2 * squared(
            needle.direction)
        state = State(observation.stamp_ns, needle.tip, needle.direction, 0.0, 0.0, 1.0,
                      np.zeros((len(self._sources), 6)),
                      np.array([ending.tip for ending in self._endings]),
                      _seen((0,) * len(self._sources), source, observation.stamp_ns), covariance)
        self._log.append(_Entry(observation, state))
        return Update(True, state=state)

    def _moved(self, state: State, stamp_ns: int, going: Going, slowed: float, covariance: Array
               ) -> State:
        """Return a state later on; ``covariance`` is taken over."""
        done, dt = 1.0 - state.idle, (stamp_ns - state.stamp_ns) * 1e-9
        tip = state.tip + dt * state.speed * state.direction + done * going.shift
        direction = state.direction
        if going.led:
            direction = direction + done * going.turn
            direction = direction * (1.0 / length(direction))
            _turned(covariance, state.basis, direction)
        return State(stamp_ns, tip, direction, slowed * state.speed, state.idle, state.restless,
                     state.errors, state.ends, state.seen_ns, covariance)

    def _shown(self, asked: Asked) -> tuple[Points, Array]:
        """Return where the needle was that somebody was asked to bring elsewhere."""
        index = bisect_left(self._log, asked.stamp_ns, key=_stamp)
        if index < len(self._log) and _stamp(self._log[index]) == asked.stamp_ns:
            state = self._log[index].state
            return state.tip, state.direction
        return asked.tip, asked.direction

    def _surge(self, going: Going) -> float:
        """Return how freely the insertion speed may change, m/s/√s."""
        motion = self._motion
        if not going.led:
            return motion.speed
        share = min(going.advance / motion.stride, 1.0)
        return motion.disobey + share * (motion.advancing - motion.disobey)

    def _step(self, state: State, observation: Observation) -> tuple[State, Update]:
        state = self.foretell(state, observation.stamp_ns)
        axes, source = _seen_axes(observation.needle), self._sources.index(observation.source)
        needle, effect = self._weakened(state, observation, source), _effect(observation)
        residual, jacobian, noise = self._line(state, needle, source, effect, axes)
        shared = jacobian @ state.covariance
        precision = inverse(shared @ jacobian.T + noise)
        distance = float(residual @ precision @ residual)
        if distance > self._gate:
            return state, Update(False, distance, (
                f'{np.linalg.norm(residual[:2]) * 1e3:.1f} mm beside where the needle should be, '
                f'{distance**0.5:.1f} σ'))
        if float(needle.direction @ state.direction) < _AGAINST:
            return state, Update(False, distance, (
                'in line with the needle, but it points the other way'))
        row, offset, noise_along = self._ending(state.tip, state.errors, needle, source, effect)
        stray = float(row @ state.covariance @ row) + noise_along + self._endings[source].stray**2
        ahead = self._endings[source].sure and offset < -FURTHEST
        if ahead or offset**2 > self._gate * stray:
            return state, Update(False, distance, (
                f'in line with the needle, but it ends {abs(offset) * 1e3:.0f} mm '
                f'{"beyond" if offset > 0.0 else "before"} it: another line'))
        gain = shared.T @ precision
        keep = self._identity - gain @ jacobian
        covariance = keep @ state.covariance @ keep.T + gain @ noise @ gain.T
        restless = state.restless * math.exp(_HEED * (distance / len(residual) - 1.0))
        state = self._end(state, gain @ residual, covariance, needle, source, effect,
                          min(max(restless, 1.0), 1.0 / self._motion.steady))
        return state, Update(True, distance, state=state)

    def _weakened(self, state: State, observation: Observation, source: int) -> NeedleEstimate:
        """Take from what was observed all that only repeats the image before.

        Where a slice is blind, a needle stays as far beside it from image to image, and so does
        what is not known of a breath; the mean of many knows that no better than one.
        """
        since = max(abs(observation.stamp_ns - state.seen_ns[source]), _BRIEFEST_NS)
        factor = math.sqrt(_repeated(self._motion.blind, since)) - 1.0
        needle = observation.needle
        blind = blind_axis(needle)
        turn = cross(blind, needle.direction)
        stretch = _SIX.copy()
        stretch[:3, :3] += factor * squared(blind)
        stretch[3:, 3:] += factor / max(float(turn @ turn), 1e-12) * squared(turn)
        covariance = stretch @ needle.covariance @ stretch.T
        covariance[:3, :3] += (_repeated(self._motion.breath, since) - 1.0) * observation.passing
        return NeedleEstimate(needle.pose, covariance, needle.probability)

    def _ending(self, tip: Points, errors: Array, needle: NeedleEstimate, source: int,
                effect: Array) -> tuple[Array, float, float]:
        """Return row (size,) of the visible end along the shaft, how far off it is, its noise."""
        along, row = needle.direction, np.zeros(self._size)
        row[TIP], row[_place(source)] = along, along @ effect[:3]
        offset = float(along @ (needle.tip - tip) - row[_place(source)] @ errors[source])
        return row, offset, float(along @ needle.covariance[:3, :3] @ along)

    def _end(self, state: State, change: Array, covariance: Array, needle: NeedleEstimate,
             source: int, effect: Array, restless: float) -> State:
        """Take the visible end of the shaft, which may be the tip, after its line.

        Args:
            state: before its line was taken.
            change: (size,) by the line.
            covariance: (size, size) after the line.
            needle: what was seen.
            source: by which.
            effect: (6, 6) of its calibration's error.
            restless: how much the needle is seen to wander, with this image.
        """
        ending = self._endings[source]
        row, offset, noise = self._ending(
            state.tip + change[TIP], state.errors + change[CORE:].reshape(state.errors.shape),
            needle, source, effect)
        known = row @ covariance
        before = float(known @ row)
        spread = before + noise
        if ending.sure and offset**2 > OVERRULED**2 * spread:
            # The two cannot both be right, and this end is: the estimate is as wrong as it shows.
            covariance += (offset**2 / before - 1.0) / before * squared(known)
            before, known = offset**2, known * offset**2 / before
            spread = before + noise
        trust = min(max(float(state.ends[source]), 1.0 - ending.tip), ending.tip)
        tip = trust * _density(offset, spread)
        belief = tip / (tip + (1.0 - trust) * _density(offset, spread + ending.stray**2))
        # Lost at once, trust is regained slowly: the same stray end is seen again and again.
        since = (state.stamp_ns - state.seen_ns[source]) * 1e-9
        if belief > trust:
            belief = trust + (belief - trust) * min(since / ending.memory, 1.0)
        gain = known / spread
        shrunk = belief * (1.0 - belief) * offset**2 - belief * spread
        covariance += shrunk * squared(gain)
        ends = state.ends.copy()
        ends[source] = belief
        return _corrected(state, change + belief * offset * gain, covariance, ends,
                          _seen(state.seen_ns, source, state.stamp_ns), restless)

    def _line(self, state: State, needle: NeedleEstimate, source: int, effect: Array, axes: Array
              ) -> tuple[Array, Array, Array]:
        """Return residual (m,), jacobian (m, size) and noise (m, m) of the shaft's line.

        Two rows for the tip across the shaft, then one for each axis that the shaft was seen to
        cross squarely.
        """
        # The true shaft is perpendicular to `axis`; an error of rotation enters by `turn`.
        across = needle.basis
        select = np.zeros((2 + len(axes), 6))
        select[:2, :3], select[2:, 3:] = across, axes @ skew(needle.direction).T
        jacobian = np.zeros((len(select), self._size))
        jacobian[:, _place(source)] = select @ effect
        residual = -(jacobian[:, _place(source)] @ state.errors[source])
        residual[:2] += across @ (needle.tip - state.tip)
        residual[2:] -= axes @ state.direction
        jacobian[:2, TIP] = across
        jacobian[2:, DIRECTION] = axes @ state.basis.T
        return residual, jacobian, select @ needle.covariance @ select.T

    def _forget(self) -> None:
        oldest = self._log[-1].observation.stamp_ns - self._horizon_ns
        while len(self._log) > 1 and self._log[0].observation.stamp_ns < oldest:
            self._log.pop(0)


def _repeated(lasting: float, since_ns: float) -> float:
    """Return by what to multiply the variance of an error that is seen again and again.

    White noise of 2 τ / Δt times the variance tells as much as an error that lasts for τ does when
    it is seen every Δt.
    """
    return max(2e9 * lasting / since_ns, 1.0)


def _place(source: int) -> slice:
    """Return where a source's calibration error is in the state."""
    return slice(CORE + 6 * source, CORE + 6 * source + 6)


def _seen(before: tuple[int, ...], source: int, stamp_ns: int) -> tuple[int, ...]:
    """Return when each source showed the needle last, once one has shown it again."""
    return (*before[:source], stamp_ns, *before[source + 1:])


def blind_axis(needle: NeedleEstimate) -> Array:
    """Return the (3,) unit axis along which an image says least of the shaft's place.

    How surely its end was seen has nothing to do with that: a slice is blind across itself, also
    where the end is lost. Only a ray may run along the shaft, and it is blind by far more.
    """
    covariance, along = needle.covariance[:3, :3], needle.direction
    blind = widest(covariance)
    if abs(float(blind @ along)) < 0.7 or float(blind @ covariance @ blind) > FURTHEST**2:
        return blind
    aside = np.eye(3) - squared(along)
    return widest(aside @ covariance @ aside)


def _effect(observation: Observation) -> Array:
    """Return the (6, 6) of how its source's calibration error moves what was observed."""
    rotation = observation.mount[:3, :3]
    lever = observation.needle.tip - observation.mount[:3, 3]
    effect = np.zeros((6, 6))
    effect[:3, :3] = effect[3:, 3:] = rotation
    effect[:3, 3:] = -skew(lever) @ rotation
    return effect


def _turned(covariance: Array, basis: Array, direction: Array) -> None:
    """Let the axes of a covariance follow the tangent plane that turned with the direction."""
    turn = perpendiculars(direction) @ basis.T
    covariance[DIRECTION] = turn @ covariance[DIRECTION]
    covariance[:, DIRECTION] = covariance[:, DIRECTION] @ turn.T


def _corrected(state: State, change: Array, covariance: Array, ends: Array,
               seen_ns: tuple[int, ...], restless: float) -> State:
    """Return a state changed by what was found; ``covariance``, of before, is taken over."""
    basis = state.basis
    direction = state.direction + change[DIRECTION] @ basis
    direction *= 1.0 / length(direction)
    _turned(covariance, basis, direction)
    return State(state.stamp_ns, state.tip + change[TIP], direction,
                 state.speed + float(change[SPEED]), state.idle + float(change[IDLE]), restless,
                 state.errors + change[CORE:].reshape(state.errors.shape),
                 ends, seen_ns, covariance)


def _stamp(entry: _Entry) -> int:
    """Return when an image was taken."""
    return entry.observation.stamp_ns


def _density(offset: float, variance: float) -> float:
    """Return the normal density at an offset, up to a constant."""
    return math.exp(-0.5 * offset**2 / variance) / math.sqrt(variance)


def _seen_axes(needle: NeedleEstimate) -> Array:
    """(m, 3), m <= 2: unit vectors that the shaft was seen to be perpendicular to."""
    first, second = needle.basis
    turns = np.array([second, -first])
    (a, b), (_, d) = (turns @ needle.covariance[3:, 3:] @ turns.T).tolist()
    # The two principal axes lie this far from the first, and at right angles to that.
    angle = 0.5 * math.atan2(2.0 * b, a - d)
    cosine, sine = math.cos(angle), math.sin(angle)
    mean, half = 0.5 * (a + d), 0.5 * math.hypot(a - d, 2.0 * b)
    axes = np.array([[-sine, cosine], [cosine, sine]]) @ needle.basis
    return axes[:(mean - half < BLIND_ROTATION**2) + (mean + half < BLIND_ROTATION**2)]
