"""A C-arm's intrinsics and pose from views of a bead phantom, and a probe's pose from its beads.

Intrinsics over several views by OpenCV's bundle adjustment (Zhang, IEEE PAMI 2000); how much
distortion they deserve is decided by views left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration import gates
from hybrid_guidance.calibration.beads import project, solve_pose
from hybrid_guidance.calibration.solve import Solution, jacobian, least_squares
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Pixels, Points, Transform
from hybrid_guidance.imaging.geometry import CameraGeometry

_FLAGS = cv2.CALIB_USE_INTRINSIC_GUESS | cv2.CALIB_FIX_ASPECT_RATIO
_NO_TANGENT = cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K3
_MODELS = {
    'none': _FLAGS | _NO_TANGENT | cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2,
    'k1': _FLAGS | _NO_TANGENT | cv2.CALIB_FIX_K2,
    'k1, k2': _FLAGS | _NO_TANGENT}
_MINIMUM_BEADS = 10
_SPREAD = np.deg2rad(8.0)
_POSE_SCALE = np.array([1e-3] * 3 + [1e-2] * 3)
_LIST = ('check the list of beads, its order and unit, and the focal length given; beads must not '
         'lie on one line')


@dataclass(frozen=True)
class BeadView:
    """One image of beads, already matched.

    Attributes:
        beads: (N, 3) metres.
        pixels: (N, 2).
    """

    beads: Points
    pixels: Pixels


@dataclass(frozen=True)
class CarmCalibration:
    """What one or more views of a bead phantom tell.

    Attributes:
        camera: intrinsics.
        poses: (V, 4, 4) ``optical_T_phantom`` of every view.
        covariance: (6, 6) of the first view's pose, in optical axes; what the intrinsics are not
            known by is in it.
        focal_deviation: px, standard deviation of the focal length.
        model: of the distortion.
        errors: (N,) px at every bead used.
        held_out: px, root mean square: beads of views left out, pose from every other bead.
        samples: beads given.
        inliers: beads used.
    """

    camera: CameraGeometry
    poses: Array
    covariance: Array
    focal_deviation: float
    model: str
    errors: Array
    held_out: float
    samples: int
    inliers: int


def calibrate_carm(views: Sequence[BeadView], size: tuple[int, int], focal: float, *,
                   limit: float = 0.5) -> CarmCalibration:
    """Solve intrinsics and poses from several views of a bead phantom.

    Args:
        views: matched beads, ten or more in each; a wrong match among them is dropped.
        size: (width, height) in pixels.
        focal: px, to begin with: source to detector by pixel spacing.
        limit: px, held-out error above which it is refused.

    Raises:
        GateError: too few views or beads, views too alike, or too large an error.
    """
    gates.require_samples(len(views), 5, 'views of the bead phantom')
    for number, view in enumerate(views, start=1):
        gates.require_samples(len(view.beads), _MINIMUM_BEADS, f'beads in view {number}')
    start = np.array([[focal, 0.0, (size[0] - 1) / 2.0], [0.0, focal, (size[1] - 1) / 2.0],
                      [0.0, 0.0, 1.0]])
    samples = sum(len(view.beads) for view in views)
    kept = _without_outliers(views, size, start)
    inliers = sum(len(view.beads) for view in kept)
    gates.require_inliers(inliers, samples, 0.7, 'beads', _LIST)
    errors = {model: _held_out(kept, size, start, flags) for model, flags in _MODELS.items()}
    # A richer model must earn its place.
    model = 'none'
    for richer in ('k1', 'k1, k2'):
        model = richer if errors[richer] < 0.97 * errors[model] else model
    gates.require_held_out(errors[model], limit, 'px', (
        'check the list of beads and their order, keep the phantom still during each exposure'))
    camera, distortion, poses = _adjust(kept, size, start, _MODELS[model])
    deviation, covariance = _uncertainty(kept, poses, camera, distortion,
                                         list(_MODELS).index(model))
    gates.require_rotation_spread(poses[:, :3, :3].swapaxes(1, 2), _SPREAD,
                                  'the phantom in the views', axes=1)
    if deviation > 0.01 * camera[0, 0]:
        raise gates.GateError(
            f'the focal length is known to {min(deviation / camera[0, 0], 1.0):.1%} only, 1 % is '
            'needed: '
            'focal length and distance are not told apart; tilt the phantom by 20° and more, and '
            'use beads at different depths')
    left = np.concatenate([np.linalg.norm(project(pose, view.beads, camera, distortion)
                                          - view.pixels, axis=1)
                           for pose, view in zip(poses, kept, strict=True)])
    geometry = CameraGeometry(
        (float(camera[0, 0]), float(camera[1, 1])), (float(camera[0, 2]), float(camera[1, 2])),
        (float(distortion[0]), float(distortion[1]), float(distortion[2]), float(distortion[3]),
         float(distortion[4])), size)
    return CarmCalibration(geometry, poses, covariance, deviation, model, left, errors[model],
                           samples, inliers)


def _without_outliers(views: Sequence[BeadView], size: tuple[int, int],
                      start: Array) -> list[BeadView]:
    """Drop beads that all others contradict, worst first: matched wrongly, or hidden."""
    kept = [BeadView(*_agreeing(view, start)) for view in views]
    for _ in range(4):
        camera, distortion, poses = _adjust(kept, size, start, _MODELS['k1'])
        errors = [np.linalg.norm(project(pose, view.beads, camera, distortion) - view.pixels,
                                 axis=1) for pose, view in zip(poses, kept, strict=True)]
        limit = max(4.0 * 1.2 * float(np.median(np.concatenate(errors))), 0.3)
        if max(float(error.max()) for error in errors) <= limit:
            break
        kept = [BeadView(view.beads[error <= limit], view.pixels[error <= limit])
                for view, error in zip(kept, errors, strict=True)]
        for number, view in enumerate(kept, start=1):
            gates.require_samples(len(view.beads), 8, f'beads that agree in view {number}')
    return kept


def _agreeing(view: BeadView, camera: Array) -> tuple[Points, Pixels]:
    """Return the beads of a view that one pose explains to a few pixels."""
    index = _consistent(view, camera, None, 8.0)
    if len(index) < 8:
        raise gates.GateError('the beads of a view do not fit any pose; check the list of beads, '
                              'its unit and the focal length given')
    return view.beads[index], view.pixels[index]


def _consistent(view: BeadView, camera: Array, distortion: Array | None,
                tolerance: float) -> NDArray[np.intp]:
    """Return which beads one pose explains (RANSAC); none where OpenCV finds no pose."""
    try:
        good, _, _, inliers = cv2.solvePnPRansac(
            view.beads, view.pixels, camera, distortion, reprojectionError=tolerance,
            iterationsCount=500, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:
        good, inliers = False, None
    return np.zeros(0, np.intp) if not good or inliers is None else np.asarray(inliers[:, 0])


def _adjust(views: Sequence[BeadView], size: tuple[int, int], start: Array,
            flags: int) -> tuple[Array, Array, Array]:
    """Return camera, distortion and poses."""
    _, camera, distortion, turns, shifts = cv2.calibrateCamera(
        [view.beads.astype(np.float32) for view in views],
        [view.pixels.astype(np.float32) for view in views], size, start.copy(), np.zeros(5),
        flags=flags)
    poses = np.array([rigid.transform(cv2.Rodrigues(turn)[0], shift[:, 0])
                      for turn, shift in zip(turns, shifts, strict=True)])
    return camera, distortion.ravel()[:5], poses


def _uncertainty(views: Sequence[BeadView], poses: Array, camera: Array, distortion: Array,
                 lens: int) -> tuple[float, Array]:
    """Return the focal length's standard deviation in px and the (6, 6) of the first pose.

    Each view's pose is eliminated (Schur complement), so that what a pose can hide of the
    intrinsics counts as not known. OpenCV's own deviations come from a pseudo-inverse: of a focal
    length that is not determined at all they say zero.

    Args:
        views: beads used.
        poses: (V, 4, 4) of them.
        camera: (3, 3) intrinsics.
        distortion: (5,) of OpenCV.
        lens: radial coefficients that were free.
    """
    scale = np.array([0.01 * camera[0, 0], 10.0, 10.0, *[0.1] * lens])
    normal, freedom, squares = np.zeros((len(scale), len(scale))), -len(scale), 0.0
    poses_alone, pulls = [], []
    for view, pose in zip(views, poses, strict=True):
        at = partial(_seen, view, pose, camera, distortion)
        by_camera = jacobian(partial(at, offset=np.zeros(6)), np.zeros(len(scale)), scale)
        by_pose = jacobian(partial(at, np.zeros(3)), np.zeros(6), _POSE_SCALE)
        poses_alone.append(np.linalg.pinv(by_pose.T @ by_pose))
        pulls.append(poses_alone[-1] @ by_pose.T @ by_camera)
        normal += by_camera.T @ (by_camera - by_pose @ pulls[-1])
        freedom += 2 * len(view.beads) - 6
        squares += float(np.sum((at(np.zeros(3), np.zeros(6)) - view.pixels.ravel())**2))
    values, axes = np.linalg.eigh(normal)
    variance = squares / max(freedom, 1)
    intrinsics = variance * axes @ np.diag(1.0 / np.maximum(values, 1e-9)) @ axes.T
    covariance = variance * poses_alone[0] + pulls[0] @ intrinsics @ pulls[0].T
    return (float(np.sqrt(intrinsics[0, 0])) * scale[0],
            np.asarray(covariance * np.outer(_POSE_SCALE, _POSE_SCALE)))


def _seen(view: BeadView, pose: Transform, camera: Array, distortion: Array, more: Array,
          offset: Array) -> Array:
    """Return (2N,) px of beads with focal length, centre, coefficients and pose a little off."""
    matrix, lens = camera.copy(), distortion.copy()
    matrix[[0, 1], [0, 1]] += more[0]
    matrix[:2, 2] += more[1:3]
    lens[:len(more) - 3] += more[3:]
    return project(rigid.perturbed(pose, offset), view.beads, matrix, lens).ravel()


def _held_out(views: Sequence[BeadView], size: tuple[int, int], start: Array, flags: int) -> float:
    """Return the root mean square error in px of beads that neither intrinsics nor pose used."""
    squares = []
    for number, view in enumerate(views):
        others = [other for index, other in enumerate(views) if index != number]
        camera, distortion, _ = _adjust(others, size, start, flags)
        for half in range(2):
            pose_from, tested = (np.arange(len(view.beads)) % 2 == side
                                 for side in (half, 1 - half))
            pose = solve_pose(view.beads[pose_from], view.pixels[pose_from], camera, distortion) \
                if np.count_nonzero(pose_from) >= 4 else None
            if pose is None:
                continue
            left = project(pose, view.beads[tested], camera, distortion) - view.pixels[tested]
            squares.append(np.sum(left**2, axis=1))
    return float(np.sqrt(np.mean(np.concatenate(squares)))) if squares else np.inf


def _pose_solution(pose: Transform, view: BeadView, camera: Array,
                   distortion: Array | None) -> Solution:
    """Adjust a pose in px; the parameters are an offset in optical axes."""
    return least_squares(lambda x: (project(rigid.perturbed(pose, x), view.beads, camera,
                                            distortion) - view.pixels).ravel(),
                         np.zeros(6), _POSE_SCALE)


@dataclass(frozen=True)
class ProbeInXray:
    """The ultrasound probe's pose in an X-ray image.

    Attributes:
        transform: (4, 4) ``fluoroscopy_optical_frame_T_ultrasound_probe``.
        covariance: (6, 6) in optical axes: large along the beam, which z is.
        errors: (N,) px.
        held_out: px, root mean square: each bead, pose from the others.
        samples: beads given.
        inliers: beads used.
    """

    transform: Transform
    covariance: Array
    errors: Array
    held_out: float
    samples: int
    inliers: int


def locate_probe(view: BeadView, camera: Array, *, distortion: Array | None = None,
                 focal_deviation: float = 0.0, centre_deviation: float = 0.0,
                 limit: float = 1.5) -> ProbeInXray:
    """Find a probe from its beads in one X-ray image; no tracker is needed.

    The covariance is scaled by the beads' own residuals, as that of a Student distribution, so
    that few beads do not promise too much. What the intrinsics are not known by is added: the focal
    length along the beam, the principal point across it.

    Args:
        view: beads in the probe's frame and their pixels, matched; wrong ones are dropped.
        camera: (3, 3) intrinsics.
        distortion: (5,) of OpenCV.
        focal_deviation: px, of the focal length.
        centre_deviation: px, of each coordinate of the principal point.
        limit: px, held-out error above which it is refused.

    Raises:
        GateError: fewer than seven beads, beads in a plane seen flat, or too large an error.
    """
    gates.require_samples(len(view.beads), 7, 'beads of the probe')
    samples = len(view.beads)
    index = _consistent(view, camera, distortion, 3.0)
    gates.require_inliers(len(index), samples, 0.6, 'beads', _LIST)
    gates.require_samples(len(index), 7, 'beads of the probe that agree')
    used = BeadView(view.beads[index], view.pixels[index])
    pose = solve_pose(used.beads, used.pixels, camera, distortion)
    if pose is None:
        raise gates.GateError('the beads give no pose; check their list and take another view')
    pose, used, solution = _trimmed(pose, used, camera, distortion)
    gates.require_conditioned(solution, 1000.0, (
        'the position across the beam', 'the position across the beam',
        'the position along the beam', *('the tilt of the probe',) * 3), (
        'use beads that do not lie in one plane, or take another view'))
    held_out = _bead_left_out(pose, used, camera, distortion)
    gates.require_held_out(held_out, limit, 'px', 'check the list of beads and the intrinsics')
    freedom = 2 * len(used.beads) - 6
    covariance = solution.covariance * freedom / (freedom - 2)
    for entries, deviation in (((0, 4), focal_deviation), ((2,), centre_deviation),
                               ((5,), centre_deviation)):
        other = camera.copy()
        other.flat[list(entries)] += 1.0
        moved = _pose_solution(pose, used, other, distortion).values
        covariance = covariance + deviation**2 * np.outer(moved, moved)
    errors = np.linalg.norm(solution.residuals.reshape(-1, 2), axis=1)
    return ProbeInXray(pose, covariance, errors, held_out, samples, len(used.beads))


def _trimmed(pose: Transform, view: BeadView, camera: Array,
             distortion: Array | None) -> tuple[Transform, BeadView, Solution]:
    """Adjust, dropping the worst bead while it lies far outside what the others say."""
    while True:
        solution = _pose_solution(pose, view, camera, distortion)
        pose = rigid.perturbed(pose, solution.values)
        errors = np.linalg.norm(solution.residuals.reshape(-1, 2), axis=1)
        worst = int(errors.argmax())
        others = np.delete(errors, worst)
        if len(errors) <= 7 or errors[worst] < 3.0 * float(np.sqrt(np.mean(others**2))):
            return pose, view, _pose_solution(pose, view, camera, distortion)
        view = BeadView(np.delete(view.beads, worst, axis=0), np.delete(view.pixels, worst, axis=0))


def _bead_left_out(pose: Transform, view: BeadView, camera: Array,
                   distortion: Array | None) -> float:
    squares = []
    for index in range(len(view.beads)):
        part = BeadView(np.delete(view.beads, index, axis=0), np.delete(view.pixels, index, axis=0))
        solution = _pose_solution(pose, part, camera, distortion)
        found = project(rigid.perturbed(pose, solution.values), view.beads[index:index + 1],
                        camera, distortion)[0]
        squares.append(float(np.sum((found - view.pixels[index])**2)))
    return float(np.sqrt(np.mean(squares)))


def gantry_covariance(source_to_isocentre: float, angle: float, distance: float,
                      isocentre: float) -> Array:
    """Return the (6, 6) covariance of a source that stands where the gantry's angles put it.

    An angle that is wrong turns source and image together about the isocentre: what lies there
    stays where it is in the image. So rotation and translation are not independent.

    Args:
        source_to_isocentre: metres.
        angle: radians, standard deviation about each axis.
        distance: metres, standard deviation along the beam.
        isocentre: metres, standard deviation of each coordinate of where the beam turns.

    Returns:
        m² and rad², translation first, in the axes of the image.
    """
    # The isocentre lies ahead of the source: a turn w moves the source by (0, 0, distance) x w.
    lever = rigid.skew(np.array([0.0, 0.0, source_to_isocentre]))
    jacobian = np.vstack([lever, np.eye(3)]) * angle
    covariance = jacobian @ jacobian.T
    covariance[:3, :3] += isocentre**2 * np.eye(3)
    covariance[2, 2] += distance**2
    return np.asarray(covariance)
