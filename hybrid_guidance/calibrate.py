"""``hybrid-guidance calibrate <kind>``: recordings in; a calibration, report and picture out."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from getpass import getuser
from pathlib import Path
from typing import Generic, TypeVar

import cv2
import numpy as np

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
from hybrid_guidance.calibration.file import KINDS, Calibration, CalibrationError, Delay
from hybrid_guidance.calibration.gates import require_held_out, require_samples
from hybrid_guidance.calibration.hand_eye import calibrate_hand_eye
from hybrid_guidance.calibration.pivot import (
    PivotCalibration,
    calibrate_pivot,
    pointer_covariance,
    pointer_pose,
    register_phantom,
)
from hybrid_guidance.calibration.plus_phantom import (
    read_face,
    read_landmarks,
    read_transform,
    read_wires,
)
from hybrid_guidance.calibration.recorded import (
    Pictures,
    is_bag,
    read_images,
    read_tf,
    track_of,
)
from hybrid_guidance.calibration.temporal import calibrate_delay, floor_depth
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.calibration.ultrasound_spatial import (
    PointViews,
    ProbeCalibration,
    WireViews,
    calibrate_point,
    calibrate_wires,
    point_errors,
    wire_errors,
)
from hybrid_guidance.calibration.wires import WirePhantom, find_spots, match_wires
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.covariance import of_point, relative
from hybrid_guidance.geometry.types import Array, Image, Transform
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.sequence import open_sequence

_MM = 1e3
_MOST_VIEWS = 40
_TARGETS = {'wires': 'N-wires', 'point': 'one fixed point'}

V = TypeVar('V', WireViews, PointViews)


@dataclass(frozen=True)
class Outcome:
    """What one command found.

    Attributes:
        entry: for the calibration file.
        lines: of the report.
        panels: of its picture.
    """

    entry: Calibration | Delay
    lines: tuple[str, ...]
    panels: tuple[Panel, ...]


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of calibration to the command line."""
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    for name, (add, _, text) in _KINDS.items():
        kind = kinds.add_parser(name, help=text, description=text)
        add(kind)
        if name in _LIVE:
            kind.add_argument('--record', type=float, metavar='SECONDS', help=(
                'record from the running graph first: every recording named that does not exist '
                'yet becomes a rosbag2 folder, then all is as with files'))
        if name in _LIVE and _LIVE[name].sensor:
            kind.add_argument('--topic', default=f'/{_LIVE[name].sensor}/image_raw', help=(
                'images, live and in a rosbag2 recording (default: %(default)s)'))
        kind.add_argument('--output', type=Path, default=Path('calibration.yaml'), metavar='FILE',
                          help='calibration file; other entries in it stay (default: %(default)s)')
        kind.add_argument('--valid-for', type=float, default=365.0, metavar='DAYS',
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


def _dates(arguments: argparse.Namespace) -> tuple[datetime, datetime]:
    """Return when the calibration was made and until when it may be used."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    if not 0.0 < arguments.valid_for <= 3650.0:
        raise CalibrationError(f'--valid-for {arguments.valid_for:g}: give between 0 and 3650 days')
    return now, now + timedelta(days=arguments.valid_for)


def _made_by(arguments: argparse.Namespace) -> str:
    try:
        who = getuser()
    except (KeyError, OSError):
        who = 'somebody'
    return f'{who}, hybrid-guidance calibrate {arguments.kind}'


def _files(parser: argparse.ArgumentParser, **meaning: str) -> None:
    for name, text in meaning.items():
        parser.add_argument(name, type=Path, help=text)


def _frames(parser: argparse.ArgumentParser, **names: str) -> None:
    for name, default in names.items():
        parser.add_argument(f'--{name.replace("_", "-")}', default=default, metavar='FRAME',
                            help='name of that frame in the recording (default: %(default)s)')


_sequence = lru_cache(maxsize=2)(open_sequence)


def _track(path: Path, parent: str, child: str) -> Track:
    """Return a track out of a sequence or a bag."""
    if is_bag(path):
        return read_tf(path, parent, child)
    return track_of(_sequence(path), path, parent, child)


def _pictures(path: Path, topic: str) -> Pictures:
    """Return the images of a sequence or a bag."""
    if is_bag(path):
        return read_images(path, topic)
    recording = _sequence(path)
    return Pictures(recording.start_time + np.array(recording.times),
                    lambda index: recording[index].pixels,
                    None if recording.numbers is None else np.array(recording.numbers))


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


# --- ultrasound-spatial

def _add_spatial(parser: argparse.ArgumentParser) -> None:
    _files(parser, recording=(
        'tracked images of an N-wire phantom, or of one point (sequence or bag)'))
    parser.add_argument('--target', choices=('wires', 'point'), default='wires', help=(
        'wires: N-wires; point: a point, bead or cross-wire that stands still in --reference '
        '(default: %(default)s)'))
    parser.add_argument('--phantom', type=Path, metavar='FILE',
                        help='PLUS device set with the wires and, unless --registration is given, '
                             'Phantom to Reference; needed for wires')
    parser.add_argument('--registration', type=Path, metavar='FILE',
                        help='calibration file with the entry "phantom"')
    parser.add_argument('--validation', type=Path, metavar='FILE',
                        help='second recording that is only predicted (of a point: one that has '
                             'not moved); without it every fourth part of the first is held out')
    parser.add_argument('--origin', type=float, nargs=2, metavar=('U', 'V'),
                        help='pixel of the mid transducer face (default: that of the device set, '
                             'else the top centre)')
    parser.add_argument('--spacing', type=float, nargs=2, metavar=('X', 'Y'),
                        help='mm per pixel, if known; solved otherwise')
    parser.add_argument('--no-delay', action='store_true', help=(
        'images and poses are in step, or were taken one by one standing still'))
    parser.add_argument('--limit', type=float, default=1.0, metavar='MM',
                        help='largest mean held-out error accepted (default: %(default)g)')
    _frames(parser, probe='Probe', reference='Reference')


@dataclass(frozen=True)
class _Target(Generic[V]):
    """How images of one kind of target are read, solved and judged.

    Attributes:
        name: of what is looked for in an image.
        look: path to the views in which it was found, and how many images there were.
        solve: views, origin, spacing and whether to solve the delay, to the calibration.
        errors: of views under a calibration, metres.
        typical: error of many, metres: of a point the median, because the brightest spot of an
            image is not always the point.
        panels: of the picture.
    """

    name: str
    look: Callable[[Path], tuple[V, int]]
    solve: Callable[..., ProbeCalibration]
    errors: Callable[[ProbeCalibration, V], Array]
    typical: Callable[[Array], float]
    panels: Callable[[ProbeCalibration, V, Array, Array], tuple[Panel, ...]]


def _spatial(arguments: argparse.Namespace) -> Outcome:
    if arguments.target == 'point':
        return _spatial_of(arguments, _Target(
            'the point', lambda path: _point_views(path, arguments), calibrate_point, point_errors,
            lambda errors: float(np.median(errors)), _point_panels))
    if arguments.phantom is None:
        raise CalibrationError('--phantom: name the description of the N-wires, or look at one '
                               'point with --target point')
    phantom, reference_T_phantom = read_wires(arguments.phantom), _registered(arguments)
    return _spatial_of(arguments, _Target(
        'all wires', lambda path: _wire_views(path, phantom, reference_T_phantom, arguments),
        calibrate_wires, wire_errors, lambda errors: float(errors.mean()), _wire_panels))


def _spatial_of(arguments: argparse.Namespace, target: '_Target[V]') -> Outcome:
    used, seen = target.look(arguments.recording)
    if arguments.validation is not None:
        held, held_seen = target.look(arguments.validation)
    else:
        part = np.arange(len(used)) * 16 // max(len(used), 1) % 4 == 3
        used, held, held_seen = used.subset(~part), used.subset(part), int(part.sum())
        seen -= held_seen
    spacing = None if arguments.spacing is None else (
        arguments.spacing[0] * 1e-3, arguments.spacing[1] * 1e-3)
    found = target.solve(used, _face(arguments), spacing=spacing,
                         solve_delay=not arguments.no_delay)
    require_samples(len(held), 5, f'held-out images in which {target.name} was found')
    residual, unseen = target.errors(found, used), target.errors(found, held)
    require_held_out(target.typical(unseen) * _MM, arguments.limit, 'mm', (
        'check that the target and the probe marker are tight, register a phantom again, and '
        'move the probe slowly over the whole target'))
    parent, child = KINDS['ultrasound-spatial']
    entry = Calibration(
        'ultrasound-spatial', parent, child, found.transform, found.covariance,
        f'{_TARGETS[arguments.target]}, RANSAC and robust least squares'
        + ('' if spacing else ', spacing solved'),
        *_dates(arguments), samples=seen, inliers=found.inliers,
        residual=target.typical(residual), held_out_error=target.typical(unseen),
        made_by=_made_by(arguments), image=found.geometry)
    counts = seen, len(used), held_seen, len(held)
    return Outcome(entry, _spatial_lines(found, arguments.target, residual, unseen, counts),
                   target.panels(found, used, residual, unseen))


def _face(arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the pixel of the mid transducer face: as given, of the device set, or top centre."""
    face = arguments.origin or (arguments.phantom and read_face(arguments.phantom)) or (
        (_pictures(arguments.recording, arguments.topic).read(0).shape[1] - 1) / 2.0, 0.0)
    return float(face[0]), float(face[1])


def _point_views(path: Path, arguments: argparse.Namespace) -> tuple[PointViews, int]:
    """Return the images with a bright spot, and how many images there were."""
    pictures = _pictures(path, arguments.topic)
    track = _track(path, arguments.reference, arguments.probe)
    pixels, times = [], []
    for index, time in enumerate(pictures.times.tolist()):
        spots = find_spots(pictures.read(index), maximum=1)
        if len(spots):
            pixels.append(spots[0, :2])
            times.append(time)
    require_samples(len(pixels), 30, f'images of {path.name} in which the point was found')
    return PointViews(np.array(pixels), np.array(times), track), len(pictures)


def _registered(arguments: argparse.Namespace) -> Transform:
    """Return ``reference_T_phantom``."""
    if arguments.registration is None:
        return read_transform(arguments.phantom, 'Phantom', arguments.reference)
    for item in calibration_file.load(arguments.registration, datetime.now(timezone.utc)):
        if item.kind == 'phantom':
            return item.transform
    raise CalibrationError(f'{arguments.registration}: has no entry "phantom"; make it with '
                           '"hybrid-guidance calibrate phantom"')


def _wire_views(path: Path, phantom: WirePhantom, reference_T_phantom: Transform,
                arguments: argparse.Namespace) -> tuple[WireViews, int]:
    """Return the images in which all wires were found, and how many images there were."""
    pictures = _pictures(path, arguments.topic)
    track = _track(path, arguments.probe, arguments.reference)
    track = Track(track.times, track.poses @ reference_T_phantom)
    pixels, times, flips = [], [], []
    for index, time in enumerate(pictures.times.tolist()):
        match = match_wires(find_spots(pictures.read(index)), phantom)
        if match is not None:
            pixels.append(match.pixels)
            times.append(time)
            flips.append(match.flip)
    require_samples(len(pixels), 20, f'images of {path.name} in which all wires were found')
    # The phantom cannot turn round within a recording: what most images say holds.
    usual = max(set(flips), key=flips.count)
    keep = np.array([flip == usual for flip in flips])
    return WireViews(np.array(pixels)[keep], np.array(times)[keep], track, phantom), len(pictures)


def _best_95(errors: Array) -> float:
    """Return the mean of the smallest 95 %, in mm: PLUS states its errors so."""
    return float(np.sort(errors.ravel())[:round(0.95 * errors.size)].mean()) * _MM


def _spatial_lines(found: ProbeCalibration, target: str, residual: Array, unseen: Array,
                   counts: tuple[int, int, int, int]) -> tuple[str, ...]:
    deviation = np.sqrt(np.diag(found.covariance))
    spacing = np.array(found.geometry.spacing) * _MM
    return (
        f'ultrasound_probe <- ultrasound_image from {_TARGETS[target]}',
        f'{target} found in {counts[1]} of {counts[0]} images used, {found.inliers} agree; in '
        f'{counts[3]} of {counts[2]} held out',
        f'pixel spacing {spacing[0]:.5f} x {spacing[1]:.5f} mm',
        f'images late by {found.delay * _MM:.1f} ± {found.delay_deviation * _MM:.1f} ms',
        f'standard deviation {np.round(deviation[:3] * _MM, 2).tolist()} mm, '
        f'{np.round(np.rad2deg(deviation[3:]), 2).tolist()}° (blocks of time left out)',
        f'3-D error of images used: mean {residual.mean() * _MM:.3f} mm, '
        f'sd {residual.std() * _MM:.3f}, best 95 % {_best_95(residual):.3f}',
        f'3-D error held out: mean {unseen.mean() * _MM:.3f} mm, median '
        f'{np.median(unseen) * _MM:.3f}, sd {unseen.std() * _MM:.3f}, '
        f'worst {unseen.max() * _MM:.3f}, best 95 % {_best_95(unseen):.3f} (the mean that PLUS '
        'states)')


def _wire_panels(found: ProbeCalibration, used: WireViews, residual: Array,
                 unseen: Array) -> tuple[Panel, ...]:
    top = float(max(residual.max(), unseen.max())) * _MM
    outer, middle = used.pixels[:, :, ::2].reshape(-1, 2), used.pixels[:, :, 1].reshape(-1, 2)
    expected, _ = used.crossings(found.delay)
    side = (expected - found.points(used.pixels[:, :, 1])) @ found.transform[:3, :3] * _MM
    seconds = used.times - used.times[0]
    return (
        Panel('Where the wires were seen', 'u (px)', 'v (px)', (
            Series(outer[:, 0], outer[:, 1], 'outer wires', chart.GREY),
            Series(middle[:, 0], middle[:, 1], 'middle wires')), image=True),
        Panel('3-D error at the middle wires', 'error (mm)', 'share (%)', (
            histogram(residual.ravel() * _MM, 'used', chart.BLUE, top),
            histogram(unseen.ravel() * _MM, 'held out', chart.ORANGE, top))),
        Panel('Left over: elevation', 'time (s)', 'mm', tuple(
            Series(seconds, side[:, row, 2], f'pattern {row + 1}', colour)
            for row, colour in zip(range(side.shape[1]), (chart.BLUE, chart.ORANGE, chart.GREEN),
                                   strict=False))),
        Panel('Left over: in the image', 'lateral (mm)', 'depth (mm)', (
            Series(side[..., 0].ravel(), side[..., 1].ravel()),)))


def _point_panels(found: ProbeCalibration, used: PointViews, residual: Array,
                  unseen: Array) -> tuple[Panel, ...]:
    top = float(max(residual.max(), unseen.max())) * _MM
    return (
        Panel('Where the point was seen', 'u (px)', 'v (px)', (
            Series(used.pixels[:, 0], used.pixels[:, 1]),), image=True),
        Panel('3-D distance from its place', 'error (mm)', 'share (%)', (
            histogram(residual * _MM, 'used', chart.BLUE, top),
            histogram(unseen * _MM, 'held out', chart.ORANGE, top))),
        Panel('3-D distance, image by image', 'image used', 'mm', (
            Series(np.arange(len(residual), dtype=float), residual * _MM),)))


# --- ultrasound-temporal

def _add_temporal(parser: argparse.ArgumentParser) -> None:
    _files(parser, images=(
        'recording of a probe moved up and down over a flat floor (sequence or bag)'))
    parser.add_argument('tracker', type=Path, nargs='?',
                        help='poses, if they are in a file of their own (sequence or bag)')
    parser.add_argument('--span', type=float, default=0.5, metavar='S',
                        help='largest delay looked for (default: %(default)g)')
    _frames(parser, probe='Probe', reference='Reference')


def _temporal(arguments: argparse.Namespace) -> Outcome:
    pictures = _pictures(arguments.images, arguments.topic)
    track = _track(arguments.tracker or arguments.images, arguments.reference, arguments.probe)
    floor = np.array([floor_depth(pictures.read(index)) for index in range(len(pictures))])
    found = calibrate_delay(pictures.times, floor, track, numbers=pictures.numbers,
                            span=arguments.span)
    clock = ("stamps smoothed to a regular clock by the frames' numbers: that explains the "
             'motion better than the stamps as they are' if found.regular else
             'stamps as recorded')
    entry = Delay('ultrasound', found.delay, found.deviation, 'floor of a water tank, '
                  + ('regular clock' if found.regular else 'stamps as recorded'),
                  *_dates(arguments), samples=len(pictures), inliers=found.inliers,
                  residual=found.residual, held_out_error=found.held_out,
                  made_by=_made_by(arguments))
    lines = (
        f'images are stamped {found.delay * _MM:.1f} ± {found.deviation * _MM:.1f} ms later than '
        f'poses of the same moment (PLUS: tracker lag {-found.delay * _MM:.1f} ms)', clock,
        f'floor found in {found.samples} of {len(pictures)} images, {found.inliers} agree',
        f'left unexplained {found.residual * _MM:.3f} mm rms, held out {found.held_out * _MM:.3f}')
    seconds = found.times - found.times[0]
    return Outcome(entry, lines, (
        Panel('Floor in the image and by the tracker', 'time (s)', 'depth (px)', (
            Series(seconds, found.signal, 'image', chart.BLUE),
            Series(seconds, found.predicted, 'tracker, shifted', chart.ORANGE, True))),
        Panel('Left over', 'time (s)', 'mm', (
            Series(seconds, (found.signal - found.predicted) / found.scale * _MM),))))


# --- pivot and phantom

def _add_pivot(parser: argparse.ArgumentParser) -> None:
    _files(parser, recording='poses of a pointer turning about its tip (sequence or bag)')
    parser.add_argument('--second', type=Path, metavar='FILE',
                        help='the same about another place of its shaft: gives the axis')
    _frames(parser, marker='Stylus', reference='Reference')


def _pivot(arguments: argparse.Namespace) -> Outcome:
    found = _pivoted(arguments.recording, arguments)
    second = None if arguments.second is None else _pivoted(arguments.second, arguments)
    parent, child = KINDS['pivot']
    entry = Calibration(
        'pivot', parent, child, pointer_pose(found.tip, None if second is None else second.tip),
        pointer_covariance(found, second),
        'pivot' + (', axis by a second pivot' if second else ', axis taken through the marker'),
        *_dates(arguments), samples=found.samples, inliers=found.inliers,
        residual=float(np.sqrt(np.mean(found.errors**2))), held_out_error=found.held_out,
        made_by=_made_by(arguments))
    lines = (
        f'tip in the marker {np.round(found.tip * _MM, 3).tolist()} mm, standard deviation '
        f'{np.round(np.sqrt(np.diag(found.covariance)) * _MM, 3).tolist()} mm',
        f'{found.inliers} of {found.samples} poses agree; rms {entry.residual or 0.0:.6f} m, '
        f'held out {found.held_out * _MM:.3f} mm',
        entry.method)
    return Outcome(entry, lines, _error_panels('Distance of the tip from the pivot', found.errors))


def _error_panels(title: str, errors: Array) -> tuple[Panel, Panel]:
    """Return the panels of (N,) m, pose by pose and as a distribution."""
    return (Panel(title, 'pose', 'mm', (
                Series(np.arange(len(errors), dtype=float), errors * _MM),)),
            Panel('Its distribution', 'mm', 'share (%)', (
                histogram(errors * _MM, '', chart.BLUE, float(errors.max()) * _MM),)))


def _pivoted(path: Path, arguments: argparse.Namespace) -> PivotCalibration:
    return calibrate_pivot(_track(path, arguments.reference, arguments.marker).poses)


def _add_phantom(parser: argparse.ArgumentParser) -> None:
    _files(parser, recording='poses of a pointer that touches the landmarks in their order')
    parser.add_argument('--phantom', type=Path, required=True, metavar='FILE',
                        help='PLUS device set with the landmarks')
    parser.add_argument('--tip', type=Path, metavar='FILE',
                        help='calibration file with the entry "pivot", or a PLUS file with '
                             'StylusTip to Stylus (default: that of --phantom)')
    parser.add_argument('--keep-tip', action='store_true',
                        help='do not adjust the tip, even where the landmarks say so')
    _frames(parser, marker='Stylus', reference='Reference')


def _phantom(arguments: argparse.Namespace) -> Outcome:
    names, landmarks = read_landmarks(arguments.phantom)
    tip = _tip(arguments)
    track = _track(arguments.recording, arguments.reference, arguments.marker)
    found = register_phantom(track, tip, landmarks, refine=False if arguments.keep_tip else None)
    parent, child = KINDS['phantom']
    entry = Calibration(
        'phantom', parent, child, found.transform, found.covariance,
        'landmarks touched with a pointer' + (', its tip adjusted' if found.refined else ''),
        *_dates(arguments), samples=len(landmarks), inliers=len(landmarks),
        residual=float(found.errors.mean()), held_out_error=found.held_out,
        made_by=_made_by(arguments))
    moved = float(np.linalg.norm(found.tip - tip)) * _MM
    lines = (
        f'{len(landmarks)} landmarks: mean error {found.errors.mean() * _MM:.3f} mm, '
        f'largest {found.errors.max() * _MM:.3f} mm, each left out {found.held_out * _MM:.3f} mm',
        *(f'  {name}: {error * _MM:.3f} mm'
          for name, error in zip(names, found.errors, strict=True)),
        f'tip adjusted by {moved:.2f} mm: the landmarks left out are predicted better'
        if found.refined else 'tip as given')
    off = (rigid.transform_points(rigid.inverse(found.transform), found.touched)
           - landmarks) * _MM
    number = np.arange(1.0, len(off) + 1)
    return Outcome(entry, lines, (
        Panel('Touched less given, along the axes of the phantom', 'landmark', 'mm', tuple(
            Series(number, off[:, axis], name, colour) for axis, (name, colour) in enumerate(
                zip('xyz', (chart.BLUE, chart.ORANGE, chart.GREEN), strict=True)))),
        Panel('Distance', 'landmark', 'mm', (Series(number, found.errors * _MM),))))


def _tip(arguments: argparse.Namespace) -> Array:
    path = arguments.tip or arguments.phantom
    if path.suffix.lower() == '.xml':
        return read_transform(path, 'StylusTip', arguments.marker)[:3, 3]
    for item in calibration_file.load(path, datetime.now(timezone.utc)):
        if item.kind == 'pivot':
            return item.transform[:3, 3]
    raise CalibrationError(f'{path}: has no entry "pivot"; make it with '
                           '"hybrid-guidance calibrate pivot"')


# --- hand-eye

def _add_hand_eye(parser: argparse.ArgumentParser) -> None:
    _files(parser, recording='poses of a robot whose sensor sees a fixed target (sequence or bag)')
    parser.add_argument('--every', type=float, default=0.5, metavar='S',
                        help='seconds between the poses taken (default: %(default)g)')
    _frames(parser, base='Base', flange='Flange', eye='Eye', target='Target')


def _hand_eye(arguments: argparse.Namespace) -> Outcome:
    hand = _track(arguments.recording, arguments.base, arguments.flange)
    seen = _track(arguments.recording, arguments.eye, arguments.target)
    times = np.arange(max(hand.times[0], seen.times[0]), min(hand.times[-1], seen.times[-1]),
                      max(arguments.every, 1e-3))
    hands, first = hand.at(times)
    views, second = seen.at(times)
    good = first & second
    found = calibrate_hand_eye(hands[good], views[good])
    parent, child = KINDS['hand-eye']
    entry = Calibration(
        'hand-eye', parent, child, found.transform, found.covariance, found.method,
        *_dates(arguments), samples=found.samples, inliers=found.inliers,
        residual=float(found.errors.mean()), held_out_error=found.held_out,
        made_by=_made_by(arguments))
    lines = (
        f'{found.inliers} of {found.samples} poses agree; best of {len(found.ranking)} solvers: '
        f'{found.method}',
        f'held out: {found.held_out * _MM:.3f} mm, {np.rad2deg(found.held_out_angle):.3f}°',
        *(f'  {name}: {error * _MM:.3f} mm'
          for name, error in sorted(found.ranking.items(), key=lambda one: one[1])))
    return Outcome(entry, lines, _error_panels(
        'Distance of the target from its mean', found.errors))


# --- carm and fluoroscopy-ultrasound

def _add_carm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', type=Path, nargs='+',
                        help='X-ray images of the bead phantom (DICOM, PNG, TIFF or bag)')
    _add_beads(parser, 'millimetres in the frame of the phantom')
    parser.add_argument('--focal', type=float, required=True, metavar='PX', help=(
        'about: source to detector over pixel spacing'))


def _add_beads(parser: argparse.ArgumentParser, where: str) -> None:
    parser.add_argument('--beads', type=Path, required=True, metavar='FILE',
                        help=f'text file, x y z of one bead a line, {where}')
    parser.add_argument('--radius', type=float, default=5.0, metavar='PX',
                        help='of the shadow of a bead (default: %(default)g)')


def _beads(path: Path) -> Array:
    try:
        beads = np.loadtxt(path, ndmin=2, delimiter=',' if ',' in path.read_text() else None)
    except (OSError, ValueError) as error:
        raise CalibrationError(f'{path}: is not a list of beads ({error}); write x y z in '
                               'millimetres, one bead a line') from error
    if beads.shape[1] != 3 or not np.all(np.isfinite(beads)):
        raise CalibrationError(f'{path}: {beads.shape[1]} numbers a line; write x y z in '
                               'millimetres, one bead a line')
    return np.asarray(beads * 1e-3)


def _xrays(path: Path, topic: str = '') -> list[Image]:
    """Return the images of a file; of a recording at most ``_MOST_VIEWS``, spread over it."""
    if topic and is_bag(path):
        pictures = read_images(path, topic)
        chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), _MOST_VIEWS)).round()
        return [pictures.read(int(index)) for index in chosen]
    if path.suffix.lower() in ('.png', '.tif', '.tiff', '.jpg', '.jpeg', '.bmp'):
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


def _carm(arguments: argparse.Namespace) -> Outcome:
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
        *_dates(arguments), samples=found.samples, inliers=found.inliers,
        residual=float(np.sqrt(np.mean(found.errors**2))) * scale,
        held_out_error=found.held_out * scale, made_by=_made_by(arguments), camera=found.camera)
    lines = (
        f'{len(views)} views, {found.inliers} of {found.samples} beads agree; {left_out} images '
        'left out, in which the beads were not found',
        f'focal length {found.camera.focal[0]:.1f} ± {found.focal_deviation:.1f} px, principal '
        f'point {found.camera.centre[0]:.1f}, {found.camera.centre[1]:.1f}, distortion '
        f'{found.model}',
        f'reprojection of beads used {np.sqrt(np.mean(found.errors**2)):.3f} px rms, held out '
        f'{found.held_out:.3f} px',
        f'carm <- fluoroscopy_optical_frame at {np.round(transform[:3, 3] * _MM, 2).tolist()} mm: '
        'the frame of the phantom in the first image')
    pixels = np.concatenate([view.pixels for view in views])
    return Outcome(entry, lines, (
        Panel('Where the beads were seen', 'u (px)', 'v (px)', (
            Series(pixels[:, 0], pixels[:, 1]),), image=True),
        Panel('Reprojection', 'px', 'share (%)', (histogram(
            found.errors, '', chart.BLUE, float(found.errors.max())),))))


def _add_gantry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--source-to-isocentre', type=float, required=True, metavar='MM',
                        help='distance, from the manual or the DICOM file')
    for name, default, unit, text in (
            ('angle', 0.5, 'DEG', 'of an angle on the console, and of the turn of the detector'),
            ('distance', 5.0, 'MM', 'of the distance from source to isocentre'),
            ('isocentre', 2.0, 'MM', 'of the point about which the beam turns')):
        parser.add_argument(f'--{name}-error', type=float, default=default, metavar=unit,
                            help=f'standard deviation {text} (default: %(default)g)')


def _take_gantry(arguments: argparse.Namespace) -> Outcome:
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
        'their word, nothing measured', *_dates(arguments), samples=None, inliers=None,
        residual=None, held_out_error=None, made_by=_made_by(arguments))
    depth = np.linspace(-0.15, 0.15, 31)
    across = np.array([float(np.sqrt(of_point(
        np.eye(4), covariance, np.array([0.0, 0.0, distance + offset]))[0, 0]))
        for offset in depth])
    lines = (
        'carm <- fluoroscopy_optical_frame is nothing: carm is where the gantry says',
        f'across the beam this is worth {across[15] * _MM:.2f} mm at the isocentre and '
        f'{across[-1] * _MM:.2f} mm 150 mm from it (standard deviation, as entered)',
        'nothing was measured: "hybrid-guidance calibrate carm" does that')
    return Outcome(entry, lines, (
        Panel('What is entered means across the beam', 'from the isocentre (mm)', 'sd (mm)', (
            Series(depth * _MM, across * _MM, '', chart.BLUE, True),)),))


def _add_probe(parser: argparse.ArgumentParser) -> None:
    _files(parser, image='one X-ray image in which the beads on the probe are seen')
    _add_beads(parser, 'millimetres in the frame of the probe')
    parser.add_argument('--camera', type=Path, metavar='FILE',
                        help='calibration file with the intrinsics (entry "carm"); DICOM images '
                             'that tell their own need none')
    parser.add_argument('--focal-error', type=float, default=0.5, metavar='%',
                        help='standard deviation of the focal length (default: %(default)g)')
    parser.add_argument('--centre-error', type=float, default=2.0, metavar='PX',
                        help='standard deviation of the principal point (default: %(default)g)')


def _probe(arguments: argparse.Namespace) -> Outcome:
    beads = _beads(arguments.beads)
    image = _xrays(arguments.image)[0]
    camera, distortion = _intrinsics(arguments)
    view = _bead_view(image, arguments.image, beads, camera, arguments.radius, distortion)
    deviation = arguments.focal_error * 0.01 * float(camera[0, 0])
    found = locate_probe(view, camera, distortion=distortion, focal_deviation=deviation,
                         centre_deviation=arguments.centre_error)
    scale = float(found.transform[2, 3] / camera[0, 0])
    parent, child = KINDS['fluoroscopy-ultrasound']
    entry = Calibration(
        'fluoroscopy-ultrasound', parent, child, found.transform, found.covariance,
        'beads of the probe in one X-ray image', *_dates(arguments), samples=found.samples,
        inliers=found.inliers, residual=float(np.sqrt(np.mean(found.errors**2))) * scale,
        held_out_error=found.held_out * scale, made_by=_made_by(arguments))
    sigma = np.sqrt(np.diag(found.covariance))
    lines = (
        f'{found.inliers} of {found.samples} beads agree, held out {found.held_out:.3f} px',
        f"probe at {np.round(found.transform[:3, 3] * _MM, 2).tolist()} mm in the X-ray's frame; "
        f'standard deviation {sigma[0] * _MM:.3f} and {sigma[1] * _MM:.3f} mm across the beam, '
        f'{sigma[2] * _MM:.2f} mm along it')
    return Outcome(entry, lines, (
        Panel('Beads of the probe', 'u (px)', 'v (px)', (
            Series(view.pixels[:, 0], view.pixels[:, 1]),), image=True),
        Panel('Reprojection', 'bead', 'px', (
            Series(np.arange(len(found.errors), dtype=float), found.errors),))))


def _intrinsics(arguments: argparse.Namespace) -> tuple[Array, Array | None]:
    """Return (3, 3) intrinsics and (5,) distortion."""
    if arguments.camera is not None:
        for item in calibration_file.load(arguments.camera, datetime.now(timezone.utc)):
            if item.camera is not None:
                return (item.camera.projection().matrix[:, :3],
                        np.array(item.camera.distortion))
        raise CalibrationError(f'{arguments.camera}: has no intrinsics; make them with '
                               '"hybrid-guidance calibrate carm"')
    if arguments.image.suffix.lower() not in ('.png', '.tif', '.tiff', '.jpg', '.jpeg', '.bmp'):
        projection = open_dicom(arguments.image, 'fluoroscopy').projection
        if projection.is_calibrated:
            return projection.matrix[:, :3], None
    raise CalibrationError(f'{arguments.image}: does not tell its intrinsics; give --camera, made '
                           'with "hybrid-guidance calibrate carm"')


_LIVE = {
    'ultrasound-spatial': _Live(('recording', 'validation'), (('reference', 'probe'),),
                                'ultrasound'),
    'ultrasound-temporal': _Live(('images',), (('reference', 'probe'),), 'ultrasound'),
    'pivot': _Live(('recording', 'second'), (('reference', 'marker'),)),
    'phantom': _Live(('recording',), (('reference', 'marker'),)),
    'hand-eye': _Live(('recording',), (('base', 'flange'), ('eye', 'target'))),
    'carm': _Live(('images',), sensor='fluoroscopy'),
}
_KINDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None],
                        Callable[[argparse.Namespace], Outcome], str]] = {
    'ultrasound-spatial': (_add_spatial, _spatial,
                           'where the image lies in the probe, by N-wires or a point'),
    'ultrasound-temporal': (_add_temporal, _temporal, 'how late images are against the tracker'),
    'pivot': (_add_pivot, _pivot, 'the tip of a pointer, and its axis'),
    'phantom': (_add_phantom, _phantom, 'where a phantom is, by its landmarks'),
    'hand-eye': (_add_hand_eye, _hand_eye, 'a sensor or marker on the flange of a robot'),
    'carm': (_add_carm, _carm, 'intrinsics and pose of a C-arm, by a bead phantom'),
    'gantry': (_add_gantry, _take_gantry,
               'an untracked C-arm: its own angles and distance, with what they are worth'),
    'fluoroscopy-ultrasound': (_add_probe, _probe,
                               'the probe in the X-ray image, by its beads; no tracker needed'),
}
