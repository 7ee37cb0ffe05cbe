"""The plan that counts, and how it changes: points that move, paths that are chosen."""

from collections.abc import Mapping

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.types import Points
from hybrid_guidance.planning.anatomy_map import Source
from hybrid_guidance.planning.candidates import Candidates, Task
from hybrid_guidance.planning.choice import Chooser, RankedPath
from hybrid_guidance.planning.clearance import Distance, true_distances
from hybrid_guidance.planning.guidance import Guidance, GuidanceSettings
from hybrid_guidance.planning.path import Path
from hybrid_guidance.planning.redirect import Redirect, Redirector
from hybrid_guidance.simulation.shapes import Shape

Choice = tuple[Candidates, tuple[RankedPath, ...]]
"""All judged paths, and the best few."""

_TWICE = 2
"""Looks in a row that must agree: one estimate may be an outlier."""


class Planner:
    """One path from entry to target at a time, and the guidance along it.

    Args:
        points: ``entry`` and ``target``, (3,) m in ``patient``.
        settings: of the guidance.
        chooser: searches the window round the entry; None where the entry stays.
        redirector: looks whether the target is in reach; None where no anatomy is known.

    Raises:
        PlanError: the two points make no path.
    """

    def __init__(self, points: dict[str, Points], settings: GuidanceSettings,
                 chooser: Chooser | None = None, redirector: Redirector | None = None) -> None:
        self._settings, self._chooser, self._redirector = settings, chooser, redirector
        self._doubted = 0
        self._window = points['entry']
        self._take(points)

    @property
    def path(self) -> Path:
        """The path that counts."""
        return self.guidance.path

    def _take(self, points: dict[str, Points]) -> None:
        self.guidance = Guidance(Path(points['entry'], points['target']), self._settings)
        self.points = points
        self._doubted = 0

    def look(self, needle: NeedleEstimate) -> Redirect | None:
        """Look whether a needle (in ``patient``) can still reach the target.

        If not, seen twice, the plan begins anew from where the needle is: draw back, then aim
        along another path. Where there is none the plan stays, and must not be followed.

        Returns:
            What to do, once; None as long as there is nothing to change.
        """
        if self._redirector is None or not self.guidance.left(needle):
            self._doubted = 0
            return None
        found = self._redirector.look(self.path, needle.tip, needle.direction)
        self._doubted = 0 if found is None else self._doubted + 1
        if found is None or self._doubted < _TWICE:
            return None
        self._doubted = 0
        if found.path is not None:
            self.guidance = Guidance(found.path, self._settings, found.withdraw)
            self.points = {**self.points, 'entry': found.path.entry}
        return found

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


def planner_in(task: Task, sources: Mapping[str, Source | Shape], settings: GuidanceSettings,
               choose: bool) -> tuple[Planner, dict[str, Distance]]:
    """Return the planner of a task in an anatomy, and how far each structure to avoid is.

    Args:
        task: the problem.
        sources: name to structure: the skin and all that is to be avoided; empty if unknown.
        settings: of the guidance.
        choose: whether the window round the entry is searched.
    """
    points = {'entry': task.window, 'target': task.target}
    if not sources:
        return Planner(points, settings), {}
    bone = sources['bone']
    kept = [name for name in task.avoid if name != 'bone' or not isinstance(bone, Shape)]
    distances = true_distances({name: sources[name] for name in kept}, *task.region())
    if isinstance(bone, Shape):
        # Near a solid its own field is right, and further off too small.
        distances['bone'] = bone.at
    chooser = Chooser(task, sources) if choose else None
    planner = Planner(points, settings, chooser, Redirector(task, distances))
    # Bone is often what a needle is to touch: it must keep off it on the way, at the end not.
    return planner, {name: distances[name] for name in kept if name != 'bone'}
