"""``hybrid-guidance calibrate <kind>``: recordings in; a calibration, report and picture out."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid_guidance.calibrating import tools, ultrasound, xray
from hybrid_guidance.calibrating.common import Outcome, positive
from hybrid_guidance.calibration import chart
from hybrid_guidance.calibration import file as calibration_file
from hybrid_guidance.calibration.file import CalibrationError


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of calibration to the command line."""
    parser.epilog = (
        'In a new laboratory: pivot, phantom, ultrasound-temporal, ultrasound-spatial, then carm '
        '(or gantry), all into one file. How to record for each: docs/calibration.md and '
        '"hybrid-guidance calibrate KIND --help".')
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    for name, (add, _, text) in _KINDS.items():
        kind = kinds.add_parser(name, help=text, description=text)
        add(kind)
        if name in _LIVE:
            kind.add_argument('--record', type=positive, metavar='SECONDS', help=(
                'record from the running graph first: every recording named that does not exist '
                'yet becomes a rosbag2 folder, then all is as with files'))
        if name in _LIVE and _LIVE[name].sensor:
            kind.add_argument('--topic', default=f'/{_LIVE[name].sensor}/image_raw',
                              type=lambda text: '/' + text.strip('/'), help=(
                'images, live and in a rosbag2 recording (default: %(default)s)'))
        kind.add_argument('--output', type=Path, default=Path('calibration.yaml'), metavar='FILE',
                          help='calibration file; other entries in it stay (default: %(default)s)')
        kind.add_argument('--valid-for', type=positive, default=365.0, metavar='DAYS',
                          help='until it expires (default: %(default)g)')


def run(arguments: argparse.Namespace) -> int:
    """Run one calibration; nothing is written unless every gate is passed."""
    if getattr(arguments, 'record', None) is not None:
        _record(arguments)
    outcome = _KINDS[arguments.kind][1](arguments)
    calibration_file.update(arguments.output, outcome.entry)
    stem = arguments.output.with_suffix('')
    report, picture = (Path(f'{stem}-{arguments.kind}{suffix}') for suffix in ('.txt', '.png'))
    lines = [*outcome.lines, f'written to {arguments.output}; expires on '
             f'{outcome.entry.expires:%Y-%m-%d}']
    report.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    title = f'{arguments.kind}, {outcome.entry.date:%Y-%m-%d %H:%M} UTC'
    chart.save_charts(picture, title, outcome.panels)
    print('\n'.join([*lines, f'look at {picture} before you trust it']))
    return 0


@dataclass(frozen=True)
class _Live:
    """What a kind of calibration needs of the running graph.

    Attributes:
        files: arguments that name recordings.
        pairs: arguments that name the (parent, child) frames whose poses it needs.
        sensor: whose images it needs; '' for none.
    """

    files: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    sensor: str = ''


def _record(arguments: argparse.Namespace) -> None:
    """Record whatever is named and does not exist yet."""
    from hybrid_guidance.record import record
    live = _LIVE[arguments.kind]
    named = [getattr(arguments, name) for name in live.files]
    paths = [path for one in named if one is not None
             for path in (one if isinstance(one, list) else [one])]
    new = [path for path in paths if not path.exists()]
    if not new:
        raise CalibrationError(f'{", ".join(map(str, paths))}: there already, so there is nothing '
                               'to record; name another, or leave --record out')
    for path in new:
        record(path, arguments.record, [
            (getattr(arguments, parent), getattr(arguments, child)) for parent, child in live.pairs
        ], arguments.topic if live.sensor else '', lambda words: print(words, flush=True))

_LIVE = {
    'ultrasound-spatial': _Live(('recording', 'validation'), (('reference', 'probe'),),
                                'ultrasound'),
    'ultrasound-temporal': _Live(('images',), (('reference', 'probe'),), 'ultrasound'),
    'pivot': _Live(('recording', 'second'), (('reference', 'marker'),)),
    'phantom': _Live(('recording',), (('reference', 'marker'),)),
    'hand-eye': _Live(('recording',), (('base', 'flange'), ('eye', 'target'))),
    'carm': _Live(('images',), sensor='fluoroscopy'),
    'fluoroscopy-ultrasound': _Live(('image',), sensor='fluoroscopy'),
}
_KINDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None],
                        Callable[[argparse.Namespace], Outcome], str]] = {
    'ultrasound-spatial': (ultrasound.add_spatial, ultrasound.spatial,
                           'where the image lies in the probe, by N-wires or a point'),
    'ultrasound-temporal': (ultrasound.add_temporal, ultrasound.temporal,
                            'how late images are against the tracker'),
    'pivot': (tools.add_pivot, tools.pivot, 'the tip of a pointer, and its axis'),
    'phantom': (tools.add_phantom, tools.phantom, 'where a phantom is, by its landmarks'),
    'hand-eye': (tools.add_hand_eye, tools.hand_eye, 'a sensor or marker on the flange of a robot'),
    'carm': (xray.add_carm, xray.carm, 'intrinsics and pose of a C-arm, by a bead phantom'),
    'gantry': (xray.add_gantry, xray.gantry,
               'an untracked C-arm: its own angles and distance, with what they are worth'),
    'fluoroscopy-ultrasound': (xray.add_probe, xray.probe,
                               'the probe in the X-ray image, by its beads; no tracker needed'),
}
