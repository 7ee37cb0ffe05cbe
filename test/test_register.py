"""``hybrid-guidance register`` from files alone: a CT, X-rays and points with a known place."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from hybrid_guidance.cli import main
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import (
    inverse,
    perturbed,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.imaging.volume import Volume, write_nifti
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.render import procedure_needle, standard_views, xray_renderer
from hybrid_guidance.simulation.scanner import scanned

PROCEDURE = load_procedure('lumbar_facet_injection')
ROOM = transform(rotation_from_vector(np.array([0.3, -0.8, 0.4])), np.array([0.2, -0.1, 0.5]))


@pytest.fixture(scope='module')
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a job, beside its CT and X-rays."""
    folder = tmp_path_factory.mktemp('job')
    patient, needle = build_patient('lumbar', 41, PROCEDURE.target), procedure_needle(PROCEDURE)
    ct = scanned(patient, 41)
    place = transform(np.diag(ct.spacing), ct.origin)
    write_nifti(folder / 'ct.nii.gz', Volume(ct.volume, place))
    views = []
    for name in ('fluoroscopy_ap', 'fluoroscopy_lateral'):
        own = standard_views(PROCEDURE)[name]
        pose, projection = own.patient_T_fluoroscopy(), own.fluoroscopy_projection()
        cv2.imwrite(str(folder / f'{name}.png'),
                    xray_renderer(own, patient, 41).render(pose, (needle,)))
        line = projection.pixels(transform_points(inverse(pose), needle.shaft))
        views.append({'image': f'{name}.png', 'fixed_T_source': (ROOM @ pose).tolist(),
                      'focal': projection.matrix[[0, 1], [0, 1]].tolist(),
                      'needles': [line.tolist()]})
    start = perturbed(ROOM, np.array([0.004, -0.003, 0.005, 0.02, 0.0, -0.03]))
    (folder / 'job.yaml').write_text(yaml.safe_dump(
        {'target': PROCEDURE.target.tolist(), 'fixed_T_moving': start.tolist(), 'views': views}))
    return folder / 'job.yaml'


def test_x_rays_and_a_ct_in_files_are_registered(job: Path, tmp_path: Path) -> None:
    assert main(['register', 'xray', str(job), '--ct', str(job.parent / 'ct.nii.gz'),
                 '--output', str(tmp_path)]) == 0
    report = json.loads((tmp_path / 'registration.json').read_text())
    there = transform_points(ROOM, PROCEDURE.target)
    miss = transform_points(np.array(report['fixed_T_moving']), PROCEDURE.target) - there
    assert report['accepted']
    assert np.linalg.norm(miss) < 0.0005
    picture = cv2.imread(str(tmp_path / 'xray1.png'))
    assert picture.shape == (512, 1024, 3)
    # Green contours on the right, none on the left.
    green = (picture[..., 1] > 200) & (picture[..., 2] < 120)
    assert green[:, 512:].sum() > 1000 > 10 > green[:, :512].sum()


@pytest.mark.parametrize(('change', 'words'), [
    ({'target': [9.0, 0.0, 0.0]}, 'does not hold the target'),
    ({'target': [0.0, 'nan', 0.0]}, '"target" must be 3 numbers'),
    ({'views': 'ap.png'}, 'has no list "views"'),
    ({'fixed_T_moving': np.diag([2.0, 1.0, 1.0, 1.0]).tolist()}, 'no rigid transform')])
def test_what_is_wrong_in_a_job_is_named(job: Path, change: dict, words: str,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    wrong = job.parent / 'wrong.yaml'
    wrong.write_text(yaml.safe_dump({**yaml.safe_load(job.read_text()), **change}))
    assert main(['register', 'xray', str(wrong), '--ct', str(job.parent / 'ct.nii.gz'),
                 '--output', str(job.parent)]) == 2
    assert words in capsys.readouterr().err


def test_points_of_the_same_names_are_pairs(tmp_path: Path) -> None:
    points = np.random.default_rng(3).uniform(-80.0, 80.0, (6, 3))
    moved = 1e3 * transform_points(ROOM, 1e-3 * points)
    for name, own in (('ct', points), ('room', moved)):
        (tmp_path / f'{name}.mrk.json').write_text(json.dumps({'markups': [{
            'coordinateSystem': 'LPS', 'controlPoints': [
                {'label': f'M{number}', 'position': place.tolist()}
                for number, place in enumerate(own)]}]}))
    assert main(['register', 'points', str(tmp_path / 'ct.mrk.json'),
                 str(tmp_path / 'room.mrk.json'), '--sigma', '0.3', '--target', '0', '20', '0',
                 '--output', str(tmp_path)]) == 0
    report = json.loads((tmp_path / 'registration.json').read_text())
    assert np.allclose(report['fixed_T_moving'], ROOM, atol=1e-9)


def test_points_are_triangulated_from_the_markers_of_two_x_rays(job: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(job.read_text())
    points = np.random.default_rng(4).uniform(-0.04, 0.04, (6, 3)) + PROCEDURE.target
    for number, entry in enumerate(content['views']):
        entry['image'] = str(job.parent / entry['image'])
        lens = Projection.perspective(tuple(entry['focal']), (511.5, 511.5), (1024, 1024))
        source_T_ct = inverse(np.array(entry['fixed_T_source'])) @ ROOM
        pixels = lens.pixels(transform_points(source_T_ct, points))
        entry['markers'] = [[*pixel, 8.0] for pixel in pixels[::-1 if number else 1].tolist()]
    (tmp_path / 'xrays.yaml').write_text(yaml.safe_dump(content))
    (tmp_path / 'ct.mrk.json').write_text(json.dumps({'markups': [{
        'coordinateSystem': 'LPS', 'controlPoints': [
            {'label': f'M{number}', 'position': (1e3 * place).tolist()}
            for number, place in enumerate(points)]}]}))
    assert main(['register', 'points', str(tmp_path / 'ct.mrk.json'), str(tmp_path / 'xrays.yaml'),
                 '--sigma', '0.3', '--target', *(1e3 * PROCEDURE.target).astype(str),
                 '--output', str(tmp_path)]) == 0
    report = json.loads((tmp_path / 'registration.json').read_text())
    assert np.allclose(report['fixed_T_moving'], ROOM, atol=1e-4)
