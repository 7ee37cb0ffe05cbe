"""A sensor or marker on a robot's flange: ``A X = X B``.

OpenCV 4 has five solvers (Tsai, Park, Horaud, Andreff, Daniilidis); OpenCV 5 dropped them. Park
and Martin's (IEEE T-RA 1994) is also here, so that there is always one. Every solver's result,
and each of them adjusted with the target's pose (Dornaika and Horaud 1998), is judged by poses
left out; the best is taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration import gates
from hybrid_guidance.calibration.solve import Solution, consensus, least_squares, mean_rotation
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Transform

_SPREAD = np.deg2rad(8.0)
_CONDITION = 300.0
_ADJUSTED = 'Park-Martin (own), adjusted'
_LEVER = 0.1
"""Metres at which an angle counts like a distance."""

Solver = Callable[[Array, Array], Transform]


@dataclass(frozen=True)
class HandEyeCalibration:
    """What is fixed to the flange.

    Attributes:
        transform: (4, 4) ``flange_T_eye``.
        target: (4, 4) ``base_T_target``.
        covariance: (6, 6) of the transform, in the flange's axes.
        method: solver that was best.
        ranking: solver to held-out error in metres.
        errors: (N,) metres, position of the target by each pose used, against their common one.
        held_out: metres, mean, of poses left out.
        held_out_angle: radians, mean, likewise.
        samples: poses given.
        inliers: poses that agree.
    """

    transform: Transform
    target: Transform
    covariance: Array
    method: str
    ranking: dict[str, float]
    errors: Array
    held_out: float
    held_out_angle: float
    samples: int
    inliers: int


def calibrate_hand_eye(base_T_flange: Array, eye_T_target: Array, *, tolerance: float = 6e-3,
                       limit: float = 1.5e-3) -> HandEyeCalibration:
    """Solve what is fixed to a flange from poses of the robot and of what the sensor saw.

    Args:
        base_T_flange: (N, 4, 4) from the robot.
        eye_T_target: (N, 4, 4) from the sensor, of a target that stands still.
        tolerance: metres, of a pose that agrees, angles taken at 10 cm.
        limit: metres, mean held-out error above which it is refused.

    Raises:
        GateError: too few poses, a rotation that is missing, or too large an error.
    """
    gates.require_samples(len(base_T_flange), 12, 'poses of the robot with the target in view')
    gates.require_rotation_spread(base_T_flange[:, :3, :3], _SPREAD, 'the flange')
    inliers = consensus(len(base_T_flange), 4, lambda chosen: _score(
        park_martin(base_T_flange[chosen], eye_T_target[chosen]), base_T_flange, eye_T_target,
        chosen), tolerance, trials=120)
    gates.require_inliers(int(inliers.sum()), len(inliers), 0.6, 'poses')
    hands, seen = base_T_flange[inliers], eye_T_target[inliers]
    gates.require_rotation_spread(hands[:, :3, :3], _SPREAD, 'the flange')
    results = {name: _held_out(solver, hands, seen) for name, solver in _solvers()}
    best = min(results, key=lambda name: results[name][0])
    # Where poses left out hardly tell them apart, the adjusted one wastes least of the data.
    if results[_ADJUSTED][0] <= 1.05 * results[best][0]:
        best = _ADJUSTED
    gates.require_held_out(results[best][0] * 1e3, limit * 1e3, 'mm', (
        'let the robot stand still at each pose, keep the target fixed, and check the stamps'))
    transform = dict(_solvers())[best](hands, seen)
    solution = _adjusted(transform, hands, seen)
    gates.require_conditioned(solution[2], _CONDITION, (
        *('the translation',) * 3, *('the rotation',) * 3, *('the target',) * 6), (
        'turn the flange about two axes or more, by 30° and both ways'))
    target = _target(hands @ transform @ seen)
    errors = np.linalg.norm((hands @ transform @ seen)[:, :3, 3] - target[:3, 3], axis=1)
    return HandEyeCalibration(
        transform, target, solution[2].covariance[:6, :6], best,
        {name: found[0] for name, found in results.items()}, errors, *results[best],
        len(inliers), len(hands))


def park_martin(hands: Array, seen: Array) -> Transform:
    """Return ``flange_T_eye`` from (N, 4, 4) poses each, N at least three."""
    first, second = np.triu_indices(len(hands), 1)
    # All pairs of many poses tell no more than some of them.
    stride = max(1, len(first) // 250)
    motions = [(rigid.inverse(hands[i]) @ hands[j], seen[i] @ rigid.inverse(seen[j]))
               for i, j in zip(first[::stride], second[::stride], strict=True)]
    alpha = np.array([rigid.vector_from_rotation(a[:3, :3]) for a, _ in motions])
    beta = np.array([rigid.vector_from_rotation(b[:3, :3]) for _, b in motions])
    left, _, right = np.linalg.svd(alpha.T @ beta)
    rotation = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    design = np.concatenate([a[:3, :3] - np.eye(3) for a, _ in motions])
    known = np.concatenate([rotation @ b[:3, 3] - a[:3, 3] for a, b in motions])
    return rigid.transform(rotation, np.linalg.lstsq(design, known, rcond=None)[0])


def _opencv(method: int) -> Solver:
    def solve(hands: Array, seen: Array) -> Transform:
        try:
            rotation, translation = cv2.calibrateHandEye(
                list(hands[:, :3, :3]), list(hands[:, :3, 3]), list(seen[:, :3, :3]),
                list(seen[:, :3, 3]), method=method)
        except cv2.error:
            return np.full((4, 4), np.nan)
        return rigid.transform(rotation, translation[:, 0])
    return solve


def _solvers() -> Iterator[tuple[str, Solver]]:
    """Yield each solver, and each adjusted."""
    plain: list[tuple[str, Solver]] = [('Park-Martin (own)', park_martin)]
    if hasattr(cv2, 'calibrateHandEye'):
        plain += [(f'{name.title()} (OpenCV)', _opencv(getattr(cv2, f'CALIB_HAND_EYE_{name}')))
                  for name in ('TSAI', 'PARK', 'HORAUD', 'ANDREFF', 'DANIILIDIS')]
    yield from plain
    yield _ADJUSTED, lambda hands, seen: _adjusted(
        park_martin(hands, seen), hands, seen)[0]


def _target(poses: Array) -> Transform:
    """Return the common pose of (N, 4, 4) that should be one."""
    return rigid.transform(mean_rotation(poses[:, :3, :3]), np.median(poses[:, :3, 3], axis=0))


def _adjusted(start: Transform, hands: Array, seen: Array) -> tuple[Transform, Transform, Solution]:
    """Return transform and target that leave the least, and the solution."""
    target = _target(hands @ start @ seen)
    # Angles and distances by their own noise: it is the ratio of what the start leaves of them.
    distance, angle = (float(np.median(one)) for one in _errors(hands @ start @ seen, target))
    lever = float(np.clip(distance / max(angle, 1e-9), 0.02, 1.0))

    def residuals(x: Array) -> Array:
        found = hands @ rigid.perturbed(start, x[:6]) @ seen
        there = rigid.perturbed(target, x[6:])
        turned = there[:3, :3].T @ found[:, :3, :3]
        angles = 0.5 * np.stack([turned[:, 2, 1] - turned[:, 1, 2],
                                 turned[:, 0, 2] - turned[:, 2, 0],
                                 turned[:, 1, 0] - turned[:, 0, 1]], axis=1)
        return np.concatenate([found[:, :3, 3] - there[:3, 3], lever * angles], axis=1).ravel()
    scale = np.tile([1e-3] * 3 + [1e-2] * 3, 2)
    solution = least_squares(residuals, np.zeros(12), scale, group=6, robust=True)
    return (rigid.perturbed(start, solution.values[:6]),
            rigid.perturbed(target, solution.values[6:]), solution)


def _score(transform: Transform, hands: Array, seen: Array, chosen: NDArray[np.intp]) -> Array:
    """Return the (N,) errors in metres of all poses, the target taken from some of them."""
    if not np.all(np.isfinite(transform)):
        return np.full(len(hands), np.inf)
    poses = hands @ transform @ seen
    distance, angle = _errors(poses, _target(poses[chosen]))
    return np.asarray(np.hypot(distance, _LEVER * angle))


def _errors(poses: Array, target: Transform) -> tuple[Array, Array]:
    distance = np.linalg.norm(poses[:, :3, 3] - target[:3, 3], axis=1)
    cosine = 0.5 * (np.einsum('nij,ij->n', poses[:, :3, :3], target[:3, :3]) - 1.0)
    return distance, np.arccos(np.clip(cosine, -1.0, 1.0))


def _held_out(solver: Solver, hands: Array, seen: Array, folds: int = 5) -> tuple[float, float]:
    """Return the mean error of position and angle of poses left out; infinite where it fails."""
    fold = np.arange(len(hands)) % folds
    distances, angles = [], []
    for number in range(folds):
        used, held = fold != number, fold == number
        transform = solver(hands[used], seen[used])
        if not np.all(np.isfinite(transform)):
            return np.inf, np.inf
        target = _target(hands[used] @ transform @ seen[used])
        found = _errors(hands[held] @ transform @ seen[held], target)
        distances.append(found[0])
        angles.append(found[1])
    return float(np.mean(np.concatenate(distances))), float(np.mean(np.concatenate(angles)))
