"""Every path of an entry window against every structure, in one pass over arrays.

A distance changes no faster than the place where it is taken: one sample tells how near the next
ones can be at most (as in sphere tracing, Hart J. C., The Visual Computer 1996;12:527). So one in
four of each path's samples is looked up first, then the others where the least can be, in their
voxels alone; the trilinear value is taken only where that leaves it open, and only of structures
near enough to matter.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import inverse, perpendiculars, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.planning.anatomy_map import AnatomyMap, MapError, trilinear
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.procedure import PlanningSetup, Probe, Procedure

STEP = 0.001
NEAR_TIP = 0.015
# Half a probe's housing across its slice, and how much wider than its face it is.
HOUSING = (0.003, 0.008)
WINDOW_SPACING = 0.00033
_SECANT = 6
# Samples of a path that are looked at together first.
_GROUP = 4

Single = NDArray[np.float32]


@dataclass(frozen=True)
class Doubt:
    """How unsure the place of the needle against the anatomy is.

    Attributes:
        sigmas: k, how many σ are taken off a distance.
        tip: σ of the tip estimate in its worst direction, m.
        registration: σ of the registration at the target in its worst direction, m.
        turn: σ of the registration's rotation about its worst axis, rad; it counts with the
            distance from the target.
    """

    sigmas: float = 2.0
    tip: float = 0.0003
    registration: float = 0.0003
    turn: float = 0.005

    def slack(self, from_target: Array) -> Array:
        """Return k·σ in m at (...,) distances from the target in m."""
        return np.asarray(self.sigmas * np.sqrt(
            self.tip**2 + self.registration**2 + (self.turn * from_target) ** 2))

    @classmethod
    def of(cls, sigmas: float, tip: Array, registration: Array) -> 'Doubt':
        """Return the doubt of (6, 6) covariances of the tip and of the registration at the target.

        Each counts with the σ of its worst direction.
        """
        def worst(block: Array) -> float:
            return float(max(np.linalg.eigvalsh(block)[-1], 0.0) ** 0.5)
        return cls(sigmas, worst(tip[:3, :3]), worst(registration[:3, :3]),
                   worst(registration[3:, 3:]))


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
        return np.asarray(np.all([term.excess <= 0.0 for term in self.terms.values()], axis=0))

    @property
    def cost(self) -> Array:
        """(N,) sum of all costs; infinite where a limit refuses."""
        total = np.sum([term.cost for term in self.terms.values()], axis=0)
        return np.where(self.allowed, total, np.inf)


def entry_window(task: Task, anatomy: AnatomyMap,
                 spacing: float = WINDOW_SPACING) -> tuple[Points, float]:
    """Return the places on the skin that a window of paths would enter at.

    A disc that touches the skin at the window's middle is projected onto the skin along the ways
    to the target.

    Returns:
        (N, 3) m, and how far the nearest of the places not on the skin is off it, m (0 if any is
        on it).
    """
    normal = skin_normals(anatomy, task.window[None])[0]
    if not np.any(normal):
        normal = _unit(task.window - task.target)
    across = perpendiculars(normal)
    reach = np.arange(-task.setup.window, task.setup.window + spacing / 2, spacing)
    u, v = (line.ravel() for line in np.meshgrid(reach, reach))
    kept = u**2 + v**2 <= task.setup.window**2 * (1 + 1e-9)
    ways = task.window + np.stack([u[kept], v[kept]], axis=-1) @ across - task.target
    before, after = np.full(len(ways), 0.97), np.ones(len(ways))
    first = anatomy.at('skin', task.target + before[:, None] * ways)
    for _ in range(_SECANT):
        second = anatomy.at('skin', task.target + after[:, None] * ways)
        change = np.where(np.abs(second - first) > 1e-9, second - first, np.inf)
        step = np.clip(-second * (after - before) / change, -0.1, 0.1)
        before, first, after = after, second, np.clip(after + step, 0.7, 1.3)
    entries = task.target + after[:, None] * ways
    off = np.abs(anatomy.at('skin', entries))
    on_skin = (off < 2e-4) & anatomy.holds(entries)
    return entries[on_skin], 0.0 if on_skin.any() else float(off.min())


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
    ways = entries - task.target
    lengths = np.linalg.norm(ways, axis=1)
    shafts = ways / lengths[:, None]
    setup = task.setup
    terms = {
        'length': _upper(setup, 'length', 'mm', lengths,
                         task.needle_length - setup.limits['hub'], task.needle_length),
        'skin_angle': _upper(setup, 'skin_angle', '°', _skin_angles(anatomy, entries, shafts),
                             setup.limits['skin_angle'], setup.limits['skin_angle']),
        **_clearances(task, anatomy, ways, lengths, step, workers),
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
    slopes = np.stack([anatomy.at('skin', places + offset) - anatomy.at('skin', places - offset)
                       for offset in step * np.eye(3)], axis=-1)
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


def _clearances(task: Task, anatomy: AnatomyMap, ways: Array, lengths: Array, step: float,
                workers: int) -> dict[str, Term]:
    """Return the clearance term of every structure of the map but the skin."""
    missing = [name for name in task.avoid if name not in anatomy.distances]
    if missing:
        raise MapError(f'the map lacks {", ".join(missing)}; make it of all that is to be avoided')
    samples = _Samples(task, anatomy, ways, lengths, step)
    names = [name for name in anatomy.distances if name != 'skin']

    def term(name: str) -> Term:
        comfort = task.setup.comfort
        margin = task.avoid.get(name, 0.0)
        horizon = min(margin + comfort, anatomy.band - task.needle_radius - samples.most_slack)
        value = samples.least(name, horizon)
        named = name in task.avoid
        excess = np.maximum(margin - value, 0.0) if named else np.zeros(len(value))
        weight = task.setup.weights.get(name, task.setup.weights['structure']) if named else 0.0
        # What the target itself costs, no path saves.
        at_target = (float(anatomy.at(name, task.target)) - task.needle_radius
                     - float(task.doubt.slack(np.zeros(()))))
        lack, least = (np.clip((margin + comfort - distance) / comfort, 0.0, None)
                       for distance in (value, np.asarray(at_target)))
        cost = weight * np.maximum(lack**2 - least**2, 0.0)
        return Term('mm', value, margin if named else np.nan, excess, cost, horizon)

    if workers < 2:
        return {name: term(name) for name in names}
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(names, pool.map(term, names), strict=True))


class _Samples:
    """Samples of all paths, (M, N), as places in the map's arrays.

    Args:
        task: of the target and the doubt.
        anatomy: the map.
        ways: (N, 3) m, from target to entries.
        lengths: (N,) m, of the ways.
        step: between samples, m; longer paths decide.

    Raises:
        MapError: a path leaves the map.
    """

    def __init__(self, task: Task, anatomy: AnatomyMap, ways: Array, lengths: Array,
                 step: float) -> None:
        grid = anatomy.grid
        counts = np.array(grid.shape[::-1])
        start = (task.target - grid.origin) / grid.spacing
        ends = start + ways / grid.spacing
        if (np.any(ends < 0.0) or np.any(ends > counts - 1) or np.any(start < 0.0)
                or np.any(start > counts - 1)):
            raise MapError('paths leave the map; make it of the whole region of the task')
        self._anatomy, self._task = anatomy, task
        number = _GROUP * int(np.ceil((float(lengths.max()) / step + 1.0) / _GROUP))
        shares = np.linspace(0.0, 1.0, number, dtype=np.float32)[:, None]
        self._places = [(np.float32(start[axis]) + shares * (ends - start)[:, axis].astype(
            np.float32)) for axis in range(3)]
        flat = np.rint(self._places[2]).astype(np.int32)
        for axis in (1, 0):
            flat *= int(counts[axis])
            flat += np.rint(self._places[axis]).astype(np.int32)
        self._flat = flat
        self._slack = (task.doubt.slack(shares * lengths)
                       + task.needle_radius).astype(np.float32)
        self.most_slack = float(self._slack.max()) - task.needle_radius
        middles = slice(_GROUP // 2, None, _GROUP)
        self._middles = np.ascontiguousarray(flat[middles])
        self._middle_slack = self._slack[middles]
        # How far the value of a voxel may be from that of a place in it, and a clearance in the
        # middle of a group from those at its ends: distances change as places do.
        self._rounding = np.float32(np.sqrt(3.0) / 2.0 * grid.spacing)
        self._reach = np.float32(
            _GROUP // 2 * float(lengths.max()) / max(number - 1, 1)
            * (1.0 + task.doubt.sigmas * task.doubt.turn))

    def least(self, name: str, horizon: float) -> Array:
        """Return (N,) the least distance along each path less radius and k·σ, at most a horizon."""
        values = self._anatomy.distances[name].ravel()
        count = self._flat.shape[1]
        least = np.full(count, horizon)
        if self._anatomy.least[name] - self.most_slack - self._task.needle_radius > horizon:
            return least
        rough = values.take(self._middles) - self._middle_slack
        known = np.minimum(rough.min(axis=0) + self._rounding, np.float32(horizon))
        kept = np.flatnonzero(rough <= known + (self._rounding + self._reach))
        chosen = (kept // count * (_GROUP * count) + kept % count
                  + count * np.arange(_GROUP)[:, None]).ravel()
        rough = values.take(self._flat.ravel().take(chosen)) - self._slack.ravel().take(chosen)
        np.minimum.at(known, chosen % count, rough + self._rounding)
        chosen = chosen[rough <= known.take(chosen % count) + self._rounding]
        if chosen.size:
            exact = trilinear(self._anatomy.distances[name], *(
                axis.ravel().take(chosen) for axis in self._places))
            np.minimum.at(least, chosen % count, exact - self._slack.ravel().take(chosen))
        return least


def search(task: Task, anatomy: AnatomyMap, spacing: float = WINDOW_SPACING,
           workers: int = 2) -> Candidates:
    """Judge every path of the entry window.

    Raises:
        PlanError: no path keeps every limit; the message says which limit refuses, by how much.
    """
    entries, off = entry_window(task, anatomy, spacing)
    if not len(entries):
        raise PlanError(f'no path: the entry window lies off the skin, by {off * 1e3:.1f} mm at '
                        'its nearest; move the entry to the skin')
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
