import numpy as np
import pytest

from hybrid_guidance.fusion.frame_tree import (
    LATEST,
    DisconnectedError,
    FrameTree,
    FutureError,
    PastError,
    RefusedError,
    UnknownFrameError,
)
from hybrid_guidance.geometry.rigid import inverse, pose_along, transform

SECOND = 1_000_000_000


def along(x: float) -> np.ndarray:
    return transform(translation=np.array([x, 0.0, 0.0]))


@pytest.fixture
def tree() -> FrameTree:
    tree = FrameTree(cache_s=10.0)
    for second in range(5):
        tree.set('world', 'probe', (100 + second) * SECOND, along(0.1 * second))
    tree.set('probe', 'image', 0, along(1.0), static=True)
    tree.set('world', 'carm', 100 * SECOND, along(5.0))
    return tree


def test_position_is_interpolated_between_stamps(tree: FrameTree) -> None:
    found = tree.lookup('world', 'image', int(102.25 * SECOND))
    assert found[0, 3] == pytest.approx(1.225)


def test_chain_goes_up_and_down(tree: FrameTree) -> None:
    assert tree.lookup('carm', 'image', 100 * SECOND)[0, 3] == pytest.approx(-4.0)


def test_lookup_is_the_inverse_of_the_opposite(tree: FrameTree) -> None:
    tree.set('image', 'tilted', 0, pose_along(np.ones(3), np.array([1.0, 2.0, 3.0])), True)
    there = tree.lookup('carm', 'tilted', 100 * SECOND)
    assert np.allclose(inverse(there), tree.lookup('tilted', 'carm', 100 * SECOND))


def test_latest_is_the_newest_common_time(tree: FrameTree) -> None:
    _, stamp = tree.lookup_stamped('carm', 'image', LATEST)
    assert stamp == 100 * SECOND
    assert tree.lookup_stamped('world', 'image', LATEST)[1] == 104 * SECOND


def test_out_of_order_transforms_find_their_place(tree: FrameTree) -> None:
    tree.set('world', 'probe', int(102.5 * SECOND), along(9.0))
    assert tree.lookup('world', 'probe', int(102.5 * SECOND))[0, 3] == 9.0
    assert tree.lookup('world', 'probe', 103 * SECOND)[0, 3] == pytest.approx(0.3)


def test_the_future_is_refused_however_near(tree: FrameTree) -> None:
    with pytest.raises(FutureError, match='future'):
        tree.lookup('world', 'probe', 104 * SECOND + 1)


def test_the_past_is_refused(tree: FrameTree) -> None:
    with pytest.raises(PastError, match='past'):
        tree.lookup('world', 'probe', 99 * SECOND)


def test_history_is_forgotten_after_the_cache_time(tree: FrameTree) -> None:
    tree.set('world', 'probe', 113 * SECOND, along(0.0))
    with pytest.raises(PastError):
        tree.lookup('world', 'probe', 102 * SECOND)
    tree.set('world', 'probe', 101 * SECOND, along(0.0))
    with pytest.raises(PastError):
        tree.lookup('world', 'probe', 101 * SECOND)


def test_unknown_frame_names_the_known_ones(tree: FrameTree) -> None:
    with pytest.raises(UnknownFrameError, match=r'"ghost".*carm, image, probe, world'):
        tree.lookup('world', 'ghost', LATEST)


def test_two_trees_do_not_connect(tree: FrameTree) -> None:
    tree.set('island', 'hut', 100 * SECOND, along(0.0))
    with pytest.raises(DisconnectedError, match='separate'):
        tree.lookup('world', 'hut', LATEST)


def test_second_parent_is_refused_and_changes_nothing(tree: FrameTree) -> None:
    with pytest.raises(RefusedError, match='already has the parent "world"'):
        tree.set('carm', 'probe', 104 * SECOND, along(0.0))
    assert tree.lookup('world', 'probe', 104 * SECOND)[0, 3] == pytest.approx(0.4)


@pytest.mark.parametrize(('parent', 'child'), [('image', 'world'), ('new', 'new')])
def test_loop_is_refused(tree: FrameTree, parent: str, child: str) -> None:
    with pytest.raises(RefusedError, match='loop'):
        tree.set(parent, child, 104 * SECOND, along(0.0))


@pytest.mark.parametrize('spoil', [np.nan, np.inf, 2.0])
def test_what_is_not_rigid_is_refused(tree: FrameTree, spoil: float) -> None:
    matrix = np.eye(4)
    matrix[0, 0] = spoil
    with pytest.raises(RefusedError, match='rigid'):
        tree.set('world', 'bad', 0, matrix)


def test_clear_keeps_what_is_static(tree: FrameTree) -> None:
    tree.clear()
    assert tree.lookup('probe', 'image', 5)[0, 3] == 1.0
    with pytest.raises(UnknownFrameError):
        tree.lookup('world', 'probe', LATEST)


def test_a_cleared_frame_may_get_another_parent(tree: FrameTree) -> None:
    tree.clear()
    tree.set('carm', 'probe', 1 * SECOND, along(2.0))
    assert tree.lookup('carm', 'image', 1 * SECOND)[0, 3] == pytest.approx(3.0)
