"""planner_node: which path it takes, and when an approval holds no longer."""

from pathlib import Path

import numpy as np
import open3d
import pytest
import yaml
from geometry_msgs.msg import PointStamped, PoseArray, PoseStamped, PoseWithCovarianceStamped
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import Marker, MarkerArray

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.nodes.planner_node import PlannerNode
from hybrid_guidance.planning.path import Path as PlannedPath
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.resources import resource
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import (
    header,
    matrix_from_pose,
    needle_message,
    point_message,
    transform_message,
)

PROCEDURE = load_procedure('lumbar_facet_injection')


def entries(graph) -> list[np.ndarray]:
    """Return a list that fills with the entry of every plan."""
    heard: list[np.ndarray] = []
    graph.node.create_subscription(PoseArray, 'plan/waypoints', lambda message: heard.append(
        np.array([getattr(message.poses[0].position, axis) for axis in 'xyz'])), qos.STATE)
    return heard


def test_without_a_choice_the_entry_stays_the_procedure_s(peer) -> None:
    graph = peer('ultrasound')
    heard = entries(graph)
    graph.start(PlannerNode)
    answer = graph.call(Trigger, 'plan/compute', Trigger.Request())
    graph.spin(lambda: len(heard) > 0)
    graph.spin_for(0.2)
    assert answer.success
    assert all(np.allclose(entry, PROCEDURE.entry) for entry in heard)


def test_a_choice_takes_the_best_entry_and_colours_all(peer) -> None:
    graph = peer('ultrasound', choose='true')
    heard, shown = entries(graph), []
    graph.node.create_subscription(MarkerArray, 'plan/markers', shown.append, qos.STATE)
    graph.start(PlannerNode)
    graph.spin(lambda: len(heard) > 0)
    answer = graph.call(Trigger, 'plan/compute', Trigger.Request())
    graph.spin(lambda: not np.allclose(heard[-1], PROCEDURE.entry))
    assert answer.success
    assert 'clear of what to avoid' in answer.message
    assert np.linalg.norm(heard[-1] - PROCEDURE.entry) < PROCEDURE.planning.window + 0.003

    def lists() -> list[Marker]:
        return [marker for array in shown for marker in array.markers
                if marker.type == Marker.SPHERE_LIST]
    graph.spin(lambda: bool(lists()))
    assert len(lists()[-1].points) == len(lists()[-1].colors) > 1000
    greens = [colour for colour in lists()[-1].colors if colour.g > colour.r]
    greys = [colour for colour in lists()[-1].colors if colour.a < 0.5]
    assert greens
    assert greys


def test_where_no_path_keeps_the_limits_nothing_can_be_approved(peer, tmp_path: Path) -> None:
    text = (resource('config/procedures') / 'lumbar_facet_injection.yaml').read_text()
    file = tmp_path / 'short.yaml'
    file.write_text(text.replace('length: 0.0889', 'length: 0.040'))
    graph = peer('ultrasound', choose='true', procedure=str(file))
    graph.start(PlannerNode)
    answer = graph.call(Trigger, 'plan/compute', Trigger.Request())
    assert not answer.success
    assert 'length' in answer.message
    approved = graph.call(SetBool, 'plan/approve', SetBool.Request(data=True))
    assert not approved.success
    assert 'length' in approved.message


@pytest.mark.parametrize(('jump_mm', 'withdrawn'), [(1.0, False), (8.0, True)])
def test_a_registration_that_jumps_withdraws_the_approval(peer, jump_mm: float,
                                                          withdrawn: bool) -> None:
    graph = peer('ultrasound')
    planner = graph.start(PlannerNode)
    registered = tf.StaticTransformBroadcaster(graph.node)

    def register(x: float) -> None:
        stamp = graph.node.get_clock().now().nanoseconds
        registered.sendTransform(transform_message(
            'world', 'patient', stamp, transform(translation=np.array([x, 0.0, 0.0]))))
        graph.spin_for(0.5)
    register(0.1)
    assert graph.call(SetBool, 'plan/approve', SetBool.Request(data=True)).success
    graph.spin_for(0.3)
    register(0.1 + 1e-3 * jump_mm)
    planner.health.publish()
    graph.spin(lambda: 'planner_node' in graph.status)
    graph.status.clear()
    planner.health.publish()
    graph.spin(lambda: 'planner_node' in graph.status)
    assert graph.hears('planner_node', 'registration moved the target by 8.0 mm') == withdrawn


def test_a_moved_target_withdraws_the_approval_and_says_how_far(peer) -> None:
    graph = peer('ultrasound')
    planner = graph.start(PlannerNode)
    clicked = graph.node.create_publisher(PointStamped, 'plan/target', qos.POINT)
    graph.spin(lambda: clicked.get_subscription_count() > 0)
    graph.call(SetBool, 'plan/approve', SetBool.Request(data=True))
    clicked.publish(PointStamped(header=header('patient', 0), point=point_message(
        PROCEDURE.target + (0.0, 0.004, 0.0))))

    def told() -> bool:
        planner.health.publish()
        return graph.hears('planner_node', 'target moved by 4.0 mm')
    graph.spin(told)


def test_a_needle_far_beside_its_path_is_planned_for_anew_and_drawn_back_once_approved(
        peer) -> None:
    """12 mm beside the path, 15 mm from the target: it must go back on its own track first."""
    graph = peer('ultrasound')
    heard, poses = entries(graph), []
    planner = graph.start(PlannerNode)
    graph.node.create_subscription(PoseStamped, 'plan/needle_pose', poses.append, qos.COMMAND)
    seen = graph.node.create_publisher(PoseWithCovarianceStamped, 'needle/pose', qos.OBSERVATION)
    graph.spin(lambda: seen.get_subscription_count() > 0 and len(heard) > 0)
    pose = PlannedPath(PROCEDURE.entry, PROCEDURE.target).pose_at(PROCEDURE.path_length - 0.015)
    pose[:3, 3] += 0.012 * pose[:3, 0]
    needle = NeedleEstimate(pose, np.eye(6) * 1e-8)

    def show() -> None:
        seen.publish(needle_message(needle, 'patient', graph.node.get_clock().now().nanoseconds))
        graph.spin_for(0.03)

    def told() -> bool:
        show()
        planner.health.publish()
        return graph.hears('planner_node', 'Withdraw it by')
    assert graph.call(SetBool, 'plan/approve', SetBool.Request(data=True)).success
    graph.spin(told)
    assert not np.allclose(heard[-1], PROCEDURE.entry, atol=0.001)
    poses.clear()
    assert graph.call(SetBool, 'plan/approve', SetBool.Request(data=True)).success

    def led() -> bool:
        show()
        return bool(poses)
    graph.spin(led)
    moved = matrix_from_pose(poses[0].pose)[:3, 3] - pose[:3, 3]
    assert moved @ pose[:3, 2] < -0.001
    assert np.linalg.norm(np.cross(moved, pose[:3, 2])) < 1e-6


def test_an_anatomy_of_files_is_kept_clear_of(peer, tmp_path: Path) -> None:
    """A ball of a mesh 20 mm beside the target: 16 mm away, less k·σ."""
    procedure = tmp_path / 'made_up.yaml'
    text = (resource('config/procedures') / 'lumbar_facet_injection.yaml').read_text()
    content = yaml.safe_load(text) | {'avoid': {'aorta': 0.003}}
    procedure.write_text(yaml.safe_dump(content))
    for name, radius, beside in (('aorta', 4.0, 20.0), ('bone', 3.0, 30.0), ('skin', 90.0, 0.0)):
        ball = open3d.geometry.TriangleMesh.create_sphere(radius, 40)
        ball.translate(1e3 * PROCEDURE.target + (beside, 0.0, 0.0))
        open3d.io.write_triangle_mesh(str(tmp_path / f'{name}.ply'), ball)
    file = tmp_path / 'anatomy.yaml'
    file.write_text(yaml.safe_dump({'space': 'LPS', 'meshes': {
        name: f'{name}.ply' for name in ('aorta', 'bone', 'skin')}}))
    graph, heard = peer('ultrasound', procedure=str(procedure), anatomy=str(file)), []
    graph.node.create_subscription(Float64, 'plan/clearance', heard.append, qos.OBSERVATION)
    graph.start(PlannerNode)
    seen = graph.node.create_publisher(PoseWithCovarianceStamped, 'needle/pose', qos.OBSERVATION)
    graph.spin(lambda: seen.get_subscription_count() > 0)
    needle = NeedleEstimate(transform(translation=PROCEDURE.target), np.eye(6) * 1e-6)

    def told() -> bool:
        seen.publish(needle_message(needle, 'patient', graph.node.get_clock().now().nanoseconds))
        graph.spin_for(0.03)
        return bool(heard)
    graph.spin(told)
    assert heard[-1].data == pytest.approx(0.016 - 2.0 * 0.001, abs=0.0003)
