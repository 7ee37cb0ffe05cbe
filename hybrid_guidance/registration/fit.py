"""A pose of the CT fitted to X-rays, by the gradients of what is rendered there.

Levenberg and Marquardt, then Gauss and Newton; derivatives by rendering.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_angle,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.registration.bone import Picture
from hybrid_guidance.registration.view import Plate, features
from hybrid_guidance.simulation.xray import Stack

# A radian moves what is this far from the pivot, metres: how turns are weighed against shifts.
LEVER = 0.05
# Patches whose pixels err alike, metres at the patient.
PATCH = 0.008


def rendered(stack: Stack, plate: Plate, pose: Transform) -> Picture:
    """Return the bone at a pose of the CT as a view sees it, (h, w)."""
    return stack.integrate(plate.matrix, inverse(pose) @ plate.fixed_T_sensor, plate.shape)


def displaced(pose: Transform, offset: Array, pivot: Points) -> Transform:
    """Turn about a point of ``fixed`` and shift."""
    turn = rotation_from_vector(offset[3:])
    return np.asarray(transform(turn, pivot - turn @ pivot + offset[:3]) @ pose)


def _likeness(plate: Plate, feature: Picture, weight: Picture) -> float:
    """Return the correlation of gradients where they count, -1 to 1."""
    both = float(np.sum(weight * (plate.feature * feature).sum(axis=0)))
    own = float(np.sum(weight * (plate.feature**2).sum(axis=0)))
    other = float(np.sum(weight * (feature**2).sum(axis=0)))
    return float(both / max(np.sqrt(own * other), 1e-12))


@dataclass(frozen=True)
class Fit:
    """Where a search has come to.

    Attributes:
        pose: (4, 4) ``fixed_T_moving``.
        likeness: of each view.
        looks: of each view the features of the rendered image, (2, h, w), and their weight, (h, w).
    """

    pose: Transform
    likeness: tuple[float, ...] = ()
    looks: tuple[tuple[Picture, Picture], ...] = ()

    @property
    def score(self) -> float:
        """The mean likeness of the views."""
        return float(np.mean(self.likeness))


def compared(stack: Stack, plates: Sequence[Plate], pose: Transform) -> Fit:
    """Return how like the views what is rendered at a pose is."""
    found, looks = [], []
    for plate in plates:
        feature, strength = features(rendered(stack, plate, pose))
        looks.append((feature, strength * plate.valid))
        found.append(_likeness(plate, *looks[-1]))
    return Fit(pose, tuple(found), tuple(looks))


@dataclass(frozen=True)
class System:
    """Normal equations of one place.

    Attributes:
        informations: (views, 6, 6).
        scores: of each view (patches, 6): the gradient, patch by patch.
    """

    informations: Array
    scores: tuple[Array, ...]

    @property
    def information(self) -> Array:
        """The (6, 6) information of all views."""
        # What no picture shows at all is known to a metre or a radian: never singular.
        return np.asarray(self.informations.sum(axis=0) + np.eye(6))

    @property
    def gradient(self) -> Array:
        """The (6,) gradient of all views."""
        return np.asarray(sum(each.sum(axis=0) for each in self.scores))

    def variances(self, doubts: Sequence[Array]) -> Array:
        """Return the (views, 6, 6) covariance of each view's gradient: its patches, its pose."""
        result = []
        for own, scores, doubt in zip(self.informations, self.scores, doubts, strict=True):
            count = len(scores)
            result.append(scores.T @ scores * count / max(count - 6, 1) + own @ doubt @ own
                          + np.eye(6))
        return np.array(result)


def _slopes(stack: Stack, plates: Sequence[Plate], fit: Fit, pivot: Points, edge: float,
            central: bool) -> list[Picture]:
    """Return how features change with shifts and turns, (6, 2, h, w) of each view.

    By rendering half a voxel aside, to both sides where it is central.
    """
    steps = 0.5 * edge / np.array([1.0] * 3 + [LEVER] * 3)
    result = []
    for plate, (here, _) in zip(plates, fit.looks, strict=True):
        slopes = np.empty((6, *here.shape), np.float32)
        for index, step in enumerate(steps):
            offset = np.zeros(6)
            offset[index] = step
            ahead, behind = (features(rendered(stack, plate, displaced(fit.pose, each, pivot)))[0]
                             if central or each[index] > 0.0 else here
                             for each in (offset, -offset))
            slopes[index] = (ahead - behind) / np.float32(step * (2.0 if central else 1.0))
        result.append(slopes)
    return result


def _system(plates: Sequence[Plate], fit: Fit, slopes: Sequence[Picture]) -> System:
    """Return the normal equations of a place, by slopes that were taken near it."""
    informations, scores = [], []
    for plate, (feature, weight), slope in zip(plates, fit.looks, slopes, strict=True):
        used = weight > 0.05
        if not np.any(used):
            informations.append(np.zeros((6, 6)))
            scores.append(np.zeros((0, 6)))
            continue
        here, there, share = feature[:, used], plate.feature[:, used], weight[used]
        scale = float(np.sum(share * (here * there).sum(axis=0))
                      / max(float(np.sum(share * (here**2).sum(axis=0))), 1e-12))
        residual = there - scale * here
        size = np.sqrt((residual**2).sum(axis=0))
        spread = max(float(np.median(size)), 1e-6)
        share = share / (1.0 + (size / (2.0 * spread)) ** 2) ** 2 / spread**2
        along = slope[:, :, used] * np.float32(scale)
        weighted = (along * share).reshape(6, -1)
        informations.append(weighted @ along.reshape(6, -1).T)
        each = (along * (residual * share)).sum(axis=1)
        scores.append(_by_patch(each, used, max(round(PATCH / plate.pixel), 1)))
    return System(np.array(informations, float), tuple(scores))


def _by_patch(each: Picture, used: NDArray[np.bool_], size: int) -> Array:
    """Return the sums over patches of (6, N) values where ``used`` is, (patches, 6)."""
    rows, columns = np.nonzero(used)
    _, owner = np.unique(rows // size * 100000 + columns // size, return_inverse=True)
    return np.stack([np.bincount(owner.ravel(), one) for one in each], axis=1)


def refined(stack: Stack, plates: Sequence[Plate], fit: Fit, pivot: Points, edge: float,
            rounds: int) -> Fit:
    """Levenberg and Marquardt from one place; slopes serve until they lead nowhere."""
    fit = compared(stack, plates, fit.pose)
    for _ in range(rounds):
        slopes, begun, damping = _slopes(stack, plates, fit, pivot, edge, False), fit, 1e-3
        for _ in range(5):
            system = _system(plates, fit, slopes)
            information = system.information + damping * np.diag(np.diag(system.information))
            step = np.asarray(np.linalg.solve(information, system.gradient), float)
            trial = compared(stack, plates, displaced(fit.pose, step, pivot))
            if trial.score <= fit.score:
                damping *= 100.0
                if damping > 20.0 or fit is not begun:
                    break
                continue
            gained, fit = trial.score - fit.score, trial
            if gained < 1e-3:
                break
        if distance(fit.pose, begun.pose, pivot, plates) < 0.03 * edge:
            break
    return fit


def settled(stack: Stack, plates: Sequence[Plate], fit: Fit, pivot: Points, edge: float,
             rounds: int) -> tuple[Fit, System]:
    """Gauss and Newton to the end; the likeness is too flat to lead there (one view's depth)."""
    slopes, taken = _slopes(stack, plates, fit, pivot, edge, True), fit
    system = _system(plates, fit, slopes)
    for _ in range(rounds):
        step = np.asarray(np.linalg.solve(system.information, system.gradient), float)
        trial = compared(stack, plates, displaced(fit.pose, step, pivot))
        if trial.score < fit.score - 0.003:
            break
        fit = trial
        if distance(fit.pose, taken.pose, pivot, ()) > 2.0 * edge:
            slopes, taken = _slopes(stack, plates, fit, pivot, edge, True), fit
        system = _system(plates, fit, slopes)
        if float(np.linalg.norm(step[:3])) < 0.05 * edge:
            break
    return fit, system


def distance(first: Transform, second: Transform, pivot: Points,
             plates: Sequence[Plate]) -> float:
    """Return how far two poses are apart near a point of ``fixed``, metres, as far as is seen.

    One view does not see along its rays; without any, all of it counts.
    """
    change = first @ inverse(second)
    shift = transform_points(change, pivot) - pivot
    if len(plates) == 1:
        ray = plates[0].fixed_T_sensor[:3, 2]
        shift = shift - (ray @ shift) * ray
    return float(np.linalg.norm(shift)) + LEVER * rotation_angle(change[:3, :3])
