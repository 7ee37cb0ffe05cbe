"""A device's clock against ours, from when its messages arrive."""

from collections import deque

WINDOW_S = 10.0
"""How long a delay counts: the clocks of two computers part by less than 1 ms in that time."""

DOUBT_S = 1.0
"""A stamp that is off by more is not taken: the clock was set, or the line stood still."""

SETTLE_S = 1.0
"""Stamps that stay off for so long, by the same amount, mean that the clock was set."""


class DeviceClock:
    """Maps time stamps of a device to our clock.

    The least delay between stamp and arrival within ``WINDOW_S`` is taken for the difference
    between the clocks: a message can be late on its way, never early (Cristian, "Probabilistic
    clock synchronization", 1989). What remains is the least delay of the line itself, which a
    one-way message cannot show.

    A stamp that is more than ``DOUBT_S`` away from what is known is not mapped: of a message that
    waited in a line that stood still, and of a clock that was set, the first looks like the
    second. When all stamps stay away by one amount for ``SETTLE_S``, it was the clock.

    Attributes:
        offset_ns: our time minus the device's, in ns; None before the first stamp.
        jumps: how often the clock was found to be set.
        doubtful: how many stamps were not mapped.
    """

    def __init__(self) -> None:
        self._delays: deque[tuple[int, int]] = deque()
        self._strange: list[tuple[int, int]] = []
        self.offset_ns: int | None = None
        self.jumps = self.doubtful = 0

    def to_ours(self, device_s: float, arrival_ns: int) -> int | None:
        """Return a device's time stamp (s) on our clock (ns), or None where it is in doubt.

        Args:
            device_s: the stamp.
            arrival_ns: when the message had arrived, on our clock.
        """
        delay = arrival_ns - round(device_s * 1e9)
        known = self.offset_ns
        if known is not None and abs(delay - known) > DOUBT_S * 1e9:
            if not self._has_settled(delay, arrival_ns):
                self.doubtful += 1
                return None
            self._delays.clear()
            self.jumps += 1
        self._strange.clear()
        self._keep(delay, arrival_ns)
        self.offset_ns = self._delays[0][1]
        return round(device_s * 1e9) + self.offset_ns

    def _keep(self, delay: int, arrival: int) -> None:
        """Keep what can be the least delay of some window yet, in rising order."""
        while self._delays and self._delays[-1][1] >= delay:
            self._delays.pop()
        self._delays.append((arrival, delay))
        # Our clock can be set, too: what is then in the future is of no use either.
        while abs(arrival - self._delays[0][0]) > WINDOW_S * 1e9:
            self._delays.popleft()

    def _has_settled(self, delay: int, arrival: int) -> bool:
        strange = self._strange
        if strange and (abs(delay - strange[0][1]) > DOUBT_S * 1e9 / 2 or arrival < strange[-1][0]):
            strange.clear()
        strange.append((arrival, delay))
        if len(strange) > 3:
            # The first, and two of the last, tell all that is asked.
            del strange[1]
        return len(strange) == 3 and arrival - strange[0][0] >= SETTLE_S * 1e9
