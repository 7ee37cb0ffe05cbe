"""How unsure the place of a needle against the anatomy is."""

from dataclasses import dataclass

import numpy as np

from hybrid_guidance.geometry.types import Array


@dataclass(frozen=True)
class Doubt:
    """How unsure the place of the needle against the anatomy is.

    Attributes:
        sigmas: k, how many σ are taken off a distance.
        tip: σ of the tip estimate in its worst direction, m.
        registration: σ of the registration at the target in its worst direction, m.
        turn: σ of the registration's rotation about its worst axis, rad; it counts with the
            distance from the target.
    """

    sigmas: float = 2.0
    tip: float = 0.0003
    registration: float = 0.0003
    turn: float = 0.005

    def slack(self, from_target: Array) -> Array:
        """Return k·σ in m at (...,) distances from the target in m."""
        return np.asarray(self.sigmas * np.sqrt(
            self.tip**2 + self.registration**2 + (self.turn * from_target) ** 2))

    @classmethod
    def of(cls, sigmas: float, tip: Array, registration: Array) -> 'Doubt':
        """Return the doubt of (6, 6) covariances of the tip and of the registration at the target.

        Each counts with the σ of its worst direction.
        """
        def worst(block: Array) -> float:
            return float(max(np.linalg.eigvalsh(block)[-1], 0.0) ** 0.5)
        return cls(sigmas, worst(tip[:3, :3]), worst(registration[:3, :3]),
                   worst(registration[3:, 3:]))
