from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hybrid_guidance.calibration.file import CalibrationError, load, save
from hybrid_guidance.calibration.plus import read_plus_config
from hybrid_guidance.cli import main
from hybrid_guidance.geometry import rigid

DATA = Path(__file__).parents[3] / 'shared' / 'data' / 'plus'
SIZE = (820, 616)


def plus_matrix(seed: int = 1, spacing_mm: tuple[float, float] = (0.08, 0.074),
                third: float = 0.077, shear: float = 0.0) -> np.ndarray:
    """Return an image-to-probe matrix as PLUS writes it; ``third`` may point either way."""
    matrix = np.eye(4)
    axes = Rotation.random(random_state=seed).as_matrix()
    axes[:, 0] += shear * axes[:, 1]
    axes[:, 0] /= np.linalg.norm(axes[:, 0])
    matrix[:3, :3] = axes * [*spacing_mm, third]
    matrix[:3, 3] = [12.7, 50.8, -0.5]
    return matrix


def config(path: Path, matrix: np.ndarray | str, attributes: str = 'Error="0.58" '
           'Date="2012.02.06 17:57:00"', more: str = '', head: str = '') -> Path:
    text = matrix if isinstance(matrix, str) else ' '.join(repr(float(n)) for n in matrix.flat)
    path.write_text(f'{head}<PlusConfiguration version="2.3"><CoordinateDefinitions>'
                    f'<Transform From="Image" To="Probe" Matrix="{text}" {attributes}/>'
                    f'</CoordinateDefinitions>{more}</PlusConfiguration>')
    return path


def points_by_plus(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    homogeneous = np.column_stack([pixels, np.zeros(len(pixels)), np.ones(len(pixels))])
    return (homogeneous @ matrix.T)[:, :3] * 1e-3


@pytest.mark.parametrize('third', [0.077, -0.077])
@pytest.mark.parametrize('origin', [None, (410.0, -5.0), (0.0, 0.0)])
def test_every_pixel_lies_where_plus_puts_it(tmp_path: Path, third: float,
                                             origin: tuple[float, float] | None) -> None:
    for seed in range(5):
        matrix = plus_matrix(seed, third=third)
        calibration = read_plus_config(config(tmp_path / 'c.xml', matrix), *SIZE, origin)
        pixels = np.random.default_rng(seed).uniform((0, 0), SIZE, (200, 2))
        assert calibration.image is not None
        ours = rigid.transform_points(
            calibration.transform, calibration.image.projection(SIZE).back_project(pixels))
        np.testing.assert_allclose(ours, points_by_plus(matrix, pixels), rtol=0.0, atol=1e-9)
        assert rigid.is_rigid(calibration.transform, 1e-12)


def test_the_frame_is_at_the_transducer_face_with_depth_along_y(tmp_path: Path) -> None:
    matrix = plus_matrix()
    calibration = read_plus_config(config(tmp_path / 'c.xml', matrix), *SIZE)
    np.testing.assert_allclose(calibration.transform[:3, 3],
                               points_by_plus(matrix, np.array([[409.5, 0.0]]))[0])
    deeper = points_by_plus(matrix, np.array([[0.0, 0.0], [0.0, 100.0]]))
    np.testing.assert_allclose(calibration.transform[:3, 1],
                               (deeper[1] - deeper[0]) / np.linalg.norm(deeper[1] - deeper[0]))


def test_the_file_may_say_where_the_face_is(tmp_path: Path) -> None:
    pixel = ('<Transform From="Image" To="TransducerOriginPixel" '
             'Matrix="1 0 0 -410 0 1 0 5 0 0 1 0 0 0 0 1"/>')
    conversion = '<ScanConversion OutputImageSizePixel="820 616" TransducerCenterPixel="400 7"/>'
    for more, expected in ((pixel, (410.0, -5.0)), (conversion, (400.0, 7.0))):
        path = config(tmp_path / 'c.xml', plus_matrix(), more=more)
        calibration = read_plus_config(path, *SIZE)
        assert calibration.image is not None
        assert calibration.image.origin == expected


def test_a_calibration_goes_through_the_calibration_file(tmp_path: Path) -> None:
    calibration = read_plus_config(config(tmp_path / 'c.xml', plus_matrix()), *SIZE)
    assert calibration.residual == pytest.approx(0.58e-3)
    assert calibration.date == datetime(2012, 2, 6, 17, 57, tzinfo=timezone.utc)
    save(tmp_path / 'c.yaml', [calibration])
    (loaded,) = load(tmp_path / 'c.yaml', calibration.date + timedelta(days=1))
    np.testing.assert_allclose(loaded.transform, calibration.transform, atol=1e-12)
    assert loaded.image == calibration.image
    with pytest.raises(CalibrationError, match='expired on 2013-02-05'):
        load(tmp_path / 'c.yaml', datetime(2026, 1, 1))


@pytest.mark.parametrize('shear', [0.008, 0.048, -0.2])
@pytest.mark.parametrize('origin', [None, (3.0, 600.0)])
def test_a_sheared_matrix_is_kept_whole_for_every_pixel(
        tmp_path: Path, shear: float, origin: tuple[float, float] | None) -> None:
    matrix = plus_matrix(shear=shear)
    calibration = read_plus_config(config(tmp_path / 'c.xml', matrix), *SIZE, origin)
    save(tmp_path / 'c.yaml', [calibration])
    (loaded,) = load(tmp_path / 'c.yaml', calibration.date + timedelta(days=1))
    assert loaded.image is not None
    assert rigid.is_rigid(loaded.transform, 1e-12)
    # Columns of the rotation: along u, and at right angles to it in the image.
    np.testing.assert_allclose(np.cross(loaded.transform[:3, 0], matrix[:3, 0]), 0.0, atol=1e-9)
    pixels = np.random.default_rng(4).uniform((0, 0), SIZE, (300, 2))
    projection = loaded.image.projection(SIZE)
    points = projection.back_project(pixels)
    np.testing.assert_allclose(rigid.transform_points(loaded.transform, points),
                               points_by_plus(matrix, pixels), rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(projection.pixels(points), pixels, rtol=0.0, atol=1e-9)


def test_a_shear_above_one_percent_is_said_and_a_degenerate_one_refused(tmp_path: Path) -> None:
    for shear, warns in ((0.0, False), (0.008, False), (0.048, True)):
        path = config(tmp_path / 'c.xml', plus_matrix(shear=shear))
        method = read_plus_config(path, *SIZE).method
        assert ('sheared by 4.8%' in method) is warns
    with pytest.raises(CalibrationError, match=r'axes are 16\.\d+° apart.*repeat'):
        read_plus_config(config(tmp_path / 'd.xml', plus_matrix(shear=3.4)), *SIZE)


def test_date_and_expiry_can_be_given_but_not_in_the_wrong_order(tmp_path: Path) -> None:
    path = config(tmp_path / 'c.xml', plus_matrix(), attributes='Error="0.5"')
    made, until = datetime(2012, 9, 11), datetime(2090, 1, 1, tzinfo=timezone.utc)
    calibration = read_plus_config(path, *SIZE, date=made, expires=until)
    assert (calibration.date, calibration.expires) == (made.replace(tzinfo=timezone.utc), until)
    with pytest.raises(CalibrationError, match='it cannot expire on 2011-01-01'):
        read_plus_config(path, *SIZE, date=made, expires=datetime(2011, 1, 1))


def import_plus(*arguments: object) -> int:
    return main(['import-plus', *map(str, arguments)])


def test_the_command_makes_a_calibration_that_an_old_recording_can_use(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path / 'c.xml', plus_matrix(shear=0.048), attributes='Error="0.5"')
    common = (path, tmp_path / 'c.yaml', '--width', 820, '--height', 616, '--date', '2012-09-11')
    assert import_plus(*common) == 0
    assert 'will be refused' in capsys.readouterr().err
    assert import_plus(*common, '--expires', '2090-01-01', '--origin', '400', '-7.5') == 0
    output = capsys.readouterr()
    assert 'sheared by 4.8%' in output.out
    assert output.err == ''
    (loaded,) = load(tmp_path / 'c.yaml', datetime(2089, 1, 1))
    assert loaded.image is not None
    assert loaded.image.origin == (400.0, -7.5)


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--width', '820'], 'give the date (import-plus --date)'),
    (['--width', '820', '--date', 'soon'], '"soon" is not a date such as 2030-01-31'),
    (['--width', '820', '--date', '2012-01-01', '--expires', '2011-01-01'], 'cannot expire'),
    (['--width', '-3'], '"-3" is not a number of pixels'), ([], 'required: --width'),
    (['--width', '820', '--date', '2012-01-01', '--origin', 'nan', '0'], 'not saved'),
])
def test_the_command_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                      arguments: list[str], words: str) -> None:
    path = config(tmp_path / 'c.xml', plus_matrix(), attributes='Error="0.5"')
    try:
        status = import_plus(path, tmp_path / 'c.yaml', *arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'c.yaml').exists()


ENTITIES = ('<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>')


@pytest.mark.parametrize(('matrix', 'more', 'reason'), [
    ('1 2 3', {}, 'is not 16 finite numbers'),
    ('nan ' * 16, {}, 'is not 16 finite numbers'),
    (' '.join(['0'] * 15 + ['1']), {}, 'is not plausible'),
    (' '.join(['1'] * 16), {}, 'last row'),
    (np.diag([1e3, 1e3, 1, 1]), {}, 'is not plausible'),
    (plus_matrix(), {'attributes': 'Error="0.5"'}, 'date "" of the calibration is missing'),
    (plus_matrix(), {'attributes': 'Date="022312_110631"'}, 'states no error'),
    (plus_matrix(), {'attributes': 'Error="x" Date="022312_110631"'}, 'is not an error'),
    (plus_matrix(), {'head': ENTITIES}, 'has a DOCTYPE'),
    (plus_matrix(), {'more': '<Transform From="Image" To="Probe" Matrix="1"/>'}, 'keep one'),
    (plus_matrix(), {'more': '<broken'}, 'is not valid XML'),
])
def test_an_unusable_file_is_refused_in_words(tmp_path: Path, matrix: np.ndarray | str,
                                              more: dict[str, str], reason: str) -> None:
    path = config(tmp_path / 'c.xml', matrix, **more)
    with pytest.raises(CalibrationError) as caught:
        read_plus_config(path, *SIZE)
    assert str(caught.value).startswith(f'{path}: ')
    assert reason in str(caught.value)


def test_only_the_uncertainty_depends_on_the_height(tmp_path: Path) -> None:
    path = config(tmp_path / 'c.xml', plus_matrix())
    with_height, without = read_plus_config(path, *SIZE), read_plus_config(path, SIZE[0])
    np.testing.assert_array_equal(with_height.transform, without.transform)
    assert with_height.image == without.image


def test_a_file_without_probe_calibration_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match='cannot be read'):
        read_plus_config(tmp_path / 'none.xml', *SIZE)
    with pytest.raises(CalibrationError, match="no transform from 'Image' to 'Needle'"):
        read_plus_config(config(tmp_path / 'c.xml', plus_matrix()), *SIZE, probe='Needle')


@pytest.mark.skipif(not DATA.is_dir(), reason='recordings of the PLUS toolkit are not here')
def test_real_calibrations_agree_with_their_matrices() -> None:
    made = datetime(2012, 9, 11)
    result = read_plus_config(DATA / 'FreehandCalibration3NWires_fCal2.0.results.xml', *SIZE,
                              date=made)
    assert result.held_out_error == pytest.approx(0.539932e-3)
    assert result.residual == pytest.approx(0.479116e-3)
    bone = read_plus_config(DATA / 'BoneUltrasound_L14_config.xml', *SIZE)
    assert bone.image is not None
    assert bone.image.origin == (410.0, 0.0)
    # Column norms and a point of the published matrix, by hand.
    assert bone.image.spacing == pytest.approx((8.5435e-5, 8.5435e-5), rel=1e-4)
    point = rigid.transform_points(
        bone.transform, bone.image.projection(SIZE).back_project(np.array([100.0, 200.0])))
    expected = [12.74 + 0.0796231 + 17.08544, 50.76 - 8.53999 + 0.1545442,
                -0.5 + 0.232863 - 0.1743234]
    np.testing.assert_allclose(point * 1e3, expected, atol=2e-3)


@pytest.mark.skipif(not DATA.is_dir(), reason='recordings of the PLUS toolkit are not here')
def test_the_sheared_calibration_of_the_spine_phantom_is_exact() -> None:
    path = DATA / 'PlusDeviceSet_SpinePhantomFreehandReconstructionOnly.xml'
    calibration = read_plus_config(path, *SIZE)
    assert calibration.image is not None
    assert 'sheared by 4.8%' in calibration.method
    # Three columns of the published matrix, in millimetres, at an arbitrary pixel.
    u, v = 123.0, 456.0
    expected_mm = [-0.00157821 * u + 0.0785919 * v + 15.3978,
                   -0.0839128 * u + 0.00372697 * v + 49.5705,
                   0.0159024 * u + 0.00714276 * v - 8.63446]
    point = rigid.transform_points(
        calibration.transform, calibration.image.projection(SIZE).back_project(np.array([u, v])))
    np.testing.assert_allclose(point * 1e3, expected_mm, rtol=0.0, atol=1e-6)
