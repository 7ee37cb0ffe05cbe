"""Whether rendered bone is that of the X-rays: parts of other bone fit better one by one."""

from collections.abc import Sequence

import cv2
import numpy as np

from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.registration.bone import Picture
from hybrid_guidance.registration.fit import PATCH, rendered
from hybrid_guidance.registration.view import Plate, features
from hybrid_guidance.simulation.xray import Stack

# Parts of the image are shifted by as many pixels to either side; their likeness counts where it
# is at least so great, and as if at least this share of each were noise.
_REACH, _ALIKE, _NEVER = 5, 0.5, 0.05


def slack_of(stack: Stack, plates: Sequence[Plate], pose: Transform) -> tuple[float, float]:
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


def _shifted_patches(stack: Stack, plate: Plate, pose: Transform) -> tuple[Array, Array]:
    """Return the likeness of P patches after every shift (rows, columns, P); their weight, (P,)."""
    feature, strength = features(rendered(stack, plate, pose))
    weight, steps = strength * plate.valid, 2 * _REACH + 1
    size = max(round(2.0 * PATCH / plate.pixel) | 1, 5)

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
