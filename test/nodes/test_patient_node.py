"""patient_node: who of the simulated room is on /tf."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from tf2_msgs.msg import TFMessage

from hybrid_guidance.nodes.patient_node import PatientNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode
from hybrid_guidance.ros.convert import matrix_from_pose, stamp_ns


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


def test_a_breathing_patient_takes_needle_along_and_image_is_of_its_own_moment(peer) -> None:
    """The needle's tip in a simulated slice is where the truth had it when the echoes came."""
    graph = peer('ultrasound', breathing=3.0, machine_delay=0.15, hand_tremor=0.0, rate=20.0)
    truth: dict[str, list[PoseStamped]] = {'needle': [], 'patient': []}
    for name, heard in truth.items():
        graph.node.create_subscription(PoseStamped, f'ground_truth/{name}', heard.append, 50)
    rendered: list[tuple[np.ndarray, float]] = []
    node = graph.start(UltrasoundNode)
    node._renderer.render = lambda pose, needles, time: rendered.append((pose, time)) or np.zeros(
        (480, 640), np.uint8)
    graph.start(PatientNode)
    graph.spin(lambda: len(graph.images) > 20 and len(truth['patient']) > 60)
    moments = {stamp_ns(message.header.stamp): matrix_from_pose(message.pose)
               for message in truth['patient']}
    places = np.array([pose[:3, 3] for pose in moments.values()])
    assert np.ptp(places, axis=0).max() > 0.5e-3
    tips = [(np.linalg.inv(moments[stamp_ns(message.header.stamp)])
             @ matrix_from_pose(message.pose))[:3, 3]
            for message in truth['needle'] if stamp_ns(message.header.stamp) in moments]
    assert np.ptp(tips, axis=0).max() < 0.1 * np.ptp(places, axis=0).max()
    known = sorted(moments)
    world_T_image = node._room.world_T_probe @ node._room.probe_T_ultrasound
    for pose, time in rendered:
        seen = round(time * 1e9)
        if known[0] < seen < known[-1]:
            place = [np.interp(seen - known[0], np.array(known) - known[0],
                               [moments[stamp][axis, 3] for stamp in known]) for axis in range(3)]
            np.testing.assert_allclose((world_T_image @ np.linalg.inv(pose))[:3, 3], place,
                                       atol=2e-6)
    echoes = np.array([round(time * 1e9) for _, time in rendered])
    for image in graph.images:
        assert np.abs(echoes + 150_000_000 - stamp_ns(image.header.stamp)).min() < 1000
