"""X-rays laid on a CT: 2D/3D registration by rendering the CT's bone as X-rays see it.

Gradients of the rendered and of the measured image, each divided by their local strength (so that
scatter, spectrum and exposure cancel), are compared where the CT has bone. Coarse: many turns,
each with all shifts at once by correlation. Fine: Levenberg and Marquardt on the same gradients,
the derivative by rendering. The covariance is that of the fit, with pixels of one patch counting
once (sandwich; White, Econometrica 1982), and of what two resolutions do not agree on. Whether it
is the right bone is told by its parts: those of other bone fit better one by one than together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_angle,
    skew,
    transform_points,
    vector_from_rotation,
)
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.fit import LEVER, System, compared, refined, settled
from hybrid_guidance.registration.parts import slack_of
from hybrid_guidance.registration.result import LIMIT, Registration, RegistrationError, chance_below
from hybrid_guidance.registration.search import Search, apart, elsewhere, places_near
from hybrid_guidance.registration.view import Plate, View, depth_of, plate_of

# How much further than the search a result may be.
_FURTHER = 1.25


@dataclass(frozen=True)
class ProjectionRegistration(Registration):
    """A registration by X-rays; its cost is one less the likeness of gradients.

    Attributes:
        likeness: of each view, -1 to 1.
        rival: likeness of the next place that is another one, as a share of this one's.
        moved: metres and radians from the start.
        disagreement: how much the views pull apart, as a multiple of what is expected.
        misfit: metres at the patient, how far patches of the rendered image lie beside those of
            the X-ray, in the median.
        slack: how much better they fit there: the right bone gains next to nothing.
        ray: (3,) metres in ``fixed``, from the source of the only X-ray to the target; None where
            there are several.
        across_only: whether a registration by one X-ray, which is never accepted, holds in that
            image: it tells depth by size, and bone of somebody larger is alike further away.
    """

    likeness: tuple[float, ...] = ()
    rival: float = 0.0
    moved: tuple[float, float] = (0.0, 0.0)
    disagreement: float = 0.0
    misfit: float = 0.0
    slack: float = 0.0
    ray: Points | None = None
    across_only: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is right as far as its covariance says: accepted, or across its rays."""
        return self.accepted or self.across_only

    @property
    def across_covariance(self) -> Array:
        """The (2, 2) covariance of the target across the rays of the only X-ray, m²."""
        if self.ray is None:
            raise RegistrationError('several X-rays leave no direction open')
        axes = np.linalg.svd(self.ray[None])[2][1:]
        return np.asarray(axes @ self.target_covariance @ axes.T)

    @property
    def depth_deviation(self) -> float:
        """Deviation of the target along the rays of the only X-ray, metres."""
        if self.ray is None:
            raise RegistrationError('several X-rays leave no direction open')
        return float(np.sqrt(self.ray @ self.target_covariance @ self.ray)
                     / np.linalg.norm(self.ray))

    @property
    def verdict(self) -> str:
        """One line for the operator."""
        if not self.across_only:
            return super().verdict
        across = float(np.sqrt(np.trace(self.across_covariance)))
        return (f'right across the rays of its X-ray only (expected error {1e3 * across:.2f} mm '
                f'there): {"; ".join(self.reasons)}')


@dataclass(frozen=True)
class Acceptance:
    """What a registration by X-rays must show.

    Attributes:
        limit: metres at the target.
        likeness: least, of every view.
        mean: least likeness of all views together.
        rival: greatest share of the likeness that another place may have.
        disagreement: of the views at most.
        slack: how much better parts of the bone may fit one by one, see ``slack_of``.
        confidence: least probability to be within the limit.
    """

    limit: float = LIMIT
    likeness: float = 0.4
    mean: float = 0.5
    rival: float = 0.95
    disagreement: float = 5.0
    slack: float = 0.13
    confidence: float = 0.95


def register_views(views: Sequence[View], bone: Bone, start: Transform, target: Points, *,
                   search: Search | None = None,
                   acceptance: Acceptance | None = None) -> ProjectionRegistration:
    """Lay one or more X-rays on a CT.

    Args:
        views: calibrated; one tells depth by size alone: the result is ``across_only`` at best.
        bone: of the CT, in ``moving``.
        start: (4, 4) ``fixed_T_moving``, within the search's reach.
        target: (3,) metres, in ``moving``.
        search: where to look.
        acceptance: what the result must show.

    Raises:
        RegistrationError: no view, one without calibration, or none that shows the bone.
    """
    if not views or not all(view.projection.is_calibrated and view.projection.is_perspective
                            for view in views):
        raise RegistrationError('one or more calibrated X-rays are needed; calibrate the C-arm')
    search, acceptance = search or Search(), acceptance or Acceptance()
    pivot = transform_points(start, target)
    levels = [[plate_of(view, edge, depth_of(view, pivot)) for view in views]
              for edge in bone.spacings]
    found = _registered(views, bone, levels, start, target, search, acceptance)
    if not found.holds:
        # Before it is given up other turns are tried.
        again = _registered(views, bone, levels, start, target,
                            replace(search, seed=search.seed + 1), acceptance)
        found = min(found, again, key=lambda each: (
            not each.accepted, not each.across_only, each.cost))
    return found


def _registered(views: Sequence[View], bone: Bone, levels: Sequence[Sequence[Plate]],
                start: Transform, target: Points, search: Search,
                acceptance: Acceptance) -> ProjectionRegistration:
    """Search once, from coarse to fine."""
    pivot = transform_points(start, target)
    fits = places_near(bone, levels[0], start, pivot, search)
    if not fits[0].score > 0.0:
        raise RegistrationError('the X-rays show nothing like the bone of the CT near the start; '
                                'check the start and the poses of the C-arm')
    middle = apart([refined(bone.stacks[1], levels[1], fit, pivot, bone.spacings[1], 2)
                    for fit in fits[:3]], pivot, levels[1])
    coarse, _ = settled(bone.stacks[1], levels[1], middle[0], pivot, bone.spacings[1], 12)
    best = compared(bone.stacks[-1], levels[-1], coarse.pose)
    best, system = settled(bone.stacks[-1], levels[-1], best, pivot, bone.spacings[-1], 4)
    rival = middle[1].score / middle[0].score if len(middle) > 1 else 0.0
    rival = max(rival, elsewhere(bone.stacks[0], levels[0], best.pose, pivot))
    variances = system.variances([view.doubt(pivot, len(views) == 1) for view in views])
    slack, misfit = slack_of(bone.stacks[-1], levels[-1], best.pose)
    change = best.pose @ inverse(start)
    moved = (float(np.linalg.norm(transform_points(change, pivot) - pivot)),
             rotation_angle(change[:3, :3]))
    return _judged(ProjectionRegistration(
        best.pose, _covariance(system, variances, best.pose, coarse.pose, pivot),
        np.asarray(target, float), 1.0 - best.score, 1.0, (), best.likeness, rival, moved,
        _disagreement(system, variances), misfit, slack,
        _direction(views, transform_points(best.pose, target))), search, acceptance)


def _direction(views: Sequence[View], place: Points) -> Points | None:
    """Return the way from the source of the only X-ray to a place of ``fixed``, metres."""
    return None if len(views) > 1 else np.asarray(place - views[0].fixed_T_sensor[:3, 3])


def _covariance(system: System, variances: Array, pose: Transform, coarse: Transform,
                pivot: Points) -> Array:
    """Return the (6, 6) covariance of ``fixed_T_moving``: of the images, and of their poses.

    Where a coarser resolution settles elsewhere something in the image is not of the model (soft
    tissue, blur), and neither place is known better than they differ.
    """
    scale = np.array([1.0] * 3 + [LEVER] * 3)
    information = system.information / np.outer(scale, scale)
    information += 1e-9 * np.trace(information) * np.eye(6)
    bread = np.linalg.inv(information) / np.outer(scale, scale)
    covariance = bread @ variances.sum(axis=0) @ bread.T
    change = pose @ inverse(coarse)
    apart = np.concatenate([transform_points(change, pivot) - pivot,
                            vector_from_rotation(change[:3, :3])])
    covariance += np.outer(apart, apart)
    lever = np.eye(6)
    lever[:3, 3:] = -skew(pose[:3, 3] - pivot)
    return np.asarray(lever @ (0.5 * (covariance + covariance.T)) @ lever.T)


def _disagreement(system: System, variances: Array) -> float:
    """Return how much the views pull apart, over what is expected: 1 where they agree."""
    if len(system.scores) < 2:
        return 0.0
    pulls = [scores.sum(axis=0) for scores in system.scores]
    total = sum(float(pull @ np.linalg.solve(own, pull))
                for pull, own in zip(pulls, variances, strict=True))
    return total / (6.0 * (len(pulls) - 1))


def _judged(found: ProjectionRegistration, search: Search,
            acceptance: Acceptance) -> ProjectionRegistration:
    """Say how sure a registration is, and refuse it where something speaks against it."""
    reasons = _against(found, search, acceptance)
    probability = chance_below(found.target_covariance, acceptance.limit)
    if found.ray is not None:
        across_only = not reasons and chance_below(
            found.across_covariance, acceptance.limit) >= acceptance.confidence
        reasons.append('one X-ray tells how far away bone is by its size alone (to '
                       f'{1e3 * found.depth_deviation:.1f} mm, if the CT is of this very person); '
                       'take an X-ray from another side')
        found = replace(found, across_only=across_only)
    elif probability < acceptance.confidence:
        values, vectors = np.linalg.eigh(found.target_covariance)
        reasons.append(f'known to {1e3 * float(np.sqrt(values[-1])):.1f} mm only along '
                       f'({", ".join(f"{each:.1f}" for each in vectors[:, -1])}); take an X-ray '
                       'from another side')
    if reasons:
        probability = min(probability, 1.0 - acceptance.confidence)
    return replace(found, probability=probability, reasons=tuple(reasons))


def _against(found: ProjectionRegistration, search: Search, acceptance: Acceptance) -> list[str]:
    """Return what speaks against this place."""
    reasons = []
    if min(found.likeness) < acceptance.likeness or 1.0 - found.cost < acceptance.mean:
        said = ', '.join(f'{each:.2f}' for each in found.likeness)
        reasons.append(f'the rendered bone is not like that of the X-rays (likeness {said}); check '
                       'the start, the pose of the C-arm, and whose CT this is')
    if found.moved[0] > _FURTHER * search.reach or found.moved[1] > _FURTHER * search.turn:
        reasons.append(f'{1e3 * found.moved[0]:.0f} mm and {np.degrees(found.moved[1]):.0f} '
                       'degrees from the start, more than was searched; start nearer, and check '
                       'whose CT this is')
    if found.disagreement > acceptance.disagreement:
        reasons.append('the X-rays do not agree on one place; check the poses of the C-arm, and '
                       'whether the patient moved between them')
    if found.slack > acceptance.slack:
        reasons.append(f'parts of the bone fit better one by one, {1e3 * found.misfit:.1f} mm '
                       f'aside (slack {found.slack:.2f}); check whose CT this is, which vertebra '
                       'the start was at, and whether the spine was bent otherwise')
    if found.rival > acceptance.rival:
        reasons.append(f'another place fits {found.rival:.0%} as well; start nearer, or show more '
                       'bone')
    return reasons
