"""Radiopaque beads in an X-ray image: where they are, and which is which.

Beads are small dark discs (less radiation arrives). Which bead is which is found without a first
guess of the pose: directions and rolls are tried all around, and the best are refined by assigning
each bead to the spot nearest to it and solving the perspective pose, in turn (SoftPOSIT's idea,
David et al., IJCV 2004, with hard assignments). The beads must lie irregularly, or some views
look alike.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Image, Pixels, Points, Transform

_DIRECTIONS, _ROLLS = 400, 36
_REFINED = 24


@dataclass(frozen=True)
class BeadMatch:
    """Spots that are beads.

    Attributes:
        beads: (N,) index of the bead of each pair.
        spots: (N,) index of its spot.
        pose: (4, 4) ``optical_T_beads``.
        residual: px, root mean square.
    """

    beads: NDArray[np.intp]
    spots: NDArray[np.intp]
    pose: Transform
    residual: float


def find_beads(image: Image, radius: float, maximum: int = 60,
               threshold: float = 6.0) -> Pixels:
    """Return the (N, 2) centres in pixels of dark discs of one size, most contrasted first.

    Args:
        image: (H, W) uint8, uint16 or float; more radiation is brighter.
        radius: px, of a bead's shadow.
        maximum: of beads returned.
        threshold: least contrast, in standard deviations (robust) of the filtered image.
    """
    level = np.log(np.maximum(image.astype(np.float32), 1.0))
    inner, outer = max(radius / 1.5, 0.8), max(radius / 1.5, 0.8) * 1.6
    # A disc of this radius answers most to this difference (Lowe, IJCV 2004).
    response = cv2.GaussianBlur(level, (0, 0), outer) - cv2.GaussianBlur(level, (0, 0), inner)
    size = 2 * round(1.5 * radius) + 1
    peak = response == cv2.dilate(response, np.ones((size, size), np.uint8))
    noise = 1.4826 * float(np.median(np.abs(response - np.median(response))))
    border = round(2 * radius) + 1
    peak[:border] = peak[-border:] = peak[:, :border] = peak[:, -border:] = False
    rows, columns = np.nonzero(peak & (response > threshold * noise))
    order = np.argsort(-response[rows, columns])[:maximum]
    return np.array([_centre(response, u, v, round(radius)) for v, u in zip(
        rows[order], columns[order], strict=True)]).reshape(-1, 2)


def _centre(response: Image, u: int, v: int, reach: int) -> tuple[float, float]:
    """Return the top of a paraboloid fitted to the response around its peak."""
    reach = max(reach, 1)
    patch = response[v - reach:v + reach + 1, u - reach:u + reach + 1].astype(float)
    y, x = np.mgrid[-reach:reach + 1, -reach:reach + 1].reshape(2, -1).astype(float)
    design = np.column_stack([x * x, x * y, y * y, x, y, np.ones_like(x)])
    weight = np.exp(-(x * x + y * y) / max(reach, 1) ** 2)
    a, b, c, d, e, _ = np.linalg.lstsq(design * weight[:, None], patch.ravel() * weight,
                                       rcond=None)[0]
    determinant = 4.0 * a * c - b * b
    if determinant <= 0.0:
        return float(u), float(v)
    du, dv = (b * e - 2.0 * c * d) / determinant, (b * d - 2.0 * a * e) / determinant
    return float(u + np.clip(du, -reach, reach)), float(v + np.clip(dv, -reach, reach))


def match_beads(spots: Pixels, beads: Points, camera: Array, *, distortion: Array | None = None,
                tolerance: float = 4.0, share: float = 0.6) -> BeadMatch | None:
    """Return which spot is which bead, and the pose; None where nothing fits.

    Args:
        spots: (M, 2) pixels, with clutter, and perhaps without some beads.
        beads: (N, 3) metres.
        camera: (3, 3) intrinsics, the focal length right to some percent.
        distortion: (5,) of OpenCV.
        tolerance: px, of a spot that is a bead.
        share: of the beads that must be found.
    """
    needed = max(int(np.ceil(share * len(beads))), 6)
    if len(spots) < needed or len(beads) < 6:
        return None
    best: BeadMatch | None = None
    for pose in _starts(spots, beads, camera):
        match = _refined(spots, beads, camera, distortion, pose, tolerance)
        if match is not None and len(match.beads) >= needed and (best is None or (
                len(match.beads), -match.residual) > (len(best.beads), -best.residual)):
            best = match
    return best


def _starts(spots: Pixels, beads: Points, camera: Array) -> list[Transform]:
    """Return the poses, of many all around, whose shadows lie closest to spots."""
    focal = 0.5 * (camera[0, 0] + camera[1, 1])
    rays = (spots - camera[:2, 2]) / focal
    middle = np.median(rays, axis=0)
    size = np.median(np.linalg.norm(rays - middle, axis=1))
    local = beads - beads.mean(axis=0)
    costs, offsets = [], []
    for rotations in np.split(_rotations(), _DIRECTIONS):
        turned = np.einsum('rij,nj->rni', rotations, local)
        flat = turned[..., :2] - np.median(turned[..., :2], axis=1, keepdims=True)
        depth = np.median(np.linalg.norm(flat, axis=-1), axis=1) / max(size, 1e-9)
        shadow = turned[..., :2] / np.maximum(turned[..., 2:] + depth[:, None, None], 1e-3)
        shadow += middle - np.median(shadow, axis=1, keepdims=True)
        gap = np.min(np.sum((shadow[:, :, None] - rays)**2, axis=-1), axis=2)
        costs.append(np.sum(np.minimum(gap, (0.3 * size)**2), axis=1))
        offsets.append(np.column_stack([shadow.mean(axis=1) * depth[:, None], depth]))
    cost, offset = np.concatenate(costs), np.concatenate(offsets)
    best = np.argsort(cost)[:_REFINED]
    return [rigid.transform(rotation, place - rotation @ beads.mean(axis=0))
            for rotation, place in zip(_rotations()[best], offset[best], strict=True)]


@cache
def _rotations() -> Array:
    """Return rotations spread evenly: directions on a Fibonacci sphere, and rolls."""
    number = np.arange(_DIRECTIONS) + 0.5
    height = 1.0 - 2.0 * number / _DIRECTIONS
    turn = np.pi * (1.0 + np.sqrt(5.0)) * number
    flat = np.sqrt(1.0 - height**2)
    views = [rigid.pose_along(np.zeros(3), np.array(one))[:3, :3].T for one in zip(
        flat * np.cos(turn), flat * np.sin(turn), height, strict=True)]
    rolls = [rigid.rotation_from_vector(np.array([0.0, 0.0, angle]))
             for angle in np.arange(_ROLLS) * 2.0 * np.pi / _ROLLS]
    return np.array([roll @ view for view in views for roll in rolls])


def _refined(spots: Pixels, beads: Points, camera: Array, distortion: Array | None,
             pose: Transform, tolerance: float) -> BeadMatch | None:
    """Assign and solve in turn, with a tolerance that shrinks."""
    spread = float(np.median(np.linalg.norm(spots - np.median(spots, axis=0), axis=1)))
    found: BeadMatch | None = None
    for reach in np.geomspace(max(0.5 * spread, 4.0 * tolerance), tolerance, 9):
        gaps = np.linalg.norm(project(pose, beads, camera, distortion)[:, None] - spots[None],
                              axis=-1)
        nearest = gaps.argmin(axis=1)
        mutual = gaps.argmin(axis=0)[nearest] == np.arange(len(beads))
        pairs = np.flatnonzero(mutual & (gaps[np.arange(len(beads)), nearest] < reach))
        if len(pairs) < 6:
            return None
        solved = solve_pose(beads[pairs], spots[nearest[pairs]], camera, distortion, pose)
        if solved is None:
            return None
        pose = solved
        left = project(pose, beads[pairs], camera, distortion) - spots[nearest[pairs]]
        good = np.linalg.norm(left, axis=1) < tolerance
        if np.count_nonzero(good) >= 6:
            found = BeadMatch(pairs[good], nearest[pairs][good], pose,
                              float(np.sqrt(np.mean(np.sum(left[good]**2, axis=1)))))
    return found


def solve_pose(beads: Points, pixels: Pixels, camera: Array, distortion: Array | None = None,
               start: Transform | None = None) -> Transform | None:
    """Return ``optical_T_beads`` (OpenCV's PnP, refined); None where it fails."""
    guess = {} if start is None else {
        'rvec': cv2.Rodrigues(start[:3, :3])[0], 'tvec': start[:3, 3:].copy(),
        'useExtrinsicGuess': True}
    flags = cv2.SOLVEPNP_SQPNP if start is None else cv2.SOLVEPNP_ITERATIVE
    try:
        good, vector, shift = cv2.solvePnP(beads, pixels, camera, distortion, flags=flags, **guess)
    except cv2.error:
        return None
    if not good or not np.all(np.isfinite(shift)) or shift[2, 0] <= 0.0:
        return None
    vector, shift = cv2.solvePnPRefineLM(beads, pixels, camera, distortion, vector, shift)
    return rigid.transform(cv2.Rodrigues(vector)[0], shift[:, 0])


def project(pose: Transform, beads: Points, camera: Array,
            distortion: Array | None = None) -> Pixels:
    """Return the (N, 2) pixels of beads under a pose ``optical_T_beads``."""
    # Not by a rotation vector: OpenCV takes one below 1e-5 for none, and its slope is lost.
    pixels, _ = cv2.projectPoints(rigid.transform_points(pose, beads), np.zeros(3), np.zeros(3),
                                  camera, distortion)
    return np.asarray(pixels[:, 0])
