"""Targets, entries, label maps and meshes from files, all taken to LPS axes and metres.

Files say whether their x runs to the patient's left (LPS: DICOM, NRRD, 3D Slicer's newer files) or
right (RAS: NIfTI, older markups). One that does not say so is refused unless the user does.
Sources: 3D Slicer, "Markups" (JSON schema 1.0.3, fiducial CSV); NIfTI-1 (nifti1.h, 2007);
NRRD (teem.sourceforge.net/nrrd/format.html).
"""

import csv
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.planning.anatomy_map import MeshSource

# First and second axis change their direction.
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


class PlanningFileError(ValueError):
    """A file that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class LabelMap:
    """A label map.

    Attributes:
        labels: (Z, Y, X) whole numbers.
        patient_T_voxel: (4, 4) affine, (x, y, z) indices to m in LPS axes.
    """

    labels: NDArray[Any]
    patient_T_voxel: Transform


def _axes(path: Path, said: str | None, given: str | None) -> Array:
    """Return the signs that take a file's axes to LPS, from what it says or the user does."""
    if said is not None and given is not None and said.upper() != given.upper():
        raise PlanningFileError(f'{path}: says {said}, you say {given}; leave one out')
    space = (said or given or '').upper()
    if space not in ('LPS', 'RAS'):
        raise PlanningFileError(f'{path}: does not say whether it is in LPS or RAS axes '
                                f'({space or "nothing"}); say which')
    return np.ones(3) if space == 'LPS' else _RAS_TO_LPS


def read_markups(path: Path, space: str | None = None) -> dict[str, Points]:
    """Read the points of a 3D Slicer markups file (.mrk.json or .fcsv).

    Args:
        path: of the file.
        space: ``LPS`` or ``RAS``, only for a file that does not say.

    Returns:
        Label to (3,) m in LPS axes.

    Raises:
        PlanningFileError: unreadable, without points, or in unknown axes.
    """
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise PlanningFileError(f'{path}: cannot be read ({error})') from error
    points = (_fiducials(path, text, space) if path.suffix == '.fcsv'
              else _markups(path, text, space))
    if not points:
        raise PlanningFileError(f'{path}: holds no placed point; place one in 3D Slicer')
    for label, point in points.items():
        if not np.all(np.isfinite(point)):
            raise PlanningFileError(f'{path}: point "{label}" is not finite; place it again')
    return points


def _markups(path: Path, text: str, space: str | None) -> dict[str, Points]:
    points: dict[str, Points] = {}
    try:
        for markup in json.loads(text)['markups']:
            signs = _axes(path, _named_space(markup.get('coordinateSystem')), space)
            scale = {'mm': 1e-3, 'm': 1.0, 'cm': 1e-2}[markup.get('coordinateUnits', 'mm')]
            for point in markup['controlPoints']:
                if point.get('positionStatus', 'defined') == 'defined':
                    place = np.array(point['position'], dtype=float)
                    if place.shape != (3,):
                        raise ValueError('a position must be three numbers')
                    _add(path, points, str(point.get('label') or point.get('id')),
                         scale * signs * place)
    except PlanningFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanningFileError(
            f'{path}: is no markups file of 3D Slicer ({error!r}); export it again') from error
    return points


def _named_space(value: Any) -> str | None:
    """Return a coordinate system's name; Slicer also writes it as a number (0 RAS, 1 LPS)."""
    return {None: None, 0: 'RAS', 1: 'LPS', '0': 'RAS', '1': 'LPS'}.get(value, str(value))


def _fiducials(path: Path, text: str, space: str | None) -> dict[str, Points]:
    said, columns = None, ['id', 'x', 'y', 'z', 'ow', 'ox', 'oy', 'oz',
                           'vis', 'sel', 'lock', 'label']
    points: dict[str, Points] = {}
    for line in text.splitlines():
        key, equals, value = line.lstrip('# ').partition('=')
        if line.startswith('#') and equals and key.strip() == 'CoordinateSystem':
            said = _named_space(value.strip())
        elif line.startswith('#') and equals and key.strip() == 'columns':
            columns = [name.strip() for name in value.split(',')]
        elif line.strip() and not line.startswith('#'):
            row = dict(zip(columns, next(csv.reader([line])), strict=False))
            try:
                place = np.array([float(row[axis]) for axis in 'xyz'])
            except (KeyError, ValueError) as error:
                raise PlanningFileError(f'{path}: "{line}" is no point ({error!r})') from error
            _add(path, points, row.get('label') or row.get('id', ''),
                 1e-3 * _axes(path, said, space) * place)
    return points


def _add(path: Path, points: dict[str, Points], label: str, place: Points) -> None:
    if label in points:
        raise PlanningFileError(f'{path}: two points are named "{label}"; rename one')
    points[label] = place


def read_labels(path: Path) -> LabelMap:
    """Read a label map (.nii, .nii.gz, .nrrd).

    Raises:
        PlanningFileError: unreadable, of another kind, or without a place in the patient.
    """
    try:
        data = path.read_bytes()
        if path.name.endswith('.gz'):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise PlanningFileError(f'{path}: cannot be read ({error})') from error
    if path.name.endswith(('.nii', '.nii.gz')):
        return _nifti(path, data)
    if path.suffix == '.nrrd':
        return _nrrd(path, data)
    raise PlanningFileError(f'{path}: is no .nii, .nii.gz or .nrrd; convert it to one')


_NIFTI_TYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4',
                1024: 'i8', 1280: 'u8'}


def _nifti(path: Path, data: bytes) -> LabelMap:
    order = next((order for order in '<>' if len(data) >= 352
                  and np.frombuffer(data, order + 'i4', 1)[0] == 348), None)
    if order is None:
        raise PlanningFileError(f'{path}: is no NIfTI-1 file; convert it')

    def numbers(kind: str, offset: int, count: int) -> NDArray[Any]:
        return np.frombuffer(data, order + kind, count, offset)

    dim = numbers('i2', 40, 8)
    code = int(numbers('i2', 70, 1)[0])
    if code not in _NIFTI_TYPES or dim[0] < 3 or np.any(dim[4:1 + dim[0]] > 1):
        raise PlanningFileError(f'{path}: must be one 3-D volume of numbers; got size '
                                f'{dim[1:1 + dim[0]].tolist()}, type {code}')
    qform, sform = (int(value) for value in numbers('i2', 252, 2))
    scale = {0: 1e-3, 1: 1.0, 2: 1e-3, 3: 1e-6}.get(data[123] & 7, 1e-3)
    if sform > 0:
        affine = np.vstack([numbers('f4', 280, 12).reshape(3, 4).astype(float), [0, 0, 0, 1]])
    elif qform > 0:
        affine = _quaternion_affine(numbers('f4', 76, 8), numbers('f4', 256, 6))
    else:
        raise PlanningFileError(f'{path}: does not say where it is in the patient (qform and '
                                'sform are 0); export it again')
    affine[:3] *= scale
    affine[:2] *= -1.0
    start = int(numbers('f4', 108, 1)[0])
    return LabelMap(_volume(path, data, order + _NIFTI_TYPES[code], start, dim[1:4]),
                    _checked(path, affine))


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


def _nrrd(path: Path, data: bytes) -> LabelMap:
    head, gap, body = data.partition(b'\n\n')
    if not head.startswith(b'NRRD') or not gap:
        head, gap, body = data.partition(b'\r\n\r\n')
    if not head.startswith(b'NRRD') or not gap:
        raise PlanningFileError(f'{path}: is no NRRD file with its data inside; convert it')
    fields = {key.strip().lower(): value.strip() for key, colon, value in
              (line.partition(':') for line in head.decode('ascii', 'replace').splitlines()[1:])
              if colon and not key.startswith('#') and not value.startswith('=')}
    try:
        space = fields['space'].lower()
        signs = {'left-posterior-superior': np.ones(3), 'lps': np.ones(3),
                 'right-anterior-superior': _RAS_TO_LPS, 'ras': _RAS_TO_LPS}[space]
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
        raise PlanningFileError(
            f'{path}: must be one 3-D volume, raw or gzip, its data inside, in LPS or RAS '
            f'({error!r}); export it so') from error
    return LabelMap(_volume(path, body, kind, 0, sizes), _checked(path, affine))


def _vector(text: str) -> Array:
    return np.array(text.strip('()').split(','), dtype=float)


def _volume(path: Path, data: bytes, kind: str, start: int,
            sizes: NDArray[Any]) -> NDArray[Any]:
    count = int(np.prod(sizes.astype(np.int64)))
    if count < 1 or len(data) < start + count * np.dtype(kind).itemsize:
        raise PlanningFileError(f'{path}: is cut short; copy it again')
    volume = np.frombuffer(data, kind, count, start).reshape(tuple(int(n) for n in sizes[::-1]))
    if np.any(volume != np.round(volume)):
        raise PlanningFileError(f'{path}: holds other than whole numbers: no label map')
    return volume


def _checked(path: Path, affine: Transform) -> Transform:
    if not np.all(np.isfinite(affine)) or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-15:
        raise PlanningFileError(f'{path}: its place in the patient is no place; export it again')
    return affine


def read_mesh(path: Path, space: str | None = None) -> MeshSource:
    """Read a closed mesh in millimetres (.stl, .obj, .ply).

    Args:
        path: of the file.
        space: ``LPS`` or ``RAS``, for a file that does not say (3D Slicer writes ``SPACE=`` into
            the head of its own).

    Raises:
        PlanningFileError: unreadable, not closed, or in unknown axes.
    """
    import open3d

    if path.suffix.lower() not in ('.stl', '.obj', '.ply') or not path.is_file():
        raise PlanningFileError(f'{path}: is no file .stl, .obj or .ply; name one')
    head = path.read_bytes()[:2000].decode('latin-1')
    said = next((name for name in ('LPS', 'RAS') if f'SPACE={name}' in head), None)
    signs = _axes(path, said, space)
    mesh = open3d.io.read_triangle_mesh(path)
    mesh.merge_close_vertices(1e-5)
    if not len(mesh.triangles) or not mesh.is_edge_manifold(allow_boundary_edges=False):
        raise PlanningFileError(f'{path}: is no closed mesh: in and out cannot be told; close it')
    return MeshSource(np.asarray(mesh.vertices) * signs * 1e-3, np.asarray(mesh.triangles))
