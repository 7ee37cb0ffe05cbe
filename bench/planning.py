"""Planning against its bars: speed, exactness, and the best path against an exhaustive search.

Everything is simulated. Distances are checked against Open3D's closest points on meshes that
marching tetrahedra make of the patient's solids, half as coarse as the map and by another way.
The paths chosen are checked on the solids' own fields, and against a search four times as dense
with samples half as far apart.

Usage: python bench/planning.py [--seeds 1 2 3] [--only speed map distance choice refusal]

Trimesh is no part of the project; to have it compared:
    pip install --target /tmp/peers trimesh rtree
    PYTHONPATH=/tmp/peers python bench/planning.py --only speed
"""

import argparse
import json
import re
import sys
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import open3d
from scipy.optimize import brentq
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hybrid_guidance.geometry.rigid import perpendiculars, pose_along
from hybrid_guidance.planning.anatomy_map import LabelSource, SolidSource, build_map
from hybrid_guidance.planning.candidates import (
    STEP,
    WINDOW_SPACING,
    Task,
    entry_window,
    judge,
    search,
)
from hybrid_guidance.planning.choice import choose
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.procedure import load_procedure, procedure_names
from hybrid_guidance.simulation.anatomy import Grid, build_structures
from hybrid_guidance.simulation.shapes import box, placed, union

SEEDS = tuple(range(1, 21))
PATHS = 1000


def line(name, value, unit, bar, **more) -> bool:
    """Print one JSON line; tell whether the bar holds (a negative bar: at least)."""
    print(json.dumps({'name': f'planning_{name}', 'value': round(float(value), 4), 'unit': unit,
                      'bar': bar, **more}), flush=True)
    return value <= bar


def mesh_of(shape, spacing, lower, upper):
    """Return (vertices m, triangles) where a solid's field is zero, by marching tetrahedra."""
    grid = Grid.covering(np.maximum(shape.lower, lower) - 2 * spacing,
                         np.minimum(shape.upper, upper) + 2 * spacing, spacing)
    x, y, z = grid.axes()
    field = np.empty(grid.shape, np.float32)
    # In layers: a union of many parts over a whole volume takes memory.
    for start in range(0, grid.shape[0], 16):
        field[start:start + 16] = shape.distance(x, y, z[start:start + 16])
    # Closed at the box's faces.
    for face in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        field[face] = np.maximum(field[face], spacing / 2)
    inside = field < 0
    mixed = np.zeros(np.array(field.shape) - 1, int)
    for corner in np.ndindex(2, 2, 2):
        mixed += inside[tuple(slice(c, n - 1 + c) for c, n in
                              zip(corner, field.shape, strict=True))]
    cubes = np.argwhere((mixed > 0) & (mixed < 8))
    triangles = [triangle for order in permutations(range(3)) for triangle in
                 _tetrahedra(cubes, order, field)]
    if not triangles:
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    points = np.concatenate(triangles)[:, ::-1] * spacing + grid.origin
    return points, np.arange(len(points)).reshape(-1, 3)


def _tetrahedra(cubes, order, field):
    """Yield the (3 N, 3) index-space corners of one sixth of each cube."""
    path = np.zeros((4, 3), int)
    for step, axis in enumerate(order, start=1):
        path[step:, axis] = 1
    places = cubes[:, None] + path
    values = field[tuple(np.moveaxis(places, -1, 0))]
    below = values < 0

    def crossing(rows, first, second):
        a, b = values[rows, first], values[rows, second]
        share = (a / (a - b))[:, None]
        return places[rows, first] + share * (places[rows, second] - places[rows, first])

    for alone in range(4):
        rest = [corner for corner in range(4) if corner != alone]
        for sign in (True, False):
            rows = np.flatnonzero((below[:, alone] == sign)
                                  & np.all(below[:, rest] != sign, axis=1))
            if rows.size:
                yield np.stack([crossing(rows, alone, other) for other in rest],
                               axis=1).reshape(-1, 3)
    for pair in ((0, 1), (0, 2), (0, 3)):
        rest = [corner for corner in range(4) if corner not in pair]
        rows = np.flatnonzero((below[:, pair[0]] == below[:, pair[1]])
                              & (below[:, rest[0]] == below[:, rest[1]])
                              & (below[:, pair[0]] != below[:, rest[0]]))
        if rows.size:
            a, b, c, d = (crossing(rows, p, q) for p, q in (
                (pair[0], rest[0]), (pair[0], rest[1]), (pair[1], rest[1]), (pair[1], rest[0])))
            yield np.stack([a, b, c, a, c, d], axis=1).reshape(-1, 3)


def task_of(name, seed, everything=False):
    """Return the task, the solids and the map of one procedure in one patient."""
    procedure = load_procedure(name)
    task = Task.of(procedure)
    solids = build_structures(procedure.region, seed, procedure.target)
    wanted = solids if everything else {key: solids[key] for key in ('skin', *task.avoid)}
    begin = time.perf_counter()
    anatomy = build_map(wanted, *task.region(), band=task.band)
    return task, wanted, anatomy, time.perf_counter() - begin


def scenes_of(solids, task, spacing=0.0005):
    """Return name to Open3D scene (in mm) and to mesh (m), of what is near the paths."""
    lower, upper = task.region()
    scenes, meshes = {}, {}
    for name, shape in solids.items():
        if name == 'skin' or np.any(shape.lower > upper + task.band) or np.any(
                shape.upper < lower - task.band):
            continue
        points, triangles = mesh_of(shape, spacing, lower - task.band - 0.002,
                                    upper + task.band + 0.002)
        if not len(triangles):
            continue
        scene = open3d.t.geometry.RaycastingScene()
        scene.add_triangles(open3d.core.Tensor.from_numpy(np.float32(points * 1e3)),
                            open3d.core.Tensor.from_numpy(triangles.astype(np.uint32)))
        scenes[name], meshes[name] = scene, (points, triangles)
    return scenes, meshes


def speed() -> bool:
    """All structures of the lumbar patient: the search, and casters given the same paths.

    The search tells how far each path is from each structure, to bar 2's 0.3 mm. A ray tells only
    whether it hits. So the peers go from the least that could be called the same to the same:

    * any_hit: one ray a path, all meshes in one scene. Whether the needle's axis touches anything.
    * any_hit_each: one ray a path and mesh. Which structures the axis touches.
    * all_hits: one ray a path, every mesh that it passes. The same, from one scene.
    * margin_tubes: parallel rays that fill what must be free (needle, k·σ, margin): whether a
      margin is kept, not by how much.
    * distance_tubes: parallel rays as far out as the search tells distances; the hit nearest to
      the axis tells the distance. The same answer.
    * closest_points: distances at the search's own samples. The same answer, unbounded.

    The tubes' spacing is the widest that tells a distance to 0.3 mm. The nearest hit is at least
    as far out as the structure, and at most by the radius of the largest hole between rays, which
    in a triangular lattice of spacing s is s / √3 (the widest spacing of all for its number of
    rays). Half of that taken off, the error is at most s / (2 √3): s = 0.3 mm · 2 √3 = 1.04 mm.
    That is in the rays' favour: what is thinner than s they miss, ends and cones are left out.

    Building the meshes, the scenes and the map is not counted. What takes long is done for some
    of the paths, and its time taken as often.
    """
    task, solids, anatomy, _ = task_of('lumbar_facet_injection', 1, everything=True)
    scenes, meshes = scenes_of(solids, task, 0.001)
    found = search(task, anatomy)
    peers = peers_of(task, found, scenes, meshes)
    clock(lambda: search(task, anatomy), 5)
    # Turn about, so that whatever else the machine does meets all of them.
    turns = [(clock(lambda: search(task, anatomy), 3),
              {name: clock(work, 3 if share == 1 else 1) for name, (work, share) in peers.items()
               if share == 1 or turn < 2}) for turn in range(7)]
    taken = np.median([own for own, _ in turns], axis=0)
    good = line('search', taken[0] * 1e3, 'ms', 100.0, candidates=len(found.entries),
                structures=len(solids) - 1, cpu_ms=round(taken[1] * 1e3, 1),
                least_ms=round(min(own[0] for own, _ in turns) * 1e3, 1))
    for name, (_, share) in peers.items():
        clocked, busy = share * np.median([all_[name] for _, all_ in turns if name in all_], axis=0)
        ratio = clocked / taken[0]
        print(json.dumps({
            'name': f'planning_against_{name}', 'value': round(ratio, 2), 'unit': 'times faster',
            'bar': 20.0, 'holds': bool(ratio >= 20.0), 'by_cpu': round(busy / taken[1], 2),
            'reference_ms': round(clocked * 1e3, 2), 'meshes': len(scenes),
            'share_measured': round(1 / share, 4)}), flush=True)
    return good


def clock(work, times) -> tuple[float, float]:
    """Return the median seconds that work takes, by the clock and of CPU."""
    taken = []
    for _ in range(times):
        begin, busy = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - begin, time.process_time() - busy))
    return tuple(np.median(taken, axis=0))


def peers_of(task, found, scenes, meshes):
    """Return name to (work, how many times it is needed for all paths); see ``speed``."""
    everything = open3d.t.geometry.RaycastingScene()
    for points, triangles in meshes.values():
        everything.add_triangles(tensor(points * 1e3),
                                 open3d.core.Tensor.from_numpy(triangles.astype(np.uint32)))
    entries = found.entries
    axes = tensor(bundle(task, entries, 0.0))
    some = entries[::20]
    narrow = {name: tensor(bundle(task, entries, task.avoid.get(name, 0.0))) for name in scenes}
    wide = {name: tensor(bundle(task, some, found.terms[name].capped)) for name in scenes}
    few = entries[::100]
    longest = np.linalg.norm(entries - task.target, axis=1).max()
    shares = np.linspace(0, 1, int(np.ceil(longest / STEP)) + 1)[:, None, None]
    samples = tensor((task.target + shares * (few - task.target)).reshape(-1, 3) * 1e3)

    def hits(rays):
        return [scene.test_occlusions(rays[name], 0.0, 1.0) for name, scene in scenes.items()]

    return {
        'open3d_any_hit': (lambda: everything.test_occlusions(axes, 0.0, 1.0), 1),
        'open3d_any_hit_each': (lambda: hits(dict.fromkeys(scenes, axes)), 1),
        'open3d_all_hits': (lambda: everything.list_intersections(axes), 1),
        'open3d_margin_tubes': (lambda: hits(narrow), 1),
        'open3d_distance_tubes': (lambda: hits(wide), len(entries) / len(some)),
        'open3d_closest_points': (
            lambda: [scene.compute_distance(samples) for scene in scenes.values()],
            len(entries) / len(few)),
        **trimesh_peer(task, entries, meshes)}


def tensor(values):
    """Return values as Open3D takes them."""
    return open3d.core.Tensor.from_numpy(np.ascontiguousarray(values, np.float32))


def bundle(task, entries, margin, spacing=0.0003 * 2 * 3**0.5):
    """Return (N, 6) parallel rays in mm that fill the tubes that must be free; margin 0: axes."""
    ways = task.target - entries
    radius = margin + task.needle_radius + float(task.doubt.slack(np.linalg.norm(ways, axis=1))
                                                 .mean()) if margin else 0.0
    count = np.arange(-np.ceil(2 * radius / spacing), np.ceil(2 * radius / spacing) + 1)
    first, second = (line.ravel() for line in np.meshgrid(count, count))
    lattice = spacing * np.stack([first + second / 2, second * 3**0.5 / 2], axis=-1)
    lattice = lattice[np.linalg.norm(lattice, axis=1) <= radius]
    across = np.stack(perpendiculars(ways.mean(axis=0) / np.linalg.norm(ways.mean(axis=0))))
    starts = entries[:, None] + lattice @ across
    return np.concatenate([starts, np.broadcast_to(ways[:, None], starts.shape)],
                          axis=-1).reshape(-1, 6) * 1e3


def trimesh_peer(task, entries, meshes):
    """Return trimesh's any-hit test, one ray a path and mesh, as a peer; none if not there."""
    try:
        import rtree  # noqa: F401
        import trimesh
    except ImportError as error:
        print(f'trimesh not compared: {error}; see the usage above')
        return {}
    few = entries[::len(entries) // 100]
    solids = [trimesh.Trimesh(points * 1e3, triangles, process=False)
              for points, triangles in meshes.values()]
    for solid in solids:
        # Its tree is built at the first ray.
        solid.ray.intersects_any(few[:1] * 1e3, (task.target - few[:1]) * 1e3)
    return {'trimesh_any_hit_each': (
        lambda: [solid.ray.intersects_any(few * 1e3, (task.target - few) * 1e3)
                 for solid in solids], len(entries) / len(few))}


def whole_map() -> bool:
    """A label map of 256 x 256 x 256 voxels with 15 structures, all of it."""
    solids = build_structures('lumbar', 1)
    names = ['L2', 'L3', 'L4', 'L5', 'sacrum', 'dural_sac', 'aorta', 'inferior_vena_cava',
             'root_L3_left', 'root_L4_left', 'root_L5_left', 'root_L4_right', 'disc_L3_L4',
             'disc_L4_L5', 'skin']
    grid = Grid(np.array([-0.089, -0.089, -0.11]), 0.0007, (256, 256, 256))
    affine = np.diag([grid.spacing] * 3 + [1.0])
    affine[:3, 3] = grid.origin
    masks = {name: LabelSource(SolidSource(solids[name]).feet(grid).inside, affine)
             for name in names}
    end = grid.origin + 255 * grid.spacing
    begin, busy = time.perf_counter(), time.process_time()
    build_map(masks, grid.origin - grid.spacing / 2, end + grid.spacing / 2, grid.spacing,
              band=0.012)
    taken = time.perf_counter() - begin
    return line('map_256', taken, 's', 5.0, structures=len(names), band_mm=12,
                cpu_s=round(time.process_time() - busy, 2))


def distances(seed) -> bool:
    """Least distances of random paths, against closest points on meshes, one task a region."""
    good, random = True, np.random.default_rng(20260100 + seed)
    for name in ('lumbar_transforaminal_epidural', 'hip_injection', 'shoulder_injection'):
        task, solids, anatomy, _ = task_of(name, seed)
        scenes, _ = scenes_of(solids, task)
        lower, upper = task.region()
        ends = random.uniform(lower + 0.001, upper - 0.001, (2, PATHS, 3))
        shares = np.linspace(0.0, 1.0, 161)[:, None, None]
        places = ends[0] + shares * (ends[1] - ends[0])
        errors = []
        for structure, scene in scenes.items():
            exact = scene.compute_signed_distance(open3d.core.Tensor.from_numpy(
                np.float32(places.reshape(-1, 3) * 1e3)), nsamples=3).numpy().reshape(161, PATHS)
            exact = exact.min(axis=0) * 1e-3
            found = anatomy.at(structure, places).min(axis=0)
            # A needle in it is refused however deep; beyond the band nothing is claimed.
            told = (exact > 0.0) & (exact < task.band - 0.001)
            errors.append((found - exact)[told])
        errors = np.abs(np.concatenate(errors)) * 1e3
        good &= line(f'distance_{name}', errors.max(), 'mm', 0.3, seed=seed, paths=PATHS,
                     pairs=len(errors), p50=round(float(np.median(errors)), 4),
                     p95=round(float(np.percentile(errors, 95)), 4))
    return good


def choices(seeds) -> bool:
    """The best path of every procedure, against the solids and an exhaustive search."""
    worst, least, refused, times = {}, {}, [], []
    for name in procedure_names():
        for seed in seeds:
            task, solids, anatomy, _ = task_of(name, seed)
            try:
                begin = time.perf_counter()
                found = search(task, anatomy)
                times.append(time.perf_counter() - begin)
            except PlanError as error:
                refused.append(f'{name} {seed}: {error}')
                continue
            best = choose(found, 1)[0]
            entries, _ = entry_window(task, anatomy, WINDOW_SPACING / 2)
            dense = judge(task, anatomy, entries, step=0.0005)
            excess = best.cost / float(dense.cost.min()) - 1.0
            worst[name] = max(worst.get(name, -1.0), excess)
            places = np.linspace(best.path.entry, best.path.target, 2000)
            room = min(float(solids[key].at(places).min()) - task.needle_radius - margin
                       for key, margin in task.avoid.items())
            least[name] = min(least.get(name, 1.0), room)
        if name in worst:
            print(f'{name:32} cost over exhaustive {100 * worst[name]:6.2f} %   '
                  f'least room past margins {least[name] * 1e3:6.2f} mm', flush=True)
    for text in refused:
        print(f'refused: {text}')
    print(f'search: median {np.median(times) * 1e3:.0f} ms, most {max(times) * 1e3:.0f} ms')
    good = line('cost_over_exhaustive', 100 * max(worst.values()), '%', 5.0,
                cases=len(seeds) * len(procedure_names()) - len(refused))
    good &= line('refused', len(refused), 'cases', 0)
    return bool(line('margins_missed', sum(room <= 0.0 for room in least.values()), 'procedures',
                     0) and good)


def refusals(seeds) -> bool:
    """No path exists, in four ways: is the reason named, and by how much it fails?"""
    ways = {'needle too short': short_needle, 'target in bone': target_in_bone,
            'window outside the skin': window_outside, 'window blocked': blocked_window}
    wrong = []
    for name in procedure_names():
        for seed in seeds:
            made = task_of(name, seed)[:3]
            for kind, make in ways.items():
                task, anatomy, limit, amount, tolerance = make(*made)
                try:
                    search(task, anatomy)
                    told = 'a path'
                except PlanError as error:
                    told = str(error)
                found = re.search(limit, told)
                if not found or abs(float(found[1]) - amount) > tolerance:
                    wrong.append(f'{name} {seed}: {kind}: not "{limit}" {amount:.2f}, but: {told}')
    for text in wrong:
        print(text)
    return line('refusals_wrong', len(wrong), 'cases', 0,
                cases=len(ways) * len(seeds) * len(procedure_names()))


def short_needle(task, solids, anatomy):
    """2 mm too short for the shortest path that keeps every other limit (all in mm)."""
    long = replace(task, needle_length=1.0)
    found = judge(long, anatomy, entry_window(long, anatomy)[0])
    least = np.linalg.norm(found.entries - task.target, axis=1)[found.allowed].min()
    short = replace(task, needle_length=float(least) - 0.002 + task.setup.limits['hub'])
    return short, anatomy, r'fails by length: (\d+\.\d) mm over', 2.0, 0.06


def target_in_bone(task, solids, anatomy):
    """The target moved towards the bone until it is about 2 mm deep."""
    bone = solids['bone']
    around = task.target + np.random.default_rng(1).uniform(-0.02, 0.02, (20000, 3))
    deep = around[int(np.argmin(bone.at(around)))]
    share = brentq(lambda t: float(bone.at(task.target + t * (deep - task.target))) + 0.002, 0, 1)
    moved = replace(task, target=task.target + share * (deep - task.target))
    wanted = {key: solids[key] for key in ('skin', *task.avoid)}
    return (moved, build_map(wanted, *moved.region(), band=moved.band),
            r'the target is in bone, (\d+\.\d) mm deep',
            to_surface(bone, moved.target[None], 0.01) * 1e3, 0.3)


def to_surface(shape, places, reach):
    """Return how far the nearest of (N, 3) m is from a solid's surface, m, by its own points."""
    grid = Grid.covering(places.min(axis=0) - reach, places.max(axis=0) + reach, 0.0005)
    return float(cKDTree(SolidSource(shape).feet(grid).points).query(places)[0].min())


def window_outside(task, solids, anatomy):
    """The entry clicked in the air, as far outside the skin as the target is inside."""
    out = replace(task, window=2 * task.window - task.target)
    skin, steps = solids['skin'], 0.001 * np.eye(3)
    # A disc beside the skin where the map reaches that far, otherwise across the way.
    normal = (skin.at(out.window + steps) - skin.at(out.window - steps)
              if to_surface(skin, out.window[None], out.band + 0.005) < out.band - 0.002
              else out.window - task.target)
    u, v = perpendiculars(normal / np.linalg.norm(normal))
    angle = np.linspace(0, 2 * np.pi, 60)[:, None]
    disc = out.window + np.concatenate([radius * (np.cos(angle) * u + np.sin(angle) * v)
                                        for radius in np.linspace(0, out.setup.window, 12)])
    wanted = {key: solids[key] for key in ('skin', *task.avoid)}
    return (out, build_map(wanted, *out.region(), band=out.band),
            r'lies off the skin, by (?:more than )?(\d+\.\d) mm',
            min(out.band, to_surface(skin, disc, out.band + 0.005)) * 1e3, 0.3)


def blocked_window(task, solids, anatomy):
    """A plate of bone, 4 mm thick, across all paths: short by half of it and the rest."""
    way = task.window - task.target
    length = float(np.linalg.norm(way))
    plate = placed(box(np.zeros(3), np.array([0.03, 0.03, 0.002]), 0.0005),
                   pose_along(task.target + 0.35 * way, way))
    wanted = {key: solids[key] for key in ('skin', *task.avoid)}
    blocked = {**wanted, 'bone': union([solids['bone'], plate])}
    short = (0.002 + task.needle_radius + float(task.doubt.slack(np.array(0.35 * length)))
             + task.avoid['bone'])
    return (task, build_map(blocked, *task.region(), band=task.band),
            r'fails by bone: (\d+\.\d) mm short', short * 1e3, 0.6)


def main() -> int:
    """Run what was asked for; 0 if every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
    parts = ('speed', 'map', 'distance', 'choice', 'refusal')
    parser.add_argument('--only', nargs='+', choices=parts, default=parts)
    arguments = parser.parse_args()
    run = {'speed': speed, 'map': whole_map, 'distance': lambda: distances(arguments.seeds[0]),
           'choice': lambda: choices(arguments.seeds),
           'refusal': lambda: refusals(arguments.seeds)}
    kept = [run[name]() for name in arguments.only]
    return 0 if all(kept) else 1


if __name__ == '__main__':
    sys.exit(main())
