"""The needle: a pose whose +z runs along the shaft to the tip, and what is known of it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hybrid_guidance.geometry.rigid import perpendiculars
from hybrid_guidance.geometry.types import Array, Points, Transform


@dataclass(frozen=True)
class NeedleEstimate:
    """A needle seen in one frame of reference, with its uncertainty.

    Attributes:
        pose: (4, 4); translation is the tip in metres, +z the insertion direction.
        covariance: (6, 6), m² and rad², in the axes of the parent frame; large where blind.
        probability: that this is the needle at all, 0 to 1.
    """

    pose: Transform
    covariance: Array
    probability: float = 1.0

    @property
    def tip(self) -> Points:
        """The (3,) tip in metres."""
        return np.asarray(self.pose[:3, 3])

    @property
    def direction(self) -> Array:
        """The (3,) unit insertion direction."""
        return np.asarray(self.pose[:3, 2])

    @cached_property
    def basis(self) -> Array:
        """(2, 3) unit vectors across the shaft."""
        return perpendiculars(self.direction)


def shaft(pose: Transform, length: float) -> Points:
    """Return the (2, 3) end points of a straight shaft: hub end, then tip."""
    return np.stack([pose[:3, 3] - length * pose[:3, 2], pose[:3, 3]])
