"""What a PLUS device set says of a phantom."""

from pathlib import Path

import numpy as np
import pytest

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.plus_phantom import read_registration

LANDMARKS = np.array([[100.0, 0.0, 0.0], [0.0, 0.0, 0.0], [100.0, 40.0, 0.0], [0.0, 40.0, 0.0]])


def device_set(path: Path, error: str) -> Path:
    marks = ''.join(f'<Landmark Name="{number}" Position="{" ".join(map(str, place))}"/>'
                    for number, place in enumerate(LANDMARKS.tolist()))
    path.write_text(f'<P><Transform From="Phantom" To="Reference" {error} '
                    f'Matrix="0 -1 0 10 1 0 0 20 0 0 1 30 0 0 0 1"/><L>{marks}</L></P>')
    return path


def test_a_stated_error_is_a_covariance_about_the_middle_of_the_landmarks(tmp_path: Path) -> None:
    transform, covariance = read_registration(device_set(tmp_path / 'a.xml', 'Error="0.6"'),
                                              'Reference')
    np.testing.assert_allclose(transform[:3, 3], [0.010, 0.020, 0.030])
    assert covariance is not None
    # Of a point p, J = [I, -p x]: at the middle only the shift counts, elsewhere the turn, too.
    middle, radius = LANDMARKS.mean(axis=0) * 1e-3, np.hypot(0.05, 0.02)

    def of_point(p: np.ndarray) -> np.ndarray:
        x, y, z = p
        jacobian = np.hstack([np.eye(3), [[0, z, -y], [-z, 0, x], [y, -x, 0]]])
        return np.asarray(jacobian @ covariance @ jacobian.T)
    np.testing.assert_allclose(of_point(middle), 0.6e-3**2 * np.eye(3), atol=1e-15)
    away = of_point(middle + [radius, 0.0, 0.0])
    np.testing.assert_allclose(np.diag(away), 0.6e-3**2 * np.array([1.0, 2.0, 2.0]), atol=1e-15)


def test_without_an_error_nothing_is_known_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    assert read_registration(device_set(tmp_path / 'a.xml', ''), 'Reference')[1] is None
    with pytest.raises(CalibrationError, match='is not an error in millimetres'):
        read_registration(device_set(tmp_path / 'a.xml', 'Error="nan"'), 'Reference')
