"""What the stamps of one sensor's needles say of its connection, whatever the needles say.

A stamp that came before is a copy, one below the newest came late; and the time from a stamp to
its arrival, which a machine keeps within some ten milliseconds, steps where its clock does.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

OFF_S = 0.1
"""s by which stamps must be off for a second to be called so; the delay is known to 0.01 s."""

FUTURE_S = 0.02
"""s by which a stamp may be ahead of the clock: two clocks that NTP keeps together."""

_LEARN = 10
_REMEMBERED = 256
_SHOWN_NS = 3_000_000_000
_RESTART_NS = 10_000_000_000
_WINDOW_NS = 1_000_000_000
_SPARSE = 3


@dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
        kind: its name, the same each time.
        words: what, by how much, and what to do.
        grave: whether what is published cannot be relied on until somebody has done something.
    """

    kind: str
    words: str
    grave: bool = False


class Stream:
    """Watches the stamps of one source.

    Args:
        name: of the source.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._stamps: deque[int] = deque(maxlen=_REMEMBERED)
        self._known: set[int] = set()
        self._newest_ns: int | None = None
        self._copies = self._late = 0
        self._copied_ns = self._disordered_ns = -_SHOWN_NS
        self._usual: float | None = None
        self._first: list[float] = []
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=120)
        self.doubt_s = 0.0
        """By how much the last delay was unusual: its stamp may be so wrong."""

    @property
    def newest_ns(self) -> int | None:
        """The newest stamp; None before the first."""
        return self._newest_ns

    def arrived(self, stamp_ns: int, now_ns: int) -> bool:
        """Take the stamp of what has just arrived; tell whether it is no copy."""
        newest = self._newest_ns
        if newest is not None and stamp_ns < newest - _RESTART_NS:
            self.__init__(self._name)  # type: ignore[misc]
            newest = None
        if stamp_ns in self._known:
            self._copies, self._copied_ns = self._copies + 1, now_ns
            return False
        if len(self._stamps) == _REMEMBERED:
            self._known.discard(self._stamps[0])
        self._stamps.append(stamp_ns)
        self._known.add(stamp_ns)
        if newest is not None and stamp_ns < newest:
            self._late, self._disordered_ns = self._late + 1, now_ns
        else:
            self._newest_ns = stamp_ns
        self._measure(now_ns, (now_ns - stamp_ns) * 1e-9)
        return True

    def _measure(self, now_ns: int, delay: float) -> None:
        if self._usual is None:
            self._first.append(delay)
            if len(self._first) >= _LEARN:
                self._usual = float(np.median(self._first))
            elif len(self._first) < _SPARSE:
                return
        usual = self._usual if self._usual is not None else float(np.median(self._first))
        off = delay - usual
        self._recent.append((now_ns, delay, off))
        self.doubt_s = abs(off) if abs(off) > 0.5 * OFF_S else 0.0
        if self._usual is not None and not self.doubt_s:
            # A machine's load changes slowly, and its delay with it.
            self._usual += 0.01 * off

    @property
    def off_s(self) -> float:
        """By how much all stamps of the last second were off; 0: not all of them were."""
        if len(self._recent) < _SPARSE:
            return 0.0
        end = self._recent[-1][0]
        lately = [off for at, _, off in self._recent if end - at <= _WINDOW_NS]
        if len(lately) < _SPARSE:
            lately = [off for _, _, off in list(self._recent)[-_SPARSE:]]
        elif end - self._recent[0][0] < 0.9 * _WINDOW_NS:
            return 0.0  # A queue that empties all at once after a pause proves nothing.
        if min(lately) > OFF_S or max(lately) < -OFF_S:
            return float(np.median(lately))
        return 0.0

    @property
    def ahead_s(self) -> float:
        """By how much the last stamps were all in the future; 0: they were not."""
        last = [delay for _, delay, _ in list(self._recent)[-_SPARSE:]]
        return -max(last) if len(last) == _SPARSE and max(last) < -FUTURE_S else 0.0

    def faults(self, now_ns: int) -> list[Fault]:
        """Return what is wrong now."""
        found, name = [], self._name
        if self.ahead_s:
            found.append(Fault('stamps', (
                f'{name} stamps are off: {self.ahead_s:.2f} s in the future; set the clock of '
                'its computer (chrony, NTP), or its delay in the calibration file')))
        elif off := self.off_s:
            found.append(Fault('stamps', (
                f'{name} stamps are off by about {abs(off):.1f} s: needles arrive so much '
                f'{"later" if off > 0 else "sooner"} after them than before; see to the clock '
                'and the load of its computer')))
        if now_ns - self._copied_ns < _SHOWN_NS:
            found.append(Fault('duplicated', (
                f'{name} needles are duplicated ({self._copies} so far), each is used once; '
                'see who else publishes them')))
        if now_ns - self._disordered_ns < _SHOWN_NS:
            found.append(Fault('reordered', (
                f'{name} needles arrive out of order ({self._late} so far), they are used in '
                'the order of their stamps; see to the network')))
        return found
