"""A straight path from entry to target, and where the needle is along it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hybrid_guidance.geometry.rigid import inverse, pose_along, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform


class PlanError(ValueError):
    """A path that cannot be; the message says why and what to do."""


@dataclass(frozen=True)
class Path:
    """A straight path, in ``patient``.

    Attributes:
        entry: (3,) m, on the skin.
        target: (3,) m, where the tip shall be.
    """

    entry: Points
    target: Points

    def __post_init__(self) -> None:
        if not (np.all(np.isfinite(self.entry)) and np.all(np.isfinite(self.target))):
            raise PlanError('entry and target must be finite; click both again')
        if self.length < 1e-3:
            raise PlanError('entry and target are less than 1 mm apart; move one of them')

    @cached_property
    def length(self) -> float:
        """Metres from entry to target."""
        return float(np.linalg.norm(self.target - self.entry))

    @cached_property
    def direction(self) -> Array:
        """(3,) unit vector from entry to target."""
        return np.asarray((self.target - self.entry) / self.length)

    @cached_property
    def patient_T_plan(self) -> Transform:
        """(4, 4): origin at the target, +z from entry to target."""
        return pose_along(self.target, self.direction)

    def pose_at(self, depth: float) -> Transform:
        """Return the (4, 4) needle pose on the path, ``depth`` metres below the entry."""
        pose = self.patient_T_plan.copy()
        pose[:3, 3] = self.entry + depth * self.direction
        return pose

    def deviation(self, tip: Points) -> Points:
        """Return a (3,) point of ``patient`` in ``plan``: x, y lateral, -z still to go."""
        return transform_points(inverse(self.patient_T_plan), tip)

    def waypoints(self, spacing: float) -> list[Transform]:
        """Return needle poses from entry to target, at most ``spacing`` metres apart."""
        count = max(int(np.ceil(self.length / spacing)), 1) + 1
        return [self.pose_at(depth) for depth in np.linspace(0.0, self.length, count)]
