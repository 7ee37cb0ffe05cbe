"""DICOM files as recordings: X-ray cine and shots, ultrasound clips and stills.

What a pixel means. Values keep the order of MONOCHROME2: larger is brighter on a display
(MONOCHROME1 is inverted). No window, modality or VOI table is applied. In an angiographic or
fluoroscopic file brighter usually means that more X-ray arrived, so metal is dark; where the
file says so itself (PixelIntensityRelationshipSign) a note repeats it. Signed pixels are shifted
by half their range, so that order and full range survive. Colour becomes luminance (ITU-R BT.601),
and the colour box of a Doppler image stays in it: it is measured data, not annotation.

An ultrasound file carries the screen of the scanner: ``imaging.sector`` removes what is no echo.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets
from pydicom.pixels import apply_color_lut, get_decoder

from hybrid_guidance.geometry.carm import patient_T_optical
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image, Transform
from hybrid_guidance.imaging.frame import RecordedFrame, SourceError
from hybrid_guidance.imaging.sector import Mask, View, find_sector, tightened
from hybrid_guidance.imaging.upright import Flips, flips_between

Modality = Literal['fluoroscopy', 'ultrasound']

DEFAULT_FRAME_TIME = 1.0 / 15.0
"""Seconds between frames where a file does not say: a common fluoroscopy rate."""

MODALITIES: dict[Modality, tuple[str, ...]] = {
    'fluoroscopy': ('XA', 'RF', 'DX', 'CR', 'PX', 'MG', 'IO'), 'ultrasound': ('US',)}
ECHO_MM = (0.005, 2.0)
"""Millimetres that a pixel of an ultrasound image can be wide."""

SOURCE_MM = (200.0, 3000.0)
"""Millimetres that a detector or patient can be from the source: mini C-arms to chest stands."""

PITCH_MM = (0.02, 20.0)
"""Millimetres between pixels at a detector, of pictures that were made much smaller, too."""

ANGLES_DEG = {'PositionerPrimaryAngle': 180.0, 'PositionerSecondaryAngle': 90.0}
"""Largest angles either way (PS3.3 C.8.7.5.1.2)."""

ISOCENTRE, CARM = 'isocentre', 'carm'
"""Frames of how a C-arm stood: about its isocentre in DICOM's axes, and at its source."""

_MAXIMUM_FILE = 4 << 30
_MAXIMUM_FRAME_BYTES = 256 << 20
_MAXIMUM_FRAMES = 100_000
_CACHE_BYTES = 128 << 20
_SAMPLES = 24
# Sizes of the region that a reference pixel can be away: an apex lies above a sector.
_FAR = 4.0
_START_OF_FRAME = {*range(0xc0, 0xd0)} - {0xc4, 0xc8, 0xcc} | {0xf7}
EXPORT = 'export it again from the scanner or archive'


@dataclass(frozen=True)
class Gantry:
    """How the C-arm stood, as far as the file says.

    Attributes:
        source_to_detector: metres, or None.
        source_to_patient: metres from source to isocentre (source-object distance), or None.
        primary_angle: radians, positive towards the patient's left (LAO), or None.
        secondary_angle: radians, positive towards the head (cranial), or None.
    """

    source_to_detector: float | None = None
    source_to_patient: float | None = None
    primary_angle: float | None = None
    secondary_angle: float | None = None

    def missing(self) -> str:
        """What is lacking to know where the source stands, in words; '' for nothing."""
        wanted = ((self.primary_angle, 'the primary angle'),
                  (self.secondary_angle, 'the secondary angle'),
                  (self.source_to_patient, 'the distance from source to isocentre'))
        unknown = ' and '.join(name for value, name in wanted if value is None)
        steep = self.secondary_angle is not None and abs(np.cos(self.secondary_angle)) < 1e-3
        return unknown or ('which way is up, at a secondary angle of 90 degrees' if steep else '')

    def pose(self) -> Transform | None:
        """Return ``isocentre_T_source``, the image's frame in LPS axes; None if ``missing()``."""
        if self.missing():
            return None
        return patient_T_optical(self.primary_angle or 0.0, self.secondary_angle or 0.0,
                                 self.source_to_patient or 0.0, np.zeros(3))


@dataclass(frozen=True)
class _Layout:
    """What the header says of the pixels."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_stored: int
    signed: bool
    inverted: bool
    palette: bool


class DicomRecording:
    """A DICOM file; frames are decoded when asked for and kept while there is room.

    Attributes:
        projection: of every frame; uncalibrated where the file lacks what it takes.
        period: seconds from the first frame to where a loop starts over.
        notes: what a user should know.
        times: seconds of each frame since the first.
        gantries: how the C-arm stood at each frame (X-ray only).
    """

    def __init__(self, path: Path, read: Callable[[int], Image], times: tuple[float, ...],
                 period: float, projection: Projection, notes: tuple[str, ...],
                 gantries: tuple[Gantry, ...] = ()) -> None:
        """Use ``open_dicom``."""
        self.projection = projection
        self.period = period
        self.notes = notes
        self.times = times
        self.gantries = gantries
        self._path = path
        self._read = read
        self._kept: dict[int, Image] = {}
        self._last: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def gantry(self) -> Gantry | None:
        """How the C-arm stood at the first frame (X-ray only)."""
        return self.gantries[0] if self.gantries else None

    def __getitem__(self, index: int) -> RecordedFrame:
        """Return frame ``index``; its pixels are read-only.

        Of an X-ray, ``transforms`` holds the pose of ``carm`` about ``isocentre`` where the
        C-arm's angles and distance are known.

        Raises:
            IndexError: there is no such frame.
            SourceError: that frame is damaged; the others may still be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'{self._path}: no frame {index}, it has {len(self)}')
        pose = self.gantries[index].pose() if self.gantries else None
        return RecordedFrame(self._pixels(index), self.times[index],
                             {} if pose is None else {(ISOCENTRE, CARM): pose})

    def _pixels(self, index: int) -> Image:
        """Return a frame's pixels, decoded once if there is room.

        What was decoded first stays: with the least recently used thrown out, a loop longer
        than the room would find none of its frames again.
        """
        if index in self._kept:
            return self._kept[index]
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        pixels = self._read(index)
        pixels.setflags(write=False)
        if len(self._kept) < _CACHE_BYTES // max(pixels.nbytes, 1):
            self._kept[index] = pixels
        else:
            self._last = (index, pixels)
        return pixels


def open_dicom(path: str | Path, modality: Modality, stated: Gantry | None = None,
               pitch: float | None = None) -> DicomRecording:
    """Open a DICOM file as a recording.

    X-ray: focal length in pixels is DistanceSourceToDetector / ImagerPixelSpacing (DICOM PS3.3
    C.8.7.5); the principal point is the detector's centre where the detector and the field of
    view on it are described, else the image's. Pictures whose PatientOrientation says that they
    are mirrored or turned against ``fluoroscopy_optical_frame`` are brought upright, and the
    principal point with them. Ultrasound: spacing and origin come from
    SequenceOfUltrasoundRegions (PS3.3 C.8.5.5); the origin is the mid transducer face.

    Args:
        path: the file; single or multi-frame, any transfer syntax pydicom can decode.
        modality: what the graph expects from it.
        stated: what somebody knows of the C-arm; it goes before what the file says (X-ray only).
        pitch: metres between pixels at the detector, if somebody knows (X-ray only).

    Raises:
        SourceError: missing, not DICOM, damaged, of the other modality, or without pixels.
    """
    path = Path(path)
    with explained(f'{path}: cannot be read as DICOM', EXPORT):
        dataset = read_dataset(path)
        _check_modality(path, dataset, modality)
        layout = _layout(path, dataset)
        decode = _decoder(path, dataset, layout)
        times, period, notes = _times(dataset, layout.frames)
        notes += _meaning(dataset, layout)
        if modality == 'fluoroscopy':
            xray = _xray(dataset, layout, stated or Gantry(), pitch)
            return DicomRecording(
                path, lambda index: np.ascontiguousarray(xray.flips(decode(index))), times, period,
                xray.projection, notes + xray.notes, xray.gantries)
        view, projection, more = _ultrasound(dataset, layout, decode)
        return DicomRecording(path, lambda index: view(decode(index)), times, period, projection,
                              notes + more)


@contextmanager
def explained(what: str, cure: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a SourceError, and keep its warnings off stderr."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except (SourceError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # A panic of the run-length decoder, written in Rust, is no Exception.
        reason = ' '.join(str(error).split())[:300] or type(error).__name__
        raise SourceError(f'{what} ({reason}); {cure}') from error


def read_dataset(path: Path) -> Any:
    """Read the whole file, pixels still encoded."""
    if path.is_dir():
        raise SourceError(f'{path}: is a folder; name one DICOM file in it')
    if not path.exists():
        raise SourceError(f'{path}: no such file; check the path')
    if not path.is_file():
        raise SourceError(f'{path}: is a device or a pipe, not a file; name a DICOM file')
    if path.stat().st_size > _MAXIMUM_FILE:
        raise SourceError(f'{path}: larger than {_MAXIMUM_FILE >> 30} GiB; cut the recording')
    with path.open('rb') as stream:
        stream.seek(128)
        if stream.read(4) != b'DICM':
            raise SourceError(f'{path}: is not a DICOM file (no "DICM" at byte 128); {EXPORT}')
    meta = pydicom.filereader.read_file_meta_info(path)
    if 'TransferSyntaxUID' not in meta:
        raise SourceError(f'{path}: has no TransferSyntaxUID; {EXPORT}')
    if meta.TransferSyntaxUID.is_deflated:
        _check_inflated_size(path, int(meta.FileMetaInformationGroupLength))
    dataset = pydicom.dcmread(path)
    if 'PixelData' not in dataset:
        raise SourceError(f'{path}: holds no image (PixelData is missing or cut off); {EXPORT}')
    return dataset


def _check_inflated_size(path: Path, meta_length: int) -> None:
    """Refuse a deflated file that would unpack to more than the memory it deserves."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = path.read_bytes()[128 + 4 + 12 + meta_length:]
    total = 0
    while packed and not inflater.eof:
        total += len(inflater.decompress(packed, 16 << 20))
        packed = inflater.unconsumed_tail
        if total > _MAXIMUM_FRAME_BYTES:
            raise SourceError(f'{path}: unpacks to more than {_MAXIMUM_FRAME_BYTES >> 20} MiB; '
                              'save it without deflation')


def _check_modality(path: Path, dataset: Any, modality: Modality) -> None:
    found = str(dataset.get('Modality') or '').strip()
    if found in MODALITIES[modality]:
        return
    other = next((name for name, codes in MODALITIES.items() if found in codes), None)
    wanted = ', '.join(MODALITIES[modality])
    cure = (f'give it to the {other} source' if other
            else f'the {modality} source takes files of modality {wanted}')
    article = 'an' if other == 'ultrasound' else 'a'
    kind = f', {article} {other} image' if other else ''
    raise SourceError(f'{path}: its modality is {found or "not stated"}{kind}, '
                      f'not {modality}; {cure}')


def _layout(path: Path, dataset: Any) -> _Layout:
    """Read and bound everything that decides how much memory a frame takes."""
    missing = [tag for tag in ('Rows', 'Columns', 'BitsAllocated', 'BitsStored',
                               'SamplesPerPixel', 'PhotometricInterpretation')
               if dataset.get(tag) is None]
    if missing:
        raise SourceError(f'{path}: tag {missing[0]} is missing; {EXPORT}')
    photometric = str(dataset.PhotometricInterpretation)
    frames = 1 if dataset.get('NumberOfFrames') is None else int(dataset.NumberOfFrames)
    layout = _Layout(
        rows=int(dataset.Rows), columns=int(dataset.Columns),
        samples=int(dataset.SamplesPerPixel), frames=frames, bits_stored=int(dataset.BitsStored),
        signed=bool(dataset.get('PixelRepresentation')), inverted=photometric == 'MONOCHROME1',
        palette=photometric == 'PALETTE COLOR')
    _check_layout(path, layout, int(dataset.BitsAllocated),
                  int(dataset.get('HighBit') or layout.bits_stored - 1))
    # pydicom reads a value of no bytes as None.
    held = len(dataset.PixelData or b'')
    if layout.frames < 1 or not held:
        raise SourceError(f'{path}: has no frames (NumberOfFrames is {layout.frames}, '
                          f'{held} bytes of pixels); {EXPORT}')
    _check_frame_count(path, dataset, layout)
    return layout


def _check_layout(path: Path, layout: _Layout, allocated: int, high_bit: int) -> None:
    size = layout.rows * layout.columns * layout.samples * allocated // 8
    if allocated not in (8, 16) or not 0 < layout.bits_stored <= allocated \
            or high_bit != layout.bits_stored - 1:
        raise SourceError(f'{path}: {layout.bits_stored} bits stored in {allocated}, high bit '
                          f'{high_bit}, is not supported; convert it to 8 or 16 bits')
    if layout.samples not in (1, 3):
        raise SourceError(f'{path}: {layout.samples} samples per pixel is not supported; '
                          'convert it to grey or RGB')
    if not 0 < size <= _MAXIMUM_FRAME_BYTES or layout.frames > _MAXIMUM_FRAMES:
        raise SourceError(f'{path}: declares {layout.frames} frames of {layout.columns} x '
                          f'{layout.rows}, which is not a plausible image; {EXPORT}')


def _check_frame_count(path: Path, dataset: Any, layout: _Layout) -> None:
    """Refuse a file that holds fewer or more frames than it declares."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        held = _encapsulated_frames(dataset, layout.frames)
    else:
        bits = layout.rows * layout.columns * layout.samples * int(dataset.BitsAllocated)
        if dataset.PhotometricInterpretation == 'YBR_FULL_422':
            bits = bits * 2 // 3
        held = len(dataset.PixelData) // (bits // 8)
    if held != layout.frames:
        raise SourceError(f'{path}: declares {layout.frames} frames and holds {held}'
                          f'{" (cut off)" if held < layout.frames else ""}; {EXPORT}')


def _encapsulated_frames(dataset: Any, declared: int) -> int:
    """Count the frames of compressed pixel data, or return ``declared`` if that is possible.

    A frame may span several fragments; what starts like a JPEG or JPEG 2000 image is a new one.
    """
    buffer = BytesIO(dataset.PixelData)
    offsets = parse_basic_offsets(buffer)
    fragments = list(generate_fragments(buffer))
    if 'ExtendedOffsetTable' in dataset:
        return min(len(dataset.ExtendedOffsetTable) // 8, len(fragments))
    if len(offsets) > 1 or len(fragments) < declared:
        return min(len(offsets) or len(fragments), len(fragments))
    starts = sum(fragment[:2] in (b'\xff\xd8', b'\xff\x4f') for fragment in fragments)
    return max(starts, declared)


def _decoder(path: Path, dataset: Any, layout: _Layout) -> Callable[[int], Image]:
    """Return the function that decodes one frame to grey levels."""
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    if not decoder.is_available:
        raise SourceError(f'{path}: compressed as {dataset.file_meta.TransferSyntaxUID.name}, '
                          'which nothing installed can decode; convert it to uncompressed')

    def decode(index: int) -> Image:
        with explained(f'{path}: frame {index} is damaged', EXPORT):
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                _check_codestream(_encoded(dataset, index, layout.frames), layout)
            pixels, properties = decoder.as_array(dataset, index=index, raw=True)
            grey = _grey(pixels, properties['photometric_interpretation'], dataset, layout)
            if grey.shape != (layout.rows, layout.columns):
                raise ValueError(f'decodes to {grey.shape}')
            return grey
    return decode


def _encoded(dataset: Any, index: int, frames: int) -> bytes:
    """Return one compressed frame."""
    extended = ((dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
                if 'ExtendedOffsetTable' in dataset else None)
    return bytes(get_frame(dataset.PixelData, index, number_of_frames=frames,
                           extended_offsets=extended))


def _check_codestream(frame: bytes, layout: _Layout) -> None:
    """Refuse a JPEG or JPEG 2000 image of another size before its memory is allocated."""
    size = _jpeg_size(frame)
    if size is not None and size != (layout.rows, layout.columns):
        raise ValueError(f'the compressed image is {size[1]} x {size[0]}, the header says '
                         f'{layout.columns} x {layout.rows}')


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 image; None for anything else."""
    def number(at: int, length: int) -> int:
        return int.from_bytes(frame[at:at + length], 'big')

    if frame[:4] == b'\xff\x4f\xff\x51':
        return number(12, 4) - number(20, 4), number(8, 4) - number(16, 4)
    at = 2 if frame[:2] == b'\xff\xd8' else len(frame)
    while at + 9 <= len(frame):
        marker = frame[at + 1]
        is_size = marker in _START_OF_FRAME
        if frame[at] == 0xff and is_size:
            return number(at + 5, 2), number(at + 7, 2)
        at += 1 if marker == 0xff else 2 + max(number(at + 2, 2), 2)
    return None


def _grey(pixels: NDArray[Any], photometric: str, dataset: Any, layout: _Layout) -> Image:
    """Turn a decoded frame into (H, W) uint8 or uint16 in MONOCHROME2 order."""
    if layout.palette:
        pixels = apply_color_lut(pixels, dataset)
        if pixels.dtype == np.uint16 and layout.bits_stored <= 8:
            pixels = (pixels >> (8 if pixels.max(initial=0) > 255 else 0)).astype(np.uint8)
    if pixels.ndim == 3 and photometric.startswith('YBR'):
        pixels = np.ascontiguousarray(pixels[..., 0])
    elif pixels.ndim == 3:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    if layout.palette:
        return pixels
    top = (1 << layout.bits_stored) - 1
    values = pixels.astype(np.int32) + (top // 2 + 1) if layout.signed else pixels
    values = top - values if layout.inverted else values
    return values.astype(np.uint8 if layout.bits_stored <= 8 else np.uint16)


def _meaning(dataset: Any, layout: _Layout) -> tuple[str, ...]:
    """Say in words what bright is, where that is not obvious."""
    notes = []
    if layout.inverted:
        notes.append('stored as MONOCHROME1, inverted: larger values are brighter')
    if layout.signed:
        notes.append(f'signed pixels, shifted up by {1 << (layout.bits_stored - 1)}')
    sign = number_of(dataset, 'PixelIntensityRelationshipSign')
    if sign:
        more = (sign > 0.0) != layout.inverted
        notes.append(f'brighter means {"more" if more else "less"} X-ray at the detector')
    return tuple(notes)


def find_value(dataset: Any, keyword: str) -> Any:
    """Return a value from the dataset, or from the shared groups of an enhanced file."""
    if dataset.get(keyword) not in (None, ''):
        return dataset.get(keyword)
    for group in dataset.get('SharedFunctionalGroupsSequence') or ():
        for element in group:
            inner = element.value[0].get(keyword) if element.VR == 'SQ' and element.value else None
            if inner not in (None, ''):
                return inner
    return None


def numbers_of(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers of a tag, or None where it is missing or unusable."""
    value = find_value(dataset, keyword)
    values = [value] if isinstance(value, (str, int, float)) else list(value or ())
    try:
        numbers = tuple(float(one) for one in values)
    except (TypeError, ValueError):
        return None
    usable = len(numbers) == count and bool(np.all(np.isfinite(numbers)))
    return numbers if usable else None


def number_of(dataset: Any, keyword: str) -> float | None:
    """Return one finite number of a tag, or None."""
    numbers = numbers_of(dataset, keyword, 1)
    return numbers[0] if numbers else None


def positive_of(dataset: Any, keyword: str) -> float | None:
    """Return one number of a tag, or None where it is not above zero."""
    number = number_of(dataset, keyword)
    return number if number is not None and number > 0.0 else None


def _times(dataset: Any, frames: int) -> tuple[tuple[float, ...], float, tuple[str, ...]]:
    """Return the time of each frame, the period, both in seconds, and notes."""
    step, notes = _frame_time(dataset, frames)
    vector = numbers_of(dataset, 'FrameTimeVector', frames) if frames > 1 else None
    if vector is not None and min(vector[1:]) > 0.0:
        # The first increment is the delay before the first frame, by convention zero.
        times = np.concatenate([[0.0], np.cumsum(vector[1:])]) * 1e-3
        return tuple(times.tolist()), float(times[-1] + np.median(np.diff(times))), ()
    if find_value(dataset, 'FrameTimeVector') is not None and frames > 1:
        notes += ('FrameTimeVector is not usable (one positive increment per frame is needed)',)
    return tuple((np.arange(frames) * step).tolist()), frames * step, notes


def _frame_time(dataset: Any, frames: int) -> tuple[float, tuple[str, ...]]:
    """Return seconds between frames, and a note where that is an assumption."""
    frame_time_ms = positive_of(dataset, 'FrameTime')
    if frame_time_ms is not None and frame_time_ms > 1e-3:
        return frame_time_ms * 1e-3, ()
    for keyword in ('CineRate', 'RecommendedDisplayFrameRate'):
        rate = positive_of(dataset, keyword)
        if rate is not None:
            return 1.0 / rate, ()
    if frames == 1:
        return DEFAULT_FRAME_TIME, ()
    return DEFAULT_FRAME_TIME, (
        f'no FrameTimeVector, FrameTime, CineRate or RecommendedDisplayFrameRate: '
        f'{1.0 / DEFAULT_FRAME_TIME:g} frames per second assumed',)


@dataclass(frozen=True)
class _Xray:
    """What the header says of an X-ray run: each frame's gantry, and of all frames the rest."""

    gantries: tuple[Gantry, ...]
    projection: Projection
    flips: Flips
    notes: tuple[str, ...]


def _xray(dataset: Any, layout: _Layout, stated: Gantry, pitch: float | None) -> _Xray:
    """Return how the C-arm stood, the pinhole of the upright image, and notes."""
    gantry, notes = _gantry(dataset, stated)
    gantries, moved = _moved(dataset, gantry, layout.frames)
    flips, turned = _upright(dataset, gantry)
    notes += moved + turned
    size = (layout.columns, layout.rows)
    distance = gantry.source_to_detector
    spacing_mm = (numbers_of(dataset, 'ImagerPixelSpacing', 2) if pitch is None
                  else (pitch * 1e3, pitch * 1e3))
    # A length in the wrong unit must not become a camera.
    missing = [tag for tag, value, (low, high) in (
        ('DistanceSourceToDetector (0018,1110)', None if distance is None else (distance * 1e3,),
         SOURCE_MM), ('ImagerPixelSpacing (0018,1164)', spacing_mm, PITCH_MM))
               if value is None or not low <= min(value) <= max(value) <= high]
    upright = (layout.rows, layout.columns) if flips.transpose else size
    if missing or distance is None or spacing_mm is None:
        return _Xray(gantries, Projection.uncalibrated(upright), flips, (
            *notes, f'uncalibrated: {" and ".join(missing)} missing or not plausible'))
    centre, why = _principal_point(dataset, layout, spacing_mm)
    focal = (distance * 1e3 / spacing_mm[1], distance * 1e3 / spacing_mm[0])
    projection = Projection.perspective(flips.sizes(focal), flips.pixel(centre, size), upright)
    return _Xray(gantries, projection, flips, (
        *notes, why, *_spacing_doubts(dataset, layout, spacing_mm)))


def isocentre_mm(dataset: Any) -> float | None:
    """Return millimetres from source to isocentre, or None."""
    return positive_of(dataset, 'DistanceSourceToIsocenter') or positive_of(
        dataset, 'DistanceSourceToPatient')


def _gantry(dataset: Any, stated: Gantry) -> tuple[Gantry, tuple[str, ...]]:
    """Return how the C-arm stood at the first frame, and notes."""
    distances = [positive_of(dataset, 'DistanceSourceToDetector'), isocentre_mm(dataset)]
    angles = [(number_of(dataset, keyword), limit) for keyword, limit in ANGLES_DEG.items()]
    # What cannot be is not known: a pose made of it would look like any other.
    told = Gantry(*(None if value is None or not SOURCE_MM[0] <= value <= SOURCE_MM[1]
                    else value * 1e-3 for value in distances),
                  *(None if angle is None or abs(angle) > limit
                    else float(np.deg2rad(angle)) for angle, limit in angles))
    known = {field.name: getattr(stated, field.name) for field in fields(stated)
             if getattr(stated, field.name) is not None}
    gantry = replace(told, **known)
    notes = [f'{name.replace("_", " ")} as entered by hand; the file says otherwise'
             for name, value in known.items()
             if getattr(told, name) is not None and abs(getattr(told, name) - value) > 1e-4]
    if gantry.primary_angle is not None and gantry.secondary_angle is not None:
        primary, secondary = np.rad2deg([gantry.primary_angle, gantry.secondary_angle])
        notes.append(f'C-arm at {primary:g}° (LAO positive), {secondary:g}° (cranial positive)')
    if gantry.source_to_patient is not None:
        notes.append(f'source to patient {gantry.source_to_patient:g} m')
    return gantry, tuple(notes)


def _moved(dataset: Any, gantry: Gantry, frames: int) -> tuple[tuple[Gantry, ...],
                                                               tuple[str, ...]]:
    """Return how the C-arm stood at each frame of a run.

    PS3.3 C.8.7.5.1.3: increments are offsets from the first angle, one for each frame, or one
    average step.
    """
    if frames == 1 or not _is_moving(dataset):
        return (gantry,) * frames, ()
    steps = []
    for name in ('Primary', 'Secondary'):
        step = number_of(dataset, f'Positioner{name}AngleIncrement')
        offsets = (step * np.arange(frames) if step is not None else
                   numbers_of(dataset, f'Positioner{name}AngleIncrement', frames))
        steps.append(None if offsets is None else np.deg2rad(offsets))
    first, second = gantry.primary_angle, gantry.secondary_angle
    if steps[0] is None or steps[1] is None or first is None or second is None:
        # Where it stood at the first frame says nothing of the others.
        unknown = replace(gantry, primary_angle=None, secondary_angle=None)
        return (gantry, *(unknown,) * (frames - 1)), (
            'the C-arm moved during the run and the file does not say how: only the first '
            "frame's angles are known",)
    return tuple(replace(gantry, primary_angle=first + float(one), secondary_angle=second
                         + float(other)) for one, other in zip(*steps, strict=True)), (
        'the C-arm moved during the run: each frame has its own angles',)


def _is_moving(dataset: Any) -> bool:
    """Tell whether the C-arm moved: by what is said, or by increments that are not all zero."""
    if str(find_value(dataset, 'PositionerMotion') or '').strip().upper() == 'DYNAMIC':
        return True
    steps = [find_value(dataset, f'{keyword}Increment') for keyword in ANGLES_DEG]
    numbers = [str(step) for value in steps if value not in (None, '')
               for step in ([value] if isinstance(value, (str, int, float)) else value)]
    return any(number.strip().strip('+-0.eE') for number in numbers)


def _upright(dataset: Any, gantry: Gantry) -> tuple[Flips, tuple[str, ...]]:
    """Return what brings the stored picture into the axes of its frame, and a note."""
    value = find_value(dataset, 'PatientOrientation')
    letters = [] if value is None or isinstance(value, str) else [str(one) for one in value]
    stood = replace(gantry, source_to_patient=0.0).pose()
    if len(letters) != 2 or stood is None:
        missing = 'angles' if len(letters) == 2 else 'PatientOrientation (0020,0020)'
        return Flips(), (
            f"without {missing} the file does not say on which side the patient's left is: the "
            'picture is assumed as seen along the beam, with the head on top; look for an R or L '
            "marker: if the patient's left is on the right, as radiologists have it, it is the "
            'mirror image',)
    flips = flips_between((letters[0], letters[1]), stood[:3, :2])
    words = '\\'.join(letters)
    if flips is None:
        return Flips(), (f'PatientOrientation {words} does not fit the angles of the C-arm: the '
                         'picture is left as it is stored; verify on which side the left is',)
    if flips == Flips():
        return flips, ()
    return flips, (f'PatientOrientation {words}: stored otherwise than seen along the beam with '
                   f'the head on top; the picture is {flips.words}, and the principal point with '
                   'it',)


def _principal_point(dataset: Any, layout: _Layout,
                     spacing_mm: tuple[float, ...]) -> tuple[tuple[float, float], str]:
    """Return the pixel under the detector's centre, and a note on where it comes from.

    The field of view is cut from the detector (FieldOfViewOrigin, in detector elements), then
    rotated clockwise, then mirrored (DICOM PS3.3 C.8.7.2 and C.8.11.4).
    """
    size = np.array([layout.columns, layout.rows], dtype=float)
    element, active, corner = (numbers_of(dataset, keyword, 2) for keyword in (
        'DetectorElementSpacing', 'DetectorActiveDimensions', 'FieldOfViewOrigin'))
    turn = int(number_of(dataset, 'FieldOfViewRotation') or 0) % 360
    if element is None or active is None or corner is None or min(element) <= 0.0 or turn % 90:
        centre = (size - 1.0) / 2.0
        return (float(centre[0]), float(centre[1])), (
            'principal point assumed at the image centre: the file does not say where the field '
            'of view lies on the detector')
    # DICOM gives (row, column); everything here is (x, y), measured from the corner of the FOV.
    element_xy, active_xy, corner_xy = (np.array(pair)[::-1] for pair in (element, active, corner))
    spacing_xy = np.array(spacing_mm)[::-1]
    if turn % 180:
        size, spacing_xy = size[::-1], spacing_xy[::-1]
    point = (active_xy / 2.0 - corner_xy * element_xy) / spacing_xy
    for _ in range(turn // 90):
        point, size = np.array([size[1] - point[1], point[0]]), size[::-1]
    if str(find_value(dataset, 'FieldOfViewHorizontalFlip') or '').strip() == 'YES':
        point = np.array([size[0] - point[0], point[1]])
    return (float(point[0] - 0.5), float(point[1] - 0.5)), (
        "principal point at the detector's centre, from FieldOfViewOrigin")


def _spacing_doubts(dataset: Any, layout: _Layout,
                    spacing_mm: tuple[float, ...]) -> tuple[str, ...]:
    """Compare ImagerPixelSpacing with the detector's elements and with the field of view."""
    notes = []
    element = numbers_of(dataset, 'DetectorElementSpacing', 2)
    binning = numbers_of(dataset, 'DetectorBinning', 2)
    if element and binning and not np.allclose(np.multiply(element, binning), spacing_mm,
                                               rtol=0.02):
        notes.append(f'ImagerPixelSpacing {spacing_mm} mm is not DetectorElementSpacing times '
                     f'DetectorBinning, {np.multiply(element, binning)} mm: '
                     'verify the focal length')
    dimensions = numbers_of(dataset, 'FieldOfViewDimensions', 2)
    covered = np.multiply(spacing_mm, (layout.rows, layout.columns))
    if dimensions and str(find_value(dataset, 'FieldOfViewShape') or '') == 'RECTANGLE' \
            and not np.allclose(dimensions, covered, rtol=0.1):
        notes.append(f'the pixels cover {covered} mm, FieldOfViewDimensions says {dimensions} mm: '
                     'verify the focal length')
    return tuple(notes)


def _ultrasound(dataset: Any, layout: _Layout, decode: Callable[[int], Image],
                ) -> tuple[View, Projection, tuple[str, ...]]:
    """Return what to keep of each image, its geometry, and notes."""
    region, notes = _region(dataset, layout)
    view = View(_window(region, layout))
    stack = _sampled(layout, decode, view)
    mask, more = find_sector(stack)
    if region is None:
        view, mask = tightened(view, mask)
    if mask is not None:
        view = replace(view, mask=mask)
    height, width = view.window[1] - view.window[0], view.window[3] - view.window[2]
    projection, why = _plane(region, mask, (width, height))
    if dataset.get('UltrasoundColorDataPresent') == 1:
        notes += ('colour data are shown by their luminance, the outline of their box stays',)
    return view, projection, notes + more + why


def _region(dataset: Any, layout: _Layout) -> tuple[Any, tuple[str, ...]]:
    """Return the largest two-dimensional tissue region, and notes."""
    regions = list(dataset.get('SequenceOfUltrasoundRegions') or ())
    tissue = [region for region in regions
              if region.get('RegionSpatialFormat') == 1 and region.get('RegionDataType') == 1
              and _area(region, layout) >= 16 * 16]
    if not tissue:
        return None, ('SequenceOfUltrasoundRegions (0018,6011) names no two-dimensional tissue '
                      'region: cropped to the sector found in the pixels',)
    notes = () if len(tissue) == 1 else (
        f'{len(tissue)} two-dimensional tissue regions: the largest is used',)
    return max(tissue, key=lambda region: _area(region, layout)), notes


def _window(region: Any, layout: _Layout) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a region inside the image; all of it for None."""
    if region is None:
        return 0, layout.rows, 0, layout.columns
    left, top, right, bottom = (
        int(region.get(f'RegionLocation{corner}') or 0)
        for corner in ('MinX0', 'MinY0', 'MaxX1', 'MaxY1'))
    return (max(top, 0), min(bottom + 1, layout.rows), max(left, 0), min(right + 1, layout.columns))


def _area(region: Any, layout: _Layout) -> int:
    top, bottom, left, right = _window(region, layout)
    return max(bottom - top, 0) * max(right - left, 0)


def _sampled(layout: _Layout, decode: Callable[[int], Image],
             view: View) -> NDArray[np.uint8]:
    """Return up to ``_SAMPLES`` frames spread over the clip, (N, H, W), 8 bits.

    Raises:
        SourceError: not one of them can be decoded.
    """
    failures: list[SourceError] = []

    def image(index: int) -> NDArray[np.uint8] | None:
        try:
            return (view(decode(index)) >> max(layout.bits_stored - 8, 0)).astype(np.uint8)
        except SourceError as error:
            failures.append(error)
            return None

    chosen = sorted({*np.linspace(0, layout.frames - 1, _SAMPLES).astype(int).tolist()})
    images = [one for one in map(image, chosen) if one is not None]
    if not images:
        raise failures[0]
    return np.stack(images)


def _plane(region: Any, mask: Mask | None,
           size: tuple[int, int]) -> tuple[Projection, tuple[str, ...]]:
    """Return the orthographic projection of a region, or uncalibrated with the reason."""
    if region is None:
        return Projection.uncalibrated(size), (
            'uncalibrated: SequenceOfUltrasoundRegions (0018,6011) missing or without a usable '
            'region',)
    spacing_cm = (positive_of(region, 'PhysicalDeltaX'), positive_of(region, 'PhysicalDeltaY'))
    units = tuple(number_of(region, f'PhysicalUnits{axis}Direction') for axis in 'XY')
    if units != (3.0, 3.0):
        return Projection.uncalibrated(size), ('uncalibrated: the region is not in centimetres',)
    if spacing_cm[0] is None or spacing_cm[1] is None:
        return Projection.uncalibrated(size), (
            'uncalibrated: PhysicalDeltaX (0018,602C) or PhysicalDeltaY (0018,602E) is missing or '
            'not above zero',)
    if not all(ECHO_MM[0] <= 10 * delta <= ECHO_MM[1] for delta in (spacing_cm[0], spacing_cm[1])):
        return Projection.uncalibrated(size), (
            f'uncalibrated: {10 * spacing_cm[0]:.4g} x {10 * spacing_cm[1]:.4g} mm per pixel is '
            'not that of an ultrasound image',)
    spacing = (spacing_cm[0] * 1e-2, spacing_cm[1] * 1e-2)
    origin, why = _face(region, mask, size, spacing_cm[0], spacing_cm[1])
    return Projection.orthographic(spacing, origin, size), (why,)


def _face(region: Any, mask: Mask | None, size: tuple[int, int],
          delta_x: float, delta_y: float) -> tuple[tuple[float, float], str]:
    """Return the pixel of the mid transducer face, and where that comes from.

    Scanners disagree: some put the reference pixel on the mid face, some put it in a corner and
    count physical coordinates (cm) from the mid face. Of the two the one nearer to the middle
    of the region is taken.
    """
    pixel = [number_of(region, f'ReferencePixel{axis}0') for axis in 'XY']
    if pixel[0] is not None and pixel[1] is not None \
            and max(abs(pixel[0]), abs(pixel[1])) < _FAR * max(size):
        value = [number_of(region, f'ReferencePixelPhysicalValue{axis}') or 0.0 for axis in 'XY']
        zero = (pixel[0] - value[0] / delta_x, pixel[1] - value[1] / delta_y)
        reference = (pixel[0], pixel[1])
        middle = (size[0] - 1) / 2.0
        if abs(zero[0] - middle) <= abs(reference[0] - middle):
            return zero, 'origin where the physical coordinates of the region are zero'
        return reference, 'origin at the reference pixel of the region'
    if mask is not None:
        columns = np.flatnonzero(mask.any(axis=0))
        top = float(np.flatnonzero(mask.any(axis=1))[0])
        return (float(columns[0] + columns[-1]) / 2.0, top), (
            'the region has no usable reference pixel: origin assumed at the top centre of the '
            'sector')
    return ((size[0] - 1) / 2.0, 0.0), (
        'the region has no usable reference pixel: origin assumed at its top centre')
