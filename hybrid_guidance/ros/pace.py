"""Which frames to look at, when not all of them are worth it."""


class Pace:
    """Lets frames pass at no more than a rate, by their stamps. Keeps state: one for each stream.

    A little early is no reason to leave a frame out: stamps jitter.
    """

    def __init__(self) -> None:
        self._last_ns: int | None = None

    def is_due(self, stamp_ns: int, rate: float) -> bool:
        """Tell whether a frame is to be looked at; then it counts as looked at.

        Args:
            stamp_ns: of the frame.
            rate: Hz, at most.
        """
        # A stamp before the last one: the clock, or a recording, has started over.
        if self._last_ns is not None and 0 <= stamp_ns - self._last_ns < 0.9e9 / rate:
            return False
        self._last_ns = stamp_ns
        return True
