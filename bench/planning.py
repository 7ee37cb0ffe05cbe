"""Planning against its bars: speed, exactness, and the best path against an exhaustive search.

Everything is simulated. Distances are checked against Open3D's closest points on meshes that
marching tetrahedra make of the patient's solids, half as coarse as the map and by another way.
The paths chosen are checked on the solids' own fields, and against a search four times as dense
with samples half as far apart.

Usage: python bench/planning.py [--seeds 1 2 3] [--only speed map distance choice]
"""

import argparse
import json
import sys
import time
from itertools import permutations
from pathlib import Path

import numpy as np

SEEDS = tuple(range(1, 21))
PATHS = 1000


def line(name, value, unit, bar, **more) -> bool:
    """Print one JSON line; tell whether the bar holds (a negative bar: at least)."""
    print(json.dumps({'name': f'planning_{name}', 'value': round(float(value), 4), 'unit': unit,
                      'bar': bar, **more}), flush=True)
    return value <= bar


def mesh_of(shape, spacing, lower, upper):
    """Return (vertices m, triangles) where a solid's field is zero, by marching tetrahedra."""
    from hybrid_guidance.simulation.anatomy import Grid

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
    from hybrid_guidance.planning.anatomy_map import build_map
    from hybrid_guidance.planning.candidates import Task
    from hybrid_guidance.procedure import load_procedure
    from hybrid_guidance.simulation.anatomy import build_structures

    procedure = load_procedure(name)
    task = Task.of(procedure)
    solids = build_structures(procedure.region, seed, procedure.target)
    wanted = solids if everything else {key: solids[key] for key in ('skin', *task.avoid)}
    begin = time.perf_counter()
    anatomy = build_map(wanted, *task.region(), band=task.band)
    return task, wanted, anatomy, time.perf_counter() - begin


def scenes_of(solids, task, spacing=0.0005):
    """Return name to Open3D scene (in mm) and to mesh (m), of what is near the paths."""
    import open3d

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
    """All structures of the lumbar patient: the dense pass, and ray casters on the same paths.

    The search tells how far each path is from each structure. A ray tells only whether it hits;
    so paths are cast in three ways, from the least that could be called the same to the most:

    * rays: one ray a path and mesh. It tells whether the needle's axis touches, of no margin.
    * tubes: as many parallel rays, 1 mm apart, as fill the tube that must be free (needle, k·σ and
      margin). They tell whether a margin is kept, not by how much, and miss what is thinner.
    * distances: Open3D's distances at the search's own samples. The same answer, unbounded.
    """
    from hybrid_guidance.planning.candidates import STEP, entry_window, search

    task, solids, anatomy, _ = task_of('lumbar_facet_injection', 1, everything=True)
    scenes, meshes = scenes_of(solids, task, 0.001)
    entries, _ = entry_window(task, anatomy)
    number = int(np.ceil(np.linalg.norm(entries - task.target, axis=1).max() / STEP)) + 1
    samples = (task.target + np.linspace(0, 1, number)[:, None, None] * (entries - task.target))
    few = tensor(samples[:, ::100].reshape(-1, 3) * 1e3)
    axes = {name: tensor(bundle(task, entries, 0.0)) for name in scenes}
    tubes = {name: tensor(bundle(task, entries, task.avoid.get(name, 0.0))) for name in scenes}
    times: dict[str, list[tuple[float, float]]] = {}

    def clock(name, work) -> None:
        begin, busy = time.perf_counter(), time.process_time()
        work()
        times.setdefault(name, []).append((time.perf_counter() - begin,
                                           time.process_time() - busy))

    for repeat in range(11):
        clock('search', lambda: search(task, anatomy))
        for name, rays in (('rays', axes), ('tubes', tubes)):
            if name == 'rays' or repeat < 3:
                clock(name, lambda rays=rays: [scene.test_occlusions(rays[key], 0.0, 1.0)
                                               for key, scene in scenes.items()])
        if repeat < 2:
            clock('distances', lambda: [scene.compute_distance(few) for scene in scenes.values()])
    taken = {name: np.median(values, axis=0) for name, values in times.items()}
    taken['distances'] *= samples.shape[1] / len(samples[0, ::100])
    good = line('search', taken['search'][0] * 1e3, 'ms', 100.0, candidates=len(entries),
                structures=len(solids) - 1, cpu_ms=round(taken['search'][1] * 1e3, 1))
    trimesh_rays = trimesh_seconds(task, entries, meshes)
    references = {'open3d_rays': taken['rays'], 'open3d_tubes': taken['tubes'],
                  'open3d_distances': taken['distances'],
                  **({} if trimesh_rays is None else {'trimesh_rays': trimesh_rays})}
    for name, (clocked, busy) in references.items():
        print(json.dumps({
            'name': f'planning_against_{name}', 'value': round(clocked / taken['search'][0], 2),
            'unit': 'times faster', 'bar': 20.0, 'meshes': len(scenes),
            'reference': round(clocked, 4), 'by_cpu': round(busy / taken['search'][1], 2),
            **({'rays': sum(len(rays) for rays in tubes.values())} if 'tubes' in name else {})}),
            flush=True)
    return good


def tensor(values):
    """Return values as Open3D takes them."""
    import open3d

    return open3d.core.Tensor.from_numpy(np.ascontiguousarray(values, np.float32))


def bundle(task, entries, margin, spacing=0.001):
    """Return (N, 6) parallel rays in mm that fill the tubes that must be free; margin 0: axes."""
    from hybrid_guidance.geometry.rigid import perpendiculars

    ways = task.target - entries
    radius = margin + task.needle_radius + float(task.doubt.slack(np.linalg.norm(ways, axis=1))
                                                 .mean()) if margin else 0.0
    steps = spacing * np.arange(-np.ceil(radius / spacing), np.ceil(radius / spacing) + 1)
    u, v = (line.ravel() for line in np.meshgrid(steps, steps))
    u, v = u[np.hypot(u, v) <= radius], v[np.hypot(u, v) <= radius]
    across = np.stack(perpendiculars(ways.mean(axis=0) / np.linalg.norm(ways.mean(axis=0))))
    starts = entries[:, None] + np.stack([u, v], axis=-1) @ across
    return np.concatenate([starts, np.broadcast_to(ways[:, None], starts.shape)],
                          axis=-1).reshape(-1, 6) * 1e3


def trimesh_seconds(task, entries, meshes):
    """Return how long (clock, CPU) trimesh casts all, from 200; None if it is not installed."""
    try:
        import rtree  # noqa: F401
        import trimesh
    except ImportError:
        print('trimesh or rtree is not installed: not compared')
        return None
    few = entries[::max(1, len(entries) // 200)]
    solids = [trimesh.Trimesh(points * 1e3, triangles, process=False)
              for points, triangles in meshes.values()]
    for solid in solids:
        solid.ray.intersects_any(few[:1] * 1e3, (task.target - few[:1]) * 1e3)
    begin, busy = time.perf_counter(), time.process_time()
    for solid in solids:
        solid.ray.intersects_any(few * 1e3, (task.target - few) * 1e3)
    return (np.array([time.perf_counter() - begin, time.process_time() - busy])
            * len(entries) / len(few))


def whole_map() -> bool:
    """A label map of 256 x 256 x 256 voxels with 15 structures, all of it."""
    from hybrid_guidance.planning.anatomy_map import LabelSource, SolidSource, build_map
    from hybrid_guidance.simulation.anatomy import Grid, build_structures

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


def distances(seed=1) -> bool:
    """Least distances of random paths, against closest points on meshes, one task a region."""
    import open3d

    good, random = True, np.random.default_rng(20260101)
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
        good &= line(f'distance_{name}', errors.max(), 'mm', 0.3, paths=PATHS, pairs=len(errors),
                     p50=round(float(np.median(errors)), 4),
                     p95=round(float(np.percentile(errors, 95)), 4))
    return good


def choices(seeds) -> bool:
    """The best path of every procedure, against the solids and an exhaustive search."""
    from hybrid_guidance.planning.candidates import (
        WINDOW_SPACING,
        entry_window,
        judge,
        search,
    )
    from hybrid_guidance.planning.choice import choose
    from hybrid_guidance.planning.path import PlanError
    from hybrid_guidance.procedure import procedure_names

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


def main() -> int:
    """Run what was asked for; 0 if every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
    parser.add_argument('--only', nargs='+', choices=('speed', 'map', 'distance', 'choice'),
                        default=('speed', 'map', 'distance', 'choice'))
    arguments = parser.parse_args()
    parts = {'speed': speed, 'map': whole_map, 'distance': distances,
             'choice': lambda: choices(arguments.seeds)}
    kept = [parts[name]() for name in arguments.only]
    return 0 if all(kept) else 1


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
