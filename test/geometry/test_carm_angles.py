"""A C-arm's pose by DICOM's angles, against what DICOM's text and radiologists say."""

import numpy as np
import pytest

from hybrid_guidance.geometry.carm import beam_direction, patient_T_optical
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, is_rigid, transform_points

LEFT, BACK, HEAD = np.eye(3)


@pytest.mark.parametrize(('primary', 'secondary', 'where'), [
    (0, 0, -BACK), (90, 0, LEFT), (-90, 0, -LEFT), (180, 0, BACK), (0, 90, HEAD), (0, -90, -HEAD)])
def test_the_detector_is_where_dicom_puts_it(primary, secondary, where) -> None:
    """PS3.3 C.8.7.5.1.2: 0 at the chest, LAO +90 left, RAO -90 right, cranial +90 head."""
    assert np.allclose(beam_direction(*np.radians([primary, secondary])), where, atol=1e-12)


def test_primary_is_like_longitude_and_secondary_like_latitude() -> None:
    """PS3.3 C.8.7.5.1.2 says so: turn about the head-feet axis, then up from its equator."""
    for primary, secondary in np.radians([(30, 20), (-45, 10), (120, -35)]):
        beam = beam_direction(primary, secondary)
        assert np.arcsin(beam @ HEAD) == pytest.approx(secondary)
        assert np.arctan2(beam @ LEFT, beam @ -BACK) == pytest.approx(primary)


def pixel(primary_deg: float, secondary_deg: float, point) -> np.ndarray:
    """Return where a point about the isocentre is seen, as radiologists look: mirrored."""
    pose = patient_T_optical(*np.radians([primary_deg, secondary_deg]), 0.75, np.zeros(3))
    projection = Projection.perspective((3000.0, 3000.0), (500.0, 500.0), (1001, 1001))
    u, v = projection.pixels(transform_points(inverse(pose), np.asarray(point)))
    return np.array([1000.0 - u, v])


@pytest.mark.parametrize(('primary', 'side'), [(30.0, 1.0), (45.0, 1.0), (-30.0, -1.0)])
def test_the_spine_is_on_the_right_in_lao_and_on_the_left_in_rao(primary, side) -> None:
    """The rule by which cardiologists tell the two; the heart is at the isocentre."""
    assert np.sign(pixel(primary, 0.0, 0.08 * BACK)[0] - 500.0) == side


@pytest.mark.parametrize(('secondary', 'side'), [(25.0, 1.0), (-25.0, -1.0)])
def test_seen_from_above_what_is_further_away_is_higher_in_the_picture(secondary, side) -> None:
    """As of a table that one looks down upon: cranial is from above, caudal from below."""
    assert np.sign(500.0 - pixel(0.0, secondary, 0.08 * BACK)[1]) == side


def test_the_patient_stands_upright_and_the_frame_is_right_handed() -> None:
    for angles in ((0, 0), (35, -20), (-80, 30)):
        pose = patient_T_optical(*np.radians(angles), 0.75, np.array([0.1, 0.2, 0.3]))
        assert is_rigid(pose)
        assert pixel(*angles, 0.05 * HEAD)[1] < 500.0 < pixel(*angles, -0.05 * HEAD)[1]
        assert np.linalg.norm(pose[:3, 3] - (0.1, 0.2, 0.3)) == pytest.approx(0.75)
    assert pixel(0, 0, 0.05 * LEFT)[0] > 500.0


def test_magnification_is_source_to_detector_over_source_to_object() -> None:
    """SID 1000 mm, pitch 1/3 mm: 10 mm at the isocentre, 750 mm away, are 40 px."""
    assert pixel(0, 0, 0.01 * LEFT)[0] - 500.0 == pytest.approx(10 * (1000 / 750) * 3)
