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
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import affine_transform

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_angle,
    rotation_from_vector,
    skew,
    transform,
    transform_points,
    vector_from_rotation,
)
from hybrid_guidance.geometry.types import Array, Image, Points, Transform
from hybrid_guidance.imaging.volume import Volume
from hybrid_guidance.registration.result import (
    Registration,
    RegistrationError,
    chance_below,
)
from hybrid_guidance.simulation.anatomy import Grid
from hybrid_guidance.simulation.xray import Stack, coarse_pixels

LIMIT = 0.003
_SPACINGS = (0.003, 0.0016, 0.001)
# Hounsfield units at which bone begins, and that one step of a voxel stands for.
_SOFT, _STEP = 100.0, 5.0
# How far from the faces of the volume bone fades: a cut bone is no edge of the patient, metres.
_FADE = 0.012
# A radian moves what is this far from the pivot, metres: how turns are weighed against shifts.
_LEVER = 0.05
# Patches whose pixels err alike, metres at the patient.
_PATCH = 0.008
# Deviation of the size of what a view shows, as a share of it.
_SCALE = 0.0017
# Parts of the image are shifted by as many pixels to either side; their likeness counts where it
# is at least so great, and as if at least this share of each were noise.
_REACH, _ALIKE, _NEVER = 5, 0.5, 0.05
# Deviation of the size of one person's bone from another's that is like it, as a share of it.
_SIZES = 0.02
# How much further than the search a result may be.
_FURTHER = 1.25
_LOCAL = 5.0
_FLOOR = 0.5

Picture = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """A calibrated X-ray.

    Attributes:
        image: (H, W) counts, proportional to photons: air is bright.
        projection: perspective.
        fixed_T_sensor: (4, 4) of the X-ray source, as tracked.
        hidden: (H, W) True where something lies that the CT has not (needle, markers); None
            where nothing does.
        position_sigma: metres, deviation per axis of the tracked source.
        rotation_sigma: radians, deviation per axis of its tracked rotation.
    """

    image: Image
    projection: Projection
    fixed_T_sensor: Transform
    hidden: NDArray[np.bool_] | None = None
    position_sigma: float = 0.0002
    rotation_sigma: float = 0.0002

    def doubt(self, pivot: Points) -> Array:
        """Return the (6, 6) covariance of where a point of ``fixed`` is for this X-ray.

        The size of what is seen errs as well (focal length, where in its blur an edge is): that
        is a shift along the rays.
        """
        ray = pivot - self.fixed_T_sensor[:3, 3]
        lever = np.vstack([-skew(ray), np.eye(3)])
        result = self.rotation_sigma**2 * lever @ lever.T
        result[:3, :3] += self.position_sigma**2 * np.eye(3) + _SCALE**2 * np.outer(ray, ray)
        return np.asarray(result)


@dataclass(frozen=True)
class Bone:
    """The bone of a CT, ready to be rendered at several resolutions.

    Attributes:
        stacks: from coarse to fine.
        spacings: edges of their voxels, metres.
        centre: (3,) metres, middle of the bone, in ``moving``.
    """

    stacks: tuple[Stack, ...]
    spacings: tuple[float, ...]
    centre: Points

    @classmethod
    def from_hounsfield(cls, volume: Image, origin: Points, spacing: Array,
                        mask: NDArray[np.bool_] | None = None,
                        spacings: Sequence[float] = _SPACINGS) -> 'Bone':
        """Take the bone out of a CT.

        Args:
            volume: (Z, Y, X) Hounsfield units, axes along those of ``moving``.
            origin: (3,) metres, x, y, z of the first voxel's centre.
            spacing: (3,) metres, x, y, z.
            mask: (Z, Y, X) True where bone counts (one vertebra, a block), a little larger
                than the bone itself; None is everywhere.
            spacings: from coarse to fine, metres.

        Raises:
            RegistrationError: no bone.
        """
        bone = np.clip((np.asarray(volume, np.float32) - _SOFT) / _STEP, 0.0, 255.0)
        if mask is not None:
            bone *= mask
        bone *= _faded(bone.shape, np.asarray(spacing, float)[::-1])
        if not np.any(bone > 20.0):
            raise RegistrationError('the CT has no bone above 200 HU there; check its units and '
                                    'the region')
        place = [np.average(np.arange(count), weights=bone.sum(axis=tuple(
            axis for axis in range(3) if axis != which))) for which, count in enumerate(bone.shape)]
        stacks = []
        for edge in spacings:
            voxels, start = _resampled(bone, np.asarray(origin, float), np.asarray(spacing, float),
                                       edge)
            stacks.append(Stack(voxels, Grid(start, edge, voxels.shape)))
        return cls(tuple(stacks), tuple(spacings), origin + spacing * np.array(place[::-1]))


def aligned(volume: Volume, edge: float = 0.001) -> tuple[Image, Points, Array]:
    """Return a volume as (values, origin, spacing) along the axes of the patient.

    One whose slices lie square to them (most CTs) is turned; any other is interpolated.

    Args:
        volume: of a CT or of labels.
        edge: metres, of the voxels where it is interpolated.
    """
    turn = volume.patient_T_voxel[:3, :3] / volume.spacing
    if np.abs(np.abs(turn) - np.rint(np.abs(turn))).max() < 1e-3:
        # Which axis of the file runs along x, y, z of the patient, and whether backwards.
        order = np.argmax(np.abs(turn), axis=1)
        backwards = [bool(turn[axis, which] < 0.0) for axis, which in enumerate(order)]
        values = volume.values.transpose([2 - order[axis] for axis in (2, 1, 0)])
        values = values[tuple(slice(None, None, -1 if backwards[axis] else 1)
                              for axis in (2, 1, 0))]
        first = np.zeros(3)
        for axis, which in enumerate(order):
            if backwards[axis]:
                first[which] = volume.values.shape[2 - which] - 1
        return values, transform_points(volume.patient_T_voxel, first), volume.spacing[order]
    ends = [(0.0, count - 1.0) for count in volume.values.shape[::-1]]
    corners = transform_points(volume.patient_T_voxel, np.array(list(product(*ends)), np.float64))
    lower, upper = corners.min(axis=0), corners.max(axis=0)
    shape = np.ceil((upper - lower) / edge).astype(int) + 1
    voxel_T_patient = np.linalg.inv(volume.patient_T_voxel)
    matrix = edge * voxel_T_patient[:3, :3]
    start = transform_points(np.asarray(voxel_T_patient, float), lower)
    values = affine_transform(volume.values.astype(np.float32), matrix[::-1, ::-1], start[::-1],
                              tuple(shape[::-1]), order=1, cval=float(volume.values.min()))
    return values, lower, np.full(3, edge)


def _faded(shape: tuple[int, ...], spacing: Array) -> Picture:
    """Return what is left of bone near the faces of the volume, (Z, Y, X)."""
    ramps = (step / _FADE * np.minimum(np.arange(count), np.arange(count)[::-1])
             for count, step in zip(shape, spacing, strict=True))
    z, y, x = (np.clip(ramp, 0.0, 1.0) for ramp in ramps)
    return np.asarray(z[:, None, None] * y[:, None] * x, np.float32)


def _resampled(volume: Picture, origin: Points, spacing: Array,
               edge: float) -> tuple[NDArray[np.uint8], Points]:
    """Return a volume in cubic voxels, (Z, Y, X) uint8, and the centre of its first voxel."""
    start = origin.copy()
    for axis in range(3):
        width = float(spacing[2 - axis])
        count = max(round(volume.shape[axis] * width / edge), 1)
        flat = np.moveaxis(volume, axis, 0).reshape(volume.shape[axis], -1)
        rest = [size for which, size in enumerate(volume.shape) if which != axis]
        place = np.asarray((np.arange(count) + 0.5) * edge / width - 0.5, float)
        volume = np.moveaxis(_averaged(flat, place, edge / width).reshape(count, *rest), 0, axis)
        start[2 - axis] += place[0] * width
    return np.ascontiguousarray(np.clip(np.round(volume), 0, 255).astype(np.uint8)), start


def _averaged(rows: Picture, place: Array, width: float) -> Picture:
    """Return rows interpolated at places (in rows), each averaged over a width."""
    result = np.zeros((len(place), rows.shape[1]), np.float32)
    steps = max(int(np.ceil(width)), 1)
    for step in range(steps):
        at = np.clip(place + ((step + 0.5) / steps - 0.5) * width * (steps > 1), 0.0,
                     len(rows) - 1.0)
        low = np.minimum(at.astype(int), max(len(rows) - 2, 0))
        share = (at - low).astype(np.float32)[:, None]
        high = np.minimum(low + 1, len(rows) - 1)
        result += (rows[low] * (1 - share) + rows[high] * share) / np.float32(steps)
    return result


def shadow(size: tuple[int, int], lines: Sequence[Array] = (), width: float = 12.0,
           discs: Sequence[Array] = ()) -> NDArray[np.bool_]:
    """Return the pixels that needles and markers hide, (H, W).

    Args:
        size: (width, height) px.
        lines: (2, 2) px, ends of each needle.
        width: px, of the strip about a needle.
        discs: (u, v, radius) px of each marker.
    """
    mask = np.zeros(size[::-1], np.uint8)
    for line in lines:
        ends = [tuple(int(value) for value in np.clip(np.rint(end), -30000, 30000))
                for end in line]
        cv2.line(mask, ends[0], ends[1], 1, max(round(width), 1))
    for u, v, radius in discs:
        cv2.circle(mask, (round(u), round(v)), int(np.ceil(radius)), 1, -1)
    return np.asarray(mask, bool)


@dataclass(frozen=True)
class _Plate:
    """A view at one resolution.

    Attributes:
        feature: (2, h, w) normalised gradients.
        valid: (h, w) 0 where pixels do not count.
        matrix: (3, 4) projection to these pixels.
        fixed_T_sensor: (4, 4).
        pixel: metres at the patient.
    """

    feature: Picture
    valid: Picture
    matrix: Array
    fixed_T_sensor: Transform
    pixel: float

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.valid.shape
        return rows, columns


def _plate(view: View, edge: float, depth: float) -> _Plate:
    """Bring a view to pixels as large, at the patient, as a voxel's edge."""
    focal = float(view.projection.matrix[0, 0])
    step = max(round(0.9 * edge * focal / depth), 1)
    rows, columns = (count // step * step for count in view.image.shape)
    counts = np.asarray(view.image[:rows, :columns], np.float32)
    hidden = (np.zeros(view.image.shape, bool) if view.hidden is None
              else view.hidden)[:rows, :columns]
    # What blades cover is dark beyond what any patient makes.
    dark = counts < max(1e-3 * float(np.percentile(counts, 99.0)), 1.0)
    bad = (hidden | dark).astype(np.float32)
    size = (columns // step, rows // step)
    small = cv2.resize(counts * (1.0 - bad), size, interpolation=cv2.INTER_AREA)
    covered = np.asarray(cv2.resize(bad, size, interpolation=cv2.INTER_AREA), np.float32)
    seen = np.maximum(1.0 - covered, 1e-3)
    integral = -cv2.log(np.maximum(small / seen, 1.0))
    outside = cv2.dilate((covered > 0.3).astype(np.uint8), np.ones((5, 5), np.uint8))
    valid = np.asarray(1 - outside, np.float32)
    valid[:2] = valid[-2:] = valid[:, :2] = valid[:, -2:] = 0.0
    feature, _ = _features(np.asarray(integral, np.float32), valid)
    return _Plate(feature, valid, coarse_pixels(step) @ view.projection.matrix,
                  view.fixed_T_sensor, step * depth / focal)


def _features(integral: Picture, valid: Picture | None = None) -> tuple[Picture, Picture]:
    """Return gradients over their local strength, (2, h, w), and how strong they are, 0 to 1."""
    smooth = cv2.GaussianBlur(integral, (0, 0), 0.8)
    gradient = np.stack([cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3),
                         cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3)])
    if valid is not None:
        gradient *= valid
    power = gradient[0] ** 2 + gradient[1] ** 2
    local = cv2.GaussianBlur(power, (0, 0), _LOCAL)
    if valid is not None:
        local = local / np.maximum(cv2.GaussianBlur(valid, (0, 0), _LOCAL), 0.05)
    some = local[local > 1e-3 * float(local.max() + 1e-20)]
    floor = _FLOOR * float(np.mean(some)) if some.size else 1.0
    strength = local / (local + floor)
    return np.asarray(gradient / np.sqrt(local + floor), np.float32), np.asarray(strength,
                                                                               np.float32)


def _rendered(stack: Stack, plate: _Plate, pose: Transform) -> Picture:
    return stack.integrate(plate.matrix, inverse(pose) @ plate.fixed_T_sensor, plate.shape)


def _moved(pose: Transform, offset: Array, pivot: Points) -> Transform:
    """Turn about a point of ``fixed`` and shift."""
    turn = rotation_from_vector(offset[3:])
    return np.asarray(transform(turn, pivot - turn @ pivot + offset[:3]) @ pose)


def _likeness(plate: _Plate, feature: Picture, weight: Picture) -> float:
    """Return the correlation of gradients where they count, -1 to 1."""
    both = float(np.sum(weight * (plate.feature * feature).sum(axis=0)))
    own = float(np.sum(weight * (plate.feature**2).sum(axis=0)))
    other = float(np.sum(weight * (feature**2).sum(axis=0)))
    return float(both / max(np.sqrt(own * other), 1e-12))


@dataclass(frozen=True)
class _Fit:
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
        return float(np.mean(self.likeness))


def _compared(stack: Stack, plates: Sequence[_Plate], pose: Transform) -> _Fit:
    found, looks = [], []
    for plate in plates:
        feature, strength = _features(_rendered(stack, plate, pose))
        looks.append((feature, strength * plate.valid))
        found.append(_likeness(plate, *looks[-1]))
    return _Fit(pose, tuple(found), tuple(looks))


@dataclass(frozen=True)
class _System:
    """Normal equations of one place.

    Attributes:
        informations: (views, 6, 6).
        scores: of each view (patches, 6): the gradient, patch by patch.
    """

    informations: Array
    scores: tuple[Array, ...]

    @property
    def information(self) -> Array:
        # What no picture shows at all is known to a metre or a radian: never singular.
        return np.asarray(self.informations.sum(axis=0) + np.eye(6))

    @property
    def gradient(self) -> Array:
        return np.asarray(sum(each.sum(axis=0) for each in self.scores))

    def variances(self, doubts: Sequence[Array]) -> Array:
        """Return the (views, 6, 6) covariance of each view's gradient: its patches, its pose."""
        result = []
        for own, scores, doubt in zip(self.informations, self.scores, doubts, strict=True):
            count = len(scores)
            result.append(scores.T @ scores * count / max(count - 6, 1) + own @ doubt @ own
                          + np.eye(6))
        return np.array(result)


def _slopes(stack: Stack, plates: Sequence[_Plate], fit: _Fit, pivot: Points, edge: float,
            central: bool) -> list[Picture]:
    """Return how features change with shifts and turns, (6, 2, h, w) of each view.

    By rendering half a voxel aside, to both sides where it is central.
    """
    steps = 0.5 * edge / np.array([1.0] * 3 + [_LEVER] * 3)
    result = []
    for plate, (here, _) in zip(plates, fit.looks, strict=True):
        slopes = np.empty((6, *here.shape), np.float32)
        for index, step in enumerate(steps):
            offset = np.zeros(6)
            offset[index] = step
            ahead, behind = (_features(_rendered(stack, plate, _moved(fit.pose, each, pivot)))[0]
                             if central or each[index] > 0.0 else here
                             for each in (offset, -offset))
            slopes[index] = (ahead - behind) / np.float32(step * (2.0 if central else 1.0))
        result.append(slopes)
    return result


def _system(plates: Sequence[_Plate], fit: _Fit, slopes: Sequence[Picture]) -> _System:
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
        scores.append(_by_patch(each, used, max(round(_PATCH / plate.pixel), 1)))
    return _System(np.array(informations, float), tuple(scores))


def _by_patch(each: Picture, used: NDArray[np.bool_], size: int) -> Array:
    """Return the sums over patches of (6, N) values where ``used`` is, (patches, 6)."""
    rows, columns = np.nonzero(used)
    _, owner = np.unique(rows // size * 100000 + columns // size, return_inverse=True)
    return np.stack([np.bincount(owner.ravel(), one) for one in each], axis=1)


def _refined(stack: Stack, plates: Sequence[_Plate], fit: _Fit, pivot: Points, edge: float,
             rounds: int) -> _Fit:
    """Levenberg and Marquardt from one place; slopes serve until they lead nowhere."""
    fit = _compared(stack, plates, fit.pose)
    for _ in range(rounds):
        slopes, begun, damping = _slopes(stack, plates, fit, pivot, edge, False), fit, 1e-3
        for _ in range(5):
            system = _system(plates, fit, slopes)
            information = system.information + damping * np.diag(np.diag(system.information))
            step = np.asarray(np.linalg.solve(information, system.gradient), float)
            trial = _compared(stack, plates, _moved(fit.pose, step, pivot))
            if trial.score <= fit.score:
                damping *= 100.0
                if damping > 20.0 or fit is not begun:
                    break
                continue
            gained, fit = trial.score - fit.score, trial
            if gained < 1e-3:
                break
        if _distance(fit.pose, begun.pose, pivot, plates) < 0.03 * edge:
            break
    return fit


def _settled(stack: Stack, plates: Sequence[_Plate], fit: _Fit, pivot: Points, edge: float,
             rounds: int) -> tuple[_Fit, _System]:
    """Gauss and Newton to the end; the likeness is too flat to lead there (one view's depth)."""
    slopes, taken = _slopes(stack, plates, fit, pivot, edge, True), fit
    system = _system(plates, fit, slopes)
    for _ in range(rounds):
        step = np.asarray(np.linalg.solve(system.information, system.gradient), float)
        trial = _compared(stack, plates, _moved(fit.pose, step, pivot))
        if trial.score < fit.score - 0.003:
            break
        fit = trial
        if _distance(fit.pose, taken.pose, pivot, ()) > 2.0 * edge:
            slopes, taken = _slopes(stack, plates, fit, pivot, edge, True), fit
        system = _system(plates, fit, slopes)
        if float(np.linalg.norm(step[:3])) < 0.05 * edge:
            break
    return fit, system


def _distance(first: Transform, second: Transform, pivot: Points,
              plates: Sequence[_Plate]) -> float:
    """Return how far two poses are apart near a point of ``fixed``, metres, as far as is seen.

    One view does not see along its rays; without any, all of it counts.
    """
    change = first @ inverse(second)
    shift = transform_points(change, pivot) - pivot
    if len(plates) == 1:
        ray = plates[0].fixed_T_sensor[:3, 2]
        shift = shift - (ray @ shift) * ray
    return float(np.linalg.norm(shift)) + _LEVER * rotation_angle(change[:3, :3])


_Spectra = tuple[tuple[int, int], list[NDArray[np.complex64]]]


def _spectra(plates: Sequence[_Plate]) -> list[_Spectra]:
    """Return of each view the size for all shifts, and the spectra of what is compared there."""
    result = []
    for plate in plates:
        rows, columns = (next_fast_len(2 * count, real=True) for count in plate.shape)
        pictures = [*(plate.feature * plate.valid), (plate.feature**2).sum(axis=0) * plate.valid,
                    plate.valid]
        result.append(((rows, columns), [rfft2(each, (rows, columns)) for each in pictures]))
    return result


def _maps(stack: Stack, plates: Sequence[_Plate], spectra: Sequence[_Spectra],
          pose: Transform) -> list[Picture]:
    """Return of each view the likeness for all shifts of the rendered image, (>= 2h, >= 2w).

    Index (v, u) is a shift by v rows and u columns, modulo the size.
    """
    result = []
    for plate, (shape, (across, down, power, valid)) in zip(plates, spectra, strict=True):
        feature, strength = _features(_rendered(stack, plate, pose))
        u, v, weight, weighted = (np.conj(rfft2(each, shape)) for each in (
            *(feature * strength), strength, strength * (feature**2).sum(axis=0)))
        both, own, other = (np.asarray(irfft2(each, shape), np.float32) for each in (
            across * u + down * v, power * weight, valid * weighted))
        # Where little is left in the picture, nothing is known.
        least = 0.35 * float(other.max())
        norm = np.maximum(own, 1e-6 * own.max()) * np.maximum(other, least) + 1e-12
        result.append(np.asarray(np.where(other > least, both / np.sqrt(norm), 0.0), np.float32))
    return result


def _shifts(plates: Sequence[_Plate], maps: Sequence[Picture], pivot: Points,
            offsets: Points) -> Array:
    """Return the mean likeness after (N, 3) shifts of the patient, (N,)."""
    total = np.zeros(len(offsets))
    for plate, likeness in zip(plates, maps, strict=True):
        sensor_T_fixed = inverse(plate.fixed_T_sensor)
        points = transform_points(sensor_T_fixed, np.vstack([pivot, pivot + offsets]))
        pixels = points @ plate.matrix[:, :3].T
        pixels = pixels[:, :2] / pixels[:, 2:]
        shift = np.rint(pixels[1:] - pixels[0]).astype(int)
        inside = np.all(np.abs(shift) < np.array(plate.shape[::-1]), axis=1)
        rows, columns = likeness.shape
        total += np.where(inside, likeness[shift[:, 1] % rows, shift[:, 0] % columns], 0.0)
    return total / len(plates)


def _elsewhere(stack: Stack, plates: Sequence[_Plate], pose: Transform, pivot: Points) -> float:
    """Return the greatest likeness after a shift by 12 to 60 mm, as a share of that of none."""
    line = np.arange(-0.060, 0.0601, 0.003)
    offsets = np.stack(np.meshgrid(line, line, line, indexing='ij'), axis=-1).reshape(-1, 3)
    length = np.linalg.norm(offsets, axis=1)
    rays = np.stack([plate.fixed_T_sensor[:3, 2] for plate in plates])
    across = length if len(plates) > 1 else np.linalg.norm(np.cross(offsets, rays[0]), axis=1)
    offsets = offsets[(across > 0.012) & (length < 0.060)]
    maps = _maps(stack, plates, _spectra(plates), pose)
    here = float(_shifts(plates, maps, pivot, np.zeros((1, 3)))[0])
    return float(_shifts(plates, maps, pivot, offsets).max()) / max(here, 1e-6)


@dataclass(frozen=True)
class Search:
    """Where to look, and how hard.

    Attributes:
        reach: metres around the start.
        turn: radians around the start.
        starts: how many turns to try.
        kept: how many places to refine.
        seed: of the turns.
    """

    reach: float = 0.022
    turn: float = float(np.radians(11.0))
    starts: int = 48
    kept: int = 8
    seed: int = 0


def _found(bone: Bone, plates: Sequence[_Plate], start: Transform, pivot: Points,
           search: Search) -> list[_Fit]:
    """Return the most promising places about a start, best first."""
    random = np.random.default_rng([search.seed, 0x2d3d])
    stack, edge, spectra = bone.stacks[0], bone.spacings[0], _spectra(plates)
    line = np.arange(-search.reach, search.reach + 1e-9, edge)
    offsets = np.stack(np.meshgrid(line, line, line, indexing='ij'), axis=-1).reshape(-1, 3)
    offsets = offsets[np.linalg.norm(offsets, axis=1) <= search.reach + edge]
    # One view does not see shifts along its rays: they are tried as turns are.
    depth = plates[0].fixed_T_sensor[:3, 2] * (search.reach if len(plates) == 1 else 0.0)
    places: list[tuple[float, Transform]] = []
    for number in range(search.starts):
        turn = random.normal(size=3)
        turn *= search.turn * random.uniform() ** (1 / 3) / np.linalg.norm(turn)
        shift = depth * random.uniform(-1.0, 1.0)
        if number == 0:
            turn, shift = np.zeros(3), np.zeros(3)
        pose = _moved(start, np.concatenate([shift, turn]), pivot)
        score = _shifts(plates, _maps(stack, plates, spectra, pose), pivot, offsets)
        for _ in range(2):
            best = int(np.argmax(score))
            places.append((float(score[best]),
                           _moved(pose, np.concatenate([offsets[best], np.zeros(3)]), pivot)))
            score[np.linalg.norm(offsets - offsets[best], axis=1) < 0.010] = -1.0
    places.sort(key=lambda place: -place[0])
    chosen: list[Transform] = []
    for _, pose in places:
        if all(_distance(pose, other, pivot, plates) > 0.006 for other in chosen):
            chosen.append(pose)
        if len(chosen) == search.kept:
            break
    fits = [_refined(stack, plates, _Fit(pose), pivot, edge, 2) for pose in chosen]
    return _apart(fits, pivot, plates)


def _apart(fits: Sequence[_Fit], pivot: Points, plates: Sequence[_Plate]) -> list[_Fit]:
    """Return fits that are different places, best first."""
    kept: list[_Fit] = []
    for fit in sorted(fits, key=lambda each: -each.score):
        if all(_distance(fit.pose, other.pose, pivot, plates) > 3.0 * LIMIT for other in kept):
            kept.append(fit)
    return kept


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
        across_only: whether a registration by one X-ray holds in that image, and does not say how
            far away the bone is to the limit: by its covariance, or as the bone is perhaps that of
            somebody else, much like it but of another size.
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
        slack: how much better parts of the bone may fit one by one, see ``_parts``: in an image
            that is wholly alike, and what is added in one wholly unlike (noise helps parts, too).
        slack_of_several: the same of several X-rays, whose poses err: no place suits all of them.
        look_alike: slack of one X-ray up to which it holds across its rays, at least.
        confidence: least probability to be within the limit.
    """

    limit: float = LIMIT
    likeness: float = 0.4
    mean: float = 0.5
    rival: float = 0.95
    disagreement: float = 5.0
    slack: tuple[float, float] = (0.03, 0.16)
    slack_of_several: float = 0.15
    look_alike: float = 0.13
    confidence: float = 0.95


def register_views(views: Sequence[View], bone: Bone, start: Transform, target: Points, *,
                   search: Search | None = None,
                   acceptance: Acceptance | None = None) -> ProjectionRegistration:
    """Lay one or more X-rays on a CT.

    Args:
        views: calibrated; one leaves its depth open, and the covariance says so.
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
    levels = [[_plate(view, edge, _depth(view, pivot)) for view in views]
              for edge in bone.spacings]
    found = _registered(views, bone, levels, start, target, search, acceptance)
    if not (found.accepted or found.across_only):
        # Before it is given up other turns are tried.
        again = _registered(views, bone, levels, start, target,
                            replace(search, seed=search.seed + 1), acceptance)
        found = min(found, again, key=lambda each: (
            not each.accepted, not each.across_only, each.cost))
    return found


def _registered(views: Sequence[View], bone: Bone, levels: Sequence[Sequence[_Plate]],
                start: Transform, target: Points, search: Search,
                acceptance: Acceptance) -> ProjectionRegistration:
    """Search once, from coarse to fine."""
    pivot = transform_points(start, target)
    fits = _found(bone, levels[0], start, pivot, search)
    if not fits[0].score > 0.0:
        raise RegistrationError('the X-rays show nothing like the bone of the CT near the start; '
                                'check the start and the poses of the C-arm')
    middle = _apart([_refined(bone.stacks[1], levels[1], fit, pivot, bone.spacings[1], 2)
                     for fit in fits[:3]], pivot, levels[1])
    coarse, _ = _settled(bone.stacks[1], levels[1], middle[0], pivot, bone.spacings[1], 12)
    best = _compared(bone.stacks[-1], levels[-1], coarse.pose)
    best, system = _settled(bone.stacks[-1], levels[-1], best, pivot, bone.spacings[-1], 4)
    rival = middle[1].score / middle[0].score if len(middle) > 1 else 0.0
    rival = max(rival, _elsewhere(bone.stacks[0], levels[0], best.pose, pivot))
    variances = system.variances([view.doubt(pivot) for view in views])
    slack, misfit = _parts(bone.stacks[-1], levels[-1], best.pose)
    change = best.pose @ inverse(start)
    moved = (float(np.linalg.norm(transform_points(change, pivot) - pivot)),
             rotation_angle(change[:3, :3]))
    return _judged(ProjectionRegistration(
        best.pose, _covariance(system, variances, best.pose, coarse.pose, pivot),
        np.asarray(target, float), 1.0 - best.score, 1.0, (), best.likeness, rival, moved,
        _disagreement(system, variances), misfit, slack,
        _direction(views, transform_points(best.pose, target))), search, acceptance)


def _parts(stack: Stack, plates: Sequence[_Plate], pose: Transform) -> tuple[float, float]:
    """Return how much better parts of the bone fit one by one than all together, and by what.

    Patches of the rendered image are shifted to where the X-ray is most like them: all of a view
    together, as its C-arm's pose errs, and each by itself. The right bone in the right place gains
    next to nothing by the latter, however noisy, coarse or covered the images are; other bone fits
    here and there, but not everywhere at once.

    Returns:
        The mean of the logarithm by which the residual variance of a patch falls (its
        likelihood ratio over its number of pixels), and the metres of the shifts in the median.
    """
    gains, weights, shifts = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
    for plate in plates:
        table, share = _shifted_patches(stack, plate, pose)
        best, shift = _peaks(table)
        best = np.minimum(best, 1.0)
        kept = best > _ALIKE
        table, best, share = table[:, :, kept], best[kept], share[kept]
        left = np.log(1.0 + _NEVER - np.sign(table) * table**2)
        together, _ = _peaks(-(left @ share)[:, :, None])
        gains.append(-together - np.log(1.0 + _NEVER - best**2) @ share)
        weights.append(np.array([share.sum()]))
        shifts.append(plate.pixel * shift[kept])
    gain, weight, shift = (np.concatenate(each) for each in (gains, weights, shifts))
    if not weight.sum() > 0.0:
        return np.inf, np.inf
    return float(max(gain.sum(), 0.0) / weight.sum()), float(np.median(shift))


def _shifted_patches(stack: Stack, plate: _Plate, pose: Transform) -> tuple[Array, Array]:
    """Return the likeness of P patches after every shift (rows, columns, P); their weight, (P,)."""
    feature, strength = _features(_rendered(stack, plate, pose))
    weight, steps = strength * plate.valid, 2 * _REACH + 1
    size = max(round(2.0 * _PATCH / plate.pixel) | 1, 5)

    def summed(picture: Picture) -> Picture:
        return np.asarray(cv2.boxFilter(picture, -1, (size, size), normalize=False), np.float32)

    share = summed(weight) / size**2
    rows, columns = (each.ravel() for each in np.mgrid[size // 2:plate.shape[0]:size // 2,
                                                       size // 2:plate.shape[1]:size // 2])
    kept = share[rows, columns] > 0.3
    rows, columns = rows[kept], columns[kept]
    other = summed(weight * (feature**2).sum(axis=0))[rows, columns]
    table = np.zeros((steps, steps, len(rows)))
    for row, column in np.ndindex(steps, steps):
        moved = np.roll(plate.feature, (_REACH - row, _REACH - column), axis=(1, 2))
        both, own = (summed(weight * (moved * each).sum(axis=0))[rows, columns]
                     for each in (feature, moved))
        table[row, column] = both / np.sqrt(np.maximum(own * other, 1e-12))
    return table, np.asarray(share[rows, columns], float)


def _peaks(table: Array) -> tuple[Array, Array]:
    """Return the greatest of each (rows, columns) table, between cells, and its way off middle."""
    steps, _, count = table.shape
    place = np.argmax(table.reshape(steps * steps, count), axis=0)
    every, row, column = np.arange(count), place // steps, place % steps
    best, shift = table[row, column, every], np.zeros((2, count))
    for axis, index in enumerate((row, column)):
        inner = np.clip(index, 1, steps - 2)
        low, middle, high = (table[(inner + k, column, every) if axis == 0
                                   else (row, inner + k, every)] for k in (-1, 0, 1))
        bend = np.minimum(low - 2.0 * middle + high, -1e-9)
        offset = np.where(inner == index, 0.5 * (low - high) / bend, 0.0)
        best = best - 0.5 * bend * offset**2 * (inner == index)
        shift[axis] = index + offset - steps // 2
    return np.asarray(best), np.asarray(np.hypot(*shift))


def _direction(views: Sequence[View], place: Points) -> Points | None:
    """Return the way from the source of the only X-ray to a place of ``fixed``, metres."""
    return None if len(views) > 1 else np.asarray(place - views[0].fixed_T_sensor[:3, 3])


def _depth(view: View, pivot: Points) -> float:
    depth = float(transform_points(inverse(view.fixed_T_sensor), pivot)[2])
    if depth <= 0.05:
        raise RegistrationError('the target is not in front of the X-ray source; check the pose '
                                'of the C-arm and the start')
    return depth


def _covariance(system: _System, variances: Array, pose: Transform, coarse: Transform,
                pivot: Points) -> Array:
    """Return the (6, 6) covariance of ``fixed_T_moving``: of the images, and of their poses.

    Where a coarser resolution settles elsewhere something in the image is not of the model (soft
    tissue, blur), and neither place is known better than they differ.
    """
    scale = np.array([1.0] * 3 + [_LEVER] * 3)
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


def _disagreement(system: _System, variances: Array) -> float:
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
    reasons, strange = _against(found, search, acceptance), _strange(found, acceptance)
    across_only = found.ray is not None and not reasons and (
        not strange or found.slack < acceptance.look_alike)
    if found.ray is not None and strange:
        covariance = found.covariance.copy()
        covariance[:3, :3] += _SIZES**2 * np.outer(found.ray, found.ray)
        found = replace(found, covariance=covariance)
    reasons += strange
    probability = chance_below(found.target_covariance, acceptance.limit)
    if probability < acceptance.confidence:
        values, vectors = np.linalg.eigh(found.target_covariance)
        reasons.append(f'known to {1e3 * float(np.sqrt(values[-1])):.1f} mm only along '
                       f'({", ".join(f"{each:.1f}" for each in vectors[:, -1])}); take an X-ray '
                       'from another side')
    if reasons:
        probability = min(probability, 1.0 - acceptance.confidence)
    across_only = across_only and bool(reasons) and chance_below(
        found.across_covariance, acceptance.limit) >= acceptance.confidence
    return replace(found, probability=probability, reasons=tuple(reasons),
                   across_only=across_only)


def _strange(found: ProjectionRegistration, acceptance: Acceptance) -> list[str]:
    """Return what says that this is not the bone of the CT, if anything does."""
    limit = (acceptance.slack_of_several if found.ray is None else
             acceptance.slack[0] + acceptance.slack[1] * found.cost)
    if found.slack <= limit:
        return []
    return [f'parts of the bone fit better one by one, {1e3 * found.misfit:.1f} mm aside (slack '
            f'{found.slack:.2f}); check whose CT this is, which vertebra the start was at, and '
            'whether the spine was bent otherwise']


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
    if found.rival > acceptance.rival:
        reasons.append(f'another place fits {found.rival:.0%} as well; start nearer, or show more '
                       'bone')
    return reasons
