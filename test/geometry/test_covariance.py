"""Every formula against a Monte Carlo of the poses themselves."""

import numpy as np
import pytest

from hybrid_guidance.geometry import covariance as cov
from hybrid_guidance.geometry.rigid import (
    inverse,
    perturbed,
    pose_along,
    vector_from_rotation,
)

DRAWS = 20_000
A_T_B = pose_along(np.array([0.1, -0.2, 0.3]), np.array([1.0, 0.4, -0.2]))
B_T_C = pose_along(np.array([0.05, 0.02, 0.08]), np.array([-0.1, 1.0, 0.3]))


def random_covariance(seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(6, 6)) * ([2e-4] * 3 + [2e-3] * 3)
    return root.T @ root


def sampled(function, mean: np.ndarray) -> np.ndarray:
    """Covariance of a random pose about its mean, in ROS's parameterisation."""
    errors = []
    for _ in range(DRAWS):
        pose = function()
        errors.append(np.concatenate([pose[:3, 3] - mean[:3, 3],
                                      vector_from_rotation(pose[:3, :3] @ mean[:3, :3].T)]))
    return np.cov(np.array(errors).T)


def assert_same(predicted: np.ndarray, found: np.ndarray) -> None:
    deviation = np.sqrt(np.diag(predicted))
    assert np.allclose(predicted / np.outer(deviation, deviation),
                       found / np.outer(deviation, deviation), atol=0.06)


def test_rotate_expresses_a_covariance_in_another_frame() -> None:
    random, given = np.random.default_rng(1), random_covariance(1)
    found = sampled(lambda: A_T_B @ perturbed(B_T_C, random.multivariate_normal(
        np.zeros(6), given)), A_T_B @ B_T_C)
    assert_same(cov.rotate(A_T_B, given), found)


def test_compose_adds_the_lever_arm() -> None:
    random, first, second = np.random.default_rng(2), random_covariance(2), random_covariance(3)

    def draw() -> np.ndarray:
        return (perturbed(A_T_B, random.multivariate_normal(np.zeros(6), first))
                @ perturbed(B_T_C, random.multivariate_normal(np.zeros(6), second)))
    assert_same(cov.compose(A_T_B, first, B_T_C, second), sampled(draw, A_T_B @ B_T_C))


def test_relative_is_the_covariance_seen_from_an_uncertain_frame() -> None:
    random, first, second = np.random.default_rng(4), random_covariance(4), random_covariance(5)

    def draw() -> np.ndarray:
        return (inverse(perturbed(A_T_B, random.multivariate_normal(np.zeros(6), first)))
                @ perturbed(B_T_C, random.multivariate_normal(np.zeros(6), second)))
    assert_same(cov.relative(A_T_B, first, B_T_C, second), sampled(draw, inverse(A_T_B) @ B_T_C))


@pytest.mark.parametrize('spoil', [
    lambda c: c.__setitem__((0, 0), np.nan), lambda c: c.__setitem__((0, 1), 1.0),
    lambda c: c.__setitem__((2, 2), -1e-3)])
def test_is_valid_tells_what_is_no_covariance(spoil) -> None:
    covariance = random_covariance(6)
    assert cov.is_valid(covariance)
    spoil(covariance)
    assert not cov.is_valid(covariance)


def test_distance_deviation_is_sigma_along_a_direction() -> None:
    covariance = np.diag([1e-6, 4e-6, 9e-6])
    assert cov.distance_deviation(covariance, np.array([0.0, 0.6, 0.8])) == pytest.approx(
        np.sqrt(0.36 * 4e-6 + 0.64 * 9e-6))
