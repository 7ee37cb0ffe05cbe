"""Probe calibrations made with the PLUS toolkit, from its device set or result files.

PLUS's ``Image`` to ``Probe`` matrix takes a pixel (u, v) to millimetres in the probe's marker
frame and carries the pixel spacing in its columns. Here it is taken apart: spacing and skew into
an ``ImageGeometry``, the rest into a rigid ``ultrasound_probe_T_ultrasound_image`` with x lateral
(along u), y depth (in the plane, at right angles to u) and z = x × y elevation, right-handed.
PLUS fits its columns without asking for right angles, so that they may be sheared; nothing of
that is lost. PLUS's own third column may point the other way and is scaled arbitrarily; a slice
has no pixels there, so it is not used.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from hybrid_guidance.calibration.file import KINDS, Calibration, CalibrationError
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.imaging.geometry import ImageGeometry

_MAXIMUM_FILE = 64 << 20
_DATE_FORMATS = ('%Y.%m.%d %H:%M:%S', '%m%d%y_%H%M%S')
_REPEAT = 'repeat the calibration in PLUS'
_VALID_FOR = timedelta(days=365)
_DOUBTFUL_SHEAR = 0.01
_MAXIMUM_SHEAR = 0.5


def read_plus_config(path: str | Path, width: int, height: int | None = None,
                     origin_px: tuple[float, float] | None = None, *,
                     date: datetime | None = None, expires: datetime | None = None,
                     deviation: tuple[float, ...] | None = None, image: str = 'Image',
                     probe: str = 'Probe') -> Calibration:
    """Read the probe calibration out of a PLUS XML file.

    Without ``deviation`` the uncertainty comes from the error that the file states: that error
    (of a point, in three dimensions) for each axis, and the same at half the image's diagonal
    for each angle. Image axes more than 1 % off a right angle are taken as they are, and
    ``method`` says so: they tell of a poor fit.

    Args:
        path: device set configuration or calibration result.
        width: of the image in pixels.
        height: of the image in pixels, by default 3/4 of the width; only uncertainty needs it.
        origin_px: pixel of the mid transducer face; by default the file's TransducerOriginPixel
            or TransducerCenterPixel, else the top centre of the image.
        date: when it was made, where the file does not say or to overrule it.
        expires: until when it may be used; by default a year from then.
        deviation: standard deviations (m, m, m, rad, rad, rad) in the probe's axes.
        image: PLUS's name for the image frame.
        probe: PLUS's name for the probe's marker frame.

    Returns:
        Calibration of kind ``ultrasound-spatial``. For every pixel (u, v), ``transform`` applied
        to ``image.projection((width, height)).back_project((u, v))`` is PLUS's matrix times
        (u, v, 0, 1), in metres.

    Raises:
        CalibrationError: unreadable, no or several such transforms, degenerate matrix, no date,
            expiry before the date, or nothing that tells how exact it is.
    """
    path = Path(path)
    size = (width, round(0.75 * width) if height is None else height)
    root = parse(path)
    element = _transform_element(path, root, image, probe)
    matrix = read_matrix(path, element)
    origin, origin_from = _origin(path, root, width, origin_px, image)
    geometry, transform = _split(path, matrix, origin)
    held_out, residual = _errors(path, root, element)
    made, until = _dates(path, element, date, expires)
    parent, child = KINDS['ultrasound-spatial']
    diagonal = float(np.hypot(size[0] * geometry.spacing[0], size[1] * geometry.spacing[1]))
    return Calibration(
        kind='ultrasound-spatial', parent=parent, child=child, transform=transform,
        covariance=_covariance(path, deviation, held_out, residual, diagonal / 2.0),
        method=f'PLUS {image}To{probe}, origin {origin_from}{_doubt(geometry)}', date=made,
        expires=until, samples=None, inliers=None, residual=residual, held_out_error=held_out,
        made_by=f'PLUS, {path.name}', image=geometry)


def parse(path: Path) -> ElementTree.Element:
    """Parse XML that declares no entities."""
    try:
        if path.stat().st_size > _MAXIMUM_FILE:
            raise CalibrationError(f'{path}: larger than any PLUS file; check the path')
        text = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f'{path}: cannot be read ({error.strerror or error}); '
                               'check the path of the PLUS file') from error
    parser = ElementTree.XMLParser(target=_NoDoctype(path))
    try:
        return ElementTree.fromstring(text, parser)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise CalibrationError(f'{path}: is not valid XML ({error}); '
                               'export it again from PLUS') from error


class _NoDoctype(ElementTree.TreeBuilder):
    """Stops at a document type, the only place where entities can be declared."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse."""
        raise CalibrationError(f'{self._path}: has a DOCTYPE, which no PLUS file has; remove it')


def transform_elements(root: ElementTree.Element, source: str,
                       target: str) -> Iterator[ElementTree.Element]:
    """Yield the elements that take points from one frame to another."""
    for element in root.iter('Transform'):
        if element.get('From') == source and element.get('To') == target:
            yield element


def _transform_element(path: Path, root: ElementTree.Element, source: str,
                       target: str) -> ElementTree.Element:
    elements = list(transform_elements(root, source, target))
    if not elements:
        raise CalibrationError(f'{path}: has no transform from {source!r} to {target!r}; '
                               'name the frames as that file does, or calibrate the probe in PLUS')
    if len({' '.join((element.get('Matrix') or '').split()) for element in elements}) > 1:
        raise CalibrationError(f'{path}: has {len(elements)} different transforms from '
                               f'{source!r} to {target!r}; keep one')
    return elements[0]


def read_matrix(path: Path, element: ElementTree.Element) -> Array:
    """Return the (4, 4) matrix of an element in millimetres."""
    name = f'{element.get("From")}To{element.get("To")}'
    try:
        values = np.array([float(token) for token in (element.get('Matrix') or '').split()])
    except ValueError:
        values = np.empty(0)
    if values.size != 16 or not np.all(np.isfinite(values)):
        raise CalibrationError(f'{path}: the matrix {name} is not 16 finite numbers; {_REPEAT}')
    matrix = values.reshape(4, 4)
    if not np.allclose(matrix[3], (0.0, 0.0, 0.0, 1.0), atol=1e-9):
        raise CalibrationError(f'{path}: the last row of {name} is not 0 0 0 1; {_REPEAT}')
    return matrix


def _origin(path: Path, root: ElementTree.Element, width: int,
            origin_px: tuple[float, float] | None,
            image: str) -> tuple[tuple[float, float], str]:
    """Return the pixel of the mid transducer face, and where it comes from."""
    if origin_px is not None:
        return (float(origin_px[0]), float(origin_px[1])), 'given'
    for element in transform_elements(root, image, 'TransducerOriginPixel'):
        matrix = read_matrix(path, element)
        if np.allclose(matrix[:2, :2], np.eye(2)):
            return (float(-matrix[0, 3]), float(-matrix[1, 3])), 'at TransducerOriginPixel'
    for conversion in root.iter('ScanConversion'):
        centre = (conversion.get('TransducerCenterPixel') or '').split()
        if conversion.get('OutputImageSizePixel', '').split()[:1] == [str(width)] \
                and len(centre) == 2 and all(word.isdecimal() for word in centre):
            return (float(centre[0]), float(centre[1])), 'at TransducerCenterPixel'
    return ((width - 1) / 2.0, 0.0), 'assumed at the top centre of the image'


def _split(path: Path, matrix: Array,
           origin: tuple[float, float]) -> tuple[ImageGeometry, Transform]:
    """Take a pixel-to-millimetre matrix apart into an image plane and a rigid transform (m)."""
    along_u, along_v = matrix[:3, :2].T
    lengths_mm = np.linalg.norm(matrix[:3, :2], axis=0)
    if not np.all((lengths_mm > 1e-4) & (lengths_mm < 10.0)):
        raise CalibrationError(f'{path}: pixel spacing of {lengths_mm} mm is not plausible; '
                               f'{_REPEAT}')
    shear = float(along_u @ along_v / np.prod(lengths_mm))
    if abs(shear) > _MAXIMUM_SHEAR:
        raise CalibrationError(
            f'{path}: its image axes are {np.rad2deg(np.arccos(np.clip(shear, -1, 1))):.2f}° '
            f'apart, which is no image plane; {_REPEAT} with more images or a rigid fit')
    x = along_u / lengths_mm[0]
    skew_mm = float(along_v @ x)
    across = along_v - skew_mm * x
    depth_mm = float(np.linalg.norm(across))
    y = across / depth_mm
    corner = matrix @ np.array([*origin, 0.0, 1.0])
    transform = rigid.transform(np.column_stack([x, y, np.cross(x, y)]), corner[:3] * 1e-3)
    spacing = (float(lengths_mm[0]) * 1e-3, depth_mm * 1e-3)
    return ImageGeometry(spacing, origin, skew_mm * 1e-3), transform


def _doubt(geometry: ImageGeometry) -> str:
    """Return a warning in words where the axes are far from right angles, else nothing."""
    shear = geometry.skew / float(np.hypot(geometry.skew, geometry.spacing[1]))
    if abs(shear) <= _DOUBTFUL_SHEAR:
        return ''
    return f'; its image axes are sheared by {abs(shear):.1%}, a sign of a poor fit'


def _errors(path: Path, root: ElementTree.Element,
            element: ElementTree.Element) -> tuple[float | None, float | None]:
    """Return held-out error and residual in metres, where the file states them."""
    statistics = next(root.iter('ReprojectionError3DStatistics'), None)
    if statistics is not None:
        return (read_length(path, statistics, 'ValidationMeanMm'),
                read_length(path, statistics, 'CalibrationMeanMm'))
    return None, read_length(path, element, 'Error')


def read_length(path: Path, element: ElementTree.Element, attribute: str) -> float | None:
    """Return an attribute in millimetres as metres; None where there is none."""
    text_mm = element.get(attribute)
    if text_mm is None:
        return None
    try:
        length_mm = float(text_mm)
    except ValueError:
        length_mm = float('nan')
    if not (np.isfinite(length_mm) and length_mm >= 0.0):
        raise CalibrationError(f'{path}: {attribute}="{text_mm}" is not an error in millimetres; '
                               f'{_REPEAT}')
    return length_mm * 1e-3


def _covariance(path: Path, deviation: tuple[float, ...] | None, held_out: float | None,
                residual: float | None, radius: float) -> Array:
    """Return the (6, 6) covariance; ``radius`` in metres is the lever of an angle."""
    if deviation is not None:
        given = np.asarray(deviation, dtype=float)
        if given.shape != (6,) or not np.all(np.isfinite(given)) or np.any(given < 0.0):
            raise CalibrationError(f'{path}: deviation must be six numbers, not below zero')
        return np.diag(given**2)
    error = held_out if held_out is not None else residual
    if not error:
        raise CalibrationError(f'{path}: states no error of this calibration; '
                               'give its standard deviations')
    return np.diag(np.array([error] * 3 + [error / radius] * 3)**2)


def _dates(path: Path, element: ElementTree.Element, date: datetime | None,
           expires: datetime | None) -> tuple[datetime, datetime]:
    """Return when the calibration was made and until when it may be used."""
    made = _date(path, element) if date is None else _utc(date)
    until = made + _VALID_FOR if expires is None else _utc(expires)
    if until <= made:
        raise CalibrationError(f'{path}: made on {made:%Y-%m-%d}, it cannot expire on '
                               f'{until:%Y-%m-%d}; give a later expiry')
    return made, until


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _date(path: Path, element: ElementTree.Element) -> datetime:
    text = element.get('Date') or ''
    dates = [_parsed_date(text, form) for form in _DATE_FORMATS]
    found = next((parsed for parsed in dates if parsed is not None), None)
    if found is None:
        raise CalibrationError(f'{path}: date "{text}" of the calibration is missing or unknown; '
                               'give the date (import-plus --date)')
    return found


def _parsed_date(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
