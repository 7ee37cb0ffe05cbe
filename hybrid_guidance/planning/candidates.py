"""Every path of an entry window, judged."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise, starmap

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import inverse, perpendiculars, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.planning.anatomy_map import AnatomyMap, MapError
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.least import LeastClearances
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.procedure import PlanningSetup, Probe, Procedure

STEP = 0.001
NEAR_TIP = 0.015
# Half a probe's housing across its slice, and how much wider than its face it is.
HOUSING = (0.003, 0.008)
WINDOW_SPACING = 0.00033
_SECANT = 7
# How near the skin an entry is found, m.
_ON_SKIN = 1e-6


@dataclass(frozen=True)
class Task:
    """One planning problem: everything a path is judged by. In ``patient``.

    Attributes:
        target: (3,) m.
        window: (3,) m, centre of the entry window.
        needle_length: m.
        needle_radius: m.
        avoid: structure to the margin to keep, m; ``bone`` among them.
        patient_T_image: (4, 4) of the ultrasound slice.
        probe: the transducer.
        source: (3,) m, of the X-rays.
        setup: limits and weights.
        doubt: how unsure it all is.
    """

    target: Points
    window: Points
    needle_length: float
    needle_radius: float
    avoid: Mapping[str, float]
    patient_T_image: Transform
    probe: Probe
    source: Points
    setup: PlanningSetup = field(default_factory=PlanningSetup)
    doubt: Doubt = field(default_factory=Doubt)

    @classmethod
    def of(cls, procedure: Procedure, doubt: Doubt | None = None) -> 'Task':
        """Return the task of a procedure: its target, and a window round its entry."""
        avoid = {'bone': procedure.planning.limits['bone'], **procedure.avoid}
        return cls(procedure.target, procedure.entry, procedure.needle.length,
                   procedure.needle.diameter / 2, avoid, procedure.patient_T_ultrasound(),
                   procedure.ultrasound.probe, procedure.patient_T_fluoroscopy()[:3, 3],
                   procedure.planning, doubt or Doubt())

    def region(self) -> tuple[Points, Points]:
        """Return the corners (m) of the box that holds every path of the window."""
        reach = self.setup.window + 0.004
        corners = np.stack([self.target, self.window - reach, self.window + reach])
        return corners.min(axis=0) - 0.004, corners.max(axis=0) + 0.004

    @property
    def band(self) -> float:
        """How far away distances matter, m: the largest margin, comfort, needle and k·σ."""
        away = float(np.linalg.norm(self.window - self.target)) + self.setup.window
        return (max(self.avoid.values()) + self.setup.comfort + self.needle_radius
                + float(self.doubt.slack(np.array(away))) + 0.001)


@dataclass(frozen=True)
class Term:
    """One thing that paths are judged by, of N paths.

    Attributes:
        unit: ``mm``, ``°``, or empty for a share.
        value: (N,) m, rad or share. A clearance is the distance of the needle's surface less k·σ.
        limit: the worst value allowed; NaN if there is no limit.
        excess: (N,) by how much the limit is missed, in the unit of the value; 0 if kept.
        cost: (N,) weighted.
        capped: m; a clearance of this much or more is stored as this; NaN if it is none.
    """

    unit: str
    value: Array
    limit: float
    excess: Array
    cost: Array
    capped: float = np.nan

    def shown(self, index: int) -> str:
        """Return the value of one path with its unit, for people."""
        value = float(self.value[index])
        if value >= self.capped:
            return f'> {self.capped * 1e3:.0f} mm'
        return in_unit(value, self.unit)


def in_unit(value: float, unit: str) -> str:
    """Return a value in m, rad or as a share, in its unit for people."""
    if unit == 'mm':
        return f'{value * 1e3:.1f} mm'
    return f'{np.degrees(value):.0f}°' if unit == '°' else f'{value:.2f}'


@dataclass(frozen=True)
class Candidates:
    """N paths to one target, judged.

    Attributes:
        target: (3,) m.
        entries: (N, 3) m, on the skin.
        terms: name to what was found.
    """

    target: Points
    entries: Points
    terms: Mapping[str, Term]

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(N,) whether every limit is kept."""
        kept = np.ones(len(self.entries), bool)
        for term in self.terms.values():
            if np.isfinite(term.limit):
                kept &= term.excess <= 0.0
        return kept

    @property
    def cost(self) -> Array:
        """(N,) sum of all costs; infinite where a limit refuses."""
        return np.where(self.allowed, sum(term.cost for term in self.terms.values()), np.inf)


def entry_window(task: Task, anatomy: AnatomyMap,
                 spacing: float = WINDOW_SPACING) -> tuple[Points, float]:
    """Return the places on the skin that a window of paths would enter at.

    A disc that touches the skin at the window's middle is projected onto the skin along the ways
    to the target.

    Returns:
        (N, 3) m, and how far the disc is off the skin at its nearest, m, at most the map's band
        (0 if any way leads to the skin).
    """
    normal = skin_normals(anatomy, task.window[None])[0]
    if not np.any(normal):
        normal = _unit(task.window - task.target)
    across = perpendiculars(normal)
    reach = np.arange(-task.setup.window, task.setup.window + spacing / 2, spacing)
    u, v = (line.ravel() for line in np.meshgrid(reach, reach))
    kept = u**2 + v**2 <= task.setup.window**2 * (1 + 1e-9)
    ways = task.window + np.stack([u[kept], v[kept]], axis=-1) @ across - task.target
    off = anatomy.at('skin', task.target + ways)
    entries, left = _to_skin(task, anatomy, ways, off, normal)
    on_skin = (np.abs(left) < 2e-4) & anatomy.holds(entries)
    return entries[on_skin], 0.0 if on_skin.any() else float(np.abs(off).min())


def _to_skin(task: Task, anatomy: AnatomyMap, ways: Array, off: Array,
             normal: Array) -> tuple[Points, Array]:
    """Return (N, 3) where ways from the target pass the skin, and (N,) how far off it that is, m.

    By secants, the first of which is as steep as the skin at the window's middle.

    Args:
        task: of the target.
        anatomy: with the skin.
        ways: (N, 3) m, from the target to the window.
        off: (N,) m, how far their ends are off the skin.
        normal: (3,) of the skin at the window's middle.
    """
    shares, values = np.ones(len(ways)), off.copy()
    steep = np.maximum(ways @ normal, 0.001)
    todo = np.arange(len(ways))
    for _ in range(_SECANT):
        step = np.clip(-values[todo] / steep, -0.1, 0.1)
        after = np.clip(shares[todo] + step, 0.7, 1.3)
        found = anatomy.at('skin', task.target + after[:, None] * ways[todo])
        moved, change = after - shares[todo], found - values[todo]
        shares[todo], values[todo] = after, found
        on = (np.abs(found) > _ON_SKIN) & (np.abs(change) > 1e-9) & (moved != 0.0)
        todo, steep = todo[on], change[on] / moved[on]
        if not todo.size:
            break
    return task.target + shares[:, None] * ways, values


def judge(task: Task, anatomy: AnatomyMap, entries: Points, step: float = STEP,
          workers: int = 2) -> Candidates:
    """Judge the straight paths from (N, 3) entries to the target.

    Args:
        task: what they are judged by.
        anatomy: distances, all round the paths.
        entries: m, on the skin.
        step: between samples of a path, m.
        workers: threads.

    Raises:
        MapError: the map does not hold the paths, or a structure to avoid.
    """
    missing = [name for name in task.avoid if name not in anatomy.names]
    if missing:
        raise MapError(f'the map lacks {", ".join(missing)}; make it of all that is to be avoided')
    if not (anatomy.holds(task.target) and np.all(anatomy.holds(entries))):
        raise MapError('paths leave the map; make it of the whole region of the task')
    ways = entries - task.target
    lengths = np.sqrt(np.einsum('ij,ij->i', ways, ways))
    shafts = ways / lengths[:, None]
    horizons = _horizons(task, anatomy, float(lengths.max()))
    least = LeastClearances(anatomy, task.target, task.doubt, task.needle_radius, horizons,
                            float(lengths.max()), step)
    ends = np.linspace(0, len(entries), min(workers, len(entries)) + 1).astype(int).tolist()
    parts = list(starmap(slice, pairwise(ends)))
    with ThreadPoolExecutor(workers) as pool:
        angles = pool.map(lambda part: _skin_angles(anatomy, entries[part], shafts[part]), parts)
        near = pool.map(lambda part: least(ways[part]), parts)
    clearances = dict(zip(least.names, np.concatenate(list(near), axis=1), strict=True))
    setup = task.setup
    terms = {
        'length': _upper(setup, 'length', 'mm', lengths,
                         task.needle_length - setup.limits['hub'], task.needle_length),
        'skin_angle': _upper(setup, 'skin_angle', '°', np.concatenate(list(angles)),
                             setup.limits['skin_angle'], setup.limits['skin_angle']),
        **{name: _clearance(task, anatomy, name, clearances.get(
            name, np.broadcast_to(horizon, len(ways))), horizon)
           for name, horizon in horizons.items()},
        **_visibility(task, entries, shafts),
    }
    return Candidates(task.target, entries, terms)


def _upper(setup: PlanningSetup, name: str, unit: str, value: Array, limit: float,
           scale: float) -> Term:
    """Return a term that costs with the square of value over scale, at most its limit."""
    return Term(unit, value, limit, np.maximum(value - limit, 0.0) if np.isfinite(limit)
                else np.zeros(len(value)), setup.weights[name] * (value / scale) ** 2)


def _skin_angles(anatomy: AnatomyMap, entries: Points, shafts: Array) -> Array:
    """Return the (N,) angles between the ways in and the skin's normal, rad."""
    normals = skin_normals(anatomy, entries)
    return np.asarray(np.arccos(np.clip(np.sum(normals * shafts, axis=1), -1.0, 1.0)))


def skin_normals(anatomy: AnatomyMap, places: Points) -> Array:
    """Return the (N, 3) unit normals of the skin at (N, 3) m, outwards; 0 far from it."""
    step = 1.5 * anatomy.grid.spacing
    offsets = step * np.eye(3)[:, None]
    before, after = anatomy.at('skin', np.stack([places - offsets, places + offsets]))
    slopes = (after - before).T
    return np.asarray(slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-12))


def _visibility(task: Task, entries: Points, shafts: Array) -> dict[str, Term]:
    """Return what both imagers see of the needle near its tip, and what leaves it to the probe."""
    setup, image_T_patient = task.setup, inverse(task.patient_T_image)
    tip = transform_points(image_T_patient, task.target)
    shaft = shafts @ image_T_patient[:3, :3].T
    out = np.abs(tip[2] + np.stack([np.zeros(len(shaft)), NEAR_TIP * shaft[:, 2]])).max(axis=0)
    radius = task.probe.radius
    beam = np.array([tip[0], tip[1] + radius, 0.0]) if np.isfinite(radius) else np.eye(3)[1]
    along_beam = np.abs(shaft @ _unit(beam))
    along_ray = np.abs(shafts @ _unit(task.target - task.source))
    places = transform_points(image_T_patient, entries)
    beside = np.abs(places[:, (0, 2)]) - housing(task.probe)
    clear = (np.linalg.norm(np.maximum(beside, 0.0), axis=1)
             + np.minimum(beside.max(axis=1), 0.0))
    none = np.zeros(len(entries))
    limit = setup.limits['probe']
    return {
        'out_of_slice': _upper(setup, 'out_of_slice', 'mm', out, setup.limits['out_of_slice'],
                               NEAR_TIP),
        'beam_angle': Term('°', np.arccos(along_beam), np.nan, none,
                           setup.weights['beam_angle'] * along_beam**2),
        # Of a shaft along the ray an X-ray shows a point.
        'ray_angle': Term('°', np.arccos(along_ray), np.nan, none,
                          setup.weights['ray_angle'] * along_ray**2),
        'probe': Term('mm', clear, limit, np.maximum(limit - clear, 0.0), none),
    }


def housing(probe: Probe) -> Array:
    """Return half the size of a probe's housing, m: along its slice and across it."""
    half = (probe.radius * np.sin(probe.field_of_view / 2) if np.isfinite(probe.radius)
            else probe.field_of_view / 2)
    return np.array([half + HOUSING[0], HOUSING[1]])


def _horizons(task: Task, anatomy: AnatomyMap, longest: float) -> dict[str, float]:
    """Return name to the clearance, m, that is told as this when it is more; without the skin.

    Further off nothing costs, or the map does not tell distances.

    Args:
        task: margins, comfort, needle and doubt.
        anatomy: the map.
        longest: path, m.
    """
    told = anatomy.band - task.needle_radius - float(task.doubt.slack(np.array(longest)))
    return {name: min(task.avoid.get(name, 0.0) + task.setup.comfort, told)
            for name in anatomy.names if name != 'skin'}


def _clearance(task: Task, anatomy: AnatomyMap, name: str, value: Array, horizon: float) -> Term:
    """Return the term of a structure from (N,) clearances, m, at most its horizon."""
    margin, comfort = task.avoid.get(name, np.nan), task.setup.comfort
    nothing = np.broadcast_to(0.0, value.shape)
    if np.isnan(margin) or value.min() >= margin + comfort:
        return Term('mm', value, margin, nothing, nothing, horizon)
    weight = task.setup.weights.get(name, task.setup.weights['structure'])
    # What the target itself costs, no path saves.
    at_target = (float(anatomy.at(name, task.target)) - task.needle_radius
                 - float(task.doubt.slack(np.zeros(()))))
    lack, least = (np.clip((margin + comfort - distance) / comfort, 0.0, None)
                   for distance in (value, np.asarray(at_target)))
    return Term('mm', value, margin, np.maximum(margin - value, 0.0),
                weight * np.maximum(lack**2 - least**2, 0.0), horizon)


def search(task: Task, anatomy: AnatomyMap, spacing: float = WINDOW_SPACING,
           workers: int = 2) -> Candidates:
    """Judge every path of the entry window.

    Raises:
        PlanError: no path keeps every limit; the message says which limit refuses, by how much.
    """
    entries, off = entry_window(task, anatomy, spacing)
    if not len(entries):
        more = 'more than ' if off >= anatomy.band - _ON_SKIN else ''
        raise PlanError(f'no path: the entry window lies off the skin, by {more}{off * 1e3:.1f} mm '
                        'at its nearest; move the entry to the skin')
    found = judge(task, anatomy, entries, workers=workers)
    if not found.allowed.any():
        raise PlanError(refusal(task, anatomy, found))
    return found


def refusal(task: Task, anatomy: AnatomyMap, found: Candidates) -> str:
    """Say which limits refuse every path, and by how much the nearest misses them."""
    at_target = _target_problems(task, anatomy)
    if at_target:
        return f'no path: {"; ".join(at_target)}, whichever way it is reached; move the target'
    misses = {name: term.excess for name, term in found.terms.items() if np.any(term.excess > 0.0)}
    scale: Callable[[str], float] = lambda name: (  # noqa: E731
        np.radians(5.0) if found.terms[name].unit == '°' else 0.001)
    total = np.sum([(excess > 0.0) + 0.01 * np.minimum(excess / scale(name), 50.0)
                    for name, excess in misses.items()], axis=0)
    best = int(np.argmin(total))
    words = [_miss(name, found.terms[name], best) for name, excess in misses.items()
             if excess[best] > 0.0]
    counts = ', '.join(f'{name} {int((excess > 0.0).sum())}' for name, excess in misses.items())
    return (f'no path: none of {len(found.entries)} entries keeps every limit. The nearest to '
            f'it fails by {"; ".join(words)}. Refused by each limit: {counts}. Move the window or '
            'the target, or take another needle')


def _miss(name: str, term: Term, index: int) -> str:
    missed = in_unit(float(term.excess[index]), term.unit)
    relation = 'over' if term.value[index] > term.limit else 'short of'
    return f'{name}: {missed} {relation} the limit of {in_unit(term.limit, term.unit)}'


def _target_problems(task: Task, anatomy: AnatomyMap) -> list[str]:
    """Say which structures the target itself is too near to."""
    slack = float(task.doubt.slack(np.zeros(1))[0]) + task.needle_radius
    words = []
    for name, margin in task.avoid.items():
        distance = float(anatomy.at(name, task.target))
        if distance < 0.0:
            words.append(f'the target is in {name}, {-distance * 1e3:.1f} mm deep')
        elif distance - slack < margin:
            words.append(
                f'the target is {distance * 1e3:.1f} mm from {name}: less needle and k·σ '
                f'{(distance - slack) * 1e3:.1f} mm, {(margin + slack - distance) * 1e3:.1f} mm '
                f'short of the limit of {margin * 1e3:.1f} mm')
    return words


def _unit(vector: Array) -> Array:
    return np.asarray(vector / np.linalg.norm(vector))
