"""Needles against plain geometry, and the pictures of a procedure on disk."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from hybrid_guidance.geometry.rigid import is_rigid
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.simulation.anatomy import Grid, build_patient, empty_patient
from hybrid_guidance.simulation.instruments import Needle, needle_on_path
from hybrid_guidance.simulation.render import (
    RenderError,
    render,
    standard_views,
    xray_renderer,
)
from hybrid_guidance.simulation.scene import view
from hybrid_guidance.simulation.tissues import Tissue

ENTRY = np.array([0.057, 0.085, -0.026])
TARGET = np.array([0.020, 0.040, -0.019])


def test_full_depth_puts_the_tip_on_the_target_and_the_shaft_through_the_entry() -> None:
    depth = float(np.linalg.norm(TARGET - ENTRY))
    needle = needle_on_path(ENTRY, TARGET, depth, 0.0007, 0.09)
    assert is_rigid(needle.pose)
    np.testing.assert_allclose(needle.pose[:3, 3], TARGET, atol=1e-12)
    hub, tip = needle.shaft
    assert np.linalg.norm(tip - hub) == pytest.approx(0.09)
    beside = np.cross(ENTRY - tip, (hub - tip) / 0.09)
    assert np.linalg.norm(beside) < 1e-12


@pytest.mark.parametrize('depth', [-0.01, 0.0, 0.03])
def test_depth_is_measured_from_the_entry_along_the_path(depth: float) -> None:
    needle = needle_on_path(ENTRY, TARGET, depth, 0.0007, 0.09)
    direction = (TARGET - ENTRY) / np.linalg.norm(TARGET - ENTRY)
    assert (needle.pose[:3, 3] - ENTRY) @ direction == pytest.approx(depth)
    np.testing.assert_allclose(needle.pose[:3, 2], direction, atol=1e-12)


def test_moving_a_needle_keeps_everything_else() -> None:
    needle = Needle(np.eye(4), 0.0007, 0.09, bore=0.0004)
    pose = np.eye(4)
    pose[0, 3] = 0.01
    moved = needle.at(pose)
    assert (moved.diameter, moved.length, moved.bore) == (0.0007, 0.09, 0.0004)
    assert moved.pose[0, 3] == 0.01
    assert needle.pose[0, 3] == 0.0


def test_render_writes_pictures_and_a_truth_that_fits_them(tmp_path: Path) -> None:
    procedure = load_procedure('lumbar_facet_injection')
    render(procedure, 3, 0.050, tmp_path / 'out')
    truth = json.loads((tmp_path / 'out' / 'truth.json').read_text())
    assert truth['simulated'] is True
    assert truth['needle_tip_to_target'] == pytest.approx(procedure.path_length - 0.050)
    for name, frame, shape in (('fluoroscopy', 'optical', (1024, 1024)),
                               ('ultrasound', 'image', (480, 640))):
        picture = cv2.imread(str(tmp_path / 'out' / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        assert (picture.dtype, picture.shape) == (np.uint8, shape)
        sensor_T_patient = np.linalg.inv(truth[name][f'patient_T_{frame}'])
        tip = np.array(truth['patient_T_needle'])[:, 3]
        seen = np.array(truth[name]['projection']) @ sensor_T_patient @ tip
        np.testing.assert_allclose(seen[:2] / seen[2], truth[name]['tip_pixel'], atol=1e-6)
    assert cv2.imread(str(tmp_path / 'out' / 'scene.png')).shape == (600, 800, 3)
    raw = cv2.imread(str(tmp_path / 'out' / 'fluoroscopy_raw.png'), cv2.IMREAD_UNCHANGED)
    assert raw.dtype == np.uint16


def test_standard_views_look_along_the_axes_of_the_patient_and_show_the_needle() -> None:
    procedure = load_procedure('lumbar_facet_injection')
    views = standard_views(procedure)
    ap = views['fluoroscopy_ap'].patient_T_fluoroscopy()
    lateral = views['fluoroscopy_lateral'].patient_T_fluoroscopy()
    np.testing.assert_allclose(ap[:3, 2], (0.0, 1.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(np.abs(lateral[:3, 2]), (1.0, 0.0, 0.0), atol=1e-12)
    for setting in views.values():
        tip = np.linalg.inv(setting.patient_T_fluoroscopy()) @ [*procedure.target, 1.0]
        assert setting.fluoroscopy_projection().contains(
            setting.fluoroscopy_projection().pixels(tip[:3]), 50.0)


@pytest.mark.parametrize('name', ['hip_injection', 'shoulder_injection'])
def test_thin_regions_are_not_burnt_out(name: str) -> None:
    """Where the patient is, the detector does not saturate: soft tissue can be told from air."""
    procedure = load_procedure(name)
    patient = build_patient(procedure.region, 2, procedure.target)
    renderer = xray_renderer(procedure, patient, 2)
    pose = procedure.patient_T_fluoroscopy()
    soft, _ = renderer.line_integrals(pose)
    counts = renderer.render(pose)[::2, ::2]
    assert np.mean(counts[soft > 0.03] == 65535) < 0.02


def test_scene_shows_bone_before_what_it_hides() -> None:
    """A bone ball hides a vessel behind it from one side, and shows it from the other."""
    grid = Grid((np.zeros(3) - 0.02), 0.001, (40, 40, 40))
    labels = np.full(grid.shape, Tissue.MUSCLE, np.uint8)
    labels[15:25, 8:16, 15:25] = Tissue.CORTICAL
    labels[15:25, 24:32, 15:25] = Tissue.BLOOD
    needle = needle_on_path(np.array([1.0, 0.0, 1.0]), np.array([1.0, 0.0, 2.0]), 0.5, 1e-4, 0.1)
    middle = []
    for direction in ((0.0, 1.0, 0.0), (0.0, -1.0, 0.0)):
        picture = view(empty_patient(grid, labels=labels), needle, [], np.zeros(3),
                       np.array(direction), (80, 60), 0.06)
        middle.append(picture[30, 40].astype(int))
    assert middle[0][0] > 0.5 * middle[0][2]  # bone: blue not far below red
    assert middle[1][0] < 0.5 * middle[1][2]  # blood: red


def test_render_into_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / 'taken').write_text('')
    with pytest.raises(RenderError, match='another folder'):
        render(load_procedure('lumbar_facet_injection'), 3, None, tmp_path / 'taken')
