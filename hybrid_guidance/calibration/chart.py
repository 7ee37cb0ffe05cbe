"""Charts of a calibration's report, drawn with OpenCV: a picture to look at before trusting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.geometry.types import Array, Image

BLUE, ORANGE, GREY, GREEN = (180, 110, 30), (20, 120, 235), (150, 150, 150), (80, 150, 40)
"""Colours, blue-green-red."""

_WIDTH, _HEIGHT, _HEAD = 640, 460, 40
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 18, 40, 58
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (40, 40, 40)


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        x: (N,) values across.
        y: (N,) values upwards.
        label: for the legend.
        colour: blue-green-red.
        line: whether neighbours are joined; otherwise each is a dot.
    """

    x: Array
    y: Array
    label: str = ''
    colour: tuple[int, int, int] = BLUE
    line: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart; texts in ASCII, which is what OpenCV can write.

    Attributes:
        title: above it.
        across: label of the horizontal axis, with its unit.
        up: label of the vertical axis, with its unit.
        series: what is drawn.
        image: whether y grows downwards and both axes have one scale.
    """

    title: str
    across: str
    up: str
    series: tuple[Series, ...]
    image: bool = False


def histogram(values: Array, label: str, colour: tuple[int, int, int], top: float) -> Series:
    """Return the outline of a histogram as a share of all values, from zero to ``top``."""
    counts, edges = np.histogram(np.clip(values, 0.0, top), bins=24, range=(0.0, top))
    share = np.repeat(counts / max(len(values), 1) * 100.0, 2)
    return Series(np.repeat(edges, 2)[1:-1], share, label, colour, True)


def save_charts(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw panels side by side, two in a row, into a PNG file.

    Raises:
        CalibrationError: it cannot be written.
    """
    drawn = [_draw(panel) for panel in panels]
    if len(drawn) % 2 and len(drawn) > 1:
        drawn.append(np.full_like(drawn[0], 255))
    per_row = min(2, len(drawn))
    rows = [np.hstack(drawn[start:start + per_row]) for start in range(0, len(drawn), per_row)]
    page = np.vstack(rows)
    head = np.full((_HEAD, page.shape[1], 3), 255, np.uint8)
    cv2.putText(head, title, (16, 28), _FONT, 0.62, _INK, 1, cv2.LINE_AA)
    if not cv2.imwrite(str(path), np.vstack([head, page])):
        raise CalibrationError(f'{path}: the report cannot be written; choose another folder '
                               'with --output')


def _ticks(low: float, high: float) -> Array:
    """Return round values inside a range, about five."""
    raw = max(high - low, 1e-12) / 5.0
    base = 10.0 ** np.floor(np.log10(raw))
    step = base * min((1.0, 2.0, 5.0, 10.0), key=lambda factor: abs(factor * base - raw))
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    # Adding zero turns -0 into 0.
    return np.asarray(np.arange(first, last + 1) * step + 0.0)


def _range(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return (0.0 if 0.0 <= low < 0.3 * high else low - margin), high + margin


def _draw(panel: Panel) -> Image:
    canvas = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    x_range = _range(np.concatenate([series.x for series in panel.series]))
    y_range = _range(np.concatenate([series.y for series in panel.series]))
    scale = np.array([(_WIDTH - _LEFT - _RIGHT) / (x_range[1] - x_range[0]),
                      (_HEIGHT - _TOP - _BOTTOM) / (y_range[1] - y_range[0])])
    if panel.image:
        scale[:] = scale.min()

    def place(x: Array, y: Array) -> Array:
        rows = ((y - y_range[0]) * scale[1] + _TOP if panel.image
                else _HEIGHT - _BOTTOM - (y - y_range[0]) * scale[1])
        return np.round(np.column_stack([_LEFT + (x - x_range[0]) * scale[0], rows])).astype(int)
    for value in _ticks(*x_range):
        column = int(place(np.array([value]), np.array([y_range[0]]))[0, 0])
        if column > _WIDTH - _RIGHT:
            continue
        cv2.line(canvas, (column, _TOP), (column, _HEIGHT - _BOTTOM), (232, 232, 232), 1)
        _text(canvas, f'{value:.6g}', (column, _HEIGHT - _BOTTOM + 18), 0.5)
    for value in _ticks(*y_range):
        row = int(place(np.array([x_range[0]]), np.array([value]))[0, 1])
        if row > _HEIGHT - _BOTTOM:
            continue
        cv2.line(canvas, (_LEFT, row), (_WIDTH - _RIGHT, row), (232, 232, 232), 1)
        _text(canvas, f'{value:.6g}', (_LEFT - 8, row + 5), 1.0)
    cv2.rectangle(canvas, (_LEFT, _TOP), (_WIDTH - _RIGHT, _HEIGHT - _BOTTOM), _INK, 1)
    for series in panel.series:
        _plot(canvas, place(series.x, series.y), series)
    _text(canvas, panel.title, (_WIDTH // 2, 24), 0.5, 0.55)
    _text(canvas, panel.across, (_WIDTH // 2, _HEIGHT - 14), 0.5)
    _text(canvas, panel.up, (8, _TOP - 10), 0.0)
    _legend(canvas, panel)
    return canvas


def _plot(canvas: Image, points: Array, series: Series) -> None:
    if series.line:
        cv2.polylines(canvas, [points.astype(np.int32)], False, series.colour, 2, cv2.LINE_AA)
        return
    for u, v in points.tolist():
        cv2.circle(canvas, (u, v), 3, series.colour, -1, cv2.LINE_AA)


def _legend(canvas: Image, panel: Panel) -> None:
    labelled = [series for series in panel.series if series.label]
    # At the top or at the bottom, whichever hides less.
    height = 19 * len(labelled) + 8
    top, bottom = (int(np.count_nonzero(canvas[row:row + height, _WIDTH // 2:-_RIGHT - 3] < 200))
                   for row in (_TOP + 2, _HEIGHT - _BOTTOM - 2 - height))
    first = _TOP + 20 if top <= bottom else _HEIGHT - _BOTTOM - height + 12
    for number, series in enumerate(labelled):
        row = first + 19 * number
        (width, _), _ = cv2.getTextSize(series.label, _FONT, 0.45, 1)
        left = _WIDTH - _RIGHT - 30 - width
        cv2.rectangle(canvas, (left - 4, row - 13), (_WIDTH - _RIGHT - 3, row + 6),
                      (255, 255, 255), -1)
        cv2.circle(canvas, (left + 6, row - 4), 5, series.colour, -1, cv2.LINE_AA)
        _text(canvas, series.label, (left + 18, row), 0.0)


def _text(canvas: Image, text: str, place: tuple[int, int], align: float,
          size: float = 0.45) -> None:
    """Write text whose left edge, middle or right edge (0, 0.5, 1) is at a place."""
    (width, _), _ = cv2.getTextSize(text, _FONT, size, 1)
    cv2.putText(canvas, text, (int(place[0] - align * width), place[1]), _FONT, size, _INK, 1,
                cv2.LINE_AA)
