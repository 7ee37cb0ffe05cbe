"""The procedures that come with the package, and how broken ones are refused."""

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


def test_path_has_a_length_that_a_hand_can_use(procedure: Procedure) -> None:
    assert 0.045 <= procedure.path_length <= 0.070
    assert procedure.path_length < procedure.needle.length


def test_the_whole_path_lies_in_the_x_ray_and_across_its_rays(procedure: Procedure) -> None:
    optical_T_patient = inverse(procedure.patient_T_fluoroscopy())
    projection = procedure.fluoroscopy_projection()
    path = np.linspace(procedure.entry, procedure.target, 50)
    pixels = projection.pixels(transform_points(optical_T_patient, path))
    assert np.all(projection.contains(pixels, margin=20))
    ray = procedure.patient_T_fluoroscopy()[:3, 2]
    assert abs(np.degrees(angle_between(procedure.target - procedure.entry, ray)) - 90.0) < 20.0
    assert np.linalg.norm(pixels[-1] - pixels[0]) > 250.0


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
    last = transform_points(image_T_patient, shaft(procedure_needle(procedure).pose, 0.030))
    beams = last[:, :2] + (0.0, probe.radius)
    half = probe.field_of_view / 2
    assert np.all(np.abs(np.arctan2(beams[:, 0], beams[:, 1])) < half)
    assert last[0, 1] > 0.0
    angle = angle_between(np.append(beams[1], 0.0), last[1] - last[0])
    assert 30.0 < np.degrees(angle) < 55.0
    footprint = probe.radius * np.sin(half)
    assert abs(ends[0, 0]) > footprint + 0.005  # beside the probe, not through it


def test_target_is_at_bone_and_the_path_is_free_in_every_patient(procedure: Procedure) -> None:
    path = np.linspace(procedure.entry, procedure.target, 120)
    for seed in range(1, 21):
        structures = build_structures(procedure.region, seed)
        bone = structures['bone'].at(path)
        assert bone.min() > 0.0015
        assert bone[-1] < 0.004
        assert abs(float(structures['skin'].at(procedure.entry))) < 0.001
        for name, margin in procedure.avoid.items():
            assert structures[name].at(path).min() > margin, name


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
