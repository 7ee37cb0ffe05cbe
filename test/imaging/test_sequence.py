import gzip
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.geometry import ImageGeometry
from hybrid_guidance.imaging.sequence import open_sequence

DATA = Path(__file__).parents[3] / 'shared' / 'data' / 'plus'
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (4, 6, 9), dtype=np.uint8)
POSES = np.stack([np.eye(4)] * 4)
POSES[:, :3, :3] = Rotation.random(4, random_state=2).as_matrix()
POSES[:, :3, 3] = RNG.normal(size=(4, 3)) * 100.0
TYPES = {'|u1': ('MET_UCHAR', 'uint8'), '|i1': ('MET_CHAR', 'int8'),
         '<u2': ('MET_USHORT', 'uint16'), '>u2': ('MET_USHORT', 'uint16'),
         '<i2': ('MET_SHORT', 'int16')}


def frame_fields(count: int, separator: str = ' = ', status: str = 'ImageStatus',
                 **changes: str) -> list[str]:
    """Return what IGSIO writes per frame; ``changes`` replace a whole line, None drops it."""
    lines = {}
    for n in range(count):
        name = f'Seq_Frame{n:04d}_'
        lines[f'{name}ProbeToTrackerTransform'] = ' '.join(f'{v:.9g}' for v in POSES[n % 4].flat)
        lines[f'{name}ProbeToTrackerTransformStatus'] = 'OK'
        lines[f'{name}Timestamp'] = f'{100.0 + 0.1 * n:.6f}'
        lines[f'{name}{status}'] = 'OK'
    lines |= changes
    return [f'{key}{separator}{value}' for key, value in lines.items() if value is not None]


def mha(path: Path, images: np.ndarray = IMAGES, header: dict[str, Any] | None = None,
        packed: bool = True, keep: int | None = None, **changes: Any) -> Path:
    """Write a MetaImage sequence as PLUS does; (N, H, W) or (N, H, W, 3)."""
    data = images.tobytes()
    data = (zlib.compress(data) if packed else data)[:keep]
    fields: dict[str, Any] = {
        'ObjectType': 'Image', 'NDims': 3, 'BinaryData': 'True',
        'BinaryDataByteOrderMSB': images.dtype.str[0] == '>', 'CompressedData': packed,
        'DimSize': f'{images.shape[2]} {images.shape[1]} {images.shape[0]}   ',
        'Kinds': 'domain domain list', 'ElementType': TYPES[images.dtype.str][0],
        'UltrasoundImageOrientation': 'MF', 'UltrasoundImageType': 'BRIGHTNESS'}
    if images.ndim == 4:
        fields['ElementNumberOfChannels'] = 3
    fields |= header or {}
    external = fields.pop('external', None)
    lines = [f'{key} = {value}' for key, value in fields.items() if value is not None]
    lines += frame_fields(len(images), **changes)
    lines.append(f'ElementDataFile = {external or "LOCAL"}')
    if external:
        (path.parent / Path(external).name).write_bytes(data)
        data = b''
    path.write_bytes('\n'.join(lines).encode() + b'\n' + data)
    return path


def nrrd(path: Path, images: np.ndarray = IMAGES, packed: bool = True,
         first: bool = False) -> Path:
    stored = np.moveaxis(images, 0, -1) if first else images
    data = gzip.compress(stored.tobytes()) if packed else stored.tobytes()
    count, height, width = images.shape[:3]
    sizes = [str(width), str(height)]
    sizes = [str(count), *sizes] if first else [*sizes, str(count)]
    kinds = ['list', 'domain', 'domain'] if first else ['domain', 'domain', 'list']
    if images.ndim == 4:
        sizes, kinds = ['3', *sizes], ['vector', *kinds]
    lines = ['NRRD0004', '# Complete NRRD file format specification at:', 'dimension: 3',
             f'encoding: {"gz" if packed else "raw"}', 'endian: little',
             f'kinds: {" ".join(kinds)}', f'sizes: {" ".join(sizes)}', 'space dimension: 2',
             f'type: {TYPES[images.dtype.str][1]}', 'ultrasound image orientation:=MF',
             'ultrasound image type:=BRIGHTNESS', *frame_fields(count, ':=', 'Status')]
    path.write_bytes('\n'.join(lines).encode() + b'\n\n' + data)
    return path


def pixels(path: Path) -> np.ndarray:
    recording = open_sequence(path)
    return np.stack([recording[index].pixels for index in range(len(recording))])


@pytest.mark.parametrize('packed', [True, False])
def test_images_times_and_poses_are_those_written(tmp_path: Path, packed: bool) -> None:
    geometry = ImageGeometry((8e-5, 7e-5), (4.0, 1.0))
    recording = open_sequence(mha(tmp_path / 'a.igs.mha', packed=packed), geometry)
    assert len(recording) == 4
    assert recording.start_time == pytest.approx(100.0)
    assert recording.period == pytest.approx(0.4)
    assert recording.notes == ()
    for index in range(4):
        frame = recording[index]
        np.testing.assert_array_equal(frame.pixels, IMAGES[index])
        assert frame.time == pytest.approx(0.1 * index)
        pose = frame.transforms['Tracker', 'Probe']
        np.testing.assert_allclose(pose[:3, :3], POSES[index, :3, :3], atol=1e-8)
        np.testing.assert_allclose(pose[:3, 3], POSES[index, :3, 3] * 1e-3, atol=1e-9)
    expected = geometry.projection((9, 6))
    np.testing.assert_array_equal(recording.projection.matrix, expected.matrix)
    assert (recording.projection.width, recording.projection.height) == (9, 6)


def test_pixels_may_lie_in_a_file_beside_the_header(tmp_path: Path) -> None:
    for name, packed in (('b.zraw', True), ('b.raw', False)):
        path = mha(tmp_path / 'b.igs.mhd', packed=packed, header={'external': name})
        np.testing.assert_array_equal(pixels(path), IMAGES)


@pytest.mark.parametrize('name', ['../b.raw', '/etc/hostname', '..', 'LIST', 'sub/b.raw'])
def test_no_other_folder_is_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / 'folder'
    folder.mkdir()
    (tmp_path / 'b.raw').write_bytes(IMAGES.tobytes())
    path = mha(folder / 'b.igs.mhd', packed=False)
    path.write_bytes(path.read_bytes().replace(b'LOCAL', name.encode()))
    with pytest.raises(SourceError, match='beside the header'):
        open_sequence(path)


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('first', [True, False])
def test_nrrd_says_the_same_with_the_list_axis_first_or_last(tmp_path: Path, packed: bool,
                                                             first: bool) -> None:
    path = nrrd(tmp_path / 'a.igs.nrrd', packed=packed, first=first)
    np.testing.assert_array_equal(pixels(path), IMAGES)
    pose = open_sequence(path)[2].transforms['Tracker', 'Probe']
    np.testing.assert_allclose(pose[:3, 3], POSES[2, :3, 3] * 1e-3, atol=1e-9)


@pytest.mark.parametrize(('kind', 'expected'),
                         [('<u2', 0), ('>u2', 0), ('|i1', 128), ('<i2', 32768)])
def test_full_range_and_order_of_other_types_are_kept(tmp_path: Path, kind: str,
                                                      expected: int) -> None:
    limits = np.iinfo(np.dtype(kind))
    images = RNG.integers(limits.min, limits.max, (2, 5, 7), endpoint=True).astype(kind)
    found = pixels(mha(tmp_path / 'a.mha', images))
    assert found.dtype == np.dtype(f'u{images.itemsize}')
    np.testing.assert_array_equal(found.astype(int), images.astype(int) + expected)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    expected = images @ np.array([0.299, 0.587, 0.114])
    for path in (mha(tmp_path / 'a.mha', images), nrrd(tmp_path / 'a.nrrd', images),
                 nrrd(tmp_path / 'b.nrrd', images, first=False)):
        assert np.abs(pixels(path) - expected).max() <= 1.0


@pytest.mark.parametrize(('code', 'stored'), [
    ('MF', lambda i: i), ('MFA', lambda i: i), ('MFD', lambda i: i),
    ('UF', lambda i: i[:, :, ::-1]), ('UFA', lambda i: i[:, :, ::-1]),
    ('MN', lambda i: i[:, ::-1]), ('UN', lambda i: i[:, ::-1, ::-1]),
    ('FM', lambda i: i.swapaxes(1, 2)), ('FU', lambda i: i.swapaxes(1, 2)[:, ::-1]),
    ('NM', lambda i: i.swapaxes(1, 2)[:, :, ::-1]),
    ('NU', lambda i: i.swapaxes(1, 2)[:, ::-1, ::-1])])
def test_images_are_turned_marked_side_left_transducer_up(tmp_path: Path, code: str,
                                                          stored: Any) -> None:
    """``stored`` is what a scanner with that orientation would have written."""
    images = np.ascontiguousarray(stored(IMAGES))
    path = mha(tmp_path / 'a.mha', images, {'UltrasoundImageOrientation': code})
    np.testing.assert_array_equal(pixels(path), IMAGES)


def test_unknown_orientation_is_a_note_and_an_impossible_one_an_error(tmp_path: Path) -> None:
    path = mha(tmp_path / 'a.mha', header={'UltrasoundImageOrientation': 'XX'})
    assert 'no UltrasoundImageOrientation' in open_sequence(path).notes[0]
    with pytest.raises(SourceError, match='"AMF" is not supported'):
        open_sequence(mha(tmp_path / 'a.mha', header={'UltrasoundImageOrientation': 'AMF'}))


def test_bad_poses_are_left_out_and_counted(tmp_path: Path) -> None:
    name = 'Seq_Frame{:04d}_ProbeToTrackerTransform'
    changes = {f'{name.format(0)}Status': 'OUT_OF_VIEW',
               name.format(1): 'nan ' * 16,
               name.format(2): '2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1'}
    recording = open_sequence(mha(tmp_path / 'a.mha', **changes))
    assert [len(recording[index].transforms) for index in range(4)] == [0, 0, 0, 1]
    assert 'ProbeToTrackerTransform: 2 of 4 left out, not a rigid transform' in recording.notes


def test_names_with_to_inside_are_split_at_the_word(tmp_path: Path) -> None:
    changes = {f'Seq_Frame0000_{name}Transform': '1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1'
               for name in ('TrackerToTool', 'ToolToTracker', 'StylusTipToStylus')}
    transforms = open_sequence(mha(tmp_path / 'a.mha', **changes))[0].transforms
    assert {('Tool', 'Tracker'), ('Tracker', 'Tool'), ('Stylus', 'StylusTip')} < set(transforms)


def test_frames_with_a_bad_image_are_left_out_and_counted(tmp_path: Path) -> None:
    path = mha(tmp_path / 'a.mha', Seq_Frame0001_ImageStatus='INVALID')
    np.testing.assert_array_equal(pixels(path), IMAGES[[0, 2, 3]])
    recording = open_sequence(path)
    assert recording[1].time == pytest.approx(0.2)
    assert '1 of 4 frames left out: ImageStatus is not OK' in recording.notes


def test_time_that_goes_back_is_sorted_and_repeated_time_left_out(tmp_path: Path) -> None:
    path = mha(tmp_path / 'a.mha', Seq_Frame0001_Timestamp='100.35',
               Seq_Frame0002_Timestamp='100.0')
    np.testing.assert_array_equal(pixels(path), IMAGES[[0, 3, 1]])
    notes = ' '.join(open_sequence(path).notes)
    assert 'time goes back 1 times' in notes
    assert '1 frames left out: same time stamp' in notes


def test_missing_time_is_assumed_only_when_missing_everywhere(tmp_path: Path) -> None:
    none = {f'Seq_Frame{n:04d}_Timestamp': None for n in range(4)}
    recording = open_sequence(mha(tmp_path / 'a.mha', **none))
    assert recording.times[1] == pytest.approx(1.0 / 30.0)
    assert any('frames per second assumed' in note for note in recording.notes)
    some = open_sequence(mha(tmp_path / 'b.mha', Seq_Frame0002_Timestamp='nan'))
    assert len(some) == 3
    assert '1 frames left out: no usable Timestamp' in some.notes


@pytest.mark.parametrize('size', ['0 0', '1 1'])
def test_a_tracker_buffer_opens_without_images(tmp_path: Path, size: str) -> None:
    header = {'DimSize': f'{size} 4', 'CompressedData': 'False', 'ElementType': 'MET_UCHAR'}
    images = np.zeros((4, 1, 1), np.uint8)
    changes = {f'Seq_Frame{n:04d}_ImageStatus': 'INVALID' if size == '0 0' else 'OK'
               for n in range(4)}
    recording = open_sequence(mha(tmp_path / 'a.mha', images, header, packed=False, **changes),
                              ImageGeometry((1e-4, 1e-4), (0.0, 0.0)))
    assert len(recording) == 4
    assert recording[3].pixels.shape == (1, 1)
    assert not recording.projection.is_calibrated
    assert ('Tracker', 'Probe') in recording[3].transforms


@pytest.mark.parametrize(('change', 'reason'), [
    ({'keep': 40}, 'cut off, holds'), ({'packed': False, 'keep': 160}, 'holds 2 of 4 frames'),
    ({'header': {'DimSize': '9 5 4'}}, 'more pixels than'),
    ({'header': {'DimSize': '9 6'}}, 'do not describe a series'),
    ({'header': {'DimSize': 'nine 6 4'}}, 'do not describe a series'),
    ({'header': {'DimSize': '9 -6 4'}}, 'do not describe a series'),
    ({'header': {'DimSize': None}}, 'has no sizes'),
    ({'header': {'DimSize': '9 6 3'}}, 'declares 3 frames and describes frame 3'),
    ({'header': {'DimSize': '60000 60000 4'}}, 'not plausible'),
    ({'header': {'DimSize': '40000 10000 4'}}, 'cut off'),
    ({'header': {'DimSize': '9 6 99999999'}}, 'not plausible'),
    ({'header': {'DimSize': '3 3 6 4', 'Kinds': 'domain domain domain list'}}, 'not volumes'),
    ({'header': {'ElementType': 'MET_FLOAT'}}, '"met_float" are not supported'),
    ({'header': {'UltrasoundImageType': 'RF_REAL'}}, 'raw echo lines'),
    ({'header': {'BinaryData': 'False'}}, 'as text'),
    ({'header': {'external': 'none.raw'}}, 'none.raw is missing'),
    ({f'Seq_Frame{n:04d}_ImageStatus': 'INVALID' for n in range(4)}, 'not one of its 4 images'),
    ({f'Seq_Frame{n:04d}_Timestamp': 'soon' for n in range(4)}, 'no frame has a usable Timestamp'),
])
def test_a_damaged_or_foreign_sequence_is_refused_in_words(tmp_path: Path, change: dict[str, Any],
                                                           reason: str) -> None:
    path = mha(tmp_path / 'a.mhd', **change)
    (tmp_path / 'none.raw').unlink(missing_ok=True)
    with pytest.raises(SourceError) as caught:
        open_sequence(path)
    assert str(caught.value).startswith(f'{path}: ')
    assert reason in str(caught.value)
    assert ';' in str(caught.value)


def test_what_is_no_sequence_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match='no such file'):
        open_sequence(tmp_path / 'none.mha')
    with pytest.raises(SourceError, match='is a folder'):
        open_sequence(tmp_path)
    for content, reason in ((b'hello world\n', 'is not a sequence file'), (b'', 'is not a seq'),
                            (b'ObjectType = Image\nDimSize = 4 4\n', 'no frame fields'),
                            (b'NRRD0004\nsizes: 4 4\n\n', 'no frame fields')):
        (tmp_path / 'a.mha').write_bytes(content)
        with pytest.raises(SourceError, match=reason):
            open_sequence(tmp_path / 'a.mha')


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = mha(tmp_path / 'a.mha')
    bomb = zlib.compress(bytes(50 << 20))
    path.write_bytes(path.read_bytes().split(b'LOCAL\n')[0] + b'LOCAL\n' + bomb)
    with pytest.raises(SourceError, match='more pixels than'):
        open_sequence(path)


def test_mutated_files_raise_nothing_but_source_errors(tmp_path: Path) -> None:
    originals = [mha(tmp_path / 'a.mha').read_bytes(),
                 mha(tmp_path / 'b.mha', packed=False).read_bytes(),
                 nrrd(tmp_path / 'a.nrrd').read_bytes(),
                 nrrd(tmp_path / 'b.nrrd', packed=False).read_bytes()]
    rng = np.random.default_rng(11)
    path = tmp_path / 'fuzz.mha'
    messages = []
    for turn in range(120):
        data = bytearray(originals[turn % 4])
        if turn % 3 == 0:
            data = data[:rng.integers(len(data))]
        for position in rng.integers(0, max(len(data), 1), rng.integers(1, 12)):
            data[position:position + 1] = rng.bytes(int(rng.integers(0, 3)))
        path.write_bytes(data)
        try:
            pixels(path)
        except SourceError as error:
            messages.append(str(error))
    assert 20 < len(messages) < 120
    assert all(str(path) in message for message in messages)


@pytest.mark.skipif(not DATA.is_dir(), reason='recordings of the PLUS toolkit are not here')
def test_wires_of_a_real_recording_are_bright_where_plus_segmented_them() -> None:
    """PLUS's result file names the pixels (in MF orientation) of nine wires."""
    recording = open_sequence(DATA / 'fCal_Test_Validation_3NWires_fCal2.0.igs.mha')
    root = ElementTree.parse(DATA / 'FreehandCalibration3NWires_fCal2.0.results.xml').getroot()
    checked = 0
    for frame in next(root.iter('ValidationData')).iter('Frame'):
        if frame.get('SegmentationStatus') != 'OK':
            continue
        points = [point.get('Position').split()
                  for point in next(frame.iter('SegmentedPoints')).iter('Point')]
        assert len(points) == 9
        image = cv2.dilate(recording[int(frame.get('Index'))].pixels, np.ones((9, 9), np.uint8))
        bright = [image[round(float(v)), round(float(u))] > 60 for u, v, _ in points]
        flipped = [image[round(float(v)), 819 - round(float(u))] > 60 for u, v, _ in points]
        assert all(bright)
        assert not all(flipped)
        checked += 1
    assert checked > 20


@pytest.mark.skipif(not DATA.is_dir(), reason='recordings of the PLUS toolkit are not here')
def test_a_real_tracker_buffer_gives_its_first_pose() -> None:
    recording = open_sequence(DATA / 'WaterTankBottomTranslationTrackerBuffer.igs.mha')
    assert len(recording) == 5000
    frame = recording[0]
    np.testing.assert_allclose(frame.transforms['Tracker', 'Probe'][:3, 3],
                               [0.224358, -0.0261193, 0.0665262], atol=1e-9)
    assert recording.start_time == pytest.approx(7356.7117)
