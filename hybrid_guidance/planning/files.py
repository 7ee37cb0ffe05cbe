"""Targets, entries, label maps and meshes from files, all taken to LPS axes and metres.

Files say whether their x runs to the patient's left (LPS: DICOM, NRRD, 3D Slicer's newer files) or
right (RAS: NIfTI, older markups). One that does not say so is refused unless the user does.
Source: 3D Slicer, "Markups" (JSON schema 1.0.3, fiducial CSV).
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.volume import RAS_TO_LPS, Volume, read_volume
from hybrid_guidance.planning.anatomy_map import MeshSource


class PlanningFileError(ValueError):
    """A file that cannot be used; the message says which, why and what to do."""


def _axes(path: Path, said: str | None, given: str | None) -> Array:
    """Return the signs that take a file's axes to LPS, from what it says or the user does."""
    if said is not None and given is not None and said.upper() != given.upper():
        raise PlanningFileError(f'{path}: says {said}, you say {given}; leave one out')
    space = (said or given or '').upper()
    if space not in ('LPS', 'RAS'):
        raise PlanningFileError(f'{path}: does not say whether it is in LPS or RAS axes '
                                f'({space or "nothing"}); say which')
    return np.ones(3) if space == 'LPS' else RAS_TO_LPS


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


def read_labels(path: Path) -> Volume:
    """Read a label map: whatever ``read_volume`` reads, if it holds whole numbers.

    Raises:
        PlanningFileError: unreadable, of another kind, or without a place in the patient.
    """
    try:
        volume = read_volume(path)
    except SourceError as error:
        raise PlanningFileError(str(error)) from error
    if np.any(volume.values != np.round(volume.values)):
        raise PlanningFileError(f'{path}: holds other than whole numbers: no label map')
    return volume


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
