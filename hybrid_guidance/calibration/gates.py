"""What a calibration must show before it may be used; each refusal names the cure."""

import numpy as np

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.solve import Solution, mean_rotation
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array

AXES = ('x', 'y', 'z')


class GateError(CalibrationError):
    """A calibration that would look like one and is none."""


def require_samples(count: int, needed: int, what: str) -> None:
    """Refuse too few samples.

    Args:
        count: of usable samples.
        needed: at least; never below three, because two samples always agree.
        what: plural of a sample, such as 'poses of the stylus'.
    """
    if count < max(needed, 3):
        raise GateError(f'{count} usable {what}, {max(needed, 3)} are needed; record for longer '
                        'and keep everything in view')


_LOOSE = ('look for a loose marker, a moved phantom or a tracker losing sight, and record again')


def require_inliers(inliers: int, samples: int, share: float, what: str,
                    cure: str = _LOOSE) -> None:
    """Refuse where most samples contradict one another.

    Args:
        inliers: samples that agree.
        samples: of all.
        share: that must agree.
        what: plural of a sample.
        cure: what to do.
    """
    if inliers < share * samples:
        raise GateError(f'only {inliers} of {samples} {what} agree, at least {share:.0%} must; '
                        f'{cure}')


def require_rotation_spread(rotations: Array, least: float, moved: str,
                            names: tuple[str, str, str] = AXES, axes: int = 2) -> Array:
    """Refuse rotations about too few axes.

    Args:
        rotations: (N, 3, 3) of what was moved, in a frame that stood still.
        least: radians, standard deviation needed about ``axes`` of its own axes.
        moved: what was moved, for the message.
        names: of the moved thing's own axes.
        axes: how many must have that spread.

    Returns:
        (3,) radians, standard deviation about each of its axes.
    """
    mean = mean_rotation(rotations)
    vectors = np.array([rigid.vector_from_rotation(mean.T @ rotation) for rotation in rotations])
    spread, directions = np.linalg.eigh(vectors.T @ vectors / len(vectors))
    spread = np.sqrt(np.maximum(spread, 0.0))[::-1]
    if spread[axes - 1] < least:
        own = np.sqrt(np.mean(vectors**2, axis=0))
        poor = [index for index in np.argsort(own) if own[index] < least]
        # Turned about a slanting axis only: name what lies closest to the direction missing.
        poor = poor or [int(np.argmax(np.abs(directions[:, 3 - axes])))]
        needed = max(axes - (3 - len(poor)), 1)
        word = ' and its ' if needed >= len(poor) else ' or its '
        missing = 'its ' + word.join(names[index] for index in sorted(poor)) + ' axis'
        if 1 < needed < len(poor):
            missing = f'two of its axes ({", ".join(names)})'
        raise GateError(
            f'{moved} turned too little: {np.rad2deg(spread[axes - 1]):.1f}° (standard deviation) '
            f'where {np.rad2deg(least):.0f}° are needed; the motion that is missing is rotation '
            f'about {missing}: record again and turn it that way')
    return np.asarray(np.sqrt(np.mean(vectors**2, axis=0)))


def require_conditioned(solution: Solution, limit: float, names: tuple[str, ...],
                        cure: str) -> None:
    """Refuse normal equations that leave something open.

    Args:
        solution: of the adjustment; its parameters are scaled to like size.
        limit: of the condition of the Jacobian.
        names: of the parameters.
        cure: what to record so that it is determined.
    """
    if not np.isfinite(solution.condition) or solution.condition > limit:
        weak = names[int(np.argmax(np.abs(solution.weakest)))]
        raise GateError(f'the data do not determine {weak} (condition {solution.condition:.0f}, '
                        f'limit {limit:.0f}); {cure}')


def require_held_out(error: float, limit: float, unit: str, cure: str) -> None:
    """Refuse a calibration that does not predict samples it has not seen."""
    if not error <= limit:
        raise GateError(f'held-out error {error:.3g} {unit}, limit {limit:.3g} {unit}; {cure}')
