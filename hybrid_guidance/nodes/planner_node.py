"""Leads the needle along a path from entry to target: the next pose, deviation, clearance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PointStamped, PoseStamped, PoseWithCovarianceStamped
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import Marker

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Points
from hybrid_guidance.parameters import parameter
from hybrid_guidance.planning.approval import Approval
from hybrid_guidance.planning.candidates import Doubt, Task
from hybrid_guidance.planning.choice import Chooser, table
from hybrid_guidance.planning.clearance import Clearance, Nearest
from hybrid_guidance.planning.guidance import Command, Guidance, GuidanceSettings
from hybrid_guidance.planning.path import Path, PlanError
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import qos, tf
from hybrid_guidance.ros.convert import (
    header,
    needle_from_message,
    point_array,
    point_message,
    pose_stamped,
    stamp_ns,
)
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.plans import PlanPublisher
from hybrid_guidance.simulation.anatomy import build_structures

SETTINGS = ('standoff', 'step', 'lateral_tolerance', 'angle_tolerance', 'depth_doubt',
            'lateral_doubt', 'target_tolerance')
"""Parameters that are settings of the guidance."""


@dataclass(frozen=True)
class PlannerParameters:
    """Parameters of ``planner_node``."""

    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning=(
        'name or YAML file of the procedure: entry, target, what to avoid'))
    anatomy: str = parameter('simulated', choices=('simulated', 'none'), fixed=True, meaning=(
        'where the structures to avoid come from; without, there is no clearance'))
    seed: int = parameter(1, low=0, high=2**31 - 1, fixed=True, meaning='of the simulated anatomy')
    sigmas: float = parameter(2.0, low=0.0, high=6.0, fixed=True, meaning=(
        'k: how many deviations of the tip are taken off a distance'))
    standoff: float = parameter(0.015, low=0.0, high=0.2, unit='m', fixed=True,
                                meaning='how far outside the skin the approach ends')
    step: float = parameter(0.004, low=0.0005, high=0.02, unit='m', fixed=True,
                            meaning='largest advance in one command')
    lateral_tolerance: float = parameter(0.0015, low=0.0001, high=0.01, unit='m', fixed=True,
                                         meaning='sideways deviation corrected before advancing')
    angle_tolerance: float = parameter(0.05, low=0.001, high=0.5, unit='rad', fixed=True,
                                       meaning='angle corrected before advancing')
    depth_doubt: float = parameter(0.001, low=0.0001, high=0.1, unit='m', fixed=True, meaning=(
        'deviation of the tip along the path above which it does not advance'))
    lateral_doubt: float = parameter(0.0008, low=0.0001, high=0.1, unit='m', fixed=True, meaning=(
        'deviation of the tip in a direction above which it is not corrected that way'))
    target_tolerance: float = parameter(0.0005, low=0.0001, high=0.01, unit='m', fixed=True,
                                        meaning='distance at which the target is reached')
    choose: bool = parameter(False, fixed=True, meaning=(
        'plan/compute searches the window round the entry and takes the best path; otherwise '
        'the entry stays where it is'))
    tip_sigma: float = parameter(0.0003, low=0.0, high=0.01, unit='m', fixed=True, meaning=(
        'deviation of the tip that the choice of a path counts with'))
    registration_sigma: float = parameter(
        0.0003, low=0.0, high=0.01, unit='m', fixed=True, meaning=(
            'deviation of the registration at the target that the choice counts with'))
    registration_limit: float = parameter(0.003, low=0.0005, high=0.1, unit='m', fixed=True,
        meaning='a jump of the target in world by more than this withdraws the approval')
    stale: float = parameter(0.5, low=0.05, high=5.0, unit='s', meaning=(
        'an older needle moves nothing'))


class PlannerNode(GuidanceNode[PlannerParameters]):
    """Publishes ``plan/*``; poses to take only once the plan is approved."""

    def __init__(self) -> None:
        super().__init__('planner_node', PlannerParameters)
        self.listen_to_frames()
        self._shown = PlanPublisher(self)
        publish = self.create_publisher
        self._next_pose = publish(PoseStamped, 'plan/needle_pose', qos.COMMAND)
        self._deviation = publish(PointStamped, 'plan/deviation', qos.OBSERVATION)
        self._danger = publish(PointStamped, 'plan/nearest_structure', qos.OBSERVATION)
        self._clear = publish(Float64, 'plan/clearance', qos.OBSERVATION)
        procedure = load_procedure(self.parameters.procedure)
        self._points = {'entry': procedure.entry, 'target': procedure.target}
        self._window, self._insert_by_eye = procedure.entry, procedure.insert_by_eye
        structures, self._chooser = {}, None
        if self.parameters.anatomy == 'simulated':
            solids = build_structures(procedure.region, self.parameters.seed,
                                      procedure.target)
            structures = {name: solids[name].at for name in procedure.avoid}
            if self.parameters.choose:
                doubt = Doubt(self.parameters.sigmas, self.parameters.tip_sigma,
                              self.parameters.registration_sigma)
                self._chooser = Chooser(Task.of(procedure, doubt), solids)
        self._clearance = Clearance(structures, self.parameters.sigmas)
        self._guidance: Guidance | None = None
        self._approval = Approval(self.parameters.registration_limit)
        self._seen, self._refused = False, ''
        self._latest_ns = 0
        for name in self._points:
            self.create_subscription(PointStamped, f'plan/{name}',
                                     lambda message, name=name: self._on_point(name, message),
                                     qos.POINT)
        self.create_subscription(PoseWithCovarianceStamped, 'needle/pose', self._on_needle,
                                 qos.OBSERVATION)
        self.create_service(Trigger, 'plan/compute', self._on_compute)
        self.create_service(SetBool, 'plan/approve', self._on_approve)
        self.create_timer(0.1, self._watch)
        self._plan('planned anew')

    def _plan(self, why: str, extra: Sequence[Marker] = ()) -> None:
        if self._approval.given:
            self._approval.withdraw(why)
        settings = GuidanceSettings(
            first_depth=self._insert_by_eye,
            **{name: getattr(self.parameters, name) for name in SETTINGS})
        path = Path(self._points['entry'], self._points['target'])
        self._guidance, self._refused = Guidance(path, settings), ''
        self._shown.publish(path, self.parameters.step, self.now_ns(), extra)

    def _on_point(self, name: str, message: PointStamped) -> None:
        point = point_array(message.point)
        if message.header.frame_id != 'patient':
            point = transform_points(self.lookup('patient', message.header.frame_id, 0), point)
        before = self._points
        self._points = {**before, name: point}
        try:
            self._plan(f'{name} moved by {np.linalg.norm(point - before[name]) * 1e3:.1f} mm')
        except PlanError:
            self._points = before
            raise
        if name == 'entry':
            self._window = point
        self.get_logger().info(f'{name} moved: the plan is new and must be approved')

    def _on_compute(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        extra: list[Marker] = []
        if self._chooser is not None:
            try:
                extra = self._choose()
            except PlanError as error:
                self._refused = str(error)
                self._approval.withdraw(self._refused)
                response.success, response.message = False, self._refused
                return response
        self._plan('planned anew', extra)
        path = self._guidance.path
        least = self._clearance.along(path)
        response.success = True
        response.message = f'{path.length * 1e3:.1f} mm from entry to target' + (
            f', {least * 1e3:.1f} mm clear of what to avoid' if np.isfinite(least) else
            ', no anatomy to keep clear of')
        return response

    def _choose(self) -> list[Marker]:
        """Move the entry to the best of the window; return markers of all."""
        found, paths = self._chooser.choose(self._points['target'], self._window)
        self._points = {**self._points, 'entry': paths[0].path.entry}
        self.get_logger().info('ranked paths:\n' + table(paths))
        return self._shown.candidates(found, paths, self.now_ns())

    def _on_approve(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and self._refused:
            response.success, response.message = False, f'nothing to approve: {self._refused}'
            return response
        if request.data:
            self._approval.give()
        else:
            self._approval.withdraw('withdrawn by plan/approve')
        response.success = True
        response.message = 'guiding' if request.data else 'approval withdrawn; nothing moves'
        return response

    def _on_needle(self, message: PoseWithCovarianceStamped) -> None:
        if message.header.frame_id != 'patient':
            raise ValueError(f'needle/pose is in "{message.header.frame_id}", not in "patient"')
        stamp = stamp_ns(message.header.stamp)
        # A late image says where the needle was; the newest one leads.
        if stamp <= self._latest_ns and self._latest_ns - stamp < 2_000_000_000:
            return
        needle = needle_from_message(message)
        self._latest_ns, self._seen = stamp, True
        x, y, z = self._guidance.path.deviation(needle.tip)
        self._deviation.publish(PointStamped(
            header=header('plan', stamp), point=point_message((x, y, z))))
        nearest = self._clearance.nearest(needle.tip, needle.covariance)
        if nearest is not None:
            self._warn(nearest, needle, stamp)
        if self._approval.given:
            self._lead(self._guidance.by_image(needle), stamp)

    def _warn(self, nearest: Nearest, needle: NeedleEstimate, stamp: int) -> None:
        self._clear.publish(Float64(data=nearest.clearance))
        point: Points = transform_points(inverse(needle.pose), nearest.point)
        self._danger.publish(PointStamped(
            header=header('needle_tip', stamp), point=point_message(point)))

    def _lead(self, command: Command, stamp: int) -> None:
        self._next_pose.publish(pose_stamped(command.pose, 'patient', stamp))
        self.health.value('phase', command.phase.value)
        self.health.value('words', command.words)

    def _watch(self) -> None:
        now = self.now_ns()
        if self._approval.given and not self._seen:
            self._lead(self._guidance.by_eye(now), now)
        lost = self._seen and (now - self._latest_ns) * 1e-9 > self.parameters.stale
        self.health.set('needle', not lost, 'not seen any more; nothing moves until it is')
        try:
            if self._approval.look(self.lookup('world', 'patient', 0), self._points['target']):
                self.get_logger().warning(self._approval.why_not)
        except tf.TransformException:
            pass  # nothing is registered yet
        self.health.set('approval', self._approval.given, self._approval.why_not)


def main() -> None:
    """Run the node."""
    run(PlannerNode)


if __name__ == '__main__':
    main()
