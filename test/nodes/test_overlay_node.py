"""overlay_node: takes images only for somebody, holds the last X-ray, says why it is grey."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from sensor_msgs.msg import Image

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import pose_along, transform
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.imaging.volume import Volume, write_nifti
from hybrid_guidance.nodes.overlay_node import OverlayNode
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.bone import BONE
from hybrid_guidance.ros.convert import needle_message, transform_message
from hybrid_guidance.ros.frames import FramePublisher


def watch(graph, sensor: str):
    """Subscribe to an overlay; return the subscription and the pictures that come."""
    pictures: list[Image] = []
    return graph.node.create_subscription(
        Image, f'{sensor}/overlay', pictures.append, qos.OVERLAY), pictures


def publisher(graph, sensor: str):
    """Return what publishes a grey image of a sensor now."""
    frames = FramePublisher(graph.node, sensor, f'{sensor}_image')
    pixels = np.full((48, 64), 90, np.uint8)
    return frames, lambda: frames.publish(Frame(
        pixels, graph.node.get_clock().now().nanoseconds, Projection.uncalibrated((64, 48))))


def test_ultrasound_is_taken_only_while_somebody_watches(peer) -> None:
    graph = peer('fluoroscopy')
    frames, show = publisher(graph, 'ultrasound')
    graph.start(OverlayNode)
    graph.spin_for(0.5)
    assert not frames.has_reader
    subscription, pictures = watch(graph, 'ultrasound')
    graph.spin(lambda: frames.has_reader)

    def shown() -> bool:
        show()
        return bool(pictures)
    graph.spin(shown)
    assert (pictures[0].width, pictures[0].height, pictures[0].encoding) == (64, 48, 'rgb8')
    graph.spin(lambda: graph.hears('overlay_node', 'ultrasound', 'not calibrated'))
    graph.node.destroy_subscription(subscription)
    graph.spin(lambda: not frames.has_reader)


def test_an_x_ray_from_before_somebody_watched_is_shown(peer) -> None:
    """The next one may not come for minutes."""
    graph = peer('ultrasound')
    frames, show = publisher(graph, 'fluoroscopy')
    graph.start(OverlayNode)
    graph.spin(lambda: frames.has_reader)
    show()
    graph.spin_for(0.5)
    _, pictures = watch(graph, 'fluoroscopy')
    graph.spin(lambda: bool(pictures))


def test_bone_of_the_ct_is_drawn_where_the_slice_cuts_it(peer, tmp_path) -> None:
    """A ball of 10 mm about the target, 30 mm under the middle of the probe."""
    target = load_procedure('lumbar_facet_injection').target
    line = np.arange(-0.03, 0.03, 0.001) + 0.0005
    far = np.sqrt(line[:, None, None]**2 + line[:, None]**2 + line**2)
    write_nifti(tmp_path / 'ct.nii.gz', Volume(
        np.where(far < 0.010, 900, 0).astype(np.int16),
        transform(0.001 * np.eye(3), target + line[0])))
    graph = peer('fluoroscopy', ct=str(tmp_path / 'ct.nii.gz'))
    node = graph.start(OverlayNode)
    frames = FramePublisher(graph.node, 'ultrasound', 'ultrasound_image')
    static = tf.StaticTransformBroadcaster(graph.node)
    static.sendTransform([
        transform_message('world', 'patient', 0, np.eye(4)),
        transform_message('world', 'ultrasound_image', 0,
                          transform(translation=target - [0.0, 0.030, 0.0]))])
    lens = Projection.orthographic((2.5e-4, 2.5e-4), (128.0, 0.0), (256, 240))
    _, pictures = watch(graph, 'ultrasound')
    found: list[np.ndarray] = []

    def drawn() -> bool:
        frames.publish(Frame(np.full((240, 256), 90, np.uint8), node.now_ns(), lens))
        graph.spin_for(0.05)
        if pictures:
            rgb = np.frombuffer(pictures[-1].data, np.uint8).reshape(240, 256, 3)
            found[:] = [np.argwhere(np.all(rgb == BONE, axis=-1))]
        return bool(found) and len(found[0]) > 50
    graph.spin(drawn, 170.0)
    rows, columns = found[0].T
    distance = np.hypot(columns - 128.0, rows - 120.0)
    # The banner hides the lower part; 40 px are the radius.
    assert np.all(np.abs(distance - 40.0) < 7.0)


def test_a_tip_beside_the_slice_is_told_to_programs_too(peer) -> None:
    """2.5 mm behind it, known to 0.5 mm, of a slice that is 3 mm thick."""
    graph = peer('fluoroscopy')
    node, advices = graph.start(OverlayNode), []
    frames = FramePublisher(graph.node, 'ultrasound', 'ultrasound_image')
    tf.StaticTransformBroadcaster(graph.node).sendTransform([
        transform_message('world', 'patient', 0, np.eye(4)),
        transform_message('world', 'ultrasound_image', 0, np.eye(4))])
    needles = graph.node.create_publisher(
        PoseWithCovarianceStamped, 'needle/pose', qos.OBSERVATION)
    graph.node.create_subscription(
        DiagnosticStatus, 'ultrasound/probe_advice', advices.append, qos.OBSERVATION)
    lens = Projection.orthographic((2.5e-4, 2.5e-4), (128.0, 0.0), (256, 240))
    needle = NeedleEstimate(pose_along(np.array([0.0, 0.03, 0.0025]), np.array([1.0, 0.0, 0.0])),
                            np.diag([0.5e-3**2] * 3 + [0.01**2] * 3))

    def told() -> bool:
        now = node.now_ns()
        needles.publish(needle_message(needle, 'patient', now))
        frames.publish(Frame(np.full((240, 256), 90, np.uint8), now, lens))
        graph.spin_for(0.05)
        return bool(advices)
    graph.spin(told)
    assert advices[0].level == DiagnosticStatus.WARN
    assert '2.5 mm behind the slice' in advices[0].message
    values = {each.key: float(each.value) for each in advices[0].values}
    assert values['probability outside'] == pytest.approx(0.977, abs=0.001)


def test_a_ct_that_cannot_be_read_is_said(peer) -> None:
    graph = peer('fluoroscopy', ct='/nowhere/ct.nii.gz')
    _, show = publisher(graph, 'ultrasound')
    graph.start(OverlayNode)
    watch(graph, 'ultrasound')

    def said() -> bool:
        show()
        return graph.hears('overlay_node', 'no contours of bone', 'nowhere')
    graph.spin(said, 170.0)
