"""From observations of both modalities to one needle that several of them agree on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hybrid_guidance.fusion.needle_filter import NeedleFilter, Observation, Update


@dataclass
class _Track:
    """One hypothesis of where the needle is."""

    filter: NeedleFilter
    agreed: int = 0
    begun_ns: int = 0
    latest_ns: int = 0

    def add(self, observation: Observation) -> Update:
        update = self.filter.add(observation)
        if update.accepted:
            self.begun_ns = self.begun_ns or observation.stamp_ns
            self.latest_ns = max(self.latest_ns, observation.stamp_ns)
            self.agreed += 1
        return update


class NeedleFusion:
    """Keeps the needle that observations agree on, and one rival for when they turn against it.

    A needle counts once ``confirm`` observations agree. What it refuses feeds a rival; the rival
    takes its place when it is confirmed and nothing has fitted the needle meanwhile.

    Args:
        make: returns an empty filter.
        confirm: observations that must agree.
        recover_s: how long nothing may fit before a confirmed rival takes over, and how long a
            rival lives on nothing.
    """

    def __init__(self, make: Callable[[], NeedleFilter], confirm: int = 5,
                 recover_s: float = 0.4) -> None:
        self._make, self._confirm = make, confirm
        self._recover_ns = int(recover_s * 1e9)
        self._track, self._rival = _Track(make()), _Track(make())
        self._last: dict[str, Observation] = {}

    @property
    def filter(self) -> NeedleFilter:
        """The filter of the needle that counts, confirmed or not."""
        return self._track.filter

    @property
    def confirmed(self) -> bool:
        """Whether enough observations agree."""
        return self._track.agreed >= self._confirm

    def last(self, source: str) -> Observation | None:
        """Return what a source showed last of this needle, if it was believed."""
        return self._last.get(source)

    def add(self, observation: Observation) -> Update:
        """Take an observation; ``accepted`` only when it speaks of a confirmed needle."""
        update = self._track.add(observation)
        if not update.accepted:
            update = self._contradict(observation, update)
        if update.accepted:
            self._last[observation.source] = observation
            if not self.confirmed:
                return replace(update, accepted=False, state=None, reason=(
                    f'{self._track.agreed} of {self._confirm} observations that must agree'))
        return update

    def _contradict(self, observation: Observation, refused: Update) -> Update:
        rival, stamp = self._rival, observation.stamp_ns
        if rival.agreed and stamp - rival.latest_ns > self._recover_ns:
            rival = self._rival = _Track(self._make())
        update = rival.add(observation)
        unseen_ns = rival.latest_ns - max(self._track.latest_ns, rival.begun_ns)
        if not update.accepted or rival.agreed < self._confirm or (
                self.confirmed and unseen_ns < self._recover_ns):
            return refused
        self._track, self._rival = rival, _Track(self._make())
        self._last.clear()
        return replace(update, reason='the needle was found elsewhere; the estimate starts over')
