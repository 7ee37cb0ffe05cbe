"""Needles as the simulated images see them."""

from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.geometry import needle as segment
from hybrid_guidance.geometry.rigid import pose_along
from hybrid_guidance.geometry.types import Points, Transform


@dataclass(frozen=True)
class Needle:
    """A straight needle with a hub.

    Attributes:
        pose: (4, 4) patient_T_needle; origin at the tip, +z from hub to tip.
        diameter: outer diameter of the shaft, metres.
        length: from the tip to the hub, metres.
        bore: inner diameter, metres; zero with the stylet in place.
        hub_diameter: metres.
        hub_length: metres, behind the shaft.
        hub_steel: steel that attenuates as much as the hub's material, as a fraction of its
            volume (polymer round a steel insert).
    """

    pose: Transform
    diameter: float
    length: float
    bore: float = 0.0
    hub_diameter: float = 0.006
    hub_length: float = 0.016
    hub_steel: float = 0.08

    @property
    def shaft(self) -> Points:
        """The (2, 3) ends of the shaft in ``patient``: hub end, then tip."""
        return segment.shaft(self.pose, self.length)

    def at(self, pose: Transform) -> 'Needle':
        """Return the same needle at another (4, 4) patient_T_needle."""
        return replace(self, pose=pose)


def needle_on_path(entry: Points, target: Points, depth: float, diameter: float,
                   length: float) -> Needle:
    """Return a needle on the straight path from entry to target, its tip ``depth`` inside.

    Args:
        entry: (3,) metres, in ``patient``.
        target: (3,) metres, in ``patient``.
        depth: metres from the entry to the tip; negative while it is still outside.
        diameter: metres.
        length: metres.
    """
    direction = np.asarray(target, dtype=float) - entry
    unit = direction / np.linalg.norm(direction)
    return Needle(pose_along(entry + depth * unit, direction), diameter, length)
