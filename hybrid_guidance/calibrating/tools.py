"""``calibrate pivot``, ``phantom`` and ``hand-eye``: poses of tools."""

import argparse
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from hybrid_guidance.calibrating.common import (
    MM,
    Outcome,
    dates,
    error_panels,
    files,
    frames,
    made_by,
    positive,
    track_in,
)
from hybrid_guidance.calibration import chart
from hybrid_guidance.calibration import file as calibration_file
from hybrid_guidance.calibration.chart import Panel, Series
from hybrid_guidance.calibration.file import KINDS, Calibration, CalibrationError
from hybrid_guidance.calibration.hand_eye import calibrate_hand_eye
from hybrid_guidance.calibration.pivot import (
    PivotCalibration,
    calibrate_pivot,
    pointer_covariance,
    pointer_pose,
    register_phantom,
)
from hybrid_guidance.calibration.plus_phantom import (
    read_landmarks,
    read_transform,
)
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array


def add_pivot(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``pivot``."""
    files(parser, recording='poses of a pointer turning about its tip (sequence or bag)')
    parser.add_argument('--second', type=Path, metavar='FILE',
                        help='the same about another place of its shaft: gives the axis')
    frames(parser, marker='Stylus', reference='Reference')


def pivot(arguments: argparse.Namespace) -> Outcome:
    """Find the tip of a pointer."""
    found = _pivoted(arguments.recording, arguments)
    second = None if arguments.second is None else _pivoted(arguments.second, arguments)
    parent, child = KINDS['pivot']
    entry = Calibration(
        'pivot', parent, child, pointer_pose(found.tip, None if second is None else second.tip),
        pointer_covariance(found, second),
        'pivot' + (', axis by a second pivot' if second else ', axis taken through the marker'),
        *dates(arguments), samples=found.samples, inliers=found.inliers,
        residual=float(np.sqrt(np.mean(found.errors**2))), held_out_error=found.held_out,
        made_by=made_by(arguments))
    lines = (
        f'tip in the marker {np.round(found.tip * MM, 3).tolist()} mm, standard deviation '
        f'{np.round(np.sqrt(np.diag(found.covariance)) * MM, 3).tolist()} mm',
        f'{found.inliers} of {found.samples} poses agree; rms {entry.residual or 0.0:.6f} m, '
        f'held out {found.held_out * MM:.3f} mm',
        entry.method)
    return Outcome(entry, lines, error_panels('Distance of the tip from the pivot', found.errors))


def _pivoted(path: Path, arguments: argparse.Namespace) -> PivotCalibration:
    return calibrate_pivot(track_in(path, arguments.reference, arguments.marker).poses)


def add_phantom(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``phantom``."""
    files(parser, recording='poses of a pointer that touches the landmarks in their order')
    parser.add_argument('--phantom', type=Path, required=True, metavar='FILE',
                        help='PLUS device set with the landmarks')
    parser.add_argument('--tip', type=Path, metavar='FILE',
                        help='calibration file with the entry "pivot", or a PLUS file with '
                             'StylusTip to Stylus (default: that of --phantom)')
    parser.add_argument('--keep-tip', action='store_true',
                        help='do not adjust the tip, even where the landmarks say so')
    frames(parser, marker='Stylus', reference='Reference')


def phantom(arguments: argparse.Namespace) -> Outcome:
    """Find where a phantom is."""
    names, landmarks = read_landmarks(arguments.phantom)
    tip = _tip(arguments)
    track = track_in(arguments.recording, arguments.reference, arguments.marker)
    found = register_phantom(track, tip, landmarks, refine=False if arguments.keep_tip else None)
    parent, child = KINDS['phantom']
    entry = Calibration(
        'phantom', parent, child, found.transform, found.covariance,
        'landmarks touched with a pointer' + (', its tip adjusted' if found.refined else ''),
        *dates(arguments), samples=len(landmarks), inliers=len(landmarks),
        residual=float(found.errors.mean()), held_out_error=found.held_out,
        made_by=made_by(arguments))
    moved = float(np.linalg.norm(found.tip - tip)) * MM
    lines = (
        f'{len(landmarks)} landmarks: mean error {found.errors.mean() * MM:.3f} mm, '
        f'largest {found.errors.max() * MM:.3f} mm, each left out {found.held_out * MM:.3f} mm',
        *(f'  {name}: {error * MM:.3f} mm'
          for name, error in zip(names, found.errors, strict=True)),
        f'tip adjusted by {moved:.2f} mm: the landmarks left out are predicted better'
        if found.refined else 'tip as given')
    off = (rigid.transform_points(rigid.inverse(found.transform), found.touched)
           - landmarks) * MM
    number = np.arange(1.0, len(off) + 1)
    return Outcome(entry, lines, (
        Panel('Touched less given, along the axes of the phantom', 'landmark', 'mm', tuple(
            Series(number, off[:, axis], name, colour) for axis, (name, colour) in enumerate(
                zip('xyz', (chart.BLUE, chart.ORANGE, chart.GREEN), strict=True)))),
        Panel('Distance', 'landmark', 'mm', (Series(number, found.errors * MM),))))


def _tip(arguments: argparse.Namespace) -> Array:
    path = arguments.tip or arguments.phantom
    if path.suffix.lower() == '.xml':
        return read_transform(path, 'StylusTip', arguments.marker)[:3, 3]
    for item in calibration_file.load(path, datetime.now(timezone.utc)):
        if item.kind == 'pivot':
            return item.transform[:3, 3]
    raise CalibrationError(f'{path}: has no entry "pivot"; make it with '
                           '"hybrid-guidance calibrate pivot"')


def add_hand_eye(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hand-eye``."""
    files(parser, recording='poses of a robot whose sensor sees a fixed target (sequence or bag)')
    parser.add_argument('--every', type=positive, default=0.5, metavar='S',
                        help='seconds between the poses taken (default: %(default)g)')
    frames(parser, base='Base', flange='Flange', eye='Eye', target='Target')


def hand_eye(arguments: argparse.Namespace) -> Outcome:
    """Find where a sensor or marker is on a flange."""
    hand = track_in(arguments.recording, arguments.base, arguments.flange)
    seen = track_in(arguments.recording, arguments.eye, arguments.target)
    times = np.arange(max(hand.times[0], seen.times[0]), min(hand.times[-1], seen.times[-1]),
                      max(arguments.every, 1e-3))
    hands, first = hand.at(times)
    views, second = seen.at(times)
    good = first & second
    found = calibrate_hand_eye(hands[good], views[good])
    parent, child = KINDS['hand-eye']
    entry = Calibration(
        'hand-eye', parent, child, found.transform, found.covariance, found.method,
        *dates(arguments), samples=found.samples, inliers=found.inliers,
        residual=float(found.errors.mean()), held_out_error=found.held_out,
        made_by=made_by(arguments))
    lines = (
        f'{found.inliers} of {found.samples} poses agree; best of {len(found.ranking)} solvers: '
        f'{found.method}',
        f'held out: {found.held_out * MM:.3f} mm, {np.rad2deg(found.held_out_angle):.3f}°',
        *(f'  {name}: {error * MM:.3f} mm'
          for name, error in sorted(found.ranking.items(), key=lambda one: one[1])))
    return Outcome(entry, lines, error_panels(
        'Distance of the target from its mean', found.errors))
