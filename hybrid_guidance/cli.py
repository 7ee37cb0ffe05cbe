"""``hybrid-guidance``: run the graph, run the demo, look at what is installed."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

from hybrid_guidance import graph
from hybrid_guidance.parameters import Parameter, ParameterError, table
from hybrid_guidance.supervisor import Supervisor, node_command, parameter_file, ros_arguments

DISCLAIMER = 'hybrid_guidance is research software, not a medical device.'


class _StopError(Exception):
    """Somebody asked us to stop."""


_MODULES = {
    'calibrate': ('hybrid_guidance.calibrate',
                  'calibrate from recordings, check it, and write the calibration file'),
    'plan': ('hybrid_guidance.plan', 'rank the paths from an entry window to a target'),
    'patient': ('hybrid_guidance.patient',
                'make a digital patient of a CT and a label map, and put a procedure into it'),
    'inspect': ('hybrid_guidance.inspection', (
        'say what geometry a DICOM file carries, what is missing, and what to enter by hand')),
    'register': ('hybrid_guidance.register', (
        'find where the patient of a CT lies, by X-rays, ultrasound or points, and how surely')),
}
"""Commands that are modules: ``add_parser(parser)`` and ``run(arguments)``, and what they do."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='hybrid-guidance', epilog=DISCLAIMER,
                                     description=__doc__.partition('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    _add_up(commands.add_parser('up', help='start the graph and keep it up'))
    _add_demo(commands.add_parser('demo', help='run one simulated procedure and score it'))
    commands.add_parser('doctor', help='say what is installed, and what is missing')
    _add_render(commands.add_parser('render', help='render both images of the simulated patient'))
    _add_plus(commands.add_parser('import-plus', help=(
        'make a calibration file from a PLUS configuration')))
    _add_samples(commands.add_parser('sample-data', help='fetch real CTs with label maps'))
    for name, (module, meaning) in _MODULES.items():
        import_module(module).add_parser(commands.add_parser(name, help=meaning))
    parameters = commands.add_parser('parameters', help='print the parameters of every node')
    parameters.add_argument('node', nargs='?', help='only this node')
    return parser


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--params', metavar='FILE', dest='params_file',
                        help='YAML file of ROS parameters')
    parser.add_argument('--set', metavar='NODE.PARAMETER=VALUE', action='append', default=[],
                        help='one parameter of one node; may be repeated')
    parser.add_argument('--only', metavar='NODE', action='append', default=[],
                        help='start only these nodes')
    parser.add_argument('--without', metavar='NODE', action='append', default=[],
                        help='do not start these nodes')
    for option in graph.OPTIONS:
        if option.name in ('params_file', 'rviz'):
            continue
        # No default here: what is not given must not win over the user's file of parameters.
        parser.add_argument('--' + option.name.replace('_', '-'),
                            choices=option.choices or None,
                            help=f'{option.meaning} (default: {option.default or "none"})')


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--procedure', default='lumbar_facet_injection')
    parser.add_argument('--seed', default='1', help='of patient, errors and noise')
    parser.add_argument('--output', type=Path, default=Path('demo-output'),
                        help='folder for summary, pictures and recording')
    parser.add_argument('--json', action='store_true', help='print the summary and nothing else')
    parser.add_argument('--no-record', action='store_true', help='do not record the topics')
    parser.add_argument('--set', metavar='NODE.PARAMETER=VALUE', action='append', default=[])


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--procedure', default='lumbar_facet_injection')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--needle-depth', type=float, metavar='MM', default=None,
                        help='mm below the skin; at the target when not given')
    parser.add_argument('--inject', type=float, metavar='ML', default=0.0,
                        help='fluid at the tip')
    parser.add_argument('--iodine', type=float, metavar='MG/ML', default=0.0,
                        help='in the fluid, so that X-rays show it')
    parser.add_argument('--bend', type=float, metavar='1/M', default=0.0,
                        help='curvature of the needle in tissue; 0 is rigid')
    parser.add_argument('--time', type=float, metavar='S', default=0.0,
                        help='moment of the heartbeat')
    parser.add_argument('--doppler', action='store_true',
                        help='arteries pulsate; also write ultrasound_doppler.png')
    parser.add_argument('--output', type=Path, default=Path('render-output'))


def _add_plus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', type=Path, help='PLUS device set or calibration result, XML')
    parser.add_argument('output', type=Path, help='calibration file to write, YAML')
    parser.add_argument('--width', type=_pixel_count, required=True, metavar='PX',
                        help='of the image: its top centre is taken for the transducer face')
    parser.add_argument('--height', type=_pixel_count, metavar='PX',
                        help='of the image (default: 3/4 of its width); for the uncertainty')
    parser.add_argument('--origin', type=float, nargs=2, metavar=('U', 'V'),
                        help='pixel of the mid transducer face, if it is not where the file says')
    parser.add_argument('--date', type=_moment, help=(
        'when the calibration was made, such as 2012-09-11, if the file does not say'))
    parser.add_argument('--expires', type=_moment, help=(
        'until when it may be used (default: a year from its date); an old recording is played '
        'with its old calibration by saying so here'))


def _add_samples(parser: argparse.ArgumentParser) -> None:
    from hybrid_guidance.sample_data import SAMPLES
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help=f'of {", ".join(SAMPLES)} (default: all)')
    parser.add_argument('--output', type=Path, default=Path('sample-data'))


def _pixel_count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 65535:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of pixels')
    return int(text)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'"{text}" is not a date such as 2030-01-31 or 2030-01-31T12:00:00+00:00') from None


def _assignments(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the values of ``node.parameter=value`` texts by node and parameter.

    Raises:
        GraphError: not of that form, no such node or parameter, or not a value of it.
    """
    names = {node.name for node in graph.GRAPH}
    result: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        target, equals, value = pair.partition('=')
        node, dot, name = target.partition('.')
        if not equals or not dot:
            raise graph.GraphError(f'--set {pair}: write it as node.parameter=value')
        if node not in names:
            raise graph.GraphError(f'--set {pair}: there is no {node}; there are '
                                   + ', '.join(sorted(names)))
        try:
            result.setdefault(node, {})[name] = _value(node, name, value)
        except ParameterError as error:
            raise graph.GraphError(f'--set {pair}: {error}') from None
    return result


def _value(node: str, name: str, text: str) -> Any:
    """Return a text as a value of a node's parameter.

    Raises:
        ParameterError: no such parameter, or not a value that it takes.
    """
    from hybrid_guidance.ros.documentation import parameters_of
    rows = {row.name: row for row in table(parameters_of(node))}
    if name == 'use_sim_time':
        rows[name] = Parameter(name, False, None, None, '', '', (), False)
    if name not in rows:
        raise ParameterError(f'there is no {name}; there are {", ".join(rows)}')
    return rows[name].parse(text)


def _environment() -> dict[str, str]:
    from hybrid_guidance.ros import environment
    values = dict(os.environ)
    environment.prepare(values)
    os.environ.update(values)
    return values


def _start_graph(supervisor: Supervisor, given: graph.Values, sets: Sequence[str],
                 only: Sequence[str] = (), without: Sequence[str] = ()) -> None:
    assigned = _assignments(sets)
    unknown = {*only, *without} - {node.name for node in graph.GRAPH}
    if unknown:
        raise graph.GraphError(f'there is no {", ".join(sorted(unknown))}; there are '
                               + ', '.join(node.name for node in graph.GRAPH))
    values = graph.complete(given)
    for name, parameters in graph.nodes(given):
        if name in without or (only and name not in only):
            continue
        own = parameter_file(supervisor.folder, name, {**parameters, **assigned.get(name, {})},
                             values['namespace'])
        files = [file for file in (values['params_file'], str(own)) if file]
        supervisor.start(name, node_command(name, *ros_arguments(
            name, {}, values['namespace'], files, values['log_level'])))


def _up(arguments: argparse.Namespace) -> int:
    given = {option.name: getattr(arguments, option.name) for option in graph.OPTIONS
             if getattr(arguments, option.name, None) is not None}
    graph.complete(given)
    environment = _environment()
    from hybrid_guidance.ros.announce import Announcer
    announcer = Announcer()

    def died(name: str, status: int, lines: Sequence[str]) -> None:
        print(f'\n{name} has ended (status {status}); its last lines:', file=sys.stderr)
        for line in lines:
            print(f'    {line}', file=sys.stderr)
        announcer.died(name, status, lines)

    supervisor = Supervisor(lambda name, line: print(f'[{name}] {line}', flush=True), died,
                            environment)
    try:
        _start_graph(supervisor, given, arguments.set, arguments.only, arguments.without)
        print(f'{len(supervisor.children)} nodes are starting; Ctrl-C ends them. {DISCLAIMER}',
              flush=True)
        while supervisor.children:
            supervisor.watch()
            announcer.work(0.05)
        print('no node is left', file=sys.stderr)
        return 1
    except _StopError:
        return 0
    finally:
        _say_killed(supervisor.stop())
        announcer.close()


def _say_killed(killed: Sequence[str]) -> None:
    if killed:
        print(f'had to be killed: {", ".join(killed)}', file=sys.stderr)


def _demo(arguments: argparse.Namespace) -> int:
    from hybrid_guidance.demo import run_demo
    environment = _environment()
    values = graph.complete({'procedure': arguments.procedure, 'seed': arguments.seed})
    say: Callable[[str], None] = (lambda text: None) if arguments.json else (
        lambda text: print(text, flush=True))
    return run_demo(values, arguments, environment, say, _start_graph)


def _doctor(arguments: argparse.Namespace) -> int:
    from hybrid_guidance.doctor import examine, report
    checks = examine()
    print(report(checks, colour=sys.stdout.isatty()))
    return 0 if all(check.good for check in checks if check.needed) else 1


def _render(arguments: argparse.Namespace) -> int:
    from hybrid_guidance.procedure import load_procedure
    from hybrid_guidance.simulation.render import Extras, render
    procedure = load_procedure(arguments.procedure)
    depth = (procedure.path_length if arguments.needle_depth is None
             else arguments.needle_depth * 1e-3)
    extras = Extras(arguments.inject * 1e-6, arguments.iodine, arguments.bend, arguments.time,
                    0.05 * arguments.doppler, arguments.doppler)
    render(procedure, arguments.seed, depth, arguments.output, extras)
    print(f'simulated images and truth.json are in {arguments.output}')
    return 0


def _import_plus(arguments: argparse.Namespace) -> int:
    from hybrid_guidance.calibration.file import save
    from hybrid_guidance.calibration.plus import read_plus_config
    calibration = read_plus_config(
        arguments.config, arguments.width, arguments.height, arguments.origin,
        date=arguments.date, expires=arguments.expires)
    save(arguments.output, [calibration])
    print(f'{arguments.output}: {calibration.parent} -> {calibration.child}, '
          f'made on {calibration.date:%Y-%m-%d}; {calibration.method}')
    if calibration.expires <= datetime.now(timezone.utc):
        print(f'it expired on {calibration.expires:%Y-%m-%d} and will be refused; to play a '
              'recording of its time with it, give a later date with --expires', file=sys.stderr)
    return 0


def _sample_data(arguments: argparse.Namespace) -> int:
    from hybrid_guidance.sample_data import fetch_named
    for line in fetch_named(arguments.names, arguments.output):
        print(line, flush=True)
    return 0


def _parameters(arguments: argparse.Namespace) -> int:
    from hybrid_guidance.ros.documentation import parameter_tables
    print(parameter_tables(arguments.node))
    return 0


def _stop(number: int, frame: Any) -> None:
    raise _StopError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    commands = {'up': _up, 'demo': _demo, 'doctor': _doctor, 'render': _render,
                'import-plus': _import_plus, 'sample-data': _sample_data,
                'parameters': _parameters}
    try:
        if arguments.command in _MODULES:
            return int(import_module(_MODULES[arguments.command][0]).run(arguments))
        return commands[arguments.command](arguments)
    except _StopError:
        return 130
    except _expected_errors() as error:
        print(f'hybrid-guidance {arguments.command}: {error}', file=sys.stderr)
        return 2


def _expected_errors() -> tuple[type[Exception], ...]:
    from hybrid_guidance.calibration.file import CalibrationError
    from hybrid_guidance.imaging.frame import SourceError
    from hybrid_guidance.plan import ERRORS
    from hybrid_guidance.procedure import ProcedureError
    from hybrid_guidance.registration.result import RegistrationError
    from hybrid_guidance.simulation.anatomy import AnatomyError
    return (graph.GraphError, AnatomyError, CalibrationError, ProcedureError, RegistrationError,
            SourceError, *ERRORS, OSError)


if __name__ == '__main__':
    sys.exit(main())
