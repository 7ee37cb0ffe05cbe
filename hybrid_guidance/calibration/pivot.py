"""The tip of a pointer, its axis, and a phantom whose landmarks the tip touched.

Pivot: while the pointer turns about its tip, every pose takes the tip to one and the same point
(Yaniv, Proc. SPIE 2015, algebraic one-step method). A second pivot about another place of the
shaft gives the axis.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration import gates
from hybrid_guidance.calibration.solve import consensus, fit_rigid, least_squares
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Points, Transform

_SPREAD = np.deg2rad(8.0)
_CONDITION = 60.0
_MAXIMUM_CHOICES = 50_000
_PRIOR = 0.4
"""Standard deviation of touching a landmark over that of a calibrated tip, 0.2 mm over 0.5 mm."""


@dataclass(frozen=True)
class PivotCalibration:
    """A point of a marker that stands still while the marker turns about it.

    Attributes:
        tip: (3,) metres in the marker's frame.
        pivot: (3,) metres in the frame of the poses.
        covariance: (3, 3) m² of the tip.
        errors: (N,) metres of the poses used, distance of their tip from the pivot.
        held_out: metres, root mean square of poses in blocks of time that were left out.
        samples: poses given.
        inliers: poses that agree.
    """

    tip: Points
    pivot: Points
    covariance: Array
    errors: Array
    held_out: float
    samples: int
    inliers: int


def calibrate_pivot(poses: Array, *, tolerance: float = 3e-3,
                    limit: float = 1.5e-3) -> PivotCalibration:
    """Solve the tip of a pointer from poses while it pivots.

    Args:
        poses: (N, 4, 4) of the marker in a frame that stands still, metres, in order of time.
        tolerance: metres, of a pose that agrees (RANSAC).
        limit: metres, held-out error above which the calibration is refused.

    Raises:
        GateError: too few poses, too little turning, a pivot that slipped.
    """
    poses = np.asarray(poses, dtype=float)
    gates.require_samples(len(poses), 50, 'poses of the pointer')
    gates.require_rotation_spread(poses[:, :3, :3], _SPREAD, 'the pointer')
    inliers = consensus(len(poses), 4, lambda chosen: np.linalg.norm(
        _residuals(poses, _solve(poses[chosen])), axis=1), tolerance)
    gates.require_inliers(int(inliers.sum()), len(poses), 0.7, 'poses')
    used = poses[inliers]
    gates.require_rotation_spread(used[:, :3, :3], _SPREAD, 'the pointer')
    solution = least_squares(lambda x: _residuals(used, x).ravel(), _solve(used),
                             np.full(6, 1e-3), group=3, robust=True)
    gates.require_conditioned(
        solution, _CONDITION, ('the tip along x', 'the tip along y', 'the tip along z',
                               *('the pivot',) * 3), 'turn the pointer about all of its axes')
    held_out = _held_out(used)
    gates.require_held_out(held_out * 1e3, limit * 1e3, 'mm',
                           'keep the tip seated in its divot while turning, and record again')
    return PivotCalibration(
        solution.values[:3], solution.values[3:], _block_covariance(used),
        np.linalg.norm(solution.residuals.reshape(-1, 3), axis=1), held_out, len(poses), len(used))


def pointer_pose(tip: Points, second: Points | None) -> Transform:
    """Return ``marker_T_tip``: +z along the shaft towards the tip.

    Args:
        tip: (3,) metres in the marker's frame.
        second: (3,) metres of another point of the shaft; without it the shaft is taken to pass
            through the marker's origin.
    """
    return rigid.pose_along(tip, tip - (np.zeros(3) if second is None else second))


def pointer_covariance(tip: PivotCalibration, second: PivotCalibration | None) -> Array:
    """Return the (6, 6) covariance of ``pointer_pose``; without a second pivot 0.1 rad of axis."""
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = tip.covariance
    if second is None:
        covariance[3:, 3:] = np.eye(3) * 0.1**2
        return covariance
    shaft = tip.tip - second.tip
    length = float(np.linalg.norm(shaft))
    lever = rigid.skew(shaft) / length**2
    covariance[3:, 3:] = lever @ (tip.covariance + second.covariance) @ lever.T
    covariance[3:, :3] = lever @ tip.covariance
    covariance[:3, 3:] = covariance[3:, :3].T
    # The roll about the shaft means nothing; it is as good as the axes of the marker.
    return covariance


def _solve(poses: Array) -> Array:
    """Return tip and pivot, (6,), by linear least squares."""
    design = np.concatenate([poses[:, :3, :3], np.tile(-np.eye(3), (len(poses), 1, 1))], axis=2)
    return np.asarray(np.linalg.lstsq(design.reshape(-1, 6), -poses[:, :3, 3].ravel(),
                                      rcond=None)[0])


def _residuals(poses: Array, x: Array) -> Array:
    return np.asarray(poses[:, :3, :3] @ x[:3] + poses[:, :3, 3] - x[3:])


def _blocks(count: int, blocks: int = 8) -> NDArray[np.intp]:
    return np.arange(count) * blocks // count


def _held_out(poses: Array) -> float:
    block = _blocks(len(poses))
    squares = [np.sum(_residuals(poses[block == n], _solve(poses[block != n]))**2, axis=1)
               for n in range(8)]
    return float(np.sqrt(np.mean(np.concatenate(squares))))


def _block_covariance(poses: Array) -> Array:
    """Return the (3, 3) covariance of the tip by leaving out blocks of time."""
    block = _blocks(len(poses))
    tips = np.array([_solve(poses[block != n])[:3] for n in range(8)])
    centred = tips - tips.mean(axis=0)
    return np.asarray(7.0 / 8.0 * centred.T @ centred)


@dataclass(frozen=True)
class PhantomRegistration:
    """A phantom in the frame of a reference marker.

    Attributes:
        transform: (4, 4) ``reference_T_phantom``.
        covariance: (6, 6) in the reference's axes.
        tip: (3,) metres of the pointer's tip that was used.
        refined: whether the tip was adjusted with the landmarks.
        errors: (N,) metres at each landmark.
        held_out: metres, mean error of each landmark when it is left out.
        touched: (N, 3) metres in the reference's frame.
    """

    transform: Transform
    covariance: Array
    tip: Points
    refined: bool
    errors: Array
    held_out: float
    touched: Points


def find_dwells(track: Track, tip: Points, *, radius: float = 2e-3, window: float = 0.65,
                shortest: float = 0.8) -> list[slice]:
    """Return when the tip stood still.

    Args:
        track: of the pointer's marker in the reference.
        tip: (3,) metres in the marker's frame.
        radius: metres, around the median within which it counts as still.
        window: seconds, before and after, of that median.
        shortest: seconds, of a stay.
    """
    points = track.poses[:, :3, :3] @ tip + track.poses[:, :3, 3]
    low = np.searchsorted(track.times, track.times - window)
    high = np.searchsorted(track.times, track.times + window, side='right')
    still = np.array([_extent(points[a:b]) < radius for a, b in zip(low, high, strict=True)])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(int), [0]])))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)
            if track.times[b - 1] - track.times[a] >= shortest]


def _extent(points: Points) -> float:
    return float(np.linalg.norm(points - np.median(points, axis=0), axis=1).max())


def register_phantom(track: Track, tip: Points, landmarks: Points, *, refine: bool | None = None,
                     limit: float = 1e-3) -> PhantomRegistration:
    """Register a phantom by landmarks touched with a pointer, in their order.

    A tip that is a little off displaces landmarks touched from different sides differently, so
    that six landmarks or more tell the tip, too. It is adjusted where that makes the error of
    landmarks left out smaller.

    Args:
        track: of the pointer's marker in the reference.
        tip: (3,) metres of its tip, from a pivot calibration.
        landmarks: (N, 3) metres in the phantom's frame.
        refine: whether the tip is adjusted; decided by landmarks left out when None.
        limit: metres, held-out error above which the registration is refused.

    Raises:
        GateError: fewer stays than landmarks, a figure too flat, or too large an error.
    """
    gates.require_samples(len(landmarks), 4, 'landmarks of the phantom')
    _require_solid(landmarks)
    dwells = find_dwells(track, tip)
    if len(dwells) < len(landmarks) or comb(len(dwells), len(landmarks)) > _MAXIMUM_CHOICES:
        raise gates.GateError(
            f'the tip stood still {len(dwells)} times, {len(landmarks)} landmarks were to be '
            'touched; touch them in their order, a second and a half each, with no other stops')
    rotations = np.array([track.poses[dwell, :3, :3].mean(axis=0) for dwell in dwells])
    places = np.array([track.poses[dwell, :3, 3].mean(axis=0) for dwell in dwells])
    chosen = _matching(rotations @ tip + places, landmarks)
    rotations, places = rotations[chosen], places[chosen]
    plain = _left_out(rotations, places, tip, landmarks, False)
    if refine is None:
        refine = len(landmarks) >= 6 and plain > _left_out(rotations, places, tip, landmarks, True)
    held_out = _left_out(rotations, places, tip, landmarks, True) if refine else plain
    gates.require_held_out(held_out * 1e3, limit * 1e3, 'mm', 'calibrate the tip again, check the '
                           'order of the landmarks and touch them again')
    tip, covariance = _register(rotations, places, tip, landmarks, refine)
    touched = rotations @ tip + places
    transform = fit_rigid(landmarks, touched)
    errors = np.linalg.norm(rigid.transform_points(transform, landmarks) - touched, axis=1)
    return PhantomRegistration(transform, covariance, tip, bool(refine), errors, held_out,
                               touched)


def _require_solid(landmarks: Points) -> None:
    spread = np.linalg.svd(landmarks - landmarks.mean(axis=0))[1] / np.sqrt(len(landmarks))
    if spread[1] < 5e-3:
        raise gates.GateError('the landmarks lie on one line, so that the phantom may turn about '
                              'it; touch some at least 1 cm away from that line')


def _matching(touched: Points, landmarks: Points) -> list[int]:
    """Return which stays are the landmarks: the choice in order with the least error."""
    def cost(choice: Iterable[int]) -> float:
        points = touched[list(choice)]
        return float(np.sum((rigid.transform_points(fit_rigid(landmarks, points), landmarks)
                             - points)**2))
    return list(min(combinations(range(len(touched)), len(landmarks)), key=cost))


def _register(rotations: Array, places: Points, tip: Points, landmarks: Points,
              refine: bool) -> tuple[Array, Array]:
    """Return the (3,) tip and the (6, 6) covariance of the pose."""
    start = fit_rigid(landmarks, rotations @ tip + places)

    def residuals(x: Array) -> Array:
        moved = rigid.transform_points(rigid.perturbed(start, x[:6]), landmarks)
        now = x[6:] if refine else tip
        # The tip that was given holds it where the landmarks do not tell.
        return np.concatenate([(moved - rotations @ now - places).ravel(), _PRIOR * (now - tip)])
    x0 = np.concatenate([np.zeros(6), tip if refine else np.zeros(0)])
    scale = np.concatenate([np.full(3, 1e-3), np.full(3, 1e-2), np.full(len(x0) - 6, 1e-3)])
    solution = least_squares(residuals, x0, scale)
    return solution.values[6:] if refine else tip, solution.covariance[:6, :6]


def _left_out(rotations: Array, places: Points, tip: Points, landmarks: Points,
              refine: bool) -> float:
    """Return the mean error in metres of each landmark when it is left out."""
    errors = []
    for index in range(len(landmarks)):
        keep = np.arange(len(landmarks)) != index
        found, _ = _register(rotations[keep], places[keep], tip, landmarks[keep], refine)
        touched = rotations @ found + places
        pose = fit_rigid(landmarks[keep], touched[keep])
        errors.append(np.linalg.norm(rigid.transform_points(pose, landmarks[index])
                                     - touched[index]))
    return float(np.mean(errors))
