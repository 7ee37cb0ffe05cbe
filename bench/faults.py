"""What fusion does when something is wrong: found when, named how, and the pose against its σ.

A needle goes in, stops and goes on, with a tremor. Its images are not rendered: what the trackers
of both would report is drawn from the geometry of a procedure, with noise, invisible and prolonged
ends, and calibrations, tracking and delays as in the simulated room. A fault sets in at a drawn
time. Everything is simulated.

Usage: python bench/faults.py [--seeds 20] [--first 1] [--faults none,shift,...]
"""

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import chi2

from hybrid_guidance.detection.lift import lift
from hybrid_guidance.detection.needle import PixelNeedle
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.fusion.patient_shift import AnatomyMotion
from hybrid_guidance.fusion.watched import WatchedFusion
from hybrid_guidance.geometry.rigid import inverse, perturbed, transform, transform_points
from hybrid_guidance.planning.path import Path as NeedlePath
from hybrid_guidance.procedure import load_procedure
from hybrid_guidance.ros.calibration import load_beliefs
from hybrid_guidance.simulation.room import make_room

ULTRASOUND, XRAY = 'ultrasound', 'fluoroscopy'
FRAMES = {ULTRASOUND: 'ultrasound_image', XRAY: 'fluoroscopy_optical_frame'}
RATES = {ULTRASOUND: 30.0, XRAY: 1.0}
ARRIVES = {ULTRASOUND: 0.045, XRAY: 0.09}
TRACKING = {ULTRASOUND: np.array([1e-4] * 3 + [1e-3] * 3), XRAY: np.array([1e-4] * 3 + [2e-4] * 3)}
PIXELS = {ULTRASOUND: np.array([1.5, 1.0, 0.008]), XRAY: np.array([0.5, 0.3, 0.002])}
"""Deviations of a detection: along the shaft and across it in px, angle in rad."""

LENGTH = {ULTRASOUND: 150.0, XRAY: 300.0}
EXPECTED = {'none': (), 'shift': ('shift',), 'marker': ('marker',), 'frozen': ('frozen',),
            'stamps': ('stamps',), 'mirrored': ('mirrored',), 'mirrored from the start':
            ('mirrored',), 'lost': ('lost',), 'duplicated': ('duplicated',),
            'reordered': ('reordered',)}
NOT_ALARMS = {'step', 'restart'}
"""Reasons for a step of the pose; whether there was one is counted apart."""

ANATOMY_PX = 0.5
SHIFT = 0.003
"""m."""

EPOCH = 10**12
END_S = 14.0


@dataclass
class Result:
    """What one run came to.

    Attributes:
        found: kind of fault to seconds from its beginning to its first report.
        level: the worst reported.
        xray_s: seconds from the beginning to the first X-ray after it.
        squared: (n,) squared Mahalanobis distance of the published tip, n after the beginning.
        errors: (n,) m, of the same.
        unseen: how many of them were published before the first X-ray after the beginning came.
        before: squared distances of what was published before the beginning.
        blind: s, longest time without a pose after the beginning.
    """

    found: dict[str, float] = field(default_factory=dict)
    level: int = 0
    xray_s: float = 0.0
    squared: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    unseen: int | None = None
    before: list[float] = field(default_factory=list)
    blind: float = 0.0


class Scene:
    """The truth of one run, and what both trackers report of it."""

    def __init__(self, seed: int, fault: str = 'none',
                 procedure: str = 'lumbar_facet_injection') -> None:
        self.random = np.random.default_rng([seed, 0xfa])
        # Draws of its own, so that the same seed without a fault has the same noise.
        fate = self.fate = np.random.default_rng([seed, 0xfb])
        self.fault, self.procedure = fault, load_procedure(procedure)
        self.beliefs = load_beliefs('simulated')
        self.room = make_room(self.procedure, self.beliefs, seed)
        self.begin = 0.0 if 'from the start' in fault else fate.uniform(5.0, 6.5)
        self.projections = {ULTRASOUND: self.procedure.ultrasound_projection(),
                            XRAY: self.procedure.fluoroscopy_projection()}
        self.path = NeedlePath(self.procedure.entry, self.procedure.target)
        axis, way = fate.standard_normal((2, 3))
        self.slip = perturbed(np.eye(4), np.concatenate(
            [np.zeros(3), np.deg2rad(2.0) * axis / np.linalg.norm(axis)]))
        self.shift = SHIFT * way / np.linalg.norm(way)
        self.off = fate.choice([-0.2, 0.2])
        self.misplaced = perturbed(np.eye(4), self.random.standard_normal(6)
                                   * [1e-3, 1e-3, 0.0, 0.01, 0.01, 0.0])
        self.tremor, self.tremor_time = np.zeros(6), 0.0
        self.stray, self.stray_until = 0.0, 0.0
        self.truth: dict[int, np.ndarray] = {}

    def is_on(self, fault: str, time: float) -> bool:
        """Tell whether a fault has set in."""
        return self.fault.startswith(fault) and time >= self.begin

    def depth(self, time: float) -> float:
        """0.6 s at 6 mm/s, then 0.9 s of rest, until the target."""
        whole, rest = divmod(time, 1.5)
        return min(0.028 + 0.006 * (0.6 * whole + min(rest, 0.6)), self.path.length)

    def world_T_patient(self, time: float) -> np.ndarray:
        """Where the patient truly is."""
        moved = self.shift if self.is_on('shift', time) else np.zeros(3)
        return transform(translation=moved) @ self.room.world_T_patient

    def needle(self, time: float) -> np.ndarray:
        """(4, 4) true ``patient_T_needle``; times must not fall by much."""
        keep = np.exp(-abs(time - self.tremor_time) / 0.2)
        self.tremor_time = time
        self.tremor = keep * self.tremor + (1.0 - keep**2)**0.5 * (
            self.random.standard_normal(6) * [1e-4, 1e-4, 1e-4, 2e-3, 2e-3, 2e-3])
        return self.path.pose_at(self.depth(time)) @ self.misplaced @ perturbed(
            np.eye(4), self.tremor)

    def sighting(self, source: str, time: float, needle: np.ndarray) -> Sighting | None:
        """What a tracker reports of an image, with the tracked pose at its stamp."""
        ultrasound = source == ULTRASOUND
        mount = self.room.world_T_probe if ultrasound else self.room.world_T_carm
        true = self.room.probe_T_ultrasound if ultrasound else self.room.carm_T_fluoroscopy
        sensor_T_needle = inverse(mount @ true) @ self.world_T_patient(time) @ needle
        pixels = self._detection(source, time, sensor_T_needle)
        if pixels is None:
            return None
        if ultrasound and self.is_on('marker', time):
            mount = mount @ self.slip
        deviation = TRACKING[source]
        return Sighting(source, int(time * 1e9) + EPOCH, lift(
            pixels, self.projections[source], depth=0.6), self.beliefs[FRAMES[source]].transform,
            perturbed(mount, self.random.standard_normal(6) * deviation),
            np.diag(deviation**2), self.beliefs[FRAMES[source]].covariance)

    def _detection(self, source: str, time: float, pose: np.ndarray) -> PixelNeedle | None:
        projection, noise = self.projections[source], self.random.standard_normal(3)
        tip, back = projection.pixels(np.stack([pose[:3, 3], pose[:3, 3] - 0.01 * pose[:3, 2]]))
        missed = self.random.uniform() < 0.05
        direction = (tip - back) / np.linalg.norm(tip - back)
        noise *= PIXELS[source]
        if source == ULTRASOUND:
            noise[0] += self._stray(time) / 0.00018
            if missed or (self.is_on('lost', time) and time < self.begin + 5.0):
                return None
        elif not projection.contains(tip):
            return None
        normal = np.array([-direction[1], direction[0]])
        tip = tip + noise[0] * direction + noise[1] * normal
        turned = direction + noise[2] * normal
        turned /= np.linalg.norm(turned)
        if source == ULTRASOUND and self.is_on('mirrored', time):
            tip, turned = np.array([projection.width - 1 - tip[0], tip[1]]), turned * [-1.0, 1.0]
        return PixelNeedle(tip, turned, LENGTH[source], np.diag(PIXELS[source]**2), 0.99)

    def _stray(self, time: float) -> float:
        """An echo's end that is not the tip, in m, for about a second at a time."""
        if time > self.stray_until + 0.3 and self.random.uniform() < 0.01:
            self.stray, self.stray_until = 0.004 * self.random.standard_normal(), (
                time + self.random.exponential(0.7))
        return self.stray if time < self.stray_until else 0.0

    def truth_at(self, stamp_ns: int) -> np.ndarray:
        """(3,) true tip in the patient at the time that a stamp means."""
        if stamp_ns in self.truth:
            return self.truth[stamp_ns]
        return (self.path.pose_at(self.depth((stamp_ns - EPOCH) * 1e-9)) @ self.misplaced)[:3, 3]

    def events(self) -> list[tuple[float, str, Sighting | float]]:
        """Return (arrival, what, sighting) in the order of arrival."""
        times = [(start + step / rate, source) for source, rate in RATES.items()
                 for start in [self.random.uniform(0.0, 1.0 / rate)]
                 for step in range(int(END_S * rate))]
        found: list[tuple[float, str, Sighting | float]] = []
        latest = dict.fromkeys(RATES, 0.0)
        for time, source in sorted(times):
            arrival = latest[source] = max(latest[source] + 1e-4, time + ARRIVES[source] + abs(
                self.random.normal(0.0, 0.01)))
            if source == XRAY:
                found.append((arrival + 0.02, 'anatomy', time))
            needle = self.needle(time)
            seen = self.sighting(source, time, needle)
            if seen is not None:
                self.truth[seen.stamp_ns] = needle[:3, 3]
                found += self._sent(arrival, seen, time)
        return sorted(found, key=lambda event: event[0])

    def _sent(self, arrival: float, seen: Sighting, time: float) -> list:
        """What the connection makes of one message."""
        if seen.source == XRAY:
            return [(arrival, XRAY, seen)]
        if self.is_on('frozen', time):
            return [(arrival, 'frozen', time)]
        if self.is_on('stamps', time):
            seen = replace(seen, stamp_ns=seen.stamp_ns + int(self.off * 1e9))
        if self.is_on('reordered', time):
            arrival += self.fate.uniform(0.0, 0.1)
        copies = [(arrival, ULTRASOUND, seen)]
        if self.is_on('duplicated', time):
            copies.append((arrival + self.fate.uniform(0.0, 0.1), ULTRASOUND, seen))
        return copies


def make_watched(scene: Scene) -> WatchedFusion:
    """Return the fusion as fusion_node makes it with its defaults."""
    covariances = {name: scene.beliefs[frame].covariance for name, frame in FRAMES.items()}
    return WatchedFusion(covariances, needed=covariances)


class Run:
    """Plays one scene to the fusion and keeps score."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.watched, self.result = scene, make_watched(scene), Result()
        self.last_anatomy: float | None = None
        self.published: float | None = None

    def play(self) -> Result:
        """Return the score."""
        next_report = 0.0
        for arrival, what, thing in self.scene.events():
            while next_report < arrival:
                self._report(next_report)
                next_report += 0.1
            if what == 'anatomy':
                self._anatomy(float(thing))
            elif what == 'frozen':
                if float(thing) > self.scene.begin + 0.3:
                    self.watched.told(ULTRASOUND, 'image does not change', self._ns(arrival))
            elif self.watched.arrived(what, thing.stamp_ns, self._ns(arrival)):
                self._fuse(what, thing)
        self._gap(END_S)
        return self.result

    @staticmethod
    def _ns(time: float) -> int:
        return int(time * 1e9) + EPOCH

    def _fuse(self, source: str, seen: Sighting) -> None:
        projection = self.scene.projections[XRAY] if source == XRAY else None
        if source == XRAY:
            self.watched.exposed(seen.stamp_ns)
            if self.result.unseen is None and seen.stamp_ns >= self._ns(self.scene.begin):
                self.result.unseen = len(self.result.squared)
        update = self.watched.fuse(seen, projection)
        if update.state is not None:
            self._score(update.state)
        self.watched.judge(seen, update, projection)

    def _score(self, state) -> None:
        scene, time = self.scene, (state.stamp_ns - EPOCH) * 1e-9
        estimate = self.watched.in_patient(
            self.watched.fusion.filter.estimate(state), scene.beliefs['patient'].transform,
            scene.beliefs['patient'].covariance)
        error = estimate.tip - scene.truth_at(state.stamp_ns)
        squared = float(error @ np.linalg.solve(estimate.covariance[:3, :3], error))
        if time >= scene.begin:
            self.result.squared.append(squared)
            self.result.errors.append(float(np.linalg.norm(error)))
            self._gap(time)
        else:
            self.result.before.append(squared)
        self.published = time

    def _gap(self, time: float) -> None:
        since = max(self.published or self.scene.begin, self.scene.begin)
        self.result.blind = max(self.result.blind, time - since)

    def _anatomy(self, time: float) -> None:
        last, self.last_anatomy = self.last_anatomy, time
        last = -1.0 if last is None else last
        scene, projection = self.scene, self.scene.projections[XRAY]
        if last < scene.begin <= time:
            self.result.xray_s = time - scene.begin
        carm, mounted = scene.room.world_T_carm, scene.room.carm_T_fluoroscopy
        pixels = [projection.pixels(transform_points(
            inverse(carm @ mounted) @ scene.world_T_patient(at), scene.procedure.target))
            for at in (last, time)]
        noise = scene.fate.standard_normal((2, 6)) * TRACKING[XRAY]
        self.watched.anatomy(AnatomyMotion(
            np.append(pixels[1] - pixels[0] + ANATOMY_PX * noise[0, :2] / 1e-4, ANATOMY_PX),
            projection, scene.beliefs[FRAMES[XRAY]].transform, np.diag(TRACKING[XRAY]**2),
            perturbed(carm, noise[1])))

    def _report(self, now: float) -> None:
        report = self.watched.report(self._ns(now))
        for kind in report.faults:
            self.result.found.setdefault(kind, now - self.scene.begin)
        if set(report.faults) - NOT_ALARMS:
            self.result.level = max(self.result.level, report.level)


def summary(fault: str, results: list[Result]) -> dict:
    """Return the figures of one fault over its seeds."""
    expected = EXPECTED[fault]
    times = [min((one.found[kind] for kind in expected if kind in one.found), default=np.inf)
             for one in results]
    others = [sorted(set(one.found) - set(expected) - NOT_ALARMS) for one in results]
    squared = np.concatenate([one.squared for one in results]) if results else np.array([])
    errors = np.concatenate([one.errors for one in results])
    limit = chi2.isf(0.0027, 3)
    found = np.isfinite(times) if expected else np.array([not other for other in others])
    after_xray = [at - one.xray_s for at, one in zip(times, results, strict=True)]
    return {
        'fault': fault, 'runs': len(results), 'found': int(np.sum(found)),
        'seconds_p50': round(float(np.median(times)), 2) if expected else None,
        'seconds_worst': round(float(np.max(times)), 2) if expected else None,
        'after_first_xray_worst': round(float(np.max(after_xray)), 2) if expected else None,
        'other_names': {name: sum(name in other for other in others)
                        for name in sorted({name for other in others for name in other})},
        'poses': len(squared), 'beyond_3_sigma': round(float(np.mean(squared > limit)), 4)
        if squared.size else None,
        'worst_sigma': round(float(np.sqrt(squared.max())), 1) if squared.size else None,
        'tip_mm_p95': round(float(np.percentile(errors, 95)) * 1e3, 2) if errors.size else None,
        'blind_s_p50': round(float(np.median([one.blind for one in results])), 2)}


def main() -> int:
    """Run every fault over the seeds; exit status zero when each is found and named."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--first', type=int, default=1)
    parser.add_argument('--faults', default=','.join(EXPECTED))
    parser.add_argument('--procedure', default='lumbar_facet_injection')
    arguments = parser.parse_args()
    good = True
    for fault in arguments.faults.split(','):
        results = [Run(Scene(seed, fault, arguments.procedure)).play()
                   for seed in range(arguments.first, arguments.first + arguments.seeds)]
        line = summary(fault, results)
        good &= line['found'] == line['runs']
        print(json.dumps(line), flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
