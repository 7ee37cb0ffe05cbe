"""The surface of bone that ultrasound saw, laid on the bone of a CT.

Directional ICP (point to plane, Chen and Medioni, 1992) on a sampled signed distance: a point
counts only where the surface faces the beam that saw it and no bone is in that beam's way.
Robust by Geman and McClure's cost, from several starts; the cost of the others tells whether the
place is the only one, and that of bone with left and right exchanged whether the sides are right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_from_vector,
    skew,
    transform,
    transform_points,
)
from hybrid_guidance.geometry.types import Array, Pixels, Points, Transform
from hybrid_guidance.registration.result import (
    LIMIT,
    Registration,
    RegistrationError,
    chance_below,
    covariance_from,
)

_LEAST_POINTS = 60
# So many are enough to choose between places.
_FEW = 250
_FACING = 0.1
_CELL = 0.008
# How often the variance of the bone's own surface is added where points are held against it.
_LENIENT = 2.0
# Share of the deviation of the bone's own surface that is alike everywhere: too thick, too thin.
_ALIKE = 0.75
# Costs with left and right exchanged that are nearer to one another do not tell the sides apart.
_SIDES = 0.85


@dataclass(frozen=True)
class Glimpse:
    """The bone surface found in one tracked image.

    Attributes:
        points: (N, 3) metres, in the image's frame.
        beams: (N, 3) unit directions in which sound went to them, in the image's frame.
        confidence: (N,) 0 to 1.
        fixed_T_image: (4, 4) at the image's time.
    """

    points: Points
    beams: Array
    confidence: Array
    fixed_T_image: Transform

    @classmethod
    def seen(cls, pixels: Pixels, confidence: Array, projection: Projection,
             fixed_T_image: Transform, radius: float = np.inf) -> 'Glimpse':
        """Take what ``detection.bone_surface`` found in an image.

        Args:
            pixels: (N, 2) px.
            confidence: (N,) 0 to 1.
            projection: orthographic.
            fixed_T_image: (4, 4) at the image's time.
            radius: metres, of the curved face; infinite for a linear probe.

        Raises:
            RegistrationError: the image is not calibrated.
        """
        if not projection.is_calibrated:
            raise RegistrationError('an ultrasound image has no calibration; run "hybrid-guidance '
                                    'calibrate"')
        points = projection.back_project(pixels)
        return cls(points, beams_to(points, radius), confidence, fixed_T_image)


def beams_to(points: Points, radius: float) -> Array:
    """Return the (N, 3) unit directions of the beams that reach points of the image's frame.

    Args:
        points: (N, 3) metres; the origin is mid transducer face, y is depth.
        radius: metres, of the curved face; infinite for a linear probe.
    """
    if not np.isfinite(radius):
        return np.broadcast_to([0.0, 1.0, 0.0], points.shape)
    along = points + [0.0, radius, 0.0]
    return np.asarray(along / np.linalg.norm(along, axis=1, keepdims=True))


@dataclass(frozen=True)
class Cloud:
    """Points of bone, each with the beam that saw it.

    Attributes:
        points: (N, 3) metres, in ``fixed``.
        beams: (N, 3) unit directions away from the probe, in ``fixed``.
        weights: (N,) confidence, 0 to 1.
    """

    points: Points
    beams: Array
    weights: Array


def swept(glimpses: Sequence[Glimpse], cell: float = 0.0015) -> Cloud:
    """Gather a sweep into a cloud, one point for each cell.

    Args:
        glimpses: tracked images with what was found in them.
        cell: metres, edge of the cubes whose points are averaged.

    Raises:
        RegistrationError: too few points.
    """
    points, beams, weights = [np.zeros((0, 3))], [np.zeros((0, 3))], [np.zeros(0)]
    for glimpse in glimpses:
        points.append(transform_points(glimpse.fixed_T_image, glimpse.points))
        beams.append(glimpse.beams @ glimpse.fixed_T_image[:3, :3].T)
        weights.append(np.asarray(glimpse.confidence, dtype=float))
    cloud = _thinned(np.vstack(points), np.vstack(beams), np.concatenate(weights), cell)
    if len(cloud.points) < _LEAST_POINTS:
        raise RegistrationError(f'{len(cloud.points)} points of bone in the sweep, '
                                f'{_LEAST_POINTS} are needed; sweep slowly over bone, with gel')
    return cloud


def _thinned(points: Points, beams: Array, weights: Array, cell: float) -> Cloud:
    if not len(points):
        return Cloud(points, beams, weights)
    _, owner = np.unique(np.floor(points / cell).astype(int), axis=0, return_inverse=True)
    owner = owner.ravel()
    total = np.bincount(owner, weights)
    mean = [np.stack([np.bincount(owner, weights * part[:, k]) / total for k in range(3)], axis=1)
            for part in (points, beams)]
    return Cloud(mean[0], mean[1] / np.linalg.norm(mean[1], axis=1, keepdims=True),
                 total / np.bincount(owner))


@dataclass(frozen=True)
class BoneField:
    """Signed distance to bone on a grid, metres, negative inside.

    Attributes:
        origin: (3,) of the first value, in ``moving``.
        spacing: metres.
        values: (X, Y, Z).
        deviation: (3,) metres, of the surface itself where it faces x, y, z: it is not finer than
            the voxels of a CT.
    """

    origin: Points
    spacing: float
    values: Array
    deviation: Array = field(default_factory=lambda: np.zeros(3))

    @classmethod
    def sampled(cls, distance: Callable[[Points], Array], lower: Points, upper: Points,
                spacing: float = 0.001) -> 'BoneField':
        """Sample a signed distance, of a solid or a mesh, in a box."""
        axes = [np.arange(a, b + spacing, spacing) for a, b in zip(lower, upper, strict=True)]
        layers = [distance(np.stack(np.meshgrid([x], axes[1], axes[2], indexing='ij'), axis=-1))
                  for x in axes[0]]
        return cls(np.asarray(lower, dtype=float), spacing, np.concatenate(layers))

    def __call__(self, points: Points) -> tuple[Array, Array]:
        """Return (N,) distances and their (N, 3) gradients at (N, 3) points (trilinear)."""
        place = (points - self.origin) / self.spacing
        inside = np.clip(place, 0.0, np.array(self.values.shape) - 1.001)
        whole = inside.astype(int)
        x, y, z = whole.T
        u, v, w = (inside - whole).T
        at = {corner: self.values[x + corner[0], y + corner[1], z + corner[2]]
              for corner in np.ndindex(2, 2, 2)}
        along = [[at[0, j, k] + u * (at[1, j, k] - at[0, j, k]) for k in (0, 1)] for j in (0, 1)]
        low, high = (along[0][k] + v * (along[1][k] - along[0][k]) for k in (0, 1))
        across = [at[1, j, k] - at[0, j, k] for j in (0, 1) for k in (0, 1)]
        share = [(1 - v) * (1 - w), (1 - v) * w, v * (1 - w), v * w]
        slope = np.stack([sum(part * edge for part, edge in zip(share, across, strict=True)),
                          (1 - w) * (along[1][0] - along[0][0]) + w * (along[1][1] - along[0][1]),
                          high - low], axis=1)
        slope /= np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12)
        outside = np.linalg.norm(place - inside, axis=1) * self.spacing
        return low + w * (high - low) + outside, slope

    def variance(self, normal: Array) -> Array:
        """Return (N,) m², of the place of a surface that has (N, 3) normals."""
        return np.asarray(normal**2 @ self.deviation**2)

    def wide(self, scale: float, normal: Array) -> Array:
        """Return (N,) m², the square of a scale of distances and of what the surface adds."""
        return np.asarray(scale**2 + _LENIENT * self.variance(normal))

    def mirrored(self, middle: float) -> 'BoneField':
        """Return the field with left and right exchanged at x = ``middle``, metres."""
        last = self.origin[0] + self.spacing * (len(self.values) - 1)
        return replace(self, origin=np.array([2.0 * middle - last, *self.origin[1:]]),
                       values=self.values[::-1])

    def nearest(self, points: Points) -> Array:
        """Return the (N,) distances of the cells that (N, 3) points lie in; quick."""
        whole = np.rint((points - self.origin) / self.spacing).astype(int)
        x, y, z = np.clip(whole, 0, np.array(self.values.shape) - 1).T
        return np.asarray(self.values[x, y, z])


@dataclass(frozen=True)
class SurfaceRegistration(Registration):
    """A registration by surface; its cost is 0 where every point lies on bone that it could see.

    Attributes:
        fitting: share of the points on bone that faces them: within 1.5 mm, and what the bone's
            own surface may be off by.
        free: (3,) unit direction, in ``fixed``, in which the target is known least.
        rival: cost of the next place that is another one, as a multiple of its own; infinite
            where there is none.
        mirrored: cost of the bone with left and right exchanged, likewise.
        count: of the points.
        residual: metres, root mean square distance of those that fit.
    """

    fitting: float = 0.0
    free: Array = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))
    rival: float = np.inf
    mirrored: float = np.inf
    count: int = 0
    residual: float = 0.0

    @property
    def verdict(self) -> str:
        """One line for the operator."""
        words = super().verdict
        if self.accepted and self.mirrored < 1.0 / _SIDES:
            words += '; left and right look alike, check the side of the CT by a marker'
        return words


@dataclass(frozen=True)
class Acceptance:
    """What a surface registration must show.

    Attributes:
        limit: metres at the target.
        fitting: least share of points on bone that faces them.
        cost: at most.
        lead: of the cost over the next place, as a share of it.
        sides: least cost of the bone with left and right exchanged, as a share of its own.
        confidence: least probability to be within the limit.
    """

    limit: float = LIMIT
    fitting: float = 0.85
    cost: float = 0.2
    lead: float = 0.85
    sides: float = _SIDES
    confidence: float = 0.95


def register_surface(cloud: Cloud, bone: BoneField, start: Transform, target: Points, *,
                     common: float = 0.0005, starts: int = 32, seed: int = 0,
                     acceptance: Acceptance | None = None) -> SurfaceRegistration:
    """Lay a cloud of bone on a bone.

    Args:
        cloud: in ``fixed``.
        bone: in ``moving``.
        start: (4, 4) ``fixed_T_moving``, within about 10 mm and 10°.
        target: (3,) metres, in ``moving``.
        common: metres, deviation per axis of what is alike in all points (where in its echo
            bone is, probe calibration at that depth): no number of points averages it away.
        starts: how many places around ``start`` to begin at.
        seed: of those places.
        acceptance: what the result must show.
    """
    pose, cost, others = _placed(cloud, bone, inverse(start), starts, seed)
    # Where the sides of a CT were told wrong, its mirror image fits better.
    middle = float(np.median(transform_points(pose, cloud.points)[:, 0]))
    _, across, _ = _placed(cloud, bone.mirrored(middle), pose, starts, seed)
    rivals = _rival(pose, others, target, _some(cloud, _FEW), bone), across / max(cost, 1e-6)
    return _judged(cloud, bone, pose, cost, rivals, target, common, acceptance or Acceptance())


_Place = tuple[Transform, float]


def _placed(cloud: Cloud, bone: BoneField, pose: Transform, starts: int,
            seed: int) -> tuple[Transform, float, list[_Place]]:
    """Return the best pose, its cost, and the coarser places that all starts ended at."""
    middle = transform_points(pose, cloud.points).mean(axis=0)
    few = _some(cloud, _FEW)
    begun = [_moved(pose, offset, middle) for offset in _offsets(starts, seed)]
    ends = [_settled(few, bone, each, middle, (0.006, 0.004, 0.0025, 0.0015)) for each in begun]
    places = sorted(((each, _cost(few, bone, each)) for each in ends), key=lambda place: place[1])
    fine = [_settled(cloud, bone, each, middle, (0.0015, 0.001, 0.001)) for each, _ in places[:3]]
    best = min(fine, key=lambda each: _cost(cloud, bone, each))
    return best, _cost(cloud, bone, best), places


def _offsets(count: int, seed: int) -> Array:
    """Return (count, 6) metres and radians; the first is none."""
    random = np.random.default_rng([seed, 0x5f])
    offsets = random.uniform(-1.0, 1.0, (count, 6)) * ([0.010] * 3 + [np.radians(8.0)] * 3)
    offsets[0] = 0.0
    return np.asarray(offsets)


def _moved(pose: Transform, offset: Array, middle: Points) -> Transform:
    """Turn and shift about a point of ``moving``."""
    turn = rotation_from_vector(offset[3:])
    return np.asarray(transform(turn, middle - turn @ middle + offset[:3]) @ pose)


def _some(cloud: Cloud, count: int) -> Cloud:
    step = max(len(cloud.points) // count, 1)
    return Cloud(cloud.points[::step], cloud.beams[::step], cloud.weights[::step])


def _seen(cloud: Cloud, bone: BoneField,
          pose: Transform) -> tuple[Points, Array, Array, NDArray[np.bool_]]:
    """Return points in ``moving``, distances, normals, and which face their beam, unhidden."""
    points, beams = transform_points(pose, cloud.points), cloud.beams @ pose[:3, :3].T
    # The surface before a point counts, not the far side of thin bone that it lies in.
    back = float(np.max(bone.deviation))
    distance, normal = bone(points - back * beams)
    distance = distance + back * np.einsum('ij,ij->i', normal, beams)
    good = np.asarray(np.einsum('ij,ij->i', normal, beams) < -_FACING)
    for back in (0.004, 0.008):
        good &= bone.nearest(points - back * beams) > -0.001
    return points, distance, normal, good


def _settled(cloud: Cloud, bone: BoneField, pose: Transform, middle: Points,
             scales: Sequence[float]) -> Transform:
    """Gauss and Newton at ever finer scales of the robust cost."""
    for scale in scales:
        for _ in range(5):
            points, distance, normal, good = _seen(cloud, bone, pose)
            weight = good * cloud.weights / (1.0 + distance**2 / bone.wide(scale, normal)) ** 2
            jacobian = np.hstack([normal, np.cross(points - middle, normal)])
            information = jacobian.T @ (weight[:, None] * jacobian)
            # Where the surface is flat, a step is not taken rather than taken anywhere.
            information += 1e-3 * weight.sum() * np.diag([1.0] * 3 + [1e-3] * 3) + 1e-12 * np.eye(6)
            step = np.asarray(-np.linalg.solve(information, jacobian.T @ (weight * distance)),
                              dtype=float)
            pose = _moved(pose, step, middle)
            if float(np.linalg.norm(step[:3])) < 2e-5:
                break
    return pose


def _cost(cloud: Cloud, bone: BoneField, pose: Transform, scale: float = 0.0015) -> float:
    _, distance, normal, good = _seen(cloud, bone, pose)
    ratio = distance**2 / bone.wide(scale, normal)
    each = np.where(good, ratio / (1.0 + ratio), 1.0)
    return float(cloud.weights @ each / cloud.weights.sum())


def _rival(best: Transform, others: Sequence[_Place], target: Points, cloud: Cloud,
           bone: BoneField) -> float:
    """Return the cost of the next place, as a multiple of the best one's."""
    own = _cost(cloud, bone, best)
    place = transform_points(inverse(best), target)
    costs = [cost for pose, cost in others
             if np.linalg.norm(transform_points(inverse(pose), target) - place) > LIMIT]
    return min(costs) / max(own, 1e-6) if costs else np.inf


def _judged(cloud: Cloud, bone: BoneField, pose: Transform, cost: float,
            rivals: tuple[float, float], target: Points, common: float,
            acceptance: Acceptance) -> SurfaceRegistration:
    points, distance, normal, good = _seen(cloud, bone, pose)
    fits = good & (distance**2 < bone.wide(0.0015, normal))
    fitting = float(np.mean(fits))
    covariance = _covariance(cloud, bone, pose, points, distance, normal, good, common)
    plain = Registration(inverse(pose), covariance, np.asarray(target, float), cost, 1.0)
    values, vectors = np.linalg.eigh(plain.target_covariance)
    probability = chance_below(plain.target_covariance, acceptance.limit)
    reasons = []
    if fitting < acceptance.fitting or cost > acceptance.cost:
        reasons.append(f'only {fitting:.0%} of the points lie on bone that they could see (cost '
                       f'{cost:.2f}); check the start, the CT and the probe calibration')
    if rivals[0] < 1.0 / acceptance.lead:
        reasons.append('the surface fits at another place nearly as well; sweep over more bone')
    if rivals[1] < acceptance.sides:
        reasons.append('bone with left and right exchanged fits better; check the sides of the CT')
    if probability < acceptance.confidence:
        reasons.append(f'known to {1e3 * float(np.sqrt(values[-1])):.1f} mm only along '
                       f'{_named(vectors[:, -1])}; sweep over bone that is steep there')
    if reasons:
        probability = min(probability, 1.0 - acceptance.confidence)
    return SurfaceRegistration(plain.transform, covariance, plain.target, cost, probability,
                               tuple(reasons), fitting, vectors[:, -1], *rivals, len(points),
                               float(np.sqrt(np.mean(distance[fits]**2))) if fits.any() else 0.0)


def _named(direction: Array) -> str:
    axis = int(np.argmax(np.abs(direction)))
    x, y, z = direction * np.sign(direction[axis])
    return f'{"xyz"[axis]} ({x:.1f}, {y:.1f}, {z:.1f})'


def _covariance(cloud: Cloud, bone: BoneField, pose: Transform, points: Points,
                distance: Array, normal: Array, good: NDArray[np.bool_], common: float) -> Array:
    """Return the (6, 6) covariance of ``fixed_T_moving``.

    Points of one cell err alike (speckle, thickness of the slice, surface of the CT): each cell
    counts once, and six of them are used up by the pose.
    """
    weight = good * cloud.weights / (1.0 + distance**2 / bone.wide(0.001, normal)) ** 2
    _, owner, size = np.unique(np.floor(cloud.points / _CELL).astype(int), axis=0,
                               return_inverse=True, return_counts=True)
    middle = points.mean(axis=0)
    jacobian = np.hstack([normal, np.cross(points - middle, normal)])
    share = weight / size[owner.ravel()]
    cells = len(np.unique(owner.ravel()[good]))
    variance = (float(weight @ distance**2) / max(float(weight.sum()), 1e-9) * cells
                / max(cells - 6, 1) + common**2)
    own = covariance_from(jacobian.T @ (share[:, None] * jacobian) / variance)
    # How the pose follows a bone that is too thick or too thin everywhere.
    off = _ALIKE * np.sqrt(bone.variance(normal))
    follows = own @ (jacobian.T @ (share * off)) / variance
    own[:3, :3] += common**2 * np.eye(3)
    own += np.outer(follows, follows)
    turn = pose[:3, :3].T
    change = -np.block([[turn, turn @ skew(middle)], [np.zeros((3, 3)), turn]])
    return np.asarray(change @ own @ change.T)
