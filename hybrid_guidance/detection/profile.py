"""What a shaft looks like across: the filters for its rows of pixels."""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.detection.series import median
from hybrid_guidance.geometry.types import Array, Image

NARROW = 14
_COLUMNS = np.arange(-NARROW, NARROW + 1.0)


@dataclass(frozen=True)
class Template:
    """Profile and its derivative on columns x, free of constant and linear background.

    Attributes:
        width: px, σ.
        half: px, columns on either side of the middle.
        profile: (2 half + 1,) the profile.
        derivative: (2 half + 1,) its derivative.
        filters: (4, 2 half + 1) float32, what gives a row's amplitude, lateral offset ×
            amplitude, and the amplitude above one side only, negative and positive.
    """

    width: float
    half: int
    profile: Array
    derivative: Array
    filters: Image

    def responses(self, strip: Image) -> Array:
        """Return (..., 4, S): what each of the filters gives of each row of (..., S, W) pixels."""
        middle = strip.shape[-1] // 2
        columns = strip[..., middle - self.half:middle + self.half + 1]
        return (self.filters @ columns.swapaxes(-1, -2)).astype(float)


@lru_cache(maxsize=256)
def gaussian_template(width: float, limit: int = NARROW) -> Template:
    """Return the template of a Gaussian of some σ in px, at most ``limit`` columns to a side."""
    half = min(limit, int(np.ceil(3.0 * width + 2.5)))
    x = np.arange(-half, half + 1.0)
    bell = np.exp(-0.5 * (x / width) ** 2)
    profile = bell - bell.mean()
    slope = x / width**2 * bell
    derivative = slope - x * float(slope @ x) / float(x @ x)
    above = [_above(bell, side * x <= 1.2 * width) for side in (1.0, -1.0)]
    filters = np.array([profile / float(profile @ profile),
                        derivative / float(derivative @ derivative), *above], np.float32)
    return Template(width, half, profile, derivative, filters)


def _above(bell: Array, columns: NDArray[np.bool_]) -> Array:
    """Return what gives the height of a bell above the level, seen on some columns only."""
    profile = np.where(columns, bell - bell[columns].mean(), 0.0)
    return np.asarray(profile / float(profile @ profile))


def pixel_noise(pixels: Image, half: int) -> float:
    """Deviation of the image noise beside the shaft, from differences between columns."""
    # A fourth of the rows tells it as well as all of them.
    pixels = pixels[::4]
    flank = np.concatenate([pixels[:, :-2 * half - 1], pixels[:, 2 * half + 1:]], axis=1)
    flank = flank if flank.shape[1] > 3 else pixels
    steps = flank[:, 1:] - flank[:, :-1]
    return 1.4826 / 2**0.5 * median(np.abs(steps, out=steps).ravel())


def fit_tail(profile: Array) -> tuple[float, float]:
    """Return where a profile begins and the mean delay of its echoes, px towards larger x."""
    shapes, places = _tail_shapes()
    return places[int((shapes @ profile).argmax())]


@cache
def _tail_shapes() -> tuple[Image, list[tuple[float, float]]]:
    """Return profiles of a Gaussian echoed at even spacing, each with shift and mean delay.

    They are (M, W) float32 of unit norm and no mean.
    """
    order = np.arange(8)
    shapes, places = [], []
    echoes = [(1.2, 0.0), *product((1.2, 1.8, 2.6, 3.6), (0.12, 0.24, 0.36, 0.48))]
    for width, (spacing, ratio), shift in product(
            (1.2, 1.5, 1.9, 2.3, 2.8, 3.4), echoes, np.arange(-3.0, 2.1, 0.2).tolist()):
        weight = ratio**order / np.sum(ratio**order)
        z = (_COLUMNS[:, None] - shift - spacing * order) / width
        shape = np.exp(-0.5 * z**2) @ weight
        shape = shape - shape.mean()
        shapes.append(shape / np.linalg.norm(shape))
        places.append((shift, spacing * float(weight @ order)))
    return np.array(shapes, np.float32), places


def block_widths(pixels: Image, count: int, limits: tuple[float, float]) -> Array:
    """Return the (count,) σ of the profile that explains most of each block of rows."""
    blocks = np.add.reduceat(pixels, np.arange(count) * len(pixels) // count, axis=0)
    candidates, profiles = _profile_bank(limits, pixels.shape[1] // 2)
    return np.asarray(candidates[(blocks @ profiles).argmax(axis=1)])


@cache
def _profile_bank(limits: tuple[float, float], half: int) -> tuple[Array, Image]:
    """Return (11,) widths and (2 half + 1, 11) float32 profiles of unit norm."""
    candidates = np.geomspace(*limits, 11)
    profiles = np.zeros((2 * half + 1, candidates.size), np.float32)
    for k, width in enumerate(candidates):
        template = gaussian_template(float(width), min(half, NARROW))
        profiles[half - template.half:half + template.half + 1, k] = (
            template.profile / np.linalg.norm(template.profile))
    return candidates, profiles


def row_bulk(pixels: Image, half: int = 10, far: int = 15) -> Image:
    """Return (S, 1) grey level integrated over ±half columns, above the level up to ±far."""
    return np.asarray(pixels @ _bulk_filter(pixels.shape[1], half, far))


@cache
def _bulk_filter(columns: int, half: int, far: int) -> Image:
    x = np.abs(np.arange(columns) - columns // 2)[:, None]
    beside = (x > half) & (x < far)
    return np.where(x <= half, 1.0, -(2.0 * half + 1.0) / beside.sum() * beside).astype(np.float32)
