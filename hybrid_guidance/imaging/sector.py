"""What of an ultrasound screen is echo, and what is drawn around and over it.

The screen is cropped to the two-dimensional tissue region that the file declares, everything
outside the sector found in the pixels is set to zero (names, scales, grey bars,
electrocardiogram), lines of text inside the sector are blanked as whole rectangles, so that they
cannot be read and cannot look like echoes, and so are ticks at its edge and upright hairlines.
The outline of a colour box and callipers in the middle of the sector stay: they cannot be told
from a bright still echo without risk to a needle.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Image

Mask = NDArray[np.bool_]
"""(H, W), True where something is."""

_TIGHT = 0.85


@dataclass(frozen=True)
class View:
    """Which part of a decoded image is kept.

    Attributes:
        window: (top, bottom, left, right), bottom and right exclusive.
        mask: (H, W) of the window, True where pixels stay; None keeps all.
    """

    window: tuple[int, int, int, int]
    mask: Mask | None = None

    def __call__(self, pixels: Image) -> Image:
        """Return the part of an image that is kept."""
        top, bottom, left, right = self.window
        kept = np.ascontiguousarray(pixels[top:bottom, left:right])
        return kept if self.mask is None else np.where(self.mask, kept, kept.dtype.type(0))


@dataclass(frozen=True)
class _Ink:
    """Connected strokes that look drawn.

    Attributes:
        labels: (H, W) number of the stroke at each pixel, 0 for none.
        boxes: (N, 5) left, top, width, height and area of each stroke.
    """

    labels: NDArray[np.int32]
    boxes: NDArray[np.int32]


def find_sector(stack: NDArray[np.uint8]) -> tuple[Mask | None, tuple[str, ...]]:
    """Find where the echoes are in (N, H, W) images, and what is drawn over them.

    Speckle changes from frame to frame and graphics do not, so a clip shows its sector by what
    changes. A still image, or a clip of nothing moving, shows it by its wide bright areas.

    Returns:
        (H, W) mask, or None where nothing is found; and notes.
    """
    ink = _ink(stack)
    seeds = _moving_parts(stack)
    if np.count_nonzero(seeds) < 0.05 * seeds.size:
        seeds = _wide_parts(_without_text(stack.max(axis=0), ink))
    if not seeds.any():
        return None, ('no sector found in the pixels: the region is shown whole',)
    mask = _hull(seeds)
    notes: tuple[str, ...] = ('everything outside the sector found in the pixels is blank',)
    marks = _marks(ink, mask, len(stack) > 1)
    if np.count_nonzero(mask) > _TIGHT * mask.size:
        mask, marks, notes = np.ones_like(mask), np.zeros_like(mask), ()
    kept = mask & ~marks
    for left, top, width, height in _text_lines(ink, stack.min(axis=0)):
        if mask[top:top + height, left:left + width].any():
            kept[top:top + height, left:left + width] = False
            notes += (f'text in the image blanked: {width} x {height} pixels at ({left}, {top})',)
    return kept, notes


def tightened(view: View, mask: Mask | None) -> tuple[View, Mask | None]:
    """Crop a window to the sector in it."""
    if mask is None:
        return view, mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    window = (view.window[0] + int(top), view.window[0] + int(bottom),
              view.window[2] + int(left), view.window[2] + int(right))
    return View(window), mask[top:bottom, left:right]


def _hull(seeds: Mask) -> Mask:
    """Return the convex hull of a mask: every scan format but the transducer's arc is convex."""
    filled = np.zeros(seeds.shape, np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(cv2.findNonZero(seeds.astype(np.uint8))), 1)
    return filled.astype(bool)


def _moving_parts(stack: NDArray[np.uint8]) -> Mask:
    """Return the large parts that change, and wide still ones that change somewhere."""
    changes = np.ptp(stack, axis=0) > 2
    closed = cv2.morphologyEx(changes.astype(np.uint8), cv2.MORPH_CLOSE, _box(5, 5))
    # What the gap in a sweeping electrocardiogram or a clock changes is thinner than this.
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, _box(9, 9))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(opened)
    areas = statistics[:, cv2.CC_STAT_AREA]
    large = areas >= 0.003 * areas[1:].max(initial=1)
    large[0] = False
    wide = _wide_parts(stack.max(axis=0), changes)
    # An icon may touch a still band: no further sideways than anything in it changes.
    columns = np.flatnonzero((wide & changes).any(axis=0))
    if columns.size:
        wide[:, :columns[0]] = wide[:, columns[-1] + 1:] = False
    return np.asarray(large[labels]) | wide


def _wide_parts(level: NDArray[np.uint8], changes: Mask | None = None) -> Mask:
    """Return connected bright areas with rows wider than letters, icons and grey bars are.

    With ``changes``, only areas of which at least 3 % change.
    """
    # Closed upwards only: an icon beside the sector must not be joined to it.
    content = cv2.morphologyEx((level > 4).astype(np.uint8), cv2.MORPH_CLOSE, _box(1, 5))
    width, height = (max(level.shape[1] // 16, 9) | 1, max(level.shape[0] // 40, 9) | 1)
    opened = cv2.morphologyEx(content, cv2.MORPH_OPEN,
                              _box(width, height if changes is None else 5))
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(opened)
    areas = statistics[:, cv2.CC_STAT_AREA]
    keep = areas >= 0.01 * areas[1:].max(initial=1)
    if changes is not None:
        keep &= np.bincount(labels[changes], minlength=count) >= 0.03 * areas
    keep[0] = False
    seeds = np.asarray(keep[labels])
    return _grown(seeds, content) if changes is None else seeds


def _grown(seeds: Mask, content: NDArray[np.uint8]) -> Mask:
    """Return the whole connected areas, strokes taken off, that hold a seed."""
    areas = cv2.morphologyEx(content, cv2.MORPH_OPEN, _box(7, 7))
    count, labels = cv2.connectedComponents(areas)
    keep = np.bincount(labels[seeds], minlength=count) > 0
    keep[0] = False
    return seeds | np.asarray(keep[labels])


def _box(width: int, height: int) -> NDArray[np.uint8]:
    return np.ones((height, width), np.uint8)


def _ink(stack: NDArray[np.uint8]) -> _Ink:
    """Find strokes of one bright level that no frame changes, by white top-hat."""
    level = stack.min(axis=0)
    strokes = cv2.morphologyEx(level, cv2.MORPH_TOPHAT, _box(9, 9))
    ink = (strokes > 100) & (level > 140) & (np.ptp(stack, axis=0) <= 24)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8), connectivity=8)
    return _Ink(labels, boxes)


def _without_text(level: NDArray[np.uint8], ink: _Ink) -> NDArray[np.uint8]:
    """Return the image with its lines of text set to zero."""
    level = level.copy()
    for left, top, width, height in _text_lines(ink, level):
        level[top:top + height, left:left + width] = 0
    return level


def _marks(ink: _Ink, mask: Mask, is_clip: bool) -> Mask:
    """Find ticks, dots and letters at the edge of the sector, and upright hairlines anywhere.

    Away from the edge a small steady echo may be the tip of something: it stays. In a still
    image nothing tells a dot from speckle: only hairlines go.
    """
    margin = max(min(mask.shape) // 32, 4)
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, _box(2 * margin + 1, 2 * margin + 1))[1:-1, 1:-1] > 0
    wide, tall = ink.boxes[:, cv2.CC_STAT_WIDTH], ink.boxes[:, cv2.CC_STAT_HEIGHT]
    at_edge = np.bincount(ink.labels[~inner], minlength=len(wide)) > 0
    drawn = (is_clip & at_edge & (wide <= 24) & (tall <= 24)) | ((wide <= 5) & (tall >= 60))
    drawn[0] = False
    return np.asarray(cv2.dilate(drawn[ink.labels].astype(np.uint8), _box(7, 7)) > 0)


def _text_lines(ink: _Ink, level: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Find lines of text: (left, top, width, height) of each.

    Letters are as high as each other, of one grey level and several in a row. An echo that
    bright varies along its length or in time.
    """
    tall = ink.boxes[:, cv2.CC_STAT_HEIGHT]
    letters = (tall >= 6) & (tall <= 40) & (ink.boxes[:, cv2.CC_STAT_WIDTH] <= 60)
    letters[0] = False
    return _lines(ink, letters, level) if np.count_nonzero(letters) >= 4 else []


def _lines(ink: _Ink, letters: Mask,
           level: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Join letters into lines and keep what reads like one."""
    reach = int(np.median(ink.boxes[letters, cv2.CC_STAT_HEIGHT]))
    joined = cv2.dilate(letters[ink.labels].astype(np.uint8), _box(2 * reach + 1, 1))
    count, lines, boxes, _ = cv2.connectedComponentsWithStats(joined)
    found = []
    for line in range(1, count):
        left, top, width, height = (int(value) for value in boxes[line, :4])
        within = np.s_[top:top + height, left:left + width]
        labels = np.where((lines[within] == line) & letters[ink.labels[within]],
                          ink.labels[within], 0)
        peaks = [int(level[within][labels == member].max()) for member in np.unique(labels)[1:]]
        if len(peaks) >= 4 and np.ptp(peaks) <= 16 and width > 2 * height:
            # Accents, dots and descenders are smaller than a letter and lie around the line.
            found.append((max(left - 4, 0), max(top - 6, 0), width + 8, height + 12))
    return found
