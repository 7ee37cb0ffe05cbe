"""``hybrid-guidance inspect``: what a DICOM file says of its geometry, in words and a picture."""

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hybrid_guidance.geometry.types import Array, Image
from hybrid_guidance.imaging.dicom import Gantry
from hybrid_guidance.imaging.inspection import Inspection, camera_info, inspect_dicom

_WORDS = {'contradiction': 'CONTRADICTS', 'missing': 'MISSING', 'assumed': 'ASSUMED',
          'note': 'NOTE'}
_COLOURS = {'contradiction': (40, 40, 200), 'missing': (0, 120, 220), 'assumed': (150, 110, 0),
            'note': (90, 90, 90)}
_INK, _MARK, _PATIENT = (40, 40, 40), (0, 190, 255), (190, 190, 190)
_SIDE, _MARGIN = 560, 44


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('file', type=Path, help='X-ray (XA, RF, DX, CR ...) or ultrasound, DICOM')
    parser.add_argument('--json', action='store_true', help='print JSON and nothing else')
    parser.add_argument('--picture', type=Path, metavar='PNG',
                        help='picture to write (default: FILE-geometry.png in this folder)')
    parser.add_argument('--no-picture', action='store_true', help='write none')


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    found = inspect_dicom(arguments.file)
    target = arguments.picture or Path(f'{arguments.file.stem}-geometry.png')
    if not arguments.no_picture and not cv2.imwrite(str(target), picture(found)):
        raise OSError(f'{target}: cannot be written; give another --picture')
    if arguments.json:
        print(json.dumps(as_dictionary(found), indent=1))
    else:
        print(report(found))
        if not arguments.no_picture:
            print(f'\npicture: {target}')
    return 0


def as_dictionary(found: Inspection) -> dict[str, Any]:
    """Return everything but the pixels, for JSON."""
    return {'file': str(found.path), 'modality': found.modality, 'frames': found.frames,
            'calibrated': found.projection.is_calibrated,
            'facts': [{'name': name, 'value': value, 'tag': tag}
                      for name, value, tag in found.facts],
            'findings': [asdict(finding) for finding in found.findings],
            'enter': list(found.enter), 'camera_info': camera_info(found.projection),
            'gantry': None if found.gantry is None else asdict(found.gantry)}


def report(found: Inspection) -> str:
    """Return the report in words."""
    info = camera_info(found.projection)
    lines = [f'{found.path}: {found.modality}, {found.frames} frame(s) of {info["width"]} x '
             f'{info["height"]}', '', 'What the file says']
    width = max((len(name) for name, _, _ in found.facts), default=0)
    lines += [f'  {name:{width}}  {value}  ({tag})' for name, value, tag in found.facts]
    lines += [] if found.facts else ['  nothing of its geometry']
    lines += ['', 'What to know']
    for finding in found.findings:
        cure = f' -> {finding.cure}' if finding.cure else ''
        lines.append(f'  {_WORDS[finding.kind]}: {finding.text}{cure}')
    lines += ['', 'CameraInfo']
    lines += ([f'  k = {_numbers(info["k"])}', f'  p = {_numbers(info["p"])}', *_meaning(found)]
              if found.projection.is_calibrated else
              ['  k[0] = 0: uncalibrated. Nobody may measure in this image.'])
    return '\n'.join([*lines, '', 'What to enter by hand', *(f'  {line}' for line in found.enter)])


def _numbers(values: list[float]) -> str:
    return '[' + ', '.join(f'{value:.6g}' for value in values) + ']'


def _meaning(found: Inspection) -> list[str]:
    """Say the projection in numbers that people know."""
    matrix, gantry = found.projection.matrix, found.gantry
    if not found.projection.is_perspective:
        width, height = found.projection.width, found.projection.height
        return [f'  {1e3 / matrix[0, 0]:.4f} x {1e3 / matrix[1, 1]:.4f} mm per pixel: the image '
                f'covers {1e3 * width / matrix[0, 0]:.1f} x {1e3 * height / matrix[1, 1]:.1f} mm',
                f'  origin (mid transducer face) at pixel ({matrix[0, 3]:.1f}, {matrix[1, 3]:.1f})']
    lines = [f'  focal length {matrix[0, 0]:.1f} x {matrix[1, 1]:.1f} px, principal point '
             f'({matrix[0, 2]:.1f}, {matrix[1, 2]:.1f})']
    opening = np.degrees(2 * np.arctan(found.projection.width / 2 / matrix[0, 0]))
    lines.append(f'  opening angle across {opening:.2f} deg')
    if gantry is not None and gantry.source_to_patient:
        lines.append(f'  1 px is {1e3 * gantry.source_to_patient / matrix[0, 0]:.4f} mm at '
                     f'{gantry.source_to_patient:g} m from the source')
    return lines


def picture(found: Inspection) -> Image:
    """Return (H, W, 3) BGR: the image with its geometry, how the C-arm stood, and what to know."""
    parts = [_marked(found)]
    if found.gantry is not None:
        parts.append(stand(found.gantry))
    return np.vstack([np.hstack(parts), _findings(found, _SIDE * len(parts))])


def _marked(found: Inspection) -> Image:
    """Return the middle frame with principal point or origin and a scale, in a square."""
    pixels = found.pixels
    if pixels.dtype == np.uint16:
        pixels = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    scale = (_SIDE - 2 * _MARGIN) / max(pixels.shape)
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height = _SIDE if found.gantry is not None else small.shape[0] + 2 * _MARGIN
    canvas = np.full((height, _SIDE, 3), 255, np.uint8)
    canvas[_MARGIN:_MARGIN + small.shape[0], _MARGIN:_MARGIN + small.shape[1]] = small[..., None]
    if not found.projection.is_calibrated:
        _text(canvas, 'uncalibrated: no scale', (_MARGIN, 22), _COLOURS['missing'])
        return canvas
    matrix = found.projection.matrix
    zero = matrix[:2, 2] + matrix[:2, 3]
    place = _MARGIN + (zero + 0.5) * scale
    cv2.drawMarker(canvas, _pixel(place), _MARK, cv2.MARKER_CROSS, 24, 2, cv2.LINE_AA)
    if found.projection.is_perspective:
        _text(canvas, f'principal point ({zero[0]:.1f}, {zero[1]:.1f})', (_MARGIN, 22))
    else:
        _text(canvas, f'origin ({zero[0]:.1f}, {zero[1]:.1f}), ticks of 10 mm', (_MARGIN, 22))
        _depth_scale(canvas, found, place, scale, small.shape[0])
    return canvas


def _depth_scale(canvas: Image, found: Inspection, place: Array, scale: float,
                 height: int) -> None:
    step = 0.01 * found.projection.matrix[1, 1] * scale
    if not 2.0 <= step <= height:
        # A spacing of nonsense would be drawn for ever.
        return
    for tick in range(int((_MARGIN + height - place[1]) / step) + 1):
        at = place + np.array([0.0, tick * step])
        long = 10 if tick % 5 == 0 else 5
        cv2.line(canvas, _pixel(at - (long, 0)), _pixel(at + (long, 0)), _MARK, 2, cv2.LINE_AA)


def stand(gantry: Gantry) -> Image:
    """Return two views of the C-arm about the patient: from the feet, and from the left."""
    canvas = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    views = (('seen from the feet', gantry.primary_angle, 'LAO', 'RAO', ('R', 'L')),
             ('seen from the left', gantry.secondary_angle, 'CRA', 'CAU', ('feet', 'head')))
    for row, (title, angle, positive, negative, ends) in enumerate(views):
        middle = np.array([_SIDE / 2 - 20, 150 + 275 * row])
        _text(canvas, title, (16, 24 + 275 * row))
        cv2.ellipse(canvas, _pixel(middle), (62, 36) if row == 0 else (100, 30), 0, 0, 360,
                    _PATIENT, -1, cv2.LINE_AA)
        for end, side in zip(ends, (-1, 1), strict=True):
            _text(canvas, end, (int(middle[0]) + side * 128 - 12, int(middle[1]) + 5))
        if angle is None:
            _text(canvas, 'angle not in the file', (16, 46 + 275 * row), _COLOURS['missing'])
            continue
        _arm(canvas, middle, angle)
        name = positive if angle >= 0 else negative
        _text(canvas, f'{abs(np.degrees(angle)):.1f} deg {name}', (16, 46 + 275 * row))
    return canvas


def _arm(canvas: Image, middle: Array, angle: float) -> None:
    """Draw source and detector: at 0 the detector is on top, in front of the chest."""
    beam = np.array([np.sin(angle), -np.cos(angle)])
    across = np.array([-beam[1], beam[0]])
    source, detector = middle - 105 * beam, middle + 90 * beam
    for side in (-42, 42):
        cv2.line(canvas, _pixel(source), _pixel(detector + side * across), (200, 170, 120), 1,
                 cv2.LINE_AA)
    cv2.line(canvas, _pixel(detector - 46 * across), _pixel(detector + 46 * across), _INK, 7,
             cv2.LINE_AA)
    cv2.arrowedLine(canvas, _pixel(source), _pixel(middle + 70 * beam), _MARK, 2, cv2.LINE_AA,
                    tipLength=0.06)
    cv2.circle(canvas, _pixel(source), 8, _INK, -1, cv2.LINE_AA)
    _text(canvas, 'source', (int(source[0]) + 14, int(source[1]) + 5))
    _text(canvas, 'detector', (int(detector[0]) + 56, int(detector[1]) + 5))


def _findings(found: Inspection, width: int) -> Image:
    """Return what to know, and what CameraInfo it makes, as a strip of text."""
    lines: list[tuple[str, tuple[int, int, int]]] = [(f'{found.path.name}: {found.modality}', _INK)]
    for finding in found.findings:
        words = f'{_WORDS[finding.kind]}: {finding.text}'
        lines += [(line, _COLOURS[finding.kind])
                  for line in textwrap.wrap(words, width // 8, subsequent_indent='    ')]
    lines += [(line.strip(), _INK) for line in (
        _meaning(found) if found.projection.is_calibrated else ())]
    canvas = np.full((24 * len(lines) + 24, width, 3), 255, np.uint8)
    for row, (line, colour) in enumerate(lines):
        _text(canvas, line, (16, 24 + 24 * row), colour)
    return canvas


def _pixel(place: Array) -> tuple[int, int]:
    # What lies far outside is cut off where OpenCV can still count.
    x, y = np.clip(np.nan_to_num(place), -1e6, 1e6).tolist()
    return round(x), round(y)


def _text(canvas: Image, words: str, place: tuple[int, int],
          colour: tuple[int, int, int] = _INK) -> None:
    # OpenCV's letters are ASCII.
    plain = words.replace('°', ' deg').encode('ascii', 'replace').decode()
    cv2.putText(canvas, plain, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
