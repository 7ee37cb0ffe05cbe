"""The wires of an N-wire phantom in an ultrasound image: bright spots, and which wire each is.

A wire crosses the slice as a spot. The two outer wires of every N are parallel to one another, so
that a slice, however it is tilted, shows their cross-section by an affine map (parallel lines meet
a plane affinely), and the wire between them lies on the straight line that joins them. Both
together tell the wires from clutter, and which way round the phantom lies, from one image and
without its scale (compare Chen et al., Ultrasound Med. Biol. 2009, who used lines and distances).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.geometry.types import Array, Image, Pixels, Points

_MAXIMUM_ROWS = 24
_PARALLEL = 1e-6
_FLIPS = ((False, False), (True, False), (False, True), (True, True))


@dataclass(frozen=True)
class WirePhantom:
    """Wires of N patterns in the frame of the phantom.

    Attributes:
        wires: (K, 3, 2, 3) metres: K patterns of first, middle and last wire, two ends each;
            first and last are parallel, the middle one joins them obliquely.
        names: of the wires, K times three.
    """

    wires: Points
    names: tuple[tuple[str, str, str], ...]

    def __post_init__(self) -> None:
        outer = self.directions[:, ::2].reshape(-1, 3)
        if len(self.wires) < 2 or np.abs(np.cross(outer, outer[0])).max() > _PARALLEL:
            raise CalibrationError('an N-wire phantom needs two patterns or more, and the outer '
                                   'wires of all of them parallel; correct its description')
        if np.abs(np.cross(self.directions[:, 1], outer[0])).max(axis=1).min() < 1e-2:
            raise CalibrationError('the middle wire of each N must be oblique to the outer ones; '
                                   'correct the description of the phantom')

    @property
    def directions(self) -> Points:
        """(K, 3, 3) unit vectors along the wires."""
        along = self.wires[:, :, 1] - self.wires[:, :, 0]
        return np.asarray(along / np.linalg.norm(along, axis=-1, keepdims=True))

    @property
    def cross_section(self) -> Pixels:
        """(K, 2, 2) metres: where the outer wires cross a plane at right angles to them."""
        axis = self.directions[0, 0]
        across = np.linalg.svd(axis[None])[2][1:]
        return np.asarray(self.wires[:, ::2, 0] @ across.T)

    def crossings(self, fractions: Array) -> Points:
        """Return (..., K, 3) metres where the middle wires cross the slice.

        Args:
            fractions: (..., K) where the middle spot lies from the first (0) to the last (1).
        """
        axis = self.directions[0, 0]
        start, end = self.wires[:, 1, 0], self.wires[:, 1, 1]
        first, last = self.wires[:, 0, 0], self.wires[:, 2, 0]
        # Components at right angles to the outer wires: there each of them is a point.
        flat = np.eye(3) - np.outer(axis, axis)
        width = (last - first) @ flat
        unit = width / np.linalg.norm(width, axis=-1, keepdims=True) ** 2
        low, high = (np.sum((point - first) * unit, axis=-1) for point in (start, end))
        along = (fractions - low) / (high - low)
        return np.asarray(start + along[..., None] * (end - start))


def find_spots(image: Image, maximum: int = 20, sigma: float = 3.0,
               threshold: float = 0.08) -> Array:
    """Return the bright compact spots of an image, brightest first.

    Args:
        image: (H, W) uint8 or uint16.
        maximum: of spots returned.
        sigma: px, half the size of a spot across the beam.
        threshold: least contrast, as a share of that of the brightest spot.

    Returns:
        (N, 3): u and v in pixels, and contrast. The place is the centroid of what stands out
        within ±2σ along v and ±3σ along u, where the spot is brighter than half its peak.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma / 2.0)
    # A ring around the spot is taken off: fascia, haze and the floor of the phantom go.
    response = cv2.GaussianBlur(smooth, (0, 0), sigma) - cv2.GaussianBlur(smooth, (0, 0), 4 * sigma)
    size = 2 * round(4 * sigma) + 1
    peak = response == cv2.dilate(response, np.ones((size, size), np.uint8))
    rows, columns = np.nonzero(peak & (response > threshold * max(float(response.max()), 1.0)))
    order = np.argsort(-response[rows, columns])[:maximum]
    return np.array([(*_centroid(smooth, u, v, sigma), response[v, u])
                     for v, u in zip(rows[order], columns[order], strict=True)]).reshape(-1, 3)


def _centroid(smooth: Image, u: int, v: int, sigma: float) -> tuple[float, float]:
    half_u, half_v = round(3 * sigma), round(2 * sigma)
    top, left = max(v - half_v, 0), max(u - half_u, 0)
    patch = smooth[top:v + half_v + 1, left:u + half_u + 1]
    weight = np.maximum(patch - 0.5 * float(patch.max()), 0.0)
    total = max(float(weight.sum()), 1e-9)
    return (left + float(weight.sum(0) @ np.arange(weight.shape[1])) / total,
            top + float(weight.sum(1) @ np.arange(weight.shape[0])) / total)


@dataclass(frozen=True)
class WireMatch:
    """Spots that are the wires of a phantom.

    Attributes:
        pixels: (K, 3, 2) of each wire in the phantom's order.
        residual: px, root mean square distance from the affine map of the outer wires.
        flip: whether the phantom's first wires are on the image's right, and its first pattern
            below the last.
    """

    pixels: Pixels
    residual: float
    flip: tuple[bool, bool]


def match_wires(spots: Array, phantom: WirePhantom, tolerance: float = 8.0,
                flips: Sequence[tuple[bool, bool]] = _FLIPS) -> WireMatch | None:
    """Return the spots that are the phantom's wires; None where no set of them fits.

    Args:
        spots: (N, 3) of ``find_spots``.
        phantom: the wires.
        tolerance: px, of the affine map of the outer wires and of the line through each N.
        flips: which ways round the phantom may lie.
    """
    rows = list(_rows(spots, tolerance))[:_MAXIMUM_ROWS]
    patterns = len(phantom.wires)
    sets = [chosen for chosen in combinations(rows, patterns)
            if len({index for row in chosen for index in row}) == 3 * patterns]
    if not sets:
        return None
    indices = np.array([sorted(chosen, key=lambda row: float(spots[list(row), 1].mean()))
                        for chosen in sets])
    # Brightness decides between sets that fit: clutter is fainter than wires.
    bright = np.log(np.maximum(spots[:, 2], 1e-6))[indices].sum(axis=(1, 2))
    best: tuple[float, WireMatch] | None = None
    for flip in flips:
        pixels = spots[indices, :2][:, ::-1 if flip[1] else 1, ::-1 if flip[0] else 1]
        residuals = _affine_residuals(pixels[:, :, ::2], phantom.cross_section)
        score = bright - 0.5 * (residuals / (0.25 * tolerance)) ** 2
        score[residuals > tolerance] = -np.inf
        number = int(np.argmax(score))
        if np.isfinite(score[number]) and (best is None or score[number] > best[0]):
            best = float(score[number]), WireMatch(pixels[number], float(residuals[number]), flip)
    return None if best is None else best[1]


def _rows(spots: Array, tolerance: float) -> Iterator[tuple[int, int, int]]:
    """Yield triples that lie on a line no steeper than 45°, left to right, brightest first."""
    found: list[tuple[float, tuple[int, int, int]]] = []
    for triple in combinations(range(len(spots)), 3):
        left, middle, right = sorted(triple, key=lambda index: float(spots[index, 0]))
        across = spots[right, :2] - spots[left, :2]
        length = float(np.hypot(*across))
        offset = spots[middle, :2] - spots[left, :2]
        if abs(across[1]) > across[0] or length < 6 * tolerance:
            continue
        if abs(float(across[0] * offset[1] - across[1] * offset[0])) <= tolerance * length:
            found.append((float(np.log(spots[list(triple), 2]).sum()), (left, middle, right)))
    yield from (triple for _, triple in sorted(found, reverse=True))


def _affine_residuals(pixels: Pixels, section: Pixels) -> Array:
    """Return the (N,) root mean square distance in px of (N, K, 2, 2) from an affine map."""
    flat = section.reshape(-1, 2)
    design = np.column_stack([flat, np.ones(len(flat))])
    off = np.eye(len(flat)) - design @ np.linalg.pinv(design)
    left_over = off @ pixels.reshape(len(pixels), -1, 2)
    return np.asarray(np.sqrt(np.mean(np.sum(left_over**2, axis=-1), axis=-1)))
