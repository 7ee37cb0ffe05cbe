"""The bone surface against arcs drawn with their shadow, and real bone."""

import numpy as np
import pytest

from hybrid_guidance.detection.bone_surface import BoneSurfaceDetector

from .conftest import as_frame, bone_arc, plus_frames, ultrasound_scene


@pytest.fixture(scope='module')
def detector() -> BoneSurfaceDetector:
    return BoneSurfaceDetector()


def rectangular_bone(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W) uint8 of a linear probe with one round bone, and its (W,) depth in px."""
    random = np.random.default_rng([seed, 3])
    v, u = np.mgrid[:480, :640].astype(np.float32)
    depth, echo, shadow = bone_arc(random, u, v)
    speckle = np.hypot(*random.normal(size=(2, 480, 640)))
    envelope = 8.0 * shadow * speckle + echo
    return np.clip(85.0 * np.log10(np.maximum(envelope, 1.0)), 0, 255).astype(np.uint8), depth


@pytest.mark.parametrize('seed', range(12))
def test_points_lie_on_the_surface(detector, seed: int) -> None:
    pixels, depth = rectangular_bone(seed)
    points, confidence = detector(as_frame(pixels))
    error = np.abs(points[:, 1] - np.interp(points[:, 0], np.arange(depth.size), depth))
    assert len(points) > 10
    assert np.sum(np.isnan(error)) <= 2, 'beside the bone'
    assert np.nanmedian(error) < 2.0
    assert np.mean(error[np.isfinite(error)] < 6.0) > 0.95
    assert np.all((confidence > 0.0) & (confidence <= 1.0))


@pytest.mark.parametrize('seed', range(12))
def test_without_bone_there_are_nearly_no_points(detector, seed: int) -> None:
    points, _ = detector(ultrasound_scene(seed, needle=False, bone=False).frame)
    assert len(points) <= 5


def test_layer_without_shadow_is_not_bone(detector) -> None:
    """The echo of a bone, as bright and as long, over tissue that goes on below it."""
    random = np.random.default_rng(0)
    v, u = np.mgrid[:480, :640].astype(np.float32)
    _, echo, _ = bone_arc(random, u, v)
    envelope = 8.0 * np.hypot(*random.normal(size=(2, 480, 640))) + echo
    pixels = np.clip(85.0 * np.log10(envelope), 0, 255).astype(np.uint8)
    assert len(detector(as_frame(pixels))[0]) == 0


def test_real_bone_is_found_in_every_frame(detector, recordings) -> None:
    """The shaft's crest lies 250 to 350 px deep; what shines at 50 px is fascia over muscle."""
    for pixels in plus_frames(recordings / 'BoneUltrasound_L14.igs.mha'):
        points, _ = detector(as_frame(pixels))
        assert len(points) > 50
        assert np.all((points[:, 1] > 230.0) & (points[:, 1] < 380.0))


@pytest.mark.parametrize('name', ['fCal_Test_Calibration_3NWires_fCal2.0.igs.mha',
                                  'fCal_Test_Validation_3NWires_fCal2.0.igs.mha'])
def test_wires_in_water_are_not_bone(detector, recordings, name: str) -> None:
    counts = [len(detector(as_frame(pixels))[0]) for pixels in plus_frames(recordings / name, 6)]
    assert np.mean(counts) < 1.0


def test_blank_image_has_no_surface(detector) -> None:
    points, confidence = detector(as_frame(np.zeros((480, 640), np.uint8)))
    assert points.shape == (0, 2)
    assert confidence.shape == (0,)


def test_lower_edge_of_a_linear_field_is_not_bone(detector) -> None:
    """Tissue that ends where the field does, over black rows: bright, and dark behind."""
    random = np.random.default_rng(1)
    pixels = np.zeros((480, 640), np.uint8)
    envelope = 20.0 * np.hypot(*random.normal(size=(2, 400, 640)))
    pixels[:400] = np.clip(85.0 * np.log10(np.maximum(envelope, 1.0)), 0, 255)
    assert len(detector(as_frame(pixels))[0]) == 0


@pytest.mark.parametrize('seed', [4, 5, 7])
def test_lower_edge_of_a_field_with_one_side_in_the_air_is_not_bone(detector, seed: int) -> None:
    """The sides of such a field do not meet at the apex, and scan lines pass its lower edge."""
    pixels = ultrasound_scene(seed, needle=False, bone=False).frame.pixels.copy()
    v, u = np.mgrid[:480, :640]
    pixels[(u > 0.8 * 640) | (u > 0.7 * 640 + 0.12 * v - 20)] = 0
    assert len(detector(as_frame(pixels))[0]) == 0
