"""``hybrid-guidance register``: where the patient of a CT lies, from files, without a graph."""

import argparse
import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from hybrid_guidance.calibration.file import load, load_delays, update
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    is_rigid,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.planning.files import read_markups
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration import picture
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.ct import REACH, Scan, read_scan
from hybrid_guidance.registration.entry import entry_of
from hybrid_guidance.registration.points import (
    Sight,
    register_pairs,
    register_sets,
    triangulate_all,
)
from hybrid_guidance.registration.projection import ProjectionRegistration, register_views
from hybrid_guidance.registration.result import Registration, RegistrationError
from hybrid_guidance.registration.surface import (
    Glimpse,
    SurfaceRegistration,
    register_surface,
    swept,
)
from hybrid_guidance.registration.view import View, shadow
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import procedure_needle, standard_views, xray_renderer
from hybrid_guidance.simulation.scanner import scanned
from hybrid_guidance.sweep import Names, read_sweep, simulated_sweep


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    kinds = parser.add_subparsers(dest='kind', required=True)
    xray = kinds.add_parser('xray', help='one or two X-rays on a CT')
    xray.add_argument('job', type=Path, nargs='?', help=(
        'YAML file of X-rays, start and target (see docs/registration.md); a simulated patient '
        'where none is given'))
    _add_ct(xray)
    points = kinds.add_parser('points', help='fiducials in the CT on fiducials in the room')
    points.add_argument('moving', type=Path, help='.mrk.json or .fcsv of 3D Slicer, in the CT')
    points.add_argument('fixed', type=Path, help=(
        'the same, as measured in the room; or YAML file of two or more X-rays with their markers '
        '(see docs/registration.md), which are triangulated'))
    points.add_argument('--sigma', type=float, default=0.5, metavar='MM',
                        help='deviation per axis of a point against its partner')
    points.add_argument('--target', type=float, nargs=3, metavar=('X', 'Y', 'Z'), required=True,
                        help='LPS mm in the CT: where the error counts')
    points.add_argument('--space', choices=('LPS', 'RAS'), help='axes of files that do not say')
    surface = kinds.add_parser('surface', help='a sweep of tracked ultrasound on a CT')
    _add_surface(surface)
    for each in (xray, points, surface):
        each.add_argument('--output', type=Path, default=Path('register-output'),
                          help='folder for the report and pictures')


def _add_ct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--ct', type=Path, help='.nii, .nii.gz, .nrrd or folder of DICOM slices')
    parser.add_argument('--labels', type=Path, help='label map of the same patient')
    parser.add_argument('--label', action='append', default=[], type=int, metavar='NUMBER',
                        help='only this bone of the label map counts; may be repeated')
    parser.add_argument('--seed', type=int, default=1, help='of the simulated patient')


def _add_surface(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('sweep', type=Path, nargs='?', help=(
        'rosbag2 recording of ultrasound and /tf, or PLUS/IGSIO sequence; a simulated patient '
        'where none is given'))
    _add_ct(parser)
    parser.add_argument('--target', type=float, nargs=3, metavar=('X', 'Y', 'Z'),
                        help='LPS mm in the CT: where the error counts')
    parser.add_argument('--calibration', type=Path, metavar='FILE', help=(
        'calibration file with the probe, and with the patient as the start, if it has it'))
    parser.add_argument('--start', type=Path, metavar='FILE', help=(
        'YAML with fixed_T_moving, 4x4, metres: where the CT is to within 10 mm and 8 degrees'))
    parser.add_argument('--write', type=Path, metavar='FILE', help=(
        'calibration file that gets the patient where the registration is accepted'))
    parser.add_argument('--valid-for', type=float, default=12.0, metavar='HOURS',
                        help='until it expires (default: %(default)g)')
    for name, default in (('fixed', 'world'), ('probe', 'ultrasound_probe')):
        parser.add_argument(f'--{name}', default=default, metavar='FRAME', help=(
            'name of that frame in the recording (default: %(default)s)'))


def run(arguments: argparse.Namespace) -> int:
    """Register, print the verdict, write the report; exit status 1 where it is refused."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = {'xray': _by_xray, 'points': _by_points, 'surface': _by_surface}[arguments.kind](
        arguments)
    report = arguments.output / 'registration.json'
    report.write_text(json.dumps(_report(found), indent=2) + '\n', encoding='utf-8')
    print(found.verdict)
    print(f'{report.name} and pictures are in {arguments.output}')
    return 0 if found.accepted else 1


def _report(found: Registration) -> dict[str, Any]:
    """Return what is known of a registration, metres and radians."""
    report = {'accepted': found.accepted, 'verdict': found.verdict,
              'fixed_T_moving': found.transform.tolist(), 'covariance': found.covariance.tolist(),
              'target': found.target.tolist(), 'expected_target_error': found.target_error,
              'probability': found.probability, 'cost': found.cost}
    if isinstance(found, ProjectionRegistration):
        report |= {'likeness': list(found.likeness), 'rival': found.rival,
                   'disagreement': found.disagreement, 'misfit': found.misfit,
                   'slack': found.slack, 'across_only': found.across_only}
    if isinstance(found, SurfaceRegistration):
        report |= {'points': found.count, 'fitting': found.fitting, 'rival': min(found.rival, 1e9),
                   'residual': found.residual, 'least_known_along': found.free.tolist()}
    return report


def _by_points(arguments: argparse.Namespace) -> Registration:
    """By name where both files name their points alike, else by their distances."""
    moving = read_markups(arguments.moving, arguments.space)
    target, sigma = 1e-3 * np.array(arguments.target), 1e-3 * arguments.sigma
    if arguments.fixed.suffix in ('.yaml', '.yml'):
        return register_sets(np.array(list(moving.values())), _markers(arguments.fixed), sigma,
                             target)
    fixed = read_markups(arguments.fixed, arguments.space)
    common = [name for name in moving if name in fixed]
    if len(common) >= 3:
        return register_pairs(np.array([moving[name] for name in common]),
                              np.array([fixed[name] for name in common]), sigma, target)
    return register_sets(np.array(list(moving.values())), np.array(list(fixed.values())), sigma,
                         target)


def _markers(job: Path) -> Points:
    """Return what the markers in the X-rays of a job triangulate to, (N, 3) metres in ``fixed``."""
    sights = []
    for entry in _views(_content(job), job):
        view = _view(entry, job)
        sights.append([Sight(view.projection, view.fixed_T_sensor, np.array(marker[:2], float))
                       for marker in entry.get('markers', [])])
    return triangulate_all(sights)


def _by_xray(arguments: argparse.Namespace) -> Registration:
    bone, views, start, target = (_simulated(arguments.seed) if arguments.job is None
                                  else _job(arguments))
    found = register_views(views, bone, start, target)
    colour = picture.RIGHT if found.holds else picture.REFUSED
    word = 'accepted' if found.accepted else 'ACROSS ITS RAYS ONLY' if found.holds else 'REFUSED'
    for number, view in enumerate(views, start=1):
        both = [picture.over(bone, view, start, picture.START, 'start'),
                picture.over(bone, view, found.transform, colour, word)]
        path = arguments.output / f'xray{number}.png'
        if not cv2.imwrite(str(path), np.hstack(both)[..., ::-1]):
            raise OSError(f'{path} cannot be written; name another folder')
    return found


def _by_surface(arguments: argparse.Namespace) -> Registration:
    glimpses, scan, start, target = (_simulated_sweep(arguments.seed) if arguments.sweep is None
                                     else _recorded_sweep(arguments))
    cloud, bone = swept(glimpses), scan.surface()
    found = register_surface(cloud, bone, start, target)
    path = arguments.output / 'surface.png'
    drawn = picture.slices(scan, bone, cloud, start, found)
    if not cv2.imwrite(str(path), drawn[..., ::-1]):
        raise OSError(f'{path} cannot be written; name another folder')
    if arguments.write is not None and found.accepted:
        now = datetime.now(timezone.utc).replace(microsecond=0)
        update(arguments.write, entry_of(found, now, now + timedelta(hours=arguments.valid_for)))
        print(f'the patient is in {arguments.write}')
    return found


def _simulated_sweep(seed: int) -> tuple[list[Glimpse], Scan, Transform, Points]:
    """Return the sweep over a simulated patient, its CT, and a start 7 mm and 5 degrees off."""
    procedure = load_procedure('lumbar_facet_injection')
    patient = build_patient(procedure.region, seed, procedure.target)
    ct = scanned(patient, seed)
    return (simulated_sweep(procedure, patient, seed),
            Scan(ct.volume, ct.origin, ct.spacing).near(procedure.target, REACH),
            _start_beside(procedure.target, seed, 0.007, 5.0), procedure.target)


def _recorded_sweep(arguments: argparse.Namespace) -> tuple[
        list[Glimpse], Scan, Transform, Points]:
    if arguments.calibration is None or arguments.target is None:
        raise RegistrationError('a recorded sweep needs --calibration FILE and --target X Y Z')
    target = 1e-3 * np.array(arguments.target)
    scan = _scan(arguments, target, REACH)
    now = datetime.now(timezone.utc)
    known = {item.child: item for item in load(arguments.calibration, now)}
    if 'ultrasound_image' not in known:
        raise RegistrationError(f'{arguments.calibration}: has no calibration of kind '
                                'ultrasound-spatial; run "hybrid-guidance calibrate"')
    delay = load_delays(arguments.calibration, now).get('ultrasound')
    glimpses = read_sweep(arguments.sweep, known['ultrasound_image'],
                          0.0 if delay is None else delay.delay,
                          Names(arguments.fixed, arguments.probe))
    if arguments.start is not None:
        start = _pose(_content(arguments.start), 'fixed_T_moving', arguments.start)
    elif 'patient' in known:
        start = known['patient'].transform
    else:
        raise RegistrationError('nothing says where the CT is, coarsely; name --start FILE')
    return glimpses, scan, start, target


_Task = tuple[Bone, list[View], Transform, Points]


def _simulated(seed: int) -> _Task:
    """Return two X-rays and the CT of a simulated patient, and a start 15 mm and 8 degrees off."""
    procedure = load_procedure('lumbar_facet_injection')
    patient, needle = build_patient(procedure.region, seed, procedure.target), procedure_needle(
        procedure)
    ct = scanned(patient, seed)
    views = []
    for name in ('fluoroscopy_ap', 'fluoroscopy_lateral'):
        own = standard_views(procedure)[name]
        pose, projection = own.patient_T_fluoroscopy(), own.fluoroscopy_projection()
        line = projection.pixels(transform_points(inverse(pose), needle.shaft))
        views.append(View(xray_renderer(own, patient, seed).render(pose, (needle,)), projection,
                          pose, shadow((projection.width, projection.height), [line], 40.0)))
    start = _start_beside(procedure.target, seed, 0.015, 8.0)
    return Scan(ct.volume, ct.origin, ct.spacing).bone(), views, start, procedure.target


def _start_beside(target: Points, seed: int, shift: float, turn_deg: float) -> Transform:
    """Return a pose as far from the identity at the target, in a drawn direction."""
    axes = np.random.default_rng([seed, 0x3E6]).normal(size=(2, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turn = rotation_from_vector(np.radians(turn_deg) * axes[0])
    return transform(turn, target - turn @ target + shift * axes[1])


def _scan(arguments: argparse.Namespace, target: Points, reach: float | Array) -> Scan:
    """Return the CT of the command line about the target."""
    if arguments.ct is None:
        raise RegistrationError('no CT; name it with --ct')
    return read_scan(arguments.ct, arguments.labels, arguments.label).near(target, reach)


def _job(arguments: argparse.Namespace) -> _Task:
    content = _content(arguments.job)
    target = _numbers(content, 'target', (3,), arguments.job)
    start = (_pose(content, 'fixed_T_moving', arguments.job)
             if 'fixed_T_moving' in content else np.eye(4))
    views = [_view(each, arguments.job) for each in _views(content, arguments.job)]
    return _scan(arguments, target, 0.11).bone(), views, start, target


def _content(path: Path) -> dict[str, Any]:
    """Read a YAML mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise RegistrationError(f'{path}: cannot be read as YAML ({error})') from error
    if not isinstance(content, dict):
        raise RegistrationError(f'{path}: holds no names and values; see docs/registration.md')
    return content


def _views(content: Mapping[str, Any], job: Path) -> list[Any]:
    """Return the entries of X-rays in a job."""
    if not isinstance(content.get('views'), list):
        raise RegistrationError(f'{job}: has no list "views"; see docs/registration.md')
    return list(content['views'])


def _view(entry: Mapping[str, Any], job: Path) -> View:
    """Read one X-ray: a DICOM file, or a 16-bit picture of counts and its geometry."""
    if not isinstance(entry, dict) or 'image' not in entry:
        raise RegistrationError(f'{job}: a view has no "image"; name its file')
    path = job.parent / str(entry['image'])
    projection = None
    if path.suffix.lower() in ('.png', '.tif', '.tiff'):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 2 or image.dtype != np.uint16:
            raise RegistrationError(f'{path}: is no grey picture of 16 bit; export detector counts')
    else:
        recording = open_dicom(path, 'fluoroscopy')
        image, projection = recording[int(entry.get('frame', 0))].pixels, recording.projection
    size = (image.shape[1], image.shape[0])
    if 'focal' in entry:
        focal = _numbers(entry, 'focal', (2,), job)
        centre = (_numbers(entry, 'centre', (2,), job) if 'centre' in entry
                  else (np.array(size) - 1.0) / 2.0)
        projection = Projection.perspective((focal[0], focal[1]), (centre[0], centre[1]), size)
    if projection is None or not projection.is_calibrated:
        raise RegistrationError(f'{path}: nothing says where its rays go; give its "focal" length '
                                f'in pixels (and "centre") in {job}')
    lines = [np.array(line, dtype=float) for line in entry.get('needles', [])]
    discs = [np.array(disc, dtype=float) for disc in entry.get('markers', [])]
    return View(image, projection, _pose(entry, 'fixed_T_source', job),
                shadow(size, lines, 0.03 * size[0], discs) if lines or discs else None)


def _numbers(entry: Mapping[str, Any], key: str, shape: tuple[int, ...], job: Path) -> Array:
    try:
        values = np.array(entry.get(key), dtype=float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != shape or not np.isfinite(values).all():
        raise RegistrationError(f'{job}: "{key}" must be {" x ".join(map(str, shape))} numbers; '
                                f'got {entry.get(key)!r}')
    return values


def _pose(entry: Mapping[str, Any], key: str, job: Path) -> Transform:
    values = _numbers(entry, key, (4, 4), job)
    if not is_rigid(values, 1e-4):
        raise RegistrationError(f'{job}: "{key}" is no rigid transform (metres); correct it')
    return values
