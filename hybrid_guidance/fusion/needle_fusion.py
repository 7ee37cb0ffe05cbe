"""From observations of both modalities to one needle that several of them agree on."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from hybrid_guidance.fusion.needle_filter import NeedleFilter, Observation, Update
from hybrid_guidance.geometry.types import Points, Transform


@dataclass
class _Track:
    """One hypothesis of where the needle is."""

    filter: NeedleFilter
    agreed: int = 0
    shown_ns: dict[str, int] = field(default_factory=dict)
    begun_ns: int = 0
    latest_ns: int = 0

    @property
    def sources(self) -> set[str]:
        """Which have shown it."""
        return set(self.shown_ns)

    def add(self, observation: Observation) -> Update:
        update = self.filter.add(observation)
        if update.accepted:
            self.begun_ns = self.begun_ns or observation.stamp_ns
            self.latest_ns = max(self.latest_ns, observation.stamp_ns)
            self.agreed += 1
            self.shown_ns[observation.source] = max(
                self.shown_ns.get(observation.source, 0), observation.stamp_ns)
        return update


class NeedleFusion:
    """Keeps the needle that observations agree on, and one rival for when they turn against it.

    A needle counts once ``confirm`` observations agree and every source in ``needed`` has shown
    it: fascia can look like a needle in ultrasound, a catheter can in X-ray. What it refuses
    feeds a rival; the rival takes its place when it is found as often and nothing has fitted the
    needle meanwhile, or when all sources show the rival and one of them the needle no more. (An
    X-ray along the slice shows all that is in the slice as one line.)

    Args:
        make: returns an empty filter.
        needed: sources that must have shown the needle.
        confirm: observations that must agree.
        recover_s: how long nothing may fit before a confirmed rival takes over, and how long a
            rival lives on nothing.
    """

    def __init__(self, make: Callable[[], NeedleFilter], needed: Collection[str] = (),
                 confirm: int = 5, recover_s: float = 0.4) -> None:
        self._make, self._needed, self._confirm = make, frozenset(needed), confirm
        self._recover_ns = int(recover_s * 1e9)
        self._track, self._rival = _Track(make()), _Track(make())
        self._last: dict[str, Observation] = {}
        self._last_tip: dict[str, Points] = {}
        self._refused_ns: dict[str, int] = {}
        self._vain: dict[str, tuple[int, int]] = {}

    @property
    def filter(self) -> NeedleFilter:
        """The filter of the needle that counts, confirmed or not."""
        return self._track.filter

    @property
    def confirmed(self) -> bool:
        """Whether enough observations agree, of every source needed."""
        return self.found and self._needed <= self._track.sources

    @property
    def found(self) -> bool:
        """Whether enough observations agree, of whatever source."""
        return self._track.agreed >= self._confirm

    @property
    def latest_ns(self) -> int:
        """When this needle was seen last; 0: never."""
        return self._track.latest_ns

    def refused(self, source: str, since_ns: int) -> bool:
        """Tell whether a source has contradicted this needle since then."""
        return self._refused_ns.get(source, since_ns - 1) >= since_ns

    def in_vain(self, source: str) -> tuple[int, int]:
        """Return how many images of a source in a row have not shown this needle, and the last."""
        return self._vain.get(source, (0, 0))

    def taken(self, source: str, stamp_ns: int) -> None:
        """Take that a source has an image, whatever it shows."""
        self._vain[source] = self.in_vain(source)[0] + 1, stamp_ns

    def last(self, source: str) -> Observation | None:
        """Return what a source showed last of this needle, if it was believed."""
        return self._last.get(source)

    def last_tip(self, source: str) -> Points | None:
        """Return the (3,) tip as it was known when a source showed this needle last."""
        return self._last_tip.get(source)

    def ask(self, stamp_ns: int, pose: Transform, heard_ns: int) -> None:
        """Take where whoever holds the needle is asked to bring it: see ``NeedleFilter.ask``.

        Nobody has seen a needle that is not confirmed. Who is led by eye meanwhile goes to where
        he is asked to, not by as much as it lies beside an estimate.
        """
        if self.confirmed:
            self.filter.ask(stamp_ns, pose, heard_ns)

    def restart(self) -> None:
        """Forget the needle, because what it was made of has been found wrong."""
        self._begin(_Track(self._make()))

    def add(self, observation: Observation) -> Update:
        """Take an observation; ``accepted`` only when it speaks of a confirmed needle."""
        update = self._track.add(observation)
        if update.accepted and self._rival.agreed >= self._confirm:
            self._rival.add(observation)
        if not update.accepted:
            update = self._contradict(observation, update)
        if not update.accepted:
            self._refused_ns[observation.source] = observation.stamp_ns
            return update
        self._last[observation.source] = observation
        self._vain.pop(observation.source, None)
        if update.state is not None:
            self._last_tip[observation.source] = update.state.tip
        self._refused_ns.pop(observation.source, None)
        return update if self.confirmed else replace(
            update, accepted=False, state=None, reason=self._open())

    def _begin(self, track: _Track) -> None:
        self._track, self._rival = track, _Track(self._make())
        self._last.clear()
        self._last_tip.clear()
        self._refused_ns.clear()
        self._vain.clear()

    def _open(self) -> str:
        missing = ', '.join(sorted(self._needed - self._track.sources))
        if self.found:
            return f'only one modality shows this needle; {missing} does not (yet)'
        return f'{self._track.agreed} of {self._confirm} observations that must agree'

    def _is_better(self, rival: _Track) -> bool:
        """Tell whether all have shown a rival, and one of them has turned to it from the needle."""
        shown_ns = self._track.shown_ns
        return self._needed <= rival.sources and (not self.confirmed or any(
            rival.shown_ns[name] - shown_ns[name] > self._recover_ns for name in self._needed))

    def _contradict(self, observation: Observation, refused: Update) -> Update:
        rival, stamp = self._rival, observation.stamp_ns
        if rival.agreed and stamp - rival.latest_ns > self._recover_ns:
            rival = self._rival = _Track(self._make())
        update = rival.add(observation)
        unseen_ns = rival.latest_ns - max(self._track.latest_ns, rival.begun_ns)
        if not update.accepted or rival.agreed < self._confirm or (
                self.found and unseen_ns < self._recover_ns and not self._is_better(rival)):
            return refused
        self._begin(rival)
        return replace(update, reason='the needle was found elsewhere; the estimate starts over')
