"""The fusion under watch: what is wrong is found, named and kept from the needle's pose.

``fuse`` is what guides, ``judge`` is what is said about it. A source that was found to be wrong
is not used until the calibration is read again; a registration that may be void carries how far
the patient may have moved.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.fusion.consistency import Agreement, Consistency, Difference, difference
from hybrid_guidance.fusion.faults import (
    ALIKE,
    JUMP,
    OTHER,
    TURN,
    JumpWatch,
    MarkerWatch,
    MirrorWatch,
    Step,
    looks_mirrored,
    mirrored,
)
from hybrid_guidance.fusion.holder import Motion
from hybrid_guidance.fusion.needle_filter import TIP, Ending, NeedleFilter, State, Update
from hybrid_guidance.fusion.needle_fusion import NeedleFusion
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.fusion.patient_shift import AnatomyMotion, PatientShift
from hybrid_guidance.fusion.streams import Fault, Stream
from hybrid_guidance.geometry.covariance import relative
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import angle_between, inverse, transform_points
from hybrid_guidance.geometry.small import squared
from hybrid_guidance.geometry.types import Array, Transform

_SHOWN_NS = 3_000_000_000
_LOST_NS = 700_000_000
_BRIEF_NS = 1_000_000_000
_SURPRISE = 6.0
_LEAST_SPEED, _HASTE_S = 0.002, 2.0
_DRIFT, _DRIFT_S = 0.0012, 0.3
_FAR_ALONG = 0.008
_FITS = 12.0
_POSITIONS = (0, 1, 2), (0, 1, 2)

USUAL_DEPTH = 0.6
"""m from the X-ray source to the anatomy, before a needle tells."""

ENDINGS = {'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True), 'ultrasound': Ending()}
"""Metal ends sharply in an X-ray; an echo ends at fascia and runs on into bone."""

BODIES = {'fluoroscopy': ('C-arm', 'X-ray'), 'ultrasound': ('ultrasound probe', 'ultrasound')}


@dataclass(frozen=True)
class Report:
    """What the modalities say of each other, for people and for programs.

    Attributes:
        state: of the agreement.
        level: 0 good, 1 look at it, 2 do not rely on it.
        words: what contradicts what by how much, and what to do.
        difference: the last comparison, where there was one.
        faults: names of what is wrong.
    """

    state: Agreement
    level: int
    words: str
    difference: Difference | None
    faults: tuple[str, ...]


class WatchedFusion:
    """Fuses needles and watches them.

    Args:
        calibration: source to the (6, 6) covariance of ``mount -> sensor``, in the mount's axes.
        motion: of the needle.
        gate: σ beyond which a needle is refused.
        needed: sources that must have shown the needle before it is published.
        confirm: observations that must agree before.
        recover_s: how long nothing may fit before a needle seen elsewhere takes over.
    """

    def __init__(self, calibration: Mapping[str, Array], motion: Motion | None = None,
                 gate: float = 5.0, needed: Collection[str] = (), confirm: int = 5,
                 recover_s: float = 0.4) -> None:
        self._motion = motion = motion or Motion()
        self.fusion = NeedleFusion(
            lambda: NeedleFilter(calibration, motion, ENDINGS, gate**2), needed, confirm,
            recover_s)
        self.consistency = Consistency(motion)
        self._streams = {name: Stream(name) for name in BODIES}
        self.follows_tissue = False
        self._markers = {name: MarkerWatch() for name in BODIES}
        self._lasting: dict[tuple[str, str], Fault] = {}
        self._passing: dict[str, tuple[Fault, int]] = {}
        self._told: dict[str, tuple[Fault, int]] = {}
        self._distrusted: dict[str, str] = {}
        self._jumps = {name: JumpWatch() for name in BODIES}
        self._flipped: dict[str, int] = dict.fromkeys(BODIES, 0)
        self._mirrored = MirrorWatch()
        self._suspect = False
        self._published: State | None = None
        self._fastest = _LEAST_SPEED
        self._patient = PatientShift()
        self._doubt, self._doubt_ns = 0.0, 0
        self._drift = np.zeros(3)
        self._exposed_ns: int | None = None

    # --- what guides

    def arrived(self, source: str, stamp_ns: int, now_ns: int) -> bool:
        """Tell whether a needle that has just arrived is no copy of one that did before."""
        return self._streams[source].arrived(stamp_ns, now_ns)

    def fuse(self, sighting: Sighting, projection: Projection | None = None) -> Update:
        """Take a needle; ``state`` of the answer is to be published, if there is one.

        Args:
            sighting: the needle.
            projection: of its image, where that is perspective.
        """
        if words := self._distrusted.get(sighting.source):
            return Update(False, reason=words)
        was_confirmed, before = self.fusion.confirmed, self.fusion.filter.state
        followed = self.fusion.filter
        update = self.fusion.add(self._weakened(sighting).observation)
        if self.fusion.filter is not followed and (
                before is None or update.state is None
                or np.linalg.norm(update.state.tip - before.tip) > OTHER):
            self._published = None  # Another needle: it has not stepped there.
        if update.reason and update.accepted:
            self._pass('restart', update.reason, sighting.stamp_ns)
        jumps = self._jumps[sighting.source]
        if was_confirmed and before is not None and (
                jumps.is_open or update.distance > _SURPRISE):
            self._surprised(sighting, before)
        if update.state is None:
            return update
        if not was_confirmed:
            # The first that speaks for both: compare before anybody acts on it.
            self._compare(sighting, projection)
        if self._suspect or (self.consistency.contradicting and not self._refused()):
            return replace(update, accepted=False, state=None, reason=(
                'ultrasound and X-ray contradict each other; no mean of them is a needle'))
        self._note_step(update.state, sighting.source)
        # Of a late image's moment a newer one may have told more; that was published.
        return replace(update, state=None) if update.late else update

    @property
    def unsettled(self) -> str:
        """What only another X-ray can tell, while no pose is published for it; '' if nothing."""
        if self._mirrored.turned:
            return 'whether the ultrasound image is mirrored'
        if self.consistency.contradicting and not self._refused():
            return 'whether ultrasound and X-ray still contradict each other'
        return ''

    @property
    def doubt(self) -> float:
        """m, deviation by which the patient may have moved since it was registered."""
        return max(self._patient.doubt, self._doubt,
                   *(jumps.size for jumps in self._jumps.values()))

    @property
    def lag(self) -> float:
        """How far along the shaft, m, the needle may be elsewhere where stamps are in doubt.

        All images are off as much; no mean of them knows it better than one.
        """
        return max(stream.doubt_s for stream in self._streams.values()) * self._fastest

    def in_patient(self, needle: NeedleEstimate, registration: Transform,
                   covariance: Array) -> NeedleEstimate:
        """Take a needle from the world to the patient, who may have moved.

        Args:
            needle: in the world.
            registration: (4, 4) ``world_T_patient``.
            covariance: (6, 6) of it, when it was made.
        """
        covariance, known = covariance.copy(), needle.covariance.copy()
        covariance[_POSITIONS] += self.doubt**2
        known[:3, :3] += self.lag**2 * squared(needle.direction)
        return NeedleEstimate(inverse(registration) @ needle.pose, relative(
            registration, covariance, needle.pose, known))

    def _weakened(self, sighting: Sighting) -> Sighting:
        """Let a needle whose stamp is in doubt be anywhere it was in the meantime."""
        doubt, state = self._streams[sighting.source].doubt_s, self.fusion.filter.state
        if not doubt or state is None:
            return sighting
        needle = sighting.needle
        reach = doubt * (abs(state.speed) + _LEAST_SPEED)
        covariance = needle.covariance.copy()
        covariance[:3, :3] += reach**2 * squared(needle.direction)
        return replace(sighting, needle=replace(needle, covariance=covariance))

    def _refused(self) -> bool:
        """Tell whether the filter believes at most one of the two that contradict."""
        found = self.consistency.difference
        return found is None or any(
            self.fusion.refused(name, found.stamp_ns - _LOST_NS) for name in BODIES)

    def _surprised(self, sighting: Sighting, before: State) -> None:
        """Look whether a needle that fits badly has jumped."""
        source = sighting.source
        jump = self._jumps[source].see(sighting, before)
        if jump is None:
            return
        size = float(np.linalg.norm(jump))
        self._doubtful(size, sighting.stamp_ns)
        # Where tissue is followed, it tells by itself whether the patient has moved.
        if (self._markers[source].is_still and not self._distrusted
                and not self.follows_tissue):
            self._patient.jumped(jump, BODIES[source][1])

    def _note_step(self, state: State, source: str) -> None:
        """Notice where the published pose goes where it was not going by itself."""
        last = self._published
        if last is None or state.stamp_ns > last.stamp_ns:
            self._published = state
            # With stamps in doubt the speed is, too: it is then taken for what it was before.
            since = (state.stamp_ns - last.stamp_ns) * 1e-9 if last and not self.lag else 0.0
            self._fastest = max(abs(state.speed), _LEAST_SPEED, self._fastest * math.exp(
                -since / _HASTE_S))
        if state.stamp_ns - self._doubt_ns > _SHOWN_NS:
            self._doubt = 0.0
        since = (state.stamp_ns - last.stamp_ns) * 1e-9 if last is not None else np.inf
        if last is None or abs(since) > 10.0:
            return
        foretold = self.fusion.filter.foretell(last, state.stamp_ns)
        moved = state.tip - foretold.tip
        if since > 0.0 and not self.follows_tissue:
            self._note_drift(moved, since, state.stamp_ns)
        size, unforeseen = self._step(moved, foretold, state)
        if size < JUMP:
            return
        if unforeseen:
            self._pass('step', (f"the needle's pose has stepped by {size * 1e3:.1f} mm: "
                                f'{BODIES[source][1]} shows it there'), state.stamp_ns)
        if self.follows_tissue:
            # It tells by itself whether the patient moved, but across the slice; and an end of a
            # shaft that was taken for the tip makes a step along the shaft.
            moved = moved - (moved @ last.direction) * last.direction
            size, unforeseen = self._step(moved, foretold, state)
            unforeseen &= size > JUMP
        elif source != 'ultrasound':
            unforeseen = True  # Until an X-ray's anatomy tells whether the patient moved.
        if unforeseen:
            self._doubtful(size, state.stamp_ns)

    @staticmethod
    def _step(moved: Array, foretold: State, state: State) -> tuple[float, bool]:
        """Return how long a step is, m, and whether it is one that σ does not foresee.

        Of two states the surer one was made with an image that the other did not know of.
        """
        size = max(math.sqrt(float(moved @ moved)), 1e-12)
        variance = max(float(moved @ each.covariance[TIP, TIP] @ moved)
                       for each in (foretold, state)) / size**2
        return size, size > 3.0 * variance**0.5

    def _note_drift(self, moved: Array, since: float, stamp_ns: int) -> None:
        """Notice what is taken for movement, a little in each image, and was one step."""
        self._drift = math.exp(-since / _DRIFT_S) * self._drift + moved
        drift = math.sqrt(float(self._drift @ self._drift))
        if drift > _DRIFT:
            self._doubtful(drift, stamp_ns - _SHOWN_NS + _BRIEF_NS)

    def _doubtful(self, size: float, stamp_ns: int) -> None:
        self._doubt, self._doubt_ns = max(self._doubt, size), max(self._doubt_ns, stamp_ns)

    # --- what is said about it

    def judge(self, sighting: Sighting, update: Update,
              projection: Projection | None = None) -> Difference | None:
        """Look for what is wrong; return how both modalities compare, where they can be."""
        step = self._markers[sighting.source].see(sighting)
        if step is not None:
            self._slipped(sighting.source, step)
        if update.accepted or sighting.source in self._distrusted:
            self._flipped[sighting.source] = 0
        elif self.fusion.confirmed:
            self._explain(sighting)
        return self._compare(sighting, projection)

    def _compare(self, sighting: Sighting, projection: Projection | None) -> Difference | None:
        if projection is None and sighting.source != 'ultrasound':
            return None  # Its camera_info has not come yet.
        found = self.consistency.see(sighting, projection)
        seen, line = self.consistency.pair
        if found is None or seen is None or line is None:
            return found
        self._suspect = False
        wrong = found.contradicts or abs(found.along) > _FAR_ALONG
        # A line that the needle's own track has refused is fascia as likely as a mirrored needle.
        # `_explain` tells whether it is where the needle would be, left and right swapped.
        other_line = self.fusion.confirmed and self.fusion.refused(seen.source, seen.stamp_ns)
        if not self._distrusted and (self._mirrored.turned or not other_line):
            self._weigh_mirrored(found, difference(mirrored(seen), *line, self._motion), wrong,
                                 line[0].stamp_ns)
        return found

    def _weigh_mirrored(self, found: Difference, other: Difference, wrong: bool,
                        xray_ns: int) -> None:
        """Compare how a needle fits the X-ray as it is, and with left and right swapped."""
        watch, was_turned = self._mirrored, self._mirrored.turned
        watch.see(found, other, xray_ns)
        self._suspect = watch.turned or (
            wrong and other.squared < _FITS and abs(other.along) < 0.5 * abs(found.along))
        if watch.turned:
            self._mirror('ultrasound', found.stamp_ns)
            if not was_turned:
                self.fusion.restart()

    def _slipped(self, source: str, step: Step) -> None:
        body, image = BODIES[source]
        # The last few images have drawn the needle that way already.
        self._doubtful(step.distance, self._markers[source].latest_ns)
        self._distrust(source, Fault('marker', (
            f"the {body}'s marker or calibration has moved: its tracked pose stepped by "
            f'{np.degrees(step.angle):.1f}° and {step.distance * 1e3:.1f} mm while its image '
            f'stayed the same. {image} is not used; fix the marker, calibrate, and call '
            'fusion/reload_calibration'), grave=True))

    def _mirror(self, source: str, stamp_ns: int) -> None:
        """Say it as long as it is seen: a look-alike can lie that way, too, for a while."""
        image = BODIES[source][1]
        self._pass('mirrored', (
            f'the {image} image seems to be mirrored: its needle fits once left and right are '
            'swapped. It is not used until X-rays show otherwise; turn the probe or the image '
            'round, or expose'),
            stamp_ns, grave=True)

    def _explain(self, sighting: Sighting) -> None:
        """Say why a needle is not where it should be, once several images say the same."""
        state = self.fusion.filter.predict(sighting.stamp_ns)
        if state is None:
            return
        source = sighting.source
        turned = angle_between(sighting.observation.needle.direction, state.direction)
        flipped = looks_mirrored(sighting, state) and turned > 2.0 * TURN
        self._flipped[source] = self._flipped[source] + 1 if flipped else 0
        if self._flipped[source] >= ALIKE:
            self._mirror(source, sighting.stamp_ns)
            if source == 'ultrasound':
                self._mirrored.told()

    def anatomy(self, motion: AnatomyMotion) -> None:
        """Take how far an X-ray's anatomy moved since the X-ray before it."""
        state = self.fusion.filter.state
        if state is not None and self.fusion.found:
            point = state.tip
        else:
            point = transform_points(motion.world_T_mount @ motion.mount_T_sensor,
                                     np.array([0.0, 0.0, USUAL_DEPTH]))
        self._doubt = 0.0
        self._patient.see(motion, point)

    def exposed(self, stamp_ns: int) -> None:
        """Take that there is an X-ray, whatever it shows."""
        if stamp_ns > (self._exposed_ns or 0):
            self._exposed_ns = stamp_ns
            self.fusion.taken('fluoroscopy', stamp_ns)

    def told(self, source: str, words: str, now_ns: int) -> None:
        """Take what a tracker says of its images; nothing, when they are good again."""
        self._told.pop(source, None)
        if words:
            self._told[source] = Fault('frozen' if 'does not change' in words else 'tracker',
                                       f'{source} tracker: {words}'), now_ns

    def report(self, now_ns: int) -> Report:
        """Return what is to be said now."""
        faults = self._faults(now_ns)
        state, found = self.consistency.state(now_ns), self.consistency.difference
        if state is Agreement.CONTRADICTING and found is not None and not self._distrusted:
            faults.append(Fault('contradiction', (
                f'ultrasound and X-ray contradict each other: {abs(found.pixels):.0f} px '
                f'({found.millimetres:.1f} mm, χ² {found.squared:.0f} of 2). Look which of them '
                'follows the needle; if both do, a marker or calibration has moved'), grave=True))
        level = max((2 if fault.grave else 1 for fault in faults), default=0)
        words = '; '.join(fault.words for fault in faults) or self._good(state, found)
        return Report(state, level, words, found, tuple(fault.kind for fault in faults))

    @staticmethod
    def _good(state: Agreement, found: Difference | None) -> str:
        if state is Agreement.CONSISTENT and found is not None:
            return (f'ultrasound and X-ray agree: {abs(found.pixels):.1f} px, '
                    f'{found.sigma:.1f} σ')
        return {Agreement.NONE: 'no modality shows a needle',
                Agreement.ONLY_ONE: 'only one modality shows the needle, or the last X-ray is '
                                    'too old to compare'}.get(state, 'not compared yet')

    def _faults(self, now_ns: int) -> list[Fault]:
        faults = list(self._lasting.values())
        if self._patient.fault is not None:
            faults.append(self._patient.fault)
        faults += [fault for fault, at in self._passing.values() if now_ns - at < _SHOWN_NS]
        faults += [fault for fault, at in self._told.values() if now_ns - at < _SHOWN_NS]
        for stream in self._streams.values():
            faults += stream.faults(now_ns)
        return faults + self._lost(now_ns)

    def _lost(self, now_ns: int) -> list[Fault]:
        if not self.fusion.found:
            return []
        lost, newest = [], self._streams['ultrasound'].newest_ns
        if newest is not None and now_ns - newest > _LOST_NS:
            lost.append(Fault('lost', (
                f'ultrasound has shown no needle for {(now_ns - newest) * 1e-9:.1f} s: the pose '
                'rests on X-ray alone; bring the needle back into the slice')))
        xray = self._streams['fluoroscopy'].newest_ns
        if xray is not None and self._exposed_ns is not None and (
                self._exposed_ns > xray and now_ns - self._exposed_ns > _LOST_NS):
            lost.append(Fault('lost', (
                'the last X-ray shows no needle: the pose rests on ultrasound alone; see whether '
                'the needle is in the picture')))
        return lost

    def _distrust(self, source: str, fault: Fault) -> None:
        self._lasting[fault.kind, source] = fault
        self._distrusted[source] = fault.words

    def _pass(self, kind: str, words: str, stamp_ns: int, grave: bool = False) -> None:
        self._passing[kind] = Fault(kind, words, grave=grave), stamp_ns

