"""Search for straight bright ridges: Hessian, oriented Hough transform, best run on each line.

The search is coarse (about a pixel and a degree) and cheap; ``line`` measures what it finds.
Ridge filter after Frangi et al. (MICCAI 1998); each ridge pixel votes only near its own
orientation (Ballard, Pattern Recognition 1981); the run is the maximum subarray of the
response less half its height, the likelihood-ratio estimate of where a step begins and ends.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Image, Pixels

_ANGLES = 180
_SPREAD = np.arange(-4, 5)
_SPREAD_WEIGHT = np.exp(-0.5 * (_SPREAD / 2.5) ** 2)


@dataclass(frozen=True)
class Segment:
    """A straight run of ridge in the searched image.

    Attributes:
        ends: (2, 2) pixels, in no particular order.
        score: summed normalised response, comparable within one image only.
    """

    ends: Pixels
    score: float


class LineSearch:
    """Finds the straightest, longest bright ridges of float32 images of one size.

    Buffers are kept between calls, so an instance must not be shared between threads.
    """

    def __init__(self, *, sigma: float = 1.5, window: int = 31, minimum_length: float = 25.0,
                 maximum_segments: int = 6, maximum_points: int = 5000,
                 maximum_gap: float = 12.0, edge_penalty: float = 0.5,
                 angles: tuple[float, float] = (0.0, np.pi / 2)) -> None:
        """Prepare the filters.

        Args:
            sigma: px, scale of the ridge filter; half the width of the lines sought.
            window: px, side of the square over which clutter is averaged.
            minimum_length: px, of a run.
            maximum_segments: returned at most.
            maximum_points: ridge pixels that vote at most.
            maximum_gap: px, that a run may bridge.
            edge_penalty: share of the gradient taken off the response. One σ beside a step
                both are equal, on the crest of a ridge the gradient is zero.
            angles: rad, range of the angle between a line and the image's vertical.
        """
        self._window = window
        self._minimum_length = minimum_length
        self._maximum_segments = maximum_segments
        self._maximum_points = maximum_points
        self._maximum_gap = maximum_gap
        self._angles = angles
        self._edge_penalty = edge_penalty
        self._kernels = _derivative_kernels(sigma)
        self._shape: tuple[int, ...] = ()

    def __call__(self, image: Image, mask: Image | None = None) -> list[Segment]:
        """Return the best segments, best first.

        Args:
            image: (H, W) float32; lines are brighter than both their sides.
            mask: (H, W) uint8, zero where nothing may be found; all valid when absent.
        """
        if image.shape != self._shape:
            self._allocate(image.shape)
        self._filter(image, mask)
        points = self._ridge_pixels()
        if len(points) < self._minimum_length / 2:
            return []
        return self._segments(self._lines(points))

    def _allocate(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        (self._xx, self._xy, self._yy, self._q, self._ridge, self._level, self._dx, self._dy) = (
            np.zeros(shape, np.float32) for _ in range(8))
        height, width = shape
        self._radius = int(np.hypot(height, width) / 2) + 2
        angles = np.arange(_ANGLES) * np.pi / _ANGLES
        self._cos, self._sin = np.cos(angles), np.sin(angles)

    def _filter(self, image: Image, mask: Image | None) -> None:
        """Fill ``_ridge`` with line strength relative to the clutter around it."""
        smooth, first, second = self._kernels
        cv2.sepFilter2D(image, cv2.CV_32F, second, smooth, dst=self._xx)
        cv2.sepFilter2D(image, cv2.CV_32F, smooth, second, dst=self._yy)
        cv2.sepFilter2D(image, cv2.CV_32F, first, first, dst=self._xy)
        # Eigenvalues -a (across) and b (along): the strength a - |b| is min(a + b, a - b).
        cv2.subtract(self._xx, self._yy, dst=self._q)
        cv2.add(self._xy, self._xy, dst=self._xy)
        cv2.magnitude(self._q, self._xy, self._q)
        cv2.add(self._xx, self._yy, dst=self._ridge)
        cv2.multiply(self._ridge, -1.0, dst=self._ridge)
        cv2.min(self._q, self._ridge, dst=self._ridge)
        self._subtract_edges(image)
        cv2.max(self._ridge, 0.0, dst=self._ridge)
        if mask is not None:
            np.multiply(self._ridge, mask > 0, out=self._ridge)
        cv2.blur(self._ridge, (self._window, self._window), dst=self._level)
        floor = 0.2 * float(cv2.mean(self._level)[0]) + 1e-9
        cv2.add(self._level, floor, dst=self._level)
        cv2.divide(self._ridge, self._level, dst=self._ridge)

    def _subtract_edges(self, image: Image) -> None:
        if self._edge_penalty <= 0.0:
            return
        smooth, first, _ = self._kernels
        cv2.sepFilter2D(image, cv2.CV_32F, first, smooth, dst=self._dx)
        cv2.sepFilter2D(image, cv2.CV_32F, smooth, first, dst=self._dy)
        cv2.magnitude(self._dx, self._dy, self._q)
        cv2.scaleAdd(self._q, -self._edge_penalty, self._ridge, dst=self._ridge)

    def _ridge_pixels(self) -> NDArray[np.intp]:
        """Return (N,) flat indices of the strongest pixels that are ridge maxima."""
        ridge = self._ridge.ravel()
        index: NDArray[np.intp] = np.flatnonzero(ridge > 2.0)
        width = self._shape[1]
        index = index[(index > width) & (index < ridge.size - width - 1)]
        theta = self._orientation(index)
        # The normal makes the same angle with the horizontal as the line with the vertical.
        tilt = np.abs(np.arctan(np.tan(theta)))
        allowed = (tilt >= self._angles[0] - 0.06) & (tilt <= self._angles[1] + 0.06)
        index, theta = index[allowed], theta[allowed]
        step = (np.rint(np.cos(theta)) + np.rint(np.sin(theta)) * width).astype(np.intp)
        strength = ridge[index]
        index = index[(strength >= ridge[index + step]) & (strength >= ridge[index - step])]
        if index.size > self._maximum_points:
            strength = ridge[index]
            cut = np.partition(strength, -self._maximum_points)[-self._maximum_points]
            index = index[strength >= cut]
        return index

    def _orientation(self, index: NDArray[np.intp]) -> Array:
        """Return the (N,) direction across the ridge, radians."""
        xx, yy = self._xx.ravel()[index], self._yy.ravel()[index]
        return np.asarray(0.5 * np.arctan2(-self._xy.ravel()[index], yy - xx))

    def _lines(self, index: NDArray[np.intp]) -> Array:
        """Vote, and return (K, 2) lines (angle of the normal, distance from the centre)."""
        height, width = self._shape
        u = (index % width) - 0.5 * (width - 1)
        v = (index // width) - 0.5 * (height - 1)
        nearest = np.rint(self._orientation(index) * (_ANGLES / np.pi)).astype(np.intp)
        bins = (nearest[:, None] + _SPREAD) % _ANGLES
        distance = u[:, None] * self._cos[bins] + v[:, None] * self._sin[bins]
        weight = np.minimum(self._ridge.ravel()[index], 8.0)[:, None] * _SPREAD_WEIGHT
        columns = 2 * self._radius + 1
        cells = bins * columns + np.rint(distance).astype(np.intp) + self._radius
        votes = np.bincount(cells.ravel(), weight.ravel(), _ANGLES * columns)
        votes = votes.reshape(_ANGLES, columns).astype(np.float32)
        tilt = np.arctan2(np.abs(self._sin), np.abs(self._cos))
        votes[(tilt < self._angles[0]) | (tilt > self._angles[1])] = 0.0
        return self._peaks(votes)

    def _peaks(self, votes: Image) -> Array:
        smooth = cv2.GaussianBlur(votes, (3, 3), 0.8)
        highest = cv2.dilate(smooth, np.ones((7, 7), np.uint8))
        rows, columns = np.nonzero((smooth == highest) & (smooth > 0.0))
        best = np.argsort(smooth[rows, columns])[::-1][:2 * self._maximum_segments]
        return np.column_stack([rows[best] * np.pi / _ANGLES,
                                columns[best].astype(float) - self._radius])

    def _segments(self, lines: Array) -> list[Segment]:
        height, width = self._shape
        normal = np.column_stack([np.cos(lines[:, 0]), np.sin(lines[:, 0])])
        along = np.column_stack([-normal[:, 1], normal[:, 0]])
        s = np.arange(-self._radius, self._radius + 1.0)
        foot = 0.5 * np.array([width - 1, height - 1]) + normal * lines[:, 1:]
        response = self._response(foot, normal, along, s)
        first, last, score = _best_runs(response, self._maximum_gap)
        long_enough = np.flatnonzero(last - first >= self._minimum_length)
        order = long_enough[np.argsort(-score[long_enough])]
        ends = foot[order, None] + along[order, None] * s[
            np.column_stack([first[order], last[order]])][..., None]
        kept = _distinct(ends)[:self._maximum_segments]
        return [Segment(ends[k], float(score[order[k]])) for k in kept]

    def _response(self, foot: Pixels, normal: Array, along: Array, s: Array) -> Array:
        """Return (K, S) ridge strength on each line, the best of three parallel ones."""
        lateral = np.array([-1.0, 0.0, 1.0])[:, None, None]
        centre = foot + lateral * normal
        points = (centre[:, :, None] + along[:, None] * s[:, None]).astype(np.float32)
        flat = points.reshape(-1, s.size, 2)
        sampled = cv2.remap(self._ridge, flat, None, cv2.INTER_LINEAR,
                            borderMode=cv2.BORDER_CONSTANT, borderValue=-1.0)
        return np.asarray(sampled.reshape(3, len(foot), s.size).max(axis=0), dtype=float)


def _derivative_kernels(sigma: float) -> tuple[Array, Array, Array]:
    """Return Gaussian kernels of order 0, 1 and 2."""
    x = np.arange(-int(np.ceil(3.5 * sigma)), int(np.ceil(3.5 * sigma)) + 1.0)
    smooth = np.exp(-0.5 * (x / sigma) ** 2)
    smooth /= smooth.sum()
    second = (x**2 / sigma**2 - 1.0) * smooth
    # The first derivative is a correlation kernel: the sign cancels in the mixed derivative.
    return smooth, x / sigma * smooth, second - second.mean()


def _best_runs(response: Array, gap: float) -> tuple[Array, Array, Array]:
    """Return first and last index of the run of highest (K, S) response, and its sum."""
    level = np.clip(response, -1.0, 8.0)
    first, last, _ = maximum_subarrays(level - 1.3, gap)
    index = np.arange(level.shape[1])
    inside = (index >= first[:, None]) & (index <= last[:, None])
    height = np.sum(level, axis=1, where=inside) / np.maximum(last - first + 1, 1)
    height = np.maximum(height, 2.0)[:, None]
    return maximum_subarrays(np.minimum(level, 1.3 * height) - 0.5 * height, gap)


def maximum_subarrays(gain: Array, gap: float) -> tuple[Array, Array, Array]:
    """Return (first, last, sum) of the contiguous stretch with the largest sum in each row.

    Args:
        gain: (K, S) positive where something is, negative where not.
        gap: a stretch is cut where the gain stays negative for this many samples.

    Returns:
        (K,) index of the first and of the last sample, and (K,) sum of the stretch.
    """
    near = cv2.dilate((gain > 0.0).view(np.uint8), _window(int(gap))).view(np.bool_)
    total = np.zeros((gain.shape[0], gain.shape[1] + 1))
    np.where(near, gain, -1e3).cumsum(axis=1, out=total[:, 1:])
    lowest = np.minimum.accumulate(total, axis=1)
    gained = total - lowest
    last = gained.argmax(axis=1)
    row = np.arange(last.size)
    first = (total <= lowest[row, last][:, None]).argmax(axis=1)
    return first, np.maximum(last - 1, first), gained[row, last]


def maximum_subarray(gain: Array, gap: float) -> tuple[int, int]:
    """Return (first, last) of one (S,) row, as ``maximum_subarrays`` does: a third of the time."""
    near = cv2.dilate((gain > 0.0).view(np.uint8)[None], _window(int(gap)))[0].view(np.bool_)
    total = np.zeros(gain.size + 1)
    np.where(near, gain, -1e3).cumsum(out=total[1:])
    last = int((total - np.minimum.accumulate(total)).argmax())
    first = int(total[:last + 1].argmin())
    return first, max(last - 1, first)


@cache
def _window(size: int) -> Image:
    return np.ones((1, size), np.uint8)


def _distinct(ends: Array, tolerance: float = 4.0) -> list[int]:
    """Return indices of the (K, 2, 2) segments whose middle lies on none before them."""
    axis = ends[:, 1] - ends[:, 0]
    length = np.linalg.norm(axis, axis=1) + 1e-9
    axis = axis / length[:, None]
    offset = ends.mean(axis=1)[:, None] - ends[:, 0]
    along = np.einsum('ijk,jk->ij', offset, axis)
    across = np.abs(offset[..., 0] * axis[:, 1] - offset[..., 1] * axis[:, 0])
    on = (across < tolerance) & (along > -tolerance) & (along < length + tolerance)
    kept: list[int] = []
    for k in range(len(ends)):
        if not on[k, kept].any():
            kept.append(k)
    return kept
