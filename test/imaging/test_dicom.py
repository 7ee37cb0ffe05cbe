from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
    generate_uid,
)

from hybrid_guidance.imaging.dicom import DEFAULT_FRAME_TIME, open_dicom
from hybrid_guidance.imaging.frame import SourceError

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (5, 12, 16), dtype=np.uint8)


def dataset(images: np.ndarray, modality: str = 'XA', **tags: Any) -> Dataset:
    """Return an uncompressed file of (N, H, W) or (N, H, W, 3) images."""
    uid = UltrasoundMultiFrameImageStorage if modality == 'US' else XRayAngiographicImageStorage
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid, generate_uid()
    meta.TransferSyntaxUID = tags.pop('syntax', ExplicitVRLittleEndian)
    file = Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = uid, meta.MediaStorageSOPInstanceUID
    file.Modality = modality
    file.Rows, file.Columns = images.shape[1:3]
    file.NumberOfFrames = len(images)
    file.SamplesPerPixel = 3 if images.ndim == 4 else 1
    file.PhotometricInterpretation = 'RGB' if images.ndim == 4 else 'MONOCHROME2'
    if images.ndim == 4:
        file.PlanarConfiguration = 0
    file.BitsAllocated = file.BitsStored = 8 * images.itemsize
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(images.dtype.kind == 'i')
    file.FrameTime = '40'
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.PixelData = images.tobytes() + bytes(images.nbytes % 2)
    file['PixelData'].VR = 'OB' if images.itemsize == 1 else 'OW'
    return file


def write(path: Path, images: np.ndarray = IMAGES, modality: str = 'XA', **tags: Any) -> Path:
    file = dataset(images, modality, **tags)
    file.save_as(path, enforce_file_format=True)
    return path


def jpeg(path: Path, images: np.ndarray, modality: str = 'XA', **tags: Any) -> list[bytes]:
    """Write JPEG baseline and return the compressed frames."""
    frames = [cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
              for image in images]
    file = dataset(images, modality, syntax=JPEGBaseline8Bit, **tags)
    file.PixelData = encapsulate([frame + b'\0' * (len(frame) % 2) for frame in frames])
    file['PixelData'].VR = 'OB'
    file['PixelData'].is_undefined_length = True
    file.save_as(path, enforce_file_format=True)
    return frames


def pixels(path: Path, modality: Any = 'fluoroscopy') -> np.ndarray:
    recording = open_dicom(path, modality)
    return np.stack([recording[index].pixels for index in range(len(recording))])


def region(left: int, top: int, right: int, bottom: int, **tags: Any) -> Dataset:
    values = {'RegionSpatialFormat': 1, 'RegionDataType': 1, 'RegionFlags': 2,
              'RegionLocationMinX0': left, 'RegionLocationMinY0': top,
              'RegionLocationMaxX1': right, 'RegionLocationMaxY1': bottom,
              'PhysicalUnitsXDirection': 3, 'PhysicalUnitsYDirection': 3,
              'PhysicalDeltaX': 0.02, 'PhysicalDeltaY': 0.03} | tags
    found = Dataset()
    for tag, value in values.items():
        if value is not None:
            setattr(found, tag, value)
    return found


def scan(frames: int = 6, seed: int = 3) -> np.ndarray:
    """Return a screen of 240 x 320 with speckle in (60:200, 80:240) that changes."""
    rng = np.random.default_rng(seed)
    images = np.zeros((frames, 240, 320), np.uint8)
    images[:, 60:200, 80:240] = speckle(rng, (frames, 140, 160))
    return images


def speckle(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Return images of smoothed noise, between 10 and 200."""
    noise = [cv2.GaussianBlur(rng.normal(size=shape[1:]), (0, 0), 1.5) for _ in range(shape[0])]
    return np.clip(80.0 + 150.0 * np.stack(noise), 10, 200).astype(np.uint8)


def annotated(images: np.ndarray) -> np.ndarray:
    """Draw name, scale, grey bar and a line of text over the echoes."""
    drawn = images.copy()
    for image in drawn:
        cv2.putText(image, 'DOE JOHN 1951', (5, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
        cv2.putText(image, '2D 60%', (5, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 230, 1)
        image[70:190, 290:304] = np.linspace(255, 0, 120, dtype=np.uint8)[:, None]
        image[60:200:20, 246:250] = 255
    return drawn


# Pixels


@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_grey_frames_are_those_written(tmp_path: Path, syntax: str) -> None:
    found = pixels(write(tmp_path / 'a.dcm', syntax=syntax))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IMAGES)


def test_a_single_frame_without_number_of_frames_opens(tmp_path: Path) -> None:
    file = dataset(IMAGES[:1])
    del file.NumberOfFrames
    file.save_as(tmp_path / 'a.dcm', enforce_file_format=True)
    np.testing.assert_array_equal(pixels(tmp_path / 'a.dcm'), IMAGES[:1])


@pytest.mark.parametrize('syntax', [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize('bits', [8, 16])
def test_lossless_compression_loses_nothing(tmp_path: Path, syntax: str, bits: int) -> None:
    images = RNG.integers(0, 1 << bits, (3, 70, 80)).astype(f'u{bits // 8}')
    frames = []
    for image in images:
        file = dataset(image[None])
        file.compress(syntax, generate_instance_uid=False)
        frames.append(pydicom.encaps.get_frame(file.PixelData, 0, number_of_frames=1))
    file = dataset(images, syntax=syntax)
    file.PixelData = encapsulate(frames, has_bot=False)
    file['PixelData'].VR = 'OB'
    file['PixelData'].is_undefined_length = True
    file.save_as(tmp_path / 'a.dcm', enforce_file_format=True)
    found = pixels(tmp_path / 'a.dcm')
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, images)


def test_jpeg_frames_are_decoded_like_another_decoder_does(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (64, 48, 4), dtype=np.uint8), (9, 9), 3)
    frames = jpeg(tmp_path / 'a.dcm', np.ascontiguousarray(np.moveaxis(smooth, -1, 0)))
    for found, frame in zip(pixels(tmp_path / 'a.dcm'), frames, strict=True):
        expected = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('stored', [9, 10, 12, 14, 16])
def test_odd_bit_depths_keep_their_values(tmp_path: Path, stored: int) -> None:
    images = RNG.integers(0, 1 << stored, (2, 9, 11)).astype('<u2')
    found = pixels(write(tmp_path / 'a.dcm', images, BitsStored=stored, HighBit=stored - 1))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize(('kind', 'stored'), [('|i1', 8), ('<i2', 12), ('<i2', 16)])
def test_signed_pixels_are_shifted_by_half_the_range(tmp_path: Path, kind: str,
                                                     stored: int) -> None:
    half = 1 << (stored - 1)
    images = RNG.integers(-half, half, (2, 9, 11)).astype(kind)
    path = write(tmp_path / 'a.dcm', images, BitsStored=stored, HighBit=stored - 1)
    np.testing.assert_array_equal(pixels(path), images.astype(int) + half)
    assert f'signed pixels, shifted up by {half}' in open_dicom(path, 'fluoroscopy').notes


@pytest.mark.parametrize(('stored', 'kind'), [(8, '|u1'), (12, '<u2')])
def test_monochrome1_is_inverted_and_says_so(tmp_path: Path, stored: int, kind: str) -> None:
    images = RNG.integers(0, 1 << stored, (2, 9, 11)).astype(kind)
    path = write(tmp_path / 'a.dcm', images, BitsStored=stored, HighBit=stored - 1,
                 PhotometricInterpretation='MONOCHROME1', PixelIntensityRelationshipSign=1)
    np.testing.assert_array_equal(pixels(path), (1 << stored) - 1 - images.astype(int))
    notes = open_dicom(path, 'fluoroscopy').notes
    assert any('MONOCHROME1' in note for note in notes)
    assert 'brighter means less X-ray at the detector' in notes


def test_colour_becomes_bt601_luminance(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (2, 9, 12, 3), dtype=np.uint8)
    expected = images @ np.array([0.299, 0.587, 0.114])
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    first = write(tmp_path / 'a.dcm', images)
    file = dataset(images, PlanarConfiguration=1)
    file.PixelData = planes.tobytes()
    file.save_as(tmp_path / 'b.dcm', enforce_file_format=True)
    for path in (first, tmp_path / 'b.dcm'):
        assert np.abs(pixels(path) - expected).max() <= 1.0


def test_of_ybr_only_luminance_is_taken(tmp_path: Path) -> None:
    full = RNG.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    path = write(tmp_path / 'a.dcm', full, PhotometricInterpretation='YBR_FULL')
    np.testing.assert_array_equal(pixels(path), full[..., 0])
    image = cv2.GaussianBlur(full[0], (5, 5), 2)
    (frame,) = jpeg(tmp_path / 'b.dcm', image[None], PhotometricInterpretation='YBR_FULL_422')
    expected = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(pixels(tmp_path / 'b.dcm')[0].astype(int) - expected).max() <= 2


def test_ybr_422_is_read_from_its_two_thirds_of_bytes(tmp_path: Path) -> None:
    luminance = RNG.integers(0, 256, (2, 8, 12), dtype=np.uint8)
    packed = np.full((2, 8, 6, 4), 128, np.uint8)
    packed[..., :2] = luminance.reshape(2, 8, 6, 2)
    file = dataset(np.zeros((2, 8, 12, 3), np.uint8), PhotometricInterpretation='YBR_FULL_422')
    file.PixelData = packed.tobytes()
    file.save_as(tmp_path / 'a.dcm', enforce_file_format=True)
    np.testing.assert_array_equal(pixels(tmp_path / 'a.dcm'), luminance)


@pytest.mark.parametrize('bits', [8, 16])
def test_palette_colours_become_their_luminance(tmp_path: Path, bits: int) -> None:
    table = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    tags: dict[str, Any] = {'PhotometricInterpretation': 'PALETTE COLOR'}
    for colour, entries in zip(('Red', 'Green', 'Blue'), table, strict=True):
        stored = entries.astype('u1') if bits == 8 else (entries * 257).astype('<u2')
        tags[f'{colour}PaletteColorLookupTableDescriptor'] = [256, 0, bits]
        tags[f'{colour}PaletteColorLookupTableData'] = stored.tobytes()
    found = pixels(write(tmp_path / 'a.dcm', **tags))
    expected = np.moveaxis(table[:, IMAGES], 0, -1) @ np.array([0.299, 0.587, 0.114])
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1.0


def test_frames_are_kept_and_cannot_be_changed_by_a_reader(tmp_path: Path) -> None:
    recording = open_dicom(write(tmp_path / 'a.dcm'), 'fluoroscopy')
    assert recording[3].pixels is recording[3].pixels
    with pytest.raises(ValueError, match='read-only'):
        recording[3].pixels[0, 0] = 1
    with pytest.raises(IndexError):
        recording[5]


def test_a_long_clip_keeps_what_fits_and_decodes_the_rest_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('hybrid_guidance.imaging.dicom._CACHE_BYTES', 2 * IMAGES[0].nbytes)
    recording = open_dicom(write(tmp_path / 'a.dcm'), 'fluoroscopy')
    first, second = ([recording[index].pixels for index in range(5)] for _ in range(2))
    assert [one is other for one, other in zip(first, second, strict=True)] == [
        True, True, False, False, False]
    np.testing.assert_array_equal(second, IMAGES)
    assert recording[4].pixels is recording[4].pixels


# Time


@pytest.mark.parametrize(('tags', 'times', 'period'), [
    ({'FrameTime': '33'}, [0.0, 0.033, 0.066, 0.099, 0.132], 0.165),
    ({'FrameTime': None, 'CineRate': 10}, [0.0, 0.1, 0.2, 0.3, 0.4], 0.5),
    ({'FrameTime': None, 'RecommendedDisplayFrameRate': 20}, [0.0, 0.05, 0.1, 0.15, 0.2], 0.25),
    ({'FrameTime': '0', 'CineRate': 10}, [0.0, 0.1, 0.2, 0.3, 0.4], 0.5),
    ({'FrameTimeVector': ['0', '10', '20', '30', '40']}, [0.0, 0.01, 0.03, 0.06, 0.1], 0.125),
])
def test_frame_times_come_from_the_file(tmp_path: Path, tags: dict[str, Any], times: list[float],
                                        period: float) -> None:
    recording = open_dicom(write(tmp_path / 'a.dcm', **tags), 'fluoroscopy')
    np.testing.assert_allclose(recording.times, times, atol=1e-12)
    assert recording[2].time == pytest.approx(times[2])
    assert recording.period == pytest.approx(period)


def test_an_assumed_rate_or_unusable_vector_is_a_note(tmp_path: Path) -> None:
    recording = open_dicom(write(tmp_path / 'a.dcm', FrameTime=None), 'fluoroscopy')
    assert recording.times[1] == pytest.approx(DEFAULT_FRAME_TIME)
    assert any('15 frames per second assumed' in note for note in recording.notes)
    vector = ['0', '10', '-20', '30', '40']
    recording = open_dicom(write(tmp_path / 'a.dcm', FrameTimeVector=vector), 'fluoroscopy')
    assert recording.times[1] == pytest.approx(0.04)
    assert any('FrameTimeVector is not usable' in note for note in recording.notes)


# X-ray geometry

PINHOLE = {'DistanceSourceToDetector': '1000', 'ImagerPixelSpacing': ['0.4', '0.2']}


def test_focal_length_is_source_distance_over_pixel_spacing(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.dcm', **PINHOLE, DistanceSourceToPatient='700',
                 PositionerPrimaryAngle='-30', PositionerSecondaryAngle='20')
    recording = open_dicom(path, 'fluoroscopy')
    # A point 1 cm right and 2 cm down of the axis, halfway to the detector, by similar triangles.
    pixel = recording.projection.pixels(np.array([0.01, 0.02, 0.5]))
    np.testing.assert_allclose(pixel, [7.5 + 20.0 / 0.2, 5.5 + 40.0 / 0.4])
    assert any('principal point assumed' in note for note in recording.notes)
    gantry = recording.gantry
    assert gantry is not None
    assert gantry.source_to_detector == pytest.approx(1.0)
    assert gantry.source_to_patient == pytest.approx(0.7)
    assert gantry.primary_angle == pytest.approx(-np.pi / 6.0)
    assert gantry.secondary_angle == pytest.approx(np.pi / 9.0)


@pytest.mark.parametrize('missing', ['DistanceSourceToDetector', 'ImagerPixelSpacing'])
def test_an_uncalibrated_image_says_which_tag_is_missing(tmp_path: Path, missing: str) -> None:
    recording = open_dicom(write(tmp_path / 'a.dcm', **(PINHOLE | {missing: None})), 'fluoroscopy')
    assert not recording.projection.is_calibrated
    (note,) = (note for note in recording.notes if note.startswith('uncalibrated'))
    assert missing in note
    assert len([tag for tag in PINHOLE if tag in note]) == 1


def test_an_enhanced_file_keeps_its_geometry_in_shared_groups(tmp_path: Path) -> None:
    geometry, properties, group = Dataset(), Dataset(), Dataset()
    geometry.DistanceSourceToDetector = 1200.0
    properties.ImagerPixelSpacing = ['0.3', '0.3']
    group.XRayGeometrySequence, group.FramePixelDataPropertiesSequence = [geometry], [properties]
    path = write(tmp_path / 'a.dcm', SharedFunctionalGroupsSequence=[group])
    matrix = open_dicom(path, 'fluoroscopy').projection.matrix
    np.testing.assert_allclose([matrix[0, 0], matrix[1, 1]], 1200.0 / 0.3)


@pytest.mark.parametrize('turn', [0, 90, 180, 270])
@pytest.mark.parametrize('flip', ['NO', 'YES'])
def test_the_principal_point_follows_the_field_of_view(tmp_path: Path, turn: int,
                                                       flip: str) -> None:
    """Compared with turning an image of the detector in which only its centre is marked."""
    detector = np.zeros((42, 64))
    detector[20:22, 31:33] = 1.0
    view = np.rot90(detector[6:36, 10:50], -turn // 90)
    view = view[:, ::-1] if flip == 'YES' else view
    rows, columns = np.nonzero(view)
    images = np.zeros((1, *view.shape), np.uint8)
    path = write(tmp_path / 'a.dcm', images, DistanceSourceToDetector='1000',
                 ImagerPixelSpacing=['0.2', '0.2'], DetectorElementSpacing=['0.2', '0.2'],
                 DetectorActiveDimensions=['8.4', '12.8'], FieldOfViewOrigin=['6', '10'],
                 FieldOfViewRotation=str(turn), FieldOfViewHorizontalFlip=flip)
    matrix = open_dicom(path, 'fluoroscopy').projection.matrix
    np.testing.assert_allclose(matrix[:2, 2], [columns.mean(), rows.mean()], atol=1e-9)


def test_doubtful_pixel_spacing_is_a_note(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.dcm', **PINHOLE, DetectorElementSpacing=['0.2', '0.2'],
                 DetectorBinning=['1', '1'], FieldOfViewShape='RECTANGLE',
                 FieldOfViewDimensions=['300', '300'])
    notes = open_dicom(path, 'fluoroscopy').notes
    assert sum('verify the focal length' in note for note in notes) == 2


# Ultrasound


def test_an_image_is_cropped_to_its_tissue_region_in_metres(tmp_path: Path) -> None:
    images = scan()
    images[:, 10:40] = 200
    other = region(0, 0, 300, 230, RegionDataType=2)
    small = region(0, 0, 20, 20)
    used = region(80, 60, 239, 199, ReferencePixelX0=75, ReferencePixelY0=4)
    path = write(tmp_path / 'a.dcm', images, 'US',
                 SequenceOfUltrasoundRegions=[other, small, used])
    recording = open_dicom(path, 'ultrasound')
    np.testing.assert_array_equal(pixels(path, 'ultrasound'), images[:, 60:200, 80:240])
    matrix = recording.projection.matrix
    assert not recording.projection.is_perspective
    np.testing.assert_allclose(recording.projection.pixels(np.array([2e-4, 3e-4, 0.0])), [76., 5.])
    np.testing.assert_allclose(matrix[:2, 3], [75.0, 4.0])
    assert any('2 two-dimensional tissue regions' in note for note in recording.notes)


def test_the_origin_is_the_mid_face_however_the_scanner_says_it(tmp_path: Path) -> None:
    """Reference pixel in the corner with physical values from the middle, or none at all."""
    corner = region(80, 60, 239, 199, ReferencePixelX0=0, ReferencePixelY0=0,
                    ReferencePixelPhysicalValueX=-1.59, ReferencePixelPhysicalValueY=0.0)
    none = region(40, 50, 279, 219)
    for one, expected in ((corner, (79.5, 0.0)), (none, (119.5, 10.0))):
        path = write(tmp_path / 'a.dcm', scan(), 'US', SequenceOfUltrasoundRegions=[one])
        recording = open_dicom(path, 'ultrasound')
        np.testing.assert_allclose(recording.projection.matrix[:2, 3], expected, atol=1.0)
        assert any('origin' in note for note in recording.notes)


def test_a_reference_pixel_far_from_its_region_is_no_origin(tmp_path: Path) -> None:
    one = region(40, 50, 279, 219, ReferencePixelX0=2**31 - 1, ReferencePixelY0=0)
    path = write(tmp_path / 'a.dcm', scan(), 'US', SequenceOfUltrasoundRegions=[one])
    recording = open_dicom(path, 'ultrasound')
    np.testing.assert_allclose(recording.projection.matrix[:2, 3], (119.5, 10.0), atol=1.0)
    assert any('no usable reference pixel: origin assumed' in note for note in recording.notes)


@pytest.mark.parametrize('tags', [
    {'PositionerPrimaryAngle': 1e30}, {'PositionerSecondaryAngle': -91},
    {'DistanceSourceToPatient': 0.75}])
def test_how_a_c_arm_cannot_stand_is_no_pose(tmp_path: Path, tags: dict[str, Any]) -> None:
    whole = {'PositionerPrimaryAngle': 10, 'PositionerSecondaryAngle': 5,
             'DistanceSourceToPatient': 750}
    for given, known in ((whole, True), ({**whole, **tags}, False)):
        recording = open_dicom(write(tmp_path / 'a.dcm', **given), 'fluoroscopy')
        assert recording.gantry is not None
        assert (recording.gantry.pose() is not None) == known


@pytest.mark.parametrize(('increments', 'known'), [
    (['0', '2', '4', '6', '8'], True), (['0', '2'], False), (['0', '0', '0', '0', '0'], True)])
def test_increments_tell_that_a_c_arm_moved_though_nothing_else_says_so(
        tmp_path: Path, increments: list[str], known: bool) -> None:
    path = write(tmp_path / 'a.dcm', PositionerPrimaryAngle=10, PositionerSecondaryAngle=5,
                 DistanceSourceToPatient=750, PositionerPrimaryAngleIncrement=increments,
                 PositionerSecondaryAngleIncrement='0')
    gantries = open_dicom(path, 'fluoroscopy').gantries
    assert (gantries[4].pose() is not None) == known
    if known:
        assert gantries[4].primary_angle == pytest.approx(np.deg2rad(10 + float(increments[4])))


@pytest.mark.parametrize(('tags', 'reason'), [
    ({'PhysicalUnitsXDirection': 4}, 'not in centimetres'), ({'PhysicalDeltaY': None}, 'missing'),
    ({'PhysicalDeltaX': 0.0}, 'missing')])
def test_a_region_without_scale_is_uncalibrated(tmp_path: Path, tags: dict[str, Any],
                                                reason: str) -> None:
    one = region(80, 60, 239, 199, **tags)
    path = write(tmp_path / 'a.dcm', scan(), 'US', SequenceOfUltrasoundRegions=[one])
    recording = open_dicom(path, 'ultrasound')
    assert not recording.projection.is_calibrated
    assert any(note.startswith('uncalibrated') and reason in note for note in recording.notes)


@pytest.mark.parametrize('frames', [1, 6])
def test_without_region_the_sector_is_found_and_no_annotation_left(tmp_path: Path,
                                                                   frames: int) -> None:
    clean = scan(frames)
    path = write(tmp_path / 'a.dcm', annotated(clean), 'US')
    recording = open_dicom(path, 'ultrasound')
    found = pixels(path, 'ultrasound')
    assert not recording.projection.is_calibrated
    np.testing.assert_array_equal(found, clean[:, 60:200, 80:240])


def test_annotation_beside_the_sector_but_in_the_region_is_blank(tmp_path: Path) -> None:
    clean = scan()
    one = region(0, 30, 310, 230)
    path = write(tmp_path / 'a.dcm', annotated(clean), 'US', SequenceOfUltrasoundRegions=[one])
    np.testing.assert_array_equal(pixels(path, 'ultrasound'), clean[:, 30:231, 0:311])


def test_a_frame_of_nothing_is_shown_whole(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.dcm', np.zeros((2, 40, 50), np.uint8), 'US')
    recording = open_dicom(path, 'ultrasound')
    assert recording[0].pixels.shape == (40, 50)
    assert any('no sector found' in note for note in recording.notes)


# Refusals


def test_a_file_of_the_other_modality_is_refused(tmp_path: Path) -> None:
    for modality, wanted, hint in (('XA', 'ultrasound', 'give it to the fluoroscopy source'),
                                   ('DX', 'ultrasound', 'give it to the fluoroscopy source'),
                                   ('US', 'fluoroscopy', 'give it to the ultrasound source'),
                                   ('MR', 'fluoroscopy', 'takes files of modality XA, RF'),
                                   ('', 'ultrasound', 'its modality is not stated')):
        path = write(tmp_path / 'a.dcm', modality=modality)
        with pytest.raises(SourceError) as caught:
            open_dicom(path, wanted)  # type: ignore[arg-type]
        assert str(path) in str(caught.value)
        assert hint in str(caught.value)


@pytest.mark.parametrize(('tags', 'reason'), [
    ({'NumberOfFrames': 9}, 'declares 9 frames and holds 5 (cut off)'),
    ({'NumberOfFrames': 2}, 'declares 2 frames and holds 5'),
    ({'NumberOfFrames': 0}, 'has no frames'), ({'NumberOfFrames': -3}, 'has no frames'),
    ({'NumberOfFrames': 10**9}, 'not a plausible image'),
    ({'Rows': 0}, 'not a plausible image'), ({'Rows': 65535, 'Columns': 65535}, 'not a plausible'),
    ({'Rows': None}, 'tag Rows is missing'), ({'BitsAllocated': 32}, 'is not supported'),
    ({'BitsStored': 12}, 'is not supported'), ({'HighBit': 5}, 'is not supported'),
    ({'SamplesPerPixel': 4}, 'is not supported'),
])
def test_a_header_that_lies_is_refused_in_words(tmp_path: Path, tags: dict[str, Any],
                                                reason: str) -> None:
    path = write(tmp_path / 'a.dcm', **tags)
    with pytest.raises(SourceError) as caught:
        open_dicom(path, 'fluoroscopy')
    assert str(caught.value).startswith(f'{path}: ')
    assert reason in str(caught.value)
    assert ';' in str(caught.value)


def test_a_file_without_frames_and_without_pixels_is_refused_in_words(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.dcm', IMAGES[:0], NumberOfFrames=0)
    with pytest.raises(SourceError, match=r'has no frames \(NumberOfFrames is 0, 0 bytes'):
        open_dicom(path, 'fluoroscopy')


def test_what_is_no_dicom_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'a.dcm'
    for content in (b'', b'hello', b'hello ' * 100, bytes(128) + b'DICM', bytes(4000)):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r'a\.dcm: .*;'):
            open_dicom(path, 'fluoroscopy')
    with pytest.raises(SourceError, match='is a folder'):
        open_dicom(tmp_path, 'fluoroscopy')
    with pytest.raises(SourceError, match='no such file'):
        open_dicom(tmp_path / 'none.dcm', 'fluoroscopy')


def test_a_file_without_pixels_is_refused(tmp_path: Path) -> None:
    file = dataset(IMAGES)
    del file.PixelData
    file.save_as(tmp_path / 'a.dcm', enforce_file_format=True)
    with pytest.raises(SourceError, match='holds no image'):
        open_dicom(tmp_path / 'a.dcm', 'fluoroscopy')


@pytest.mark.parametrize('compressed', [True, False])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / 'a.dcm'
    if compressed:
        jpeg(path, IMAGES)
    else:
        write(path)
    whole = path.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.8, 0.95):
        path.write_bytes(whole[:int(share * len(whole))])
        with pytest.raises(SourceError):
            open_dicom(path, 'fluoroscopy')


@pytest.mark.parametrize('declared', [1, 3, 8])
def test_compressed_frames_are_counted(tmp_path: Path, declared: int) -> None:
    jpeg(tmp_path / 'a.dcm', IMAGES, NumberOfFrames=declared)
    with pytest.raises(SourceError, match=f'declares {declared} frames and holds 5'):
        open_dicom(tmp_path / 'a.dcm', 'fluoroscopy')


def test_one_damaged_frame_is_named_and_the_others_play(tmp_path: Path) -> None:
    frames = jpeg(tmp_path / 'a.dcm', IMAGES)
    data = (tmp_path / 'a.dcm').read_bytes()
    damaged = frames[2][:20] + bytes(len(frames[2]) - 20)
    (tmp_path / 'a.dcm').write_bytes(data.replace(frames[2], damaged))
    recording = open_dicom(tmp_path / 'a.dcm', 'fluoroscopy')
    assert recording[1].pixels.shape == recording[3].pixels.shape == (12, 16)
    with pytest.raises(SourceError, match='frame 2 is damaged'):
        recording[2]


@pytest.mark.parametrize('runs', [b'\x81\xff' * 400, b'\x81\xff', b'\x7f', b''])
def test_run_lengths_that_do_not_fit_are_a_damaged_frame(tmp_path: Path, runs: bytes) -> None:
    """On the first the decoder panics, which is no ordinary exception."""
    file = dataset(IMAGES[:1].astype('<u2'), syntax=RLELossless)
    header = np.array([2, 64, 64 + len(runs), *[0] * 13], '<u4').tobytes()
    file.PixelData = encapsulate([header + runs + runs])
    file['PixelData'].VR = 'OB'
    file['PixelData'].is_undefined_length = True
    file.save_as(tmp_path / 'a.dcm', enforce_file_format=True)
    with pytest.raises(SourceError, match='frame 0 is damaged'):
        open_dicom(tmp_path / 'a.dcm', 'fluoroscopy')[0]


def test_a_compressed_image_larger_than_declared_is_not_decoded(tmp_path: Path) -> None:
    frames = jpeg(tmp_path / 'a.dcm', IMAGES)
    data = (tmp_path / 'a.dcm').read_bytes()
    at = frames[0].index(b'\xff\xc0') + 5
    bomb = frames[0][:at] + b'\xff\xff\xff\xff' + frames[0][at + 4:]
    (tmp_path / 'a.dcm').write_bytes(data.replace(frames[0], bomb))
    with pytest.raises(SourceError, match='the compressed image is 65535 x 65535'):
        open_dicom(tmp_path / 'a.dcm', 'fluoroscopy')[0]


def test_a_deflated_bomb_is_not_unpacked(tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('hybrid_guidance.imaging.dicom._MAXIMUM_FRAME_BYTES', 1 << 20)
    path = write(tmp_path / 'a.dcm', np.zeros((1, 2000, 1000), np.uint8),
                 syntax=DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 1 << 14
    with pytest.raises(SourceError, match='unpacks to more than'):
        open_dicom(path, 'fluoroscopy')


def test_big_endian_pixels_are_read(tmp_path: Path) -> None:
    images = RNG.integers(0, 1 << 16, (2, 9, 11)).astype('>u2')
    file = dataset(images, syntax=ExplicitVRBigEndian)
    file.save_as(tmp_path / 'a.dcm', enforce_file_format=True, little_endian=False,
                 implicit_vr=False)
    np.testing.assert_array_equal(pixels(tmp_path / 'a.dcm'), images)


def test_mutated_files_raise_nothing_but_source_errors(tmp_path: Path) -> None:
    write(tmp_path / 'a.dcm', **PINHOLE)
    jpeg(tmp_path / 'b.dcm', IMAGES)
    write(tmp_path / 'c.dcm', scan(2)[:, 40:120, 60:160], 'US',
          SequenceOfUltrasoundRegions=[region(10, 10, 90, 70)])
    originals = [(name, (tmp_path / f'{name}.dcm').read_bytes()) for name in 'abc']
    rng = np.random.default_rng(13)
    path = tmp_path / 'fuzz.dcm'
    messages = []
    for turn in range(150):
        name, original = originals[turn % 3]
        data = bytearray(original)
        # Most damage goes into the header, where the decisions are.
        end = len(data) if turn % 2 else min(len(data), 1200)
        for position in rng.integers(132, end, rng.integers(1, 10)):
            data[position:position + 1] = rng.bytes(int(rng.integers(0, 3)))
        path.write_bytes(data if turn % 5 else data[:rng.integers(len(data))])
        try:
            pixels(path, 'ultrasound' if name == 'c' else 'fluoroscopy')
        except SourceError as error:
            messages.append(str(error))
    assert 30 < len(messages) < 150
    assert all(str(path) in message for message in messages)
