"""Small DICOM files for tests."""

from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
    generate_uid,
)


def write_dicom(path: Path, levels: list[int], modality: str = 'XA', **tags: Any) -> Path:
    """Write uncompressed frames of 48 x 64 in which every pixel has the frame's level."""
    uid = UltrasoundMultiFrameImageStorage if modality == 'US' else XRayAngiographicImageStorage
    file, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = uid, meta.MediaStorageSOPInstanceUID
    file.Modality, file.Rows, file.Columns, file.NumberOfFrames = modality, 48, 64, len(levels)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, 'MONOCHROME2'
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation, file.FrameTime = 7, 0, '50'
    if modality == 'US':
        region = Dataset()
        region.RegionSpatialFormat = region.RegionDataType = 1
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 63, 47
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
        region.ReferencePixelX0, region.ReferencePixelY0 = 32, 0
        file.SequenceOfUltrasoundRegions = [region]
    file.PixelData = b''.join(bytes([level]) * (48 * 64) for level in levels)
    file['PixelData'].VR = 'OB'
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.save_as(path, enforce_file_format=True)
    return path
