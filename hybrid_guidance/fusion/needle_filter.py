"""One filter for both modalities: where the needle is, and how surely.

An error-state Kalman filter (Sola, "Quaternion kinematics for the error-state Kalman filter",
2017; direction on the unit sphere) over the tip, the direction and the insertion speed, and over
the slow error of each sensor's calibration. Frame after frame repeats the same calibration
error, so averaging must not make it vanish: it is a state of its own.

Each observation enters in its own geometry through its covariance. Where that covariance is
blind (an X-ray along its ray, a slice across its plane) nothing is used, and no line here asks
which modality it was.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import perpendiculars, pose_along, skew
from hybrid_guidance.geometry.types import Array, Points, Transform

BLIND_ROTATION = 0.6
"""rad: a direction less sure than this says nothing that is linear enough to use."""

ROLL_VARIANCE = np.pi**2 / 3.0
"""rad²: of a uniform roll; a straight shaft looks the same from every side."""

TIP, DIRECTION, SPEED, CORE = slice(0, 3), slice(3, 5), 5, 6


@dataclass(frozen=True)
class Observation:
    """A needle as one image shows it, already in the filter's frame.

    Attributes:
        source: name of the sensor.
        stamp_ns: acquisition time.
        needle: pose and covariance (of the image and the tracker, without the calibration).
        mount: (4, 4) pose of the tracked body that carries the sensor, in the filter's frame.
    """

    source: str
    stamp_ns: int
    needle: NeedleEstimate
    mount: Transform


@dataclass(frozen=True)
class Motion:
    """How much can change between two images, as densities of white noise.

    Attributes:
        tip: m/√s, sideways and along.
        direction: rad/√s.
        speed: m/s/√s, insertion speed.
        calibration: share of the calibration's deviation that may drift in one second.
    """

    tip: float = 0.0005
    direction: float = 0.01
    speed: float = 0.006
    calibration: float = 0.02


@dataclass(frozen=True)
class State:
    """The filter at one time.

    Attributes:
        stamp_ns: when.
        tip: (3,) m.
        direction: (3,) unit.
        speed: m/s along the direction.
        errors: (n, 6) calibration error of each source, in its mount's axes (m, rad).
        covariance: (6 + 6 n, 6 + 6 n) of tip, direction (tangent plane), speed, errors.
    """

    stamp_ns: int
    tip: Points
    direction: Array
    speed: float
    errors: Array
    covariance: Array


@dataclass(frozen=True)
class Update:
    """What an observation did.

    Attributes:
        accepted: whether it was used.
        distance: normalised innovation squared of the tip, χ² with three degrees of freedom.
        reason: why not, in words.
        state: of the filter at the observation's time, when it was used.
    """

    accepted: bool
    distance: float = 0.0
    reason: str = ''
    state: State | None = None


@dataclass
class _Entry:
    observation: Observation
    state: State


class NeedleFilter:
    """Fuses observations in the order of their stamps, whatever the order they arrive in.

    Args:
        calibration: source to the (6, 6) covariance of ``mount -> sensor``, in the mount's axes.
        motion: process noise.
        gate: largest normalised innovation squared of the tip that is believed.
        horizon_s: how long observations are kept, so that a late one can take its place.
    """

    def __init__(self, calibration: Mapping[str, Array], motion: Motion | None = None,
                 gate: float = 25.0, horizon_s: float = 1.0) -> None:
        self._sources = tuple(calibration)
        self._calibration = [np.asarray(calibration[name]) for name in self._sources]
        self._motion = motion or Motion()
        self._gate = gate
        self._horizon_ns = int(horizon_s * 1e9)
        self._log: list[_Entry] = []

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
        index = bisect_right([entry.observation.stamp_ns for entry in self._log],
                             observation.stamp_ns)
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
        return update

    def predict(self, stamp_ns: int) -> State | None:
        """Return the state at a stamp, without changing anything; None before the first."""
        index = bisect_right([entry.state.stamp_ns for entry in self._log], stamp_ns)
        return self._predicted(self._log[index - 1].state, stamp_ns) if index else None

    def estimate(self, state: State) -> NeedleEstimate:
        """Return a state as a needle with its (6, 6) pose covariance."""
        first, second = perpendiculars(state.direction)
        # A step along `first` is a turn about `second`; along `second`, about -`first`.
        turn = np.zeros((6, state.covariance.shape[0]))
        turn[:3, TIP] = np.eye(3)
        turn[3:, DIRECTION] = np.column_stack([second, -first])
        covariance = turn @ state.covariance @ turn.T
        covariance[3:, 3:] += ROLL_VARIANCE * np.outer(state.direction, state.direction)
        return NeedleEstimate(pose_along(state.tip, state.direction), covariance)

    def _start(self, observation: Observation) -> Update:
        needle = observation.needle
        first, second = perpendiculars(needle.direction)
        turns = np.column_stack([second, -first])
        rotation = turns.T @ needle.covariance[3:, 3:] @ turns
        if np.linalg.eigvalsh(rotation)[-1] > BLIND_ROTATION**2:
            return Update(False, reason='one view leaves the direction open; waiting for another')
        size = CORE + 6 * len(self._sources)
        covariance = np.zeros((size, size))
        for index, block in enumerate(self._calibration):
            place = slice(CORE + 6 * index, CORE + 6 * index + 6)
            covariance[place, place] = block
        covariance[SPEED, SPEED] = 0.01**2
        # The needle is known no better than the calibration through which it was seen.
        measured = np.zeros((5, size))
        effect = self._effect(observation, self._sources.index(observation.source), size)
        measured[:3], measured[3:] = effect[:3], turns.T @ effect[3:]
        away = np.zeros((size, size))
        away[:5] = -measured
        away += np.eye(size)
        covariance = away @ covariance @ away.T
        pick = np.zeros((5, 6))
        pick[:3, :3], pick[3:, 3:] = np.eye(3), turns.T
        covariance[:5, :5] += pick @ needle.covariance @ pick.T
        state = State(observation.stamp_ns, needle.tip, needle.direction, 0.0,
                      np.zeros((len(self._sources), 6)), covariance)
        self._log.append(_Entry(observation, state))
        return Update(True, state=state)

    def _effect(self, observation: Observation, source: int, size: int) -> Array:
        """(6, size): how the source's calibration error moves what it shows."""
        rotation = observation.mount[:3, :3]
        lever = observation.needle.tip - observation.mount[:3, 3]
        effect = np.zeros((6, size))
        begin = CORE + 6 * source
        effect[:3, begin:begin + 3] = rotation
        effect[:3, begin + 3:begin + 6] = -skew(lever) @ rotation
        effect[3:, begin + 3:begin + 6] = rotation
        return effect

    def _predicted(self, state: State, stamp_ns: int) -> State:
        dt = (stamp_ns - state.stamp_ns) * 1e-9
        if dt == 0.0:
            return state
        size = state.covariance.shape[0]
        step = np.eye(size)
        step[TIP, DIRECTION] = dt * state.speed * np.column_stack(
            perpendiculars(state.direction))
        step[TIP, SPEED] = dt * state.direction
        covariance = step @ state.covariance @ step.T
        motion = self._motion
        noise = np.zeros(size)
        noise[TIP], noise[DIRECTION] = motion.tip**2, motion.direction**2
        noise[SPEED] = motion.speed**2
        for index, block in enumerate(self._calibration):
            begin = CORE + 6 * index
            noise[begin:begin + 6] = motion.calibration**2 * np.diag(block)
        covariance[np.diag_indices(size)] += noise * abs(dt)
        return State(stamp_ns, state.tip + dt * state.speed * state.direction,
                     state.direction, state.speed, state.errors, covariance)

    def _step(self, state: State, observation: Observation) -> tuple[State, Update]:
        state = self._predicted(state, observation.stamp_ns)
        residual, jacobian, noise = self._innovation(state, observation)
        spread = jacobian @ state.covariance @ jacobian.T + noise
        distance = float(residual[:3] @ np.linalg.solve(spread[:3, :3], residual[:3]))
        if distance > self._gate:
            return state, Update(False, distance, (
                f'{np.linalg.norm(residual[:3]) * 1e3:.1f} mm from where the needle should be, '
                f'{distance**0.5:.1f} σ'))
        gain = np.linalg.solve(spread, jacobian @ state.covariance).T
        change = gain @ residual
        keep = np.eye(len(change)) - gain @ jacobian
        covariance = keep @ state.covariance @ keep.T + gain @ noise @ gain.T
        state = self._corrected(state, change, covariance)
        return state, Update(True, distance, state=state)

    def _corrected(self, state: State, change: Array, covariance: Array) -> State:
        basis = np.column_stack(perpendiculars(state.direction))
        direction = state.direction + basis @ change[DIRECTION]
        direction /= np.linalg.norm(direction)
        # The tangent plane turned with the direction; its axes must follow.
        turned = np.eye(len(change))
        turned[DIRECTION, DIRECTION] = np.column_stack(perpendiculars(direction)).T @ basis
        return State(state.stamp_ns, state.tip + change[TIP], direction,
                     state.speed + float(change[SPEED]),
                     state.errors + change[CORE:].reshape(state.errors.shape),
                     turned @ covariance @ turned.T)

    def _innovation(self, state: State, observation: Observation) -> tuple[Array, Array, Array]:
        """Return residual (m,), jacobian (m, size) and noise (m, m).

        Three rows for the tip, then one for each axis that the shaft was seen to cross squarely.
        """
        needle = observation.needle
        source = self._sources.index(observation.source)
        effect = self._effect(observation, source, state.covariance.shape[0])
        axes = _seen_axes(needle)
        # The true shaft is perpendicular to `axis`; an error of rotation enters by `turn`.
        turn = np.cross(needle.direction, axes)
        select = np.zeros((3 + len(axes), 6))
        select[:3, :3], select[3:, 3:] = np.eye(3), turn
        jacobian = select @ effect
        jacobian[:3, TIP] += np.eye(3)
        jacobian[3:, DIRECTION] += axes @ np.column_stack(perpendiculars(state.direction))
        error = state.errors[source]
        expected = np.concatenate([state.tip, axes @ state.direction])
        expected += (select @ effect)[:, CORE + 6 * source:CORE + 6 * source + 6] @ error
        measured = np.concatenate([needle.tip, np.zeros(len(axes))])
        return measured - expected, jacobian, select @ needle.covariance @ select.T

    def _forget(self) -> None:
        oldest = self._log[-1].observation.stamp_ns - self._horizon_ns
        while len(self._log) > 1 and self._log[0].observation.stamp_ns < oldest:
            self._log.pop(0)


def _seen_axes(needle: NeedleEstimate) -> Array:
    """(m, 3), m <= 2: unit vectors that the shaft was seen to be perpendicular to."""
    first, second = perpendiculars(needle.direction)
    turns = np.stack([second, -first])
    variances, vectors = np.linalg.eigh(turns @ needle.covariance[3:, 3:] @ turns.T)
    seen = variances < BLIND_ROTATION**2
    return np.asarray((vectors.T @ np.stack([first, second]))[seen])
