"""Where the ultrasound image lies in the frame of the tracked probe.

Two targets. N-wires (Comeau et al. 1998; Chen et al. 2009): each middle spot's place between the
outer two tells where along its wire the slice cuts it. One fixed point or cross-wire (Prager et
al. 1998): seen from all sides, it must stay where it is. The image plane is a rigid transform and
two pixel spacings, solved or given; no shear. A delay between image and tracker can be solved
with them: it shows where the hand moved. So can a turn of the phantom against its registration:
as the probe travels along the wires, a registration that is turned lets the spots drift sideways.
A shift is not solved: it looks like one of the probe's marker unless the probe turns very much.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration import gates
from hybrid_guidance.calibration.solve import Solution, consensus, least_squares
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.calibration.wires import WirePhantom
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Pixels, Points, Transform
from hybrid_guidance.imaging.geometry import ImageGeometry

_BLOCKS = 8
_ROTATION = np.deg2rad(4.0)
_CONDITION = 300.0
_PARAMETERS = ('the position of the image along x', 'the position of the image along y',
               'the position of the image along z', 'the tilt of the image about x',
               'the tilt of the image about y', 'the tilt of the image about z',
               'the pixel spacing across', 'the pixel spacing along the beam', 'the delay')
_TURN = tuple(f'the turn of the phantom about {axis}' for axis in 'xyz')
_POINT = ('the place of the point',) * 3
_SCALE = np.array([1e-3] * 3 + [1e-2] * 3 + [0.01] * 2 + [0.01])
# A registration is turned by some 2 degrees at most, and this holds it where images do not tell.
# Errors of neighbouring images are alike: many weigh no more than a few, each off by 1 mm.
_TURNED, _OFF = np.deg2rad(2.0), 1e-3
# A turn is believed that is so many times its own deviation: chance makes one in a hundred.
_SURE = 3.5
# Blocks left out agree by chance, too: a turn is never better known than this, rad.
_LEAST = np.deg2rad(0.1)
_AXES = ("marker's x", "marker's y", "marker's z")
_PIXEL = 1.0 / 500.0


@dataclass(frozen=True)
class WireViews:
    """Images of an N-wire phantom.

    Attributes:
        pixels: (N, K, 3, 2) of the wires.
        times: (N,) seconds of the images.
        track: phantom frame in the probe's frame, ``probe_T_phantom``, on the same clock.
        phantom: the wires.
        turn: (3,) rad, rotation vector of the wires about their middle, in the phantom's axes,
            by which the registration in ``track`` is wrong.
    """

    pixels: Pixels
    times: Array
    track: Track
    phantom: WirePhantom
    turn: Array = field(default_factory=lambda: np.zeros(3))

    def __len__(self) -> int:
        return len(self.times)

    def subset(self, keep: NDArray[np.intp] | NDArray[np.bool_]) -> 'WireViews':
        """Return some of the images; the track stays whole."""
        return replace(self, pixels=self.pixels[keep], times=self.times[keep])

    def crossings(self, delay: float,
                  turn: Array | None = None) -> tuple[Points, NDArray[np.bool_]]:
        """Return (N, K, 3) metres of the middle wires in the probe's frame, by the phantom.

        Args:
            delay: seconds by which images are stamped late.
            turn: of the wires; as in ``turn`` where None.
        """
        poses, inside = self.poses.at(delay)
        rotation = rigid.rotation_from_vector(self.turn if turn is None else turn)
        middle, offsets = self._cuts
        points = middle + offsets @ rotation.T
        return points @ poses[:, :3, :3].swapaxes(1, 2) + poses[:, None, :3, 3], inside

    @cached_property
    def _cuts(self) -> tuple[Points, Points]:
        """(3,) middle of the wires, and (N, K, 3) from there to where the slice cuts them."""
        first, middle, last = (self.pixels[:, :, index] for index in range(3))
        width = last - first
        # The middle spot's foot on the line: what lies across it is noise.
        fraction = np.sum((middle - first) * width, axis=-1) / np.sum(width**2, axis=-1)
        centre = self.phantom.wires.reshape(-1, 3).mean(axis=0)
        return centre, self.phantom.crossings(fraction) - centre

    @cached_property
    def poses(self) -> '_Poses':
        """The phantom at the times of the images."""
        return _Poses(self.times, self.track)


class _Poses:
    """Poses at the times of images; those of the delay last asked for are kept."""

    def __init__(self, times: Array, track: Track) -> None:
        self._times, self._track = times, track
        self._kept: tuple[float, tuple[Array, NDArray[np.bool_]]] | None = None

    def at(self, delay: float) -> tuple[Array, NDArray[np.bool_]]:
        """Return (N, 4, 4) and (N,) of ``Track.at``."""
        if self._kept is None or self._kept[0] != delay:
            self._kept = delay, self._track.at(self._times - delay)
        return self._kept[1]


@dataclass(frozen=True)
class PointViews:
    """Images of one fixed point.

    Attributes:
        pixels: (N, 2).
        times: (N,) seconds of the images.
        track: probe in the frame in which the point is fixed, ``world_T_probe``.
    """

    pixels: Pixels
    times: Array
    track: Track

    def __len__(self) -> int:
        return len(self.times)

    def subset(self, keep: NDArray[np.intp] | NDArray[np.bool_]) -> 'PointViews':
        """Return some of the images; the track stays whole."""
        return replace(self, pixels=self.pixels[keep], times=self.times[keep])

    @cached_property
    def poses(self) -> _Poses:
        """The probe at the times of the images."""
        return _Poses(self.times, self.track)


Views = WireViews | PointViews
V = TypeVar('V', WireViews, PointViews)


@dataclass(frozen=True)
class ProbeCalibration:
    """An image plane in the frame of the probe.

    Attributes:
        transform: (4, 4) ``ultrasound_probe_T_ultrasound_image``, metres.
        geometry: pixel spacing and origin.
        covariance: (6, 6) m² and rad² in the probe's axes, by leaving out blocks of time; what
            the registration of a phantom is not known by is added.
        delay: seconds by which images are stamped late, and its standard deviation.
        delay_deviation: seconds; zero where the delay was not solved.
        samples: images used.
        inliers: images that agree.
        errors: metres, three-dimensional distance at every point of every image used.
        left_out: metres, the mean of such distances in blocks of time left out, one by one.
        left_out_kept: the same where the registration of the phantom is kept as it is given.
        target: (3,) metres of the fixed point in the world; None for wires.
        turn: (3,) rad of the wires against their registration; zeros where it was kept, and for
            a point.
        turn_sigmas: that turn against its standard deviation, by leaving out blocks of time.
    """

    transform: Transform
    geometry: ImageGeometry
    covariance: Array
    delay: float
    delay_deviation: float
    samples: int
    inliers: int
    errors: Array
    left_out: float
    left_out_kept: float
    target: Array | None = None
    turn: Array = field(default_factory=lambda: np.zeros(3))
    turn_sigmas: float = 0.0

    def points(self, pixels: Pixels) -> Points:
        """Return (..., 3) metres in the probe's frame of (..., 2) pixels."""
        flat = self.geometry.projection((1, 1)).back_project(pixels)
        return rigid.transform_points(self.transform, flat)


def wire_errors(calibration: ProbeCalibration, views: WireViews) -> Array:
    """Return the (N, K) three-dimensional reprojection error in metres at every middle wire.

    It is PLUS's: the distance between where the calibration puts a middle wire's spot and where
    the phantom and the tracker say that the slice cuts the wire.
    """
    expected, inside = views.crossings(calibration.delay, calibration.turn)
    found = calibration.points(views.pixels[:, :, 1])
    return np.asarray(np.linalg.norm(found - expected, axis=-1)[inside])


def point_errors(calibration: ProbeCalibration, views: PointViews) -> Array:
    """Return the (N,) metres between where each image puts the fixed point and their mean."""
    poses, inside = views.track.at(views.times - calibration.delay)
    points = calibration.points(views.pixels)
    world = np.einsum('nij,nj->ni', poses[:, :3, :3], points) + poses[:, :3, 3]
    if calibration.target is None:
        raise gates.GateError('the calibration was not made with a fixed point')
    return np.asarray(np.linalg.norm(world - calibration.target, axis=-1)[inside])


def calibrate_wires(views: WireViews, origin: tuple[float, float], *,
                    spacing: tuple[float, float] | None = None, solve_delay: bool = True,
                    turn: bool | None = None, registration: Array | None = None,
                    tolerance: float = 3e-3) -> ProbeCalibration:
    """Solve the image plane from images of an N-wire phantom.

    Args:
        views: images.
        origin: pixel of the mid transducer face.
        spacing: metres per pixel, if it is known and shall stay.
        solve_delay: whether images may be late against the tracker.
        turn: whether the phantom may be turned against its registration; where None, if the turn
            is far larger than blocks of time left out differ about it.
        registration: (6, 6) m² and rad² of the registered phantom in its own axes, if known.
        tolerance: metres, of an image that agrees (RANSAC).

    Raises:
        GateError: too few images, too little motion, or a plane that they do not determine.
    """
    views = replace(views, track=views.track.without_glitches())
    views = views.subset(views.track.at(views.times)[1])
    gates.require_samples(len(views), 20, 'images in which all wires were found')
    poses = views.track.at(views.times)[0]
    gates.require_rotation_spread(poses[:, :3, :3].swapaxes(1, 2), np.deg2rad(1.0),
                                  'the probe', axes=1)
    cure = 'move the probe over the whole phantom, tilt it both ways and turn it in the hand'
    plane = _Plane(spacing, solve_delay, False)
    used = _agreeing(views, plane, 6, tolerance)
    found = _result(replace(plane, turned=bool(turn)), origin, used, len(views), cure)
    if turn is None:
        with suppress(gates.GateError):
            turned = _result(replace(plane, turned=True), origin, used, len(views), cure)
            if turned.turn_sigmas > _SURE:
                found = replace(turned, left_out_kept=found.left_out)
    angle = float(np.linalg.norm(found.turn))
    if angle > 2.0 * _TURNED:
        raise gates.GateError(
            f'the wires lie turned by {np.rad2deg(angle):.1f}° against the registration of the '
            f'phantom, {np.rad2deg(2.0 * _TURNED):.0f}° are adjusted at most; register the phantom '
            'again and look for a marker that was moved')
    return _with_registration(found, replace(plane, turned=angle > 0.0), origin, used,
                              registration)


def calibrate_point(views: PointViews, origin: tuple[float, float], *,
                    spacing: tuple[float, float] | None = None, solve_delay: bool = True,
                    tolerance: float = 4e-3) -> ProbeCalibration:
    """Solve the image plane from images of one fixed point or cross-wire.

    No first guess is needed: that the point stands still is linear in the columns of the
    unknown matrix, its corner and the place of the point.

    Args:
        views: images.
        origin: pixel of the mid transducer face.
        spacing: metres per pixel, if it is known and shall stay.
        solve_delay: whether images may be late against the tracker; not of poses one by one.
        tolerance: metres, of an image that agrees (RANSAC).

    Raises:
        GateError: too few images, a rotation that is missing, or a plane not determined.
    """
    if solve_delay:
        # A delay shows in motion filmed in one go, and there a jump is an error of the tracker.
        views = replace(views, track=views.track.without_glitches())
    views = views.subset(views.track.at(views.times)[1])
    gates.require_samples(len(views), 30, 'images of the point')
    poses = views.track.at(views.times)[0]
    gates.require_rotation_spread(poses[:, :3, :3], _ROTATION, 'the probe', _AXES, axes=3)
    plane = _Plane(spacing, solve_delay, False)
    return _result(plane, origin, _agreeing(views, plane, 8, tolerance), len(views), (
        'tilt the probe in all three directions, and let the point wander over the whole image'))


@dataclass(frozen=True)
class _Plane:
    """What is solved of an image plane.

    Attributes:
        spacing: metres per pixel, where it is given.
        solve_delay: whether images may be late.
        turned: whether the phantom may be turned against its registration.
    """

    spacing: tuple[float, float] | None
    solve_delay: bool
    turned: bool

    def fit(self, views: Views,
            near: float | None = None) -> tuple[Solution, Array, tuple[str, ...]]:
        """Return the adjustment, all parameters, and the names of those that were free.

        Args:
            views: images.
            near: seconds, about which delay to look for.
        """
        solution, x, names = self._fit(views, near)
        if self.turned and self.solve_delay and isinstance(views, WireViews):
            # A turn that is not yet known passes for a delay where the probe travels.
            solution, x, names = self._fit(replace(views, turn=x[9:]), float(x[8]))
        return solution, x, names

    def _fit(self, views: Views,
             near: float | None) -> tuple[Solution, Array, tuple[str, ...]]:
        x = _linear(views, self.spacing,
                    _delay(views, self.spacing, near) if self.solve_delay else 0.0)
        wires = isinstance(views, WireViews)
        if isinstance(views, WireViews):
            x = np.concatenate([x, views.turn])
        free = np.array([True] * 6 + [self.spacing is None] * 2 + [False]
                        + [self.turned or not wires] * 3)
        prior = np.array([_OFF / _TURNED if wires else 0.0] * 3)
        solution = _solve(lambda values: _residuals(values, views).ravel(), x, free, prior)
        x[free] = solution.values
        names = np.array([*_PARAMETERS, *(_TURN if wires else _POINT)])[free]
        return solution, x, tuple(names.tolist())


def _agreeing(views: V, plane: _Plane, least: int, tolerance: float) -> V:
    """Return the views that agree, by draws of ``least``."""
    def errors_of(chosen: NDArray[np.intp]) -> Array:
        errors = _residuals(_linear(views.subset(chosen), plane.spacing), views)
        return np.asarray(np.sqrt(np.mean(np.sum(errors**2, axis=-1).reshape(len(views), -1),
                                          axis=1)))
    inliers = consensus(len(views), least, errors_of, tolerance)
    gates.require_inliers(int(inliers.sum()), len(views), 0.6, 'images')
    return views.subset(inliers)


def _delay(views: Views, spacing: tuple[float, float] | None, near: float | None = None,
           span: float = 0.15) -> float:
    """Return the delay at which a linear fit leaves least, looked for about ``near`` if given.

    A pose read between two noisy samples is less noisy than either: its variance falls by
    ``2 f (1 - f)``, f being how far between. Where images carry their own poses this dents the
    cost between any two samples, and a descent ends in a dent. So the dents' known shape is
    fitted beside the cubic whose minimum is the delay.
    """
    def cost(delay: float) -> float:
        return float(np.sum(_residuals(_linear(views, spacing, delay), views)**2))

    def dent(delay: float) -> float:
        times, at = views.track.times, views.times - delay
        index = np.clip(np.searchsorted(times, at, side='right') - 1, 0, len(times) - 2)
        share = np.clip((at - times[index]) / (times[index + 1] - times[index]), 0.0, 1.0)
        return float(np.mean(share * (1.0 - share)))
    coarse = np.arange(-span, span + 1e-9, 0.02)
    best = float(coarse[int(np.argmin([cost(delay) for delay in coarse]))]) if near is None \
        else near
    reach = max(0.04, 0.6 * float(np.median(np.diff(views.track.times))))
    for _ in range(4):
        around = np.linspace(-reach, reach, 17)
        design = np.column_stack([around**2, around, around**3, np.ones(17),
                                  [dent(best + d) for d in around]])
        square, linear, _, _, _ = np.linalg.lstsq(design, np.array(
            [cost(best + d) for d in around]), rcond=None)[0]
        if not square > 0.0:
            break
        step = float(np.clip(-linear / (2.0 * square), -reach, reach))
        best += step
        if abs(step) < 2e-4:
            break
    return float(np.clip(best, -span, span))


def _solve(function: Callable[[Array], Array], start: Array, free: NDArray[np.bool_],
           prior: Array) -> Solution:
    """Adjust the free ones of all parameters; ``prior`` holds the last three back (m/rad)."""
    def residuals(values: Array) -> Array:
        x = start.copy()
        x[free] = values
        return function(x)
    held = np.any(prior > 0.0)
    scale = np.concatenate([_SCALE, [1e-2 if held else 1e-3] * 3])
    scale[6:8] *= np.abs(start[6:8])
    weights = np.concatenate([np.zeros(len(_SCALE)), prior])
    return least_squares(residuals, start[free], scale[free], group=3, robust=True,
                         prior=weights[free] if held else None)


def _plane(x: Array, pixels: Pixels) -> Points:
    """Return (..., 3) metres of (..., 2) pixels: x is corner, rotation vector, spacing."""
    rotation = rigid.rotation_from_vector(x[3:6])
    return np.asarray(x[:3] + (pixels * x[6:8]) @ rotation[:, :2].T)


def _residuals(x: Array, views: Views) -> Array:
    """Return (N, K, 3) metres of wires, (N, 3) of a point, that the parameters leave."""
    # Beyond the ends of the track the nearest pose stands in: a residual must not jump.
    if isinstance(views, WireViews):
        expected, _ = views.crossings(float(x[8]), x[9:12] if len(x) > 9 else None)
        return np.asarray(_plane(x, views.pixels[:, :, 1]) - expected)
    poses, _ = views.poses.at(float(x[8]))
    world = np.einsum('nij,nj->ni', poses[:, :3, :3], _plane(x, views.pixels)) + poses[:, :3, 3]
    return np.asarray(world - x[9:12])


def _linear(views: Views, spacing: tuple[float, float] | None, delay: float = 0.0) -> Array:
    """Return parameters from a linear fit of the plane's nine numbers, made rigid afterwards."""
    if isinstance(views, WireViews):
        expected, _ = views.crossings(delay)
        pixels = views.pixels[:, :, 1].reshape(-1, 2)
        design = np.column_stack([pixels, np.ones(len(pixels))])
        matrix = np.asarray(np.linalg.lstsq(design, expected.reshape(-1, 3), rcond=None)[0], float)
        return _rigid_plane(matrix, pixels, spacing, delay)
    poses, _ = views.poses.at(delay)
    # R (u a + v b + c) + t = p, in a, b, c and p; pixels scaled, so that no column is small.
    turns, (u, v) = poses[:, :3, :3], views.pixels.T[:, :, None, None] * _PIXEL
    stay = np.broadcast_to(-np.eye(3), turns.shape)
    design = np.concatenate([u * turns, v * turns, turns, stay], axis=2).reshape(-1, 12)
    solved = np.linalg.lstsq(design, -poses[:, :3, 3].ravel(), rcond=None)[0]
    found = np.array(solved, float).reshape(4, 3)
    found[:2] *= _PIXEL
    x = _rigid_plane(found[:3], views.pixels, spacing, delay)
    world = np.einsum('nij,nj->ni', turns, _plane(x, views.pixels)) + poses[:, :3, 3]
    return np.concatenate([x, np.median(world, axis=0)])


def _rigid_plane(matrix: Array, pixels: Pixels, spacing: tuple[float, float] | None,
                 delay: float) -> Array:
    """Return parameters of the rigid plane next to an affine one.

    Args:
        matrix: (3, 3) rows: metres a pixel along u, along v, and the corner.
        pixels: (N, 2), whose mean stays where it is.
        spacing: metres per pixel, if known.
        delay: seconds, passed on.
    """
    left, _, right = np.linalg.svd(matrix[:2].T, full_matrices=False)
    # The closest two axes at right angles, and their lengths.
    axes = left @ right
    lengths = np.maximum(np.sum(axes * matrix[:2].T, axis=0), 1e-7) if spacing is None \
        else np.asarray(spacing)
    rotation = np.column_stack([axes, np.cross(axes[:, 0], axes[:, 1])])
    centre = pixels.mean(axis=0)
    corner = matrix[2] + centre @ matrix[:2] - axes @ (centre * lengths)
    return np.concatenate([corner, rigid.vector_from_rotation(rotation), lengths, [delay]])


def _pose(x: Array, origin: tuple[float, float]) -> Transform:
    return rigid.transform(rigid.rotation_from_vector(x[3:6]), _plane(x, np.array(origin)))


def _result(plane: _Plane, origin: tuple[float, float], used: Views, samples: int,
            cure: str) -> ProbeCalibration:
    """Adjust and build the result; its covariance by leaving out one block of time after another.

    Errors of segmentation and tracking last for many images, so that the residuals of least
    squares would promise too much (delete-a-group jackknife; Künsch, Ann. Statist. 1989).
    """
    solution, x, names = plane.fit(used)
    gates.require_conditioned(solution, _CONDITION, names, cure)
    pose = _pose(x, origin)
    block = np.arange(len(used)) * _BLOCKS // len(used)
    others = [plane.fit(used.subset(block != number), float(x[8]))[1]
              for number in range(_BLOCKS)]
    unseen = [np.linalg.norm(_residuals(other, used.subset(block == number)), axis=-1)
              for number, other in enumerate(others)]
    offsets = np.array([_offset(pose, _pose(other, origin)) for other in others])
    doubt = _spread(np.array(others))
    left_out = float(np.mean(np.concatenate(unseen)))
    found = ProbeCalibration(
        pose, ImageGeometry((float(x[6]), float(x[7])), origin), _spread(offsets), float(x[8]),
        float(np.sqrt(doubt[8, 8])), samples, len(used),
        np.linalg.norm(_residuals(x, used), axis=-1), left_out, left_out)
    if isinstance(used, PointViews):
        return replace(found, target=x[9:])
    sigmas = np.sqrt(x[9:] @ np.linalg.solve(doubt[9:, 9:] + _LEAST**2 * np.eye(3), x[9:]))
    return replace(found, turn=x[9:], turn_sigmas=float(sigmas))


def _spread(others: Array) -> Array:
    """Return the (P, P) covariance of parameters, of (B, P) that each lack one of B blocks."""
    centred = others - others.mean(axis=0)
    return np.asarray((len(others) - 1) / len(others) * centred.T @ centred)


def _with_registration(found: ProbeCalibration, plane: _Plane, origin: tuple[float, float],
                       used: WireViews, registration: Array | None) -> ProbeCalibration:
    """Add to the covariance what a registration that is wrong by a little would do."""
    if registration is None:
        return found
    values, axes = np.linalg.eigh(registration)
    covariance = found.covariance
    for value, axis in zip(np.maximum(values, 0.0), axes.T, strict=True):
        wrong = rigid.perturbed(np.eye(4), axis * np.sqrt(value))
        moved = replace(used, track=Track(used.track.times, used.track.poses @ wrong))
        offset = _offset(found.transform, _pose(
            plane.fit(moved, found.delay)[1], origin))
        covariance = covariance + np.outer(offset, offset)
    return replace(found, covariance=covariance)


def _offset(pose: Transform, other: Transform) -> Array:
    """Return the (6,) offset with ``perturbed(pose, offset) == other``."""
    return np.concatenate([other[:3, 3] - pose[:3, 3], rigid.vector_from_rotation(
        other[:3, :3] @ pose[:3, :3].T)])
