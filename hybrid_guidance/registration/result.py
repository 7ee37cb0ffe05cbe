"""What every registration says: where, how sure, and whether it may be used.

A wrong registration looks right. So a result carries the chance that it is good enough at the
target, and reasons in words; only an accepted one may take another's place.
"""

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np

from hybrid_guidance.geometry import covariance as covariances
from hybrid_guidance.geometry.types import Array, Points, Transform

LIMIT = 0.003
"""How far off the target a registration may be, metres, where nothing else is asked for."""

# 1 m and half a turn: what is known before anything was measured. Keeps information invertible.
_PRIOR = np.array([1.0] * 3 + [1.0 / np.pi] * 3) ** 2


class RegistrationError(Exception):
    """Input that no registration can be made of; the message says what is wrong and the cure."""


@dataclass(frozen=True)
class Registration:
    """The pose of one frame in another, and what it is worth.

    Attributes:
        transform: (4, 4) ``fixed_T_moving``.
        covariance: (6, 6), m² and rad², in ROS's order and in the axes of ``fixed``.
        target: (3,) metres, in ``moving``: where it has to be good.
        cost: what was minimised; its meaning is the method's.
        probability: that the error at the target is below the limit asked for, 0 to 1.
        reasons: why it is refused, in words with the cure; none where it is accepted.
    """

    transform: Transform
    covariance: Array
    target: Points
    cost: float
    probability: float
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether it may be used."""
        return not self.reasons

    @property
    def holds(self) -> bool:
        """Whether it is right as far as its covariance says."""
        return self.accepted

    @property
    def target_covariance(self) -> Array:
        """The (3, 3) covariance of the target, m², in ``fixed``."""
        return covariances.of_point(self.transform, self.covariance, self.target)

    @property
    def target_error(self) -> float:
        """Expected root mean square error at the target, metres."""
        return float(np.sqrt(np.trace(self.target_covariance)))

    @property
    def verdict(self) -> str:
        """One line for the operator."""
        expected = f'expected error at the target {1e3 * self.target_error:.2f} mm'
        if self.accepted:
            return f'accepted: {expected}, {self.probability:.0%} sure'
        return f'refused: {"; ".join(self.reasons)} ({expected})'


def kept(current: Registration | None, candidate: Registration) -> Registration | None:
    """Return the registration to use from now on: a refused one never replaces a good one."""
    return candidate if candidate.accepted else current


def covariance_from(information: Array) -> Array:
    """Invert a (6, 6) information matrix; directions without any get a metre or half a turn."""
    inverse = np.linalg.inv(information + np.diag(_PRIOR))
    return np.asarray(0.5 * (inverse + inverse.T))


def chance_below(covariance: Array, limit: float) -> float:
    """Return the probability that a Gaussian error is shorter than a limit.

    Args:
        covariance: (N, N), m².
        limit: metres.

    The squared length is taken for a scaled chi-square of the same mean and variance
    (Satterthwaite, Biometrics 1946).
    """
    mean = float(np.trace(covariance))
    freedom = mean**2 / max(float(np.trace(covariance @ covariance)), 1e-300)
    return 1.0 - chi_square_tail(freedom * limit**2 / max(mean, 1e-300), freedom)


def chi_square_tail(value: float, freedom: float) -> float:
    """Return the probability of a chi-square above a value (Wilson and Hilferty, PNAS 1931)."""
    spread = 2.0 / (9.0 * freedom)
    z = ((max(value, 0.0) / freedom) ** (1.0 / 3.0) - (1.0 - spread)) / sqrt(spread)
    return 0.5 * erfc(z / sqrt(2.0))
