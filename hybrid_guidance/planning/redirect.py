"""From a needle that left its path: can the target still be reached, and if not, back how far.

A needle in the body is led straight on, or drawn back along its own track to where the straight
way to the target keeps every limit. So the ways to look at are a line of points, not a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.planning.candidates import Task
from hybrid_guidance.planning.clearance import Distance
from hybrid_guidance.planning.path import Path

_BACK, _ALONG = 0.001, 0.001
# Distances are no more exact than this, m.
_TOLERANCE = 0.0003


@dataclass(frozen=True)
class Steering:
    """How far a needle in the body can be led astray from its own line. This project's choice.

    Attributes:
        aside: what is put right by pushing sideways, m.
        turn: how far the shaft may be turned towards the target, rad.
        push: how far that may push the tissue aside at the skin, m.
    """

    aside: float = 0.004
    turn: float = 0.30
    push: float = 0.008


@dataclass(frozen=True)
class Redirect:
    """What to do with a needle from which the target cannot be reached straight on.

    Attributes:
        withdraw: how far to draw it back along its own shaft, m.
        path: the way to take then; None if it must leave the body.
        words: which limits refuse, by how much, and what to do.
    """

    withdraw: float
    path: Path | None
    words: str


class Redirector:
    """Looks whether a plan can still be carried out from where the needle is.

    Args:
        task: margins, needle and doubt; its target and window are not used.
        distances: name of each structure to avoid to its distance.
        steering: how a needle can be led.
    """

    def __init__(self, task: Task, distances: Mapping[str, Distance],
                 steering: Steering | None = None) -> None:
        self._task = task
        self._distances = dict(distances)
        self._steering = steering or Steering()
        self._planned: tuple[Path, dict[str, float]] | None = None

    def look(self, plan: Path, tip: Points, direction: Array) -> Redirect | None:
        """Return what to do if the target cannot be reached from here; None if it can.

        A structure may be passed no nearer than its margin, or than the plan passes it.

        Args:
            plan: the path that was approved.
            tip: (3,) m, in ``patient``.
            direction: (3,) unit, along the shaft to the tip.
        """
        depth = max(float((tip - plan.entry) @ plan.direction), 0.0)
        problems = self._misses(plan, tip, direction, depth, np.zeros(1), self._steering.aside)
        why = [text for values, text in problems if values[0] > 0.0]
        if not why:
            return None
        back = np.arange(0.0, max(depth, _BACK), _BACK)
        # What is aimed anew is aimed well: nothing is left to be pushed sideways.
        misses = self._misses(plan, tip, direction, depth, back, 0.0)
        good = np.flatnonzero(np.all([values <= 0.0 for values, _ in misses], axis=0))
        reason = 'the target is out of reach from the present tip: ' + '; '.join(why)
        if not good.size:
            return Redirect(depth, None, f'{reason}. Withdraw the needle and plan anew '
                                         '(plan/compute): no way along its track is free')
        away = float(back[good[0]])
        start = tip - away * direction
        way = (plan.target - start) / np.linalg.norm(plan.target - start)
        path = Path(start - max(depth - away, 0.0) * way, plan.target)
        return Redirect(away, path, f'{reason}. Withdraw it by {away * 1e3:.0f} mm along its '
                                    'track, then aim anew from there')

    def _misses(self, plan: Path, tip: Points, direction: Array, depth: float,
                back: Array, pushed: float) -> list[tuple[Array, str]]:
        """Return for each limit by how much (N,) drawn back needles miss it, and the first's words.

        Args:
            plan: the path that was approved.
            tip: (3,) m.
            direction: (3,) unit.
            depth: how deep the needle is, m.
            back: (N,) how far it is drawn back, m.
            pushed: what may be put right sideways, m.
        """
        steering, task = self._steering, self._task
        starts = tip - back[:, None] * direction
        ways = plan.target - starts
        forward = ways @ direction
        aside = np.linalg.norm(ways - forward[:, None] * direction, axis=1)
        turn = np.arctan2(np.maximum(aside - pushed, 0.0), forward)
        # A tip at the target need not go anywhere, whatever the arithmetic of angles says.
        turn[np.linalg.norm(ways, axis=1) < pushed] = 0.0
        push = (depth - back) * np.sin(np.minimum(turn, np.pi / 2))
        length = depth - back + np.linalg.norm(ways, axis=1)
        longest = max(task.needle_length - task.setup.limits['hub'], plan.length)
        found = [
            (turn - steering.turn, f'a turn of {np.degrees(turn[0]):.0f}°, the limit is '
                                   f'{np.degrees(steering.turn):.0f}°'),
            (push - steering.push, f'{push[0] * 1e3:.1f} mm of push at the skin, the limit is '
                                   f'{steering.push * 1e3:.1f} mm'),
            (length - longest, f'the needle is {(length[0] - longest) * 1e3:.1f} mm too short')]
        return found + self._near(plan, starts, ways)

    def _near(self, plan: Path, starts: Points, ways: Array) -> list[tuple[Array, str]]:
        """Return the same for each structure to avoid."""
        if self._planned is None or self._planned[0] is not plan:
            whole = (plan.target - plan.entry)[None]
            self._planned = plan, {name: float(self._clear(name, plan.entry[None], whole)[0])
                                   for name in self._distances}
        found = []
        for name in self._distances:
            margin = self._task.avoid.get(name, 0.0)
            limit = min(margin, self._planned[1][name])
            clear = self._clear(name, starts, ways)
            found.append((limit - _TOLERANCE - clear, (
                f'the way passes {name} at {clear[0] * 1e3:.1f} mm less needle and k·σ, '
                f'{(limit - clear[0]) * 1e3:.1f} mm short of the limit of {limit * 1e3:.1f} mm')))
        return found

    def _clear(self, name: str, starts: Points, ways: Array) -> Array:
        """Return (N,) the least distance on N ways, less needle and k·σ, m."""
        lengths = np.linalg.norm(ways, axis=1)
        count = int(np.ceil(float(lengths.max()) / _ALONG)) + 2
        share = np.linspace(0.0, 1.0, count)[:, None]
        distance = self._distances[name](starts + share[..., None] * ways)
        slack = self._task.doubt.slack((1.0 - share) * lengths) + self._task.needle_radius
        return np.asarray((distance - slack).min(axis=0))
