"""Fiducials, skin markers and what X-rays triangulate: rigid registration of point sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration.solve import consensus, fit_rigid
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, skew, transform_points
from hybrid_guidance.geometry.types import Array, Pixels, Points, Transform
from hybrid_guidance.registration.result import (
    LIMIT,
    Registration,
    RegistrationError,
    chance_below,
    chi_square_tail,
    covariance_from,
)

_CONFIDENCE = 0.95
_LEAST_P = 1e-3
_GATE = 3.5
_MOST_POINTS = 16
_MOST_TRIALS = 4000

Pairs = NDArray[np.intp]


@dataclass(frozen=True)
class PointRegistration(Registration):
    """A registration by points; its cost is the chi-square of the residuals.

    Attributes:
        pairs: (K, 2) indices into moving and fixed points that were used.
        residuals: (K,) metres, of those pairs.
    """

    pairs: Pairs = field(default_factory=lambda: np.zeros((0, 2), np.intp))
    residuals: Array = field(default_factory=lambda: np.zeros(0))


def register_pairs(moving: Points, fixed: Points, sigma: float | Array, target: Points, *,
                   limit: float = LIMIT) -> PointRegistration:
    """Register points whose partners are known, some of which may be wrong.

    Args:
        moving: (N, 3) metres, of at least three points; NaN where one was not found.
        fixed: (N, 3) metres, their partners.
        sigma: metres, deviation per axis of a point against its partner (both localisations
            together); a number or (N,).
        target: (3,) metres in ``moving``, where the error counts.
        limit: metres, error at the target that is still good.

    Raises:
        RegistrationError: shapes do not match, or fewer than three pairs.
    """
    moving, fixed = _checked(moving, 'moving'), _checked(fixed, 'fixed')
    if len(moving) != len(fixed):
        raise RegistrationError(f'{len(moving)} moving and {len(fixed)} fixed points are no '
                                'pairs; use register_sets where partners are not known')
    sigmas = _deviations(sigma, len(moving))
    seen = np.flatnonzero(np.isfinite(moving).all(axis=1) & np.isfinite(fixed).all(axis=1))
    if len(seen) < 3:
        raise RegistrationError(f'{len(seen)} complete pairs, three are needed; add fiducials')
    agree = _agreeing(moving[seen], fixed[seen], sigmas[seen])
    reasons = []
    if 2 * len(agree) <= len(seen):
        reasons.append(f'only {len(agree)} of {len(seen)} pairs agree; look for a moved marker')
    used = seen[agree] if len(agree) >= 3 else seen
    return _registered(moving, fixed, np.stack([used, used], axis=1), sigmas[used], target,
                       limit, reasons)


def register_sets(moving: Points, fixed: Points, sigma: float, target: Points, *,
                  limit: float = LIMIT) -> PointRegistration:
    """Register points without known partners; either set may have some the other lacks.

    Every triple of moving points is laid on every triple of fixed ones with the same sides
    (exhaustive, so the same data give the same answer); the pose that brings most points
    together wins, and is refused where another one does as well.

    Args:
        moving: (N, 3) metres; 4 to 16 points.
        fixed: (M, 3) metres; 4 to 16 points.
        sigma: metres, deviation per axis of a point against its partner.
        target: (3,) metres in ``moving``, where the error counts.
        limit: metres, error at the target that is still good.

    Raises:
        RegistrationError: too few or too many points, or points that are not finite.
    """
    moving, fixed = _checked(moving, 'moving'), _checked(fixed, 'fixed')
    for name, points in (('moving', moving), ('fixed', fixed)):
        if not 4 <= len(points) <= _MOST_POINTS or not np.isfinite(points).all():
            raise RegistrationError(f'{len(points)} {name} points: 4 to {_MOST_POINTS} finite '
                                    'ones are needed to find partners')
    hypotheses = _hypotheses(moving, fixed, sigma)
    if not hypotheses:
        raise RegistrationError('no three points of one set have the distances of three of the '
                                'other; check units and which markers were measured')
    count, _, _, pairs = best = max(hypotheses, key=lambda each: (each[0], -each[1]))
    reasons = []
    if count < 4:
        reasons.append('only three points found partners, and nothing checks them; add fiducials')
    if 2 * count <= min(len(moving), len(fixed)):
        reasons.append(f'only {count} of {min(len(moving), len(fixed))} points found partners')
    rival = _rival(best, hypotheses, target, limit)
    if rival:
        reasons.append('the points fit in another way as well; place them less symmetrically')
    deviations = np.full(len(pairs), float(sigma))
    return _registered(moving, fixed, pairs, deviations, target, limit, reasons)


_Hypothesis = tuple[int, float, Transform, Pairs]


def _checked(points: Points, name: str) -> Points:
    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] != 3:
        raise RegistrationError(f'{name} points have shape {points.shape}, (N, 3) is needed')
    return points


def _deviations(sigma: float | Array, count: int) -> Array:
    sigmas = np.broadcast_to(np.asarray(sigma, dtype=float), (count,))
    if not np.all(np.isfinite(sigmas) & (sigmas > 0.0)):
        raise RegistrationError('the deviation of every point must be above zero')
    return sigmas


def _agreeing(moving: Points, fixed: Points, sigmas: Array) -> NDArray[np.intp]:
    """Return the indices of pairs that agree on one pose."""
    pose = fit_rigid(moving, fixed, 1.0 / sigmas**2)
    gaps = np.linalg.norm(fixed - transform_points(pose, moving), axis=1) / sigmas
    if len(moving) == 3 or chi_square_tail(float(gaps @ gaps), 3 * len(moving) - 6) > 0.01:
        return np.arange(len(moving))

    def errors(chosen: NDArray[np.intp]) -> Array:
        pose = fit_rigid(moving[chosen], fixed[chosen], 1.0 / sigmas[chosen] ** 2)
        gap = np.linalg.norm(fixed - transform_points(pose, moving), axis=1)
        # Three points carry their own errors to the others.
        return np.asarray(gap / sigmas / (2.0 if len(chosen) == 3 else 1.0))

    # Of three axes, and of a fit that outliers have not pulled: 4.5 σ is one in 10⁴.
    return np.flatnonzero(consensus(len(moving), 3, errors, 4.5))


def _registered(moving: Points, fixed: Points, pairs: Pairs, sigmas: Array, target: Points,
                limit: float, reasons: list[str]) -> PointRegistration:
    """Fit the pairs, and judge the fit."""
    here, there = moving[pairs[:, 0]], fixed[pairs[:, 1]]
    pose = fit_rigid(here, there, 1.0 / sigmas**2)
    residuals = np.linalg.norm(there - transform_points(pose, here), axis=1)
    cost, freedom = float(np.sum((residuals / sigmas) ** 2)), 3 * len(pairs) - 6
    covariance = _covariance(pose, here, sigmas)
    if chi_square_tail(cost, freedom) < _LEAST_P:
        covariance = covariance * cost / freedom
        reasons.append(f'residuals of {1e3 * float(np.sqrt(np.mean(residuals**2))):.2f} mm are '
                       'more than their deviations explain; measure them again')
    result = PointRegistration(pose, covariance, np.asarray(target, float), cost, 1.0, (), pairs,
                               residuals)
    probability = chance_below(result.target_covariance, limit)
    if probability < _CONFIDENCE:
        reasons.append(f'{probability:.0%} sure to be within {1e3 * limit:.1f} mm at the target, '
                       f'{_CONFIDENCE:.0%} are needed; spread fiducials around the target')
    if reasons:
        probability = min(probability, 1.0 - _CONFIDENCE)
    return PointRegistration(pose, covariance, result.target, cost, probability, tuple(reasons),
                             pairs, residuals)


def _covariance(pose: Transform, moving: Points, sigmas: Array) -> Array:
    """Return the (6, 6) covariance of a fit.

    To first order; for one deviation its trace at a target is Fitzpatrick's expected error
    (Fitzpatrick, West and Maurer, IEEE TMI 1998).
    """
    information = np.zeros((6, 6))
    for point, sigma in zip(moving, sigmas, strict=True):
        lever = np.hstack([np.eye(3), -skew(pose[:3, :3] @ point)])
        information += lever.T @ lever / sigma**2
    return covariance_from(information)


def _hypotheses(moving: Points, fixed: Points, sigma: float) -> list[_Hypothesis]:
    """Return (partners, cost, pose, pairs) of every congruent triple, most promising first."""
    triples = np.array(list(combinations(range(len(moving)), 3)))
    partners = np.array(list(permutations(range(len(fixed)), 3)))
    sides, others = _sides(moving, triples), _sides(fixed, partners)
    # A side's deviation is sqrt(2) of a point's.
    misfit = np.array([np.min(np.max(np.abs(others - side), axis=1)) for side in sides])
    tolerance = _GATE * np.sqrt(2.0) * sigma
    found: list[_Hypothesis] = []
    # Wide triples first: they carry the least error to the other points.
    order = np.argsort(-np.min(sides, axis=1))
    for index in order[misfit[order] < tolerance]:
        close = np.max(np.abs(others - sides[index]), axis=1) < tolerance
        for match in partners[close]:
            pairs = np.stack([triples[index], match], axis=1)
            found.append(_grown(moving, fixed, pairs, sigma))
        if len(found) > _MOST_TRIALS:
            break
    return found


def _sides(points: Points, triples: Pairs) -> Array:
    a, b, c = (points[triples[:, k]] for k in range(3))
    return np.stack([np.linalg.norm(each, axis=1) for each in (a - b, b - c, c - a)], axis=1)


def _grown(moving: Points, fixed: Points, pairs: Pairs, sigma: float) -> _Hypothesis:
    """Let a pose that three pairs give collect the others."""
    gate = 3.0 * _GATE * sigma
    pose = fit_rigid(moving[pairs[:, 0]], fixed[pairs[:, 1]])
    for _ in range(3):
        gaps = np.linalg.norm(transform_points(pose, moving)[:, None] - fixed, axis=2)
        nearest = np.argmin(gaps, axis=1)
        mutual = np.argmin(gaps, axis=0)[nearest] == np.arange(len(moving))
        own = np.flatnonzero(mutual & (gaps[np.arange(len(moving)), nearest] < gate))
        if len(own) < 3:
            return 0, np.inf, pose, pairs
        pairs = np.stack([own, nearest[own]], axis=1)
        pose = fit_rigid(moving[own], fixed[nearest[own]])
        gate = 4.5 * sigma
    gap = fixed[pairs[:, 1]] - transform_points(pose, moving[pairs[:, 0]])
    return len(pairs), float(np.sum(gap**2)) / sigma**2, pose, pairs


def _rival(best: _Hypothesis, hypotheses: Sequence[_Hypothesis], target: Points,
           limit: float) -> bool:
    """Tell whether another pose brings as many points together as well as noise allows."""
    count, _, pose, pairs = best
    probes = np.vstack([target, target + 0.1 * np.eye(3)])
    for other_count, other_cost, other, _ in hypotheses:
        if other_count < count or chi_square_tail(other_cost, 3 * len(pairs) - 6) < _LEAST_P:
            continue
        apart = transform_points(other, probes) - transform_points(pose, probes)
        if float(np.max(np.linalg.norm(apart, axis=1))) > limit:
            return True
    return False


@dataclass(frozen=True)
class Sight:
    """One X-ray in which a marker was found.

    Attributes:
        projection: calibrated, perspective.
        world_T_sensor: (4, 4) of the X-ray source.
        pixel: (2,) px.
        sigma: px, deviation per axis.
    """

    projection: Projection
    world_T_sensor: Transform
    pixel: Pixels
    sigma: float = 0.5


@dataclass(frozen=True)
class Triangulation:
    """A point from several X-rays.

    Attributes:
        point: (3,) metres, in the common frame.
        covariance: (3, 3) m².
        cost: chi-square of the residuals, of ``2 * views - 3`` degrees of freedom.
        reasons: why it is refused, in words; none where it is accepted.
    """

    point: Points
    covariance: Array
    cost: float
    reasons: tuple[str, ...]


def triangulate(sights: Sequence[Sight], *, limit: float = LIMIT) -> Triangulation:
    """Intersect the rays of a marker seen from two or more sides.

    Linear start, then Gauss and Newton on the pixels (Hartley and Zisserman, Multiple View
    Geometry, 2003, ch. 12).

    Args:
        sights: of the same marker.
        limit: metres, deviation along the worst direction that is still good.

    Raises:
        RegistrationError: fewer than two calibrated X-rays.
    """
    if len(sights) < 2 or not all(sight.projection.is_calibrated for sight in sights):
        raise RegistrationError('two or more calibrated X-rays of a marker are needed')
    poses = [inverse(sight.world_T_sensor) for sight in sights]
    point = _linear(sights, poses)
    for _ in range(6):
        information, gradient, cost = np.zeros((3, 3)), np.zeros(3), 0.0
        for sight, pose in zip(sights, poses, strict=True):
            local = transform_points(pose, point)
            slope = sight.projection.jacobian(local) @ pose[:3, :3] / sight.sigma
            error = (sight.pixel - sight.projection.pixels(local)) / sight.sigma
            information += slope.T @ slope
            gradient += slope.T @ error
            cost += float(error @ error)
        information += 1e-3 * np.eye(3)
        point = point + np.linalg.solve(information, gradient)
    covariance = np.asarray(np.linalg.inv(information), dtype=float)
    return Triangulation(point, covariance, cost,
                         _doubts(point, poses, covariance, cost, limit))


def triangulate_all(views: Sequence[Sequence[Sight]], *, limit: float = LIMIT) -> Points:
    """Find the markers that two or more X-rays show without a name.

    Every pair of sights of two views is tried, and what the other views show of it is taken in;
    those that most views agree on come first, and no sight serves two markers. Two X-rays may
    show markers that are none (rays of different ones that happen to meet): ``register_sets``
    leaves them out; a third X-ray does so here.

    Args:
        views: the sights of each X-ray.
        limit: metres, deviation along the worst direction that is still good.

    Returns:
        (N, 3) metres, in the common frame.

    Raises:
        RegistrationError: fewer than two calibrated X-rays.
    """
    if len(views) < 2:
        raise RegistrationError('two or more calibrated X-rays of the markers are needed')
    found = []
    for (one, first), (two, second) in combinations(enumerate(views), 2):
        for (i, a), (j, b) in product(enumerate(first), enumerate(second)):
            used = {one: i, two: j}
            place = triangulate([a, b], limit=limit)
            if not place.reasons:
                found.append(_extended(views, used, place, limit))
    found.sort(key=lambda each: (-len(each[0]), each[1].cost))
    taken: set[tuple[int, int]] = set()
    points = []
    for used, place in found:
        if not taken.intersection(used.items()):
            taken.update(used.items())
            points.append(place.point)
    return np.array(points).reshape(-1, 3)


def _extended(views: Sequence[Sequence[Sight]], used: dict[int, int], place: Triangulation,
              limit: float) -> tuple[dict[int, int], Triangulation]:
    """Take in what further views show of a marker."""
    for number, others in enumerate(views):
        if number in used or not others:
            continue
        local = transform_points(inverse(others[0].world_T_sensor), place.point)
        expected = others[0].projection.pixels(local)
        nearest = int(np.argmin([np.linalg.norm(each.pixel - expected) for each in others]))
        sights = [views[which][index] for which, index in used.items()]
        trial = triangulate([*sights, others[nearest]], limit=limit)
        if not trial.reasons:
            used, place = {**used, number: nearest}, trial
    return used, place


def _linear(sights: Sequence[Sight], poses: Sequence[Transform]) -> Points:
    rows = []
    for sight, pose in zip(sights, poses, strict=True):
        matrix = sight.projection.matrix @ pose
        pixel_rows = np.outer(sight.pixel, matrix[2]) - matrix[:2]
        rows.append(pixel_rows / np.linalg.norm(pixel_rows[:, :3], axis=1, keepdims=True))
    stacked = np.vstack(rows)
    return np.asarray(np.linalg.lstsq(stacked[:, :3], -stacked[:, 3], rcond=None)[0])


def _doubts(point: Points, poses: Sequence[Transform], covariance: Array, cost: float,
            limit: float) -> tuple[str, ...]:
    reasons = []
    if any(transform_points(pose, point)[2] <= 0.0 for pose in poses):
        reasons.append('the rays meet behind an X-ray source; check the geometry')
    if chi_square_tail(cost, 2 * len(poses) - 3) < _LEAST_P:
        reasons.append('the rays miss each other by more than pixels do; these are different '
                       'markers, or something moved')
    worst = float(np.sqrt(np.linalg.eigvalsh(covariance)[-1]))
    if worst > limit:
        reasons.append(f'known to {1e3 * worst:.1f} mm only along the rays; take an X-ray from '
                       'another side')
    return tuple(reasons)
