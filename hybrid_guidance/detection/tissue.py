"""How far tissue has moved in the images of a sensor that stands still: what breathing looks like.

Patches of the first image are found again in each later one (normalised cross-correlation,
Lewis 1995), to a part of a pixel by a parabola. Tissue moves as one, so the correlations of all
patches are added up: one patch of layers has a place across them only, all together have one in
both directions. A patch that a needle crosses, or that left the image, is left out.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from hybrid_guidance.geometry.types import Array, Image, Pixels
from hybrid_guidance.imaging.frame import Frame

_LEAST, _MOST, _PLENTY, _FLOOR = 4, 14, 6, 0.15
"""Patches that must agree; patches looked for; patches found from which an image counts as
wholly like another; shrunk pixels that no average takes away."""

_LIKE, _WORSE, _SHARE, _FLAT, _LAG = 0.5, 0.15, 0.4, 1e-4, 0.04
"""Correlation from which a patch counts as found, and how much better it may be found elsewhere;
share of the patches that must be found; a correlation that bends less has no place; share of a
shift that is lost where what crosses the slice changes the picture."""


@dataclass(frozen=True)
class TissueShift:
    """Where the tissue of one image lies, seen from where a reference image had it.

    Attributes:
        reference_ns: stamp of the reference image; another one means another beginning.
        pixels: (2,) px, displacement since then.
        covariance: (2, 2) px².
    """

    reference_ns: int
    pixels: Pixels
    covariance: Array


@dataclass
class _Key:
    """An image that later ones are compared with, and how far its tissue had moved by then."""

    corners: list[tuple[int, int]]
    patches: list[Image]
    moved: Array
    covariance: Array


class TissueMotion:
    """Follows tissue from a reference image on. Keeps state: one instance per stream of images.

    What moves across a slice looks different soon, and the same again a breath later. So where
    an image is not like the one it was compared with any more it is kept too, and the next is
    compared with whichever of those kept lies nearest. Where none of them is like it, all are
    tried in turn, until the breath brings the tissue back.

    Args:
        shrink: how many pixels of an image make one that is compared.
        patch: edge of a patch, in shrunk pixels.
        reach: how far tissue may move from one image to the next, in shrunk pixels.
        logarithm: compare logarithms: what X-rays passed multiplies.
        like: median correlation below which an image is kept.
        keep: images kept at most.
        patience: images in a row without tissue after which all begins anew.
        short: the same of a new reference that less than half of the images show: it was taken
            in the middle of a breath, another one may lie where tissue rests.
    """

    def __init__(self, shrink: int = 2, patch: int = 40, reach: int = 8, *,
                 logarithm: bool = False, like: float = 0.7,
                 keep: int = 16, patience: int = 60, short: int = 15) -> None:
        self._shrink, self._patch, self._reach = shrink, patch, reach
        self._logarithm, self._like = logarithm, like
        self._keep, self._patience, self._short = keep, patience, short
        self._keys: list[_Key] = []
        self._begun: tuple[int, tuple[int, ...]] = (0, ())
        self._last = np.zeros(2)
        self._lost = self._seen = self._missed = 0

    def __call__(self, frame: Frame) -> TissueShift | None:
        """Return how far the tissue of a frame has moved; None where that cannot be told."""
        image = self._small(frame.pixels)
        if not self._keys or self._begun[1] != image.shape or self._is_lost():
            self._keys, self._begun = [], (frame.stamp_ns, image.shape)
            self._lost = self._seen = self._missed = 0
            self._add(image, np.zeros(2), np.zeros((2, 2)))
            self._last = np.zeros(2)
            return None
        found = self._compared(image)
        if found is None:
            self._lost += 1
            return None
        moved, covariance, likeness = found
        self._missed += self._lost
        self._seen += 1
        self._lost, self._last = 0, moved
        if likeness < self._like:
            self._add(image, moved, covariance)
        scale = float(self._shrink)
        return TissueShift(self._begun[0], scale * moved, scale**2 * covariance)

    def _is_lost(self) -> bool:
        """Tell whether the reference is given up."""
        seldom = (self._seen < self._missed + min(self._lost, self._short)
                  and self._seen + self._missed + self._lost <= self._patience)
        return self._lost >= (min(self._short, self._patience) if seldom else self._patience)

    def _compared(self, image: Image) -> tuple[Array, Array, float] | None:
        """Return displacement, covariance and likeness by the more like of the nearest two."""
        nearest = sorted(self._keys, key=lambda key: float(np.linalg.norm(key.moved - self._last)))
        first = 2 * self._lost % len(nearest)
        best = None
        for key in nearest[first:first + 2]:
            found = self._match(image, key)
            if found is not None and (best is None or found[2] > best[2]):
                best = found
            if best is not None and best[2] >= self._like:
                break
        return best

    def _match(self, image: Image, key: _Key) -> tuple[Array, Array, float] | None:
        expected = np.round(self._last - key.moved).astype(int)
        scores = [score for corner, patch in zip(key.corners, key.patches, strict=True)
                  if (score := self._compare(image, corner, patch, expected)) is not None]
        common = _common(np.array(scores))
        if common is None:
            return None
        place, covariance, likeness = common
        shift = expected - self._reach + place
        lag = (_LAG * np.linalg.norm(shift))**2 * np.eye(2)
        return key.moved + shift, key.covariance + covariance + lag, likeness

    def _add(self, image: Image, moved: Array, covariance: Array) -> None:
        """Keep an image; of too many, the one that came after the first is forgotten."""
        corners = self._corners(image)
        if len(corners) < _LEAST:
            return
        edge = self._patch
        self._keys.append(_Key(corners, [image[v:v + edge, u:u + edge].copy()
                                         for v, u in corners], moved, covariance))
        if len(self._keys) > self._keep:
            del self._keys[1]

    def _small(self, pixels: Image) -> Image:
        size = pixels.shape[1] // self._shrink, pixels.shape[0] // self._shrink
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        return np.asarray(cv2.log(small + 1.0) if self._logarithm else small)

    def _corners(self, image: Image) -> list[tuple[int, int]]:
        """Return where the patches of an image are that have texture in both directions."""
        edge, reach = self._patch, self._reach
        found = [(v, u) for v in range(reach, image.shape[0] - edge - reach, edge)
                 for u in range(reach, image.shape[1] - edge - reach, edge)
                 if _is_textured(image[v:v + edge, u:u + edge])]
        # From all over the image, and no more of them than make the answer better.
        return found[::-(-len(found) // _MOST)] if len(found) > _MOST else found

    def _compare(self, image: Image, corner: tuple[int, int], patch: Image,
                 expected: Array) -> Image | None:
        """Return the correlation of one patch at (2 reach + 1)² shifts, None off the image."""
        reach, edge = self._reach, self._patch
        v, u = corner[0] + int(expected[1]) - reach, corner[1] + int(expected[0]) - reach
        window = image[v:v + edge + 2 * reach, u:u + edge + 2 * reach]
        if min(v, u) < 0 or window.shape != (edge + 2 * reach, edge + 2 * reach):
            return None
        return np.asarray(cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED))


def xray_tissue() -> TissueMotion:
    """Return what follows bone in X-rays: large and smooth, and seldom seen."""
    return TissueMotion(4, 32, 10, logarithm=True)


def _is_textured(patch: Image) -> bool:
    """Tell whether a patch has a place in both directions: neither dark nor only stripes."""
    if float(np.mean(patch == 0.0)) > 0.2:
        return False
    dx, dy = cv2.Sobel(patch, cv2.CV_32F, 1, 0), cv2.Sobel(patch, cv2.CV_32F, 0, 1)
    xx, yy, xy = (float(np.mean(item)) for item in (dx * dx, dy * dy, dx * dy))
    least = 0.5 * (xx + yy - np.hypot(xx - yy, 2.0 * xy))
    return least > 1e-3 * max(float(patch.var()), 1e-6) and float(patch.std()) > 1e-3


def _common(scores: Array) -> tuple[Array, Array, float] | None:
    """Return the one shift of all patches, its (2, 2) covariance, and how alike they are there.

    A patch of layers has a place across them only: the sum over all patches is highest where all
    of them have one. How surely is told by how the slopes of the single ones differ there
    (Huber's sandwich).

    Args:
        scores: (N, S, S) correlation of each patch at each shift.
    """
    if len(scores) < _LEAST:
        return None
    used, size = np.ones(len(scores), bool), scores.shape[1]
    for _ in range(3):
        total = scores[used].mean(axis=0)
        v, u = divmod(int(total.argmax()), size)
        if not (0 < u < size - 1 and 0 < v < size - 1):
            return None
        at = scores[:, v, u]
        used = at > np.maximum(_LIKE, scores.max(axis=(1, 2)) - _WORSE)
        if used.sum() < max(_LEAST, _SHARE * len(scores)):
            return None
    near = scores[used, v - 1:v + 2, u - 1:u + 2]
    slopes, bends = _slopes(near), _bends(near.mean(axis=0))
    if np.linalg.eigvalsh(bends)[0] < _FLAT:
        return None
    inverse = np.linalg.inv(bends)
    offset = inverse @ slopes.mean(axis=0)
    left = slopes - offset @ bends
    count = len(left)
    covariance = inverse @ (left.T @ left) @ inverse / (count * (count - 1.0))
    # The few patches that are left may be as like as ever: the image is not, and soon none is.
    likeness = float(np.median(at[used])) * min(1.0, count / _PLENTY)
    return (np.array([u, v]) + np.clip(offset, -0.7, 0.7), covariance + _FLOOR**2 * np.eye(2),
            likeness)


def _slopes(near: Array) -> Array:
    """Return (N, 2) by (u, v) of (N, 3, 3) correlations in the middle."""
    return 0.5 * np.column_stack([near[:, 1, 2] - near[:, 1, 0], near[:, 2, 1] - near[:, 0, 1]])


def _bends(near: Array) -> Array:
    """Return the (2, 2) negative second derivative of (3, 3) correlations in the middle."""
    uu = 2.0 * near[1, 1] - near[1, 0] - near[1, 2]
    vv = 2.0 * near[1, 1] - near[0, 1] - near[2, 1]
    uv = 0.25 * (near[0, 2] + near[2, 0] - near[0, 0] - near[2, 2])
    return np.array([[uu, uv], [uv, vv]])
