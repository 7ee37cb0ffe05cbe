"""The whole simulated procedure over many seeds, scored against the truth of each.

Usage: python bench/closed_loop.py [--seeds 20] [--procedure lumbar_facet_injection]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

REACHED_BAR = 1.0
MISS_BAR_MM = 1.5
FUSED_BAR_MM = 1.5


def run(procedure: str, seed: int) -> dict:
    """Run one demo; return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'hybrid_guidance.cli', 'demo', '--json', '--no-record',
                   '--procedure', procedure, '--seed', str(seed), '--output', folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        summary = json.loads(done.stdout)
        summary['status'] = done.returncode
        if done.returncode:
            sys.stderr.write((Path(folder) / 'nodes.log').read_text()[-3000:])
        summary['errors_mm'] = np.loadtxt(Path(folder) / 'estimates.csv', delimiter=',',
                                          skiprows=1, ndmin=2)[:, :1].ravel()
        return summary


def line(name: str, value: float, unit: str, bar: float) -> str:
    """Return one JSON line of a benchmark."""
    return json.dumps({'name': name, 'value': round(value, 4), 'unit': unit, 'bar': bar,
                       'reference': bar, 'ratio': round(value / bar, 4)})


def main() -> int:
    """Run all seeds; exit status zero when every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--procedure', default='lumbar_facet_injection')
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--first', type=int, default=1)
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        result = run(arguments.procedure, seed)
        fused = result.get('fused_tip_error_mm') or {}
        print(f'seed {seed:3d}  {"reached" if result["target_reached"] else "FAILED ":8}'
              f'miss {result.get("tip_to_target_mm", float("nan")):6.3f} mm  fused p50 '
              f'{fused.get("p50", float("nan")):.3f} p95 {fused.get("p95", float("nan")):.3f} mm  '
              f'NEES {result.get("mean_nees")}  {result.get("exposures")} exposures  '
              f'lost {result.get("frames_lost")}  {result["duration_s"]} s', flush=True)
        runs.append(result)
    reached = [item for item in runs if item['target_reached'] and item['status'] == 0]
    miss = float(np.median([item.get('tip_to_target_mm', np.inf) for item in runs]))
    errors = np.concatenate([item['errors_mm'] for item in runs])
    fused = float(np.percentile(errors, 95)) if errors.size else np.inf
    worst = float(np.max([(item.get('fused_tip_error_mm') or {}).get('p95', np.inf)
                          for item in runs]))
    print(f'fused tip error of all {errors.size} estimates: p50 {np.median(errors):.3f}, '
          f'p95 {fused:.3f} mm; p95 of the worst seed {worst:.3f} mm (all simulated)')
    print(line('closed_loop_reached', len(reached) / len(runs), 'share', REACHED_BAR))
    print(line('closed_loop_miss_median', miss, 'mm', MISS_BAR_MM))
    print(line('closed_loop_fused_p95', fused, 'mm', FUSED_BAR_MM))
    return 0 if len(reached) == len(runs) and miss <= MISS_BAR_MM and fused <= FUSED_BAR_MM else 1


if __name__ == '__main__':
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    sys.exit(main())
