"""From a path and the present estimate to the next needle pose to take."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from hybrid_guidance.geometry.covariance import distance_deviation
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import (
    angle_between,
    cross,
    perpendiculars,
    rotation_from_vector,
)
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.planning.path import Path
from hybrid_guidance.procedure import MOST_BY_EYE

_GROWTH = 0.1
"""Share by which a variance may grow in a second and still be one that images keep down."""


class Phase(Enum):
    """What is being done."""

    APPROACH = 'approach'
    ALIGN = 'align'
    ADVANCE = 'advance'
    WITHDRAW = 'withdraw'
    HOLD = 'hold'


@dataclass(frozen=True)
class GuidanceSettings:
    """When to do what.

    Attributes:
        standoff: how far outside the skin the approach ends, m.
        first_depth: how far the needle goes in before an image has shown it, m.
        dwell: how long an approach by eye is given, s.
        by_eye: how fast a needle is surely moved by eye, m/s.
        patience: how long a needle that was inserted by eye may stay unseen, a breath at least, s.
        step: largest advance in one command, m.
        slow_down: largest advance as a share of the way still to go.
        lateral_tolerance: sideways deviation that is corrected before advancing, m.
        angle_tolerance: deviation of the shaft that is corrected before advancing, rad.
        depth_doubt: σ of the tip along the path above which it is not advanced, m.
        target_doubt: the same at the target; it grows by ``slow_down`` with the distance.
        lateral_doubt: σ of the tip, in a direction, above which it is not moved that way, m.
        angle_doubt: σ of the shaft, about an axis, above which it is not turned about it, rad.
        target_tolerance: distance at which the target counts as reached, m.
        reach: distance beside the path, or beyond the target, from which a needle is not led, m.
        angle_reach: angle to the path from which a needle is not led, rad.
        release: distance at which a needle that was there is led again, m.
    """

    standoff: float = 0.015
    first_depth: float = 0.020
    dwell: float = 2.0
    by_eye: float = 0.005
    patience: float = 5.0
    step: float = 0.004
    slow_down: float = 0.2
    lateral_tolerance: float = 0.0015
    angle_tolerance: float = 0.05
    depth_doubt: float = 0.0010
    target_doubt: float = 0.0006
    lateral_doubt: float = 0.0008
    angle_doubt: float = 0.03
    target_tolerance: float = 0.0005
    reach: float = 0.020
    angle_reach: float = 0.35
    release: float = 0.0008


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

    With something to withdraw, that comes first, on the needle's own track.

    Args:
        path: where to.
        settings: when to do what.
        withdraw: how far a needle that is in the body is drawn back along its shaft first, m.
    """

    def __init__(self, path: Path, settings: GuidanceSettings, withdraw: float = 0.0) -> None:
        self.path = path
        self.settings = settings
        self._withdraw = withdraw
        self._withdrawn_to: Points | None = None
        self._started_ns: int | None = None
        self._held = False
        self._doubt: tuple[int, float] | None = None
        self._acted_ns = 0

    def by_eye(self, now_ns: int) -> Command:
        """Return the command while no image has shown the needle yet."""
        if self._started_ns is None:
            self._started_ns = now_ns
        settings = self.settings
        depth = min(settings.first_depth, MOST_BY_EYE * self.path.length)
        elapsed = (now_ns - self._started_ns) * 1e-9 - settings.dwell
        if elapsed < 0.0:
            return Command(Phase.APPROACH, self.path.pose_at(-settings.standoff),
                           'bring the needle to the skin mark, aligned')
        inside = (settings.standoff + depth) / settings.by_eye + settings.patience
        if elapsed % (inside + depth / settings.by_eye) > inside:
            return Command(Phase.APPROACH, self.path.pose_at(0.0), (
                'no image shows the needle: draw it back to the skin and aim again, in the '
                'plane of the ultrasound image'))
        return Command(Phase.ALIGN, self.path.pose_at(depth),
                       f'insert {depth * 1e3:.0f} mm, until ultrasound shows the needle')

    def by_image(self, needle: NeedleEstimate, stamp_ns: int = 0, now_ns: int = 0) -> Command:
        """Return the command from the present estimate.

        Args:
            needle: in ``patient``.
            stamp_ns: of the needle.
            now_ns: when the command is given.
        """
        settings, news = self.settings, self._is_news(needle, stamp_ns, now_ns)
        back = self._still_back(needle)
        if back > settings.target_tolerance:
            pose = needle.pose.copy()
            pose[:3, 3] -= min(back, settings.step) * needle.direction
            return Command(Phase.WITHDRAW, pose,
                           f'withdraw {back * 1e3:.1f} mm along the needle')
        x, y, z = self.path.deviation(needle.tip)
        astray = self._astray(needle, float(np.hypot(x, y)), z)
        if astray:
            return Command(Phase.HOLD, needle.pose, (
                f'{astray} the path: check that this is the needle, bring it nearer by hand, '
                'or plan anew'))
        depth = self.path.length + z
        if self.reached(needle) or self._held:
            self._held = abs(z) < settings.release
            if self._held:
                return Command(Phase.HOLD, needle.pose, 'at the target')
        if depth < 0:
            return Command(Phase.APPROACH, self.path.pose_at(0.0), 'bring the tip to the entry')
        aside, turn = self._seen_deviation(needle, news)
        offset, angle = float(np.linalg.norm(aside)), float(np.linalg.norm(turn))
        straight = needle.pose.copy()
        straight[:3, :3] = rotation_from_vector(turn) @ straight[:3, :3]
        straight[:3, 3] += aside
        if offset > settings.lateral_tolerance or angle > settings.angle_tolerance:
            return Command(Phase.ALIGN, straight,
                           f'align: {offset * 1e3:.1f} mm, {np.degrees(angle):.1f}° off the path')
        step = self._step(z, distance_deviation(needle.covariance, self.path.direction))
        if step == 0.0:
            return Command(Phase.HOLD, straight, 'wait: the depth is in doubt; expose')
        straight[:3, 3] += min(max(-z, -step), step) * self.path.direction
        return Command(Phase.ADVANCE, straight, f'advance {-z * 1e3:.1f} mm')

    def left(self, needle: NeedleEstimate) -> bool:
        """Tell whether a needle in the body is surely off the path, by more than is tolerated."""
        settings, path = self.settings, self.path.direction
        x, y, z = self.path.deviation(needle.tip)
        if self.path.length + z < 0.0 or self._still_back(needle) > settings.target_tolerance:
            return False
        offset, angle = float(np.hypot(x, y)), angle_between(needle.direction, path)
        across = perpendiculars(path).T
        sigma, tilt = (float(np.linalg.eigvalsh(across.T @ block @ across)[-1]) ** 0.5
                       for block in (needle.covariance[:3, :3], needle.covariance[3:, 3:]))
        sure = sigma < settings.lateral_doubt and tilt < settings.angle_doubt
        return (sure and not self._astray(needle, offset, z)
                and (offset > settings.lateral_tolerance or angle > settings.angle_tolerance))

    def _still_back(self, needle: NeedleEstimate) -> float:
        """Return how far a needle is still to be drawn back, m."""
        if self._withdraw == 0.0:
            return 0.0
        if self._withdrawn_to is None:
            self._withdrawn_to = needle.tip - self._withdraw * needle.direction
        back = float((needle.tip - self._withdrawn_to) @ needle.direction)
        if back <= self.settings.target_tolerance:
            self._withdraw = 0.0
        return back

    def _astray(self, needle: NeedleEstimate, aside: float, beyond: float) -> str:
        """Return in words how far a needle is from one that could be led; '' if not."""
        angle = angle_between(needle.direction, self.path.direction)
        if max(aside, beyond) > self.settings.reach:
            return f'{max(aside, beyond) * 1e3:.0f} mm beside or beyond'
        return f'{np.degrees(angle):.0f}° off' if angle > self.settings.angle_reach else ''

    def _step(self, z: float, deviation: float) -> float:
        """Return how far to advance at once, z metres before or behind the target, at this σ.

        Slower towards the target, because what is seen lags behind what the hand does, and
        slower the less sure the depth is.
        """
        settings = self.settings
        doubt = min(settings.depth_doubt, settings.target_doubt + settings.slow_down * abs(z))
        # All of the step up to half the σ that stops it, then less in proportion.
        sure = min(max(2.0 - 2.0 * deviation / doubt, 0.0), 1.0)
        return sure * min(settings.step, settings.slow_down * abs(z)
                          + settings.target_tolerance / 2)

    def _is_news(self, needle: NeedleEstimate, stamp_ns: int, now_ns: int) -> bool:
        """Tell whether where the needle is least known it has been seen since it was corrected.

        As long as only the doubt of it grows, no image has shown what the last command did.
        """
        across = perpendiculars(self.path.direction).T
        variance = float(np.linalg.eigvalsh(across.T @ needle.covariance[:3, :3] @ across)[-1])
        before, self._doubt = self._doubt, (stamp_ns, variance)
        if before is None or variance <= before[1] * (
                1.0 + _GROWTH * max(stamp_ns - before[0], 0) * 1e-9):
            self._acted_ns = now_ns
        return stamp_ns <= self._acted_ns

    def _seen_deviation(self, needle: NeedleEstimate, news: bool) -> tuple[Array, Array]:
        """Return the (3,) m and the (3,) rotation vector that would bring the needle on the path.

        Only in directions that were seen well enough, and where the needle is least known only
        on news. A slice does not show that the needle moved across it; a hand that corrects what
        it cannot see goes on correcting for ever.
        """
        path = self.path.direction
        across = perpendiculars(path).T
        wanted = across @ across.T @ (self.path.target - needle.tip)
        turn = cross(needle.direction, path)
        settings, covariance = self.settings, needle.covariance
        return (_known(across, wanted, covariance[:3, :3], settings.lateral_doubt, news),
                _known(across, turn, covariance[3:, 3:], settings.angle_doubt, news))

    def reached(self, needle: NeedleEstimate) -> bool:
        """Tell whether the tip is at the target."""
        distance = float(np.linalg.norm(self.path.deviation(needle.tip)))
        return distance < self.settings.target_tolerance


def _known(across: Array, wanted: Array, covariance: Array, doubt: float, news: bool) -> Array:
    """Return the part of a wanted (3,) change, along (3, 2) axes, that is known to within σ.

    Without news, only along the axis that is known best.
    """
    variances, axes = np.linalg.eigh(across.T @ covariance @ across)
    seen = across @ axes[:, (variances < doubt**2) & (True, news)]
    return np.asarray(seen @ seen.T @ wanted)
