"""Vessels in a slice: how their walls move with the heart, and their blood in colour."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import is_still
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.beams import COARSE, Beams, Polar
from hybrid_guidance.simulation.flow import REST, heartbeat, make_blood, painted
from hybrid_guidance.simulation.speckle import Window

FLOW, WALL = 1, 2


_UNSEEN = 0.03
"""Beams or samples: tissue that moves less looks as if it stood."""


@dataclass(frozen=True)
class Walls:
    """How a window of the samples moves at systole, (rows, columns, 2) beams and samples."""

    window: Window
    shift: Polar


@dataclass(frozen=True)
class _Seen:
    """What a slice has of vessels: indices into the coarse places, what, and vectors there."""

    patient_T_image: Transform
    place: NDArray[np.intp]
    what: NDArray[np.uint8]
    vectors: Polar


class Vessels:
    """The vessels of a patient as one probe sees them, at every fourth beam and sample.

    Args:
        patient: with named structures.
        beams: where samples lie.
        projection: orthographic, to the picture.
    """

    def __init__(self, patient: Patient, beams: Beams, projection: Projection) -> None:
        self._beams, self._projection = beams, projection
        self._blood = make_blood(patient)
        self._columns = COARSE * np.arange(-(-beams.shape[1] // COARSE)) + (COARSE - 1) / 2
        self._x, self._y = beams.grid(beams.coarse, self._columns)
        self._ways = beams.rays(self._columns)[1].astype(np.float32)
        self._pitch = beams.pitch(beams.coarse).astype(np.float32)
        self._maps = beams.picture_maps(projection, COARSE)
        self._last: _Seen | None = None

    def walls(self, patient_T_image: Transform, share: float) -> Walls | None:
        """Return how tissue moves at systole, where it does; None without an artery.

        Args:
            patient_T_image: (4, 4) pose of the slice.
            share: of their radius that the walls move by.
        """
        seen = self._look(patient_T_image)
        chosen = (seen.what & WALL) > 0
        if not chosen.any():
            return None
        row, column = np.divmod(seen.place[chosen], len(self._columns))
        x, y, z = seen.vectors[chosen, 2].T
        # A wall that leans moves further within the slice than out of itself.
        flat = x * x + y * y
        wall = flat + z * z
        lean = np.float32(share) * wall / np.maximum(flat, 0.25 * wall + 1e-12)
        side, way = self._ways[column].T
        shift = np.zeros((*self._x.shape, 2), np.float32)
        shift[row, column, 0] = lean * (x * way - y * side) / self._pitch[row]
        shift[row, column, 1] = lean * (x * side + y * way) / np.float32(self._beams.step)
        shift = cv2.GaussianBlur(shift, (3, 3), 0.0)
        moves = np.abs(shift) > _UNSEEN
        left, top, width, height = cv2.boundingRect(
            (moves[..., 0] | moves[..., 1]).view(np.uint8))
        if not width:
            return None
        samples, beams = self._beams.shape
        window = (slice(COARSE * top, min(COARSE * (top + height), samples)),
                  slice(COARSE * left, min(COARSE * (left + width), beams)))
        size = window[0].stop - window[0].start, window[1].stop - window[1].start
        fine = cv2.resize(shift[top:top + height, left:left + width],
                          (COARSE * width, COARSE * height), interpolation=cv2.INTER_LINEAR)
        return Walls(window, np.asarray(fine[:size[0], :size[1]], np.float32))

    def _look(self, patient_T_image: Transform) -> _Seen:
        if self._last is None or not is_still(self._last.patient_T_image, patient_T_image):
            self._last = _Seen(np.array(patient_T_image), *self._blood.seen(
                patient_T_image, self._x, self._y))
        return self._last

    def coloured(self, picture: NDArray[np.uint8], patient_T_image: Transform, time: float,
                 passed: Polar, noise: Polar, kind: str, scale: float) -> NDArray[np.uint8]:
        """Return a frame with the flow along the beam in colour, (H, W, 3), blue-green-red.

        Args:
            picture: (H, W) uint8, the frame.
            patient_T_image: (4, 4) pose of the slice.
            time: seconds; the moment of the heartbeat.
            passed: (rows, beams) share of the sound that comes back from coarse ranges.
            noise: as large as what is looked at or larger, relative to a velocity.
            kind: see ``flow.painted``.
            scale: see ``flow.painted``.
        """
        seen = self._look(patient_T_image)
        row, column = np.divmod(seen.place, len(self._columns))
        shown = ((seen.what & FLOW) > 0) & (passed[:, 1::COARSE][row, column] > 0.03)
        row, column, vectors = row[shown], column[shown], seen.vectors[shown]
        side, way = self._ways[column].T
        arteries, veins = (-vectors[:, index, 0] * side - vectors[:, index, 1] * way
                           for index in (0, 1))
        velocity = arteries * np.float32(REST + (1.0 - REST) * heartbeat(time)) + veins
        velocity *= np.float32(1.0) + noise[row, column]
        fast = np.abs(velocity) > 0.06 * scale
        result = np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), np.uint8)
        if fast.any():
            paint, cover = np.zeros((*self._x.shape, 3), np.uint8), np.zeros_like(
                self._x, np.uint8)
            paint[row[fast], column[fast]] = painted(velocity[fast], scale, kind)
            cover[row[fast], column[fast]] = 255
            self._lay(result, paint, cover)
        return result

    def _lay(self, picture: NDArray[np.uint8], paint: NDArray[np.uint8],
             cover: NDArray[np.uint8]) -> None:
        """Put paint on the picture where there is cover, in place."""
        # A scanner averages over neighbours, too: no single hole, no corner.
        cover = np.asarray(cv2.GaussianBlur(cover, (3, 3), 0.0), np.uint8)
        paint = np.asarray(cv2.divide(cv2.GaussianBlur(paint, (3, 3), 0.0), cv2.cvtColor(
            cover, cv2.COLOR_GRAY2BGR), scale=255.0), np.uint8)
        left, top, width, height = cv2.boundingRect(cover)
        x, y = (part[top:top + height, left:left + width] for part in (self._x, self._y))
        pixels = self._projection.pixels(np.stack(
            [x, y, 0 * x], axis=-1, dtype=float).reshape(-1, 3))
        margin = 2 * (np.ptp(pixels, axis=0) / (width, height)).max() + 2
        low = np.maximum(pixels.min(axis=0) - margin, 0).astype(int)
        high = (pixels.max(axis=0) + margin).astype(int)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        maps = self._maps[0][window], self._maps[1][window]
        part = picture[window]
        cv2.copyTo(cv2.remap(paint, *maps, cv2.INTER_LINEAR), cv2.compare(
            cv2.remap(cover, *maps, cv2.INTER_LINEAR), 127, cv2.CMP_GT), part)
