"""``hybrid-guidance register``: where the patient of a CT lies, from files, without a graph."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

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
from hybrid_guidance.imaging.volume import read_volume
from hybrid_guidance.planning.files import read_markups
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.registration import picture
from hybrid_guidance.registration.points import register_pairs, register_sets
from hybrid_guidance.registration.projection import (
    Bone,
    ProjectionRegistration,
    View,
    aligned,
    register_views,
    shadow,
)
from hybrid_guidance.registration.result import Registration, RegistrationError
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import procedure_needle, standard_views, xray_renderer
from hybrid_guidance.simulation.scanner import scanned

# How much larger than its labels a masked bone is, metres: gradients need its edge.
_ROUND = 0.004


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    kinds = parser.add_subparsers(dest='kind', required=True)
    xray = kinds.add_parser('xray', help='one or two X-rays on a CT')
    xray.add_argument('job', type=Path, nargs='?', help=(
        'YAML file of X-rays, start and target (see docs/registration.md); a simulated patient '
        'where none is given'))
    xray.add_argument('--ct', type=Path, help='.nii, .nii.gz, .nrrd or folder of DICOM slices')
    xray.add_argument('--labels', type=Path, help='label map of the same patient')
    xray.add_argument('--label', action='append', default=[], type=int, metavar='NUMBER',
                      help='only this bone of the label map counts; may be repeated')
    xray.add_argument('--seed', type=int, default=1, help='of the simulated patient')
    points = kinds.add_parser('points', help='fiducials in the CT on fiducials in the room')
    points.add_argument('moving', type=Path, help='.mrk.json or .fcsv of 3D Slicer, in the CT')
    points.add_argument('fixed', type=Path, help='the same, as measured in the room')
    points.add_argument('--sigma', type=float, default=0.5, metavar='MM',
                        help='deviation per axis of a point against its partner')
    points.add_argument('--target', type=float, nargs=3, metavar=('X', 'Y', 'Z'), required=True,
                        help='LPS mm in the CT: where the error counts')
    points.add_argument('--space', choices=('LPS', 'RAS'), help='axes of files that do not say')
    for each in (xray, points):
        each.add_argument('--output', type=Path, default=Path('register-output'),
                          help='folder for the report and pictures')


def run(arguments: argparse.Namespace) -> int:
    """Register, print the verdict, write the report; exit status 1 where it is refused."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = (_by_xray if arguments.kind == 'xray' else _by_points)(arguments)
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
                   'disagreement': found.disagreement, 'misfit': found.misfit}
    return report


def _by_points(arguments: argparse.Namespace) -> Registration:
    """By name where both files name their points alike, else by their distances."""
    moving, fixed = (read_markups(path, arguments.space)
                     for path in (arguments.moving, arguments.fixed))
    target, sigma = 1e-3 * np.array(arguments.target), 1e-3 * arguments.sigma
    common = [name for name in moving if name in fixed]
    if len(common) >= 3:
        return register_pairs(np.array([moving[name] for name in common]),
                              np.array([fixed[name] for name in common]), sigma, target)
    return register_sets(np.array(list(moving.values())), np.array(list(fixed.values())), sigma,
                         target)


def _by_xray(arguments: argparse.Namespace) -> Registration:
    bone, views, start, target = (_simulated(arguments.seed) if arguments.job is None
                                  else _job(arguments))
    found = register_views(views, bone, start, target)
    colour = picture.RIGHT if found.accepted else picture.REFUSED
    for number, view in enumerate(views, start=1):
        both = [picture.over(bone, view, start, picture.START, 'start'),
                picture.over(bone, view, found.transform, colour,
                             'accepted' if found.accepted else 'REFUSED')]
        path = arguments.output / f'xray{number}.png'
        if not cv2.imwrite(str(path), np.hstack(both)[..., ::-1]):
            raise OSError(f'{path} cannot be written; name another folder')
    return found


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
    random = np.random.default_rng([seed, 0x3E6])
    axes = random.normal(size=(2, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turn = rotation_from_vector(np.radians(8.0) * axes[0])
    start = transform(turn, procedure.target - turn @ procedure.target + 0.015 * axes[1])
    return (Bone.from_hounsfield(ct.volume, ct.origin, ct.spacing), views, start,
            procedure.target)


def _job(arguments: argparse.Namespace) -> _Task:
    if arguments.ct is None:
        raise RegistrationError('no CT; name it with --ct')
    try:
        content = yaml.safe_load(arguments.job.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise RegistrationError(f'{arguments.job}: cannot be read as YAML ({error})') from error
    if not isinstance(content, dict) or not isinstance(content.get('views'), list):
        raise RegistrationError(f'{arguments.job}: has no list "views"; see docs/registration.md')
    target = _numbers(content, 'target', (3,), arguments.job)
    start = (_pose(content, 'fixed_T_moving', arguments.job)
             if 'fixed_T_moving' in content else np.eye(4))
    views = [_view(each, arguments.job) for each in content['views']]
    return _bone(arguments, target), views, start, target


def _bone(arguments: argparse.Namespace, target: Points) -> Bone:
    """Return the bone of a CT, of some labels, or within 110 mm of the target."""
    values, origin, spacing = aligned(read_volume(arguments.ct))
    mask = None
    if arguments.label:
        if arguments.labels is None:
            raise RegistrationError('--label needs the label map; name it with --labels')
        labels, place, _ = aligned(read_volume(arguments.labels))
        if labels.shape != values.shape or not np.allclose(place, origin, atol=1e-4):
            raise RegistrationError(f'{arguments.labels}: is on another grid than {arguments.ct}; '
                                    'resample it to that of the CT')
        mask = _grown(np.isin(labels, arguments.label), spacing)
    size = np.array(values.shape[::-1])
    first, last = (np.clip(np.rint((target + side * 0.11 - origin) / spacing), 0, size).astype(int)
                   for side in (-1, 1))
    part = tuple(slice(*ends) for ends in zip(first[::-1], last[::-1], strict=True))
    if 0 in values[part].shape:
        raise RegistrationError(f'{arguments.ct}: does not hold the target '
                                f'{np.round(1e3 * target, 1).tolist()} mm (LPS)')
    return Bone.from_hounsfield(values[part], origin + first * spacing, spacing,
                                None if mask is None else mask[part])


def _grown(mask: NDArray[np.bool_], spacing: Array) -> NDArray[np.bool_]:
    distance = distance_transform_edt(~mask, sampling=tuple(spacing[::-1]))
    return np.asarray(distance < _ROUND)


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
