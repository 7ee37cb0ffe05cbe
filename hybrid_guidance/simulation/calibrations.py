"""Simulated recordings for calibrations: noise, slow bias and outliers, and the truth behind them.

Everything comes from a seeded generator. Outliers are gross: a marker that the tracker took for
another, a wire or bead taken for its neighbour.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Image, Pixels, Points, Transform


@dataclass(frozen=True)
class Errors:
    """What spoils a recording.

    Attributes:
        position: metres, standard deviation of each coordinate of a pose.
        rotation: radians, standard deviation about each axis.
        pixel: px, standard deviation of each coordinate in an image.
        bias: metres, amplitude of a slow drift of poses.
        outliers: share of samples that are grossly wrong.
    """

    position: float = 0.25e-3
    rotation: float = np.deg2rad(0.1)
    pixel: float = 0.2
    bias: float = 0.1e-3
    outliers: float = 0.05


def smooth(random: Generator, times: Array, channels: int, period: float) -> Array:
    """Return (N, channels) of hand-like motion: a few sines each, standard deviation about one."""
    waves = np.zeros((len(times), channels))
    for channel in range(channels):
        for harmonic in (1.0, 1.7, 2.3):
            phase, rate = random.uniform(0.0, 2.0 * np.pi), random.uniform(0.85, 1.15)
            waves[:, channel] += np.sin(2.0 * np.pi * harmonic * rate * times / period
                                        + phase) / harmonic
    return waves


def random_pose(random: Generator, reach: float = 0.3) -> Transform:
    """Return a pose anywhere within a box, turned anyhow."""
    axis = random.normal(size=3)
    vector = axis / np.linalg.norm(axis) * random.uniform(0.0, np.pi)
    return rigid.transform(rigid.rotation_from_vector(vector), random.uniform(-reach, reach, 3))


def spoiled(random: Generator, poses: Array, errors: Errors) -> Array:
    """Return (N, 4, 4) poses as a tracker reports them."""
    drift = errors.bias * smooth(random, np.arange(len(poses)) / max(len(poses), 1), 3, 1.0)
    noisy = []
    for pose, slow in zip(poses, drift, strict=True):
        offset = np.concatenate([slow + random.normal(0.0, errors.position, 3),
                                 random.normal(0.0, errors.rotation, 3)])
        if random.random() < errors.outliers:
            offset[:3] += random.normal(0.0, 0.02, 3)
            offset[3:] += random.normal(0.0, 0.1, 3)
        # About the marker itself: the world's origin is no lever.
        turn = rigid.rotation_from_vector(offset[3:])
        noisy.append(rigid.transform(turn @ pose[:3, :3], pose[:3, 3] + offset[:3]))
    return np.array(noisy)


def pivoting(random: Generator, count: int, tip: Points, errors: Errors) -> Array:
    """Return (N, 4, 4) poses of a pointer's marker that turns about its tip by about 25°."""
    times = np.linspace(0.0, 20.0, count)
    vectors = smooth(random, times, 3, 5.0) * np.deg2rad(18.0)
    base, pivot = random_pose(random)[:3, :3], random.uniform(-0.3, 0.3, 3)
    poses = []
    for vector in vectors:
        rotation = rigid.rotation_from_vector(vector) @ base
        poses.append(rigid.transform(rotation, pivot - rotation @ tip))
    return spoiled(random, np.array(poses), errors)


@dataclass(frozen=True)
class SweepTruth:
    """A recording over an N-wire phantom or a point, and what is true of it.

    Attributes:
        times: (N,) seconds of images.
        pixels: (N, K, 3, 2) of wires, or (N, 2) of the point.
        tracked_times: (M,) seconds of poses.
        tracked: (M, 4, 4) ``phantom_T_probe`` as tracked.
    """

    times: Array
    pixels: Pixels
    tracked_times: Array
    tracked: Array


def sweep_wires(random: Generator, wires: Points, probe_T_image: Transform,
                spacing: tuple[float, float], origin: tuple[float, float], seconds: float,
                errors: Errors, delay: float = 0.0, rate: float = 10.0) -> SweepTruth:
    """Return a free-hand sweep over an N-wire phantom.

    Args:
        random: source of everything.
        wires: (K, 3, 2, 3) metres in the phantom's frame; outer wires along y, depth along -z.
        probe_T_image: truth.
        spacing: metres per pixel.
        origin: pixel of the image frame's origin.
        seconds: length of the recording.
        errors: of tracking and of finding wires.
        delay: seconds by which images are stamped late.
        rate: images a second.
    """
    times = np.arange(0.5, seconds, 1.0 / rate)
    track = np.arange(0.0, seconds + 0.5, 0.5 / rate)
    motion = smooth(random, track, 6, 12.0)
    middle = wires.reshape(-1, 3).mean(axis=0)
    # The image looks down: its x along the phantom's x, depth along -z, elevation along y.
    down = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    poses = []
    for wave in motion:
        turn = rigid.rotation_from_vector(np.deg2rad([6.0, 6.0, 8.0]) * wave[3:])
        place = middle + np.array([1.5e-3, 8e-3, 3e-3]) * wave[:3] + [0.0, 0.0, 0.035]
        poses.append(rigid.transform(turn @ down, place))
    phantom_T_image = np.array(poses)
    pixels = np.array([_cut(wires, _between(track, phantom_T_image, time - delay), spacing, origin)
                       for time in times])
    pixels += random.normal(0.0, errors.pixel, pixels.shape)
    wrong = random.random(len(times)) < errors.outliers
    pixels[wrong, :, 1] += random.normal(0.0, 60.0, pixels[wrong, :, 1].shape)
    tracked = phantom_T_image @ rigid.inverse(probe_T_image)
    return SweepTruth(times, pixels, track, spoiled(random, tracked, errors))


def _between(times: Array, poses: Array, at: float) -> Transform:
    index = int(np.clip(np.searchsorted(times, at) - 1, 0, len(times) - 2))
    return rigid.interpolate(poses[index], poses[index + 1],
                             (at - times[index]) / (times[index + 1] - times[index]))


def _cut(wires: Points, phantom_T_image: Transform, spacing: tuple[float, float],
         origin: tuple[float, float]) -> Pixels:
    """Return the (K, 3, 2) pixels where the slice cuts the wires."""
    image_T_phantom = rigid.inverse(phantom_T_image)
    ends = rigid.transform_points(image_T_phantom, wires)
    share = ends[..., 0, 2] / (ends[..., 0, 2] - ends[..., 1, 2])
    cut = ends[..., 0, :] + share[..., None] * (ends[..., 1, :] - ends[..., 0, :])
    return np.asarray(cut[..., :2] / spacing + np.array(origin))


def sweep_point(random: Generator, probe_T_image: Transform, spacing: tuple[float, float],
                origin: tuple[float, float], count: int, errors: Errors) -> SweepTruth:
    """Return images of one fixed point from all sides; pose and image at the same times."""
    point = random.uniform(-0.05, 0.05, 3)
    pixels = random.uniform((150.0, 150.0), (650.0, 550.0), (count, 2))
    poses = []
    for pixel in pixels:
        turn = rigid.rotation_from_vector(random.normal(0.0, np.deg2rad(22.0), 3))
        local = np.array([*(pixel - origin) * spacing, 0.0])
        poses.append(rigid.transform(turn, point - turn @ local) @ rigid.inverse(probe_T_image))
    pixels = pixels + random.normal(0.0, errors.pixel, pixels.shape)
    pixels[random.random(count) < errors.outliers] += 60.0
    times = np.arange(count, dtype=float) * 0.1
    return SweepTruth(times, pixels, times, spoiled(random, np.array(poses), errors))


def bobbing(random: Generator, delay: float, seconds: float, errors: Errors,
            jitter: float = 0.0) -> tuple[Array, Array, Array, Array]:
    """Return a probe bobbing over a floor: image times and px, pose times and (M, 4, 4) poses.

    Images come at 30 Hz and are stamped ``delay`` late, with ``jitter`` (standard deviation, s).
    """
    track = np.arange(-1.0, seconds + 1.0, 1.0 / 50.0)
    wave = 0.010 * smooth(random, np.concatenate([track, np.arange(0.0, seconds, 1.0 / 30.0)]),
                          1, 1.4)[:, 0]
    height, seen = wave[:len(track)], wave[len(track):]
    taken = np.arange(0.0, seconds, 1.0 / 30.0)
    poses = np.tile(np.eye(4), (len(track), 1, 1))
    poses[:, :3, 3] = height[:, None] * [0.1, 0.97, 0.2] + 0.05
    floor = 300.0 + seen / 0.08e-3 + random.normal(0.0, 1.0, len(seen))
    floor[random.random(len(seen)) < errors.outliers] += 60.0
    stamps = taken + delay + random.normal(0.0, jitter, len(taken))
    return np.sort(stamps), floor, track, spoiled(random, poses, Errors(
        errors.position, errors.rotation, errors.pixel, errors.bias, 0.0))


def robot_poses(random: Generator, count: int, flange_T_eye: Transform,
                errors: Errors) -> tuple[Array, Array]:
    """Return (N, 4, 4) ``base_T_flange`` and ``eye_T_target`` of a robot looking at a target."""
    target = rigid.transform(random_pose(random)[:3, :3], np.array([0.1, 0.0, 0.4]))
    hands, seen = [], []
    for _ in range(count):
        turn = rigid.rotation_from_vector(random.normal(0.0, np.deg2rad(20.0), 3))
        eye_T_target = rigid.transform(turn, np.array([0.0, 0.0, 0.3]) + random.normal(
            0.0, 0.04, 3))
        hands.append(target @ rigid.inverse(eye_T_target) @ rigid.inverse(flange_T_eye))
        seen.append(eye_T_target)
    robot = Errors(0.1e-3, np.deg2rad(0.03), 0.0, 0.0, 0.0)
    return spoiled(random, np.array(hands), robot), spoiled(random, np.array(seen), errors)


def scatter_beads(random: Generator, count: int, extent: Points, apart: float) -> Points:
    """Return (N, 3) beads in a box, no two closer than ``apart`` (metres)."""
    beads: list[Array] = []
    while len(beads) < count:
        bead = random.uniform(-0.5, 0.5, 3) * extent
        if all(np.linalg.norm(bead - other) > apart for other in beads):
            beads.append(bead)
    return np.array(beads)


def bead_pixels(random: Generator, beads: Points, optical_T_beads: Transform, camera: Array,
                errors: Errors, distortion: Array | None = None) -> Pixels:
    """Return the (N, 2) pixels of beads, some of them another's."""
    pixels, _ = cv2.projectPoints(beads, cv2.Rodrigues(optical_T_beads[:3, :3])[0],
                                  optical_T_beads[:3, 3], camera, distortion)
    pixels = pixels[:, 0] + random.normal(0.0, errors.pixel, (len(beads), 2))
    for index in np.flatnonzero(random.random(len(beads)) < errors.outliers):
        pixels[index] = pixels[(index + 1) % len(beads)]
    return np.asarray(pixels)


def bead_image(random: Generator, centres: Pixels, radius: float, size: tuple[int, int],
               counts: float = 4000.0) -> Image:
    """Return a (H, W) uint16 X-ray image of beads over a slope, with Poisson noise."""
    rows, columns = np.mgrid[:size[1], :size[0]].astype(float)
    light = counts * (1.0 - 0.3 * columns / size[0])
    for u, v in centres:
        distance = np.hypot(columns - u, rows - v)
        # Chord of a steel ball, smoothed by the detector's own blur at its edge.
        chord = np.sqrt(np.maximum(radius**2 - np.minimum(distance, radius) ** 2, 0.0))
        light *= np.exp(-1.2 * chord / radius)
    return np.asarray(random.poisson(cv2.GaussianBlur(light, (0, 0), 0.6)), np.uint16)
