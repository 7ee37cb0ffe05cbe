"""The guidance over OpenIGTLink, read by pyigtl's client as 3D Slicer would."""

import time

import igtl
import numpy as np
import pyigtl
import pytest
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from sensor_msgs.msg import CameraInfo, Image

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, perturbed, transform, transform_points
from hybrid_guidance.nodes.openigtlink_node import OpenigtlinkNode
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import (
    camera_info_message,
    header,
    image_message,
    pose_message,
    transform_message,
)

PROJECTION = Projection.orthographic((2e-4, 3e-4), (15.5, 0.0), (32, 24))
WORLD_T_PATIENT = perturbed(np.eye(4), np.array([0.5, 0.1, 0.9, 0.2, 0.1, -0.3]))
WORLD_T_IMAGE = perturbed(np.eye(4), np.array([0.4, 0.0, 1.0, -0.5, 0.4, 0.2]))
NEEDLE = perturbed(np.eye(4), np.array([0.02, 0.03, -0.01, 0.1, 0.2, 0.3]))
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def in_ras_mm(patient_T_frame: np.ndarray) -> np.ndarray:
    matrix = TO_RAS @ patient_T_frame
    matrix[:3, 3] *= 1e3
    return matrix


class Slicer:
    """pyigtl's client, and what it heard last of each device."""

    def __init__(self, port: int) -> None:
        self.client = pyigtl.OpenIGTLinkClient('127.0.0.1', port)
        self.heard: dict[str, object] = {}

    def has(self, *names: str) -> bool:
        for message in self.client.get_latest_messages():
            self.heard[message.device_name] = message
        return set(names) <= set(self.heard)


@pytest.fixture
def slicer(peer):
    """Start the node with a client; return peer, client, and the functions that publish."""
    port = igtl.free_port()
    graph = peer('ultrasound', port=port, stale=0.3)
    node = graph.start(OpenigtlinkNode)
    graph.slicer = Slicer(port)
    make = graph.node.create_publisher
    graph.info = make(CameraInfo, 'ultrasound/camera_info', qos.CAMERA_INFO)
    graph.image = make(Image, 'ultrasound/image_raw', qos.IMAGE)
    graph.needle = make(PoseWithCovarianceStamped, 'needle/pose', qos.OBSERVATION)
    graph.plan = make(PoseArray, 'plan/waypoints', qos.STATE)
    graph.tf = tf.TransformBroadcaster(graph.node)
    graph.static = tf.StaticTransformBroadcaster(graph.node)
    graph.static.sendTransform(transform_message('world', 'patient', 0, WORLD_T_PATIENT))
    graph.spin(lambda: node.count_publishers('/tf_static') > 0)
    yield graph
    graph.slicer.client.stop()


def show(graph, projection: Projection, stamp: int, level: int) -> None:
    graph.info.publish(camera_info_message(projection, 'ultrasound_image', stamp))
    pixels = np.full((24, 32), level, np.uint8)
    graph.image.publish(image_message(pixels, 'ultrasound_image', stamp))


def test_an_image_lies_in_slicer_where_its_pixels_lie_in_the_patient(slicer) -> None:
    graph = slicer

    def streamed() -> bool:
        stamp = time.time_ns()
        graph.tf.sendTransform(transform_message('world', 'ultrasound_image', stamp, WORLD_T_IMAGE))
        show(graph, PROJECTION, stamp, 99)
        return graph.slicer.has('Ultrasound', 'UltrasoundToRAS')
    graph.spin(streamed)
    found = graph.slicer.heard['Ultrasound']
    assert found.image.shape == (1, 24, 32)
    assert np.all(found.image == 99)
    expected = transform_points(TO_RAS @ inverse(WORLD_T_PATIENT) @ WORLD_T_IMAGE,
                                PROJECTION.back_project(np.array([7.0, 20.0]))) * 1e3
    assert np.allclose((found.ijk_to_world_matrix @ (7, 20, 0, 1))[:3], expected, atol=1e-3)
    assert abs(found.timestamp - time.time()) < 30.0
    assert np.allclose(graph.slicer.heard['UltrasoundToRAS'].matrix,
                       in_ras_mm(inverse(WORLD_T_PATIENT) @ WORLD_T_IMAGE), atol=1e-3)


def test_needle_and_plan_are_sent_and_an_old_needle_is_missing(slicer) -> None:
    graph = slicer
    plan = PoseArray(header=header('patient', 0))
    plan.poses = [pose_message(transform(translation=np.array([0.01 * k, 0.02, 0.03])))
                  for k in range(4)]
    graph.plan.publish(plan)
    message = PoseWithCovarianceStamped()
    message.pose.pose = pose_message(NEEDLE)

    def guided() -> bool:
        message.header = header('patient', time.time_ns())
        graph.needle.publish(message)
        return graph.slicer.has('NeedleToRAS', 'Plan')
    graph.spin(guided)
    needle, points = graph.slicer.heard['NeedleToRAS'], graph.slicer.heard['Plan']
    assert np.allclose(needle.matrix, in_ras_mm(NEEDLE), atol=1e-3)
    assert needle.metadata == {}
    assert points.names == ['Entry', 'Target']
    assert np.allclose(points.positions, [(0, -20, 30), (-30, -20, 30)], atol=1e-4)
    graph.spin(lambda: graph.slicer.has() and graph.slicer.heard['NeedleToRAS'].metadata.get(
        'TransformStatus') == 'MISSING')


def test_an_uncalibrated_image_has_no_place_and_is_not_sent(slicer) -> None:
    graph = slicer

    def streamed() -> bool:
        show(graph, Projection.uncalibrated((32, 24)), time.time_ns(), 5)
        graph.slicer.has()
        return graph.hears('openigtlink_node', 'uncalibrated', 'not sent')
    graph.spin(streamed)
    assert 'Ultrasound' not in graph.slicer.heard


def test_a_port_that_is_taken_is_said_and_the_node_stays_up(peer) -> None:
    with igtl.server(lambda line, _: None) as port:
        graph = peer('ultrasound', port=port)
        graph.start(OpenigtlinkNode)
        graph.spin(lambda: graph.hears(
            'openigtlink_node', 'nobody can connect', str(port), level=2))
