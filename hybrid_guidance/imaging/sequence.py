"""Recordings of the PLUS toolkit: MetaImage and NRRD sequence files with poses.

Format: IGSIO's sequence writers. The header of a MetaImage (.mha, .mhd) or NRRD (.nrrd, .nhdr)
file carries ``Seq_FrameNNNN_<Field>`` for every frame: ``<A>To<B>Transform`` (4x4 row by row,
millimetres, takes points from A to B), its ``Status``, ``Timestamp`` (seconds) and the status of
the image. Pixels of all frames follow, raw or as one zlib or gzip stream, or lie in another file.
"""

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Array, Image, Transform
from hybrid_guidance.imaging.frame import RecordedFrame, SourceError
from hybrid_guidance.imaging.geometry import ImageGeometry
from hybrid_guidance.imaging.upright import Flips

DEFAULT_FRAME_TIME = 1.0 / 30.0
"""Seconds between frames where a file has no time stamps."""

_MAXIMUM_HEADER = 256 << 20
_MAXIMUM_PIXEL_BYTES = 2 << 30
_DEFLATE_LIMIT = 1032
_MAXIMUM_FRAMES = 1_000_000
_EXPORT = 'record or export it again'
_FIELD = re.compile(r'Seq_Frame(\d{1,9})_(\w+)$', re.IGNORECASE)
_TRANSFORM = re.compile(r'(.+?)To([A-Z0-9].*)Transform$')
_TYPES = {
    'met_uchar': 'u1', 'met_char': 'i1', 'met_ushort': 'u2', 'met_short': 'i2',
    'uchar': 'u1', 'unsigned char': 'u1', 'uint8': 'u1', 'uint8_t': 'u1',
    'signed char': 'i1', 'int8': 'i1', 'int8_t': 'i1',
    'ushort': 'u2', 'unsigned short': 'u2', 'unsigned short int': 'u2', 'uint16': 'u2',
    'uint16_t': 'u2', 'short': 'i2', 'short int': 'i2', 'signed short': 'i2',
    'signed short int': 'i2', 'int16': 'i2', 'int16_t': 'i2'}

_NO_IMAGE = np.zeros((1, 1), np.uint8)
_KINDS = {'domain': 'axis', 'space': 'axis', 'list': 'frame', 'time': 'frame', 'vector': 'colour',
          'rgb-color': 'colour', '3-color': 'colour', '3-vector': 'colour'}


@dataclass(frozen=True)
class _Header:
    """A header as read, names in lower case without spaces.

    Attributes:
        fields: of the file.
        frames: fields of each frame number.
        offset: where pixels begin in this file.
    """

    fields: Mapping[str, str]
    frames: Mapping[int, Mapping[str, str]]
    offset: int


@dataclass(frozen=True)
class _Shape:
    """Sizes of the pixel array, fastest axis first, and what each axis is.

    Attributes:
        sizes: of every axis, as stored.
        kinds: 'colour', 'x', 'y', 'z' or 'frame' for every axis.
        dtype: of one value, with its byte order.
    """

    sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    dtype: np.dtype[Any]

    def size(self, kind: str) -> int:
        """Size of an axis, 1 where it does not exist."""
        return self.sizes[self.kinds.index(kind)] if kind in self.kinds else 1

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        total = self.dtype.itemsize
        for size in self.sizes:
            total *= size
        return total


class SequenceRecording:
    """A sequence file; frames in order of time.

    Attributes:
        projection: of every frame, uncalibrated without an ``ImageGeometry``.
        period: seconds from the first frame to where a loop starts over.
        notes: what a user should know.
        times: seconds of each frame since the first.
        start_time: time stamp of the first frame on the clock of the recording, in seconds.
        pairs: (parent, child) of every transform that is good in some frame.
        numbers: of the frames as the device counted them; None where the file has none.
    """

    def __init__(self, images: NDArray[Any] | None, kept: list[int], flips: Flips,
                 times: Array, start_time: float,
                 transforms: Mapping[tuple[str, str], tuple[Array, NDArray[np.bool_]]],
                 projection: Projection, notes: tuple[str, ...],
                 numbers: tuple[int, ...] | None = None) -> None:
        """Use ``open_sequence``."""
        self.numbers = numbers
        self.projection = projection
        self.times: tuple[float, ...] = tuple(times.tolist())
        self.period = self.times[-1] + _step(times)
        self.notes = notes
        self.start_time = start_time
        self._images = images
        self._kept = kept
        self._flips = flips
        self._transforms = transforms
        self.pairs = tuple(pair for pair, (_, good) in transforms.items() if good.any())

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> RecordedFrame:
        """Return frame ``index`` with the poses recorded as good.

        Raises:
            IndexError: there is no such frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'no frame {index} of {len(self)}')
        image = _NO_IMAGE if self._images is None else self._images[self._kept[index]]
        return RecordedFrame(
            _grey(self._flips(image)), self.times[index],
            {pair: matrices[index] for pair, (matrices, good) in self._transforms.items()
             if good[index]})


def open_sequence(path: str | Path, geometry: ImageGeometry | None = None) -> SequenceRecording:
    """Open a PLUS/IGSIO sequence file.

    Poses are ``(B, A)`` to ``B_T_A`` for each field ``AToBTransform``, names as recorded, made
    exactly rigid; those with another status than OK, or that are not rigid to 1e-3, are left out.
    Frames whose image is marked bad are left out, unless there is no image in the whole file:
    then every frame has one black pixel and its poses. Frames are sorted by time; of several with
    the same time the first stays.

    Args:
        path: .mha, .mhd, .nrrd or .nhdr.
        geometry: pixel spacing and origin, after the image is turned upright.

    Raises:
        SourceError: not a sequence, damaged, cut off, larger than plausible, or of a kind of
            image that cannot be shown.
    """
    path = Path(path)
    try:
        return _open(path, geometry)
    except SourceError:
        raise
    except (OSError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        raise SourceError(f'{path}: cannot be read ({" ".join(str(error).split())[:300]}); '
                          f'{_EXPORT}') from error


def snake_case(name: str) -> str:
    """Return a recorded name as a frame of the graph: ``phantom_tip`` for ``PhantomTip``."""
    return re.sub(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', '_', name).lower()


def _open(path: Path, geometry: ImageGeometry | None) -> SequenceRecording:
    header = _read_header(path)
    shape = _shape(path, header)
    count = shape.size('frame')
    fields = [header.frames.get(number, {}) for number in range(count)]
    images, notes = _images(path, header, shape)
    flips, more = _flips(path, header, images)
    kept, times, why = _kept(path, fields, images is not None)
    transforms, bad = _transforms([fields[index] for index in kept])
    notes += more + why + bad
    height, width = flips(_NO_IMAGE if images is None else images[0]).shape[:2]
    projection = Projection.uncalibrated((width, height))
    if geometry is not None and (width, height) != (1, 1):
        projection = geometry.projection((width, height))
    else:
        notes += ('uncalibrated: no image geometry was given',)
    return SequenceRecording(images, kept, flips, times - times[0], float(times[0]), transforms,
                             projection, notes, _numbers([fields[index] for index in kept]))


def _read_header(path: Path) -> _Header:
    """Read the text part of a file of either format."""
    if path.is_dir():
        raise SourceError(f'{path}: is a folder; name one sequence file in it')
    if not path.exists():
        raise SourceError(f'{path}: no such file; check the path')
    with path.open('rb') as stream:
        first = stream.readline(1000)
        is_nrrd = first.startswith(b'NRRD')
        if not is_nrrd and not re.match(rb'\s*\w+\s*=', first):
            raise SourceError(f'{path}: is not a sequence file (.mha, .mhd, .nrrd, .nhdr); '
                              'export it as IGSIO sequence')
        lines = [] if is_nrrd else [first]
        for line in iter(lambda: stream.readline(1 << 16), b''):
            if is_nrrd and not line.strip():
                break
            lines.append(line)
            if line.lstrip()[:15].lower() == b'elementdatafile':
                break
            if stream.tell() > _MAXIMUM_HEADER:
                raise SourceError(f'{path}: its header does not end; {_EXPORT}')
        return _parsed(lines, b':' if is_nrrd else b'=', stream.tell())


def _parsed(lines: Iterable[bytes], separator: bytes, offset: int) -> _Header:
    """Split header lines into fields of the file and fields of frames."""
    fields: dict[str, str] = {}
    frames: dict[int, dict[str, str]] = {}
    for line in lines:
        name, found, value = line.partition(separator)
        if not found or line.startswith(b'#'):
            continue
        key = name.decode('latin-1').strip()
        text = value.lstrip(b'=' if separator == b':' else b'').decode('latin-1').strip()
        match = _FIELD.match(key)
        if match:
            frames.setdefault(int(match[1]), {})[match[2]] = text
        else:
            fields[key.lower().replace(' ', '')] = text
    return _Header(fields, frames, offset)


def _shape(path: Path, header: _Header) -> _Shape:
    """Return sizes and meaning of the axes, after checking that they are plausible."""
    fields = header.fields
    text = fields.get('dimsize') or fields.get('sizes')
    if text is None or not header.frames:
        what = 'sizes' if text is None else 'frame fields (Seq_Frame0000_...)'
        raise SourceError(f'{path}: its header has no {what}, so it is not a sequence; {_EXPORT}')
    try:
        sizes = tuple(int(token) for token in text.split())
    except ValueError:
        sizes = ()
    kinds = _kinds(fields, len(sizes))
    channels = fields.get('elementnumberofchannels', '1')
    if channels.isdecimal() and int(channels) > 1 and 'colour' not in kinds:
        sizes, kinds = (int(channels), *sizes), ('colour', *kinds)
    if len(kinds) != len(sizes) or not {'x', 'y'} <= set(kinds) or min(sizes) < 0 \
            or len(set(kinds)) < len(kinds):
        raise SourceError(f'{path}: sizes "{text}" with kinds "{fields.get("kinds", "")}" '
                          f'do not describe a series of images; {_EXPORT}')
    type_name = fields.get('elementtype', fields.get('type', '')).lower()
    is_big = 'true' in (fields.get('binarydatabyteordermsb', '').lower(),
                        fields.get('elementbyteordermsb', '').lower()) \
        or fields.get('endian', '').lower() == 'big'
    shape = _Shape(sizes, kinds, np.dtype(_TYPES.get(type_name, 'u1')).newbyteorder(
        '>' if is_big else '<'))
    _check_shape(path, shape, type_name)
    if max(header.frames) >= shape.size('frame'):
        raise SourceError(f'{path}: declares {shape.size("frame")} frames and describes frame '
                          f'{max(header.frames)}; {_EXPORT}')
    return shape


def _kinds(fields: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Return what each axis is; without ``kinds`` the last one is frames."""
    words = fields.get('kinds', '').lower().split()
    words = words or ['domain'] * (count - 1) + ['list']
    axes = iter(('x', 'y', 'z'))
    return tuple(next(axes, 'more') if _KINDS.get(word) == 'axis' else _KINDS.get(word, 'unknown')
                 for word in words)


def _check_shape(path: Path, shape: _Shape, type_name: str) -> None:
    if set(shape.kinds) - {'x', 'y', 'z', 'frame', 'colour'} or shape.size('z') > 1 \
            or shape.size('colour') not in (1, 3):
        raise SourceError(f'{path}: axes {", ".join(shape.kinds)} of {shape.sizes} are not a '
                          'series of grey or RGB images; export single images, not volumes')
    if not 0 < shape.size('frame') <= _MAXIMUM_FRAMES or shape.nbytes > _MAXIMUM_PIXEL_BYTES:
        raise SourceError(f'{path}: declares {shape.size("frame")} frames and {shape.nbytes} '
                          'bytes of pixels, which is not plausible; cut or repeat the recording')
    if shape.nbytes and type_name not in _TYPES:
        raise SourceError(f'{path}: pixels of type "{type_name}" are not supported; '
                          'export 8 or 16 bit images')


def _images(path: Path, header: _Header,
            shape: _Shape) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    """Return (N, y, x) or (N, y, x, 3) pixels as stored; None where there are none."""
    if shape.nbytes == 0:
        return None, ('no images in the file: poses only',)
    if header.fields.get('ultrasoundimagetype', '').upper().startswith('RF'):
        raise SourceError(f'{path}: holds raw echo lines (RF), not images; export B-mode')
    if header.fields.get('binarydata', 'true').lower() != 'true':
        raise SourceError(f'{path}: pixels written as text are not supported; {_EXPORT}')
    source, offset = _pixel_file(path, header)
    data = _pixel_bytes(source, offset, header.fields, shape)
    array = np.frombuffer(data, shape.dtype).reshape(shape.sizes[::-1])
    order = [shape.kinds[::-1].index(kind) for kind in ('frame', 'y', 'x', 'colour', 'z')
             if kind in shape.kinds]
    array = array.transpose(order)
    array = array[..., 0] if 'z' in shape.kinds else array
    array = array if 'frame' in shape.kinds else array[None]
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    notes = (f'signed pixels, shifted up by {1 << (8 * shape.dtype.itemsize - 1)}',)
    return array, notes if shape.dtype.kind == 'i' else ()


def _pixel_file(path: Path, header: _Header) -> tuple[Path, int]:
    """Return the file that holds the pixels, and where in it they begin."""
    name = header.fields.get('elementdatafile', header.fields.get('datafile', 'LOCAL'))
    if name.upper() == 'LOCAL':
        return path, header.offset
    # Only a plain name is followed: a recording must not make us read any other folder.
    if name != Path(name).name or name in ('', '.', '..', 'LIST'):
        raise SourceError(f'{path}: its pixels are in "{name}"; put one pixel file beside the '
                          'header and name it without a folder')
    source = path.parent / name
    if not source.is_file():
        raise SourceError(f'{path}: its pixel file {source} is missing; copy it there')
    return source, 0


def _pixel_bytes(source: Path, offset: int, fields: Mapping[str, str], shape: _Shape) -> bytes:
    """Read and unpack exactly as many bytes as the header declares."""
    encoding = fields.get('encoding', 'raw').lower()
    packed = fields.get('compresseddata', '').lower() == 'true' or encoding in ('gz', 'gzip')
    if encoding not in ('raw', 'gz', 'gzip') or fields.get('byteskip', '0') != '0' \
            or fields.get('lineskip', '0') != '0':
        raise SourceError(f'{source}: encoding "{encoding}" or skipped bytes are not supported; '
                          'export raw or gzip')
    with source.open('rb') as stream:
        stream.seek(offset)
        if packed:
            unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
            content = stream.read(_MAXIMUM_PIXEL_BYTES)
            # Deflate cannot shrink further than this: do not allocate for a bomb.
            limit = min(shape.nbytes, _DEFLATE_LIMIT * len(content) + 1)
            data = unpacker.decompress(content, limit)
            more = not unpacker.eof and bool(
                unpacker.decompress(unpacker.unconsumed_tail, 1))
        else:
            data, more = stream.read(shape.nbytes), False
    per_frame = shape.nbytes // shape.size('frame')
    if len(data) < shape.nbytes:
        raise SourceError(f'{source}: cut off, holds {len(data) // per_frame} of '
                          f'{shape.size("frame")} frames; {_EXPORT}')
    if more:
        raise SourceError(f'{source}: holds more pixels than the {shape.size("frame")} frames '
                          f'its header declares; {_EXPORT}')
    return data


def _flips(path: Path, header: _Header,
           images: NDArray[Any] | None) -> tuple[Flips, tuple[str, ...]]:
    """Return what turns the images upright (PLUS's orientation MF).

    The first letter tells where columns go, the second where rows go, a third (of a volume)
    does not matter: marked, unmarked side, far from, near the transducer.
    """
    code = header.fields.get('ultrasoundimageorientation', '').upper()
    if images is None:
        return Flips(), ()
    if code in ('', 'XX'):
        return Flips(), (
            'no UltrasoundImageOrientation: marked side assumed left, transducer up (MF)',)
    letters = set(code[:2])
    if len(code) not in (2, 3) or len(letters & set('MU')) != 1 or len(letters & set('FN')) != 1:
        raise SourceError(f'{path}: UltrasoundImageOrientation "{code}" is not supported; '
                          'export it as MF')
    return Flips(code[0] in 'FN', 'U' in letters, 'N' in letters), ()


def _kept(path: Path, fields: list[Mapping[str, str]],
          has_images: bool) -> tuple[list[int], Array, tuple[str, ...]]:
    """Return which frames stay, in order of time, their time stamps, and notes."""
    bad = [index for index, field in enumerate(fields) if has_images and not _is_image_ok(field)]
    usable = [index for index in range(len(fields)) if index not in set(bad)]
    if not usable:
        raise SourceError(f'{path}: not one of its {len(fields)} images is marked OK; {_EXPORT}')
    notes: tuple[str, ...] = ()
    if bad:
        notes = (f'{len(bad)} of {len(fields)} frames left out: ImageStatus is not OK',)
    if not any('Timestamp' in field for field in fields):
        return usable, np.array(usable) * DEFAULT_FRAME_TIME, (
            *notes, f'no time stamps: {1 / DEFAULT_FRAME_TIME:g} frames per second assumed')
    times = np.array([_time(field) for field in fields])
    timed = [index for index in usable if np.isfinite(times[index])]
    if not timed:
        raise SourceError(f'{path}: no frame has a usable Timestamp; {_EXPORT}')
    if len(timed) < len(usable):
        notes += (f'{len(usable) - len(timed)} frames left out: no usable Timestamp',)
    return _ordered(timed, times, notes)


def _ordered(timed: list[int], times: Array,
             notes: tuple[str, ...]) -> tuple[list[int], Array, tuple[str, ...]]:
    """Sort frames by time and leave out those with a time that was there before."""
    order = np.array(timed)[np.argsort(times[timed], kind='stable')]
    fresh = np.concatenate([[True], np.diff(times[order]) > 0.0])
    backwards = int(np.count_nonzero(np.diff(times[timed]) < 0.0))
    if backwards:
        notes += (f'time goes back {backwards} times: frames sorted by time stamp',)
    if not fresh.all():
        notes += (f'{np.count_nonzero(~fresh)} frames left out: same time stamp as another',)
    kept = order[fresh]
    return kept.tolist(), times[kept], notes


def _is_image_ok(field: Mapping[str, str]) -> bool:
    """NRRD sequences call it Status, MetaImage sequences ImageStatus."""
    return field.get('ImageStatus', field.get('Status', 'OK')).upper() == 'OK'


def _time(field: Mapping[str, str]) -> float:
    try:
        return float(field.get('Timestamp', 'nan'))
    except ValueError:
        return float('nan')


def _numbers(fields: list[Mapping[str, str]]) -> tuple[int, ...] | None:
    """Return the device's own count of frames, where all have one and it rises."""
    texts = [field.get('FrameNumber', '') for field in fields]
    if not all(text.isdecimal() and len(text) < 16 for text in texts):
        return None
    numbers = tuple(int(text) for text in texts)
    return numbers if all(a < b for a, b in pairwise(numbers)) else None


def _transforms(fields: list[Mapping[str, str]]) -> tuple[
        dict[tuple[str, str], tuple[Array, NDArray[np.bool_]]], tuple[str, ...]]:
    """Return for each (parent, child) the (N, 4, 4) poses and which of them are good."""
    found: dict[tuple[str, str], tuple[Array, NDArray[np.bool_]]] = {}
    notes: tuple[str, ...] = ()
    for name in dict.fromkeys(name for field in fields for name in field):
        match = _TRANSFORM.match(name)
        if match is None:
            continue
        recorded = np.stack([_matrix(field.get(name, '')) for field in fields])
        tracked = np.array([name in field and field.get(f'{name}Status', 'OK').upper() == 'OK'
                            for field in fields])
        rigid, matrices = _rigid(recorded)
        rejected = int(np.count_nonzero(tracked & ~rigid))
        if rejected:
            notes += (f'{name}: {rejected} of {len(fields)} left out, not a rigid transform',)
        found[match[2], match[1]] = (matrices, tracked & rigid)
    return found, notes


def _matrix(text: str) -> Transform:
    """Parse 16 numbers; NaN where it is anything else."""
    try:
        values = np.array([float(token) for token in text.split()])
    except ValueError:
        values = np.empty(0)
    return values.reshape(4, 4) if values.size == 16 else np.full((4, 4), np.nan)


def _rigid(recorded: Array) -> tuple[NDArray[np.bool_], Array]:
    """Tell which (N, 4, 4) matrices in mm are rigid, and return them in metres, exactly rigid.

    Files hold six digits; the nearest rotation is found by singular value decomposition.
    """
    finite = np.all(np.isfinite(recorded), axis=(1, 2))
    matrices = np.where(finite[:, None, None], recorded, np.eye(4))
    rotations = matrices[:, :3, :3]
    with np.errstate(over='ignore', invalid='ignore'):
        errors = np.abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
        good = (finite & (errors < 1e-3) & (np.linalg.det(rotations) > 0.0)
                & (np.abs(matrices[:, 3] - (0, 0, 0, 1)).max(axis=1) < 1e-6))
    matrices = np.where(good[:, None, None], matrices, np.eye(4))
    left, _, right = np.linalg.svd(matrices[:, :3, :3])
    matrices[:, :3, :3] = left @ right
    matrices[:, :3, 3] *= 1e-3
    matrices[:, 3] = (0.0, 0.0, 0.0, 1.0)
    return good, matrices


def _step(times: Array) -> float:
    """Return the usual seconds between frames."""
    return float(np.median(np.diff(times))) if len(times) > 1 else DEFAULT_FRAME_TIME


def _grey(image: NDArray[Any]) -> Image:
    """Return (H, W) uint8 or uint16: luminance of colour (BT.601), signed shifted to unsigned."""
    wide = 8 * image.dtype.itemsize
    native = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder('='))
    if native.dtype.kind == 'i':
        native = (native.astype(np.int32) + (1 << (wide - 1))).astype(f'u{wide // 8}')
    return native if native.ndim == 2 else np.asarray(cv2.cvtColor(native, cv2.COLOR_RGB2GRAY))
