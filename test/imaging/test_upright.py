"""Pictures stored mirrored or turned, against points projected through the C-arm's own pose."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom

from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.carm import patient_T_optical
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.dicom import open_dicom
from hybrid_guidance.imaging.inspection import inspect_dicom
from hybrid_guidance.imaging.upright import Flips, direction, flips_between

ANGLES = [(0, 0), (30, -20), (-45, 25), (90, 0), (-110, 15), (180, 0)]
SIZE = (64, 48)
_, BACK, HEAD = np.eye(3)
SEEN = np.array([[0.03, 0.004, 0.02], [-0.021, -0.01, 0.013], [0.008, 0.02, -0.02]])
"""Metres about the isocentre: no picture of these three is like its mirror image."""


def letters(way: np.ndarray) -> str:
    """Return PatientOrientation of a direction as a machine writes it: main axes first."""
    names = [('RL', 0), ('AP', 1), ('FH', 2)]
    shares = sorted(((abs(way[axis]), pair[int(way[axis] > 0)]) for pair, axis in names),
                    reverse=True)
    return ''.join(letter for share, letter in shares if share > 0.2)


def detector_picture(primary: float, secondary: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture as the beam draws it, and where its three points are (u, v)."""
    projection = Projection.perspective((320.0, 320.0), (30.5, 22.5), SIZE)
    pose = patient_T_optical(*np.radians([primary, secondary]), 0.75, np.zeros(3))
    pixels = np.rint(projection.pixels(rigid.transform_points(rigid.inverse(pose), SEEN)))
    picture = np.zeros(SIZE[::-1], np.uint8)
    for level, (u, v) in zip((100, 160, 220), pixels.astype(int), strict=True):
        picture[v, u] = level
    return picture, pose


@pytest.mark.parametrize('turn', [0, 1, 2, 3])
@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('angles', ANGLES)
def test_however_a_picture_is_stored_its_points_are_where_the_geometry_says(
        tmp_path: Path, angles, flip: bool, turn: int) -> None:
    """DICOM's turn clockwise, then its flip: all eight ways, of a field cut off the middle."""
    picture, pose = detector_picture(*angles)
    rows, columns = pose[:3, 0], pose[:3, 1]
    image = np.rot90(picture, -turn)
    for _ in range(turn):
        rows, columns = -columns, rows
    if flip:
        image, rows = image[:, ::-1], -rows
    path = write_dicom(
        tmp_path / 'a.dcm', [0], Rows=image.shape[0], Columns=image.shape[1],
        PixelData=np.ascontiguousarray(image).tobytes(), DistanceSourceToDetector=1000,
        DistanceSourceToPatient=750, ImagerPixelSpacing=[3.125, 3.125],
        PositionerPrimaryAngle=angles[0], PositionerSecondaryAngle=angles[1],
        DetectorElementSpacing=[3.125, 3.125], DetectorActiveDimensions=[150, 200],
        # The middle of the detector is its pixel (31.5, 23.5), one less in the field of view.
        FieldOfViewOrigin=[1, 1], FieldOfViewRotation=90 * turn,
        FieldOfViewHorizontalFlip='YES' if flip else 'NO',
        PatientOrientation=[letters(rows), letters(columns)])
    recording = open_dicom(path, 'fluoroscopy')
    np.testing.assert_array_equal(recording[0].pixels, picture)
    matrix = recording.projection.matrix
    np.testing.assert_allclose([matrix[0, 0], matrix[1, 1], *matrix[:2, 2]],
                               [320.0, 320.0, 30.5, 22.5])
    np.testing.assert_allclose(recording[0].transforms['isocentre', 'carm'], pose, atol=1e-12)
    found = inspect_dicom(path)
    np.testing.assert_array_equal(found.projection.matrix, matrix)
    np.testing.assert_array_equal(found.pixels, picture)
    said = ' '.join(finding.text for finding in found.findings)
    assert ('mirrored' in said or 'turned by' in said) is (turn != 0 or flip)


@pytest.mark.parametrize('flips', [Flips(*ways) for ways in product((False, True), repeat=3)])
def test_a_pixel_goes_where_its_value_goes(flips: Flips) -> None:
    image = np.arange(15).reshape(3, 5)
    upright = flips(image)
    for v, u in np.ndindex(image.shape):
        x, y = flips.pixel((u, v), (5, 3))
        assert upright[int(y), int(x)] == image[v, u]


@pytest.mark.parametrize('orientation', [('L', 'L'), ('A', 'F'), ('X', 'F'), ('', 'F'), ('L', 'A')])
def test_letters_that_do_not_fit_the_beam_turn_nothing(orientation) -> None:
    axes = patient_T_optical(0.0, 0.0, 0.7, np.zeros(3))[:3, :2]
    assert flips_between(orientation, axes) is None
    assert flips_between(('R', 'F'), axes) == Flips()
    assert flips_between(('L', 'F'), axes) == Flips(horizontal=True)


def test_the_first_letter_is_the_main_direction() -> None:
    assert np.argmax(np.abs(direction('LA'))) == 0
    np.testing.assert_allclose(direction('F'), -HEAD)
    assert direction('LA') @ -BACK > 0.4
    assert direction('') is None


def test_without_angles_or_orientation_nothing_is_turned_and_that_is_said(tmp_path: Path) -> None:
    for tags in ({'PatientOrientation': ['L', 'F']},
                 {'PositionerPrimaryAngle': 0, 'PositionerSecondaryAngle': 0}):
        found = inspect_dicom(write_dicom(tmp_path / 'a.dcm', [10], **tags))
        assert any(finding.kind == 'assumed' and 'mirror image' in finding.text
                   for finding in found.findings)
