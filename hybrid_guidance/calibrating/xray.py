"""``calibrate carm``, ``gantry`` and ``fluoroscopy-ultrasound``."""

import argparse
import warnings
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np

from hybrid_guidance.calibrating.common import (
    MM,
    Outcome,
    dates,
    files,
    made_by,
    positive,
)
from hybrid_guidance.calibration import chart
from hybrid_guidance.calibration import file as calibration_file
from hybrid_guidance.calibration.beads import find_beads, match_beads
from hybrid_guidance.calibration.carm import (
    BeadView,
    calibrate_carm,
    gantry_covariance,
    locate_probe,
)
from hybrid_guidance.calibration.chart import Panel, Series, histogram
from hybrid_guidance.calibration.file import KINDS, Calibration, CalibrationError
from hybrid_guidance.calibration.recorded import (
    is_bag,
    read_images,
)
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.covariance import of_point, relative
from hybrid_guidance.geometry.types import Array, Image
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.geometry import CameraGeometry

_MOST_VIEWS = 40
_PLAIN = ('.png', '.tif', '.tiff', '.jpg', '.jpeg', '.bmp')


def add_carm(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``carm``."""
    parser.add_argument('images', type=Path, nargs='+',
                        help='X-ray images of the bead phantom (DICOM, PNG, TIFF or bag)')
    _add_beads(parser, 'millimetres in the frame of the phantom')
    parser.add_argument('--focal', type=positive, required=True, metavar='PX', help=(
        'about: source to detector over pixel spacing'))


def _add_beads(parser: argparse.ArgumentParser, where: str) -> None:
    parser.add_argument('--beads', type=Path, required=True, metavar='FILE',
                        help=f'text file, x y z of one bead a line, {where}')
    parser.add_argument('--radius', type=positive, default=5.0, metavar='PX',
                        help='of the shadow of a bead (default: %(default)g)')


def _beads(path: Path) -> Array:
    try:
        with warnings.catch_warnings():
            # That there is nothing in it is said below.
            warnings.simplefilter('ignore')
            beads = np.loadtxt(path, ndmin=2, delimiter=',' if ',' in path.read_text() else None)
    except (OSError, ValueError) as error:
        raise CalibrationError(f'{path}: is not a list of beads ({error}); write x y z in '
                               'millimetres, one bead a line') from error
    if not beads.size or beads.shape[1] != 3 or not np.all(np.isfinite(beads)):
        what = f'{beads.shape[1]} numbers a line' if beads.size else 'holds no bead'
        raise CalibrationError(f'{path}: {what}; write x y z in millimetres, one bead a line')
    return np.asarray(beads * 1e-3)


def _xrays(path: Path, topic: str) -> list[Image]:
    """Return the images of a file; of a recording at most ``_MOST_VIEWS``, spread over it."""
    if is_bag(path):
        pictures = read_images(path, topic)
        chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), _MOST_VIEWS)).round()
        return [pictures.read(int(index)) for index in chosen]
    if path.suffix.lower() in _PLAIN:
        image = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise CalibrationError(f'{path}: is no image that can be read; check the path')
        return [np.asarray(image)]
    recording = open_dicom(path, 'fluoroscopy')
    return [recording[index].pixels for index in range(len(recording))]


def _bead_view(image: Image, path: Path, beads: Array, camera: Array, radius: float,
               distortion: Array | None = None) -> BeadView:
    spots = find_beads(image, radius)
    match = match_beads(spots, beads, camera, distortion=distortion,
                        tolerance=4.0 if distortion is not None else 10.0)
    if match is None:
        raise CalibrationError(
            f'{path}: {len(spots)} spots, and they do not fit the {len(beads)} beads; give '
            "--radius as the shadow's, check that beads are darker than what is around them "
            'and that at least six in ten are in the image')
    return BeadView(beads[match.beads], spots[match.spots])


def carm(arguments: argparse.Namespace) -> Outcome:
    """Find intrinsics and pose of a C-arm."""
    beads = _beads(arguments.beads)
    images = [(path, image) for path in arguments.images
              for image in _xrays(path, arguments.topic)]
    height, width = images[0][1].shape
    if any(image.shape != (height, width) for _, image in images):
        raise CalibrationError('the images differ in size; take all with one field of view')
    camera = np.array([[arguments.focal, 0.0, (width - 1) / 2.0],
                       [0.0, arguments.focal, (height - 1) / 2.0], [0.0, 0.0, 1.0]])
    views, left_out = [], 0
    for path, image in images:
        try:
            views.append(_bead_view(image, path, beads, camera, arguments.radius))
        except CalibrationError:
            # A recording goes on while the phantom is moved; a file was chosen.
            if not is_bag(path):
                raise
            left_out += 1
    found = calibrate_carm(views, (width, height), arguments.focal)
    parent, child = KINDS['carm']
    transform = rigid.inverse(found.poses[0])
    scale = float(found.poses[0][2, 3] / found.camera.focal[0])
    entry = Calibration(
        'carm', parent, child, transform, relative(
            found.poses[0], found.covariance, np.eye(4), np.zeros((6, 6))),
        'bead phantom, its frame in the first image taken for carm; distortion: ' + found.model,
        *dates(arguments), samples=found.samples, inliers=found.inliers,
        residual=float(np.sqrt(np.mean(found.errors**2))) * scale,
        held_out_error=found.held_out * scale, made_by=made_by(arguments), camera=found.camera)
    lines = (
        f'{len(views)} views, {found.inliers} of {found.samples} beads agree; {left_out} images '
        'left out, in which the beads were not found',
        f'focal length {found.camera.focal[0]:.1f} ± {found.focal_deviation:.1f} px, principal '
        f'point {found.camera.centre[0]:.1f}, {found.camera.centre[1]:.1f}, distortion '
        f'{found.model}',
        f'reprojection of beads used {np.sqrt(np.mean(found.errors**2)):.3f} px rms, held out '
        f'{found.held_out:.3f} px',
        f'carm <- fluoroscopy_optical_frame at {np.round(transform[:3, 3] * MM, 2).tolist()} mm: '
        'the frame of the phantom in the first image')
    pixels = np.concatenate([view.pixels for view in views])
    return Outcome(entry, lines, (
        Panel('Where the beads were seen', 'u (px)', 'v (px)', (
            Series(pixels[:, 0], pixels[:, 1]),), image=True),
        Panel('Reprojection', 'px', 'share (%)', (histogram(
            found.errors, '', chart.BLUE, float(found.errors.max())),))))


def add_gantry(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``gantry``."""
    parser.add_argument('--source-to-isocentre', type=float, required=True, metavar='MM',
                        help='distance, from the manual or the DICOM file')
    for name, default, unit, text in (
            ('angle', 0.5, 'DEG', 'of an angle on the console, and of the turn of the detector'),
            ('distance', 5.0, 'MM', 'of the distance from source to isocentre'),
            ('isocentre', 2.0, 'MM', 'of the point about which the beam turns')):
        parser.add_argument(f'--{name}-error', type=float, default=default, metavar=unit,
                            help=f'standard deviation {text} (default: %(default)g)')


def gantry(arguments: argparse.Namespace) -> Outcome:
    """Take a C-arm's own angles and distance at their word."""
    given = (arguments.source_to_isocentre, arguments.angle_error, arguments.distance_error,
             arguments.isocentre_error)
    if not (300.0 <= given[0] <= 2000.0 and all(0.0 < value < 100.0 for value in given[1:])):
        raise CalibrationError('a C-arm has 300 to 2000 mm from source to isocentre, and standard '
                               'deviations are above 0 and below 100 (degrees and millimetres)')
    distance, along, around = given[0] * 1e-3, given[2] * 1e-3, given[3] * 1e-3
    covariance = gantry_covariance(distance, float(np.deg2rad(given[1])), along, around)
    parent, child = KINDS['carm']
    entry = Calibration(
        'carm', parent, child, np.eye(4), covariance, 'angles and distance of the gantry taken at '
        'their word, nothing measured', *dates(arguments), samples=None, inliers=None,
        residual=None, held_out_error=None, made_by=made_by(arguments),
        camera=_known_camera(arguments.output))
    depth = np.linspace(-0.15, 0.15, 31)
    across = np.array([float(np.sqrt(of_point(
        np.eye(4), covariance, np.array([0.0, 0.0, distance + offset]))[0, 0]))
        for offset in depth])
    lines = (
        'carm <- fluoroscopy_optical_frame is nothing: carm is where the gantry says',
        f'intrinsics of {arguments.output} stay' if entry.camera else
        'intrinsics: of the images, or of source_to_detector and pixel_pitch',
        f'across the beam this is worth {across[15] * MM:.2f} mm at the isocentre and '
        f'{across[-1] * MM:.2f} mm 150 mm from it (standard deviation, as entered)',
        'nothing was measured')
    return Outcome(entry, lines, (
        Panel('What is entered means across the beam', 'from the isocentre (mm)', 'sd (mm)', (
            Series(depth * MM, across * MM, '', chart.BLUE, True),)),))


def _known_camera(path: Path) -> CameraGeometry | None:
    """Return the intrinsics that a calibration file has already."""
    if not path.exists():
        return None
    return next((item.camera for item in calibration_file.load(path, datetime.now(timezone.utc))
                 if item.camera is not None), None)


def add_probe(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fluoroscopy-ultrasound``."""
    files(parser, image=('X-ray image with the beads on the probe (DICOM, PNG, TIFF or bag): of '
                         'several the first in which they are found'))
    _add_beads(parser, 'millimetres in the frame of the probe')
    parser.add_argument('--camera', type=Path, metavar='FILE',
                        help='calibration file with the intrinsics (entry "carm"); DICOM images '
                             'that tell their own need none')
    parser.add_argument('--focal-error', type=float, default=0.5, metavar='%',
                        help='standard deviation of the focal length (default: %(default)g)')
    parser.add_argument('--centre-error', type=float, default=2.0, metavar='PX',
                        help='standard deviation of the principal point (default: %(default)g)')


def probe(arguments: argparse.Namespace) -> Outcome:
    """Find the probe in an X-ray image."""
    beads = _beads(arguments.beads)
    camera, distortion = _intrinsics(arguments)
    view = _first_view(arguments, beads, camera, distortion)
    deviation = arguments.focal_error * 0.01 * float(camera[0, 0])
    found = locate_probe(view, camera, distortion=distortion, focal_deviation=deviation,
                         centre_deviation=arguments.centre_error)
    scale = float(found.transform[2, 3] / camera[0, 0])
    parent, child = KINDS['fluoroscopy-ultrasound']
    entry = Calibration(
        'fluoroscopy-ultrasound', parent, child, found.transform, found.covariance,
        'beads of the probe in one X-ray image', *dates(arguments), samples=found.samples,
        inliers=found.inliers, residual=float(np.sqrt(np.mean(found.errors**2))) * scale,
        held_out_error=found.held_out * scale, made_by=made_by(arguments))
    sigma = np.sqrt(np.diag(found.covariance))
    lines = (
        f'{found.inliers} of {found.samples} beads agree, held out {found.held_out:.3f} px',
        f"probe at {np.round(found.transform[:3, 3] * MM, 2).tolist()} mm in the X-ray's frame; "
        f'standard deviation {sigma[0] * MM:.3f} and {sigma[1] * MM:.3f} mm across the beam, '
        f'{sigma[2] * MM:.2f} mm along it')
    return Outcome(entry, lines, (
        Panel('Beads of the probe', 'u (px)', 'v (px)', (
            Series(view.pixels[:, 0], view.pixels[:, 1]),), image=True),
        Panel('Reprojection', 'bead', 'px', (
            Series(np.arange(len(found.errors), dtype=float), found.errors),))))


def _first_view(arguments: argparse.Namespace, beads: Array, camera: Array,
                distortion: Array | None) -> BeadView:
    """Return the first image in which the beads are found."""
    images = _xrays(arguments.image, arguments.topic)
    for number, image in enumerate(images, start=1):
        try:
            return _bead_view(image, arguments.image, beads, camera, arguments.radius, distortion)
        except CalibrationError:
            if number == len(images):
                raise
    raise CalibrationError(f'{arguments.image}: holds no image; record while the C-arm exposes')


def _intrinsics(arguments: argparse.Namespace) -> tuple[Array, Array | None]:
    """Return (3, 3) intrinsics and (5,) distortion."""
    if arguments.camera is not None:
        for item in calibration_file.load(arguments.camera, datetime.now(timezone.utc)):
            if item.camera is not None:
                return (item.camera.projection().matrix[:, :3],
                        np.array(item.camera.distortion))
        raise CalibrationError(f'{arguments.camera}: has no intrinsics; make them with '
                               '"hybrid-guidance calibrate carm"')
    if arguments.image.suffix.lower() not in _PLAIN and not is_bag(arguments.image):
        projection = open_dicom(arguments.image, 'fluoroscopy').projection
        if projection.is_calibrated:
            return projection.matrix[:, :3], None
    raise CalibrationError(f'{arguments.image}: does not tell its intrinsics; give --camera, made '
                           'with "hybrid-guidance calibrate carm"')
