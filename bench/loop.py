"""The closed loop of guidance, on a clock of its own and without ROS, scored against the truth.

A simulated patient breathes, a hand trembles, trackers are noisy and late, ultrasound pictures
are 150 ms old (known within 10 ms). Both images are rendered, the package's detectors find the
needle, its fusion and guidance lead the hand: everything as the nodes wire it, with the defaults
of their parameter tables. Processing takes no time here, so a run is the same on every machine.
Everything is simulated.

Usage: python bench/loop.py [--procedures a,b] [--seeds 101-104] [--schedule 1.0] [--jobs 1]
       [--results FILE]

A run takes about 0.4 s of processor for each second that it simulates. With a file of results,
each run is kept there, and what is in it already is not run again: many runs may be interrupted.
"""

import argparse
import heapq
import json
import sys
import traceback
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain, count, product
from pathlib import Path

import numpy as np
from scipy.stats import chi2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hybrid_guidance.detection.lift import lift, lift_shift
from hybrid_guidance.detection.succession import Succession
from hybrid_guidance.detection.tissue import TissueMotion, xray_tissue
from hybrid_guidance.detection.ultrasound import UltrasoundNeedleDetector
from hybrid_guidance.detection.xray import XrayNeedleDetector
from hybrid_guidance.fusion.advice import Circumstances, advise
from hybrid_guidance.fusion.breathing import Breathing, TissueSight
from hybrid_guidance.fusion.frame_tree import (
    FrameTree,
    FrameTreeError,
    FutureError,
    UnknownFrameError,
)
from hybrid_guidance.fusion.holder import Motion
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.fusion.watched import WatchedFusion
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import (
    angle_between,
    cross,
    inverse,
    perpendiculars,
    transform,
    transform_points,
)
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.nodes.fluoroscopy_tracker_node import FluoroscopyTrackerParameters
from hybrid_guidance.nodes.fusion_node import SENSORS, FusionParameters
from hybrid_guidance.nodes.operator_node import OperatorParameters
from hybrid_guidance.nodes.patient_node import PatientParameters
from hybrid_guidance.nodes.planner_node import SETTINGS, PlannerParameters
from hybrid_guidance.nodes.ultrasound_tracker_node import UltrasoundTrackerParameters
from hybrid_guidance.planning.anatomy_file import sources_of
from hybrid_guidance.planning.approval import Approval
from hybrid_guidance.planning.candidates import Task
from hybrid_guidance.planning.clearance import Clearance
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.planning.guidance import GuidanceSettings
from hybrid_guidance.planning.path import Path as NeedlePath
from hybrid_guidance.planning.planner import planner_in
from hybrid_guidance.procedure import load_procedure, procedure_names
from hybrid_guidance.ros.calibration import load_beliefs, load_calibrations
from hybrid_guidance.simulation.anatomy import build_patient, build_structures
from hybrid_guidance.simulation.hand import Hand, HandSkill
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.motion import make_motion
from hybrid_guidance.simulation.render import ultrasound_renderer, xray_renderer
from hybrid_guidance.simulation.room import Tracker, make_room

LIMIT_S = 90.0
START_NS = 10**12
MISS_BAR = 3e-3
"""m: what bench/closed_loop.py and the demo call reached."""
BARS = {'fused tip p50': ('mm', 0.6), 'fused tip p95': ('mm', 1.0), 'direction p95': ('deg', 1.0),
        'final error p50': ('mm', 1.0), 'final error p95': ('mm', 2.0)}


def ns(seconds: float) -> int:
    """Return seconds in nanoseconds."""
    return round(seconds * 1e9)


class Clock:
    """Virtual time: what is due happens in its order, and takes no time."""

    def __init__(self) -> None:
        self.now, self._due, self._number = START_NS, [], count()

    def at(self, when_ns: int, action) -> None:
        """Do something once."""
        heapq.heappush(self._due, (when_ns, next(self._number), action))

    def every(self, period_s: float, action) -> None:
        """Do something again and again, first a period from now."""
        def again() -> None:
            self.at(self.now + ns(period_s), again)
            action()
        self.at(self.now + ns(period_s), again)

    def run(self, until) -> None:
        """Go on until a condition holds or time is up."""
        while not until() and self.now < START_NS + ns(LIMIT_S):
            self.now, _, action = heapq.heappop(self._due)
            action()


class Theatre:
    """What truly is: patient, needle, hand, imagers; as patient_node and the image nodes do it."""

    def __init__(self, name: str, seed: int, options, clock: Clock) -> None:
        self.clock, self.procedure = clock, load_procedure(name)
        procedure, known = self.procedure, PatientParameters()
        # Calibrated anew for each run: runs that share their errors would not be independent.
        room_seed = seed * 1000 + procedure_names().index(name)
        self.room = make_room(procedure, load_beliefs('simulated'), room_seed)
        self.motion = make_motion(procedure.region, seed, options.breathing)
        bone = build_structures(procedure.region, seed, procedure.target)['bone'].at
        start = NeedlePath(procedure.entry, procedure.target).pose_at(-0.05) @ transform(
            translation=np.array([0.01, 0.01, 0.0]))
        skill = HandSkill(speed=known.hand_speed, tremor=options.tremor * known.hand_tremor,
                          tremor_turn=options.tremor * HandSkill().tremor_turn)
        self.hand = Hand(start, skill, seed, bone)
        noise = options.tracking
        self._bodies = {
            'carm': (self.room.world_T_carm, Tracker(
                noise * known.carm_position_noise, noise * known.carm_rotation_noise,
                known.tracker_delay, seed)),
            'ultrasound_probe': (self.room.world_T_probe, Tracker(
                noise * known.probe_position_noise, noise * known.probe_rotation_noise,
                known.tracker_delay, seed + 1))}
        self.truth, self.held = FrameTree(cache_s=LIMIT_S), FrameTree(cache_s=2.0)
        self._needle = Needle(transform(), procedure.needle.diameter, procedure.needle.length)
        patient = build_patient(procedure.region, seed, procedure.target)
        self._xray = xray_renderer(procedure, patient, seed)
        self._ultrasound = ultrasound_renderer(procedure, patient, seed)
        self._rate = known.rate

    def start(self, tick, tracked) -> None:
        """Let time pass: ``tick()`` follows every step, ``tracked(name, stamp, pose)`` a pose."""
        self._tick_done, self._tracked = tick, tracked
        self._tick()
        self.clock.every(1.0 / self._rate, self._tick)

    def _tick(self) -> None:
        now = self.clock.now
        if now > START_NS:
            self._tick_done()
            self.hand.advance(1.0 / self._rate)
        self.held.set('patient', 'needle', now, self.hand.held)
        self.truth.set('patient', 'needle', now, self.hand.pose)
        for name, (pose, tracker) in self._bodies.items():
            reading = tracker.read(pose, now)
            self.clock.at(reading.due_ns, lambda name=name, reading=reading: self._tracked(
                name, reading.stamp_ns, reading.pose))

    def world_T_patient(self, stamp: int):
        """Return where the patient truly is."""
        return self.room.world_T_patient @ self.motion.at((stamp - START_NS) * 1e-9)

    def needle_at(self, stamp: int):
        """Return the true ``patient_T_needle``."""
        return self.truth.lookup('patient', 'needle', stamp)

    def patient_T_sensor(self, name: str, stamp: int):
        """Return where a sensor truly is."""
        room = self.room
        world_T_sensor = (room.world_T_carm @ room.carm_T_fluoroscopy if name == 'fluoroscopy'
                          else room.world_T_probe @ room.probe_T_ultrasound)
        return inverse(self.world_T_patient(stamp)) @ world_T_sensor

    def picture(self, name: str, seen_ns: int, stamp: int) -> Frame:
        """Return what a sensor saw at ``seen_ns``, and claims to have seen at ``stamp``."""
        needles = [self._needle.at(self.needle_at(seen_ns))]
        pose = self.patient_T_sensor(name, seen_ns)
        if name == 'fluoroscopy':
            return Frame(self._xray.render(pose, needles), stamp, self._xray.projection)
        return Frame(self._ultrasound.render(pose, needles, seen_ns * 1e-9), stamp,
                     self._ultrasound.projection)


class Seen:
    """Trackers and fusion: from pictures to ``needle/pose``; as the tracker and fusion nodes do."""

    def __init__(self, clock: Clock, publish) -> None:
        self.clock, self.publish, self.parameters = clock, publish, FusionParameters()
        xray, echo = FluoroscopyTrackerParameters(), UltrasoundTrackerParameters()
        self._detect = {
            'fluoroscopy': (XrayNeedleDetector(minimum_length=xray.minimum_length),
                            xray.threshold, {'depth': xray.depth,
                                             'depth_deviation': xray.depth_deviation}),
            'ultrasound': (UltrasoundNeedleDetector(minimum_length=echo.minimum_length),
                           echo.threshold, {'slice_thickness': echo.slice_thickness})}
        self._agrees = {'fluoroscopy': Succession(1), 'ultrasound': Succession(echo.confirm)}
        self.frames = FrameTree()
        self.calibrations = load_calibrations('simulated')
        self.watched = self.watched_by(self.parameters.require_both)
        self.fusion = self.watched.fusion
        self.alone = {name: self.watched_by(False).fusion for name in SENSORS}
        self._projections: dict = {}
        self.reasons: dict[str, str] = {}
        self._tissue = {'fluoroscopy': xray_tissue(),
                        'ultrasound': TissueMotion()}
        self._tissue_ns = 0
        self.breathing = Breathing()
        self._waiting: deque = deque()

    def watched_by(self, both: bool) -> WatchedFusion:
        """Return a fusion as fusion_node makes it."""
        known = self.parameters
        covariances = {name: self.calibrations[frame].covariance for name, frame in SENSORS.items()}
        motion = Motion(tip=known.tip_motion, speed=known.speed_motion)
        return WatchedFusion(covariances, motion, known.gate, covariances if both else (),
                             known.confirm, known.recover)

    def look(self, name: str, frame: Frame) -> NeedleEstimate | None:
        """Look at a picture; return the needle in it, in the sensor's frame."""
        detect, threshold, known = self._detect[name]
        self._watch_tissue(name, frame, known.get('depth', 0.0))
        if name == 'fluoroscopy':
            self._projections[name] = frame.projection
            self.watched.exposed(frame.stamp_ns)
        found = detect(frame)
        likely = found is not None and found.probability >= threshold
        if not self._agrees[name](found if likely else None, frame.stamp_ns):
            return None
        needle = lift(found, frame.projection, **known)
        if not self.watched.arrived(name, frame.stamp_ns, self.clock.now):
            return None
        self._waiting.append((name, frame.stamp_ns, needle))
        self._work()
        return needle

    def _watch_tissue(self, name: str, frame: Frame, depth: float) -> None:
        if name == 'ultrasound' and frame.stamp_ns - self._tissue_ns < ns(0.06):
            return
        if name == 'ultrasound':
            self._tissue_ns = frame.stamp_ns
        shift = self._tissue[name](frame)
        if shift is not None:
            self._waiting.append((name, frame.stamp_ns, (shift.reference_ns, *lift_shift(
                shift.pixels, shift.covariance, frame.projection, depth=depth))))
            self._work()

    def track(self, name: str, stamp: int, pose) -> None:
        """Take a tracked pose."""
        self.frames.set('world', name, stamp, pose)
        self._work()

    def _work(self) -> None:
        for _ in range(len(self._waiting)):
            name, stamp, thing = self._waiting.popleft()
            calibration = self.calibrations[SENSORS[name]]
            try:
                mount = self.frames.lookup('world', calibration.parent, stamp)
                if isinstance(thing, NeedleEstimate) and not self.breathing.ready(stamp):
                    raise FutureError('tissue at that time was not seen yet')
            except FrameTreeError:
                if self.clock.now - stamp < ns(self.parameters.wait):
                    self._waiting.append((name, stamp, thing))
                continue
            rotation = (self.parameters.carm_rotation if name == 'fluoroscopy'
                        else self.parameters.tracking_rotation)
            tracking = np.diag([self.parameters.tracking_position**2] * 3 + [rotation**2] * 3)
            if isinstance(thing, NeedleEstimate):
                still, breath = self.breathing.still(stamp, mount)
                self._fuse(Sighting(name, stamp, thing, calibration.transform, still, tracking,
                                    calibration.covariance, mount, breath))
            else:
                reference, moved, covariance = thing
                turn = (mount @ calibration.transform)[:3, :3]
                self.breathing.add(TissueSight(name, stamp, reference, turn @ moved,
                                               turn @ covariance @ turn.T, mount))

    def _fuse(self, sighting: Sighting) -> None:
        observation, projection = sighting.observation, self._projections.get(sighting.source)
        self.watched.follows_tissue = self.breathing.newest_ns is not None
        update = self.watched.fuse(sighting, projection)
        self.reasons[observation.source] = update.reason
        if update.state is not None:
            needle = self.fusion.filter.estimate(update.state)
            stamp, world_T_still = update.state.stamp_ns, self.breathing.world_T_still
            registered = self.breathing.registered(self.calibrations['patient'].transform)
            self.frames.set('world', 'needle_tip', stamp, world_T_still(stamp) @ needle.pose)
            self.frames.set('world', 'patient', stamp, world_T_still(stamp) @ registered)
            self.publish('fused', stamp, self.in_patient(needle))
        self.watched.judge(sighting, update, projection)
        self.reasons['agreement'] = self.watched.report(self.clock.now).words
        alone = self.alone[observation.source].add(observation)
        if alone.state is not None:
            self.publish(f'{observation.source} filter', alone.state.stamp_ns, self.in_patient(
                self.alone[observation.source].filter.estimate(alone.state)))

    def asked(self, stamp: int, pose) -> None:
        """Take where the needle is asked to go, in ``patient``."""
        registered = self.breathing.registered(self.calibrations['patient'].transform)
        self.fusion.ask(stamp, registered @ pose, self.clock.now)

    def shown(self, stamp: int):
        """Return ``patient_T_needle`` as it is displayed of that moment."""
        return self.frames.lookup('patient', 'needle_tip', stamp)

    def in_patient(self, needle: NeedleEstimate) -> NeedleEstimate:
        """Take a needle from the tissue at rest to ``patient``, as it is registered."""
        registration = self.calibrations['patient']
        placed = self.breathing.registered(registration.transform)
        return self.watched.in_patient(
            needle, placed, registration.covariance + self.breathing.rest_covariance())


class Led:
    """Plan, approval and guidance: from ``needle/pose`` to the hand; as planner_node does it."""

    def __init__(self, name: str, seed: int, theatre: Theatre, seen: Seen) -> None:
        self.theatre, self.seen, known = theatre, seen, PlannerParameters()
        procedure = theatre.procedure
        task = Task.of(procedure, Doubt(known.sigmas, known.tip_sigma, known.registration_sigma))
        settings = GuidanceSettings(first_depth=procedure.insert_by_eye, **{
            key: getattr(known, key) for key in SETTINGS})
        sources = sources_of(known.anatomy, procedure, seed)
        self.planner, self.structures = planner_in(task, sources, settings, known.choose)
        self.clearance = Clearance(self.structures, known.sigmas)
        self.approval, self.stale = Approval(known.registration_limit), known.stale
        self.needle: NeedleEstimate | None = None
        self.words, self.replans, self._latest, self._told, self._command = '', 0, 0, 0, None

    def on_needle(self, stamp: int, needle: NeedleEstimate) -> None:
        """Lead by what was seen."""
        if stamp <= self._latest:
            return
        self._latest, self.needle = stamp, needle
        self.clearance.nearest(needle.tip, needle.covariance)
        if self.approval.given:
            self._lead(self.planner.guidance.by_image(needle, stamp, self.theatre.clock.now), stamp)

    def watch(self) -> None:
        """Lead by eye while nothing was seen."""
        if self.approval.given and self.needle is None:
            now = self.theatre.clock.now
            self._lead(self.planner.guidance.by_eye(now), now)

    def look(self) -> None:
        """Plan from the tip where the target cannot be reached any more; a person approves."""
        fresh = self.theatre.clock.now - self._latest < ns(self.stale)
        if self.needle is None or not fresh or not self.approval.given:
            return
        found = self.planner.look(self.needle)
        if found is None:
            return
        self.words, self.replans = found.words, self.replans + 1
        if found.path is None:
            self.approval.refuse(found.words)
        else:
            self.approval.renew(found.words)
            self.theatre.clock.at(self.theatre.clock.now + ns(1.0),
                                  lambda: self.approval.answer(wanted=True))

    def _lead(self, command, stamp: int) -> None:
        self.words, self._command = command.words, (command.pose, stamp)
        self.seen.asked(stamp, command.pose)
        self._told = self.theatre.clock.now
        self.obey()

    def obey(self) -> None:
        """Turn the last command into a goal of the hand, once the display shows its moment."""
        hand = self.theatre.hand
        if self.theatre.clock.now - self._told > ns(PatientParameters().command_timeout):
            self._command = None
            hand.stop()
        if self._command is None:
            return
        told, stamp = self._command
        try:
            shown = self.seen.shown(stamp)
            hand.follow(told, shown, self.theatre.held.lookup('patient', 'needle', stamp))
        except UnknownFrameError:
            hand.follow(told, None, hand.held)
        except FutureError:
            return
        except FrameTreeError:
            pass  # older than what is remembered: as the node does, it is left
        self._command = None


class Score:
    """What a run is worth, against the truth."""

    def __init__(self, theatre: Theatre, structures) -> None:
        self.theatre, self.exposures = theatre, 0
        self._structures, self._radius = structures, theatre.procedure.needle.diameter / 2
        self.errors: dict[str, list] = {}
        self.fused: list[tuple] = []
        self.least = dict.fromkeys(structures, np.inf)

    def estimate(self, which: str, stamp: int, needle: NeedleEstimate) -> None:
        """Compare a needle in ``patient`` with the truth at its stamp."""
        truth = self.theatre.needle_at(stamp)
        miss = needle.tip - truth[:3, 3]
        self.errors.setdefault(which, []).append(float(np.linalg.norm(miss)))
        if which == 'fused':
            self.fused.append((stamp, angle_between(needle.direction, truth[:3, 2]),
                               *nees(needle, truth)))

    def alone(self, name: str, stamp: int, needle: NeedleEstimate) -> None:
        """Compare what one image shows with the truth, only where its sensor is not blind."""
        pose = self.theatre.patient_T_sensor(name, stamp)
        tip = transform_points(inverse(pose), self.theatre.needle_at(stamp)[:3, 3])
        blind = (tip / np.linalg.norm(tip) if name == 'fluoroscopy' else np.array([0., 0., 1.]))
        miss = tip - needle.tip
        self.errors.setdefault(f'{name} image', []).append(
            float(np.linalg.norm(miss - (miss @ blind) * blind)))

    def tissue(self) -> None:
        """Look how near the front of the needle is to what it must not touch."""
        pose = self.theatre.hand.pose
        shaft = pose[:3, 3] - np.arange(0.0, 0.04, 0.002)[:, None] * pose[:3, 2]
        for name, distance in self._structures.items():
            self.least[name] = min(self.least[name],
                                   float(np.min(distance(shaft))) - self._radius)

    def result(self) -> dict:
        """Return it all, in mm and degrees."""
        tip = self.theatre.hand.pose[:3, 3]
        fused = np.array(self.fused).reshape(-1, 4)
        seconds = np.unique((fused[:, 0] // ns(1.0)).astype(int), return_index=True)[1]
        least = min(self.least.values(), default=np.inf)
        return {
            'final_mm': 1e3 * float(np.linalg.norm(tip - self.theatre.procedure.target)),
            'errors_mm': {name: 1e3 * np.array(values) for name, values in self.errors.items()},
            'angles_deg': np.degrees(fused[:, 1]), 'nees5': fused[:, 2], 'nees3': fused[:, 3],
            'seconds': seconds, 'exposures': self.exposures, 'clear_mm': 1e3 * least,
            'touched': [name for name, value in self.least.items() if value < 0.0]}


def nees(needle: NeedleEstimate, truth) -> tuple[float, float]:
    """Return the normalised error squared of tip and direction (5 dof), and of the tip (3)."""
    first, second = perpendiculars(needle.direction)
    turns = np.column_stack([second, -first])
    pick = np.zeros((5, 6))
    pick[:3, :3], pick[3:, 3:] = np.eye(3), turns.T
    error = np.concatenate([truth[:3, 3] - needle.tip,
                            turns.T @ cross(needle.direction, truth[:3, 2])])
    covariance = pick @ needle.covariance @ pick.T
    return (float(error @ np.linalg.solve(covariance, error)),
            float(error[:3] @ np.linalg.solve(covariance[:3, :3], error[:3])))


class Run:
    """One procedure from the first picture to the end; its operator as operator_node."""

    def __init__(self, name: str, seed: int, options) -> None:
        self.options, self.clock, self.known = options, Clock(), OperatorParameters()
        self.theatre = Theatre(name, seed, options, self.clock)
        self.seen = Seen(self.clock, self._publish)
        self.led = Led(name, seed, self.theatre, self.seen)
        self.score = Score(self.theatre, self.led.structures)
        self.done, self._arrived, self._exposed, self._advised = False, 0, START_NS, False
        random = np.random.default_rng([seed, 0x100b])
        self._late = options.delay and options.delay + random.uniform(-1, 1) * options.delay_error

    def __call__(self) -> dict:
        """Run until the operator is content or time is up."""
        clock, led = self.clock, self.led
        self.theatre.start(led.obey, self.seen.track)
        clock.every(1.0 / 30.0, self._scan)
        for period, action in ((0.1, self._advise), (0.1, led.watch), (0.06, led.look),
                               (0.05, self._operate), (0.1, self.score.tissue)):
            clock.every(period, action)
        clock.at(START_NS + ns(0.3), lambda: led.approval.answer(wanted=True))
        clock.run(lambda: self.done)
        result, why = self.score.result(), self.seen.reasons
        good = self.done and result['final_mm'] < 1e3 * MISS_BAR
        return {**result, 'reached': good, 'replans': led.replans,
                'seconds_taken': (clock.now - START_NS) * 1e-9,
                'why': '' if good else f'{led.approval.why_not if not led.approval.given else ""} '
                                       f'{led.words} {why}'.strip()}

    def _publish(self, which: str, stamp: int, needle: NeedleEstimate) -> None:
        self.score.estimate(which, stamp, needle)
        if which == 'fused':
            self.led.on_needle(stamp, needle)

    def _scan(self) -> None:
        seen = self.clock.now
        stamp = seen + ns(self._late - self.options.delay)
        self.clock.at(seen + max(ns(self._late), 20_000_000),
                      lambda: self._look('ultrasound', seen, stamp))

    def _look(self, name: str, seen: int, stamp: int) -> None:
        needle = self.seen.look(name, self.theatre.picture(name, seen, stamp))
        if needle is not None:
            self.score.alone(name, stamp, needle)

    def _advise(self) -> None:
        known, needle = self.seen.parameters, self.led.needle
        near = needle and self.led.clearance.nearest(needle.tip, needle.covariance)
        danger = None if not near or near.point is None else (
            self.seen.calibrations['patient'].transform[:3, :3] @ (near.point - needle.tip))
        given = Circumstances(danger, away=self.seen.breathing.away(),
                              unsettled=self.seen.watched.unsettled)
        self._advised = advise(self.seen.fusion, self.clock.now, 'fluoroscopy', known.limits,
                               given).expose

    def _operate(self) -> None:
        """Expose, and watch whether the needle stays at the target."""
        now, led, schedule = self.clock.now, self.led, self.options.schedule
        interval = ns(schedule or self.known.exposure_interval)
        if (schedule or self._advised) and now - self._exposed >= interval:
            self._exposed, self._advised = now, False
            self.score.exposures += 1
            newest = self.theatre.truth.lookup_stamped('patient', 'needle', 0)[1]
            self._look('fluoroscopy', newest, newest)
        if led.needle is None:
            return
        off = float(np.linalg.norm(led.planner.path.deviation(led.needle.tip)))
        self._arrived = 0 if off >= self.known.tolerance else self._arrived or now
        self.done = bool(self._arrived) and now - self._arrived > ns(self.known.dwell)


def p(values, *shares: float) -> list[float]:
    """Return percentiles, NaN of nothing."""
    return [float(x) for x in np.percentile(values, shares)] if len(values) else (
        [float('nan')] * len(shares))


def one(job) -> dict:
    """Make one run; one that cannot be made says why."""
    import cv2
    cv2.setNumThreads(1)
    name, seed, options = job
    try:
        return {'name': name, 'seed': seed, **Run(name, seed, options)()}
    except Exception:  # the others must be run all the same
        traceback.print_exc()
        raise


def key(name: str, seed: int, options) -> dict:
    """Return what makes a run the same as another."""
    given = ('schedule', 'breathing', 'tremor', 'tracking', 'delay', 'delay_error')
    return {'name': name, 'seed': seed, **{one: getattr(options, one) for one in given}}


def kept(path: Path | None) -> dict[str, dict]:
    """Return the runs of a file of results, by their key; a line cut short is left out."""
    runs = {}
    for text in path.read_text().splitlines() if path is not None and path.exists() else ():
        with suppress(json.JSONDecodeError):
            item = json.loads(text)
            run = item['run']
            for one in ('angles_deg', 'nees5', 'nees3'):
                run[one] = np.array(run[one], float)
            run['seconds'] = np.array(run['seconds'], int)
            run['errors_mm'] = {one: np.array(values) for one, values in run['errors_mm'].items()}
            runs[json.dumps(item['key'])] = run
    return runs


def keep(path: Path | None, which: dict, run: dict) -> None:
    """Add a run to a file of results."""
    if path is not None:
        with path.open('a') as file:
            file.write(json.dumps({'key': which, 'run': run}, default=lambda x: x.tolist()) + '\n')


def told(run: dict) -> str:
    """Return a run in one line (or two) for people."""
    fused = run['errors_mm'].get('fused', [])
    text = (f'{run["name"]:30} {run["seed"]:4d} {"reached" if run["reached"] else "FAILED":7} '
            f'final {run["final_mm"]:6.2f}  fused p50 {p(fused, 50)[0]:.2f} p95 '
            f'{p(fused, 95)[0]:.2f} mm {p(run["angles_deg"], 95)[0]:.2f}°  NEES/5 '
            f'{np.mean(run["nees5"]) / 5 if len(fused) else np.nan:.2f}  in 95 % '
            f'{inside(run["nees3"]):.2f}  {run["exposures"]} exposures  clear '
            f'{run["clear_mm"]:.1f} mm  {run["seconds_taken"]:.0f} s')
    extra = [f'touched {", ".join(run["touched"])}'] * bool(run['touched']) + [
        f'{run["replans"]} replans'] * bool(run['replans']) + [run['why']] * bool(run['why'])
    return text + ''.join(f'\n      {line}' for line in extra)


def inside(squares) -> float:
    """Return the share of true tips within the published 95 % ellipsoid."""
    return float(np.mean(np.asarray(squares) < chi2.ppf(0.95, 3))) if len(squares) else np.nan


def table(runs: list[dict]) -> None:
    """Print errors by procedure and of all, and each modality alone."""
    groups = {name: [run for run in runs if run['name'] == name] for name in dict.fromkeys(
        run['name'] for run in runs)} | {'all': runs}
    print(f'\n{"simulated":30} reached  final p50/p95/worst   fused p50/p95/worst     direction p95'
          '  NEES/5 (95 % band)     inside')
    for name, group in groups.items():
        both = [np.concatenate([run[key] for run in group]) for key in ('angles_deg', 'nees3')]
        fused = gather(group, 'fused')
        mean, low, high = nees_band(group)
        print(f'{name:30} {sum(run["reached"] for run in group):3d}/{len(group):<3d} ',
              '/'.join(f'{x:5.2f}' for x in p([run['final_mm'] for run in group], 50, 95, 100)),
              '   ', '/'.join(f'{x:6.2f}' for x in p(fused, 50, 95, 100)),
              f'  {p(both[0], 95)[0]:6.2f}       {mean:6.2f} ({low:.2f}-{high:.2f})     '
              f'{inside(both[1]):.3f}')
    for kind in dict.fromkeys(chain.from_iterable(run['errors_mm'] for run in runs)):
        print(f'{kind:30} p50/p95/worst', '/'.join(f'{x:.2f}' for x in p(
            gather(runs, kind), 50, 95, 100)), 'mm')


def gather(runs: list[dict], kind: str):
    """Return all errors of one kind."""
    return np.concatenate([[], *(run['errors_mm'].get(kind, []) for run in runs)])


def nees_band(runs: list[dict]) -> tuple[float, float, float]:
    """Return the mean NEES per degree of freedom, and its 95 % band.

    A run counts once, with the mean of its seconds: the errors of its calibration do not change
    meanwhile, so that only runs are independent of each other (Bar-Shalom et al., Estimation with
    Applications to Tracking and Navigation, 5.4.2). The band is that of one sample a run, and so
    somewhat wide for a mean of several.
    """
    values = [np.mean(run['nees5'][run['seconds']]) for run in runs if len(run['seconds'])]
    if not values:
        return (float('nan'),) * 3
    many = 5 * len(values)
    return (float(np.mean(values)) / 5, *(float(chi2.ppf(q, many)) / many for q in (.025, .975)))


def line(name: str, value: float, unit: str, bar: float) -> str:
    """Return one JSON line of a benchmark."""
    return json.dumps({'name': f'loop {name}', 'value': round(value, 4), 'unit': unit, 'bar': bar,
                       'reference': bar, 'ratio': round(value / bar, 4)})


def summary(runs: list[dict]) -> None:
    """Print the JSON lines."""
    fused, final = gather(runs, 'fused'), [run['final_mm'] for run in runs]
    angles = np.concatenate([run['angles_deg'] for run in runs])
    values = {'fused tip p50': p(fused, 50)[0], 'fused tip p95': p(fused, 95)[0],
              'direction p95': p(angles, 95)[0], 'final error p50': p(final, 50)[0],
              'final error p95': p(final, 95)[0]}
    for name, value in values.items():
        print(line(name, value, *BARS[name]))
    print(line('reached', float(np.mean([run['reached'] for run in runs])), 'share', 0.98))
    print(line('touched', float(sum(bool(run['touched']) for run in runs)), 'runs', 1.0))
    print(line('inside the 95 % ellipsoid', inside(np.concatenate(
        [run['nees3'] for run in runs])), 'share', 0.95))
    mean, _, high = nees_band(runs)
    print(line('NEES per degree of freedom', mean, '', high))
    # A third of what a schedule of one a second would take in the same time.
    print(line('exposures', float(np.mean([run['exposures'] for run in runs])), 'a run',
               float(np.mean([run['seconds_taken'] for run in runs])) / 3.0))


def main() -> int:
    """Run all; exit status zero when every run reached its target and touched nothing."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--procedures', default=','.join(procedure_names()))
    parser.add_argument('--seeds', default='101-104', help='first-last, or one')
    parser.add_argument('--schedule', type=float, default=0.0, help='s; expose so often; 0: advice')
    parser.add_argument('--breathing', type=float, default=1.0)
    parser.add_argument('--tremor', type=float, default=1.0, help='times the default')
    parser.add_argument('--tracking', type=float, default=1.0, help='times the default noise')
    parser.add_argument('--delay', type=float, default=0.15, help='s, of ultrasound')
    parser.add_argument('--delay-error', type=float, default=0.01, help='s, at most')
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--results', type=Path, help='file of runs to add to and to go on from')
    options = parser.parse_args()
    first, _, last = options.seeds.partition('-')
    jobs = [(name, seed, options) for seed, name in product(
        range(int(first), int(last or first) + 1), options.procedures.split(','))]
    known = kept(options.results)
    runs = [known[which] for job in jobs if (which := json.dumps(key(*job))) in known]
    left = [job for job in jobs if json.dumps(key(*job)) not in known]
    print(f'{len(runs)} of {len(jobs)} runs are there', flush=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        for job, run in zip(left, (pool.map if options.jobs > 1 else map)(one, left), strict=True):
            keep(options.results, key(*job), run)
            print(told(run), flush=True)
            runs.append(run)
    table(runs)
    summary(runs)
    return 0 if all(run['reached'] and not run['touched'] for run in runs) else 1


if __name__ == '__main__':
    sys.exit(main())
