"""``hybrid-guidance inspect``: files whose geometry is known, missing, or contradicts itself."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom.dataset import Dataset

from hybrid_guidance import cli
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.inspection import inspect_dicom
from hybrid_guidance.inspection import picture

WHOLE = {'DistanceSourceToDetector': 1000, 'DistanceSourceToPatient': 750,
         'ImagerPixelSpacing': [0.4, 0.4], 'EstimatedRadiographicMagnificationFactor': 1.3333,
         'PositionerPrimaryAngle': 30, 'PositionerSecondaryAngle': -10,
         'PatientOrientation': ['R', 'F']}


def findings(path: Path, **tags) -> list[str]:
    found = inspect_dicom(write_dicom(path, [10, 20, 30], **tags))
    return [f'{finding.kind}: {finding.text}' for finding in found.findings]


def test_a_whole_file_gives_the_pinhole_and_nothing_to_worry_about(tmp_path: Path) -> None:
    found = inspect_dicom(write_dicom(tmp_path / 'x.dcm', [10, 20, 30], **WHOLE))
    assert {finding.kind for finding in found.findings} <= {'note', 'assumed'}
    assert found.projection.matrix[0, 0] == pytest.approx(2500.0)
    assert any('[2500.00, 2500.00]' in line for line in found.enter)
    assert np.all(found.pixels == 20)


@pytest.mark.parametrize(('change', 'words'), [
    ({'EstimatedRadiographicMagnificationFactor': 1.5}, '1.5, the distances make it 1.333'),
    ({'DistanceSourceToPatient': 1100}, 'not between source and detector'),
    ({'DistanceSourceToDetector': 100}, 'centimetres or metres'),
    ({'PixelSpacing': [0.25, 0.25]}, 'magnified 1.6 times'),
    ({'ImagerPixelSpacing': [4, 4]}, 'not that of a detector'),
    ({'ImagerPixelSpacing': [0, 0]}, 'not that of a detector'),
    ({'SeriesDescription': 'LCA RAO 30'}, 'says RAO, PositionerPrimaryAngle is 30'),
    ({'ProtocolName': 'Cranial 10'}, 'says CRA, PositionerSecondaryAngle is -10'),
    ({'PositionerPrimaryAngle': 200}, 'outside +-180'),
    ({'PatientOrientation': ['A', 'F'], 'PositionerPrimaryAngle': 0}, 'does not fit the angles'),
    ({'FieldOfViewRotation': 45}, 'no quarter turn')])
def test_what_contradicts_itself_is_found(tmp_path: Path, change, words) -> None:
    said = findings(tmp_path / 'x.dcm', **{**WHOLE, **change})
    assert any(line.startswith('contradiction') and words in line for line in said), said


@pytest.mark.parametrize('change', [
    {'PixelSpacing': [0.3, 0.3]}, {'SeriesDescription': 'LAO 30 CAUDAL'},
    {'SeriesDescription': 'CRANE, CAUSE, RAOUL'}, {'PixelSpacing': [0.4, 0.4]}])
def test_what_agrees_is_no_contradiction(tmp_path: Path, change) -> None:
    """Negative control: the isocentre's spacing, the sides that are meant, and other words."""
    said = findings(tmp_path / 'x.dcm', **{**WHOLE, **change})
    assert not any(line.startswith(('contradiction', 'missing')) for line in said), said


@pytest.mark.parametrize(('tag', 'words'), [
    ('DistanceSourceToDetector', '0018,1110'), ('ImagerPixelSpacing', '0018,1164'),
    ('PositionerPrimaryAngle', '0018,1510'), ('DistanceSourceToPatient', '0018,1111')])
def test_what_is_missing_is_named_with_its_tag(tmp_path: Path, tag, words) -> None:
    tags = {key: value for key, value in WHOLE.items() if key != tag}
    said = findings(tmp_path / 'x.dcm', **tags)
    assert any(line.startswith('missing') and words in line for line in said), said


@pytest.mark.parametrize('change', [
    {'DistanceSourceToDetector': 1.0}, {'DistanceSourceToDetector': 0},
    {'ImagerPixelSpacing': [0, 0]}, {'ImagerPixelSpacing': [0.0003, 0.0003]},
    {'ImagerPixelSpacing': [400, 400]}, {'ImagerPixelSpacing': [-0.4, 0.4]}])
def test_a_length_that_cannot_be_makes_no_camera_and_advice_all_the_same(
        tmp_path: Path, change: dict[str, Any]) -> None:
    found = inspect_dicom(write_dicom(tmp_path / 'x.dcm', [10], **{**WHOLE, **change}))
    assert not found.projection.is_calibrated
    assert {finding.kind for finding in found.findings} & {'contradiction', 'missing'}
    assert any('SID / pitch' in line for line in found.enter)


@pytest.mark.parametrize(('corners', 'words'), [
    ((60, 0, 0, 47), 'its end lies before its beginning'), ((0, 0, 5000, 47), 'outside the image')])
def test_a_region_that_is_not_in_its_image_is_told(tmp_path: Path, corners: tuple[int, ...],
                                                   words: str) -> None:
    region = Dataset()
    region.RegionSpatialFormat = region.RegionDataType = 1
    region.RegionLocationMinX0, region.RegionLocationMinY0 = corners[:2]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = corners[2:]
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.02
    found = inspect_dicom(write_dicom(tmp_path / 'u.dcm', [10], 'US',
                                      SequenceOfUltrasoundRegions=[region]))
    assert any(words in finding.text for finding in found.findings if
               finding.kind == 'contradiction')


def test_of_ultrasound_scale_and_contradictions_are_told(tmp_path: Path) -> None:
    """Regions of 0.02 x 0.03 cm a pixel."""
    found = inspect_dicom(write_dicom(tmp_path / 'u.dcm', [10], 'US', PixelSpacing=[0.2, 0.2]))
    assert found.projection.matrix[0, 0] == pytest.approx(1 / 0.2e-3)
    kinds = {finding.text: finding.kind for finding in found.findings}
    assert any(kind == 'contradiction' and 'PixelSpacing says 0.2 x 0.2' in text
               for text, kind in kinds.items())
    assert any('not square, 0.2 x 0.3 mm' in text for text in kinds)


@pytest.mark.parametrize('delta', [1e-300, 1e-6, 50.0, 1e300])
def test_a_spacing_of_nonsense_is_said_and_drawn_in_finite_time(tmp_path: Path, delta) -> None:
    region = Dataset()
    region.RegionSpatialFormat = region.RegionDataType = 1
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 63, 47
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = delta
    region.ReferencePixelX0, region.ReferencePixelY0 = 32, 0
    found = inspect_dicom(write_dicom(tmp_path / 'u.dcm', [10], 'US',
                                      SequenceOfUltrasoundRegions=[region]))
    assert any('not that of an ultrasound image' in finding.text for finding in found.findings)
    assert picture(found).ndim == 3


def test_the_command_prints_words_or_json_and_writes_a_picture(tmp_path, capsys) -> None:
    file = str(write_dicom(tmp_path / 'x.dcm', [10], **WHOLE))
    target = tmp_path / 'p.png'
    assert cli.main(['inspect', file, '--picture', str(target)]) == 0
    words = capsys.readouterr().out
    assert 'focal length 2500.0' in words
    assert '1 px is 0.3000 mm at 0.75 m' in words
    assert cv2.imread(str(target)).shape[1] == 1120
    assert cli.main(['inspect', file, '--json', '--no-picture']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['camera_info']['k'][0] == pytest.approx(2500.0)
    assert found['gantry']['primary_angle'] == pytest.approx(np.radians(30))
    (tmp_path / 'no.dcm').write_text('no')
    assert cli.main(['inspect', str(tmp_path / 'no.dcm')]) == 2
    assert 'not a DICOM file' in capsys.readouterr().err


def test_a_modality_without_projection_or_plane_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match='CT is neither X-ray projection nor ultrasound'):
        inspect_dicom(write_dicom(tmp_path / 'x.dcm', [10], 'CT'))
