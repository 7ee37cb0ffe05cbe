"""Where about a start X-rays are like rendered bone: many turns, each with all shifts at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.registration.bone import Bone, Picture
from hybrid_guidance.registration.fit import Fit, displaced, distance, refined, rendered
from hybrid_guidance.registration.result import LIMIT
from hybrid_guidance.registration.view import Plate, features
from hybrid_guidance.simulation.xray import Stack

_Spectra = tuple[tuple[int, int], list[NDArray[np.complex64]]]


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


def places_near(bone: Bone, plates: Sequence[Plate], start: Transform, pivot: Points,
                search: Search) -> list[Fit]:
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
        pose = displaced(start, np.concatenate([shift, turn]), pivot)
        score = _shifts(plates, _maps(stack, plates, spectra, pose), pivot, offsets)
        for _ in range(2):
            best = int(np.argmax(score))
            places.append((float(score[best]),
                           displaced(pose, np.concatenate([offsets[best], np.zeros(3)]), pivot)))
            score[np.linalg.norm(offsets - offsets[best], axis=1) < 0.010] = -1.0
    places.sort(key=lambda place: -place[0])
    chosen: list[Transform] = []
    for _, pose in places:
        if all(distance(pose, other, pivot, plates) > 0.006 for other in chosen):
            chosen.append(pose)
        if len(chosen) == search.kept:
            break
    fits = [refined(stack, plates, Fit(pose), pivot, edge, 2) for pose in chosen]
    return apart(fits, pivot, plates)


def apart(fits: Sequence[Fit], pivot: Points, plates: Sequence[Plate]) -> list[Fit]:
    """Return fits that are different places, best first."""
    kept: list[Fit] = []
    for fit in sorted(fits, key=lambda each: -each.score):
        if all(distance(fit.pose, other.pose, pivot, plates) > 3.0 * LIMIT for other in kept):
            kept.append(fit)
    return kept


def elsewhere(stack: Stack, plates: Sequence[Plate], pose: Transform, pivot: Points) -> float:
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


def _spectra(plates: Sequence[Plate]) -> list[_Spectra]:
    """Return of each view the size for all shifts, and the spectra of what is compared there."""
    result = []
    for plate in plates:
        rows, columns = (next_fast_len(2 * count, real=True) for count in plate.shape)
        pictures = [*(plate.feature * plate.valid), (plate.feature**2).sum(axis=0) * plate.valid,
                    plate.valid]
        result.append(((rows, columns), [rfft2(each, (rows, columns)) for each in pictures]))
    return result


def _maps(stack: Stack, plates: Sequence[Plate], spectra: Sequence[_Spectra],
          pose: Transform) -> list[Picture]:
    """Return of each view the likeness for all shifts of the rendered image, (>= 2h, >= 2w).

    Index (v, u) is a shift by v rows and u columns, modulo the size.
    """
    result = []
    for plate, (shape, (across, down, power, valid)) in zip(plates, spectra, strict=True):
        feature, strength = features(rendered(stack, plate, pose))
        u, v, weight, weighted = (np.conj(rfft2(each, shape)) for each in (
            *(feature * strength), strength, strength * (feature**2).sum(axis=0)))
        both, own, other = (np.asarray(irfft2(each, shape), np.float32) for each in (
            across * u + down * v, power * weight, valid * weighted))
        # Where little is left in the picture, nothing is known.
        least = 0.35 * float(other.max())
        norm = np.maximum(own, 1e-6 * own.max()) * np.maximum(other, least) + 1e-12
        result.append(np.asarray(np.where(other > least, both / np.sqrt(norm), 0.0), np.float32))
    return result


def _shifts(plates: Sequence[Plate], maps: Sequence[Picture], pivot: Points,
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
