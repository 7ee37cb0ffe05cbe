"""Images made analytically: nothing of the detectors or of the simulator is used to make them."""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.special import ndtr

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import Frame


@dataclass(frozen=True)
class Scene:
    """An image with the needle that is in it: tip (2,) px, angle of its direction in rad."""

    frame: Frame
    tip: np.ndarray
    angle: float
    length: float

    @property
    def direction(self) -> np.ndarray:
        return np.array([np.cos(self.angle), np.sin(self.angle)])


def as_frame(pixels: np.ndarray) -> Frame:
    pixels = np.ascontiguousarray(pixels)
    return Frame(pixels, 0, Projection.uncalibrated(pixels.shape[::-1]))


def shaft_coordinates(shape: tuple[int, int], tip: np.ndarray, angle: float
                      ) -> tuple[np.ndarray, np.ndarray]:
    """Return (s, x) of every pixel: px beyond the tip, and px across the shaft."""
    v, u = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return ((u - np.float32(tip[0])) * cosine + (v - np.float32(tip[1])) * sine,
            (v - np.float32(tip[1])) * cosine - (u - np.float32(tip[0])) * sine)


def line_profile(s: np.ndarray, x: np.ndarray, length: float, sigma: float, blur: float
                 ) -> np.ndarray:
    """Return a line of unit height, Gaussian across, error functions at both ends."""
    result = np.zeros_like(s)
    near = (np.abs(x) < 5.0 * sigma + 1.0) & (s < 6.0 * blur) & (s > -length - 6.0 * blur)
    along = ndtr(-s[near] / blur) - ndtr((-s[near] - length) / blur)
    result[near] = np.exp(-0.5 * (x[near] / sigma) ** 2) * along
    return result


def moved(tip: np.ndarray, angle: float, step: tuple[float, float]) -> np.ndarray:
    """Return a tip some px farther along its direction and across it."""
    return tip + step[0] * np.array([np.cos(angle), np.sin(angle)]) + step[1] * np.array(
        [-np.sin(angle), np.cos(angle)])


def xray_scene(seed: int, needle: bool = True, size: int = 640, hub: bool = True,
               step: tuple[float, float] = (0.0, 0.0)) -> Scene:
    """Counts behind soft tissue, bones with edges, ribs and blobs, with Poisson noise.

    A step moves the needle by px along and across its shaft, before the same background.
    """
    random = np.random.default_rng([seed, 1])
    shape = (size, size)
    soft = random.normal(size=(size // 90, size // 90)).astype(np.float32)
    attenuation = 0.4 * cv2.resize(soft, shape, interpolation=cv2.INTER_CUBIC)
    for _ in range(3):
        bone = np.zeros(shape, np.float32)
        centre = tuple(int(c) for c in random.uniform(0, size, 2))
        cv2.circle(bone, centre, int(random.uniform(60, 300)), random.uniform(0.05, 0.3), -1)
        attenuation += cv2.GaussianBlur(bone, (0, 0), random.uniform(1.5, 5.0))
    for _ in range(2):
        rib = np.zeros(shape, np.float32)
        centre = tuple(int(c) for c in random.uniform(-size, 2 * size, 2))
        reach = int(np.hypot(*(np.array(centre) - size / 2)) + random.uniform(-150, 150))
        cv2.circle(rib, centre, max(reach, 50), random.uniform(0.05, 0.15),
                   int(random.uniform(25, 60)))
        attenuation += cv2.GaussianBlur(rib, (0, 0), 3.0)
    tip, angle = random.uniform(0.3, 0.7, 2) * size, random.uniform(-np.pi, np.pi)
    length, sigma = random.uniform(90, 300), random.uniform(0.9, 1.6)
    tip = moved(tip, angle, step)
    s, x = shaft_coordinates(shape, tip, angle)
    if needle:
        attenuation += random.uniform(0.25, 0.45) * line_profile(s, x, length, sigma, 1.0)
    if needle and hub:
        barrel = (np.abs(x) < 8.0) & (s < -length) & (s > -length - 50.0)
        attenuation += cv2.GaussianBlur(np.float32(0.35) * barrel, (0, 0), 1.0)
    counts = random.poisson(random.uniform(300, 1500) * np.exp(-attenuation))
    blurred = cv2.GaussianBlur(counts.astype(np.float32), (0, 0), 0.6)
    return Scene(as_frame((12.0 * blurred).astype(np.uint16)), tip, angle, length)


def _fascia(random: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    height, width = v.shape
    depth = (random.uniform(0.1, 0.9) * height + random.uniform(-0.08, 0.08) * (u - width / 2)
             + random.uniform(2, 6) * np.sin(u / random.uniform(80, 200) + random.uniform(0, 6)))
    return random.uniform(15, 60) * np.exp(-0.5 * ((v - depth) / random.uniform(1.5, 3)) ** 2)


def bone_arc(random: np.random.Generator, u: np.ndarray, v: np.ndarray
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (W,) depth of a round bone in px (nan beside it), its echo, and its shadow."""
    height, width = v.shape
    radius = random.uniform(70, 180)
    centre = random.uniform(0.3, 0.7) * width
    top = random.uniform(0.55, 0.75) * height
    offset = np.arange(width) - centre
    depth = np.where(np.abs(offset) < 0.8 * radius,
                     top + radius - np.sqrt(np.maximum(radius**2 - offset**2, 0.0)), np.nan)
    below = np.nan_to_num(v - depth, nan=-1e3)
    slope = np.nan_to_num(np.sqrt(np.maximum(radius**2 - offset**2, 0.0)) / radius)
    echo = random.uniform(250, 500) * slope**2 * np.exp(-0.5 * (below / 2.5) ** 2)
    return depth, echo, np.where(below > 0.0, 0.03, 1.0)


def ultrasound_scene(seed: int, needle: bool = True, bone: bool = True,
                     shape: tuple[int, int] = (480, 640),
                     step: tuple[float, float] = (0.0, 0.0), longer: float = 0.0) -> Scene:
    """Speckle, fascia, bone and a needle with reverberation; log-compressed to 60 dB.

    A step moves the needle by px along and across its shaft, before the same background. Some
    hundred px longer, it leaves the sector.
    """
    random = np.random.default_rng([seed, 2])
    v, u = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    height, width = shape
    steady = sum(_fascia(random, u, v) for _ in range(4))
    shadow: np.ndarray | float = 1.0
    if bone:
        _, echo, shadow = bone_arc(random, u, v)
        steady = steady + echo
    side, tilt = random.choice([-1.0, 1.0]), np.deg2rad(random.uniform(25, 65))
    tip = np.array([width / 2 + side * random.uniform(-60, 60), random.uniform(0.3, 0.5) * height])
    angle = float(np.arctan2(np.cos(tilt), -side * np.sin(tilt)))
    length = random.uniform(100, 200) + longer
    tip = moved(tip, angle, step)
    s, x = shaft_coordinates(shape, tip, angle)
    sigma, height_of_echo = random.uniform(1.8, 2.6), random.uniform(120, 250)
    if needle:
        uneven = 1.0 + 0.15 * np.sin(s / random.uniform(10, 30) + random.uniform(0, 6))
        line = height_of_echo * uneven * line_profile(s, x, length, sigma, 2.0)
        ringing = np.zeros_like(line)
        ringing[4:] += 0.2 * line[:-4]
        ringing[8:] += 0.04 * line[:-8]
        steady = steady + line + ringing
    tissue = random.uniform(6, 12) * shadow
    real, imaginary = (cv2.GaussianBlur(random.standard_normal(shape, np.float32), (0, 0),
                                        sigmaX=2.0, sigmaY=1.2) * 5.5 for _ in range(2))
    echo = np.hypot(tissue * real + steady, tissue * imaginary)
    grey = 255.0 / 60.0 * (20.0 * np.log10(np.maximum(echo, 1e-3)))
    pixels = np.clip(grey, 0.0, 255.0).astype(np.uint8)
    bearing = np.arctan2(u - width / 2, v + 250.0)
    reach = np.hypot(u - width / 2, v + 250.0)
    pixels[(np.abs(bearing) > 0.6) | (reach < 262.0) | (reach > height + 240.0)] = 0
    return Scene(as_frame(pixels), tip, angle, length)


def plus_frames(path: Path, step: int = 1) -> np.ndarray:
    """Return (N, H, W) uint8 of a compressed PLUS recording, every ``step``-th frame."""
    if not path.exists():
        pytest.skip(f'{path.name} is not there: the recordings are not part of the source')
    content = path.read_bytes()
    start = content.index(b'\n', content.index(b'ElementDataFile')) + 1
    found = re.search(r'DimSize = (\d+) (\d+) (\d+)', content[:start].decode('latin1'))
    assert found is not None
    width, height, count = (int(value) for value in found.groups())
    pixels = np.frombuffer(zlib.decompress(content[start:]), np.uint8)
    return pixels.reshape(count, height, width)[::step]


def pixel_errors(scene: Scene, needle) -> np.ndarray:
    """Return the (3,) error along the shaft (px), across it (px) and of the angle (rad)."""
    offset = needle.tip - scene.tip
    cosine = float(needle.direction @ scene.direction)
    sine = float(scene.direction[0] * needle.direction[1]
                 - scene.direction[1] * needle.direction[0])
    return np.array([offset @ needle.direction, offset @ needle.normal,
                     np.arctan2(sine, cosine)])


def is_honest(errors: np.ndarray, covariances: np.ndarray) -> bool:
    """Tell whether (N, 3) errors and (N, 3, 3) covariances agree, within a broad χ² band.

    Of three degrees of freedom the squared normalised error has median 2.4, 95 % below 7.8.
    """
    squared = np.einsum('ni,nij,nj->n', errors, np.linalg.inv(covariances), errors)
    return bool(0.9 < np.median(squared) < 5.0 and np.mean(squared < 7.81) > 0.75
                and 1.2 < np.mean(np.minimum(squared, 25.0)) < 7.0)


def reported(detector, scenes, seeds) -> list:
    """Return (scene, needle) of every seeded image in which a needle is reported."""
    pairs = [(scene := scenes(seed), detector(scene.frame)) for seed in seeds]
    return [(scene, needle) for scene, needle in pairs
            if needle is not None and needle.probability >= 0.5]
