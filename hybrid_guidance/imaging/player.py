"""Which frame of a recording is due, for whoever has a clock."""

from collections.abc import Sequence

import numpy as np

from hybrid_guidance.imaging.frame import Recording


def frame_times(recording: Recording) -> Sequence[float]:
    """Return the time of every frame, in seconds since the first.

    A recording that knows its times without decoding (attribute ``times``) is asked for
    them; any other one is read through once.

    Raises:
        SourceError: a frame of a recording without ``times`` cannot be read.
    """
    times: Sequence[float] | None = getattr(recording, 'times', None)
    return times if times is not None else [recording[i].time for i in range(len(recording))]


class Player:
    """Turns elapsed time into frames that are due, without a clock and without decoding.

    Frames are counted from 0 through all turns of the loop: frame ``count`` is
    ``locate(count)`` of the recording and is due at ``time_of(count)``. What became due since
    the last call is a ``range`` of counts, so a caller that shows only the last one knows how
    many it left out, however long it slept.

    Attributes:
        jumps: how often the clock has gone back.
    """

    def __init__(self, recording: Recording, loop: bool = True, start: float = 0.0) -> None:
        """Prepare to play.

        Args:
            recording: what to play.
            loop: start over ``recording.period`` seconds after each first frame.
            start: elapsed time, in seconds, at which the first frame is due.

        Raises:
            ValueError: times decrease, or a loop would not take longer than its last frame.
        """
        self._times = np.asarray(frame_times(recording), dtype=float)
        self._period = float(recording.period)
        self._loop = loop
        self._start = start
        self._next = 0
        self._last = -np.inf
        self.jumps = 0
        if self._times.size == 0 or np.any(np.diff(self._times) < 0.0):
            raise ValueError('a player needs at least one frame, in order of time')
        if loop and not self._period > self._times[-1]:
            raise ValueError(f'a loop of {self._period} s ends before its last frame, '
                             f'{self._times[-1]} s; correct the period of the recording')

    def due(self, elapsed: float) -> range:
        """Return the counts of the frames that became due since the last call.

        When the clock goes back, playing goes on where it was: the frame that was next stays
        as far away as it was, nothing repeats and nothing is left out.

        Args:
            elapsed: seconds on the caller's clock.
        """
        if elapsed < self._last:
            self._start += elapsed - self._last
            self.jumps += 1
        self._last = elapsed
        first, self._next = self._next, max(self._next, self._count_at(elapsed))
        return range(first, self._next)

    def locate(self, count: int) -> tuple[int, int]:
        """Return (turn of the loop, index in the recording) of a frame."""
        return divmod(count, self._times.size)

    def time_of(self, count: int) -> float:
        """Return the elapsed time, in seconds, at which a frame is due."""
        turn, index = self.locate(count)
        return float(self._start + turn * self._period + self._times[index])

    @property
    def next_time(self) -> float | None:
        """Elapsed time of the next frame, in seconds; None when there is none."""
        finished = not self._loop and self._next >= self._times.size
        return None if finished else self.time_of(self._next)

    def _count_at(self, elapsed: float) -> int:
        """Return how many frames are due at a time, from the beginning."""
        since = elapsed - self._start
        if since < 0.0:
            return 0
        turn = int(since // self._period) if self._loop else 0
        within = since - turn * self._period
        count = turn * self._times.size + int(np.searchsorted(self._times, within, 'right'))
        # time_of() rounds differently from this subtraction: a frame is due exactly when its
        # own time has come, or a caller that sleeps until then would find nothing.
        while self._has(count) and self.time_of(count) <= elapsed:
            count += 1
        while count > 0 and self.time_of(count - 1) > elapsed:
            count -= 1
        return count

    def _has(self, count: int) -> bool:
        return self._loop or count < self._times.size
