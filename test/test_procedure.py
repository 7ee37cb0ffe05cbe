"""The procedures that come with the package, and how broken ones are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hybrid_guidance.geometry.needle import shaft
from hybrid_guidance.geometry.rigid import angle_between, inverse, is_rigid, transform_points
from hybrid_guidance.procedure import (
    FOLDER,
    Procedure,
    ProcedureError,
    load_procedure,
    procedure_names,
)
from hybrid_guidance.resources import resource
from hybrid_guidance.simulation.anatomy import build_structures
from hybrid_guidance.simulation.reach import examine
from hybrid_guidance.simulation.render import procedure_needle


@pytest.fixture(params=procedure_names())
def procedure(request: pytest.FixtureRequest) -> Procedure:
    return load_procedure(request.param)


def edited(tmp_path: Path, **changes: Any) -> Path:
    content = yaml.safe_load((resource(FOLDER) / 'lumbar_facet_injection.yaml').read_text())
    for key, value in changes.items():
        *tables, last = key.split('__')
        table = content
        for name in tables:
            table = table[name]
        if value is None:
            del table[last]
        else:
            table[last] = value
    path = tmp_path / 'edited.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


FACET = 'lumbar_facet_injection'


def test_all_ten_procedures_are_there_and_named_after_their_files() -> None:
    assert procedure_names() == (
        'femoral_nerve_block', 'femoral_vein_access', 'hip_injection', FACET,
        'lumbar_interlaminar_epidural', 'lumbar_sympathetic_block',
        'lumbar_transforaminal_epidural', 'medial_branch_block', 'shoulder_injection',
        'supraspinatus_prp')
    assert all(load_procedure(name).name == name for name in procedure_names())


def test_path_has_a_length_that_the_needle_and_a_hand_can_use(procedure: Procedure) -> None:
    assert 0.020 <= procedure.path_length <= 0.110
    assert procedure.path_length < procedure.needle.length - 0.005


def test_the_whole_path_lies_in_the_x_ray_and_across_its_rays(procedure: Procedure) -> None:
    optical_T_patient = inverse(procedure.patient_T_fluoroscopy())
    projection = procedure.fluoroscopy_projection()
    path = np.linspace(procedure.entry, procedure.target, 50)
    pixels = projection.pixels(transform_points(optical_T_patient, path))
    assert np.all(projection.contains(pixels, margin=20))
    ray = procedure.patient_T_fluoroscopy()[:3, 2]
    assert abs(np.degrees(angle_between(procedure.target - procedure.entry, ray)) - 90.0) < 20.0
    assert np.linalg.norm(pixels[-1] - pixels[0]) > 150.0


def test_x_rays_are_not_blind_where_ultrasound_is(procedure: Procedure) -> None:
    """Along the slice's normal ultrasound sees nothing, along its ray an X-ray."""
    ray = procedure.patient_T_fluoroscopy()[:3, 2]
    normal = procedure.patient_T_ultrasound()[:3, 2]
    assert 40.0 < np.degrees(angle_between(ray, normal)) < 140.0


def test_c_arm_looks_from_the_source_through_the_isocentre(procedure: Procedure) -> None:
    pose = procedure.patient_T_fluoroscopy()
    assert is_rigid(pose)
    setup = procedure.fluoroscopy
    np.testing.assert_allclose(transform_points(inverse(pose), setup.isocentre),
                               (0.0, 0.0, setup.source_to_isocentre), atol=1e-12)
    corner = procedure.fluoroscopy_projection().back_project(
        np.array([-0.5, -0.5]), setup.source_to_detector)
    np.testing.assert_allclose(-2 * corner[:2], setup.detector_size, rtol=1e-9)


@pytest.mark.parametrize(('primary', 'secondary', 'detector'), [
    (0.0, 0.0, (0, -1, 0)), (90.0, 0.0, (1, 0, 0)), (-90.0, 0.0, (-1, 0, 0)),
    (0.0, 30.0, (0, -np.cos(np.pi / 6), 0.5))])
def test_angles_mean_what_dicom_says(tmp_path: Path, primary: float, secondary: float,
                                     detector: tuple[float, float, float]) -> None:
    """PS3.3 C.8.7.5: 0 anterior, +90 at the patient's left, secondary + cranial."""
    path = edited(tmp_path, fluoroscopy__primary_angle_deg=primary,
                  fluoroscopy__secondary_angle_deg=secondary)
    pose = load_procedure(path).patient_T_fluoroscopy()
    np.testing.assert_allclose(pose[:3, 2], detector, atol=1e-12)
    assert pose[2, 1] < 0.0  # the image's down is towards the feet


def test_the_path_lies_in_the_slice_and_oblique_to_the_beam(procedure: Procedure) -> None:
    pose = procedure.patient_T_ultrasound()
    assert is_rigid(pose)
    image_T_patient = inverse(pose)
    ends = transform_points(image_T_patient, np.stack([procedure.entry, procedure.target]))
    assert np.max(np.abs(ends[:, 2])) < 0.0003
    probe = procedure.ultrasound.probe
    last = transform_points(image_T_patient, shaft(procedure_needle(procedure).pose, 0.010))
    beams, footprint = np.tile([0.0, 1.0], (2, 1)), probe.field_of_view / 2
    if np.isfinite(probe.radius):
        beams = last[:, :2] + (0.0, probe.radius)
        assert np.all(np.abs(np.arctan2(beams[:, 0], beams[:, 1])) < footprint)
        footprint = probe.radius * np.sin(footprint)
    else:
        assert np.all(np.abs(last[:, 0]) < footprint)
    assert last[0, 1] > 0.0
    assert last[1, 1] < procedure.ultrasound.depth
    angle = angle_between(np.append(beams[1], 0.0), last[1] - last[0])
    assert 30.0 < np.degrees(angle) < 90.0
    assert abs(ends[0, 0]) > footprint + 0.001  # beside the probe, not through it


@pytest.mark.parametrize('seed', [1, 2])
def test_the_path_is_free_and_seen_in_every_patient(procedure: Procedure, seed: int) -> None:
    """The bench does twenty."""
    reach = examine(procedure, build_structures(procedure.region, seed, procedure.target))
    assert reach.free, reach
    assert reach.seen >= 0.75
    assert reach.in_x_ray


def test_a_path_through_bone_or_past_its_margin_is_not_called_free() -> None:
    """Negative control: the same procedure with its target beyond the lamina, or a wide margin."""
    procedure = load_procedure(FACET)
    solids = build_structures(procedure.region, 1, procedure.target)
    deeper = replace(procedure, target=procedure.target + 0.006 * (
        procedure.target - procedure.entry) / procedure.path_length)
    assert examine(procedure, solids).free
    assert not examine(deeper, solids).free
    assert not examine(replace(procedure, avoid={'root_L4_left': 0.030}), solids).free


def test_a_target_behind_bone_is_not_seen() -> None:
    procedure = load_procedure(FACET)
    solids = build_structures(procedure.region, 1, procedure.target)
    behind = replace(procedure, target=np.array([0.0, 0.0, -0.019]))
    assert examine(procedure, solids).target_seen
    assert not examine(behind, solids).target_seen


@pytest.mark.parametrize(('name', 'structure', 'low', 'high'), [
    ('medial_branch_block', 'medial_branch_L4_left', -0.001, 0.003),
    ('medial_branch_block', 'bone', 0.0, 0.003),
    ('lumbar_facet_injection', 'capsule_L4_L5_left', -0.010, 0.002),
    ('lumbar_transforaminal_epidural', 'root_L4_left', 0.0015, 0.006),
    ('lumbar_interlaminar_epidural', 'dural_sac', 0.0015, 0.006),
    ('lumbar_sympathetic_block', 'sympathetic_chain_left', 0.0, 0.007),
    ('femoral_nerve_block', 'femoral_nerve', 0.0, 0.004),
    ('femoral_vein_access', 'femoral_vein', -0.010, -0.003),
    ('hip_injection', 'joint_capsule', -0.010, 0.0),
    ('shoulder_injection', 'joint_capsule', -0.010, 0.0),
    ('supraspinatus_prp', 'supraspinatus_tendon', -0.010, -0.0005)])
def test_the_target_means_the_same_place_in_every_patient(
        name: str, structure: str, low: float, high: float) -> None:
    procedure = load_procedure(name)
    for seed in range(1, 9):
        solids = build_structures(procedure.region, seed, procedure.target)
        assert low < float(solids[structure].at(procedure.target)) < high, seed


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProcedureError, match='lumbar_facet_injection'):
        load_procedure('brain_surgery')


@pytest.mark.parametrize(('changes', 'says'), [
    ({'target': None}, 'target is missing'),
    ({'needle__diameter': None}, r'needle\.diameter is missing'),
    ({'needle__length': -0.1}, r'needle\.length must be above 0'),
    ({'target': [0.0, float('nan'), 0.0]}, 'target must be 3 finite numbers'),
    ({'target': 'there'}, 'target must be 3 numbers'),
    ({'entry': [0.0204, 0.0400, -0.0190]}, 'entry is the target'),
    ({'fluoroscopy__source_to_isocentre': 1.5}, 'must be below source_to_detector'),
    ({'fluoroscopy__pixels': [0, 1024]}, 'two whole numbers'),
    ({'ultrasound__probe__kind': 'endocavity'}, 'curvilinear or linear'),
    ({'ultrasound__lateral': [0.0, -0.0448, 0.0070]}, 'parallel'),
    ({'region': 'elbow'}, 'no known anatomy; use one of: .*lumbar'),
    ({'needle': 'sharp'}, 'needle must be a table'),
    ({'insert_by_eye': 0.050}, 'insert_by_eye must be below 0.0437, three quarters of the way'),
])
def test_a_broken_file_says_what_where_and_what_to_do(
        tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = edited(tmp_path, **changes)
    with pytest.raises(ProcedureError, match=says) as refusal:
        load_procedure(path)
    assert str(path) in str(refusal.value)


def test_a_file_that_is_no_table_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'list.yaml'
    path.write_text('- 1\n')
    with pytest.raises(ProcedureError, match='no table'):
        load_procedure(path)
    with pytest.raises(ProcedureError, match='no such file'):
        load_procedure(tmp_path / 'missing.yaml')


def test_a_linear_probe_has_a_flat_face(tmp_path: Path) -> None:
    path = edited(tmp_path, ultrasound__probe={'kind': 'linear', 'width': 0.04,
                                               'frequency': 9e6})
    loaded = load_procedure(path)
    assert np.isinf(loaded.ultrasound.probe.radius)
    top = loaded.ultrasound_projection().pixels(np.zeros(3))[1]
    assert 0.0 <= top < loaded.ultrasound.pixels[1] * 0.2


def test_planning_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    plain = load_procedure('lumbar_facet_injection').planning
    changed = load_procedure(edited(tmp_path, planning={
        'window': 0.01, 'limits': {'skin_angle_deg': 45}, 'weights': {'aorta': 3}})).planning
    assert changed.window == 0.01
    assert changed.comfort == plain.comfort
    assert changed.limits == {**plain.limits, 'skin_angle': pytest.approx(np.pi / 4)}
    assert changed.weights == {**plain.weights, 'aorta': 3.0}


@pytest.mark.parametrize(('planning', 'words'), [
    ({'radius': 0.01}, 'radius is unknown'), ({'window': 0}, 'window must be above 0'),
    ({'limits': {'skin_angle': 1}}, 'skin_angle is unknown'),
    ({'weights': {'spleen': 1}}, 'spleen is unknown'), ({'weights': {'bone': -1}}, 'bone must')])
def test_planning_that_cannot_be_is_refused(tmp_path: Path, planning: dict[str, Any],
                                            words: str) -> None:
    with pytest.raises(ProcedureError, match=words):
        load_procedure(edited(tmp_path, planning=planning))
