"""Matrices of a few rows in plain numbers, beside numpy's own."""

import numpy as np
import pytest

from hybrid_guidance.geometry import small


def covariances(size: int, count: int = 50):
    """Return covariances whose eigenvalues differ by up to eight orders of magnitude."""
    random = np.random.default_rng(size)
    for _ in range(count):
        axes = np.linalg.qr(random.normal(size=(size, size)))[0]
        yield axes @ np.diag(10.0 ** random.uniform(-8.0, 0.0, size)) @ axes.T


@pytest.mark.parametrize('size', [1, 2, 3, 4])
def test_inverse_is_that_of_numpy(size) -> None:
    for matrix in covariances(size):
        product = small.inverse(matrix) @ matrix
        np.testing.assert_allclose(product, np.eye(size), atol=1e-7)


@pytest.mark.parametrize('spoilt', [0.0, -1.0, np.nan])
def test_inverse_refuses_what_is_not_positive(spoilt) -> None:
    with pytest.raises(np.linalg.LinAlgError, match='not positive'):
        small.inverse(np.diag([1.0, spoilt, 2.0]))


def test_positive_means_that_no_eigenvalue_is_below_the_limit() -> None:
    random = np.random.default_rng(1)
    said = []
    for matrix in covariances(6):
        least = np.linalg.eigvalsh(matrix)[0]
        shifted = matrix - (least + random.normal() * 1e-3) * np.eye(6)
        said.append(small.is_positive(shifted.tolist(), 1e-4))
        assert said[-1] == (np.linalg.eigvalsh(shifted)[0] >= -1e-4)
    assert 10 < sum(said) < 40, 'both answers must occur'


def test_widest_axis_is_the_last_of_eigh() -> None:
    for matrix in covariances(3):
        values, axes = np.linalg.eigh(matrix)
        if values[2] > 2.0 * values[1]:
            assert abs(small.widest(matrix) @ axes[:, 2]) == pytest.approx(1.0, abs=1e-9)


def test_widest_axis_of_nothing_is_an_axis() -> None:
    assert np.linalg.norm(small.widest(np.zeros((3, 3)))) == 1.0
