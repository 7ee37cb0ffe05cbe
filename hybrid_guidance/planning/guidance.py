"""From a path and the present estimate to the next needle pose to take."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import angle_between
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.planning.path import Path


class Phase(Enum):
    """What is being done."""

    APPROACH = 'approach'
    ALIGN = 'align'
    ADVANCE = 'advance'
    HOLD = 'hold'


@dataclass(frozen=True)
class GuidanceSettings:
    """When to do what.

    Attributes:
        standoff: how far outside the skin the approach ends, m.
        first_depth: how far the needle goes in before an image has shown it, m.
        dwell: how long an approach by eye is given, s.
        step: largest advance in one command, m.
        lateral_tolerance: sideways deviation that is corrected before advancing, m.
        angle_tolerance: deviation of the shaft that is corrected before advancing, rad.
        target_tolerance: distance at which the target counts as reached, m.
        release: distance at which a needle that was there is led again, m.
    """

    standoff: float = 0.015
    first_depth: float = 0.020
    dwell: float = 2.0
    step: float = 0.004
    lateral_tolerance: float = 0.0015
    angle_tolerance: float = 0.05
    target_tolerance: float = 0.0005
    release: float = 0.008


@dataclass(frozen=True)
class Command:
    """The next pose to take.

    Attributes:
        phase: what is being done.
        pose: (4, 4) needle pose in ``patient``.
        words: for the operator.
    """

    phase: Phase
    pose: Transform
    words: str


class Guidance:
    """Leads the needle along one path: approach, align, advance, hold.

    Args:
        path: where to.
        settings: when to do what.
    """

    def __init__(self, path: Path, settings: GuidanceSettings) -> None:
        self.path = path
        self.settings = settings
        self._started_ns: int | None = None
        self._held = False

    def by_eye(self, now_ns: int) -> Command:
        """Return the command while no image has shown the needle yet."""
        if self._started_ns is None:
            self._started_ns = now_ns
        if (now_ns - self._started_ns) * 1e-9 < self.settings.dwell:
            return Command(Phase.APPROACH, self.path.pose_at(-self.settings.standoff),
                           'bring the needle to the skin mark, aligned')
        depth = min(self.settings.first_depth, self.path.length / 2)
        return Command(Phase.ALIGN, self.path.pose_at(depth),
                       f'insert {depth * 1e3:.0f} mm, until ultrasound shows the needle')

    def by_image(self, needle: NeedleEstimate) -> Command:
        """Return the command from the present estimate (in ``patient``)."""
        settings = self.settings
        x, y, z = self.path.deviation(needle.tip)
        depth = self.path.length + z
        aside = float(np.hypot(x, y))
        angle = angle_between(needle.direction, self.path.direction)
        if self.reached(needle) or self._held:
            # Once there, nothing moves: at bone the visible end of an echo can fall millimetres
            # short of the tip, and following it would push the needle on.
            self._held = abs(z) < settings.release
            if self._held:
                return Command(Phase.HOLD, needle.pose, 'at the target')
        if depth < 0:
            return Command(Phase.APPROACH, self.path.pose_at(0.0), 'bring the tip to the entry')
        if aside > settings.lateral_tolerance or angle > settings.angle_tolerance:
            return Command(Phase.ALIGN, self.path.pose_at(depth),
                           f'align: {aside * 1e3:.1f} mm, {np.degrees(angle):.1f}° off the path')
        step = min(max(-z, -settings.step), settings.step)
        return Command(Phase.ADVANCE, self.path.pose_at(depth + step),
                       f'advance {-z * 1e3:.1f} mm')

    def reached(self, needle: NeedleEstimate) -> bool:
        """Tell whether the tip is at the target."""
        distance = float(np.linalg.norm(self.path.deviation(needle.tip)))
        return distance < self.settings.target_tolerance
