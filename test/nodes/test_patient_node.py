"""patient_node: who of the simulated room is on /tf."""

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from hybrid_guidance.nodes.patient_node import PatientNode
from hybrid_guidance.nodes.ultrasound_node import UltrasoundNode
from hybrid_guidance.ros.convert import matrix_from_pose, stamp_ns
from hybrid_guidance.simulation.render import procedure_needle


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
    node._renderer.render = lambda pose, needles, time, fluids: rendered.append(
        (pose, time)) or np.zeros((480, 640), np.uint8)
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


def advance_to(graph, node, depth: float) -> np.ndarray:
    """Put the hand's needle on the path at a depth, and return (4, 4) its axis."""
    procedure = node._procedure
    held = procedure_needle(procedure, depth).pose
    node._held._hand.held = held
    return held


def test_a_bent_needle_is_off_the_hand_by_its_arc_and_drawn_to_its_true_tip(peer) -> None:
    graph = peer('ultrasound', bend=2.0, hand_tremor=0.0, source='simulated', rate=20.0)
    drawn: list[tuple] = []
    scanner = graph.start(UltrasoundNode)
    scanner._renderer.render = lambda pose, needles, time, fluids: drawn.append(needles) or (
        np.zeros((480, 640), np.uint8))
    patient = graph.start(PatientNode)
    held = advance_to(graph, patient, 0.05)
    graph.spin_for(0.3)
    drawn.clear()
    graph.spin(lambda: len(drawn) > 2)
    tip = np.linalg.inv(held) @ np.append(drawn[-1][0].pose[:3, 3], 1.0)
    assert tip[0] == pytest.approx(0.5 * 2.0 * 0.05**2, rel=0.02)
    assert len(drawn[-1]) > 2
    # Where it enters the skin it is still on the axis of the hand.
    skin = np.linalg.inv(held) @ np.append(drawn[-1][-1].pose[:3, 3], 1.0)
    assert np.hypot(*skin[:2]) < 0.3e-3


def test_what_is_injected_grows_to_its_volume_at_the_tip_and_goes_with_a_reset(peer) -> None:
    graph = peer('ultrasound', injection_ml=0.4, injection_ml_per_s=0.5, hand_tremor=0.0)
    scanner = graph.start(UltrasoundNode)
    # A picture would hold this thread for longer than some of the injection takes.
    scanner._renderer.render = lambda *_: np.zeros((480, 640), np.uint8)
    patient = graph.start(PatientNode)
    held = advance_to(graph, patient, 0.04)
    assert scanner._tools.fluids == []
    assert graph.call(Trigger, 'patient_node/inject', Trigger.Request()).success
    sizes: list[float] = []

    def volume() -> float:
        sizes.append(sum(fluid.volume for fluid in scanner._tools.fluids))
        return sizes[-1]
    graph.spin(lambda: volume() > 0.399e-6)
    assert any(0.0 < size < 0.3e-6 for size in sizes)
    graph.spin_for(0.3)
    assert volume() == pytest.approx(0.4e-6, rel=1e-3)
    np.testing.assert_allclose(scanner._tools.fluids[0].pose[:3, 3], held[:3, 3], atol=1e-6)
    assert graph.call(Trigger, 'patient_node/reset', Trigger.Request()).success
    graph.spin(lambda: scanner._tools.fluids == [])


def test_doppler_is_a_second_image_in_colour_when_asked_for(peer) -> None:
    graph = peer('ultrasound', doppler='colour', procedure='femoral_nerve_block', seed=2, rate=10.0)
    shares: list[float] = []

    def on_doppler(image: Image) -> None:
        assert image.encoding == 'rgb8'
        assert image.header.frame_id == 'ultrasound_image'
        pixels = np.frombuffer(image.data, np.uint8).reshape(480, 640, 3)
        shares.append(float(np.mean(np.ptp(pixels.astype(int), axis=2) > 60)))
    graph.node.create_subscription(Image, 'ultrasound/doppler', on_doppler, 10)
    graph.start(UltrasoundNode)
    graph.start(PatientNode)
    # The femoral artery at systole, which comes within a second (in patient 1 it runs across the
    # beam, where there is nothing to see); grey all round.
    graph.spin(lambda: bool(shares) and max(shares) > 0.0005)
    assert max(shares) < 0.1
    assert {image.encoding for image in graph.images} == {'mono8'}


def test_without_doppler_only_the_grey_image_is_published(peer) -> None:
    graph = peer('ultrasound', rate=20.0)
    coloured: list[Image] = []
    graph.node.create_subscription(Image, 'ultrasound/doppler', coloured.append, 10)
    graph.start(UltrasoundNode)
    graph.start(PatientNode)
    graph.spin(lambda: len(graph.images) >= 5)
    assert not coloured
