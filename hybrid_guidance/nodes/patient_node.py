"""The simulated operating room: ground truth, its trackers, and a hand that holds the needle."""

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.planning.path import Path
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros import markers, qos, tf
from hybrid_guidance.ros.calibration import load_beliefs
from hybrid_guidance.ros.convert import (
    matrix_from_pose,
    pose_stamped,
    stamp_ns,
    transform_message,
)
from hybrid_guidance.ros.held_needle import HeldNeedle
from hybrid_guidance.ros.node import GuidanceNode, run
from hybrid_guidance.ros.trackers import TrackerParameters, tracking
from hybrid_guidance.simulation.anatomy import build_structures
from hybrid_guidance.simulation.hand import Hand, HandSkill
from hybrid_guidance.simulation.instruments import bent, insertion
from hybrid_guidance.simulation.motion import make_motion, probe_sweep, probe_tremor
from hybrid_guidance.simulation.render import procedure_needle
from hybrid_guidance.simulation.room import Room, make_room
from hybrid_guidance.simulation.syringe import Syringe


@dataclass(frozen=True)
class PatientParameters(TrackerParameters):
    """Parameters of ``patient_node``."""

    procedure: str = parameter('lumbar_facet_injection', fixed=True,
                               meaning='name or YAML file of the procedure')
    calibration_file: str = parameter('simulated', fixed=True, meaning=(
        'name or file of the calibration around which the truth is drawn'))
    seed: int = parameter(1, low=0, high=2**31 - 1, fixed=True,
                          meaning='of every random draw of the simulation')
    rate: float = parameter(50.0, low=10.0, high=200.0, unit='Hz', fixed=True,
                            meaning='of ground truth and tracking')
    breathing: float = parameter(0.0, low=0.0, high=5.0, fixed=True,
                                 meaning='how deep: 1 is as the region does, 0 holds the breath')
    shift: float = parameter(0.0, low=0.0, high=0.1, unit='m', fixed=True,
                             meaning='how far the patient slips at shift_time')
    shift_time: float = parameter(10.0, low=0.0, high=3600.0, unit='s', fixed=True,
                                  meaning='after the start')
    probe_sweep: float = parameter(0.0, low=0.0, high=0.1, unit='m', fixed=True, meaning=(
        'how far to either side the probe is swept over bone; 0 holds it still'))
    probe_tremor: float = parameter(0.0, low=0.0, high=0.005, unit='m', fixed=True, meaning=(
        'deviation of the slice by tremor of the hand on the probe'))
    hand_speed: float = parameter(0.006, low=0.0005, high=0.05, unit='m/s', fixed=True,
                                  meaning='how fast the hand moves the tip')
    hand_tremor: float = parameter(0.1e-3, low=0.0, high=0.005, unit='m', fixed=True,
                                   meaning='deviation of the tip by tremor')
    bend: float = parameter(0.0, low=-10.0, high=10.0, unit='1/m', fixed=True, meaning=(
        'curvature of the needle in tissue, 0 is rigid; the image nodes need the same'))
    injection_ml: float = parameter(3.0, low=0.01, high=20.0, unit='ml', fixed=True, meaning=(
        'what each call of the service inject lets out of the tip'))
    injection_ml_per_s: float = parameter(0.5, low=0.01, high=10.0, unit='ml/s', fixed=True,
                                          meaning='how fast it flows')
    command_timeout: float = parameter(0.5, low=0.05, high=5.0, unit='s', meaning=(
        'the hand stops when no pose has been commanded for this long'))


class PatientNode(GuidanceNode[PatientParameters]):
    """Publishes the truth on ``ground_truth/*`` and what trackers see of it on /tf."""

    def __init__(self) -> None:
        super().__init__('patient_node', PatientParameters)
        parameters = self.parameters
        self._procedure = load_procedure(parameters.procedure)
        beliefs = load_beliefs(parameters.calibration_file)
        self._room: Room = make_room(self._procedure, beliefs, parameters.seed)
        self._bone = build_structures(self._procedure.region, parameters.seed,
                                      self._procedure.target)['bone'].at
        self._motion = make_motion(self._procedure.region, parameters.seed, parameters.breathing,
                                   parameters.shift, parameters.shift_time)
        self._start_ns = self.now_ns()
        self._tracking = tracking(parameters, parameters.seed)
        self.listen_to_frames()
        self._broadcaster = tf.TransformBroadcaster(self)
        self._truth = {name: self.create_publisher(
            PoseStamped, f'ground_truth/{name}', qos.GROUND_TRUTH)
            for name in ('needle', 'patient', 'carm', 'ultrasound_probe')}
        self._markers = self.create_publisher(MarkerArray, 'ground_truth/markers', qos.STATE)
        self.create_subscription(PoseStamped, 'plan/needle_pose', self._on_command, qos.COMMAND)
        self._fluid = self.create_publisher(MarkerArray, 'ground_truth/injectate', qos.STATE)
        self._told: list[tuple[Transform, float]] = []
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(Trigger, '~/inject', self._on_inject)
        self._begin()
        self.create_timer(1.0 / parameters.rate, self._tick)
        self.create_timer(1.0, self._show)
        self.create_timer(0.1, self._flow)

    def _begin(self) -> None:
        parameters, now = self.parameters, self.now_ns()
        path = Path(self._procedure.entry, self._procedure.target)
        # Beside the patient and not yet aligned: the approach is part of the procedure.
        start = path.pose_at(-0.05) @ transform(translation=np.array([0.01, 0.01, 0.0]))
        skill = HandSkill(speed=parameters.hand_speed, tremor=parameters.hand_tremor)
        self._held = HeldNeedle(
            Hand(start, skill, parameters.seed, self._bone),
            lambda stamp: self.lookup('patient', 'needle_tip', stamp),
            self.get_logger().warning, now)
        self._syringe = Syringe(1e-6 * parameters.injection_ml,
                                1e-6 * parameters.injection_ml_per_s)
        self._tracking.clear()
        self._last_ns = now

    def _tick(self) -> None:
        now = self.now_ns()
        if now < self._last_ns:
            # The clock was set back: what was read under the old time is void.
            self._tracking.clear()
        self._last_ns = now
        self._held.advance(now, self.parameters.command_timeout)
        world_T_patient = self._world_T_patient(now)
        seconds = (now - self._start_ns) * 1e-9
        swept = probe_sweep(seconds, self.parameters.probe_sweep) @ probe_tremor(
            seconds, self.parameters.probe_tremor, self.parameters.seed)
        bodies = {'carm': self._room.world_T_carm,
                  'ultrasound_probe': self._room.world_T_swept(swept)}
        for name, pose in (('needle', world_T_patient @ self._patient_T_needle()),
                           ('patient', world_T_patient), *bodies.items()):
            self._truth[name].publish(pose_stamped(pose, 'world', now))
        told = [transform_message('world', name, reading.stamp_ns, reading.pose)
                for name, reading in self._tracking.told(bodies, now)]
        if told:
            self._broadcaster.sendTransform(told)

    def _patient_T_needle(self) -> Transform:
        """Return where the tip truly is: its bevel has turned it off the axis of the hand."""
        needle = procedure_needle(self._procedure).at(self._held.pose)
        depth = insertion(needle, self._procedure.entry, self._procedure.target)
        return bent(needle, self.parameters.bend, depth)[0].pose

    def _world_T_patient(self, now: int) -> Transform:
        """Return where the patient is; a needle that the hand holds goes with it."""
        return self._room.world_T_patient @ self._motion.at((now - self._start_ns) * 1e-9)

    def _on_command(self, message: PoseStamped) -> None:
        if message.header.frame_id != 'patient':
            raise ValueError(f'plan/needle_pose is in "{message.header.frame_id}", not in '
                             '"patient"; the hand does not move')
        self._held.command(matrix_from_pose(message.pose), stamp_ns(message.header.stamp),
                           self.now_ns())

    def _on_inject(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._syringe.inject(self._patient_T_needle(), 1e-9 * self.now_ns())
        response.success, response.message = True, f'{self.parameters.injection_ml:g} ml flow'
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._begin()
        response.success, response.message = True, 'the needle is outside the patient again'
        return response

    def _flow(self) -> None:
        depots = self._syringe.depots(1e-9 * self._last_ns)
        if depots != self._told:
            self._told = depots
            self._fluid.publish(markers.fluid(depots, self._last_ns))

    def _show(self) -> None:
        world_T_needle = self._world_T_patient(self._last_ns) @ self._patient_T_needle()
        self._markers.publish(markers.needle(
            'ground_truth', world_T_needle, 'world', self._last_ns,
            self._procedure.needle.length, (0.2, 0.9, 0.3, 0.6)))


def main() -> None:
    """Run the node."""
    run(PatientNode)


if __name__ == '__main__':
    main()
