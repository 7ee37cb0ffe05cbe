"""Leads the needle along a path from entry to target: the next pose, deviation, clearance."""

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PointStamped, PoseStamped, PoseWithCovarianceStamped
from std_srvs.srv import SetBool, Trigger

from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.parameters import parameter
from hybrid_guidance.planning.anatomy_file import sources_of
from hybrid_guidance.planning.approval import Approval
from hybrid_guidance.planning.candidates import Task
from hybrid_guidance.planning.choice import table
from hybrid_guidance.planning.clearance import Clearance
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.guidance import Command, GuidanceSettings
from hybrid_guidance.planning.path import PlanError
from hybrid_guidance.planning.planner import Choice, planner_in
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import convert, qos, tf
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.plans import PlanPublisher, ProgressPublisher

SETTINGS = ('standoff', 'step', 'lateral_tolerance', 'angle_tolerance', 'depth_doubt',
            'lateral_doubt', 'target_tolerance')
"""Parameters that are settings of the guidance."""


@dataclass(frozen=True)
class PlannerParameters:
    """Parameters of ``planner_node``."""

    procedure: str = parameter('lumbar_facet_injection', fixed=True, meaning=(
        'name or YAML file of the procedure: entry, target, what to avoid'))
    anatomy: str = parameter('simulated', fixed=True, meaning=(
        'where the structures to avoid come from: simulated, none (no clearance), or a YAML file '
        'that names label map and meshes'))
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
        self._next_pose = self.create_publisher(PoseStamped, 'plan/needle_pose', qos.COMMAND)
        self._progress = ProgressPublisher(self)
        structures = self._make_planner()
        self._clearance = Clearance(structures, self.parameters.sigmas)
        self._approval = Approval(self.parameters.registration_limit)
        self._needle: NeedleEstimate | None = None
        self._latest_ns = 0
        for name in self._planner.points:
            self.create_subscription(PointStamped, f'plan/{name}',
                                     lambda message, name=name: self._on_point(name, message),
                                     qos.POINT)
        self.create_subscription(PoseWithCovarianceStamped, 'needle/pose', self._on_needle,
                                 qos.OBSERVATION)
        self.create_service(Trigger, 'plan/compute', self._on_compute)
        self.create_service(SetBool, 'plan/approve', self._on_approve)
        self.create_timer(0.1, self._watch)
        self.create_timer(0.06, self._look)
        self._show_plan()

    def _make_planner(self):  # type: ignore[no-untyped-def]
        """Make the planner; return what to keep clear of, as distances by name."""
        parameters, procedure = self.parameters, load_procedure(self.parameters.procedure)
        task = Task.of(procedure, Doubt(parameters.sigmas, parameters.tip_sigma,
                                        parameters.registration_sigma))
        settings = GuidanceSettings(first_depth=procedure.insert_by_eye, **{
            name: getattr(parameters, name) for name in SETTINGS})
        sources = sources_of(parameters.anatomy, procedure, parameters.seed)
        self._planner, structures = planner_in(task, sources, settings, parameters.choose)
        return structures

    def _show_plan(self, choice: Choice | None = None) -> None:
        self._shown.publish(self._planner.path, self.parameters.step, self.now_ns(), choice)

    def _on_point(self, name: str, message: PointStamped) -> None:
        point = convert.point_array(message.point)
        if message.header.frame_id != 'patient':
            point = transform_points(self.lookup('patient', message.header.frame_id, 0), point)
        moved = float(np.linalg.norm(point - self._planner.points[name]))
        self._planner.move(name, point)
        self._approval.renew(f'{name} moved by {moved * 1e3:.1f} mm')
        self._show_plan()
        self.get_logger().info(f'{name} moved: the plan is new and must be approved')

    def _on_compute(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            choice = self._planner.compute()
        except PlanError as error:
            self._approval.refuse(str(error))
            response.success, response.message = False, str(error)
            return response
        self._approval.renew('planned anew')
        self._show_plan(choice)
        if choice is not None:
            self.get_logger().info('ranked paths:\n' + table(choice[1]))
        response.success = True
        response.message = self._clearance.describe(self._planner.path)
        return response

    def _on_approve(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self._approval.answer(request.data)
        return response

    def _on_needle(self, message: PoseWithCovarianceStamped) -> None:
        if message.header.frame_id != 'patient':
            raise ValueError(f'needle/pose is in "{message.header.frame_id}", not in "patient"')
        stamp = convert.stamp_ns(message.header.stamp)
        # A late image says where the needle was; the newest one leads.
        if stamp <= self._latest_ns and self._latest_ns - stamp < 2_000_000_000:
            return
        needle = convert.needle_from_message(message)
        self._latest_ns, self._needle = stamp, needle
        self._progress.publish(self._planner.path.deviation(needle.tip), needle,
                               self._clearance.nearest(needle.tip, needle.covariance), stamp)
        if self._approval.given:
            self._lead(self._planner.guidance.by_image(needle, stamp, self.now_ns()), stamp)

    def _lead(self, command: Command, stamp: int) -> None:
        self._next_pose.publish(convert.pose_stamped(command.pose, 'patient', stamp))
        self.health.value('phase', command.phase.value)
        self.health.value('words', command.words)

    def _watch(self) -> None:
        now = self.now_ns()
        seen = self._needle is not None
        if self._approval.given and not seen:
            self._lead(self._planner.guidance.by_eye(now), now)
        lost = seen and (now - self._latest_ns) * 1e-9 > self.parameters.stale
        self.health.set('needle', not lost, 'not seen any more; nothing moves until it is')
        try:
            world_T_patient = self.lookup('world', 'patient', 0)
            if self._approval.look(world_T_patient, self._planner.path.target):
                self.get_logger().warning(self._approval.why_not)
        except tf.TransformException:
            pass  # nothing is registered yet
        self.health.set('approval', self._approval.given, self._approval.why_not)

    def _look(self) -> None:
        """Plan from where the needle is, if the target cannot be reached on the path any more."""
        fresh = (self.now_ns() - self._latest_ns) * 1e-9 < self.parameters.stale
        if self._needle is None or not fresh or not self._approval.given:
            return
        found = self._planner.look(self._needle)
        if found is None:
            return
        self.get_logger().warning(found.words)
        if found.path is None:
            self._approval.refuse(found.words)
        else:
            self._approval.renew(found.words)
            self._show_plan()


def main() -> None:
    """Run the node."""
    # Nobody steers by a plan before the needle that it is made for is known.
    run(PlannerNode, niceness=5)


if __name__ == '__main__':
    main()
