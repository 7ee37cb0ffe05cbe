"""B-mode ultrasound of a digital patient: speckle, interfaces, shadows, needles, fluid, blood.

The image is made along the beams (rows are ranges, columns are beams) and scan converted. What
changes over millimetres (tissue, attenuation, fluid) is computed once in four samples.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, is_still
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.procedure import Probe
from hybrid_guidance.simulation.acoustics import Acoustics, make_acoustics
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.beams import COARSE, Beams, Polar, Scan, summed_down
from hybrid_guidance.simulation.bone_echo import BoneEcho, Surface
from hybrid_guidance.simulation.clutter import Clutter
from hybrid_guidance.simulation.flow import heartbeat
from hybrid_guidance.simulation.injectate import Injectate
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.shaft_echo import ShaftEcho
from hybrid_guidance.simulation.speckle import Speckle, Window
from hybrid_guidance.simulation.vessels import Vessels, Walls


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
        self.beams = Beams(probe, self.scan)
        self._seed = seed
        self._kept: Acoustics | None = None
        self._speckle = Speckle(self.beams, self.scan, seed)
        self._shafts = ShaftEcho(self.beams, self.scan, seed)
        self._bone = BoneEcho(self.beams, self.scan, self._speckle)
        self._clutter = Clutter(self.beams)
        self._vessels: Vessels | None = None
        self._sector, self._maps = self._conversion()
        self._model()
        self._pose: Transform | None = None
        self._walls: Walls | None = None
        shape = self.beams.shape
        self._places = np.indices(shape, np.float32)[::-1].transpose(1, 2, 0).copy()
        self._x, self._y = self.beams.grid(self.beams.coarse, np.arange(shape[1]))
        self._tissue = np.zeros((2, *shape), np.float32)
        self._frame = np.zeros((2, *shape), np.float32)
        self._passed = np.ones((len(self.beams.coarse), shape[1]), np.float32)
        self._echo, self._blurred, self._level = (np.zeros(shape, np.float32) for _ in range(3))
        self._shades = np.zeros(shape, np.uint8)

    def _conversion(self) -> tuple[Window, tuple[NDArray[np.int16], NDArray[np.uint16]]]:
        """Return the window of the picture that the sector fills, and its maps."""
        whole, fraction = self.beams.picture_maps(self.projection)
        left, top, width, height = cv2.boundingRect((whole[..., 0] >= 0).astype(np.uint8))
        window = slice(top, top + height), slice(left, left + width)
        return window, (whole[window].copy(), fraction[window].copy())

    def _model(self) -> None:
        """What depends on range alone: time gain, the near field, speckle's gain."""
        scan, frequency = self.scan, self.probe.frequency / 1e6
        there_and_back = 2.0 * 100.0 * frequency * scan.attenuation_compensated / _DB
        coarse = self.beams.coarse[:, None]
        # Grey is linear in decibels: black at -dynamic range, white at 0 dB after the gain.
        self._grey = 255.0 / scan.dynamic_range_db * _DB
        time_gain = (there_and_back * self.beams.ranges[:, None]
                     + (scan.dynamic_range_db + scan.gain_db) / _DB)
        self._offset = np.asarray(np.broadcast_to(self._grey * time_gain, self.beams.shape),
                                  np.float32)
        self._coarse_gain = np.asarray(np.exp(there_and_back * coarse), np.float32)
        # Skin is pressed against the face, whatever its shape, and the face itself rings.
        near = 15.0 / _DB * np.exp(-(coarse / 0.0016) ** 2)
        gain = np.interp(self.beams.coarse, self.beams.ranges, self._speckle.gain[:, 0])
        self._near = np.asarray(near, np.float32)
        self._speckle_gain = np.asarray(gain[:, None] * np.exp(-there_and_back * coarse),
                                        np.float32)

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
        self._complex(patient_T_image, needles, time, noise=False, fluids=fluids)
        grey = self._compressed(self._speckle.noise(time))
        picture = np.zeros((self.projection.height, self.projection.width), np.uint8)
        cv2.remap(grey, *self._maps, cv2.INTER_LINEAR, dst=picture[self._sector],
                  borderMode=cv2.BORDER_CONSTANT)
        return picture

    def _compressed(self, noise: tuple[Polar, Polar]) -> NDArray[np.uint8]:
        """Return the grey of every sample, which the next call reuses; adds noise to the frame."""
        real, imaginary = self._frame
        for first in range(0, len(self._shades), _STRIP):
            rows = slice(first, first + _STRIP)
            cv2.add(real[rows], noise[0][rows], dst=real[rows])
            cv2.add(imaginary[rows], noise[1][rows], dst=imaginary[rows])
            level = cv2.magnitude(real[rows], imaginary[rows], magnitude=self._level[rows])
            cv2.log(level, dst=level)
            cv2.addWeighted(level, self._grey, self._offset[rows], 1.0, 0.0,
                            dst=self._shades[rows], dtype=cv2.CV_8U)
        return self._shades

    def envelope(self, patient_T_image: Transform, needles: Sequence[Needle] = (),
                 time: float = 0.0, noise: bool = True,
                 fluids: Sequence[Injectate] = ()) -> Polar:
        """Return the echo amplitude before time gain and compression.

        Returns:
            (samples, beams) float32; 1 is about a bone square to the beam at the face. Rows and
            columns are those of ``beams``.
        """
        self._complex(patient_T_image, needles, time, noise, fluids)
        # Always into the same memory: where it lies decides the last bit of the last number.
        cv2.magnitude(self._frame[0], self._frame[1], magnitude=self._level)
        return self._level.copy()

    def _complex(self, patient_T_image: Transform, needles: Sequence[Needle], time: float,
                 noise: bool, fluids: Sequence[Injectate] = ()) -> None:
        """Fill the frame: tissue, fluids, needles and noise, real and imaginary."""
        if self._pose is None or not is_still(self._pose, patient_T_image):
            self._look(patient_T_image)
            self._pose = np.array(patient_T_image)
            self._walls = (self._seen_vessels().walls(patient_T_image, self.pulsation)
                           if self.pulsation else None)
        self._beat(time)
        for fluid in fluids:
            self._wash(inverse(patient_T_image) @ fluid.pose, fluid)
        shaft = self._shafts.shaft(inverse(patient_T_image), needles) if needles else None
        if shaft is not None:
            self._shafts.darken(shaft, self._frame)
            window = self._shafts.splat(shaft, self._passed, self._echo)
            self._ring(window)
        if noise:
            for part, added in zip(self._frame, self._speckle.noise(time), strict=True):
                cv2.add(part, added, dst=part)

    def doppler(self, picture: NDArray[np.uint8], patient_T_image: Transform, time: float = 0.0,
                kind: str = 'colour', scale: float = 0.4) -> NDArray[np.uint8]:
        """Return a frame, the last one rendered, with the flow of blood in colour.

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
        grain = self._speckle.noise(time)[0][:len(self._passed)] * np.float32(
            0.12 * 10.0 ** (-self.scan.noise_db / 20.0))
        return self._seen_vessels().coloured(picture, patient_T_image, time, self._passed
                                             * self._coarse_gain, grain, kind, scale)

    def _seen_vessels(self) -> Vessels:
        if self._vessels is None:
            self._vessels = Vessels(self.patient, self.beams, self.projection)
        return self._vessels

    def _beat(self, time: float) -> None:
        """Copy the tissue into the frame, moved by the moment's heartbeat."""
        np.copyto(self._frame, self._tissue)
        walls, share = self._walls, heartbeat(time)
        if walls is None:
            return
        maps = cv2.convertMaps(cv2.scaleAdd(walls.shift, -share, self._places[walls.window]), None,
                               cv2.CV_16SC2)
        for tissue, frame in zip(self._tissue, self._frame, strict=True):
            frame[walls.window] = cv2.remap(tissue, *maps, cv2.INTER_LINEAR,
                                            borderMode=cv2.BORDER_REPLICATE)

    def _wash(self, image_T_fluid: Transform, fluid: Injectate) -> None:
        """Take the echoes out of a fluid, and let through what tissue would have taken."""
        reach = fluid.reach
        window = self._around(image_T_fluid[:3, 3], reach + 0.001)
        if window is None:
            return
        level = fluid.level(inverse(image_T_fluid), self._x[window], self._y[window])
        held = np.minimum(np.maximum((1.0 - level) * np.float32(reach / 0.002) + 0.5, 0.0), 1.0)
        left, top, width, height = cv2.boundingRect((held > 0.0).astype(np.uint8))
        if not width:
            return
        first, columns = window[0].start + top, slice(
            window[1].start + left, window[1].start + left + width)
        inside = np.zeros((len(self.beams.coarse) - first, width), np.float32)
        inside[:height] = held[top:top + height, left:left + width]
        gained = (2.0 * 100.0 * COARSE * self.beams.step * self.probe.frequency / 1e6
                  * _FLUID_GAIN / _DB)
        share = cv2.exp((summed_down(inside) - 0.375 * inside) * np.float32(gained))
        share *= 1.0 - inside * np.float32(1.0 - 10.0 ** (_FLUID_DB / 20.0))
        below = slice(COARSE * first, self.beams.shape[0])
        fine = self.beams.fine(share)[:below.stop - below.start]
        for part in self._frame[:, below, columns]:
            part *= fine

    def _around(self, centre: NDArray[np.float64], reach: float) -> Window | None:
        """Return the coarse rows, and the beams, that a ball may be in; None if it is not."""
        if abs(centre[2]) > reach:
            return None
        beam, sample = self.beams.polar(centre[:2])
        down = reach / self.beams.step
        across = reach / float(self.beams.pitch(np.maximum(sample - down, 0.0)
                                                * self.beams.step)) + 1.0
        low = np.array([(sample - down) / COARSE - 1, beam - across])
        high = np.array([(sample + down) / COARSE + 2, beam + across + 2])
        size = np.array(self._passed.shape)
        low, high = np.clip(low, 0, size).astype(int), np.clip(high, 0, size).astype(int)
        if np.any(high - low < 1):
            return None
        return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))

    def _ring(self, window: Window) -> None:
        """Add the echo of steel to the frame as the probe sees it, and clear it."""
        wide = tuple(slice(max(part.start - reach, 0), part.stop + reach)
                     for part, reach in zip(window, self._speckle.reach, strict=True))
        rows, columns = (slice(part.start, min(part.stop, count))
                         for part, count in zip(wide, self.beams.shape, strict=True))
        blurred = self._speckle.blur(self._echo, self._blurred, (rows, columns))
        self._frame[0, rows, columns] += blurred[rows, columns]
        self._echo[window] = 0.0

    def _look(self, patient_T_image: Transform) -> None:
        """Fill everything that depends on the probe's pose but not on needles."""
        acoustics = self._acoustics(patient_T_image)
        bone, scatter_db, sheet, attenuation = acoustics.seen(patient_T_image, self.beams)
        contact = self._contact(scatter_db)
        surface = self._bone.surface(patient_T_image, acoustics, bone)
        # A row is bone from its surface on, sharper than voxels are.
        solid = np.minimum(np.maximum(2.0 * bone - np.float32(0.5), 0.0), 1.0)
        # Amplitude, there and back: 2 · 100 cm/m; bone takes about 25 dB/(cm·MHz), ICRU 61.
        loss = (attenuation + (25.0 - attenuation) * solid) * np.float32(
            2.0 * 100.0 * COARSE * self.beams.step * self.probe.frequency / 1e6 / _DB)
        # Up to the middle of a row: of its four samples one and a half lie beyond. Nothing is
        # left of 350 dB, but numbers so small that processors halt over them.
        passed = cv2.exp(cv2.max(0.375 * loss - summed_down(loss), -40.0))
        passed *= contact
        self._passed = passed
        coherent = self._interfaces(sheet, passed)
        scatter_db += sheet * np.float32(_SHEET_SCATTER_DB)
        amplitude = self._scattering(scatter_db, surface)
        real, imaginary = self._speckle.scattered(patient_T_image)
        coherent += real * amplitude
        incoherent = np.multiply(imaginary, amplitude, out=amplitude)
        self._bone.add(surface, passed, (real, imaginary), (coherent, incoherent))
        self._speckle.blur(coherent, self._tissue[0])
        self._speckle.blur(incoherent, self._tissue[1])

    def _acoustics(self, patient_T_image: Transform) -> Acoustics:
        """Return the patient's acoustics; anew, in half a second, if the slice has turned over."""
        if self._kept is None or not self._kept.suits(patient_T_image):
            self._kept = None  # Only one of them is in memory.
            self._kept = make_acoustics(self.patient, self._seed, patient_T_image)
        return self._kept

    def _scattering(self, scatter_db: Polar, surface: Surface) -> Polar:
        """Return the amplitude of speckle at every sample: of tissue, and of clutter over it."""
        # As time gain shows it: what went astray above took its time in soft tissue.
        shown = cv2.max(self._passed * self._coarse_gain, 1e-10)
        echo = cv2.exp(scatter_db * np.float32(2.0 / _DB) + 2.0 * self._near)
        echo *= cv2.multiply(shown, shown)
        bone = (surface.level * shown[np.maximum(surface.above - 1, 0), surface.columns]) ** 2
        self._clutter.add(echo, surface, bone)
        return self.beams.fine(cv2.sqrt(echo) * self._speckle_gain)

    def _contact(self, scatter_db: Polar) -> Polar:
        """Air under the footprint cuts a beam off; gel and bulging tissue fill up to 8 mm.

        Fills what is filled with the echo of fat, in place; returns (beams,) transmission.
        """
        # No deeper than no sound gets through: what lies there is not seen.
        air = scatter_db[:int(0.013 / (COARSE * self.beams.step)) + 2] < -70.0
        above = np.logical_and.accumulate(air, axis=0)
        scatter_db[:len(air)][above] = -34.0
        gap = above.sum(axis=0)
        passed = np.minimum(np.maximum((0.013 - gap * (COARSE * self.beams.step)) / 0.003, 0.0),
                            1.0)
        return np.asarray(passed[None, :], np.float32)

    def _interfaces(self, sheet: Polar, passed: Polar) -> Polar:
        """Mirror-like echoes of sheets at every sample: strong where square to the beam.

        Args:
            sheet: (rows, beams) 0 to 1, at coarse ranges.
            passed: likewise, share of sound that comes back.
        """
        # A sheet thinner than the pulse echoes at its crest, and only if it runs across the beam.
        crest = cv2.sepFilter2D(sheet, -1, np.array([0.25, 1.0, 1.5, 1.0, 0.25]),
                                np.array([-1.0, 2.0, -1.0]))
        cv2.max(crest, 0.0, dst=crest)
        crest *= sheet * passed
        crest *= np.float32(_SHEET_LEVEL)
        return self.beams.fine(crest)


_DB = 20.0 / float(np.log(10.0))
# Samples whose numbers stay in the processor's cache.
_STRIP = 60
_SHEET_LEVEL = 0.045
_SHEET_SCATTER_DB = 9.0
# Of an injectate: echo against the tissue that it takes the place of, dB, and how much less it
# attenuates, dB/(cm·MHz).
_FLUID_DB, _FLUID_GAIN = -18.0, 0.4
