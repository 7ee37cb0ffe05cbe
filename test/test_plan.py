"""``hybrid-guidance plan`` from files alone: a patient of labels and a mesh."""

import json
from pathlib import Path

import cv2
import numpy as np
import open3d
import pytest
import yaml

from hybrid_guidance.cli import main
from hybrid_guidance.planning.plan_file import load
from hybrid_guidance.resources import resource

SPACING = 0.001
BODY, TARGET = 0.045, np.array([0.0, 0.012, 0.0])


def label_map(folder: Path) -> Path:
    """A ball of a body (1) with a ball of bone (2) in it, as NRRD in LPS."""
    steps = np.arange(-50, 51) * SPACING
    z, y, x = np.meshgrid(steps, steps, steps, indexing='ij')
    labels = (np.sqrt(x**2 + y**2 + z**2) < BODY).astype(np.uint8)
    labels[np.sqrt((x - 0.015) ** 2 + (y - 0.020) ** 2 + z**2) < 0.006] = 2
    head = ('NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\n'
            'sizes: 101 101 101\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n'
            'encoding: raw\nspace origin: (-50,-50,-50)\n\n')
    file = folder / 'body.nrrd'
    file.write_bytes(head.encode() + labels.tobytes())
    return file


@pytest.fixture(scope='module')
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command's words for a patient in files."""
    folder = tmp_path_factory.mktemp('patient')
    content = yaml.safe_load((resource('config/procedures')
                              / 'lumbar_facet_injection.yaml').read_text())
    content |= {'avoid': {'aorta': 0.003}, 'planning': {
        'window': 0.012, 'limits': {'probe': -0.5, 'out_of_slice': 0.1}}}
    (folder / 'made_up.yaml').write_text(yaml.safe_dump(content))
    ball = open3d.geometry.TriangleMesh.create_sphere(3.0)
    ball.translate((8.0, -25.0, 8.0))
    open3d.io.write_triangle_mesh(str(folder / 'aorta.ply'), ball)
    (folder / 'points.mrk.json').write_text(json.dumps({'markups': [{
        'coordinateSystem': 'RAS', 'controlPoints': [
            {'label': 'target', 'position': [-1e3 * TARGET[0], -1e3 * TARGET[1], 0.0]},
            {'label': 'entry', 'position': [0.0, -1e3 * BODY, 0.0]}]}]}))
    return ['plan', '--procedure', str(folder / 'made_up.yaml'), '--labels',
            str(label_map(folder)), '--structure', 'skin=1,2', '--structure', 'bone=2', '--mesh',
            f'aorta={folder / "aorta.ply"}', '--space', 'RAS', '--markups',
            str(folder / 'points.mrk.json')]


def test_a_patient_in_files_is_planned(words: list[str], tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    """The mesh is at (-8, 25, 8) mm in LPS: beside the way in, the bone on the other side."""
    assert main([*words, '--output', str(tmp_path)]) == 0
    assert 'rank  cost' in capsys.readouterr().out
    plan = load(tmp_path / 'plan.yaml')
    assert np.allclose(plan.path.target, TARGET)
    places = np.linspace(plan.path.entry, plan.path.target, 500)
    assert np.linalg.norm(places - (-0.008, 0.025, 0.008), axis=1).min() > 0.003 + 0.003
    assert np.linalg.norm(places - (0.015, 0.020, 0.0), axis=1).min() > 0.006
    assert abs(np.linalg.norm(plan.path.entry) - BODY) < 0.001
    for name in ('window', 'slices', 'scene'):
        picture = cv2.imread(str(tmp_path / f'{name}.png'))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_no_path_is_said_in_words_with_status_2(words: list[str], tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, '--tip-sigma', '20', '--output', str(tmp_path / 'none')]) == 2
    assert 'no path: the target is' in capsys.readouterr().err
    assert not (tmp_path / 'none').exists()


def test_a_structure_that_nobody_gave_is_named(words: list[str],
                                               capsys: pytest.CaptureFixture[str]) -> None:
    at = words.index('bone=2')
    without = words[:at - 1] + words[at + 1:]
    assert main(without) == 2
    assert 'no structure is named bone' in capsys.readouterr().err


def in_a_file(words: list[str], tmp_path: Path) -> list[str]:
    """Return the words with label map and mesh named in a file instead."""
    folder = Path(words[words.index('--labels') + 1]).parent
    file = folder / 'anatomy.yaml'
    file.write_text(yaml.safe_dump({
        'labels': 'body.nrrd', 'structures': {'skin': [1, 2], 'bone': 2},
        'meshes': {'aorta': 'aorta.ply'}, 'space': 'RAS'}))
    return [*words[:3], '--anatomy', str(file), '--space', 'RAS', *words[-2:]]


def test_an_anatomy_in_a_file_is_the_same_as_its_parts(words: list[str], tmp_path: Path) -> None:
    for name, chosen in (('one', in_a_file(words, tmp_path)), ('other', words)):
        assert main([*chosen, '--output', str(tmp_path / name)]) == 0
    first, second = (load(tmp_path / name / 'plan.yaml') for name in ('one', 'other'))
    assert np.allclose(first.paths[0].path.entry, second.paths[0].path.entry)


@pytest.mark.parametrize(('content', 'named'), [
    ('labels: absent.nrrd\nstructures: {skin: 1, bone: 2, aorta: 3}', 'absent.nrrd'),
    ('structures: {skin: one}', 'anatomy.yaml'), ('muscles: {}', 'muscles'),
    ('- 1', 'anatomy.yaml'),
    ('structures: {skin: 1}', 'bone, aorta')])
def test_a_file_of_an_anatomy_that_cannot_be_is_refused(
        words: list[str], content: str, named: str, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'anatomy.yaml'
    file.write_text(content)
    assert main([*words[:3], '--anatomy', str(file), '--output', str(tmp_path)]) == 2
    assert named in capsys.readouterr().err
