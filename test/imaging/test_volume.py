"""Volumes written by hand, or by pydicom, from a place that is known."""

import struct
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from hybrid_guidance.geometry.rigid import rotation_from_vector
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.volume import Volume, read_volume, write_nifti

VALUES = np.random.default_rng(3).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)
TURN = rotation_from_vector(np.array([0.1, -0.2, 0.3]))
ORIGIN = np.array([-12.0, 30.0, 5.5])
SPACING = np.array([0.5, 0.75, 2.5])
"""Millimetres along a row, down a column, from slice to slice."""


def slice_of(index: int, series: str, place: np.ndarray | None = None) -> FileDataset:
    """A CT slice; the pixel spacing tag is (between rows, between columns)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    one = FileDataset('', {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    one.Modality, one.SeriesInstanceUID = 'CT', series
    one.Rows, one.Columns = VALUES.shape[1:]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, 'MONOCHROME2'
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelSpacing = [float(SPACING[1]), float(SPACING[0])]
    one.ImageOrientationPatient = [float(value) for value in TURN[:, :2].T.ravel()]
    one.ImagePositionPatient = [float(round(value, 6)) for value in (
        ORIGIN + index * SPACING[2] * TURN[:, 2] if place is None else place)]
    one.PixelData = (VALUES[index] + 1024).astype('<u2').tobytes()
    return one


def write_series(folder: Path, indices: tuple[int, ...], series: str = '1.2.3') -> None:
    # Names in another order than the slices: only their positions count.
    for number, index in enumerate(indices):
        slice_of(index, series).save_as(folder / f'{series}-{(7 * number) % 5}.dcm')


def test_slices_of_a_dicom_series_become_hounsfield_units_in_their_place(tmp_path: Path) -> None:
    write_series(tmp_path, (2, 0, 3, 1))
    (tmp_path / 'readme.txt').write_text('not a slice')
    read = read_volume(tmp_path)
    assert np.array_equal(read.values, VALUES)
    place = 1e-3 * (ORIGIN + TURN @ (SPACING * (4, 3, 2)))
    assert np.allclose((read.patient_T_voxel @ (4, 3, 2, 1))[:3], place, atol=1e-8)
    assert np.allclose(read.spacing, 1e-3 * SPACING, atol=1e-8)


def test_a_tilted_gantry_shears_the_volume_and_moves_nothing(tmp_path: Path) -> None:
    for index in range(3):
        place = ORIGIN + index * (SPACING[2] * TURN[:, 2] + 0.8 * TURN[:, 1])
        slice_of(index, '1.2', place).save_as(tmp_path / f'{index}.dcm')
    read = read_volume(tmp_path)
    last = ORIGIN + 2 * (SPACING[2] * TURN[:, 2] + 0.8 * TURN[:, 1]) + TURN[:, 0] * 0.5
    assert np.allclose((read.patient_T_voxel @ (1, 0, 2, 1))[:3], 1e-3 * last, atol=1e-8)


def test_a_missing_slice_and_a_mixture_of_series_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 1, 3))
    with pytest.raises(SourceError, match='missing or double'):
        read_volume(tmp_path)
    write_series(tmp_path, (0, 1, 2, 3), '1.2.4')
    with pytest.raises(SourceError, match='2 series'):
        read_volume(tmp_path)
    assert np.array_equal(read_volume(tmp_path, '4').values, VALUES)


def test_a_folder_without_slices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match='no DICOM slices'):
        read_volume(tmp_path)
    with pytest.raises(SourceError, match='cannot be read'):
        read_volume(tmp_path / 'absent.nii.gz')


def test_dicom_and_nifti_of_one_volume_are_the_same_place(tmp_path: Path) -> None:
    """Written in RAS millimetres, read back in LPS metres; the header by its description."""
    folder = tmp_path / 'series'
    folder.mkdir()
    write_series(folder, (0, 1, 2, 3))
    first = read_volume(folder)
    write_nifti(tmp_path / 'ct.nii.gz', first)
    second = read_volume(tmp_path / 'ct.nii.gz')
    assert np.array_equal(second.values, VALUES)
    assert np.allclose(second.patient_T_voxel, first.patient_T_voxel, atol=1e-8)
    write_nifti(tmp_path / 'ct.nii', first)
    row = struct.unpack_from('<4f', (tmp_path / 'ct.nii').read_bytes(), 280)
    assert np.allclose(row, [*(-1e3 * first.patient_T_voxel[0])], atol=1e-4)


def test_slope_and_intercept_of_a_nifti_file_count(tmp_path: Path) -> None:
    write_nifti(tmp_path / 'ct.nii', Volume(VALUES, np.diag([1e-3, 1e-3, 1e-3, 1.0])))
    content = bytearray((tmp_path / 'ct.nii').read_bytes())
    struct.pack_into('<2f', content, 112, 2.0, -1024.0)
    (tmp_path / 'ct.nii').write_bytes(content)
    assert np.array_equal(read_volume(tmp_path / 'ct.nii').values, 2.0 * VALUES - 1024.0)
