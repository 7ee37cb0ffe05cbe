"""Volumes from files (CT, label maps), all taken to LPS axes and metres.

Files say whether their x runs to the patient's left (LPS: DICOM, NRRD) or right (RAS: NIfTI, and
NRRD that says so). Sources: NIfTI-1 (nifti1.h, 2007); NRRD (teem.sourceforge.net/nrrd); DICOM
PS3.3 C.7.6.2 (image plane), C.11.1 (modality LUT).
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.imaging.dicom import EXPORT, explained
from hybrid_guidance.imaging.frame import SourceError

# First and second axis change their direction.
RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_MAXIMUM_BYTES = 4 << 30
# How far a slice may be from where an even series would have it, as a share of the spacing.
_UNEVEN = 0.02


@dataclass(frozen=True)
class Volume:
    """A volume of numbers and where it is.

    Attributes:
        values: (Z, Y, X); of a CT Hounsfield units, of a label map whole numbers.
        patient_T_voxel: (4, 4) affine, (x, y, z) indices to metres in LPS axes.
    """

    values: NDArray[Any]
    patient_T_voxel: Transform

    @property
    def spacing(self) -> Array:
        """(3,) metres between neighbours along x, y, z of the array."""
        return np.asarray(np.linalg.norm(self.patient_T_voxel[:3, :3], axis=0))


def read_volume(path: str | Path, series: str | None = None) -> Volume:
    """Read a volume: .nii, .nii.gz, .nrrd, or a folder with the slices of a DICOM series.

    Args:
        path: of the file or folder.
        series: SeriesInstanceUID (or its end), for a folder that holds several series.

    Raises:
        SourceError: missing, unreadable, of another kind, without a place in the patient, with
            slices missing, or larger than plausible.
    """
    path = Path(path)
    if path.is_dir():
        return _dicom(path, series)
    if path.name.endswith(('.nii', '.nii.gz')):
        return _nifti(path, _content(path))
    if path.suffix == '.nrrd':
        return _nrrd(path, _content(path))
    raise SourceError(f'{path}: is no .nii, .nii.gz or .nrrd, and no folder of DICOM slices; '
                      'convert it to one')


def _content(path: Path) -> bytes:
    try:
        if not path.name.endswith('.gz'):
            return path.read_bytes()
        with gzip.open(path) as stream:
            data = stream.read(_MAXIMUM_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f'{path}: cannot be read ({error}); check the path, or copy it '
                          'again') from error
    if len(data) > _MAXIMUM_BYTES:
        raise SourceError(f'{path}: unpacks to more than {_MAXIMUM_BYTES >> 30} GiB; crop it')
    return data


_NIFTI_TYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4',
                1024: 'i8', 1280: 'u8'}


def _nifti(path: Path, data: bytes) -> Volume:
    order = next((order for order in '<>' if len(data) >= 352
                  and np.frombuffer(data, order + 'i4', 1)[0] == 348), None)
    if order is None:
        raise SourceError(f'{path}: is no NIfTI-1 file; convert it')

    def numbers(kind: str, offset: int, count: int) -> NDArray[Any]:
        return np.frombuffer(data, order + kind, count, offset)

    dim = numbers('i2', 40, 8)
    code = int(numbers('i2', 70, 1)[0])
    if code not in _NIFTI_TYPES or not 3 <= dim[0] <= 7 or np.any(dim[4:1 + dim[0]] > 1):
        raise SourceError(f'{path}: must be one 3-D volume of numbers; got size '
                          f'{dim[1:1 + dim[0]].tolist()}, type {code}; save it so')
    qform, sform = (int(value) for value in numbers('i2', 252, 2))
    scale = {0: 1e-3, 1: 1.0, 2: 1e-3, 3: 1e-6}.get(data[123] & 7, 1e-3)
    if sform > 0:
        affine = np.vstack([numbers('f4', 280, 12).reshape(3, 4).astype(float), [0, 0, 0, 1]])
    elif qform > 0:
        affine = _quaternion_affine(numbers('f4', 76, 8), numbers('f4', 256, 6))
    else:
        raise SourceError(f'{path}: does not say where it is in the patient (qform and '
                          'sform are 0); export it again')
    affine[:3] *= scale
    affine[:2] *= -1.0
    start = int(numbers('f4', 108, 1)[0])
    values = _array(path, data, order + _NIFTI_TYPES[code], start, dim[1:4])
    slope, shift = (float(value) for value in numbers('f4', 112, 2))
    # A slope of zero means that the values stand for themselves.
    if slope not in (0.0, 1.0) or (slope and shift):
        values = np.asarray(values * np.float32(slope) + np.float32(shift), np.float32)
    return Volume(values, _checked(path, affine))


def _quaternion_affine(spacing: NDArray[Any], numbers: NDArray[Any]) -> Transform:
    from transforms3d.quaternions import quat2mat

    b, c, d = (float(value) for value in numbers[:3])
    a = max(1.0 - b * b - c * c - d * d, 0.0) ** 0.5
    affine = np.eye(4)
    handed = -1.0 if spacing[0] < 0 else 1.0
    affine[:3, :3] = quat2mat((a, b, c, d)) * (spacing[1:4].astype(float) * (1.0, 1.0, handed))
    affine[:3, 3] = numbers[3:6]
    return affine


_NRRD_TYPES = {
    'uchar': 'u1', 'unsigned char': 'u1', 'uint8': 'u1', 'uint8_t': 'u1', 'signed char': 'i1',
    'int8': 'i1', 'int8_t': 'i1', 'short': 'i2', 'int16': 'i2', 'int16_t': 'i2', 'signed short':
    'i2', 'ushort': 'u2', 'unsigned short': 'u2', 'uint16': 'u2', 'uint16_t': 'u2', 'int': 'i4',
    'int32': 'i4', 'int32_t': 'i4', 'uint': 'u4', 'unsigned int': 'u4', 'uint32': 'u4', 'float':
    'f4', 'double': 'f8'}


def _nrrd(path: Path, data: bytes) -> Volume:
    head, gap, body = data.partition(b'\n\n')
    if not head.startswith(b'NRRD') or not gap:
        head, gap, body = data.partition(b'\r\n\r\n')
    if not head.startswith(b'NRRD') or not gap:
        raise SourceError(f'{path}: is no NRRD file with its data inside; convert it')
    fields = {key.strip().lower(): value.strip() for key, colon, value in
              (line.partition(':') for line in head.decode('ascii', 'replace').splitlines()[1:])
              if colon and not key.startswith('#') and not value.startswith('=')}
    try:
        space = fields['space'].lower()
        signs = {'left-posterior-superior': np.ones(3), 'lps': np.ones(3),
                 'right-anterior-superior': RAS_TO_LPS, 'ras': RAS_TO_LPS}[space]
        vectors = np.array([_vector(text) for text in fields['space directions'].split()])
        affine = np.eye(4)
        affine[:3, :3] = (vectors * signs).T * 1e-3
        affine[:3, 3] = _vector(fields['space origin']) * signs * 1e-3
        kind = ('>' if fields.get('endian', 'little') == 'big' else '<') + _NRRD_TYPES[
            fields['type'].lower()]
        sizes = np.array(fields['sizes'].split(), dtype=int)
        encoding = fields['encoding'].lower()
        if sizes.shape != (3,) or vectors.shape != (3, 3) or encoding not in (
                'raw', 'gzip', 'gz') or 'data file' in fields:
            raise ValueError(f'sizes {sizes.tolist()}, encoding {encoding}')
        body = body if encoding == 'raw' else gzip.decompress(body)
    except (KeyError, ValueError, OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f'{path}: must be one 3-D volume, raw or gzip, its data inside, in LPS or RAS '
            f'({error!r}); export it so') from error
    return Volume(_array(path, body, kind, 0, sizes), _checked(path, affine))


def _vector(text: str) -> Array:
    return np.array(text.strip('()').split(','), dtype=float)


def _array(path: Path, data: bytes, kind: str, start: int, sizes: NDArray[Any]) -> NDArray[Any]:
    count = int(np.prod(sizes.astype(np.int64)))
    if count < 1 or len(data) < start + count * np.dtype(kind).itemsize:
        raise SourceError(f'{path}: is cut short; copy it again')
    return np.frombuffer(data, kind, count, start).reshape(tuple(int(n) for n in sizes[::-1]))


def _checked(path: Path, affine: Transform) -> Transform:
    if not np.all(np.isfinite(affine)) or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-15:
        raise SourceError(f'{path}: its place in the patient is no place; export it again')
    return affine


def _dicom(folder: Path, series: str | None) -> Volume:
    """Read a series of single slices; Rescale Slope and Intercept make Hounsfield units."""
    with explained(f'{folder}: cannot be read as a DICOM series', EXPORT):
        slices = _slices(folder, series)
        first = slices[0]
        across = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
        for one in slices:
            if (one.Rows, one.Columns) != (first.Rows, first.Columns) or not np.allclose(
                    np.ravel(one.ImageOrientationPatient), across.ravel(), atol=1e-4):
                raise SourceError(f'{folder}: its slices differ in size or direction; keep one '
                                  'series in a folder')
        normal = np.cross(*across)
        slices.sort(key=lambda one: float(normal @ np.array(one.ImagePositionPatient, float)))
        places = np.array([one.ImagePositionPatient for one in slices], dtype=float)
        affine = np.eye(4)
        # Pixel Spacing is between rows, then between columns; x runs along a row.
        affine[:3, :2] = across.T * np.array(first.PixelSpacing, dtype=float)[::-1]
        affine[:3, 2] = _step(folder, places)
        affine[:3, 3] = places[0]
        affine[:3] *= 1e-3
        return Volume(np.stack([_hounsfield(one) for one in slices]), _checked(folder, affine))


def _slices(folder: Path, series: str | None) -> list[Any]:
    """Return the data sets of one series, refusing what cannot be put together."""
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob('*')):
        if not path.is_file() or path.read_bytes()[128:132] != b'DICM':
            continue
        one = pydicom.dcmread(path)
        if 'PixelData' in one and 'ImagePositionPatient' in one:
            found.setdefault(str(one.get('SeriesInstanceUID', '')), []).append(one)
    chosen = [name for name in found if series is None or name.endswith(series)]
    if not chosen:
        raise SourceError(f'{folder}: holds no DICOM slices that say where they are'
                          f'{f" of series {series}" if series else ""} (multi-frame files must '
                          'be saved as single slices); name another folder')
    if len(chosen) > 1:
        kinds = ', '.join(f'{name} ({found[name][0].get("SeriesDescription", "no description")}, '
                          f'{len(found[name])} slices)' for name in chosen)
        raise SourceError(f'{folder}: holds {len(chosen)} series: {kinds}; say which')
    if len(found[chosen[0]]) < 2:
        raise SourceError(f'{folder}: holds a single slice: no volume')
    return found[chosen[0]]


def _step(folder: Path, places: Array) -> Array:
    """Return the mean step between slices (sheared of a tilted gantry), if all are alike."""
    steps = np.diff(places, axis=0)
    step = steps.mean(axis=0)
    length = float(np.linalg.norm(step))
    usual = float(np.median(np.linalg.norm(steps, axis=1)))
    wrong = np.flatnonzero(np.linalg.norm(steps - np.median(steps, axis=0), axis=1)
                           > _UNEVEN * max(usual, 1e-6) + 1e-3)
    if len(wrong) or length < 1e-6:
        at = ', '.join(f'{places[index, 2]:.2f}' for index in wrong[:3])
        raise SourceError(f'{folder}: slices are missing or double (after z = {at} mm; they are '
                          f'{usual:.2f} mm apart elsewhere); export the whole series')
    return np.asarray(step)


def _hounsfield(one: Any) -> NDArray[Any]:
    slope, shift = (float(one.get(name, standard)) for name, standard in (
        ('RescaleSlope', 1.0), ('RescaleIntercept', 0.0)))
    pixels: NDArray[Any] = one.pixel_array
    if pixels.ndim != 2:
        raise ValueError(f'a slice of shape {pixels.shape} is not grey')
    values = pixels * slope + shift
    if slope.is_integer() and shift.is_integer() and np.abs(values).max(initial=0) < 32768:
        return np.asarray(values, np.int16)
    return np.asarray(values, np.float32)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as NIfTI-1 (.nii, .nii.gz), in RAS and millimetres as that format has it.

    Raises:
        SourceError: a type of number that NIfTI lacks.
    """
    kinds = {kind: code for code, kind in _NIFTI_TYPES.items()}
    kind = volume.values.dtype.str.lstrip('<>|=')
    if kind not in kinds:
        raise SourceError(f'{path}: NIfTI has no numbers of type {volume.values.dtype}; convert')
    affine = volume.patient_T_voxel[:3] * 1e3
    affine[:2] *= -1.0
    head = np.zeros(352, np.uint8)
    fields: Sequence[tuple[int, str, Any]] = (
        (0, 'i4', 348), (40, 'i2', [3, *volume.values.shape[::-1], 1, 1, 1, 1]),
        (70, 'i2', [kinds[kind], 8 * volume.values.dtype.itemsize]),
        (76, 'f4', [1.0, *(1e3 * volume.spacing), 0, 0, 0, 0]), (108, 'f4', 352.0),
        (123, 'u1', 2), (252, 'i2', [0, 1]), (280, 'f4', affine.ravel()),
        (344, 'u1', list(b'n+1\0')))
    for offset, form, value in fields:
        raw = np.atleast_1d(np.asarray(value, '<' + form)).view(np.uint8)
        head[offset:offset + len(raw)] = raw
    data = head.tobytes() + volume.values.astype('<' + kind).tobytes()
    path.write_bytes(gzip.compress(data, 4) if path.name.endswith('.gz') else data)
