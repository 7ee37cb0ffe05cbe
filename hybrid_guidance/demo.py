"""One simulated procedure from start to end, scored against the truth."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid_guidance import graph
from hybrid_guidance.scoring import write_samples
from hybrid_guidance.supervisor import Supervisor, node_command, ros_arguments

LIMIT_S = 90.0
IMAGES_PER_S = 5.0
"""Images recorded of each topic: all of them would be a gigabyte."""


def run_demo(values: graph.Values, arguments: Namespace, environment: Mapping[str, str],
             say: Callable[[str], None], start_graph: Callable[..., None]) -> int:
    """Run the demo; return the exit status, zero when the target was reached.

    Args:
        values: complete graph options.
        arguments: output (folder), json, no_record, set.
        environment: of the nodes.
        say: prints progress.
        start_graph: starts the nodes of ``values`` in a supervisor.
    """
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    deaths: list[str] = []

    def died(name: str, status: int, lines: Sequence[str]) -> None:
        deaths.append(name)
        print(f'{name} has ended (status {status}):', *lines, sep='\n    ', file=sys.stderr)

    log = (output / 'nodes.log').open('w', encoding='utf-8')
    supervisor = Supervisor(lambda name, line: print(f'[{name}] {line}', file=log, flush=True),
                            died, environment)
    say(f'Starting the graph for {values["procedure"]}, seed {values["seed"]} (simulated)')
    try:
        start_graph(supervisor, values, arguments.set)
        if not arguments.no_record:
            supervisor.start('recorder_node', node_command('recorder_node', *ros_arguments(
                'recorder_node', {'directory': output / 'bag', 'image_rate': IMAGES_PER_S})))
        summary = _operate(values, output, supervisor, deaths, say)
    finally:
        supervisor.stop()
        log.close()
    summary['nodes_died'] = deaths
    reached = bool(summary['target_reached']) and not deaths
    (output / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    print(json.dumps(summary, indent=2) if arguments.json else table(summary), flush=True)
    if not reached:
        say(f'The target was not reached; see {output / "nodes.log"}')
    say(f'Pictures, recording and summary are in {output}/')
    return 0 if reached else 1


def _operate(values: graph.Values, output: Path, supervisor: Supervisor, deaths: list[str],
             say: Callable[[str], None]) -> dict[str, Any]:
    """Run the operator until the end, a death, or the time limit."""
    from hybrid_guidance.nodes.operator_node import OperatorNode
    from hybrid_guidance.ros.embedded import embedded

    begun = time.monotonic()
    phase = ''
    with embedded(OperatorNode, {'procedure': values['procedure'],
                                 'output': str(output)}) as (operator, spin):
        while not operator.done and not deaths and time.monotonic() - begun < LIMIT_S:
            spin(0.05)
            supervisor.watch()
            if operator.phase != phase:
                phase = operator.phase
                say(f'{time.monotonic() - begun:6.1f} s  {phase}')
        summary = operator.summary()
        write_samples(output / 'estimates.csv', operator.samples)
        return {**summary, 'duration_s': round(time.monotonic() - begun, 1)}


def table(summary: Mapping[str, Any]) -> str:
    """Return the summary as a short table for people."""
    def spread(name: str, unit: str) -> str:
        values = summary.get(name) or {}
        return '  '.join(f'{key} {value:.2f}' for key, value in values.items()) + f' {unit}'

    rows = [
        ('target', 'reached' if summary['target_reached'] else 'NOT reached'),
        ('true tip to target', f'{summary.get("tip_to_target_mm", float("nan")):.2f} mm'),
        ('fused tip error', spread('fused_tip_error_mm', 'mm')),
        ('fused angle error', spread('fused_angle_error_deg', '°')),
        ('plan', summary.get('plan', '')),
        ('least clearance, less 2 σ', f'{summary.get("least_clearance_mm", float("nan"))} mm'),
        ('exposures', str(summary.get('exposures', 0))),
        ('air kerma', f'{summary.get("air_kerma_mgy", 0.0):.4f} mGy'),
        ('kerma-area product', f'{summary.get("kerma_area_product_cgycm2", 0.0):.4f} cGy·cm²'),
        ('frames', _counts(summary.get('frames'))),
        ('frames lost', _counts(summary.get('frames_lost'))),
        ('image to needle/pose', spread('latency_ms', 'ms')),
        ('duration', f'{summary.get("duration_s", 0.0):.1f} s'),
    ]
    width = max(len(name) for name, _ in rows)
    return '\n'.join(['', 'Simulated procedure: ' + str(summary['procedure']),
                      *(f'  {name:<{width}}  {value}' for name, value in rows), ''])


def _counts(values: Mapping[str, int] | None) -> str:
    return ', '.join(f'{name} {count}' for name, count in (values or {}).items())
