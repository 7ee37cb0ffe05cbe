from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from hybrid_guidance.fusion.holder import Motion
from hybrid_guidance.fusion.needle_filter import Ending, NeedleFilter, Observation
from hybrid_guidance.geometry.covariance import rotate
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import (
    angle_between,
    inverse,
    perpendiculars,
    perturbed,
    pose_along,
    transform,
    transform_points,
)

SLICE = pose_along(np.array([0.0, 0.02, 0.06]), np.array([0.0, 1.0, 0.2]))
ACROSS = SLICE[:3, :3] @ np.array([0.6, -1.0, 0.1]) / 1.17
"""An X-ray that looks across the needle, and across the slice's blind direction."""
BEAM = pose_along(-0.8 * ACROSS, ACROSS)
CALIBRATION = {'ultrasound': np.diag([0.3e-3**2] * 3 + [0.003**2] * 3),
               'fluoroscopy': np.diag([0.3e-3**2] * 3 + [0.0005**2] * 3)}
SLICE_NOISE = np.diag([0.3e-3**2, 0.3e-3**2, 0.8e-3**2, 0.05**2, 0.05**2, 0.01**2])
BLIND = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
"""Across the slice and its tilt: what stays as it is from image to image."""
STEADY = Motion(tip=1e-5, slip=1e-5, direction=1e-5, speed=1e-4, pause=1e3)
"""How the needle of the bench moves."""


def ray_noise(ray: np.ndarray, depth_deviation: float) -> np.ndarray:
    """0.2 mm across the ray and 0.3 degrees, and as much along the ray as asked for."""
    along = np.outer(ray, ray)
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = 0.2e-3**2 * (np.eye(3) - along) + depth_deviation**2 * along
    covariance[3:, 3:] = 0.005**2 * np.eye(3)
    return covariance


class Bench:
    """One needle moving along itself, seen by two sensors whose calibration is a bit wrong."""

    def __init__(self, seed: int, speed: float = 0.004, calibration=CALIBRATION) -> None:
        self.random = np.random.default_rng(seed)
        self.speed = speed
        # Nearly in the slice: needles are led in plane.
        self.start = pose_along(self.random.normal(0, 0.01, 3), SLICE[:3, :3] @ (
            self.random.normal(0, 1, 3) * [0.3, 0.3, 0.03] + [1.0, 0.6, 0.0]))
        self.error = {name: self.random.multivariate_normal(np.zeros(6), covariance)
                      for name, covariance in calibration.items()}
        self.beside = self.random.standard_normal(6)
        self.beside_time = 0.0

    def truth(self, time: float) -> np.ndarray:
        pose = self.start.copy()
        pose[:3, 3] += self.speed * time * pose[:3, 2]
        return pose

    def _seen(self, name: str, sensor: np.ndarray, time: float) -> np.ndarray:
        shown = inverse(sensor) @ self.truth(time)
        return sensor @ perturbed(np.eye(4), self.error[name]) @ shown

    def ultrasound(self, time: float) -> Observation:
        covariance = rotate(SLICE, SLICE_NOISE)
        keep = np.exp(-abs(time - self.beside_time) / STEADY.blind)
        self.beside_time = time
        self.beside = keep * self.beside + (1 - keep**2)**0.5 * self.random.standard_normal(6)
        white = self.random.standard_normal(6)
        noise = np.sqrt(np.diag(SLICE_NOISE)) * np.where(BLIND > 0, self.beside, white)
        pose = perturbed(self._seen('ultrasound', SLICE, time),
                         np.kron(np.eye(2), SLICE[:3, :3]) @ noise)
        return Observation('ultrasound', int(time * 1e9), NeedleEstimate(pose, covariance), SLICE)

    def fluoroscopy(self, time: float) -> Observation:
        """The tip anywhere on its ray, the shaft turned anyhow within its plane."""
        pose = self._seen('fluoroscopy', BEAM, time)
        ray = pose[:3, 3] - BEAM[:3, 3]
        ray /= np.linalg.norm(ray)
        pose = perturbed(pose, self.random.multivariate_normal(np.zeros(6), ray_noise(ray, 0.0)))
        noise = ray_noise(ray, 0.5)
        normal = np.cross(ray, pose[:3, 2])
        normal /= np.linalg.norm(normal)
        noise[3:, 3:] += (np.pi / 2)**2 * np.outer(normal, normal)
        pose = pose_along(pose[:3, 3] + self.random.normal(0, 0.1) * ray, np.cross(normal, ray))
        return Observation('fluoroscopy', int(time * 1e9), NeedleEstimate(pose, noise), BEAM)

    def run(self, needle_filter: NeedleFilter, xray: bool = True, end: float = 3.0) -> None:
        for step in range(int(end * 30)):
            needle_filter.add(self.ultrasound(0.5 + step / 30))
            if xray and step % 15 == 7:
                needle_filter.add(self.fluoroscopy(0.5 + step / 30 + 0.01))


def final_errors(bench: Bench, needle_filter: NeedleFilter) -> tuple[np.ndarray, float, float]:
    state = needle_filter.state
    estimate = needle_filter.estimate(state)
    truth = bench.truth(state.stamp_ns * 1e-9)
    error = estimate.tip - truth[:3, 3]
    nees = float(error @ np.linalg.solve(estimate.covariance[:3, :3], error))
    return error, angle_between(estimate.direction, truth[:3, 2]), nees


def test_fused_covariance_is_honest_under_calibration_errors() -> None:
    """NEES of the tip over 60 independent runs inside its 95 % band (Bar-Shalom 2001, 5.4)."""
    nees = []
    for seed in range(60):
        bench, needle_filter = Bench(seed), NeedleFilter(CALIBRATION, STEADY)
        bench.run(needle_filter)
        nees.append(final_errors(bench, needle_filter)[2])
    low, high = chi2.ppf([0.025, 0.975], 3 * len(nees)) / len(nees)
    assert low < np.mean(nees) < high


def test_xray_corrects_a_poorly_calibrated_probe_across_its_rays() -> None:
    """Closed form: 1 mm and 0.6 mm of lever arm against 0.3 mm and 0.4 mm: a ratio of 0.43."""
    loose = {**CALIBRATION, 'ultrasound': np.diag([1.0e-3**2] * 3 + [0.01**2] * 3)}
    both, alone = [], []
    for seed in range(30):
        for errors, xray in ((both, True), (alone, False)):
            bench = Bench(seed, calibration=loose)
            needle_filter = NeedleFilter(loose, STEADY)
            bench.run(needle_filter, xray=xray)
            across = inverse(BEAM)[:2, :3] @ final_errors(bench, needle_filter)[0]
            errors.append(np.linalg.norm(across))
    assert np.median(both) < 0.6 * np.median(alone)


def test_calibration_error_is_not_averaged_away() -> None:
    """Ten seconds of one sensor leave at least its calibration's deviation."""
    bench, needle_filter = Bench(1, speed=0.0), NeedleFilter(CALIBRATION, Motion(tip=1e-6))
    bench.run(needle_filter, xray=False, end=10.0)
    covariance = needle_filter.estimate(needle_filter.state).covariance
    assert np.linalg.eigvalsh(covariance[:3, :3])[0] > 0.25e-3**2


def test_late_observation_takes_its_place_in_time() -> None:
    in_order, out_of_order = NeedleFilter(CALIBRATION), NeedleFilter(CALIBRATION)
    bench = Bench(3)
    observations = [bench.ultrasound(0.5 + step / 30) for step in range(20)]
    late = bench.fluoroscopy(0.5 + 10.5 / 30)
    for item in [*observations[:11], late, *observations[11:]]:
        in_order.add(item)
    for item in [*observations, late]:
        out_of_order.add(item)
    assert np.allclose(in_order.state.tip, out_of_order.state.tip, atol=1e-12)
    assert np.allclose(in_order.state.covariance, out_of_order.state.covariance, atol=1e-15)


def test_outlier_is_refused_in_words_and_moves_nothing() -> None:
    bench, needle_filter = Bench(4), NeedleFilter(CALIBRATION)
    bench.run(needle_filter)
    before = needle_filter.state
    wrong = bench.ultrasound(3.6)
    shifted = wrong.needle.pose.copy()
    shifted[:3, 3] += 0.02 * np.cross(SLICE[:3, 2], shifted[:3, 2])
    update = needle_filter.add(Observation('ultrasound', wrong.stamp_ns, NeedleEstimate(
        shifted, wrong.needle.covariance), SLICE))
    assert not update.accepted
    assert 'mm' in update.reason
    assert needle_filter.state is before


def test_one_blind_view_does_not_start_the_filter() -> None:
    needle_filter = NeedleFilter(CALIBRATION)
    update = needle_filter.add(Bench(5).fluoroscopy(0.5))
    assert not update.accepted
    assert needle_filter.state is None


def test_insertion_speed_is_estimated() -> None:
    bench, needle_filter = Bench(6, speed=0.008), NeedleFilter(CALIBRATION, Motion(pause=100.0))
    bench.run(needle_filter, end=6.0)
    assert needle_filter.state.speed == pytest.approx(0.008, abs=0.004)


def shortened(observation: Observation, by: float) -> Observation:
    """The same shaft, its visible end ``by`` metres short of the tip."""
    pose = observation.needle.pose.copy()
    pose[:3, 3] -= by * pose[:3, 2]
    return replace(observation, needle=NeedleEstimate(pose, observation.needle.covariance))


def along(bench: Bench, needle_filter: NeedleFilter) -> float:
    """Error of the tip along the shaft, m."""
    error, _, _ = final_errors(bench, needle_filter)
    return float(error @ bench.start[:3, 2])


def test_an_end_that_is_not_the_tip_does_not_pull_the_needle_back() -> None:
    """For half a second the echo ends 4 mm short; the line it draws is used all the same."""
    bench, needle_filter = Bench(8, speed=0.0), NeedleFilter(CALIBRATION)
    bench.run(needle_filter, end=2.0)
    before = along(bench, needle_filter)
    for step in range(15):
        update = needle_filter.add(shortened(bench.ultrasound(2.5 + step / 30), 0.004))
        assert update.accepted
    assert abs(along(bench, needle_filter) - before) < 0.0015
    assert needle_filter.state.ends[0] < 0.5


def test_trust_in_an_end_is_lost_at_once_and_regained_slowly() -> None:
    bench, needle_filter = Bench(9, speed=0.0), NeedleFilter(CALIBRATION, STEADY)
    bench.run(needle_filter, end=2.0)
    trust = [needle_filter.add(shortened(bench.ultrasound(2.5), 0.004)).state.ends[0]]
    trust += [needle_filter.add(bench.ultrasound(2.5 + step / 30)).state.ends[0]
              for step in range(1, 60)]
    ending = Ending()
    floor = 1.0 - ending.tip
    # Closed form: with perfect fits each frame regains the share Δt / memory of what is missing.
    fastest = 1.0 - (1.0 - floor) * (1.0 - 1.0 / 30.0 / ending.memory)**np.arange(60)
    assert trust[0] <= floor
    assert np.all(trust <= fastest + 1e-9)
    assert trust[-1] > 0.5 * (floor + fastest[-1])


def test_a_sure_end_overrules_an_estimate_led_astray() -> None:
    """The echo creeps 5 mm past the tip at the needle's own speed; one X-ray puts it right."""
    bench = Bench(10, speed=0.0)
    endings = {'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True)}
    errors = []
    for chosen in (endings, {'fluoroscopy': Ending()}):
        needle_filter = NeedleFilter(CALIBRATION, endings=chosen)
        for step in range(60):
            needle_filter.add(shortened(bench.ultrasound(0.5 + step / 30), -0.005 * step / 60))
        assert along(bench, needle_filter) > 0.003
        assert needle_filter.add(bench.fluoroscopy(2.6)).accepted
        errors.append(abs(along(bench, needle_filter)))
    # Three σ of one X-ray: its noise, and its calibration with the rotation's lever of 0.8 m.
    bound = 3.0 * np.linalg.norm([0.2e-3, 0.3e-3, 0.8 * 0.0005])
    assert errors[0] < bound < errors[1]


def test_a_line_that_ends_far_off_is_another_line_and_refused() -> None:
    """A band of fascia in line with a needle that is still outside: 35 mm lie between the ends."""
    bench = Bench(11, speed=0.0)
    endings = {'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True)}
    needle_filter = NeedleFilter(CALIBRATION, endings=endings)
    for step in range(30):
        needle_filter.add(shortened(bench.ultrasound(0.5 + step / 30), -0.035))
    before = needle_filter.state
    update = needle_filter.add(bench.fluoroscopy(1.6))
    assert not update.accepted
    assert '35 mm before' in update.reason
    assert needle_filter.state is before


def test_no_doubt_of_the_speed_makes_a_line_beyond_a_sure_end_the_needle() -> None:
    """Two echoes half a second ago: σ along the shaft is 5 mm by now, the ends 15 mm apart."""
    bench = Bench(12, speed=0.0)
    for endings, taken in (({'fluoroscopy': Ending(tip=0.98, memory=0.1, sure=True)}, False),
                           ({}, True)):
        needle_filter = NeedleFilter(CALIBRATION, endings=endings)
        for step in range(2):
            needle_filter.add(shortened(bench.ultrasound(0.5 + step / 30), -0.015))
        assert needle_filter.add(bench.fluoroscopy(1.1)).accepted == taken


def test_where_a_slice_is_blind_many_images_know_no_more_than_one() -> None:
    bench, needle_filter = Bench(11, speed=0.0), NeedleFilter(CALIBRATION, STEADY)
    bench.run(needle_filter, xray=False, end=2.0)
    covariance = needle_filter.estimate(needle_filter.state).covariance[:3, :3]
    blind = SLICE[:3, 2]
    assert 0.5e-3 < float(blind @ covariance @ blind)**0.5 < 1.0e-3


def test_where_a_slice_is_blind_they_know_no_more_when_its_end_of_the_shaft_is_lost() -> None:
    """An end that may be off by 3 mm is less sure than the place across the slice."""
    bench, needle_filter = Bench(11, speed=0.0), NeedleFilter(CALIBRATION, STEADY)
    for step in range(60):
        seen = bench.ultrasound(0.5 + step / 30)
        seen.needle.covariance[:3, :3] += 0.003**2 * np.outer(*[seen.needle.direction] * 2)
        needle_filter.add(seen)
    covariance = needle_filter.estimate(needle_filter.state).covariance[:3, :3]
    assert 0.5e-3 < float(SLICE[:3, 2] @ covariance @ SLICE[:3, 2])**0.5 < 1.0e-3


def test_rotating_the_world_rotates_the_answer() -> None:
    turn = transform(pose_along(np.zeros(3), np.array([1.0, 2.0, -0.5]))[:3, :3],
                     np.array([1.0, 2.0, 3.0]))
    plain, turned, bench = NeedleFilter(CALIBRATION), NeedleFilter(CALIBRATION), Bench(7)
    for step in range(30):
        item = bench.ultrasound(0.5 + step / 30)
        plain.add(item)
        turned.add(Observation(item.source, item.stamp_ns, NeedleEstimate(
            turn @ item.needle.pose, rotate(turn, item.needle.covariance)), turn @ SLICE))
    assert np.allclose(transform_points(turn, plain.state.tip), turned.state.tip, atol=1e-9)
    assert np.allclose(turn[:3, :3] @ plain.state.direction, turned.state.direction, atol=1e-9)


def blind_deviation(needle_filter: NeedleFilter, stamp_ns: int, axis: np.ndarray) -> float:
    """Return σ of the tip along an axis, m."""
    covariance = needle_filter.estimate(needle_filter.predict(stamp_ns)).covariance
    return float(axis @ covariance[:3, :3] @ axis) ** 0.5


def test_a_needle_asked_aside_is_expected_there_less_surely() -> None:
    """2 mm aside by somebody who was never seen to obey: half of it is open, to either side."""
    needle_filter, motion = NeedleFilter(CALIBRATION), Motion()
    Bench(3).run(needle_filter, end=2.0)
    state = needle_filter.state
    across, other = perpendiculars(state.direction)
    told = needle_filter.estimate(state).pose
    told[:3, 3] += 0.002 * across
    later = state.stamp_ns + int(motion.linger * 1e9)
    before = needle_filter.predict(later)
    needle_filter.ask(state.stamp_ns, told)
    moved = needle_filter.predict(later).tip - before.tip
    assert moved @ across == pytest.approx(0.002, abs=1e-5)
    assert abs(moved @ other) < 1e-5
    alone = np.hypot(motion.idle, motion.inexact) * 0.002
    assert alone < blind_deviation(needle_filter, later, across) < np.hypot(alone, 0.0008)
    assert blind_deviation(needle_filter, later, other) < 0.0008


class LedBench(Bench):
    """The needle is asked aside in the slice, to and fro, and does a share of it."""

    def __init__(self, seed: int, done: float) -> None:
        super().__init__(seed, speed=0.0)
        self.done, self.aside = done, 0.0
        self.across = np.cross(SLICE[:3, 2], self.start[:3, 2])

    def truth(self, time: float) -> np.ndarray:
        pose = self.start.copy()
        pose[:3, 3] += self.aside * self.across
        return pose

    def lead(self, needle_filter: NeedleFilter, end: float = 3.0) -> None:
        """Ask for 1.5 mm to one side or the other; it goes there at 6 mm/s."""
        for step in range(int(end * 30)):
            time, wanted = 0.5 + step / 30, 0.0015 * (-1)**(step // 15)
            needle_filter.add(self.ultrasound(time))
            if needle_filter.state is None or step < 15:
                continue
            told = needle_filter.estimate(needle_filter.state).pose
            told[:3, 3] += (wanted - self.aside) * self.across
            needle_filter.ask(needle_filter.state.stamp_ns, told)
            self.aside += self.done * np.clip(wanted - self.aside, -0.0002, 0.0002)


@pytest.mark.parametrize('done', [1.0, 0.0])
def test_how_much_of_what_is_asked_is_done_is_learnt_where_it_is_seen(done: float) -> None:
    """Three seconds in the slice tell what becomes of 2 mm across it."""
    bench, needle_filter = LedBench(5, done), NeedleFilter(CALIBRATION)
    bench.lead(needle_filter)
    state, across = needle_filter.state, SLICE[:3, 2]
    assert 1.0 - state.idle == pytest.approx(done, abs=0.3)
    told = needle_filter.estimate(state).pose
    told[:3, 3] += 0.002 * across
    needle_filter.ask(state.stamp_ns, told)
    later = needle_filter.predict(state.stamp_ns + int(Motion().linger * 1e9))
    assert (later.tip - state.tip) @ across == pytest.approx(0.002 * done, abs=0.0006)


def test_a_needle_that_is_seen_to_wander_is_less_sure_where_it_is_not_seen() -> None:
    """A shaking hand shakes across the slice as much as in it."""
    deviation = {}
    for wander in (0.0, 0.001):
        bench, needle_filter = Bench(13, speed=0.0), NeedleFilter(CALIBRATION)
        bench.run(needle_filter, end=1.0)
        for step in range(60):
            seen = bench.ultrasound(1.5 + step / 30)
            across = np.cross(SLICE[:3, 2], bench.start[:3, 2])
            seen.needle.pose[:3, 3] += wander * np.sin(step) * across
            needle_filter.add(seen)
            asked_for(needle_filter, 0.0)
        deviation[wander] = blind_deviation(
            needle_filter, needle_filter.state.stamp_ns + 500_000_000, SLICE[:3, 2])
    assert deviation[0.001] > 1.3 * deviation[0.0]


def test_an_observation_that_newer_ones_preceded_says_so() -> None:
    needle_filter, bench = NeedleFilter(CALIBRATION), Bench(3)
    observations = [bench.ultrasound(0.5 + step / 30) for step in range(5)]
    assert not any(needle_filter.add(item).late for item in observations)
    assert needle_filter.add(bench.fluoroscopy(0.5 + 2.5 / 30)).late


def asked_for(needle_filter: NeedleFilter, advance: float) -> None:
    """Ask for an advance along the shaft, m, from where the needle is."""
    told = needle_filter.estimate(needle_filter.state).pose
    told[:3, 3] += advance * told[:3, 2]
    needle_filter.ask(needle_filter.state.stamp_ns, told)


def test_a_needle_that_is_asked_to_hold_keeps_its_depth_while_its_end_is_not_seen() -> None:
    """Three seconds of an echo that ends anywhere: only one asked to hold is still known."""
    deviation = {}
    for advance in (None, 0.0, 0.003):
        bench, needle_filter = Bench(8, speed=0.0), NeedleFilter(CALIBRATION)
        bench.run(needle_filter, end=2.0)
        for step in range(90):
            stray = bench.random.choice([-0.015, 0.015])
            assert needle_filter.add(shortened(bench.ultrasound(2.5 + step / 30), stray)).accepted
            if advance is not None:
                asked_for(needle_filter, advance)
        deviation[advance] = blind_deviation(
            needle_filter, needle_filter.state.stamp_ns, bench.start[:3, 2])
    assert deviation[0.0] < 0.0013
    assert min(deviation[0.003], deviation[None]) > 2.5 * deviation[0.0]


def test_a_needle_that_advances_though_it_is_asked_to_hold_is_followed() -> None:
    """2 mm/s for two seconds, its end in every image; what is asked is no knowledge."""
    bench, needle_filter = Bench(8, speed=0.002), NeedleFilter(CALIBRATION)
    bench.run(needle_filter, end=1.0)
    for step in range(60):
        needle_filter.add(bench.ultrasound(1.5 + step / 30))
        asked_for(needle_filter, 0.0)
    sigma = blind_deviation(needle_filter, needle_filter.state.stamp_ns, bench.start[:3, 2])
    assert abs(along(bench, needle_filter)) < min(2.5 * sigma, 0.001)
    assert needle_filter.state.ends[0] > 0.8


def test_what_was_asked_long_ago_leads_no_more() -> None:
    needle_filter, free = NeedleFilter(CALIBRATION), NeedleFilter(CALIBRATION)
    for each in (needle_filter, free):
        Bench(3).run(each, end=2.0)
    stamp = needle_filter.state.stamp_ns
    told = needle_filter.estimate(needle_filter.state).pose
    told[:3, 3] += 0.004 * perpendiculars(needle_filter.state.direction)[0]
    needle_filter.ask(stamp - 1_500_000_000, told)
    across = perpendiculars(free.state.direction)[0]
    assert blind_deviation(needle_filter, stamp + 10**9, across) == pytest.approx(
        blind_deviation(free, stamp + 10**9, across))


def test_a_line_that_points_the_other_way_is_refused_in_words() -> None:
    """As a line it fits; its tip would be where the hub is."""
    needle_filter, bench = NeedleFilter(CALIBRATION), Bench(3)
    bench.run(needle_filter, end=2.0)
    seen = bench.ultrasound(2.02)
    turned = pose_along(seen.needle.tip, -seen.needle.direction)
    update = needle_filter.add(replace(seen, needle=replace(seen.needle, pose=turned)))
    assert not update.accepted
    assert 'the other way' in update.reason
    assert needle_filter.add(seen).accepted
