"""patient_node: who of the simulated room is on /tf."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from tf2_msgs.msg import TFMessage

from hybrid_guidance.nodes.patient_node import PatientNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode


def publishers(graph, seconds: float = 1.0) -> list[tuple[str, str]]:
    """Return (parent, child) of every transform of some time."""
    heard: list[tuple[str, str]] = []
    graph.node.create_subscription(TFMessage, '/tf', lambda message: heard.extend(
        (item.header.frame_id, item.child_frame_id) for item in message.transforms), 100)
    graph.spin(lambda: len(heard) > 0)
    graph.spin_for(seconds)
    return heard


@pytest.mark.parametrize(('tracked', 'bodies'), [
    ('all', {'carm', 'ultrasound_probe'}), ('carm', {'carm'}),
    ('ultrasound_probe', {'ultrasound_probe'})])
def test_only_what_is_tracked_is_on_tf(peer, tracked: str, bodies: set[str]) -> None:
    graph = peer('ultrasound', tracked=tracked)
    graph.start(PatientNode)
    assert set(publishers(graph)) == {('world', body) for body in bodies}


def test_truth_of_what_is_not_tracked_is_told_to_the_simulation(peer) -> None:
    graph = peer('ultrasound', tracked='carm')
    truth: list[PoseStamped] = []
    graph.node.create_subscription(
        PoseStamped, 'ground_truth/ultrasound_probe', truth.append, 50)
    graph.start(PatientNode)
    graph.spin(lambda: len(truth) > 2)


def test_what_is_tracked_cannot_change_while_it_runs(peer) -> None:
    node = peer('ultrasound').start(PatientNode)
    assert not node.set_parameters([Parameter('tracked', value='carm')])[0].successful


def test_a_recording_beside_the_simulated_c_arm_is_the_only_one_to_move_the_probe(
        peer, sequence_file, tmp_path) -> None:
    place = np.eye(4)
    place[:3, 3] = 5000.0, 0.0, 0.0
    path = sequence_file(tmp_path / 'a.mha', [0.0, 0.05, 0.1], {'ProbeToTracker': [place] * 3})
    graph = peer('ultrasound', tracked='carm', source='sequence', file=path)
    places: list[float] = []
    graph.node.create_subscription(TFMessage, '/tf', lambda message: places.extend(
        item.transform.translation.x for item in message.transforms
        if item.child_frame_id == 'ultrasound_probe'), 100)
    graph.start(PatientNode)
    graph.start(UltrasoundNode)
    graph.spin(lambda: len(places) > 10)
    assert places == pytest.approx([5.0] * len(places))
