"""``hybrid-guidance plan``: the safest ways from an entry window to a target, without a graph."""

import argparse
from dataclasses import replace
from pathlib import Path

import cv2

from hybrid_guidance.geometry.types import Points
from hybrid_guidance.planning import picture
from hybrid_guidance.planning.anatomy_file import AnatomyFiles, sources_of
from hybrid_guidance.planning.anatomy_map import AnatomyMap, MapError, Source, build_map
from hybrid_guidance.planning.candidates import Candidates, Task, search
from hybrid_guidance.planning.choice import choose, table
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.files import PlanningFileError, read_markups
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.planning.plan_file import Plan, save
from hybrid_guidance.procedure import Procedure, load_procedure
from hybrid_guidance.simulation.shapes import Shape

# How much more of the patient pictures show than the paths need, and how finely, m.
_ROUND, _ROUND_SPACING = 0.015, 0.001
ERRORS = (PlanError, PlanningFileError, MapError)


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument('--procedure', default='lumbar_facet_injection')
    parser.add_argument('--seed', type=int, default=1, help='of the simulated patient')
    parser.add_argument('--output', type=Path, default=Path('plan-output'),
                        help='folder for plan.yaml and the pictures')
    parser.add_argument('--count', type=int, default=5, help='how many paths to offer')
    parser.add_argument('--sigmas', type=float, default=2.0,
                        help='k: deviations taken off each distance')
    parser.add_argument('--tip-sigma', type=float, metavar='MM', default=Doubt.tip * 1e3,
                        help='expected deviation of the tip')
    parser.add_argument('--registration-sigma', type=float, metavar='MM',
                        default=Doubt.registration * 1e3,
                        help='deviation of the registration at the target')
    parser.add_argument('--markups', type=Path, action='append', default=[], metavar='FILE',
                        help='.mrk.json or .fcsv of 3D Slicer with points "target" or "entry"')
    parser.add_argument('--labels', type=Path, metavar='FILE',
                        help='label map (.nii, .nii.gz, .nrrd) in place of the simulated patient')
    parser.add_argument('--structure', action='append', default=[], metavar='NAME=LABEL',
                        help='a structure of the label map; several labels with commas')
    parser.add_argument('--mesh', action='append', default=[], metavar='NAME=FILE',
                        help='a structure from a closed mesh in mm (.stl, .obj, .ply)')
    parser.add_argument('--anatomy', metavar='FILE',
                        help='.yaml that names label map, structures and meshes, as planner_node '
                             'takes it')
    parser.add_argument('--space', choices=('LPS', 'RAS'),
                        help='axes of markups and meshes that do not say')


def run(arguments: argparse.Namespace) -> int:
    """Plan, print the ranked paths, write plan and pictures."""
    procedure = _with_markups(load_procedure(arguments.procedure), arguments)
    doubt = Doubt(arguments.sigmas, arguments.tip_sigma * 1e-3,
                  arguments.registration_sigma * 1e-3)
    task = Task.of(procedure, doubt)
    sources, words = _sources(procedure, arguments)
    lower, upper = task.region()
    anatomy = build_map(sources, lower, upper, band=task.band)
    found = search(task, anatomy)
    paths = choose(found, arguments.count)
    print(f'{procedure.name}, {words}: {int(found.allowed.sum())} of {len(found.entries)} paths '
          f'keep every limit (k = {doubt.sigmas:g})')
    print(table(paths))
    write(arguments.output, Plan(procedure.name, words, doubt.sigmas, paths), task, found,
          build_map(sources, lower - _ROUND, upper + _ROUND, _ROUND_SPACING, task.band))
    print(f'plan.yaml and pictures are in {arguments.output}')
    return 0


def write(output: Path, made: Plan, task: Task, found: Candidates, round_: AnatomyMap) -> None:
    """Write ``plan.yaml``, ``window.png``, ``slices.png`` and ``scene.png`` into a folder.

    Args:
        output: the folder; made if missing.
        made: the plan.
        task: what it solves.
        found: all paths.
        round_: a map that shows more than the paths need.
    """
    output.mkdir(parents=True, exist_ok=True)
    save(output / 'plan.yaml', made)
    pictures = {'window': picture.window_picture(task, round_, found, made.paths),
                'slices': picture.slices_picture(task, round_, made.paths[0]),
                'scene': picture.scene_picture(task, round_, made.paths)}
    for name, pixels in pictures.items():
        if not cv2.imwrite(str(output / f'{name}.png'), pixels):
            raise OSError(f'{output / name}.png cannot be written; name another folder')


def _with_markups(procedure: Procedure, arguments: argparse.Namespace) -> Procedure:
    points: dict[str, Points] = {}
    for file in arguments.markups:
        read = read_markups(file, arguments.space)
        points |= {name: read[name] for name in ('target', 'entry') if name in read}
        if not {'target', 'entry'} & set(read):
            raise PlanningFileError(f'{file}: no point is named "target" or "entry"; there are '
                                    f'{", ".join(read)}; rename one')
    return replace(procedure, target=points.get('target', procedure.target),
                   entry=points.get('entry', procedure.entry))


def _sources(procedure: Procedure,
             arguments: argparse.Namespace) -> tuple[dict[str, Source | Shape], str]:
    """Return the structures that count, and where they are from, in words."""
    if arguments.anatomy and (arguments.labels or arguments.mesh):
        raise PlanningFileError('--anatomy names all files: leave --labels and --mesh out')
    if arguments.anatomy:
        return sources_of(arguments.anatomy, procedure, arguments.seed), arguments.anatomy
    if not arguments.labels and not arguments.mesh:
        return (sources_of('simulated', procedure, arguments.seed),
                f'simulated patient {arguments.seed}')
    files = AnatomyFiles(
        arguments.labels,
        {name: tuple(_whole(name, value) for value in values.split(','))
         for name, values in map(_pair, arguments.structure)},
        {name: Path(file) for name, file in map(_pair, arguments.mesh)}, arguments.space)
    words = ', '.join(str(file) for file in (arguments.labels, *arguments.mesh) if file)
    return files.sources(dict.fromkeys(('skin', 'bone', *procedure.avoid))), words


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition('=')
    if not equals or not name or not value:
        raise PlanningFileError(f'"{text}": write it as name=value')
    return name, value


def _whole(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise PlanningFileError(f'--structure {name}={text}: a label is a whole number')
    return int(text)

