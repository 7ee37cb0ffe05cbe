"""Whoever holds the needle, hand or robot: how it wanders, and what becomes of what is asked."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.small import length, squared
from hybrid_guidance.geometry.types import Array, Points


@dataclass(frozen=True)
class Motion:
    """How much can change between two images, as densities of white noise.

    Attributes:
        tip: m/√s, sideways.
        slip: m/√s, along the shaft, beside the speed.
        direction: rad/√s.
        speed: m/s/√s, insertion speed, where nobody is known to lead the needle.
        disobey: the same of a needle that is led, beside what is asked, where that is to hold.
        advancing: the same where it is to advance or withdraw by ``stride`` or more.
        stride: m.
        steady: share of ``tip`` and ``direction`` that is left while it is led, as long as its
            images show no more of it.
        obey: m/s, how fast a needle that is led goes where it is asked to.
        turn: rad/s, how fast it turns where it is asked to.
        idle: deviation of the share of what is asked that whoever holds it leaves undone.
        fickle: 1/√s, how that share changes.
        inexact: share by which each single move may go wrong beside it.
        linger: s, for how long it may go on to where it was asked to.
        pause: s, after which an unseen needle is thought to have stopped.
        calibration: share of the calibration's deviation that may drift in one second.
        blind: s, for which a needle keeps its place where the sensor is blind.
        breath: s, for which what is not known of a breath stays the same.
    """

    tip: float = 0.0008
    slip: float = 0.0003
    direction: float = 0.02
    speed: float = 0.010
    disobey: float = 0.001
    advancing: float = 0.0015
    stride: float = 0.001
    steady: float = 0.17
    obey: float = 0.006
    turn: float = 0.10
    idle: float = 0.5
    fickle: float = 0.05
    inexact: float = 0.1
    linger: float = 0.6
    pause: float = 0.25
    calibration: float = 0.02
    blind: float = 2.0
    breath: float = 1.0


@dataclass(frozen=True)
class Asked:
    """What a hand or a robot was asked to do, to the needle as it was shown.

    Attributes:
        stamp_ns: of the estimate that it was asked to change.
        heard_ns: from when on it may have been done.
        tip: (3,) m, the tip as it was shown.
        direction: (3,) unit, the shaft as it was shown.
        way: (3,) m, where to bring the tip from there.
        turn: (3,) change of the unit direction.
    """

    stamp_ns: int
    heard_ns: int
    tip: Points
    direction: Array
    way: Points
    turn: Array


@dataclass(frozen=True)
class Going:
    """Where a needle goes in a while, if all that is asked is done.

    Attributes:
        led: whether anything was asked.
        advance: m, the largest advance or withdrawal asked for.
        shift: (3,) m, of the tip.
        turn: (3,) change of the unit direction.
        shift_spread: (3, 3) m², by which each single move may go wrong.
        turn_spread: (3, 3).
    """

    led: bool
    advance: float
    shift: Array
    turn: Array
    shift_spread: Array
    turn_spread: Array


_STAYS = Going(False, 0.0, np.zeros(3), np.zeros(3), np.zeros((3, 3)), np.zeros((3, 3)))


class Holder:
    """Remembers what was asked, and foretells what becomes of it.

    The display shows a needle, somebody asks it to be elsewhere, and whoever holds it moves it
    by the difference. A display that was wrong by then is wrong by as much after the move.

    Args:
        motion: how fast what is asked is done, and for how long it is gone on with.
    """

    def __init__(self, motion: Motion) -> None:
        self._motion = motion
        self._asked: deque[Asked] = deque(maxlen=64)

    def ask(self, asked: Asked) -> None:
        """Take what is asked; it replaces what was asked before."""
        if self._asked and asked.heard_ns < self._asked[-1].heard_ns:
            self._asked.clear()  # The clock has jumped back.
        self._asked.append(asked)

    def going(self, tip: Points, direction: Array, begin_ns: int, end_ns: int,
              shown: Callable[[Asked], tuple[Points, Array]]) -> Going:
        """Foretell the way between two times.

        Args:
            tip: (3,) m, at the first.
            direction: (3,) unit, at the first.
            begin_ns: the first time.
            end_ns: the second.
            shown: what was asked to where tip and direction then were, as is known now.
        """
        parts = self._in_force(begin_ns, end_ns)
        if not parts:
            return _STAYS
        motion, begun, turned = self._motion, tip, direction
        shift_spread, turn_spread, advance = np.zeros((3, 3)), np.zeros((3, 3)), 0.0
        for asked, seconds in parts:
            then, pointing = shown(asked)
            way, turn = then + asked.way - tip, pointing + asked.turn - direction
            turn = turn - float(turn @ direction) * direction
            needed = max(length(way) / motion.obey, length(turn) / motion.turn)
            done = min(seconds / needed, 1.0) if needed > 0.0 else 1.0
            # What each part adds makes the whole of a move uncertain by a share of its length.
            doubt = motion.inexact**2 * (1.0 - (1.0 - done)**2)
            shift_spread += doubt * squared(way)
            turn_spread += doubt * squared(turn)
            tip, direction = tip + done * way, direction + done * turn
            advance = max(advance, abs(float(asked.way @ turned)))
        turn = direction - turned
        return Going(True, advance, tip - begun, turn - float(turn @ turned) * turned,
                     shift_spread, turn_spread)

    def _in_force(self, begin_ns: int, end_ns: int) -> list[tuple[Asked, float]]:
        """Return what was asked between two times, and for how many seconds of them."""
        linger, parts, until = int(self._motion.linger * 1e9), [], end_ns
        for asked in reversed(self._asked):
            first, last = max(asked.heard_ns, begin_ns), min(asked.heard_ns + linger, until)
            if first < last:
                parts.append((asked, (last - first) * 1e-9))
            until = min(until, asked.heard_ns)
            if until <= begin_ns:
                break
        return parts[::-1]
