"""The echo of bone: a surface between samples, a mirror where square to the beam, rough besides.

A mirror answers in one phase, from where the middle of the beam meets it, and only while it faces
the probe. Roughness answers from all of the surface that beam and slice hold, so a surface that is
inclined, in the slice or across it, is thicker and speckled (Jain and Taylor, Understanding bone
responses in B-mode ultrasound images, Proc. SPIE 2004;5373:131).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.simulation.acoustics import Acoustics
from hybrid_guidance.simulation.beams import COARSE, Beams, Polar, Scan
from hybrid_guidance.simulation.speckle import Speckle

Grains = NDArray[np.int8]

# Amplitudes where square to the beam: below white, as on a screen whose gain shows muscle.
_MIRROR, _ROUGH = 0.6, 0.25
# A beam's share of a surface, in beams: so many places along it.
_ALONG = (np.arange(8) - 3.5) / 8.0
# Places across the slice, in its standard deviations, each as likely as the others.
_ACROSS = np.array([-1.6, -0.97, -0.59, -0.28, 0.0, 0.28, 0.59, 0.97, 1.6])
# Samples: what is spread further is lost in speckle.
_STEEPEST = 30.0


@dataclass(frozen=True)
class Surface:
    """Where beams enter bone.

    Attributes:
        above: (N,) the last coarse row in tissue.
        columns: (N,) beams.
        samples: (N,) fractional, of the surface.
        square: (N,) cosine between beam and normal.
        along: (N,) samples that the surface falls from a beam to the next.
        across: (N,) samples that it falls over a standard deviation of the slice's thickness.
    """

    above: NDArray[np.intp]
    columns: NDArray[np.intp]
    samples: Array
    square: Array
    along: Array
    across: Array

    @property
    def level(self) -> Array:
        """(N,) amplitude of the mirror, of sound that comes and goes unhindered."""
        return np.asarray(_MIRROR * self.square**3)


class BoneEcho:
    """How one probe sees the surface of bone.

    Args:
        beams: where samples lie.
        scan: thickness of the slice.
        speckle: the scatterers that roughness consists of.
    """

    def __init__(self, beams: Beams, scan: Scan, speckle: Speckle) -> None:
        self._beams, self._scan = beams, scan
        self._crest = speckle.crest

    def surface(self, patient_T_image: Transform, acoustics: Acoustics, bone: Polar) -> Surface:
        """Find where beams enter bone: between two coarse rows, half of a voxel's place is bone.

        Args:
            patient_T_image: (4, 4) pose of the slice.
            acoustics: of the patient.
            bone: (rows, beams) 0 to 1.
        """
        beams, inside = self._beams, bone >= 0.5
        above, columns = divmod(np.flatnonzero(inside[1:] > inside[:-1]), bone.shape[1])
        low, high = bone[above, columns], bone[above + 1, columns]
        samples = COARSE * (above + (0.5 - low) / (high - low)) + (COARSE - 1) / 2
        starts, ways = beams.along(patient_T_image)
        ranges = beams.step * samples
        normals = acoustics.into_bone(starts[:, columns] + ranges * ways[:, columns])
        x, y, z = patient_T_image[:3, :3].T @ normals
        way_x, way_y = beams.ways[columns].T
        square = np.maximum(x * way_x + y * way_y, 0.05)
        # A metre to the side the surface is so much farther: tangents of its slope.
        along, across = (y * way_x - x * way_y) / square, z / square
        falls = np.stack([along * beams.pitch(ranges), across * self._scan.slice_width(ranges)])
        falls = np.minimum(np.maximum(falls / beams.step, -_STEEPEST), _STEEPEST)
        return Surface(above, columns, samples, square, falls[0], falls[1])

    def add(self, surface: Surface, passed: Polar, scattered: tuple[Grains, Grains],
            parts: tuple[Polar, Polar]) -> None:
        """Add the echo, before pulse and beam, to real and imaginary part, in place.

        Args:
            surface: of bone.
            passed: (rows, beams) share of sound that comes back from coarse ranges.
            scattered: scatterers at every sample, real and imaginary.
            parts: (samples, beams) each.
        """
        reach = len(parts[0]) - 2
        # What tissue just above lets through: the row of the surface already holds bone.
        through = passed[np.maximum(surface.above - 1, 0), surface.columns] / self._crest
        mirror = _within(surface.samples + _ALONG[:, None] * surface.along, reach)
        _splat(parts[:1], mirror, surface.columns, [surface.level * through / len(_ALONG)])
        spread = np.hypot(0.29 * surface.along, surface.across)
        rough = _within(surface.samples + _ACROSS[:, None] * spread, reach)
        weight = _ROUGH * surface.square * through / np.sqrt(len(_ACROSS))
        nearest = rough.astype(np.intp)
        _splat(parts, rough, surface.columns, [
            weight * (1.0 / 32.0) * grains[nearest, surface.columns] for grains in scattered])


def _within(samples: Array, reach: int) -> Array:
    return np.asarray(np.minimum(np.maximum(samples, 0.0), reach))


def _splat(parts: Sequence[Polar], samples: Array, columns: NDArray[np.intp],
           weights: Sequence[Array]) -> None:
    """Share weights between the two samples next to each place of every part, in place."""
    whole = samples.astype(np.intp)
    share, index = samples - whole, whole * parts[0].shape[1] + columns
    for part, weight in zip(parts, weights, strict=True):
        flat, second = part.reshape(-1), (weight * share).astype(np.float32)
        np.add.at(flat, index, (weight - second).astype(np.float32))
        np.add.at(flat, index + part.shape[1], second)
