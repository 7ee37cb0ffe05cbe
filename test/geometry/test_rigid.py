import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from hybrid_guidance.geometry import rigid


def random_transform(random: np.random.Generator) -> np.ndarray:
    return rigid.transform(Rotation.random(random_state=random).as_matrix(),
                           random.normal(size=3))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(1)


def test_inverse_undoes_a_transform(random: np.random.Generator) -> None:
    a_T_b, points = random_transform(random), random.normal(size=(5, 3))
    there = rigid.transform_points(a_T_b, points)
    assert np.allclose(rigid.transform_points(rigid.inverse(a_T_b), there), points, atol=1e-12)


def test_transform_points_agrees_with_homogeneous_multiplication(
        random: np.random.Generator) -> None:
    a_T_b, points = random_transform(random), random.normal(size=(4, 2, 3))
    homogeneous = np.concatenate([points, np.ones((4, 2, 1))], axis=-1)
    expected = np.einsum('ij,abj->abi', a_T_b, homogeneous)[..., :3]
    assert np.allclose(rigid.transform_points(a_T_b, points), expected)


def test_quaternion_order_is_that_of_ros(random: np.random.Generator) -> None:
    """Scipy's default order is xyzw, too: an independent witness."""
    for _ in range(20):
        a_T_b = random_transform(random)
        xyzw = rigid.quaternion(a_T_b)
        assert np.allclose(Rotation.from_quat(xyzw).as_matrix(), a_T_b[:3, :3], atol=1e-9)
        assert np.allclose(rigid.from_quaternion(xyzw, a_T_b[:3, 3]), a_T_b, atol=1e-9)


@pytest.mark.parametrize('angle', [0.0, 1e-10, 1e-4, 1.0, 3.1, np.pi])
def test_exponential_and_logarithm_agree_with_scipy(angle: float,
                                                    random: np.random.Generator) -> None:
    axis = random.normal(size=3)
    vector = angle * axis / np.linalg.norm(axis)
    rotation = rigid.rotation_from_vector(vector)
    assert np.allclose(rotation, Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)
    assert rigid.rotation_angle(rotation) == pytest.approx(angle, abs=1e-7)


def test_interpolation_is_linear_in_position_and_slerp_in_rotation(
        random: np.random.Generator) -> None:
    first, second = random_transform(random), random_transform(random)
    slerp = Slerp([0, 1], Rotation.from_matrix([first[:3, :3], second[:3, :3]]))
    for fraction in (0.0, 0.2, 0.9, 1.0):
        between = rigid.interpolate(first, second, fraction)
        assert np.allclose(between[:3, 3], (1 - fraction) * first[:3, 3] + fraction * second[:3, 3])
        assert np.allclose(between[:3, :3], slerp(fraction).as_matrix(), atol=1e-9)


@pytest.mark.parametrize('direction', [[0, 0, 1], [0, 0, -1], [1, 0, 0], [0.3, -2, 0.1]])
def test_pose_along_points_z_along_the_direction(direction: list[float]) -> None:
    pose = rigid.pose_along(np.array([1.0, 2.0, 3.0]), np.array(direction, dtype=float))
    assert rigid.is_rigid(pose)
    assert np.allclose(pose[:3, 2], np.array(direction) / np.linalg.norm(direction))


@pytest.mark.parametrize('direction', [[0.0, 0.0, 0.0], [np.nan, 0.0, 1.0]])
def test_pose_along_refuses_a_direction_without_length(direction: list[float]) -> None:
    with pytest.raises(ValueError, match='direction'):
        rigid.pose_along(np.zeros(3), np.array(direction))


@pytest.mark.parametrize('spoil', [
    lambda m: m.__setitem__((0, 0), np.nan), lambda m: m.__setitem__((slice(3), 0), -m[:3, 0]),
    lambda m: m.__setitem__((0, 0), m[0, 0] + 0.1), lambda m: m.__setitem__((3, 0), 0.5)])
def test_is_rigid_tells_what_is_not(spoil, random: np.random.Generator) -> None:
    matrix = random_transform(random)
    assert rigid.is_rigid(matrix)
    spoil(matrix)
    assert not rigid.is_rigid(matrix)


def test_angle_between_is_exact_for_small_angles() -> None:
    """Arccos of the dot product would lose half the digits."""
    second = np.array([1e-9, 0.0, 1.0])
    assert rigid.angle_between(np.array([0.0, 0.0, 1.0]), second) == pytest.approx(1e-9, rel=1e-6)
