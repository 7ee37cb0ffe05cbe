"""Files written by hand, from the formats' own descriptions, or by Open3D."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import open3d
import pytest

from hybrid_guidance.planning.files import (
    PlanningFileError,
    read_labels,
    read_markups,
    read_mesh,
)

PLACE = np.array([0.010, -0.020, 0.030])


def markups(folder: Path, system: object, position: tuple[float, ...], unit: str = 'mm') -> Path:
    file = folder / 'points.mrk.json'
    markup = {'type': 'Fiducial', 'coordinateUnits': unit, 'controlPoints': [
        {'id': '1', 'label': 'target', 'position': position, 'positionStatus': 'defined'},
        {'id': '2', 'label': 'later', 'position': [0, 0, 0], 'positionStatus': 'undefined'}]}
    if system is not None:
        markup['coordinateSystem'] = system
    file.write_text(json.dumps({'@schema': 'markups-schema-v1.0.3', 'markups': [markup]}))
    return file


@pytest.mark.parametrize(('system', 'position', 'unit'), [
    ('LPS', (10, -20, 30), 'mm'), ('RAS', (-10, 20, 30), 'mm'), (0, (-10, 20, 30), 'mm'),
    ('LPS', (0.01, -0.02, 0.03), 'm')])
def test_markups_in_either_axes_are_one_place(tmp_path: Path, system: object,
                                              position: tuple[float, ...], unit: str) -> None:
    points = read_markups(markups(tmp_path, system, position, unit))
    assert list(points) == ['target']
    assert np.allclose(points['target'], PLACE)


def test_markups_without_axes_need_the_user(tmp_path: Path) -> None:
    file = markups(tmp_path, None, (-10, 20, 30))
    with pytest.raises(PlanningFileError, match='does not say whether'):
        read_markups(file)
    assert np.allclose(read_markups(file, 'RAS')['target'], PLACE)
    with pytest.raises(PlanningFileError, match='says LPS, you say RAS'):
        read_markups(markups(tmp_path, 'LPS', (1, 2, 3)), 'RAS')


@pytest.mark.parametrize(('system', 'x', 'y'), [('LPS', 10, -20), ('0', -10, 20),
                                               ('RAS', -10, 20), ('1', 10, -20)])
def test_fiducials_of_slicer(tmp_path: Path, system: str, x: float, y: float) -> None:
    file = tmp_path / 'F.fcsv'
    file.write_text(f'# Markups fiducial file version = 4.11\n# CoordinateSystem = {system}\n'
                    '# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n'
                    f'vtkMRMLMarkupsFiducialNode_0,{x},{y},30,0,0,0,1,1,1,0,target,,\n')
    assert np.allclose(read_markups(file)['target'], PLACE)


@pytest.mark.parametrize('text', ['{', '{"markups": 3}', '{"markups": []}',
                                  '{"markups": [{"coordinateSystem": "LPS", "controlPoints": '
                                  '[{"position": [1, 2]}]}]}'])
def test_a_broken_markups_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / 'bad.mrk.json'
    file.write_text(text)
    with pytest.raises(PlanningFileError, match=r'bad\.mrk\.json'):
        read_markups(file)


LABELS = np.random.default_rng(2).integers(0, 4, (3, 4, 5)).astype(np.int16)
AFFINE = np.array([[0.5, 0.1, 0.0, -20.0], [0.0, 0.6, 0.2, 5.0], [0.1, 0.0, 2.0, 7.0],
                   [0.0, 0.0, 0.0, 1.0]])
"""(x, y, z) indices to mm, RAS."""


def nifti(order: str = '<', sform: bool = True) -> bytes:
    """Header fields at the offsets of nifti1.h."""
    head = bytearray(352)
    struct.pack_into(order + 'i', head, 0, 348)
    struct.pack_into(order + '8h', head, 40, 3, 5, 4, 3, 1, 1, 1, 1)
    struct.pack_into(order + '2h', head, 70, 4, 16)
    struct.pack_into(order + '8f', head, 76, -1.0, 0.5, 0.6, 2.0, 0, 0, 0, 0)
    struct.pack_into(order + 'f', head, 108, 352.0)
    head[123] = 2
    struct.pack_into(order + '2h', head, 252, 0 if sform else 1, 1 if sform else 0)
    # A turn by 90 degrees about z, and a place.
    struct.pack_into(order + '6f', head, 256, 0.0, 0.0, 0.5**0.5, 1.0, 2.0, 3.0)
    struct.pack_into(order + '12f', head, 280, *AFFINE[:3].ravel())
    head[344:348] = b'n+1\0'
    return bytes(head) + LABELS.astype(order + 'i2').tobytes()


@pytest.mark.parametrize('order', ['<', '>'])
def test_nifti_by_its_sform_is_taken_from_ras(tmp_path: Path, order: str) -> None:
    file = tmp_path / 'labels.nii.gz'
    file.write_bytes(gzip.compress(nifti(order)))
    read = read_labels(file)
    assert np.array_equal(read.values, LABELS)
    ras = AFFINE @ (4, 2, 1, 1)
    assert np.allclose(read.patient_T_voxel @ (4, 2, 1, 1),
                       [-ras[0] / 1e3, -ras[1] / 1e3, ras[2] / 1e3, 1])


def test_nifti_by_its_qform(tmp_path: Path) -> None:
    """The first axis of the voxels runs along +y; qfac -1 turns the third axis."""
    (tmp_path / 'labels.nii').write_bytes(nifti(sform=False))
    place = read_labels(tmp_path / 'labels.nii').patient_T_voxel @ (2, 1, 1, 1)
    ras = np.array([1.0 - 0.6, 2.0 + 1.0, 3.0 - 2.0])
    assert np.allclose(place[:3], ras * (-1e-3, -1e-3, 1e-3))


@pytest.mark.parametrize(('space', 'signs'), [('left-posterior-superior', (1, 1, 1)),
                                              ('right-anterior-superior', (-1, -1, 1))])
def test_nrrd_in_either_axes(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    head = (f'NRRD0004\n# made by hand\ntype: short\ndimension: 3\nspace: {space}\n'
            'sizes: 5 4 3\nspace directions: (0.5,0,0.1) (0.1,0.6,0) (0,0.2,2)\n'
            'kinds: domain domain domain\nendian: little\nencoding: gzip\n'
            'space origin: (-20,5,7)\n\n').encode()
    file = tmp_path / 'labels.nrrd'
    file.write_bytes(head + gzip.compress(LABELS.tobytes()))
    read = read_labels(file)
    assert np.array_equal(read.values, LABELS)
    place = np.array((-20.0, 5.0, 7.0)) + 4 * np.array((0.5, 0, 0.1)) + np.array((0, 0.2, 2))
    assert np.allclose(read.patient_T_voxel @ (4, 0, 1, 1), [*(place * signs * 1e-3), 1])


def test_label_maps_without_a_place_or_cut_short_are_refused(tmp_path: Path) -> None:
    homeless = bytearray(nifti())
    homeless[252:256] = bytes(4)
    for content, words in ((bytes(homeless), 'where it is'), (nifti()[:-4], 'cut short'),
                           (b'nothing', 'no NIfTI')):
        (tmp_path / 'a.nii').write_bytes(content)
        with pytest.raises(PlanningFileError, match=words):
            read_labels(tmp_path / 'a.nii')
    (tmp_path / 'a.nrrd').write_bytes(b'NRRD0004\ntype: short\nencoding: raw\n\n')
    with pytest.raises(PlanningFileError, match='space'):
        read_labels(tmp_path / 'a.nrrd')
    with pytest.raises(PlanningFileError, match='convert'):
        read_labels(Path(__file__))


@pytest.mark.parametrize('suffix', ['stl', 'obj', 'ply'])
def test_meshes_are_taken_to_lps_metres(tmp_path: Path, suffix: str) -> None:
    mesh = open3d.geometry.TriangleMesh.create_sphere(5.0)
    mesh.translate((10.0, 20.0, 30.0))
    mesh.compute_triangle_normals()
    file = tmp_path / f'mesh.{suffix}'
    open3d.io.write_triangle_mesh(str(file), mesh)
    with pytest.raises(PlanningFileError, match='does not say'):
        read_mesh(file)
    read = read_mesh(file, 'RAS')
    assert np.allclose((read.lower + read.upper) / 2, (-0.010, -0.020, 0.030), atol=1e-4)


def test_an_open_mesh_has_no_inside(tmp_path: Path) -> None:
    mesh = open3d.geometry.TriangleMesh.create_sphere(5.0)
    mesh.triangles = open3d.utility.Vector3iVector(np.asarray(mesh.triangles)[:-3])
    open3d.io.write_triangle_mesh(str(tmp_path / 'open.ply'), mesh)
    with pytest.raises(PlanningFileError, match='no closed mesh'):
        read_mesh(tmp_path / 'open.ply', 'LPS')
