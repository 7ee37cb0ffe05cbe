"""What a DICOM file says of its geometry: what is there, what is missing, what contradicts itself.

Tags: DICOM PS3.3 C.8.7.5 (XA positioner), C.8.7.2 (X-ray acquisition), C.8.7.1 (image), 10.7.1.3
and 10.7.1.1 (pixel spacing and its calibration), C.8.5.5 (ultrasound regions).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.dicom import (
    ANGLES_DEG,
    ECHO_MM,
    EXPORT,
    MODALITIES,
    SOURCE_MM,
    DicomRecording,
    Gantry,
    Modality,
    explained,
    find_value,
    isocentre_mm,
    number_of,
    numbers_of,
    open_dicom,
    positive_of,
    read_dataset,
)
from hybrid_guidance.imaging.frame import SourceError

Kind = Literal['missing', 'contradiction', 'assumed', 'note']

_PITCH_MM = (0.05, 1.0)
_SIDES = {'LAO': ('PositionerPrimaryAngle', 1.0), 'RAO': ('PositionerPrimaryAngle', -1.0),
          'CRA': ('PositionerSecondaryAngle', 1.0), 'CAU': ('PositionerSecondaryAngle', -1.0)}
_TEXTS = ('SeriesDescription', 'ProtocolName', 'StudyDescription', 'ImageComments',
          'AcquisitionProtocolName')
_SURE_DEG = 3.0
_XRAY_FACTS = (
    ('DistanceSourceToDetector', '0018,1110', 'mm', 'source to detector (SID)'),
    ('DistanceSourceToPatient', '0018,1111', 'mm', 'source to patient, isocentre (SOD)'),
    ('DistanceSourceToIsocenter', '0018,9402', 'mm', 'source to isocentre'),
    ('EstimatedRadiographicMagnificationFactor', '0018,1114', '', 'magnification'),
    ('PositionerPrimaryAngle', '0018,1510', 'deg', 'primary angle, LAO positive'),
    ('PositionerSecondaryAngle', '0018,1511', 'deg', 'secondary angle, cranial positive'),
    ('ImagerPixelSpacing', '0018,1164', 'mm', 'pixel pitch at the detector (row, column)'),
    ('PixelSpacing', '0028,0030', 'mm', 'pixel spacing as calibrated (row, column)'),
    ('PixelSpacingCalibrationType', '0028,0A02', '', 'how that was calibrated'),
    ('DetectorElementSpacing', '0018,7022', 'mm', 'detector elements'),
    ('DetectorBinning', '0018,701A', '', 'detector binning'),
    ('IntensifierSize', '0018,1162', 'mm', 'intensifier diameter'),
    ('FieldOfViewDimensions', '0018,1149', 'mm', 'field of view'),
    ('FieldOfViewOrigin', '0018,7030', 'elements', 'corner of the field of view'),
    ('FieldOfViewRotation', '0018,7032', 'deg', 'field of view turned'),
    ('FieldOfViewHorizontalFlip', '0018,7034', '', 'field of view mirrored'),
    ('PatientOrientation', '0020,0020', '', 'where rows and columns run'),
    ('PatientPosition', '0018,5100', '', 'patient on the table'),
    ('PositionerMotion', '0018,1500', '', 'C-arm moves'),
)


@dataclass(frozen=True)
class Finding:
    """Something to know: ``kind``, what it is, and what to do about it ('' for nothing)."""

    kind: Kind
    text: str
    cure: str = ''


@dataclass(frozen=True)
class Inspection:
    """What was found in one file.

    Attributes:
        path: of the file.
        modality: what it holds.
        frames: how many.
        facts: (name, value with its unit, DICOM tag) of what the file says.
        findings: what is missing, contradicts itself, was assumed, or should be known.
        enter: what to enter by hand, line by line.
        projection: what ``CameraInfo`` becomes.
        gantry: how the C-arm stood; of X-rays.
        pixels: the middle frame.
    """

    path: Path
    modality: Modality
    frames: int
    facts: tuple[tuple[str, str, str], ...]
    findings: tuple[Finding, ...]
    enter: tuple[str, ...]
    projection: Projection
    gantry: Gantry | None
    pixels: Image


def inspect_dicom(path: str | Path) -> Inspection:
    """Read a file and judge its geometry.

    Raises:
        SourceError: no DICOM, damaged, without pixels, or of a modality that has neither a
            projection nor a scan plane of ultrasound.
    """
    path = Path(path)
    with explained(f'{path}: cannot be read as DICOM', EXPORT):
        dataset = read_dataset(path)
        found = str(dataset.get('Modality') or '').strip()
    modality: Modality | None = next(
        (name for name, codes in MODALITIES.items() if found in codes), None)
    if modality is None:
        known = ', '.join(code for codes in MODALITIES.values() for code in codes)
        raise SourceError(f'{path}: modality {found or "(not stated)"} is neither X-ray projection '
                          f'nor ultrasound; this inspects {known}')
    recording = open_dicom(path, modality)
    with explained(f'{path}: cannot be inspected', EXPORT):
        facts, findings, enter = _judged(dataset, recording, modality)
    return Inspection(path, modality, len(recording), facts, findings, enter,
                      recording.projection, recording.gantry,
                      recording[len(recording) // 2].pixels)


_Judgement = tuple[tuple[tuple[str, str, str], ...], tuple[Finding, ...], tuple[str, ...]]


def _judged(dataset: Any, recording: DicomRecording, modality: Modality) -> _Judgement:
    notes = tuple(_from_note(note) for note in recording.notes)
    if modality == 'fluoroscopy':
        checks: tuple[Callable[[Any], Iterable[Finding]], ...] = (
            _missing_xray, _distances, _spacings, _angles, _orientation)
        findings = tuple(finding for check in checks for finding in check(dataset))
        # What is missing and how the C-arm stands are said already, with what to do.
        notes = tuple(note for note in notes if not note.text.startswith(('uncal', 'C-arm at')))
        return _facts(dataset, _XRAY_FACTS), _unique(findings + notes), _enter_camera(
            dataset, recording)
    findings = tuple(_ultrasound(dataset))
    return _region_facts(dataset), _unique(findings + notes), _enter_plane(recording)


def _unique(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Drop what is said already, and sort by weight."""
    order: tuple[Kind, ...] = ('contradiction', 'missing', 'assumed', 'note')
    kept = dict.fromkeys(findings)
    return tuple(sorted(kept, key=lambda finding: order.index(finding.kind)))


def _from_note(note: str) -> Finding:
    """Return a note of ``open_dicom`` as a finding."""
    if note.startswith('uncalibrated'):
        return Finding('missing', note)
    if 'assumed' in note:
        return Finding('assumed', note)
    return Finding('contradiction' if 'verify' in note else 'note', note)


def _facts(dataset: Any, rows: Iterable[tuple[str, str, str, str]]) -> tuple[
        tuple[str, str, str], ...]:
    facts = []
    for keyword, tag, unit, name in rows:
        value = find_value(dataset, keyword)
        if value not in (None, ''):
            text = (' x '.join(str(part) for part in value)
                    if not isinstance(value, (str, int, float)) else str(value))
            facts.append((name, f'{text} {unit}'.strip()[:80], tag))
    return tuple(facts)


def _missing_xray(dataset: Any) -> Iterable[Finding]:
    cures = (
        ('DistanceSourceToDetector', 'source to detector (0018,1110)',
         'read it on the console (SID), or calibrate with "hybrid-guidance calibrate carm"'),
        ('ImagerPixelSpacing', 'pixel pitch at the detector (0018,1164)',
         'width of the detector field in mm divided by columns, or calibrate'),
        ('PositionerPrimaryAngle', 'primary angle (0018,1510)', 'read it on the console'),
        ('PositionerSecondaryAngle', 'secondary angle (0018,1511)', 'read it on the console'))
    for keyword, name, cure in cures:
        values = numbers_of(dataset, keyword, 2 if keyword == 'ImagerPixelSpacing' else 1)
        if values is None:
            yield Finding('missing', f'{name} is not in the file, or is no number', cure)
        elif keyword not in ANGLES_DEG and min(values) <= 0.0:
            yield Finding('missing', f'{name} is in the file, but not above zero', cure)
    if isocentre_mm(dataset) is None:
        yield Finding('missing', 'source to isocentre (0018,1111 or 0018,9402) is not in the file',
                      'needed for the pose of the source, not for CameraInfo; a property of the '
                      'C-arm, in its manual')


def _distances(dataset: Any) -> Iterable[Finding]:
    """Compare the distances with each other and with what C-arms are like."""
    detector, patient = positive_of(dataset, 'DistanceSourceToDetector'), isocentre_mm(dataset)
    for name, value in (('source to detector', detector), ('source to patient', patient)):
        if value is not None and not SOURCE_MM[0] <= value <= SOURCE_MM[1]:
            hint = ' (centimetres or metres instead of millimetres?)' if value < 250 else ''
            yield Finding('contradiction', f'{name} of {value:g} mm is not that of a C-arm{hint}',
                          'measure it')
    if detector and patient and patient >= detector:
        yield Finding('contradiction', f'the patient, {patient:g} mm from the source, is not '
                      f'between source and detector, {detector:g} mm', 'measure both')
    stated = positive_of(dataset, 'EstimatedRadiographicMagnificationFactor')
    if detector and patient and stated and abs(stated * patient / detector - 1.0) > 0.01:
        yield Finding('contradiction', f'magnification is stated as {stated:.4g}, the distances '
                      f'make it {detector / patient:.4g} ({detector:g} / {patient:g} mm)',
                      'one of the three is of another moment; trust the focal length only after '
                      'calibrating it')


def _spacings(dataset: Any) -> Iterable[Finding]:
    imager = numbers_of(dataset, 'ImagerPixelSpacing', 2)
    pixel = numbers_of(dataset, 'PixelSpacing', 2)
    if imager and not all(_PITCH_MM[0] <= value <= _PITCH_MM[1] for value in imager):
        yield Finding('contradiction', f'pixel pitch of {imager} mm is not that of a detector',
                      'check its unit')
    if imager and min(imager) > 0 and abs(imager[0] / imager[1] - 1.0) > 0.01:
        yield Finding('note', f'pixels are not square: {imager} mm (row, column)')
    if pixel is None:
        return
    if imager is None:
        yield Finding('note', f'PixelSpacing {pixel} mm is the scale at some depth in the patient, '
                      'not the pitch at the detector; it gives no focal length by itself',
                      'times SID / SOD, if it was calibrated at the isocentre, it is the pitch')
        return
    detector, patient = positive_of(dataset, 'DistanceSourceToDetector'), isocentre_mm(dataset)
    ratio = imager[1] / pixel[1] if pixel[1] > 0 else 0.0
    if abs(ratio - 1.0) < 0.005:
        yield Finding('note', 'PixelSpacing equals ImagerPixelSpacing: a length in the patient is '
                      'shorter than it measures, by the magnification')
    elif detector and patient and abs(ratio * patient / detector - 1.0) > 0.02:
        yield Finding('contradiction', f'PixelSpacing says that the patient is magnified '
                      f'{ratio:.4g} times, the distances say {detector / patient:.4g} times',
                      'PixelSpacing was calibrated at another depth, or the table moved')


def _angles(dataset: Any) -> Iterable[Finding]:
    values = {keyword: number_of(dataset, keyword) for keyword in ANGLES_DEG}
    for keyword, value in values.items():
        if value is not None and abs(value) > (limit := ANGLES_DEG[keyword]):
            yield Finding('contradiction', f'{keyword} of {value:g} degrees is outside '
                          f'+-{limit:g}', 'check its unit and sign on the console')
    words = ' '.join(str(find_value(dataset, keyword) or '') for keyword in _TEXTS).upper()
    for side in re.findall(r'(?<![A-Z])(LAO|RAO|CRA|CAU)(?:N|D|NIAL|DAL)?(?![A-Z])', words):
        keyword, sign = _SIDES[side]
        value = values[keyword]
        if value is not None and value * sign < -_SURE_DEG:
            yield Finding('contradiction', f'its description says {side}, {keyword} is {value:g} '
                          'degrees, which is the other side',
                          'the sign is wrong, or the patient lay otherwise: find out before use')
    primary = values['PositionerPrimaryAngle']
    if primary is not None and _SURE_DEG < abs(primary) < 90.0:
        side, right = ('LAO', 'right') if primary > 0 else ('RAO', 'left')
        yield Finding('note', f'{abs(primary):g} degrees {side}, if it was counted as DICOM does',
                      f"in a chest with the patient's left on the right of the picture, {side} has "
                      f'the spine on the {right} of the heart')
    position = str(find_value(dataset, 'PatientPosition') or '').upper()
    if position and position != 'HFS':
        yield Finding('note', f'the patient lay {position}, not HFS: angles are about the patient, '
                      'so those on the console may differ from them')
    if number_of(dataset, 'PositionerIsocenterPrimaryAngle') is not None and \
            values['PositionerPrimaryAngle'] is None:
        yield Finding('note', 'angles are given in the isocentre system of the room '
                      '(0018,9463), not about the patient; they are not used')


def _orientation(dataset: Any) -> Iterable[Finding]:
    flip = str(find_value(dataset, 'FieldOfViewHorizontalFlip') or '').strip().upper()
    turn = number_of(dataset, 'FieldOfViewRotation')
    if flip == 'YES' or (turn or 0.0) % 360.0:
        yield Finding('note', f'the field of view was {"mirrored" if flip == "YES" else "turned"} '
                      f'after reading out{f", by {turn:g} degrees" if turn else ""}; the principal '
                      'point takes that into account')
    if turn is not None and turn % 90.0:
        yield Finding('contradiction', f'FieldOfViewRotation of {turn:g} degrees is no quarter '
                      'turn')


def _enter_camera(dataset: Any, recording: DicomRecording) -> tuple[str, ...]:
    projection = recording.projection
    width, height = projection.width, projection.height
    if projection.is_calibrated:
        fx, fy = projection.matrix[0, 0], projection.matrix[1, 1]
        cx, cy = projection.matrix[:2, 2]
        return ('nothing for CameraInfo; as "camera" of kind carm in a calibration file it is',
                f'    focal: [{fx:.2f}, {fy:.2f}]', f'    centre: [{cx:.2f}, {cy:.2f}]',
                '    distortion: [0, 0, 0, 0, 0]', f'    size: [{width}, {height}]')
    sid = positive_of(dataset, 'DistanceSourceToDetector')
    pitch = numbers_of(dataset, 'ImagerPixelSpacing', 2)
    field = positive_of(dataset, 'IntensifierSize') or max(
        numbers_of(dataset, 'FieldOfViewDimensions', 2) or (0.0,))
    lines = ['in a calibration file, kind carm, block "camera":',
             '    focal: [SID / pitch, SID / pitch]   # SID and pitch both in mm']
    if pitch is None or min(pitch) <= 0.0:
        lines.append(
            f'    # pitch: {field:g} mm of field / {max(width, height)} pixels = '
            f'{field / max(width, height):.4f} mm, if all of it is shown' if field else
            f'    # pitch: width of the field on the detector in mm / {width} pixels')
    example_sid = sid or 1000.0
    example_pitch = pitch[1] if pitch and pitch[1] > 0.0 else (field or 200.0) / width
    lines += [f'    # for example SID {example_sid:g} mm and pitch {example_pitch:.4f} mm: '
              f'{example_sid / example_pitch:.0f} pixels',
              f'    centre: [{(width - 1) / 2:g}, {(height - 1) / 2:g}]   # the middle, if '
              'nothing better is known', '    distortion: [0, 0, 0, 0, 0]',
              f'    size: [{width}, {height}]',
              'better: a phantom of beads and "hybrid-guidance calibrate carm"']
    return tuple(lines)


def _region_facts(dataset: Any) -> tuple[tuple[str, str, str], ...]:
    facts = []
    for count, region in enumerate(dataset.get('SequenceOfUltrasoundRegions') or (), 1):
        name = f'region {count}'
        corners = [region.get(f'RegionLocation{corner}') for corner in (
            'MinX0', 'MinY0', 'MaxX1', 'MaxY1')]
        facts.append((f'{name}, pixels', f'{corners[:2]} to {corners[2:]}', '0018,6018...601E'))
        units = region.get('PhysicalUnitsXDirection')
        facts.append((f'{name}, spacing', f'{region.get("PhysicalDeltaX")} x '
                      f'{region.get("PhysicalDeltaY")} (unit {units}; 3 is cm)',
                      '0018,602C 602E'))
        if region.get('ReferencePixelX0') is not None:
            facts.append((f'{name}, reference pixel', f'{region.get("ReferencePixelX0")}, '
                          f'{region.get("ReferencePixelY0")}', '0018,6020 6022'))
    return (*facts, *_facts(dataset, (('PixelSpacing', '0028,0030', 'mm', 'pixel spacing'),)))


def _ultrasound(dataset: Any) -> Iterable[Finding]:
    regions = list(dataset.get('SequenceOfUltrasoundRegions') or ())
    pixel = numbers_of(dataset, 'PixelSpacing', 2)
    for count, region in enumerate(regions, 1):
        across, down = (positive_of(region, f'PhysicalDelta{axis}') for axis in 'XY')
        if across and down and region.get('RegionSpatialFormat') == 1 \
                and abs(across / down - 1.0) > 0.01:
            yield Finding('note', f'region {count}: pixels are not square, {across * 10:.4g} x '
                          f'{down * 10:.4g} mm')
        if across and down and region.get('RegionSpatialFormat') == 1 and not all(
                ECHO_MM[0] <= 10 * delta <= ECHO_MM[1] for delta in (across, down)):
            yield Finding('contradiction', f'region {count} has {across * 10:.4g} x '
                          f'{down * 10:.4g} mm per pixel, which is not that of an ultrasound image',
                          'measure the depth scale on the screen')
        if across and down and pixel and region.get('PhysicalUnitsXDirection') == 3 and (
                abs(pixel[1] / (10 * across) - 1.0) > 0.02
                or abs(pixel[0] / (10 * down) - 1.0) > 0.02):
            yield Finding('contradiction', f'region {count} has {across * 10:.4g} x '
                          f'{down * 10:.4g} mm per pixel, PixelSpacing says {pixel[1]:g} x '
                          f'{pixel[0]:g} mm',
                          'the region is used; measure the depth scale on the screen')
        yield from _corners(region, f'region {count}', int(dataset.Columns), int(dataset.Rows))


def _corners(region: Any, name: str, columns: int, rows: int) -> Iterable[Finding]:
    """Say where a region does not lie in its image."""
    left, top, right, bottom = (int(number_of(region, f'RegionLocation{corner}') or 0)
                                for corner in ('MinX0', 'MinY0', 'MaxX1', 'MaxY1'))
    if right <= left or bottom <= top:
        yield Finding('contradiction', f'{name} goes from ({left}, {top}) to ({right}, {bottom}): '
                      'its end lies before its beginning, so it is not used')
    elif right >= columns or bottom >= rows:
        yield Finding('contradiction', f'{name} ends at ({right}, {bottom}), outside the image of '
                      f'{columns} x {rows}',
                      'the image was made smaller after it was stored, and its scale is wrong')


def _enter_plane(recording: DicomRecording) -> tuple[str, ...]:
    projection = recording.projection
    if projection.is_calibrated:
        sx, sy = 1.0 / projection.matrix[0, 0], 1.0 / projection.matrix[1, 1]
        u0, v0 = projection.matrix[:2, 3]
        return ('nothing for CameraInfo; as "image" of kind ultrasound-spatial in a calibration '
                'file it is', f'    spacing: [{sx:.6g}, {sy:.6g}]   # m per pixel',
                f'    origin: [{u0:.1f}, {v0:.1f}]', 'where the image is in space no DICOM file '
                'says: "hybrid-guidance calibrate ultrasound-spatial"')
    return ('in a calibration file, kind ultrasound-spatial, block "image":',
            '    spacing: [x, y]   # m per pixel: metres between two marks of the depth scale on '
            'the screen / pixels between them',
            f'    origin: [{(projection.width - 1) / 2:g}, v]   # pixel of the mid transducer face')


def camera_info(projection: Projection) -> dict[str, Any]:
    """Return width, height, k and p as they go over the wire; k[0] of 0 is uncalibrated."""
    matrix = np.asarray(projection.matrix, dtype=float)
    k = np.zeros((3, 3))
    if projection.is_calibrated:
        k = np.array([[matrix[0, 0], matrix[0, 1], matrix[0, 2] + matrix[0, 3]],
                      [matrix[1, 0], matrix[1, 1], matrix[1, 2] + matrix[1, 3]], [0.0, 0.0, 1.0]])
    return {'width': projection.width, 'height': projection.height, 'k': (k + 0.0).ravel().tolist(),
            'p': (matrix + 0.0).ravel().tolist()}
