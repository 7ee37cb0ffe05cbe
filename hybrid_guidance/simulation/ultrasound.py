"""B-mode ultrasound of a digital patient: speckle, interfaces, shadows, needles.

The image is made along the beams (rows are ranges, columns are beams) and scan converted.
Speckle belongs to the tissue: scatterers are a periodic volume of complex noise in ``patient``,
which the pulse and the beam blur (Ng et al., IEEE TUFFC 2006;53:638: linear convolution model).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, is_still, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.procedure import Probe
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.flow import REST, Blood, heartbeat, make_blood, painted
from hybrid_guidance.simulation.injectate import Injectate
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.tissues import Tissue, table

Polar = NDArray[np.float32]

SLICE_SPACING = 0.0006
SPECKLE_CELL = 0.0004
SPECKLE_SIZE = 128


@dataclass(frozen=True)
class Scan:
    """How a frame is made.

    Attributes:
        beams: lines per frame.
        samples: per line.
        depth: reach below the transducer face, metres.
        pulse: standard deviation of the pulse's envelope along the beam, metres.
        beam_at_focus: standard deviation of the beam in the image plane, metres.
        focus: range of the focus, metres.
        slice_thickness: standard deviation across the image plane at the focus, metres.
        gain_db: added to every echo.
        dynamic_range_db: black to white.
        attenuation_compensated: of the time gain compensation, dB/(cm·MHz).
        noise_db: electronic noise before time gain, against the brightest bone.
        needle_db: echo of a shaft square to the beam.
        reverberation: amplitude of each further echo from within the steel, over the one before.
        cell: edge of the cube that one scatterer stands for, metres; below the pulse's length.
    """

    beams: int = 224
    samples: int = 480
    depth: float = 0.075
    pulse: float = 0.00022
    beam_at_focus: float = 0.00042
    focus: float = 0.040
    slice_thickness: float = 0.0012
    gain_db: float = 4.0
    dynamic_range_db: float = 60.0
    attenuation_compensated: float = 0.62
    noise_db: float = -100.0
    needle_db: float = 2.0
    reverberation: float = 0.36
    cell: float = SPECKLE_CELL


@dataclass(frozen=True)
class Walls:
    """How a window of the polar array moves at systole, in beams and samples."""

    window: tuple[slice, slice]
    columns: Polar
    rows: Polar
    across: Polar
    down: Polar


class UltrasoundRenderer:
    """Renders B-mode frames of one patient.

    What the tissue contributes is kept while the probe stands.

    Args:
        patient: voxels in ``patient``.
        probe: the transducer.
        projection: orthographic, image frame (x lateral, y depth, z elevation) to pixels.
        seed: of speckle and noise.
        scan: how a frame is made.
        pulsation: how far the walls of arteries move with every heartbeat, as a share of their
            radius; 0.05 is usual, 0 keeps everything still.
    """

    def __init__(self, patient: Patient, probe: Probe, projection: Projection, seed: int = 0,
                 scan: Scan | None = None, pulsation: float = 0.0) -> None:
        self.patient = patient
        self.probe = probe
        self.projection = projection
        self.scan = scan or Scan()
        self.pulsation = pulsation
        self._seed = seed
        self._blood: Blood | None = None
        self._flow: tuple[Transform, NDArray[np.int64], Polar, Polar] | None = None
        self._geometry()
        self._conversion()
        self._volume = _packed(patient, seed)
        self._scatterers = _scatterers(seed)
        self._beam_model()
        self._noise_bank()
        self._roughness = _roughness(seed)
        self._pose: Transform | None = None
        self._walls: Walls | None = None
        shape = (self.scan.samples, self.scan.beams)
        self._tissue = np.zeros((2, *shape), np.float32)
        self._transmission = np.ones(shape, np.float32)
        self._frame = np.zeros((2, *shape), np.float32)
        self._echo = np.zeros(shape, np.float32)
        self._blurred = np.zeros(shape, np.float32)
        self._shade = np.ones(shape, np.float32)
        self._level = np.zeros(shape, np.float32)

    def render(self, patient_T_image: Transform, needles: Sequence[Needle] = (),
               time: float = 0.0, fluids: Sequence[Injectate] = ()) -> NDArray[np.uint8]:
        """Return one frame.

        Args:
            patient_T_image: (4, 4) pose of the slice.
            needles: steel near the slice.
            time: seconds; chooses the electronic noise, and the moment of the heartbeat.
            fluids: what was injected.

        Returns:
            (H, W) uint8, black outside the sector; the caller owns it.
        """
        scan = self.scan
        level = self._level
        self._complex(patient_T_image, needles, time, noise=True, fluids=fluids)
        cv2.magnitude(self._frame[0], self._frame[1], magnitude=level)
        cv2.multiply(level, self._time_gain, dst=level)
        cv2.max(level, 1e-9, dst=level)
        cv2.log(level, dst=level)
        # Grey is linear in decibels: black at -dynamic range, white at 0 dB after the gain.
        scale = 255.0 / scan.dynamic_range_db
        cv2.max(level, -(scan.dynamic_range_db + scan.gain_db) / _DB, dst=level)
        cv2.multiply(level, scale * _DB, dst=level)
        grey = cv2.add(level, scale * (scan.dynamic_range_db + scan.gain_db), dtype=cv2.CV_8U)
        return np.asarray(cv2.remap(grey, self._map_beams, self._map_samples, cv2.INTER_LINEAR,
                                    borderMode=cv2.BORDER_CONSTANT), np.uint8)

    def envelope(self, patient_T_image: Transform, needles: Sequence[Needle] = (),
                 time: float = 0.0, noise: bool = True,
                 fluids: Sequence[Injectate] = ()) -> Polar:
        """Return the echo amplitude before time gain and compression.

        Returns:
            (samples, beams) float32; 1 is about a bone square to the beam at the face. Rows
            are at ``ranges`` metres from the face, columns at ``angles`` (radians; of a linear
            probe at ``angles`` metres along the face).
        """
        self._complex(patient_T_image, needles, time, noise, fluids)
        return np.asarray(cv2.magnitude(self._frame[0], self._frame[1]), np.float32)

    def _complex(self, patient_T_image: Transform, needles: Sequence[Needle], time: float,
                 noise: bool, fluids: Sequence[Injectate] = ()) -> None:
        """Fill the frame: tissue, fluids, needles and noise, real and imaginary."""
        if self._pose is None or not is_still(self._pose, patient_T_image):
            self._look(patient_T_image)
            self._pose = np.array(patient_T_image)
            self._walls = self._moving_walls(patient_T_image) if self.pulsation else None
        self._beat(time)
        for fluid in fluids:
            self._wash(inverse(fluid.pose) @ patient_T_image, fluid)
        if needles:
            self._insert(patient_T_image, needles)
        if noise:
            for part, added in zip(self._frame, self._noise(time), strict=True):
                cv2.add(part, added, dst=part)

    def doppler(self, picture: NDArray[np.uint8], patient_T_image: Transform, time: float = 0.0,
                kind: str = 'colour', scale: float = 0.4) -> NDArray[np.uint8]:
        """Return a frame with the flow of blood in colour.

        Only what flows along the beam is seen. What is slow (wall filter), behind bone, or weaker
        than the noise of colour is not.

        Args:
            picture: (H, W) uint8, the frame.
            patient_T_image: (4, 4) pose of the slice.
            time: seconds; the moment of the heartbeat, and of noise.
            kind: ``colour`` (red towards the probe) or ``power``.
            scale: m/s that pulses come often enough for; faster blood turns over to the other
                colour.

        Returns:
            (H, W, 3) uint8, blue-green-red.
        """
        if self._flow is None or not is_still(self._flow[0], patient_T_image):
            self._flow = (np.array(patient_T_image), *self._see_flow(patient_T_image))
        _, place, arteries, veins = self._flow
        velocity = arteries * np.float32(REST + (1.0 - REST) * heartbeat(time)) + veins
        shape = self._x[::4, ::4].shape
        grain = self._noise(time)[0][:shape[0], :shape[1]].reshape(-1)[place]
        velocity *= 1.0 + grain * np.float32(0.12 * 10.0 ** (-self.scan.noise_db / 20.0))
        shown = np.abs(velocity) > 0.06 * scale
        paint, cover = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
        paint.reshape(-1, 3)[place[shown]] = painted(velocity[shown], scale, kind)
        cover.reshape(-1)[place[shown]] = 255
        tint = cv2.remap(paint, *self._coarse_maps, cv2.INTER_LINEAR)
        cover = cv2.remap(cover, *self._coarse_maps, cv2.INTER_LINEAR)
        result = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
        cv2.copyTo(tint, cv2.compare(cover, 127, cv2.CMP_GT), result)
        return np.asarray(result, np.uint8)

    def _see_flow(self, patient_T_image: Transform) -> tuple[NDArray[np.int64], Polar, Polar]:
        """Return where blood flows (every fourth sample), and how fast towards the probe.

        Velocities are of arteries at systole, and of veins.
        """
        x, y = self._x[::4, ::4], self._y[::4, ::4]
        place, vectors = self._vessels().seen(patient_T_image, x, y, 1)
        through = (self._transmission[::4, ::4] * self._time_gain[::4, ::4]).reshape(-1)[place]
        place, vectors = place[through > 0.03], vectors[through > 0.03]
        across = x.reshape(-1)[place]
        down = y.reshape(-1)[place] + np.float32(self.probe.radius)
        if not np.isfinite(self.probe.radius):
            across, down = np.zeros_like(across), np.ones_like(across)
        length = np.hypot(across, down)
        speed = -(vectors[..., 0] * (across / length)[:, None]
                  + vectors[..., 1] * (down / length)[:, None])
        return place, speed[:, 0], speed[:, 1]

    def _vessels(self) -> Blood:
        if self._blood is None:
            self._blood = make_blood(self.patient)
        return self._blood

    def _moving_walls(self, patient_T_image: Transform) -> Walls | None:
        """Return how tissue moves at systole, where it does; None without an artery."""
        x, y = self._x[::4, ::4], self._y[::4, ::4]
        place, vectors = self._vessels().seen(patient_T_image, x, y, 2)
        if not len(place):
            return None
        moved = np.zeros((x.size, 2), np.float32)
        # A wall that leans moves further within the slice than out of itself.
        wall = np.sum(vectors[:, 2] ** 2, axis=1)
        lean = wall / np.maximum(np.sum(vectors[:, 2, :2] ** 2, axis=1), 0.25 * wall + 1e-12)
        moved[place] = self.pulsation * vectors[:, 2, :2] * lean[:, None]
        moved = cv2.GaussianBlur(moved.reshape(*x.shape, 2), (3, 3), 0.0)
        at, beyond = (self.polar(np.stack([x, y], axis=-1) + sign * moved)
                      for sign in (-0.5, 0.5))
        shift = np.stack([np.asarray(beyond[part] - at[part], np.float32) for part in (0, 1)],
                         axis=-1)
        left, top, width, height = cv2.boundingRect(
            (np.abs(shift).max(axis=-1) > 0.01).astype(np.uint8))
        if not width:
            return None
        window = (slice(4 * top, min(4 * (top + height), self._x.shape[0])),
                  slice(4 * left, min(4 * (left + width), self._x.shape[1])))
        size = (window[1].stop - window[1].start, window[0].stop - window[0].start)
        part = cv2.resize(np.ascontiguousarray(shift[top:top + height, left:left + width]), size,
                          interpolation=cv2.INTER_LINEAR)
        rows, columns = np.indices(size[::-1], dtype=np.float32)
        return Walls(window, columns + np.float32(window[1].start),
                     rows + np.float32(window[0].start), part[..., 0], part[..., 1])

    def _beat(self, time: float) -> None:
        """Copy the tissue into the frame, moved by the moment's heartbeat."""
        np.copyto(self._frame, self._tissue)
        walls, share = self._walls, np.float32(heartbeat(time))
        if walls is None:
            return
        maps = walls.columns - share * walls.across, walls.rows - share * walls.down
        for tissue, frame in zip(self._tissue, self._frame, strict=True):
            frame[walls.window] = cv2.remap(tissue, *maps, cv2.INTER_LINEAR,
                                            borderMode=cv2.BORDER_REPLICATE)

    def _wash(self, fluid_T_image: Transform, fluid: Injectate) -> None:
        """Take the echoes out of a fluid, and let through what tissue would have taken."""
        x, y = self._x[::2, ::2], self._y[::2, ::2]
        level = fluid.level(fluid_T_image, x, y)
        inside = np.clip((1.0 - level) * np.float32(fluid.reach / 0.002) + 0.5, 0.0, 1.0)
        if not np.any(inside):
            return
        full = cv2.resize(inside, self._x.shape[::-1],
                          interpolation=cv2.INTER_LINEAR)
        step = float(self.ranges[1] - self.ranges[0])
        lost = 2.0 * 100.0 * step * self.probe.frequency / 1e6 * _FLUID_GAIN / _DB
        share = cv2.exp(np.cumsum(full, axis=0) * np.float32(lost))
        share *= 1.0 - full * np.float32(1.0 - 10.0 ** (_FLUID_DB / 20.0))
        for part in self._frame:
            cv2.multiply(part, share, dst=part)

    def polar(self, points: Points) -> tuple[Array, Array]:
        """Return beam and sample indices (fractional) of (..., 2) points x, y of the slice."""
        if not np.isfinite(self.probe.radius):
            across, along = points[..., 0], points[..., 1]
        else:
            below = points[..., 1] + self.probe.radius
            across = np.arctan2(points[..., 0], below)
            along = np.hypot(points[..., 0], below) - self.probe.radius
        return ((across - self.angles[0]) / (self.angles[1] - self.angles[0]),
                along / (self.ranges[1] - self.ranges[0]))

    def _geometry(self) -> None:
        scan, probe = self.scan, self.probe
        half = probe.field_of_view / 2
        self.angles = np.linspace(-half, half, scan.beams)
        self.ranges = np.arange(scan.samples) * (scan.depth / (scan.samples - 1))
        if np.isfinite(probe.radius):
            reach = probe.radius + self.ranges[:, None]
            self._x = (reach * np.sin(self.angles)).astype(np.float32)
            self._y = (reach * np.cos(self.angles) - probe.radius).astype(np.float32)
            self._pitch = ((self.angles[1] - self.angles[0]) * reach).astype(np.float32)
        else:
            self._x = np.broadcast_to(self.angles, (scan.samples, scan.beams)).astype(np.float32)
            self._y = np.broadcast_to(self.ranges[:, None], self._x.shape).astype(np.float32)
            self._pitch = np.full((scan.samples, 1), self.angles[1] - self.angles[0], np.float32)
        frequency = self.probe.frequency / 1e6
        there_and_back = 2.0 * 100.0 * self.ranges[:, None] * frequency
        gain = 10.0 ** (scan.attenuation_compensated * there_and_back / 20.0)
        self._time_gain = np.broadcast_to(gain, self._x.shape).astype(np.float32)
        self._clutter = np.asarray(0.003 / self._time_gain, np.float32)
        # Skin is pressed against the face, whatever its shape, and the face itself rings.
        near = 15.0 * np.exp(-(self.ranges[:, None] / 0.0016) ** 2)
        self._near_field = np.asarray(near, np.float32)

    def _conversion(self) -> None:
        """Where each pixel of the picture looks in the polar array."""
        grid = np.stack(np.meshgrid(np.arange(self.projection.width),
                                    np.arange(self.projection.height)), axis=-1)
        points = self.projection.back_project(grid.astype(float))[..., :2]
        beams, samples = self.polar(points)
        outside = ((beams < 0) | (beams > self.scan.beams - 1)
                   | (samples < 0) | (samples > self.scan.samples - 1))
        beams[outside] = samples[outside] = -10.0
        self._coarse_maps = cv2.convertMaps((beams / 4).astype(np.float32), (samples / 4).astype(
            np.float32), cv2.CV_16SC2)
        self._map_beams, self._map_samples = cv2.convertMaps(
            beams.astype(np.float32), samples.astype(np.float32), cv2.CV_16SC2)
        step = SLICE_SPACING
        low = np.floor([self._x.min() / step - 1, self._y.min() / step - 1])
        high = np.ceil([self._x.max() / step + 1, self._y.max() / step + 1])
        self._slice_x = (step * np.arange(low[0], high[0] + 1)).astype(np.float32)[None, :]
        self._slice_y = (step * np.arange(low[1], high[1] + 1)).astype(np.float32)[:, None]
        self._slice_maps = cv2.convertMaps(
            (self._x / step - low[0]).astype(np.float32),
            (self._y / step - low[1]).astype(np.float32), cv2.CV_16SC2)

    def _beam_model(self) -> None:
        """Depth zones, each with its lateral blur, and the gain that makes speckle unit power."""
        scan = self.scan
        step = self.ranges[1] - self.ranges[0]
        self._axial = _kernel(scan.pulse / step)
        edges = np.linspace(0, scan.samples, 6).astype(int)
        self._zones = []
        for first, last in pairwise(edges):
            depth = float(self.ranges[(first + last) // 2])
            width = scan.beam_at_focus * np.hypot(1.0, (depth - scan.focus) / 0.040)
            pitch = float(self._pitch[(first + last) // 2, 0])
            self._zones.append((int(first), int(last), _kernel(width / pitch)))
        shape = (scan.samples, scan.beams)
        self._gain = np.ones(shape, np.float32)
        power = np.zeros((scan.samples, 1))
        for index in range(4):
            pose = np.eye(4)
            pose[:3, 3] = 0.0071 * index
            real, imaginary = (self._blur(part, np.empty_like(part))
                               for part in self._speckle(pose))
            power += np.mean(real**2 + imaginary**2, axis=1, keepdims=True)
        smooth = cv2.blur(power / 4, (1, scan.samples // 8), borderType=cv2.BORDER_REPLICATE)
        self._gain[:] = 1.0 / np.sqrt(smooth)

    def _noise_bank(self) -> None:
        rng = np.random.default_rng((self._seed, 2))
        shape = (2, self.scan.samples + 64, self.scan.beams + 64)
        bank = rng.standard_normal(shape, dtype=np.float32)
        level = 10.0 ** (self.scan.noise_db / 20.0)
        self._bank = np.stack([_unit(cv2.sepFilter2D(part, -1, _kernel(0.7), self._axial))
                               for part in bank]) * np.float32(level)

    def _noise(self, time: float) -> tuple[Polar, Polar]:
        rng = np.random.default_rng((self._seed, round(abs(time) * 1e6)))
        top, left = (int(value) for value in rng.integers(0, 64, 2))
        window = (slice(top, top + self.scan.samples), slice(left, left + self.scan.beams))
        return self._bank[0][window], self._bank[1][window]

    def _speckle(self, patient_T_image: Transform) -> tuple[Polar, Polar]:
        """Return the complex scatterers at every sample."""
        index = np.zeros(self._x.shape, np.int32)
        for axis in (2, 1, 0):
            row = patient_T_image[axis] / self.scan.cell
            cells = self._x * np.float32(row[0])
            cells += self._y * np.float32(row[1])
            cells += np.float32(row[3] + 1000 * SPECKLE_SIZE)
            whole = cells.astype(np.int32)
            whole &= SPECKLE_SIZE - 1
            index *= SPECKLE_SIZE
            index += whole
        packed = self._scatterers.take(index)
        parts = packed.view(np.int8).reshape(*packed.shape, 2)
        return parts[..., 0].astype(np.float32), parts[..., 1].astype(np.float32)

    def _blur(self, field: Polar, result: Polar) -> Polar:
        """Convolve with the pulse and with the beam of each depth zone; fill and return."""
        reach = len(self._axial)
        for first, last, lateral in self._zones:
            top, bottom = max(first - reach, 0), min(last + reach, len(field))
            part = cv2.sepFilter2D(field[top:bottom], -1, lateral, self._axial,
                                   borderType=cv2.BORDER_REPLICATE)
            result[first:last] = part[first - top:last - top]
        return result

    def _look(self, patient_T_image: Transform) -> None:
        """Fill everything that depends on the probe's pose but not on needles."""
        bone, scatter_db, sheet, attenuation = self._fields(patient_T_image)
        step = float(self.ranges[1] - self.ranges[0])
        contact = self._contact(scatter_db, step)
        frequency = self.probe.frequency / 1e6
        # Amplitude, there and back: 2 · 100 cm/m; bone takes about 25 dB/(cm·MHz), ICRU 61.
        loss = (attenuation * (1.0 - bone) + 25.0 * bone) * np.float32(
            2.0 * 100.0 * step * frequency / _DB)
        np.cumsum(loss, axis=0, out=loss)
        cv2.exp(-loss, dst=self._transmission)
        # Side lobes and reverberation fill a shadow a little: clutter, some 50 dB down.
        self._transmission += self._clutter
        self._transmission *= contact
        scatter_db += sheet * np.float32(_SHEET_SCATTER_DB)
        scatter_db += self._near_field
        amplitude = cv2.exp(scatter_db * np.float32(1.0 / _DB))
        amplitude *= self._gain * self._transmission
        coherent = self._interfaces(bone, sheet) * self._transmission
        real, imaginary = self._speckle(patient_T_image)
        cv2.multiply(real, amplitude, dst=real)
        cv2.multiply(imaginary, amplitude, dst=imaginary)
        self._blur(cv2.add(real, coherent), self._tissue[0])
        self._blur(imaginary, self._tissue[1])

    def _fields(self, patient_T_image: Transform) -> tuple[Polar, Polar, Polar, Polar]:
        """Return bone (0..1), scatter (dB), sheets (0..1), attenuation (dB/cm/MHz) per sample."""
        flat = self._volume.slice(patient_T_image, self._slice_x, self._slice_y)
        polar = cv2.remap(flat, self._slice_maps[0], self._slice_maps[1], cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)
        bone, scatter, sheet, attenuation = cv2.split(polar)
        return bone, scatter, sheet, attenuation

    def _contact(self, scatter_db: Polar, step: float) -> Polar:
        """Air under the footprint cuts a beam off; gel and bulging tissue fill up to 8 mm.

        Fills what is filled with the echo of fat, in place; returns (beams,) transmission.
        """
        air = scatter_db < -70.0
        gap = np.argmin(air, axis=0)
        gap[np.all(air, axis=0)] = len(air)
        bulge = np.arange(len(air))[:, None] <= gap
        scatter_db[bulge & air] = -34.0
        passed = np.clip((0.013 - gap * step) / 0.003, 0.0, 1.0)
        return np.asarray(passed[None, :], np.float32)

    def _interfaces(self, bone: Polar, sheet: Polar) -> Polar:
        """Mirror-like echoes: strong where a boundary is square to the beam."""
        step = float(self.ranges[1] - self.ranges[0])
        down = cv2.Sobel(bone, cv2.CV_32F, 0, 1, ksize=3, scale=1.0 / (8.0 * step))
        across = cv2.Sobel(bone, cv2.CV_32F, 1, 0, ksize=3, scale=0.125) / self._pitch
        cv2.max(down, 0.0, dst=down)
        square = down / (cv2.magnitude(down, across) + 1.0)
        echo = down * (0.15 + 0.85 * square * square * square) * np.float32(_BONE_LEVEL)
        # A sheet thinner than the pulse echoes at its crest, and only if it runs across the beam.
        crest = cv2.Sobel(sheet, cv2.CV_32F, 0, 2, ksize=5, scale=-1.0)
        cv2.max(crest, 0.0, dst=crest)
        cv2.multiply(crest, sheet, dst=crest, scale=_SHEET_LEVEL)
        return np.asarray(cv2.add(echo, crest), np.float32)

    def _insert(self, patient_T_image: Transform, needles: Sequence[Needle]) -> None:
        """Add needles to the frame, and the shadows they throw on the tissue."""
        self._echo.fill(0.0)
        self._shade.fill(1.0)
        image_T_patient = inverse(patient_T_image)
        for needle in needles:
            self._add_needle(image_T_patient @ needle.pose, needle)
        for part in self._frame:
            cv2.multiply(part, self._shade, dst=part)
        cv2.add(self._frame[0], self._blur(self._echo, self._blurred), dst=self._frame[0])

    def _add_needle(self, image_T_needle: Transform, needle: Needle) -> None:
        """Put a shaft's echoes and its shadow on the polar grid.

        The echo lies on the axis: the front wall is nearer by less than the pulse is long.
        """
        along = np.arange(0.0, needle.length, 0.00012)
        points = transform_points(image_T_needle,
                                  np.stack([0 * along, 0 * along, -along], axis=-1))
        beams, samples = self.polar(points[:, :2])
        inside = ((beams >= 0) & (beams < self.scan.beams - 1)
                  & (samples >= 0) & (samples < self.scan.samples - 1))
        if not np.any(inside):
            return
        points, beams, samples, along = (points[inside], beams[inside], samples[inside],
                                         along[inside])
        presence = self._presence(points, samples)
        amplitude = presence * self._specular(points, image_T_needle[:3, 2])
        amplitude *= np.maximum(1.0 + 0.3 * self._roughness[(along / 0.00012).astype(int)], 0.5)
        if needle.glint:
            amplitude[along < 0.0010] *= 1.8
        amplitude *= self._sampled(self._transmission, beams, samples)
        self._splat(beams, samples, amplitude, needle)
        self._darken(beams, samples, presence)

    def _presence(self, points: Points, samples: Array) -> Array:
        """Return how much of the shaft is in the slice, which is thinnest at the focus."""
        depth = samples * (self.ranges[1] - self.ranges[0])
        width = self.scan.slice_thickness * np.hypot(1.0, (depth - self.scan.focus) / 0.030)
        return np.asarray(np.exp(-0.5 * (points[:, 2] / width) ** 2))

    def _specular(self, points: Points, direction: Array) -> Array:
        """Return the echo amplitude by the angle between shaft and beam."""
        if np.isfinite(self.probe.radius):
            beams = points * (1.0, 1.0, 0.0) + (0.0, self.probe.radius, 0.0)
            beams /= np.linalg.norm(beams, axis=1, keepdims=True)
        else:
            beams = np.broadcast_to([0.0, 1.0, 0.0], points.shape)
        sine = np.sqrt(np.clip(1.0 - (beams @ direction) ** 2, 0.0, 1.0))
        level = 10.0 ** (self.scan.needle_db / 20.0)
        # Mirror lobe about 12 degrees wide on a diffuse floor: ground steel.
        lobe = np.exp(-0.5 * (np.arccos(np.clip(sine, 0.0, 1.0)) / 0.21) ** 2)
        return np.asarray(level * (0.36 * sine**2 + 0.64 * lobe))

    def _sampled(self, field: Polar, beams: Array, samples: Array) -> Array:
        return np.asarray(field[samples.astype(int), beams.astype(int)], dtype=float)

    def _splat(self, beams: Array, samples: Array, amplitude: Array, needle: Needle) -> None:
        """Add echoes and their reverberation, shared between the four nearest samples."""
        step = float(self.ranges[1] - self.ranges[0])
        # Sound goes to and fro across steel at 5 900 m/s: it seems nearer than it is.
        spacing = max(needle.diameter * 1540.0 / 5900.0 * 3.0, 0.0003) / step
        pitch = self._pitch[samples.astype(int), 0]
        density = 0.00012 / np.hypot(0.7 * pitch, 0.7 * step)
        for order in range(7 if self.scan.reverberation > 0.0 else 1):
            rows = samples + order * spacing
            keep = rows < self.scan.samples - 1
            weight = (amplitude * density * self.scan.reverberation**order)[keep]
            row, column = rows[keep].astype(int), beams[keep].astype(int)
            v, u = rows[keep] - row, beams[keep] - column
            for down, right, share in ((0, 0, (1 - v) * (1 - u)), (0, 1, (1 - v) * u),
                                       (1, 0, v * (1 - u)), (1, 1, v * u)):
                np.add.at(self._echo, (row + down, column + right),
                          (weight * share).astype(np.float32))

    def _darken(self, beams: Array, samples: Array, presence: Array) -> None:
        """Steel lets little sound through: darken what lies below it."""
        column = beams.round().astype(int)
        first = np.full(self.scan.beams, self.scan.samples)
        depth = np.zeros(self.scan.beams)
        np.minimum.at(first, column, samples.astype(int))
        np.maximum.at(depth, column, 0.35 * presence)
        below = np.arange(self.scan.samples)[:, None] > first[None, :] + 4
        light = np.asarray(1.0 - depth[None, :], np.float32)
        np.multiply(self._shade, light, out=self._shade, where=below)


_DB = 20.0 / float(np.log(10.0))
_BONE_LEVEL = 0.0013
_SHEET_LEVEL = 0.045
_SHEET_SCATTER_DB = 9.0
# Of an injectate: echo against the tissue that it takes the place of, dB, and how much less it
# attenuates, dB/(cm·MHz).
_FLUID_DB, _FLUID_GAIN = -18.0, 0.4


@dataclass(frozen=True)
class _Volume:
    """Four channels of uint8 in one uint32 voxel, so that a look-up fetches all of them."""

    voxels: NDArray[np.uint32]
    origin: Points
    spacing: float

    def slice(self, patient_T_image: Transform, x: Polar, y: Polar) -> Polar:
        """Return (H, W, 4) float32, trilinear, at the slice's points; air outside.

        The channels are bone, scatter (dB), sheets and attenuation (dB/(cm·MHz)).
        """
        base: NDArray[np.int32] | None = None
        valid: NDArray[np.bool_] | None = None
        weights = []
        for axis, count in zip((2, 1, 0), self.voxels.shape, strict=True):
            row = patient_T_image[axis]
            place = (x * np.float32(row[0] / self.spacing) + y * np.float32(row[1] / self.spacing)
                     + np.float32((row[3] - self.origin[axis]) / self.spacing))
            ok = (place >= 0.0) & (place < count - 1.0)
            valid = ok if valid is None else valid & ok
            np.clip(place, 0.0, count - 1.001, out=place)
            cell = place.astype(np.int32)
            base = cell if base is None else base * np.int32(count) + cell
            weights.append(place - cell)
        assert base is not None
        result = self._blend(base, weights)
        result[~np.asarray(valid)] = 0.0
        result[..., 1] -= np.float32(80.0)
        return result

    def _blend(self, base: NDArray[np.int32], weights: list[Polar]) -> Polar:
        """Interpolate two channels at a time: each has 16 bits of a word, weights have 8."""
        _, height, width = self.voxels.shape
        flat = self.voxels.reshape(-1)
        left = np.full(base.shape, 256, np.uint32)
        even, odd = np.zeros(base.shape, np.uint32), np.zeros(base.shape, np.uint32)
        for step, share in zip(_corners(height, width), _shares(weights), strict=True):
            # The last corner takes what rounding has left: the weights sum to 256.
            weight = left if share is None else (share * np.float32(256.0)).astype(np.uint32)
            if share is not None:
                left -= weight
            found = flat.take(base + np.int32(step))
            even += (found & _EVEN) * weight
            found >>= 8
            found &= _EVEN
            found *= weight
            odd += found
        result = np.empty((*base.shape, 4), np.float32)
        result[..., 0::2] = even.view(np.uint16).reshape(*base.shape, 2)
        result[..., 1::2] = odd.view(np.uint16).reshape(*base.shape, 2)
        result *= _CHANNELS
        return result


_EVEN = np.uint32(0x00FF00FF)
_CHANNELS = np.array([1 / 255, 1 / 3, 1 / 255, 0.01], np.float32) / np.float32(256.0)


def _corners(height: int, width: int) -> list[int]:
    """Return the steps from a voxel to the eight corners of its cell, x fastest."""
    return [(dz * height + dy) * width + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]


def _shares(weights: list[Polar]) -> Iterator[Polar | None]:
    """Yield the trilinear weights of ``_corners``; None for the last."""
    wz, wy, wx = weights
    for z in (1 - wz, wz):
        for y in (1 - wy, wy):
            across = z * y
            far = across * wx
            yield across - far
            yield None if z is wz and y is wy else far


def _packed(patient: Patient, seed: int) -> _Volume:
    """Return bone, scatter ((dB + 80)·3), sheets and attenuation (·100) in one volume."""
    scatter = np.clip(np.round((table('scatter_db') + 80.0) * 3.0), 0, 255)
    scatter[[label for label in range(256) if label not in set(Tissue)]] = 0
    loss = np.clip(np.round(table('attenuation') * 100.0), 0, 255)
    voxels = np.empty((*patient.labels.shape, 4), np.uint8)
    voxels[..., 0] = patient.bone
    voxels[..., 1] = cv2.LUT(patient.labels, scatter.astype(np.uint8))
    voxels[..., 2] = patient.sheets
    voxels[..., 3] = cv2.LUT(patient.labels, loss.astype(np.uint8))
    _add_septa(voxels, patient.labels, seed)
    _add_patches(voxels, seed)
    return _Volume(voxels.view(np.uint32)[..., 0], patient.grid.origin, patient.grid.spacing)


def _add_septa(voxels: NDArray[np.uint8], labels: NDArray[np.uint8], seed: int) -> None:
    """Perimysium and fat septa: zero surfaces of smooth noise, drawn out along the body."""
    muscle, fat = _septa(seed, (12.0, 1.3, 3.6)), _septa(seed + 1, (6.0, 1.6, 6.0))
    depth, height, width = muscle.shape
    for tissue, tile, strength in ((Tissue.MUSCLE, muscle, 1.0), (Tissue.FAT, fat, 0.60)):
        tile = (tile * (255.0 * strength)).astype(np.uint8)
        for index, layer in enumerate(labels):
            repeated = np.tile(tile[index % depth], (-(-layer.shape[0] // height),
                                                     -(-layer.shape[1] // width)))
            repeated = repeated[:layer.shape[0], :layer.shape[1]]
            np.maximum(voxels[index, ..., 2], repeated, out=voxels[index, ..., 2],
                       where=layer == tissue)


def _add_patches(voxels: NDArray[np.uint8], seed: int) -> None:
    """No muscle is uniform: its echo wanders by a few decibels over millimetres.

    A homogeneous phantom stays one.
    """
    if np.ptp(voxels[..., 1]) == 0:
        return
    noise = _smooth_noise(seed + 2, (9.0, 4.0, 7.0))
    tile = np.clip(np.round(noise * 7.0), -24, 24).astype(np.int8)
    depth, height, width = tile.shape
    for index in range(len(voxels)):
        layer = voxels[index, ..., 1]
        repeated = np.tile(tile[index % depth], (-(-layer.shape[0] // height),
                                                 -(-layer.shape[1] // width)))
        repeated = repeated[:layer.shape[0], :layer.shape[1]]
        wandering = np.clip(layer.astype(np.int16) + repeated, 1, 255).astype(np.uint8)
        np.copyto(layer, wandering, where=layer > 0)


def _septa(seed: int, sizes: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return a periodic (96, 96, 128) volume, 1 on septa; sizes (z, y, x) in voxels."""
    noise = _smooth_noise(seed, sizes)
    patches = np.clip(1.0 + 0.9 * np.roll(noise, 37, axis=1), 0.0, 1.2) / 1.2
    return np.asarray(np.exp(-(noise / 0.19) ** 2) * patches, np.float32)


def _smooth_noise(seed: int, sizes: tuple[float, float, float]) -> Array:
    """Return periodic (96, 96, 128) noise of unit variance; sizes (z, y, x) in voxels."""
    shape = (96, 96, 128)
    rng = np.random.default_rng((seed, 3))
    spectrum = np.fft.rfftn(rng.standard_normal(shape))
    for axis, size in enumerate(sizes):
        count = shape[axis]
        frequency = np.fft.rfftfreq(count) if axis == 2 else np.fft.fftfreq(count)
        response = np.exp(-2.0 * (np.pi * frequency * size) ** 2)
        spectrum *= response.reshape([-1 if other == axis else 1 for other in range(3)])
    noise = np.fft.irfftn(spectrum, shape, axes=(0, 1, 2))
    return np.asarray(noise / noise.std())


def _scatterers(seed: int) -> NDArray[np.int16]:
    """Return a periodic volume of complex normal noise: two int8 in one int16."""
    rng = np.random.default_rng((seed, 4))
    parts = rng.standard_normal((SPECKLE_SIZE**3, 2), dtype=np.float32)
    np.clip(np.round(parts * 32.0), -127, 127, out=parts)
    return np.asarray(parts.astype(np.int8).view(np.int16)[:, 0])


def _roughness(seed: int) -> Array:
    """Return how the echo varies along a shaft, per step, unit variance: ground steel."""
    noise = np.random.default_rng((seed, 5)).standard_normal(4096)
    smooth = np.convolve(noise, _kernel(4.0), mode='same')
    return np.asarray(smooth / smooth.std())


def _kernel(sigma: float) -> NDArray[np.float32]:
    """Return a Gaussian that sums to one."""
    reach = max(int(np.ceil(3.0 * sigma)), 1)
    values = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return np.asarray(values / values.sum(), np.float32)


def _unit(field: Polar) -> Polar:
    return np.asarray(field / field.std(), np.float32)
