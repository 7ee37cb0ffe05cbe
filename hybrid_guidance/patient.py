"""``hybrid-guidance patient``: digital patients from CTs, and procedures in them."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from hybrid_guidance.geometry.types import Points
from hybrid_guidance.imaging.volume import read_volume
from hybrid_guidance.planning.files import read_markups
from hybrid_guidance.procedure import load_procedure, save_procedure
from hybrid_guidance.resources import resource
from hybrid_guidance.simulation import imported
from hybrid_guidance.simulation.anatomy import AnatomyError, build_patient
from hybrid_guidance.simulation.placement import placed, settled_exposure
from hybrid_guidance.simulation.reach import examine

RULES = 'config/labels'


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``patient``."""
    actions = parser.add_subparsers(dest='action', required=True)
    make = actions.add_parser('import', help='make a patient of a CT and a label map')
    make.add_argument('ct', type=Path, help='.nii, .nii.gz, .nrrd, or folder of a DICOM series')
    make.add_argument('labels', type=Path, help='label map of the same patient')
    make.add_argument('--rules', default='totalsegmentator',
                      help='what the labels are: a name of config/labels, or a YAML file')
    make.add_argument('--series', help='SeriesInstanceUID (its end will do), of several')
    where = make.add_mutually_exclusive_group()
    where.add_argument('--around', nargs='+', default=[], metavar='NAME',
                       help='structures in the middle of the fine voxels (default: all bones)')
    where.add_argument('--centre', type=float, nargs=3, metavar='MM',
                       help='middle of the fine voxels, LPS axes of the CT')
    make.add_argument('--size', type=float, nargs=3, metavar='MM', default=[180.0, 180.0, 180.0],
                      help='of the fine voxels')
    make.add_argument('--spacing', type=float, metavar='MM', default=1e3 * imported.SPACING)
    make.add_argument('--output', type=Path, required=True, help='folder for patient.yaml')
    fit = actions.add_parser('procedure', help='put a procedure into a patient')
    fit.add_argument('patient', type=Path, help='its patient.yaml')
    fit.add_argument('--like', default='lumbar_facet_injection',
                     help='procedure with the needle, C-arm, probe and limits to use')
    fit.add_argument('--target', type=float, nargs=3, metavar='MM', help='LPS')
    fit.add_argument('--entry', type=float, nargs=3, metavar='MM',
                     help='LPS (default: where the direction of --like meets the skin)')
    fit.add_argument('--markups', type=Path, metavar='FILE',
                     help='.mrk.json or .fcsv of 3D Slicer with points "target" and "entry"')
    fit.add_argument('--space', choices=('LPS', 'RAS'), help='axes of markups that do not say')
    fit.add_argument('--avoid', nargs='*', default=[], metavar='NAME=MM',
                     help='structures of this patient to keep away from, and how far')
    fit.add_argument('--output', type=Path, required=True, help='YAML file of the procedure')


def run(arguments: argparse.Namespace) -> int:
    """Import a patient, or put a procedure into one."""
    return {'import': _import, 'procedure': _procedure}[arguments.action](arguments)


def _import(arguments: argparse.Namespace) -> int:
    rules_file = Path(arguments.rules)
    if rules_file.suffix != '.yaml':
        rules_file = resource(RULES) / f'{arguments.rules}.yaml'
    rules = imported.read_rules(rules_file)
    ct = read_volume(arguments.ct, arguments.series)
    labels = read_volume(arguments.labels)
    if arguments.centre is None:
        centre = imported.centre_of(labels, rules, tuple(arguments.around))
    else:
        centre = np.array(arguments.centre) * 1e-3
    width, depth, height = (1e-3 * value for value in arguments.size)
    made = imported.import_patient(ct, labels, rules, centre, (width, depth, height),
                                   1e-3 * arguments.spacing, arguments.output.name)
    path = imported.save_imported(arguments.output, made, {
        'ct': str(arguments.ct), 'labels': str(arguments.labels), 'rules': str(arguments.rules)})
    first = 1e3 * made.grid.origin
    last = first + 1e3 * made.grid.spacing * (np.array(made.grid.shape[::-1]) - 1)
    print(f'{path}: fine voxels from {np.round(first).tolist()} to {np.round(last).tolist()} mm '
          f'(LPS), structures: {", ".join(sorted(made.solids))}')
    print(f'next: hybrid-guidance patient procedure {path} --target X Y Z --output FILE.yaml')
    return 0


def _procedure(arguments: argparse.Namespace) -> int:
    target, entry = _points(arguments)
    found = build_patient(str(arguments.patient), 0)
    like = load_procedure(arguments.like)
    procedure = placed(like, found.structures, target, entry)
    avoid = {name: float(value) * 1e-3 for name, _, value in
             (text.partition('=') for text in arguments.avoid)}
    for name in avoid:
        found.distance(name, target)
    left_out = [name for name in like.avoid if name not in found.structures]
    procedure = replace(
        procedure, name=arguments.output.stem, region=str(arguments.patient.resolve()),
        summary=f'As {like.name}, in a patient made of a CT.',
        avoid={name: margin for name, margin in like.avoid.items() if name not in left_out}
        | avoid)
    procedure = settled_exposure(procedure, like, found)
    save_procedure(arguments.output, procedure)
    reach = examine(procedure, found.structures)
    print(f'{arguments.output}: entry {np.round(1e3 * procedure.entry, 1).tolist()} mm, '
          f'{1e3 * procedure.path_length:.1f} mm to the target; bone {1e3 * reach.bone:.1f} mm '
          f'from the path, {100 * reach.seen:.0f} % of its end in the slice and unshadowed')
    for name, margin in reach.margins.items():
        if margin < 0.0:
            print(f'the path is {-1e3 * margin:.1f} mm too near to {name}')
    if left_out:
        print(f'this patient has no {", ".join(left_out)}: not kept away from; see --avoid')
    return 0


def _points(arguments: argparse.Namespace) -> tuple[Points, Points | None]:
    points = {name: np.array(value) * 1e-3 for name, value in
              (('target', arguments.target), ('entry', arguments.entry)) if value is not None}
    if arguments.markups:
        points = {**read_markups(arguments.markups, arguments.space), **points}
    if 'target' not in points:
        raise AnatomyError('no target; give --target X Y Z in mm (LPS), or --markups with a point '
                           '"target"')
    return points['target'], points.get('entry')
