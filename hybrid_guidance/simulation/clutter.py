"""Clutter: what a shadow is filled with, sound that went another way than straight to and fro.

Side lobes hear what lies beside the beam at the same range. Sound that is scattered more than once
comes late: exponentially, 5 mm in the mean (Byram and Shu, J. Med. Imaging 2016;3:046005). Bone
square to the beam mirrors what lies above it, the skin and the probe's face too. Measured in
bladders, all of it is 0 to 30 dB below the wall (Lediju et al., Ultrason. Imaging 2008;30:151).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array
from hybrid_guidance.simulation.beams import COARSE, Beams, Polar, summed_down
from hybrid_guidance.simulation.bone_echo import Surface

Columns = NDArray[np.intp]

# Powers: side lobes, of the mean beside; late sound, of all that came before, as much as leaves
# shadows 20 dB darker than tissue from 11 mm behind bone on; an image in bone, of what is mirrored:
# convex and rough, it throws back some 30 dB less in the recording of bone in vivo that
# ``bench/realism.py`` reads, if that screen shows 60 dB.
_SIDE, _LATE, _IMAGE = 0.004, 1e-4, 0.0016
_DELAY = 0.005
# What went astray is spread over many beams: looked at once in so many of them.
_SHRUNK, _BESIDE = 4, 11
# Standard deviation of the angles, radians, under which an image still comes back; and the most.
_TILT, _MOST = 0.16, 0.3


class Clutter:
    """What is heard by side lobes, late, and mirrored.

    Args:
        beams: where samples lie.
    """

    def __init__(self, beams: Beams) -> None:
        row = COARSE * beams.step / _DELAY
        self._rows = np.arange(len(beams.coarse), dtype=np.int32)[:, None]
        self._faded = np.asarray(np.exp(-row * self._rows), np.float32)
        self._late = np.float32(_LATE * row) * self._faded

    def add(self, echo: Polar, surface: Surface, bone: Array) -> None:
        """Add the power of clutter to that of tissue, in place.

        Args:
            echo: (rows, beams) power at coarse ranges, as time gain shows it.
            surface: of bone.
            bone: (N,) power of its echo, likewise.
        """
        images = self._images(echo, surface)
        rows, columns = echo.shape
        lit = cv2.resize(echo, (columns // _SHRUNK, rows), interpolation=cv2.INTER_AREA)
        astray = _SIDE * cv2.blur(lit, (_BESIDE, 1), borderType=cv2.BORDER_REPLICATE)
        np.add.at(lit, (surface.above, np.minimum(surface.columns // _SHRUNK, lit.shape[1] - 1)),
                  np.asarray(bone / _SHRUNK, np.float32))
        # Each row adds to those below it, which fades: a sum of what has grown as much before.
        lit /= self._faded
        astray[1:] += summed_down(lit)[:-1] * self._late[1:]
        echo += cv2.resize(astray, (columns, rows), interpolation=cv2.INTER_LINEAR)
        if images is not None:
            rows_of, columns_of, power = images
            echo[rows_of, columns_of] += power

    def _images(self, echo: Polar, surface: Surface) -> tuple[slice, Columns, Polar] | None:
        """Return rows, beams, and what their first bone mirrors: as far below as it lies above."""
        # The surface is listed from above: turned over, the first of each beam comes last.
        uppermost = np.full(echo.shape[1], -1)
        uppermost[surface.columns[::-1]] = np.arange(len(surface.columns))[::-1]
        columns = np.flatnonzero(uppermost >= 0)
        tilt = np.arccos(np.minimum(surface.square[uppermost[columns]], 1.0))
        square = tilt < _MOST
        if not np.any(square):
            return None
        columns = columns[square]
        last = surface.above[uppermost[columns]].astype(np.int32)
        below = slice(int(last.min()) + 1, min(2 * int(last.max()) + 2, len(echo)))
        # Of bone it lies as far above as its image lies below.
        above = 2 * last + 1 - self._rows[below]
        mirrored = (above >= 0) & (above <= last)
        share = (_IMAGE * np.exp(-(tilt[square] / _TILT) ** 2)).astype(np.float32)
        place = np.maximum(above, 0) * np.int32(echo.shape[1]) + columns.astype(np.int32)
        return below, columns, echo.reshape(-1).take(place, mode='clip') * (mirrored * share)
