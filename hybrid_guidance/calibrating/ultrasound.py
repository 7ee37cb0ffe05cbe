"""``calibrate ultrasound-spatial`` and ``ultrasound-temporal``."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from hybrid_guidance.calibrating.common import (
    MM,
    Outcome,
    dates,
    files,
    frames,
    made_by,
    pictures_in,
    positive,
    track_in,
)
from hybrid_guidance.calibration import chart
from hybrid_guidance.calibration import file as calibration_file
from hybrid_guidance.calibration.chart import Panel, Series, histogram
from hybrid_guidance.calibration.file import KINDS, Calibration, CalibrationError, Delay
from hybrid_guidance.calibration.gates import require_held_out, require_samples
from hybrid_guidance.calibration.plus_phantom import (
    read_face,
    read_registration,
    read_wires,
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
from hybrid_guidance.geometry.types import Array, Transform

_TARGETS = {'wires': 'N-wires', 'point': 'one fixed point'}

V = TypeVar('V', WireViews, PointViews)


def add_spatial(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ultrasound-spatial``."""
    files(parser, recording=(
        'tracked images of an N-wire phantom, or of one point (sequence or bag)'))
    parser.add_argument('--target', choices=('wires', 'point'), default='wires', help=(
        'wires: N-wires; point: a point, bead or cross-wire that stands still in --reference '
        '(default: %(default)s)'))
    parser.add_argument('--phantom', type=Path, metavar='FILE',
                        help='PLUS device set with the wires and, unless --registration is given, '
                             'Phantom to Reference; needed for wires')
    parser.add_argument('--registration', type=Path, metavar='FILE',
                        help='calibration file with the entry "phantom"')
    parser.add_argument('--keep-registration', action='store_true', help=(
        'do not turn the phantom, even where the wires say that its registration is turned'))
    parser.add_argument('--validation', type=Path, metavar='FILE',
                        help='second recording that is only predicted (of a point: one that has '
                             'not moved); without it every fourth part of the first is held out')
    parser.add_argument('--origin', type=float, nargs=2, metavar=('U', 'V'),
                        help='pixel of the mid transducer face (default: that of the device set, '
                             'else the top centre)')
    parser.add_argument('--spacing', type=positive, nargs=2, metavar=('X', 'Y'),
                        help='mm per pixel, if known; solved otherwise')
    parser.add_argument('--no-delay', action='store_true', help=(
        'images and poses are in step, or were taken one by one standing still'))
    parser.add_argument('--limit', type=positive, default=1.0, metavar='MM',
                        help='largest mean held-out error accepted (default: %(default)g)')
    frames(parser, probe='Probe', reference='Reference')


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


def spatial(arguments: argparse.Namespace) -> Outcome:
    """Find where the image lies in the probe."""
    if arguments.target == 'point':
        return _spatial_of(arguments, _Target(
            'the point', lambda path: _point_views(path, arguments), calibrate_point, point_errors,
            lambda errors: float(np.median(errors)), _point_panels))
    if arguments.phantom is None:
        raise CalibrationError('--phantom: name the description of the N-wires, or look at one '
                               'point with --target point')
    phantom, (reference_T_phantom, covariance) = read_wires(arguments.phantom), _registered(
        arguments)
    solve = partial(calibrate_wires, turn=False if arguments.keep_registration else None,
                    registration=covariance)
    return _spatial_of(arguments, _Target(
        'all wires', lambda path: _wire_views(path, phantom, reference_T_phantom, arguments),
        solve, wire_errors, lambda errors: float(errors.mean()), _wire_panels))


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
    require_held_out(target.typical(unseen) * MM, arguments.limit, 'mm', (
        'check that the target and the probe marker are tight, register a phantom again, and '
        'move the probe slowly over the whole target'))
    parent, child = KINDS['ultrasound-spatial']
    entry = Calibration(
        'ultrasound-spatial', parent, child, found.transform, found.covariance,
        f'{_TARGETS[arguments.target]}, RANSAC and robust least squares'
        + (', phantom turned' if np.any(found.turn) else '')
        + ('' if spacing else ', spacing solved'),
        *dates(arguments), samples=seen, inliers=found.inliers,
        residual=target.typical(residual), held_out_error=target.typical(unseen),
        made_by=made_by(arguments), image=found.geometry)
    counts = seen, len(used), held_seen, len(held)
    return Outcome(entry, _spatial_lines(found, arguments.target, residual, unseen, counts),
                   target.panels(found, used, residual, unseen))


def _face(arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the pixel of the mid transducer face: as given, of the device set, or top centre."""
    face = arguments.origin or (arguments.phantom and read_face(arguments.phantom)) or (
        (pictures_in(arguments.recording, arguments.topic).read(0).shape[1] - 1) / 2.0, 0.0)
    return float(face[0]), float(face[1])


def _point_views(path: Path, arguments: argparse.Namespace) -> tuple[PointViews, int]:
    """Return the images with a bright spot, and how many images there were."""
    pictures = pictures_in(path, arguments.topic)
    track = track_in(path, arguments.reference, arguments.probe)
    pixels, times = [], []
    for index, time in enumerate(pictures.times.tolist()):
        spots = find_spots(pictures.read(index), maximum=1)
        if len(spots):
            pixels.append(spots[0, :2])
            times.append(time)
    require_samples(len(pixels), 30, f'images of {path.name} in which the point was found')
    return PointViews(np.array(pixels), np.array(times), track), len(pictures)


def _registered(arguments: argparse.Namespace) -> tuple[Transform, Array | None]:
    """Return ``reference_T_phantom``, and its covariance in the phantom's own axes if known."""
    if arguments.registration is None:
        return read_registration(arguments.phantom, arguments.reference)
    for item in calibration_file.load(arguments.registration, datetime.now(timezone.utc)):
        if item.kind == 'phantom':
            own = np.kron(np.eye(2), item.transform[:3, :3])
            return item.transform, own.T @ item.covariance @ own
    raise CalibrationError(f'{arguments.registration}: has no entry "phantom"; make it with '
                           '"hybrid-guidance calibrate phantom"')


def _wire_views(path: Path, phantom: WirePhantom, reference_T_phantom: Transform,
                arguments: argparse.Namespace) -> tuple[WireViews, int]:
    """Return the images in which all wires were found, and how many images there were."""
    pictures = pictures_in(path, arguments.topic)
    track = track_in(path, arguments.probe, arguments.reference)
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
    return float(np.sort(errors.ravel())[:round(0.95 * errors.size)].mean()) * MM


def _spatial_lines(found: ProbeCalibration, target: str, residual: Array, unseen: Array,
                   counts: tuple[int, int, int, int]) -> tuple[str, ...]:
    deviation = np.sqrt(np.diag(found.covariance))
    spacing = np.array(found.geometry.spacing) * MM
    return (
        f'ultrasound_probe <- ultrasound_image from {_TARGETS[target]}',
        f'{target} found in {counts[1]} of {counts[0]} images used, {found.inliers} agree; in '
        f'{counts[3]} of {counts[2]} held out, {len(unseen)} of them with a pose at their time',
        f'pixel spacing {spacing[0]:.5f} x {spacing[1]:.5f} mm',
        f'images late by {found.delay * MM:.1f} ± {found.delay_deviation * MM:.1f} ms',
        f'standard deviation {np.round(deviation[:3] * MM, 2).tolist()} mm, '
        f'{np.round(np.rad2deg(deviation[3:]), 2).tolist()}° (blocks of time left out'
        f'{"" if target == "point" else "; error of the registration"})',
        *(() if target == 'point' else (_turn_line(found),)),
        f'3-D error of images used: mean {residual.mean() * MM:.3f} mm, '
        f'sd {residual.std() * MM:.3f}, best 95 % {_best_95(residual):.3f}',
        f'3-D error held out: mean {unseen.mean() * MM:.3f} mm, median '
        f'{np.median(unseen) * MM:.3f}, sd {unseen.std() * MM:.3f}, '
        f'worst {unseen.max() * MM:.3f}, best 95 % {_best_95(unseen):.3f} (the mean that PLUS '
        'states)')


def _turn_line(found: ProbeCalibration) -> str:
    """Say how the wires lie against the registration of the phantom."""
    if not np.any(found.turn):
        return 'phantom as registered'
    angles = np.round(np.rad2deg(found.turn), 1).tolist()
    return (f'phantom turned by {np.rad2deg(np.linalg.norm(found.turn)):.1f}° ({angles} about its '
            f'axes, {found.turn_sigmas:.0f} standard deviations) against its registration: parts '
            f'left out are predicted to '
            f'{found.left_out * MM:.3f} mm, as registered to {found.left_out_kept * MM:.3f} mm; '
            'register it again, or forbid it with --keep-registration')


def _wire_panels(found: ProbeCalibration, used: WireViews, residual: Array,
                 unseen: Array) -> tuple[Panel, ...]:
    top = float(max(residual.max(), unseen.max())) * MM
    outer, middle = used.pixels[:, :, ::2].reshape(-1, 2), used.pixels[:, :, 1].reshape(-1, 2)
    expected, _ = used.crossings(found.delay, found.turn)
    side = (expected - found.points(used.pixels[:, :, 1])) @ found.transform[:3, :3] * MM
    seconds = used.times - used.times[0]
    return (
        Panel('Where the wires were seen', 'u (px)', 'v (px)', (
            Series(outer[:, 0], outer[:, 1], 'outer wires', chart.GREY),
            Series(middle[:, 0], middle[:, 1], 'middle wires')), image=True),
        Panel('3-D error at the middle wires', 'error (mm)', 'share (%)', (
            histogram(residual.ravel() * MM, 'used', chart.BLUE, top),
            histogram(unseen.ravel() * MM, 'held out', chart.ORANGE, top))),
        Panel('Left over: elevation', 'time (s)', 'mm', tuple(
            Series(seconds, side[:, row, 2], f'pattern {row + 1}', colour)
            for row, colour in zip(range(side.shape[1]), (chart.BLUE, chart.ORANGE, chart.GREEN),
                                   strict=False))),
        Panel('Left over: in the image', 'lateral (mm)', 'depth (mm)', (
            Series(side[..., 0].ravel(), side[..., 1].ravel()),)))


def _point_panels(found: ProbeCalibration, used: PointViews, residual: Array,
                  unseen: Array) -> tuple[Panel, ...]:
    top = float(max(residual.max(), unseen.max())) * MM
    return (
        Panel('Where the point was seen', 'u (px)', 'v (px)', (
            Series(used.pixels[:, 0], used.pixels[:, 1]),), image=True),
        Panel('3-D distance from its place', 'error (mm)', 'share (%)', (
            histogram(residual * MM, 'used', chart.BLUE, top),
            histogram(unseen * MM, 'held out', chart.ORANGE, top))),
        Panel('3-D distance, image by image', 'image used', 'mm', (
            Series(np.arange(len(residual), dtype=float), residual * MM),)))


def add_temporal(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ultrasound-temporal``."""
    files(parser, images=(
        'recording of a probe moved up and down over a flat floor (sequence or bag)'))
    parser.add_argument('tracker', type=Path, nargs='?',
                        help='poses, if they are in a file of their own (sequence or bag)')
    parser.add_argument('--span', type=positive, default=0.5, metavar='S',
                        help='largest delay looked for (default: %(default)g)')
    frames(parser, probe='Probe', reference='Reference')


def temporal(arguments: argparse.Namespace) -> Outcome:
    """Find how late images are."""
    pictures = pictures_in(arguments.images, arguments.topic)
    track = track_in(arguments.tracker or arguments.images, arguments.reference, arguments.probe)
    floor = np.array([floor_depth(pictures.read(index)) for index in range(len(pictures))])
    found = calibrate_delay(pictures.times, floor, track, numbers=pictures.numbers,
                            span=arguments.span)
    clock = ("stamps smoothed to a regular clock by the frames' numbers: that explains the "
             'motion better than the stamps as they are' if found.regular else
             'stamps as recorded')
    entry = Delay('ultrasound', found.delay, found.deviation, 'floor of a water tank, '
                  + ('regular clock' if found.regular else 'stamps as recorded'),
                  *dates(arguments), samples=len(pictures), inliers=found.inliers,
                  residual=found.residual, held_out_error=found.held_out,
                  made_by=made_by(arguments))
    lines = (
        f'images are stamped {found.delay * MM:.1f} ± {found.deviation * MM:.1f} ms later than '
        f'poses of the same moment (PLUS: tracker lag {-found.delay * MM:.1f} ms)', clock,
        f'floor found in {found.samples} of {len(pictures)} images, {found.inliers} agree',
        f'left unexplained {found.residual * MM:.3f} mm rms, held out {found.held_out * MM:.3f}')
    seconds = found.times - found.times[0]
    return Outcome(entry, lines, (
        Panel('Floor in the image and by the tracker', 'time (s)', 'depth (px)', (
            Series(seconds, found.signal, 'image', chart.BLUE),
            Series(seconds, found.predicted, 'tracker, shifted', chart.ORANGE, True))),
        Panel('Left over', 'time (s)', 'mm', (
            Series(seconds, (found.signal - found.predicted) / found.scale * MM),))))
