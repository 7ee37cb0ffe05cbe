"""Every procedure against the ground truth of many patients; time and memory of every region.

Usage: python bench/procedures.py [--seeds 20] [--first 1]

One JSON line per number. A case counts as reachable when, in that patient, the straight needle
from entry to target keeps off bone and off every structure by its margin, its entry is on the
skin, the slice holds its last 15 mm with at least three quarters of them out of bone's shadow,
and the X-ray shows the whole path from 40 degrees or more off the slice's normal.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from hybrid_guidance.procedure import load_procedure, procedure_names
from hybrid_guidance.simulation.anatomy import build_patient, build_structures
from hybrid_guidance.simulation.reach import examine
from hybrid_guidance.simulation.render import ultrasound_renderer, xray_renderer

READY_BAR_S = 5.0
MEMORY_BAR_MB = 500.0
ANGLE_BAR = np.radians(40.0)


def line(name: str, value: float, unit: str, bar: float) -> str:
    """Return one JSON line of a benchmark."""
    return json.dumps({'name': name, 'value': round(value, 4), 'unit': unit, 'bar': bar,
                       'reference': bar, 'ratio': round(value / bar, 4)})


def reachable(name: str, seeds: range) -> float:
    """Return the share of patients in which a procedure can be done; say where it cannot."""
    procedure, good = load_procedure(name), 0
    for seed in seeds:
        solids = build_structures(procedure.region, seed, procedure.target)
        reach = examine(procedure, solids)
        fine = (reach.free and reach.seen >= 0.75 and reach.in_x_ray
                and reach.ray_to_slice_normal >= ANGLE_BAR and reach.out_of_slice < 0.0003)
        good += fine
        if not fine:
            print(f'{name}, seed {seed}: {reach}', file=sys.stderr)
    return good / len(seeds)


def renderer(which: str, name: str) -> None:
    """Build one renderer in this process and print seconds and megabytes (its peak)."""
    procedure = load_procedure(name)
    begun = time.perf_counter()
    patient = build_patient(procedure.region, 1, procedure.target)
    ready = time.perf_counter() - begun
    if which == 'fluoroscopy':
        xray_renderer(procedure, patient, 1).render(procedure.patient_T_fluoroscopy())
    else:
        ultrasound_renderer(procedure, patient, 1).render(procedure.patient_T_ultrasound())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    print(json.dumps([ready, peak]))


def main() -> int:
    """Run everything; exit status zero when every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--first', type=int, default=1, help='the first of the seeds')
    parser.add_argument('--renderer', nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.renderer:
        renderer(*arguments.renderer)
        return 0
    good = True
    for name in procedure_names():
        share = reachable(name, range(arguments.first, arguments.first + arguments.seeds))
        good &= share == 1.0
        print(line(f'{name} reachable', share, 'share of patients', 1.0), flush=True)
    for region, name in {load_procedure(name).region: name for name in procedure_names()}.items():
        for which in ('fluoroscopy', 'ultrasound'):
            done = subprocess.run([sys.executable, __file__, '--renderer', which, name],
                                  stdout=subprocess.PIPE, text=True, check=True)
            ready, peak = json.loads(done.stdout)
            good &= ready <= READY_BAR_S and peak <= MEMORY_BAR_MB
            print(line(f'{region} ready', ready, 's', READY_BAR_S), flush=True)
            print(line(f'{region} {which} memory', peak, 'MB', MEMORY_BAR_MB), flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
