"""Pictures of a plan: the risk over the entry window, three slices along a path, and 3-D."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import perpendiculars
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.planning.anatomy_map import AnatomyMap
from hybrid_guidance.planning.candidates import Candidates, Task, skin_normals
from hybrid_guidance.planning.choice import RankedPath, probe_outline

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

_INK: Colour = (40, 40, 40)
_PAPER = 255
_CHOSEN: Colour = (180, 60, 20)
_REFUSED: Colour = (205, 205, 205)
# By what is in the name; BGR. Names are the anatomy's or the user's own.
_KINDS: Sequence[tuple[tuple[str, ...], Colour]] = (
    (('artery', 'aorta'), (60, 60, 220)),
    (('vein', 'vena'), (210, 110, 70)),
    (('nerve', 'root', 'ramus', 'branch', 'chain', 'plexus'), (30, 200, 235)),
    (('dura', 'dural'), (170, 190, 60)),
    (('tendon', 'labrum', 'capsule'), (190, 140, 190)),
)
_BONE: Colour = (170, 200, 215)
_OTHER: Colour = (150, 190, 150)


def colour_of(name: str) -> Colour:
    """Return the BGR colour of a structure."""
    if name == 'bone':
        return _BONE
    return next((colour for words, colour in _KINDS if any(word in name for word in words)),
                _OTHER)


def _text(picture: Picture, words: str, place: tuple[int, int], size: float = 0.45,
          colour: Colour = _INK) -> None:
    cv2.putText(picture, words, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def window_picture(task: Task, anatomy: AnatomyMap, found: Candidates,
                   paths: Sequence[RankedPath], pixels: int = 640) -> Picture:
    """Return (H, W, 3) BGR: the cost of each entry, seen from outside, square to the skin.

    Refused entries are grey; numbers are the ranked paths.
    """
    across = _upright(-skin_normals(anatomy, task.window[None])[0])
    middle = task.window
    flat = (found.entries - middle) @ across.T
    half = float(np.abs(flat).max()) * 1.1
    picture = np.full((pixels + 60, pixels + 190, 3), _PAPER, np.uint8)
    scale = pixels / 2 / half

    def pixel(points: Points) -> Array:
        return np.asarray(((points - middle) @ across.T) * scale + pixels / 2)

    cost, allowed = found.cost, found.allowed
    low = float(cost[allowed].min())
    high = max(float(np.percentile(cost[allowed], 95)), low + 1e-6)
    levels = (255 * np.clip((cost - low) / (high - low), 0.0, 1.0)).astype(np.uint8)
    colours = cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0]
    colours[~allowed] = _REFUSED
    dot = max(1, round(0.00024 * scale))
    for (u, v), colour in zip(np.rint(pixel(found.entries)).astype(int), colours, strict=True):
        cv2.circle(picture, (int(u), int(v)), dot, tuple(int(c) for c in colour), -1)
    outline = np.rint(pixel(probe_outline(task))).astype(np.int32)
    plot = picture[:pixels, :pixels]
    cv2.polylines(plot, [outline], True, _INK, 1, cv2.LINE_AA)
    for rank, path in enumerate(paths, start=1):
        u, v = np.rint(pixel(path.path.entry)).astype(int)
        cv2.circle(picture, (int(u), int(v)), 9, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, (int(u), int(v)), 9, _CHOSEN, 2, cv2.LINE_AA)
        _text(picture, str(rank), (int(u) - 4, int(v) + 5))
    _scale_bar(picture, scale, (20, pixels + 20))
    _legend(picture, low, high, found, (pixels + 20, 40))
    return picture


def _upright(direction: Array) -> Array:
    """Return (2, 3) unit vectors across a direction: to the right and downwards of a picture.

    Up is towards the head (z) where the direction allows it.
    """
    head = np.array([0.0, 0.0, 1.0]) - direction[2] * direction
    if np.linalg.norm(head) < 0.3:
        first, second = perpendiculars(direction)
        return np.stack([first, second])
    down = -head / np.linalg.norm(head)
    return np.stack([np.cross(down, direction), down])


def _scale_bar(picture: Picture, scale: float, place: tuple[int, int]) -> None:
    length = round(0.01 * scale)
    cv2.line(picture, place, (place[0] + length, place[1]), _INK, 2)
    _text(picture, '10 mm', (place[0], place[1] + 20))


def _legend(picture: Picture, low: float, high: float, found: Candidates,
            place: tuple[int, int]) -> None:
    left, top = place
    bar = cv2.applyColorMap(np.repeat(np.linspace(255, 0, 200).astype(np.uint8)[:, None], 18, 1),
                            cv2.COLORMAP_VIRIDIS)
    picture[top:top + 200, left:left + 18] = bar
    _text(picture, 'cost', (left, top - 10))
    _text(picture, f'{high:.2f}', (left + 24, top + 10))
    _text(picture, f'{low:.2f}', (left + 24, top + 200))
    cv2.rectangle(picture, (left, top + 220), (left + 18, top + 236), _REFUSED, -1)
    _text(picture, 'refused by', (left + 24, top + 233))
    counts = {name: int((term.excess > 0.0).sum()) for name, term in found.terms.items()}
    worst = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    for row, name in enumerate(worst[:8]):
        _text(picture, f'{name} {counts[name]}', (left, top + 258 + 18 * row), 0.36)
    _text(picture, 'box: probe at skin', (left, top + 420), 0.36)


def slices_picture(task: Task, anatomy: AnatomyMap, path: RankedPath,
                   pixels: int = 420) -> Picture:
    """Return (H, W, 3) BGR: two planes through a path, and one across it at the worst place.

    Filled: structures; thin line: the margin to keep from each. Band: needle and k·σ.
    """
    line = path.path
    across = perpendiculars(line.direction)
    half = line.length / 2 + 0.008
    middle = (line.entry + line.target) / 2
    worst = _worst_place(task, anatomy, path)
    views = (('along the path', middle, across[0], line.direction, half),
             ('along the path, turned by 90 degrees', middle, across[1], line.direction, half),
             (f'across it, {worst * 1e3:.0f} mm above the target',
              line.target - worst * line.direction, across[0], across[1], 0.02))
    parts = []
    for title, centre, right, down, reach in views:
        view = _slice(task, anatomy, centre, right, down, reach, pixels)
        _draw_path(view, task, path, centre, right, down, reach)
        framed = cv2.copyMakeBorder(view, 30, 34, 8, 8, cv2.BORDER_CONSTANT,
                                    value=(_PAPER, _PAPER, _PAPER))
        _text(framed, title, (10, 20))
        _scale_bar(framed, pixels / 2 / reach, (12, pixels + 42))
        parts.append(framed)
    return np.vstack([np.hstack(parts), _names(task, 3 * (pixels + 16))])


def _worst_place(task: Task, anatomy: AnatomyMap, path: RankedPath) -> float:
    """Return how far from the target the path has least room past its margins, m."""
    back = np.linspace(0.0, path.path.length, 200)
    places = path.path.target - back[:, None] * path.path.direction
    room = np.min([anatomy.at(name, places) - margin for name, margin in task.avoid.items()],
                  axis=0) - task.doubt.slack(back)
    return float(back[np.argmin(room)])


def _slice(task: Task, anatomy: AnatomyMap, centre: Points, right: Array, down: Array,
           reach: float, pixels: int) -> Picture:
    steps = np.linspace(-reach, reach, pixels)
    places = centre + steps[:, None, None] * down + steps[:, None] * right
    held = anatomy.holds(places)
    skin = anatomy.at('skin', places)
    picture = np.where(((skin < 0.0) & held)[..., None], np.array([238, 240, 244], np.uint8),
                       np.array([255, 255, 255], np.uint8))
    picture[~held] = (225, 225, 225)
    for name, margin in task.avoid.items():
        distance = np.where(held, anatomy.at(name, places), 1.0)
        colour = colour_of(name)
        picture[distance < 0.0] = colour
        for level, wide in ((0.0, 1), (margin, 1)):
            _contour(picture, distance < level, tuple(int(0.7 * c) for c in colour), wide)
    picture[(np.abs(skin) < reach / pixels) & held] = _INK
    return np.ascontiguousarray(picture, np.uint8)


def _contour(picture: Picture, mask: NDArray[np.bool_], colour: tuple[int, ...],
             wide: int) -> None:
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, lines, -1, colour, wide, cv2.LINE_AA)


def _draw_path(picture: Picture, task: Task, path: RankedPath, centre: Points, right: Array,
               down: Array, reach: float) -> None:
    scale = picture.shape[0] / 2 / reach
    axes = np.stack([right, down])

    def pixel(point: Points) -> tuple[int, int]:
        u, v = (point - centre) @ axes.T * scale + picture.shape[0] / 2
        return round(float(u)), round(float(v))

    line = path.path
    if abs(float(line.direction @ down)) > 0.9:
        band = picture.copy()
        for away in np.linspace(0.0, line.length, 120):
            wide = float(task.doubt.slack(np.array(away))) + task.needle_radius
            cv2.circle(band, pixel(line.target - away * line.direction),
                       max(1, round(wide * scale)), (235, 180, 140), -1, cv2.LINE_AA)
        cv2.addWeighted(band, 0.6, picture, 0.4, 0.0, dst=picture)
        cv2.line(picture, pixel(line.entry), pixel(line.target), _CHOSEN, 2, cv2.LINE_AA)
        cv2.circle(picture, pixel(line.target), 4, (190, 60, 200), -1, cv2.LINE_AA)
        return
    away = float(np.linalg.norm(centre - line.target))
    wide = float(task.doubt.slack(np.array(away))) + task.needle_radius
    cv2.circle(picture, pixel(centre), max(2, round(wide * scale)), (235, 180, 140), -1,
               cv2.LINE_AA)
    cv2.circle(picture, pixel(centre), max(2, round(task.needle_radius * scale)), _CHOSEN, -1,
               cv2.LINE_AA)


def _names(task: Task, width: int) -> Picture:
    """Return a strip that says which colour is which structure, with its margin."""
    words = [(f'{name} ({margin * 1e3:.1f} mm)', colour_of(name))
             for name, margin in task.avoid.items()]
    columns = max(width // 270, 1)
    strip = np.full((20 * -(-len(words) // columns) + 8, width, 3), _PAPER, np.uint8)
    for number, (text, colour) in enumerate(words):
        left, top = 10 + 270 * (number % columns), 4 + 20 * (number // columns)
        cv2.rectangle(strip, (left, top), (left + 14, top + 12), colour, -1)
        _text(strip, text, (left + 20, top + 11), 0.4)
    return strip


def scene_picture(task: Task, anatomy: AnatomyMap, paths: Sequence[RankedPath],
                  size: tuple[int, int] = (720, 560)) -> Picture:
    """Return (H, W, 3) BGR: what is to be avoided and the paths, in 3-D from the side of the way.

    Rays are traced through the distances themselves (Hart J. C., "Sphere tracing", The Visual
    Computer 1996;12:527).
    """
    line = paths[0].path
    centre = (line.entry + line.target) / 2
    view, right, down = _camera(line.direction)
    reach = 0.62 * line.length + 0.012
    names = [name for name in task.avoid if anatomy.least[name] < 0.0]
    scale = size[1] / 2 / reach
    u, v = np.meshgrid((np.arange(size[0]) - size[0] / 2) / scale,
                       (np.arange(size[1]) - size[1] / 2) / scale)
    start = centre + u[..., None] * right + v[..., None] * down - 2 * reach * view
    picture = np.full((size[1], size[0], 3), 250, np.uint8)
    depth = np.full(u.shape, np.inf)
    for name in names:
        _trace(picture, depth, start.reshape(-1, 3), view, name, colour_of(name), 4 * reach,
               anatomy)
    for rank, path in reversed(list(enumerate(paths))):
        colour = _CHOSEN if rank == 0 else (170, 150, 140)
        _rod(picture, depth, path, centre, np.stack([right, down, view]), scale, 2 * reach, colour,
             3 if rank == 0 else 1)
    for number, name in enumerate(names):
        cv2.rectangle(picture, (10, 10 + 20 * number), (24, 22 + 20 * number), colour_of(name), -1)
        _text(picture, name, (30, 21 + 20 * number), 0.42)
    _text(picture, 'only what is in the map is drawn', (10, size[1] - 10), 0.4)
    return picture


def _camera(direction: Array) -> tuple[Array, Array, Array]:
    """Return unit vectors (view, right, down) that look across a path, the way in downwards."""
    side = perpendiculars(direction)
    view = side[0] * np.cos(0.6) + side[1] * np.sin(0.6) + 0.45 * direction
    view /= np.linalg.norm(view)
    down = direction - (direction @ view) * view
    down /= np.linalg.norm(down)
    return view, np.cross(down, view), down


def _trace(picture: Picture, depth: Array, start: Points, view: Array,
           name: str, colour: Colour, far: float, anatomy: AnatomyMap) -> None:
    """Draw one solid where it is nearer than what is drawn already."""

    def call(places: Points) -> Array:
        return anatomy.at(name, places)

    grid = anatomy.grid
    ends = grid.origin + np.array([[0.5], [0.0]]) * grid.spacing + np.array(
        [np.zeros(3), (np.array(grid.shape[::-1]) - 1.5) * grid.spacing])
    slope = np.where(np.abs(view) < 1e-9, 1e-9, view)
    crossings = (ends[:, None] - start) / slope
    travelled = np.maximum(crossings.min(axis=0).max(axis=1), 0.0)
    active = np.flatnonzero(travelled < crossings.max(axis=0).min(axis=1))
    hit = np.zeros(len(start), bool)
    for _ in range(80):
        places = start[active] + travelled[active, None] * view
        distance = call(places)
        hit[active] |= (distance < 1e-4) & anatomy.holds(places)
        travelled[active] += np.maximum(distance, 2e-4)
        active = active[~hit[active] & (travelled[active] < far)]
        if not active.size:
            break
    shown = np.flatnonzero(hit & (travelled < depth.ravel()))
    if not shown.size:
        return
    places, step = start[shown] + travelled[shown, None] * view, 1e-3
    slope = np.stack([call(places + offset) - call(places - offset)
                      for offset in step * np.eye(3)], axis=-1)
    slope /= np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12)
    light = 0.45 + 0.55 * np.clip(-slope @ view, 0.0, 1.0)
    picture.reshape(-1, 3)[shown] = (light[:, None] * np.array(colour)).astype(np.uint8)
    depth.ravel()[shown] = travelled[shown]


def _rod(picture: Picture, depth: Array, path: RankedPath, centre: Points, axes: Array,
         scale: float, near: float, colour: Colour, wide: int) -> None:
    """Draw a path; faint where something is in front of it."""
    line = path.path
    shares = np.linspace(0.0, 1.0, 160)[:, None]
    local = (line.entry + shares * (line.target - line.entry) - centre) @ axes.T
    height, width = depth.shape
    pixels = np.rint(local[:, :2] * scale + (width / 2, height / 2)).astype(int)
    for (u, v), z in zip(pixels, local[:, 2] + near, strict=True):
        if not (0 <= u < width and 0 <= v < height):
            continue
        hidden = depth[v, u] < z
        shade = tuple(int(c + (215 - c) * 0.7) for c in colour) if hidden else colour
        cv2.circle(picture, (int(u), int(v)), max(1, wide - int(hidden)), shade, -1, cv2.LINE_AA)
    u, v = (int(value) for value in pixels[-1])
    cv2.circle(picture, (u, v), 4, (190, 60, 200), -1, cv2.LINE_AA)
