from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hybrid_guidance.calibration.file import CalibrationError, load, save
from hybrid_guidance.calibration.plus import read_plus_config
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


def test_a_small_shear_costs_certainty_and_a_large_one_is_refused(tmp_path: Path) -> None:
    straight = read_plus_config(config(tmp_path / 'a.xml', plus_matrix()), *SIZE)
    matrix = plus_matrix(shear=0.008)
    bent = read_plus_config(config(tmp_path / 'b.xml', matrix), *SIZE)
    corner = np.array([[0.0, 615.0]])
    assert bent.image is not None
    off = np.linalg.norm(points_by_plus(matrix, corner) - rigid.transform_points(
        bent.transform, bent.image.projection(SIZE).back_project(corner)))
    assert 0.05e-3 < off < 0.3e-3
    assert bent.covariance[0, 0] > straight.covariance[0, 0] + off**2 / 2.0
    with pytest.raises(CalibrationError, match=r'shear 4\.8%, at most 1%.*repeat'):
        read_plus_config(config(tmp_path / 'c.xml', plus_matrix(shear=0.048)), *SIZE)
    read_plus_config(tmp_path / 'c.xml', *SIZE, maximum_shear=0.05)


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
    with pytest.raises(CalibrationError, match='shear'):
        read_plus_config(DATA / 'PlusDeviceSet_SpinePhantomFreehandReconstructionOnly.xml', *SIZE)
