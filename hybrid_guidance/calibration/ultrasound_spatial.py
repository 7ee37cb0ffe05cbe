"""Where the ultrasound image lies in the frame of the tracked probe.

Two targets. N-wires (Comeau et al. 1998; Chen et al. 2009): each middle spot's place between the
outer two tells where along its wire the slice cuts it. One fixed point or cross-wire (Prager et
al. 1998): seen from all sides, it must stay where it is. The image plane is a rigid transform and
two pixel spacings, solved or given; no shear. A delay between image and tracker can be solved
with them: it shows where the hand moved.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
_SCALE = np.array([1e-3] * 3 + [1e-2] * 3 + [0.01] * 2 + [0.01])
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
    """

    pixels: Pixels
    times: Array
    track: Track
    phantom: WirePhantom

    def __len__(self) -> int:
        return len(self.times)

    def subset(self, keep: NDArray[np.intp] | NDArray[np.bool_]) -> 'WireViews':
        """Return some of the images; the track stays whole."""
        return replace(self, pixels=self.pixels[keep], times=self.times[keep])

    def crossings(self, delay: float) -> tuple[Points, NDArray[np.bool_]]:
        """Return (N, K, 3) metres of the middle wires in the probe's frame, by the phantom.

        Args:
            delay: seconds by which images are stamped late.
        """
        first, middle, last = (self.pixels[:, :, index] for index in range(3))
        width = last - first
        # The middle spot's foot on the line: what lies across it is noise.
        fraction = np.sum((middle - first) * width, axis=-1) / np.sum(width**2, axis=-1)
        poses, inside = self.track.at(self.times - delay)
        points = self.phantom.crossings(fraction)
        return np.einsum('nij,nkj->nki', poses[:, :3, :3], points) + poses[:, None, :3, 3], inside


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


Views = WireViews | PointViews


@dataclass(frozen=True)
class ProbeCalibration:
    """An image plane in the frame of the probe.

    Attributes:
        transform: (4, 4) ``ultrasound_probe_T_ultrasound_image``, metres.
        geometry: pixel spacing and origin.
        covariance: (6, 6) m² and rad² in the probe's axes, by leaving out blocks of time.
        delay: seconds by which images are stamped late, and its standard deviation.
        delay_deviation: seconds; zero where the delay was not solved.
        samples: images used.
        inliers: images that agree.
        errors: metres, three-dimensional distance at every point of every image used.
        target: (3,) metres of the fixed point in the world; None for wires.
    """

    transform: Transform
    geometry: ImageGeometry
    covariance: Array
    delay: float
    delay_deviation: float
    samples: int
    inliers: int
    errors: Array
    target: Array | None = None

    def points(self, pixels: Pixels) -> Points:
        """Return (..., 3) metres in the probe's frame of (..., 2) pixels."""
        flat = self.geometry.projection((1, 1)).back_project(pixels)
        return rigid.transform_points(self.transform, flat)


def wire_errors(calibration: ProbeCalibration, views: WireViews) -> Array:
    """Return the (N, K) three-dimensional reprojection error in metres at every middle wire.

    It is PLUS's: the distance between where the calibration puts a middle wire's spot and where
    the phantom and the tracker say that the slice cuts the wire.
    """
    expected, inside = views.crossings(calibration.delay)
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
                    tolerance: float = 3e-3) -> ProbeCalibration:
    """Solve the image plane from images of an N-wire phantom.

    Args:
        views: images.
        origin: pixel of the mid transducer face.
        spacing: metres per pixel, if it is known and shall stay.
        solve_delay: whether images may be late against the tracker.
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
    return _calibrate(views, origin, spacing, solve_delay, 6, tolerance, (
        'move the probe over the whole phantom, tilt it both ways and turn it in the hand'))


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
    return _calibrate(views, origin, spacing, solve_delay, 8, tolerance, (
        'tilt the probe in all three directions, and let the point wander over the whole image'))


def _calibrate(views: Views, origin: tuple[float, float], spacing: tuple[float, float] | None,
               solve_delay: bool, least: int, tolerance: float, cure: str) -> ProbeCalibration:
    """Find the images that agree, from draws of ``least``, and adjust to them."""
    def errors_of(chosen: NDArray[np.intp]) -> Array:
        errors = _residuals(_linear(views.subset(chosen), spacing), views)
        return np.asarray(np.sqrt(np.mean(np.sum(errors**2, axis=-1).reshape(len(views), -1),
                                          axis=1)))
    inliers = consensus(len(views), least, errors_of, tolerance)
    gates.require_inliers(int(inliers.sum()), len(views), 0.6, 'images')
    used = views.subset(inliers)
    names = np.array([*_PARAMETERS, *('the place of the point',) * 3])

    def fit(part: Views) -> tuple[Solution, Array, NDArray[np.bool_]]:
        start = _linear(part, spacing, _delay(part, spacing) if solve_delay else 0.0)
        free = np.array([True] * 6 + [spacing is None] * 2 + [False] + [True] * (len(start) - 9))
        solution = _solve(lambda x: _residuals(x, part).ravel(), start, free, 3)
        start[free] = solution.values
        return solution, start, free
    solution, x, free = fit(used)
    gates.require_conditioned(solution, _CONDITION, tuple(names[:len(x)][free]), cure)
    return _result(x, origin, used, lambda keep: fit(used.subset(keep))[1], len(views))


def _delay(views: Views, spacing: tuple[float, float] | None, span: float = 0.15) -> float:
    """Return the delay at which a linear fit leaves least.

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
    best = float(coarse[int(np.argmin([cost(delay) for delay in coarse]))])
    reach = max(0.04, 0.6 * float(np.median(np.diff(views.track.times))))
    for _ in range(4):
        near = np.linspace(-reach, reach, 17)
        design = np.column_stack([near**2, near, near**3, np.ones(17),
                                  [dent(best + d) for d in near]])
        square, linear, _, _, _ = np.linalg.lstsq(design, np.array(
            [cost(best + d) for d in near]), rcond=None)[0]
        if not square > 0.0:
            break
        best += float(np.clip(-linear / (2.0 * square), -reach, reach))
    return float(np.clip(best, -span, span))


def _solve(function: Callable[[Array], Array], start: Array, free: NDArray[np.bool_],
           group: int) -> Solution:
    """Adjust the free ones of all parameters."""
    def residuals(values: Array) -> Array:
        x = start.copy()
        x[free] = values
        return function(x)
    scale = np.concatenate([_SCALE, [1e-3] * (len(start) - len(_SCALE))])
    scale[6:8] *= np.abs(start[6:8])
    return least_squares(residuals, start[free], scale[free], group=group, robust=True)


def _plane(x: Array, pixels: Pixels) -> Points:
    """Return (..., 3) metres of (..., 2) pixels: x is corner, rotation vector, spacing."""
    rotation = rigid.rotation_from_vector(x[3:6])
    return np.asarray(x[:3] + (pixels * x[6:8]) @ rotation[:, :2].T)


def _residuals(x: Array, views: Views) -> Array:
    """Return (N, K, 3) metres of wires, (N, 3) of a point, that the parameters leave."""
    # Beyond the ends of the track the nearest pose stands in: a residual must not jump.
    if isinstance(views, WireViews):
        expected, _ = views.crossings(float(x[8]))
        return np.asarray(_plane(x, views.pixels[:, :, 1]) - expected)
    poses, _ = views.track.at(views.times - float(x[8]))
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
    poses, _ = views.track.at(views.times - delay)
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


def _result(x: Array, origin: tuple[float, float], used: Views,
            without: Callable[[NDArray[np.bool_]], Array], samples: int) -> ProbeCalibration:
    """Build the result; its covariance by leaving out one block of time after another.

    Errors of segmentation and tracking last for many images, so that the residuals of least
    squares would promise too much (delete-a-group jackknife; Künsch, Ann. Statist. 1989).
    """
    pose = _pose(x, origin)
    block = np.arange(len(used)) * _BLOCKS // len(used)
    others = [without(block != number) for number in range(_BLOCKS)]
    offsets = np.array([_offset(pose, _pose(other, origin)) for other in others])
    delays = np.array([other[8] for other in others])
    factor = (_BLOCKS - 1) / _BLOCKS
    centred = offsets - offsets.mean(axis=0)
    return ProbeCalibration(
        pose, ImageGeometry((float(x[6]), float(x[7])), origin), factor * centred.T @ centred,
        float(x[8]), float(np.sqrt(factor * np.sum((delays - delays.mean())**2))),
        samples, len(used), np.linalg.norm(_residuals(x, used), axis=-1),
        x[9:] if isinstance(used, PointViews) else None)


def _offset(pose: Transform, other: Transform) -> Array:
    """Return the (6,) offset with ``perturbed(pose, offset) == other``."""
    return np.concatenate([other[:3, 3] - pose[:3, 3], rigid.vector_from_rotation(
        other[:3, :3] @ pose[:3, :3].T)])
