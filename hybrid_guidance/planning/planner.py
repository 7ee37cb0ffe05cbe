"""The plan that counts, and how it changes: points that move, paths that are chosen."""

from hybrid_guidance.geometry.types import Points
from hybrid_guidance.planning.candidates import Candidates
from hybrid_guidance.planning.choice import Chooser, RankedPath
from hybrid_guidance.planning.guidance import Guidance, GuidanceSettings
from hybrid_guidance.planning.path import Path

Choice = tuple[Candidates, tuple[RankedPath, ...]]
"""All judged paths, and the best few."""


class Planner:
    """One path from entry to target at a time, and the guidance along it.

    Args:
        points: ``entry`` and ``target``, (3,) m in ``patient``.
        settings: of the guidance.
        chooser: searches the window round the entry; None where the entry stays.

    Raises:
        PlanError: the two points make no path.
    """

    def __init__(self, points: dict[str, Points], settings: GuidanceSettings,
                 chooser: Chooser | None = None) -> None:
        self._settings, self._chooser = settings, chooser
        self._window = points['entry']
        self._take(points)

    @property
    def path(self) -> Path:
        """The path that counts."""
        return self.guidance.path

    def _take(self, points: dict[str, Points]) -> None:
        self.guidance = Guidance(Path(points['entry'], points['target']), self._settings)
        self.points = points

    def move(self, name: str, point: Points) -> None:
        """Move ``entry`` (and the window round it) or ``target`` to (3,) m in ``patient``.

        Raises:
            PlanError: no path would be left; nothing has changed.
        """
        self._take({**self.points, name: point})
        if name == 'entry':
            self._window = point

    def compute(self) -> Choice | None:
        """Begin the plan anew, at the best entry of the window where there is a choice.

        Raises:
            PlanError: no path keeps every limit; the message says which refuses, by how much.
        """
        found = (None if self._chooser is None
                 else self._chooser.choose(self.points['target'], self._window))
        self._take(self.points if found is None
                   else {**self.points, 'entry': found[1][0].path.entry})
        return found
