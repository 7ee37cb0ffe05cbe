"""Contours of bone in live images: where a ball of known place has its edge."""

import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, rotation_from_vector, transform
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.outline import Outline, OutlineMemory
from hybrid_guidance.registration.surface import BoneField

RADIUS, HALF, EDGE = 0.012, 0.04, 0.001
PATIENT_T_XRAY = transform(rotation_from_vector(np.array([0.0, 0.2, 0.1])),
                           np.array([-0.13, 0.0, -0.6]))
LENS = Projection.perspective((1000.0, 1000.0), (255.5, 255.5), (512, 512))
SLICE = Projection.orthographic((2e-4, 2e-4), (320.0, 0.0), (640, 480))


@pytest.fixture(scope='module')
def outline() -> Outline:
    line = np.arange(-HALF, HALF, EDGE) + EDGE / 2
    far = np.sqrt(line[:, None, None]**2 + line[:, None]**2 + line**2)
    bone = Bone.from_hounsfield(np.where(far < RADIUS, 900.0, 0.0), np.full(3, line[0]),
                                np.full(3, EDGE), spacings=(EDGE,))
    return Outline(bone, BoneField(np.full(3, line[0]), EDGE, far - RADIUS))


def edge(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.column_stack([columns, rows])


def test_x_ray_has_the_edge_of_the_cone_about_the_ball(outline: Outline) -> None:
    """A ray that touches the ball is asin(radius / distance) off the ray through its middle."""
    found = edge(outline.seen(LENS, inverse(PATIENT_T_XRAY)))
    centre = inverse(PATIENT_T_XRAY)[:3, 3]
    rays = np.column_stack([(found - 255.5) / 1000.0, np.ones(len(found))])
    cosine = rays @ centre / np.linalg.norm(rays, axis=1) / np.linalg.norm(centre)
    expected = np.arcsin(RADIUS / np.linalg.norm(centre))
    assert len(found) > 80
    # Pixels of the rendered image are 1.2 mm at the ball.
    error = np.abs(np.arccos(cosine) - expected) * np.linalg.norm(centre)
    assert np.median(error) < 0.0008
    assert error.max() < 0.0025


def test_slice_has_the_circle_in_which_it_cuts_the_ball(outline: Outline) -> None:
    patient_T_image = transform(translation=np.array([0.003, -0.03, 0.005]))
    found = edge(outline.seen(SLICE, inverse(patient_T_image)))
    points = SLICE.back_project(found.astype(float)) + patient_T_image[:3, 3]
    assert len(found) > 100
    assert np.all(np.abs(np.linalg.norm(points, axis=1) - RADIUS) < 0.0015)


def test_outline_is_made_anew_only_when_something_has_moved(outline: Outline) -> None:
    memory = OutlineMemory(outline, 0.0005)
    pose = inverse(transform(translation=np.array([0.0, -0.03, 0.0])))
    first = memory.seen('ultrasound', SLICE, pose)
    near = transform(translation=np.array([0.0003, 0.0, 0.0])) @ pose
    assert memory.seen('ultrasound', SLICE, near) is first
    far = transform(translation=np.array([0.004, 0.0, 0.0])) @ pose
    moved = memory.seen('ultrasound', SLICE, far)
    assert edge(moved)[:, 0].mean() - edge(first)[:, 0].mean() == pytest.approx(20.0, abs=1.5)
    # Small steps add up: what counts is the way from where it was made.
    assert memory.seen('ultrasound', SLICE, pose) is not moved
