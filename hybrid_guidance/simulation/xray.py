"""Fluoroscopy of a digital patient: perspective line integrals, spectrum, scatter, noise.

Detector counts are proportional to photons: **air is bright**, bone and steel are dark.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, is_still, transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.simulation.anatomy import Grid, Patient
from hybrid_guidance.simulation.injectate import Injectate
from hybrid_guidance.simulation.instruments import Marker, Needle
from hybrid_guidance.simulation.tissues import WATER_LEVEL, density_table

Picture = NDArray[np.float32]

# Linear attenuation (1/m) at 35, 45, 55, 70 keV: NIST XCOM / NISTIR 5632 mass coefficients times
# density: water; compact bone (ICRU 44, 1.92 g/cm³) ; stainless steel (as iron, 7.9 g/cm³).
SOFT = (30.9, 24.6, 21.5, 19.3)
BONE = (177.0, 101.0, 70.0, 50.0)
STEEL = (4170.0, 2040.0, 1190.0, 640.0)
# Mass attenuation of iodine (m²/kg) at the same energies: NISTIR 5632, log-log between its lines.
IODINE = (3.11, 1.62, 0.956, 0.502)
# Share of the absorbed signal in each bin: 80 kVp tungsten, 3 mm Al and 0.1 mm Cu, 0.5 mm CsI.
SPECTRUM_80 = (0.20, 0.32, 0.31, 0.17)
# Water that the thick end of a wedge filter stands for, metres.
_WEDGE_REACH = 0.18
# Slices nearer to the source than this are not in the beam, metres.
_NEAREST = 0.01
# Rays are summed at this share of a voxel's edge: beyond it the bones would lose their edges.
_PITCH = 0.75
# Pixels: a cylinder of a larger radius is seen by four rays a pixel, a finer one by sixteen.
_THICK = 8.0
# Rows of a picture whose numbers stay in the processor's cache.
_STRIP = 32
# Photons per m² and Gy of air kerma, RQA5 (IEC 62220-1: 30 174 per mm² and µGy).
PHOTONS_PER_KERMA = 30174e12
# Air kerma at 1 m from the source, Gy/(mA·s) at 80 kVp, rising with the square of the voltage:
# 50 to 80 µGy for 70 to 90 kV behind 3 mm Al (University of Groningen, Radiation Protection,
# data sheet "X-ray tubes"), of which 0.1 mm of copper takes some 40 %.
OUTPUT_AT_80_KVP = 40e-6


@dataclass(frozen=True)
class Technique:
    """How a pulse is made and recorded.

    Attributes:
        kvp: tube voltage, kV.
        mas_per_pulse: tube charge of one pulse, mA·s.
        source_to_detector: metres.
        detector_size: (width, height) in metres.
        reference_distance: source to the patient entrance reference point, metres
            (IEC 60601-2-43: 15 cm from the isocentre towards the source).
        quantum_efficiency: share of the photons that are recorded.
        full_scale_kerma: air kerma at the detector that reads 65535, Gy; more saturates.
        blur: standard deviation of the detector's point spread, metres.
        scatter_to_primary: mean over the body, after the grid.
        equalisation: share of the missing thickness that the wedge filters in the collimator
            make up where the body is thin; without them the skin burns out.
        glare: share of the light that scatters far within the screen or image intensifier:
            veiling glare. About 0.01 of a flat panel, 0.06 to 0.10 of an intensifier (Rowlands
            and Yorkston, Handbook of Medical Imaging 1, SPIE 2000, chapter 4).
        glare_reach: standard deviation of that spread, metres.
        collimation: what blades of lead cover at the left, top, right and bottom of the
            detector, metres.
        distortion: how much further from the centre, as a share, an image intensifier shows
            the middle of a side (positive: pincushion). Needs a calibration of its own:
            ``projection`` leaves it out.
        electronic_noise: standard deviation, photons.
        noise: False for a noiseless detector.
    """

    kvp: float = 80.0
    mas_per_pulse: float = 0.6
    source_to_detector: float = 1.0
    detector_size: tuple[float, float] = (0.30, 0.30)
    reference_distance: float = 0.45
    quantum_efficiency: float = 0.7
    full_scale_kerma: float = 2.4e-6
    blur: float = 0.00017
    scatter_to_primary: float = 0.35
    equalisation: float = 0.65
    glare: float = 0.0
    glare_reach: float = 0.03
    collimation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    distortion: float = 0.0
    electronic_noise: float = 4.0
    noise: bool = True


class XrayRenderer:
    """Renders X-ray pulses of one patient.

    The anatomy is integrated when the C-arm has moved, and kept while it stands.

    Args:
        patient: voxels in ``patient``.
        projection: perspective, optical frame (x right, y down, z to the detector) to pixels.
        technique: tube and detector.
        seed: of the quantum noise.
        anatomy_step: detector pixels per side of one integrated ray (1 or 2).
    """

    def __init__(self, patient: Patient, projection: Projection, technique: Technique,
                 seed: int = 0, anatomy_step: int = 2) -> None:
        self.patient = patient
        self.projection = projection
        self.technique = technique
        self._step = anatomy_step
        self._size = (projection.width, projection.height)
        density = patient.density
        if density is None:
            density = _densities(patient)
        self._soft = Stack(density, patient.grid)
        self._bone = Stack(patient.mineral, patient.grid)
        self._around = (None if patient.surround is None
                        else Stack(patient.surround.density, patient.surround.grid))
        self._weights = _spectrum(technique.kvp)
        self._photons = self._photons_per_pixel()
        self._gain = 65535.0 / (self._photons * technique.full_scale_kerma
                                / self.detector_air_kerma_per_pulse())
        self._rng = np.random.default_rng(seed)
        self._bank = self._noise_bank()
        self._open = self._aperture()
        self._bent = _bent(self._size, technique.distortion)
        self._pose: Transform | None = None
        self._dirty: list[tuple[slice, slice]] = []
        self._allocate()

    def render(self, patient_T_optical: Transform, needles: Sequence[Needle] = (),
               fluids: Sequence[Injectate] = (),
               markers: Sequence[Marker] = ()) -> NDArray[np.uint16]:
        """Return one pulse.

        Args:
            patient_T_optical: (4, 4) pose of the X-ray source.
            needles: steel in the beam.
            fluids: contrast medium in the beam; fluid without iodine is taken for tissue.
            markers: balls of steel in the beam.

        Returns:
            (H, W) uint16 detector counts, proportional to photons; the caller owns it.
        """
        mean = self.expected(patient_T_optical, needles, fluids, markers)
        counts = np.empty(mean.shape, np.uint16)
        noise = self._noise() if self.technique.noise else None
        for first in range(0, len(mean), _STRIP):
            rows = slice(first, first + _STRIP)
            part = mean[rows]
            if noise is None:
                cv2.multiply(part, self._gain, dst=counts[rows], dtype=cv2.CV_16U)
                continue
            rest = cv2.multiply(self._deviation[rows], noise[rows], dst=self._out[:len(part)])
            # Adds, rounds and saturates in one pass.
            cv2.addWeighted(part, self._gain, rest, self._gain, 0.0, dst=counts[rows],
                            dtype=cv2.CV_16U)
        if self._bent is not None:
            counts = cv2.remap(counts, *self._bent, cv2.INTER_LINEAR)
        return np.asarray(counts, np.uint16)

    def expected(self, patient_T_optical: Transform, needles: Sequence[Needle] = (),
                 fluids: Sequence[Injectate] = (), markers: Sequence[Marker] = ()) -> Picture:
        """Return the mean recorded photons per pixel, (H, W) float32, before noise.

        The array is reused by the next call.
        """
        if self._pose is None or not is_still(self._pose, patient_T_optical):
            self._look(patient_T_optical)
            self._pose = np.array(patient_T_optical)
        else:
            for window in self._dirty:
                self._mean[window] = self._still[window]
                self._deviation[window] = self._still_deviation[window]
        shown = [fluid for fluid in fluids if fluid.iodine > 0.0]
        steel = [part for needle in needles for part in _cylinders(needle)]
        balls = [_Ball(marker.centre, marker.diameter / 2) for marker in markers]
        self._dirty = list(self._insert(patient_T_optical, [*steel, *balls], shown))
        return self._mean

    def line_integrals(self, patient_T_optical: Transform) -> tuple[Picture, Picture]:
        """Return the metres of soft tissue (as water) and of compact bone along each ray.

        Returns:
            Two (H / step, W / step) float32, rounded up; pixel i covers detector pixels
            i·step to i·step + step - 1.
        """
        shape = (-(-self._size[1] // self._step), -(-self._size[0] // self._step))
        matrix = coarse_pixels(self._step) @ self.projection.matrix
        bone = self._bone.integrate(matrix, patient_T_optical, shape) / np.float32(255.0)
        # Soft tissue is smooth: half as many rays do, and the coarse surround needs fewer still.
        soft = _upsampled(self._soft, matrix, patient_T_optical, shape, 2)
        if self._around is not None:
            soft += _upsampled(self._around, matrix, patient_T_optical, shape, 4)
        return soft / np.float32(WATER_LEVEL), bone

    def detector_air_kerma_per_pulse(self) -> float:
        """Return the air kerma of one pulse at the detector, without a patient, Gy."""
        return self.air_kerma_per_pulse(self.technique.source_to_detector)

    def air_kerma_per_pulse(self, distance: float | None = None) -> float:
        """Return the air kerma of one pulse free in air, Gy.

        Args:
            distance: from the source, metres; None is the reference point.
        """
        distance = self.technique.reference_distance if distance is None else distance
        voltage = self.technique.kvp / 80.0
        at_one_metre = OUTPUT_AT_80_KVP * voltage**2 * self.technique.mas_per_pulse
        return at_one_metre / distance**2

    def kerma_area_product_per_pulse(self) -> float:
        """Return the kerma-area product of one pulse, Gy·m²; the same at every distance."""
        (width, height), blades = self.technique.detector_size, self.technique.collimation
        area = max(width - blades[0] - blades[2], 0.0) * max(height - blades[1] - blades[3], 0.0)
        return self.detector_air_kerma_per_pulse() * area

    def _photons_per_pixel(self) -> float:
        width, height = self.technique.detector_size
        area = width * height / (self._size[0] * self._size[1])
        return (self.detector_air_kerma_per_pulse() * PHOTONS_PER_KERMA * area
                * self.technique.quantum_efficiency)

    def _allocate(self) -> None:
        shape = (self._size[1], self._size[0])
        self._mean: Picture = np.zeros(shape, np.float32)
        self._still: Picture = np.zeros(shape, np.float32)
        self._scatter: Picture = np.zeros(shape, np.float32)
        self._deviation: Picture = np.zeros(shape, np.float32)
        self._still_deviation: Picture = np.zeros(shape, np.float32)
        self._out: Picture = np.zeros((_STRIP, shape[1]), np.float32)
        self._bins: list[Picture] = [np.zeros(shape, np.float32) for _ in self._weights]

    def _noise_bank(self) -> Picture:
        """Unit normal noise, larger than an image so that each pulse takes another part.

        Kept as seen in a mirror, too: OpenCV would copy what is turned over only for it.
        """
        shape = (2, self._size[1] + 128, self._size[0] + 128)
        bank = np.empty(shape, np.float32)
        self._rng.standard_normal(dtype=np.float32, out=bank[0])
        bank[1] = bank[0, ::-1, ::-1]
        return bank

    def _noise(self) -> Picture:
        top, left, side = self._rng.integers(0, (128, 128, 2)).tolist()
        return self._bank[side, top:top + self._size[1], left:left + self._size[0]]

    def _spread(self, picture: Picture, sigma: float) -> Picture:
        if sigma <= 0.0:
            return picture
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma,
                                           borderType=cv2.BORDER_REPLICATE), np.float32)

    @property
    def _blur_pixels(self) -> float:
        return self.technique.blur * self._size[0] / self.technique.detector_size[0]

    def _look(self, patient_T_optical: Transform) -> None:
        """Fill everything that depends on the C-arm but not on needles."""
        soft, bone = self.line_integrals(patient_T_optical)
        total = np.zeros_like(soft)
        incident = self._wedge(soft)
        incident *= self._open
        for index, weight in enumerate(self._weights):
            passed = cv2.exp(-SOFT[index] * soft - BONE[index] * bone)
            passed *= incident * np.float32(weight * self._photons)
            total += passed
            self._bins[index][:] = self._full(passed)
        self._scatter[:] = self._full(self._glared(total, self._scattered(total)))
        primary: Picture = np.asarray(np.sum(self._bins, axis=0), np.float32)
        self._still[:] = self._spread(primary, self._blur_pixels) + self._scatter
        self._still_deviation[:] = self._noise_level(self._still)
        self._mean[:] = self._still
        self._deviation[:] = self._still_deviation

    def _aperture(self) -> Picture:
        """Return the share of each ray that passes the blades; cut pixels pass in part."""
        sides = []
        for axis in (0, 1):
            count, length = self._size[axis], self.technique.detector_size[axis]
            pitch = length / count * self._step
            edge = np.arange(-(-count // self._step)) * pitch
            first = self.technique.collimation[axis]
            blade = self.technique.collimation[axis + 2]
            # The last ray of an odd number of pixels is half outside the detector, not covered.
            last = length - blade if blade > 0.0 else np.inf
            sides.append(np.clip((np.minimum(edge + pitch, last) - np.maximum(edge, first))
                                 / pitch, 0.0, 1.0))
        return np.asarray(np.outer(sides[1], sides[0]), np.float32)

    def _glared(self, primary: Picture, scatter: Picture) -> Picture:
        """Return what is added to the primary image: scatter, and light moved by glare.

        Taken from where needles are not: a needle's own share of the glare is left out.
        """
        share = np.float32(self.technique.glare)
        if share <= 0.0:
            return scatter
        signal = primary + scatter
        small = cv2.resize(signal, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
        reach = self.technique.glare_reach / self.technique.detector_size[0] * small.shape[1]
        wide = cv2.resize(self._spread(small, reach), primary.shape[::-1],
                          interpolation=cv2.INTER_LINEAR)
        return np.asarray(scatter + share * (wide - signal), np.float32)

    def _full(self, picture: Picture) -> Picture:
        """Return a picture of rays at the detector's size."""
        whole = cv2.resize(picture, None, fx=self._step, fy=self._step,
                           interpolation=cv2.INTER_LINEAR)
        return np.asarray(whole[:self._size[1], :self._size[0]], np.float32)

    def _wedge(self, soft: Picture) -> Picture:
        """Return the share of the beam that the wedge filters let through, smooth."""
        body = soft > 0.02
        if self.technique.equalisation <= 0.0 or not np.any(body):
            return np.ones_like(soft)
        small = cv2.resize(soft, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
        low = self._spread(small, 0.07 * small.shape[1])
        # A wedge is only so thick: bare air stays the brightest.
        missing = np.clip(np.float32(np.median(soft[body])) - low, 0.0, _WEDGE_REACH)
        wedge = cv2.exp(np.float32(-SOFT[2] * self.technique.equalisation) * missing)
        return np.asarray(cv2.resize(wedge, soft.shape[::-1], interpolation=cv2.INTER_LINEAR))

    def _noise_level(self, mean: Picture) -> Picture:
        return np.asarray(cv2.sqrt(mean + np.float32(self.technique.electronic_noise**2)),
                          np.float32)

    def _scattered(self, primary: Picture) -> Picture:
        """Forward scatter: a wide blur of p·exp(-p) (Ohnesorge et al., Eur Radiol 1999;9:563)."""
        ratio = self.technique.scatter_to_primary
        depth = -np.log(np.maximum(primary / np.float32(self._photons), 1e-8))
        body = depth > 0.5
        if ratio <= 0.0 or not np.any(body):
            return np.zeros_like(primary)
        source = cv2.resize(primary * depth, None, fx=0.125, fy=0.125,
                            interpolation=cv2.INTER_AREA)
        wide = self._spread(source, 0.1 * source.shape[1])
        wide = cv2.resize(wide, primary.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(wide * (ratio * primary[body].mean() / wide[body].mean()), np.float32)

    def _insert(self, patient_T_optical: Transform, steel: Sequence['_Solid'],
                fluids: Sequence[Injectate]) -> Iterator[tuple[slice, slice]]:
        """Put steel and contrast medium into the mean image, each only where it is."""
        optical_T_patient = inverse(patient_T_optical)
        margin = int(np.ceil(4 * self._blur_pixels)) + 2
        for window in _windows(self.projection, optical_T_patient, steel, fluids, margin):
            primary = np.zeros([piece.stop - piece.start for piece in window], np.float32)
            passed = self._passed(window, optical_T_patient, steel)
            for fluid in fluids:
                iodine = self._fluid(window, optical_T_patient @ fluid.pose, fluid)
                for share, attenuation in zip(passed, IODINE, strict=True):
                    share *= cv2.exp(iodine * np.float32(-attenuation))
            for level, share in zip(self._bins, passed, strict=True):
                primary += level[window] * share
            blurred = self._spread(primary, self._blur_pixels) + self._scatter[window]
            core = _shrunk(window, margin // 2, self._size)
            inner = _relative(core, window)
            self._mean[core] = blurred[inner]
            self._deviation[core] = self._noise_level(blurred[inner])
            yield core

    def _fluid(self, window: tuple[slice, slice], optical_T_fluid: Transform,
               fluid: Injectate) -> Picture:
        """Return the iodine along the rays of a window, kg/m²; smooth, so every second is cast."""
        rows, columns = (np.arange(piece.start, piece.stop + 2, 2) for piece in window)
        matrix, fluid_T_optical = self.projection.matrix, inverse(optical_T_fluid)
        chords = np.float32(fluid.iodine) * fluid.chords(
            fluid_T_optical[:3, 3], fluid_T_optical[:3, :3],
            (columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1])
        across, down = (np.arange(piece.stop - piece.start, dtype=np.float32) / 2
                        for piece in window[::-1])
        maps = np.meshgrid(across, down)
        return np.asarray(cv2.remap(chords, *maps, cv2.INTER_LINEAR))

    def _passed(self, window: tuple[slice, slice], optical_T_patient: Transform,
                steel: Sequence['_Solid']) -> Picture:
        """Return the share of each energy bin that steel lets through, (bins, h, w)."""
        shape = [piece.stop - piece.start for piece in window]
        passed = np.ones((len(STEEL), *shape), np.float32)
        for solid in steel:
            rows, columns, chords = solid.chords(window, self.projection, optical_T_patient)
            if not len(rows):
                continue
            for share, attenuation in zip(passed, STEEL, strict=True):
                share[rows, columns] *= cv2.exp(chords * np.float32(-attenuation)).mean(axis=0)
        return passed


class Stack:
    """A volume of uint8, integrated along rays slice by slice.

    Built for the axis that the rays run along, and kept.
    """

    def __init__(self, voxels: NDArray[np.uint8], grid: Grid) -> None:
        self._grid = grid
        self._sources = voxels
        self._stacks: dict[int, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}

    def _stack(self, axis: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return slices across an axis (0 is x) and their boxes (l, t, r, b), 0 if empty."""
        if axis not in self._stacks:
            order = {0: (2, 0, 1), 1: (1, 0, 2), 2: (0, 1, 2)}[axis]
            slices = np.ascontiguousarray(self._sources.transpose(order))
            self._stacks[axis] = slices, np.array([_extent(layer) for layer in slices])
        return self._stacks[axis]

    def integrate(self, matrix: Array, patient_T_optical: Transform,
                  shape: tuple[int, int]) -> Picture:
        """Return the sum of voxel values times metres along every ray, (H, W) float32.

        Between parallel planes a pinhole only scales and shifts: all slices are summed in the
        plane of the nearest, and one homography takes the sum to the detector (shear-warp,
        Lacroute and Levoy, SIGGRAPH 1994).
        """
        axis = int(np.argmax(np.abs(patient_T_optical[:3, 2])))
        slices, extents = self._stack(axis)
        across = [index for index in (0, 1, 2) if index != axis]
        source = patient_T_optical[:3, 3]
        away = self._grid.origin[axis] + np.arange(len(slices)) * self._grid.spacing - source[axis]
        away = away * np.sign(patient_T_optical[axis, 2])
        seen = (away > _NEAREST) & (extents[:, 2] > extents[:, 0])
        if not np.any(seen):
            return np.zeros(shape, np.float32)
        nearest = float(away[seen].min())
        scale = nearest / np.where(seen, away, np.inf)
        camera = matrix @ inverse(patient_T_optical)
        plane = np.zeros((4, 3))
        plane[across[0], 0] = plane[across[1], 1] = 1.0
        plane[3, 2] = 1.0
        plane[axis, 2] = source[axis] + nearest * np.sign(patient_T_optical[axis, 2])
        detector = camera @ plane
        pitch = max(self._grid.spacing * _PITCH,
                    nearest / float(max(matrix[0, 0], matrix[1, 1])))
        # Of every slice: the first and last voxel's place in the common plane, metres.
        origin = self._grid.origin[across] - source[across]
        low, high = (source[across] + scale[:, None] * (
            origin + extents[:, part] * self._grid.spacing) for part in ((0, 1), (2, 3)))
        box = _box(low[seen].min(axis=0), high[seen].max(axis=0), detector, shape, 3.0 * pitch)
        if box is None:
            return np.zeros(shape, np.float32)
        total = self._summed(slices, extents, seen, scale * self._grid.spacing / pitch,
                             (low - box[0]) / pitch, np.ceil((box[1] - box[0]) / pitch))
        detector = detector @ np.array([[pitch, 0, box[0][0]], [0, pitch, box[0][1]], [0, 0, 1.0]])
        result = cv2.warpPerspective(total, detector, shape[::-1], flags=cv2.INTER_CUBIC)
        cv2.max(result, 0.0, dst=result)
        return np.asarray(result * self._thickness(matrix, patient_T_optical, axis, shape),
                          np.float32)

    def _summed(self, slices: NDArray[np.uint8], extents: NDArray[np.int64],
                seen: NDArray[np.bool_], scale: Array, shift: Array, size: Array) -> Picture:
        """Return the sum of all slices, each scaled about its shift, (H, W) float32."""
        shape = (int(size[1]), int(size[0]))
        total, sums = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
        layer = np.zeros(shape, np.uint8)
        span = scale[:, None] * (extents[:, 2:] - extents[:, :2])
        first = np.clip(np.floor(shift - scale[:, None]), 0, size).astype(int)
        last = np.clip(np.ceil(shift + span) + 1, 0, size).astype(int)
        affine = np.zeros((2, 3))
        for number, index in enumerate(np.flatnonzero(seen & np.all(last > first, axis=1))):
            left, top, right, bottom = extents[index]
            (x, y), (x_end, y_end) = first[index], last[index]
            affine[0, 0] = affine[1, 1] = scale[index]
            affine[:, 2] = shift[index] - first[index]
            view = layer[:y_end - y, :x_end - x]
            cv2.warpAffine(slices[index, top:bottom, left:right], affine, view.shape[::-1],
                           dst=view, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            window = sums[y:y_end, x:x_end]
            np.add(window, view, out=window)
            if number % 256 == 255:
                total += sums
                sums[:] = 0
        total += sums
        return total

    def _thickness(self, matrix: Array, patient_T_optical: Transform, axis: int,
                   shape: tuple[int, int]) -> Picture:
        """Return the metres of each ray between neighbouring slices, (H, W)."""
        columns = (np.arange(shape[1], dtype=np.float32) - matrix[0, 2]) / matrix[0, 0]
        rows = (np.arange(shape[0], dtype=np.float32)[:, None] - matrix[1, 2]) / matrix[1, 1]
        along = (patient_T_optical[axis, 0] * columns + patient_T_optical[axis, 1] * rows
                 + patient_T_optical[axis, 2])
        length = np.sqrt(1.0 + columns**2 + rows**2)
        return np.asarray(self._grid.spacing * length / np.abs(along), np.float32)


def _densities(patient: Patient) -> NDArray[np.uint8]:
    """Return the densities of a patient's tissues, less what the surround has of them already."""
    density = np.asarray(cv2.LUT(patient.labels, density_table()), np.uint8)
    if patient.surround is not None and patient.surround.left is not None:
        z, y, x = patient.surround.left
        flat = np.outer(y, x).astype(np.float32)
        for layer, share in zip(density, z, strict=True):
            cv2.multiply(layer, flat, dst=layer, scale=float(share), dtype=cv2.CV_8U)
    return density


def _upsampled(stack: Stack, matrix: Array, patient_T_optical: Transform,
               shape: tuple[int, int], step: int) -> Picture:
    coarse = (-(-shape[0] // step), -(-shape[1] // step))
    rough = stack.integrate(coarse_pixels(step) @ matrix, patient_T_optical, coarse)
    whole = cv2.resize(rough, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole[:shape[0], :shape[1]], np.float32)


@dataclass(frozen=True)
class _Cylinder:
    """A solid or hollow cylinder with flat ends: from ``start`` to ``end`` behind the tip."""

    pose: Transform
    start: float
    end: float
    radius: float
    bore: float
    steel: float

    @property
    def ends(self) -> Points:
        return np.asarray(self.pose[:3, 3]
                          - np.array([[self.start], [self.end]]) * self.pose[:3, 2])

    def chords(self, window: tuple[slice, slice], projection: Projection,
               optical_T_patient: Transform) -> (
            tuple[NDArray[np.int64], NDArray[np.int64], Picture]):
        """Return the pixels of a window that it may darken, and the metres of steel there.

        A pixel is wide against a needle, so each has several rays.

        Returns:
            Rows and columns within the window, (N,) each, and (rays, N) metres.
        """
        ends = transform_points(optical_T_patient, self.ends)
        rows, columns = _near(projection, window, ends, self.radius)
        if not len(rows):
            return rows, columns, np.zeros((1, 0), np.float32)
        thick = self.radius * _focal(projection) / float(ends[:, 2].min()) > _THICK
        first = np.array([[window[1].start], [window[0].start]])
        pixels = np.stack([columns, rows]) + first
        cylinder_T_optical = inverse(optical_T_patient @ self.pose)
        rays = _Rays.through(pixels, _subpixels(2 if thick else 4), projection, cylinder_T_optical)
        chord = rays.chord(self.radius, -self.end, -self.start)
        if self.bore > 0.0:
            chord -= rays.chord(self.bore, -self.end, -self.start)
        chord *= np.float32(self.steel)
        return rows, columns, chord


@dataclass(frozen=True)
class _Rays:
    """Rays through a cylinder about the z axis of its frame, parametrised by depth.

    Attributes:
        way: (3, rays, N) per metre of depth.
        towards: (rays, N) what of the way leads to the axis, times the source's distance.
        aside: (rays, N) what leads past it, likewise.
        lengths: (N,) metres of a ray per metre of depth.
        height: of the source, z, metres.
    """

    way: Picture
    towards: Picture
    aside: Picture
    lengths: Picture
    height: float

    @classmethod
    def through(cls, pixels: Array, offsets: Array, projection: Projection,
                cylinder_T_optical: Transform) -> '_Rays':
        """Return the rays of (2, N) pixels, each at (2, rays) offsets from its middle."""
        matrix, middle = projection.matrix, pixels.mean(axis=1)
        focal, centre = matrix[[0, 1], [0, 1]], matrix[:2, 2]
        x, y, height = cylinder_T_optical[:3, 3]
        rotation = cylinder_T_optical[:3, :3]
        # All of it is linear in the pixel. Counted from the middle of the shadow, where a ray
        # meets the axis, differences of large numbers are taken here, in 64 bits.
        parts = np.vstack([rotation, x * rotation[0] + y * rotation[1],
                           x * rotation[1] - y * rotation[0]])
        slopes = parts[:, :2] / focal
        tangents = (pixels - centre[:, None]) / focal[:, None]
        start = parts @ np.append((middle - centre) / focal, 1.0)
        values = (start[:, None] + slopes @ (pixels - middle[:, None])).astype(np.float32)
        whole = values[:, None, :] + (slopes @ offsets).astype(np.float32)[:, :, None]
        lengths = np.sqrt(1.0 + (tangents**2).sum(axis=0))
        return cls(whole[:3], whole[3], whole[4], lengths.astype(np.float32), float(height))

    def chord(self, radius: float, low: float, high: float) -> Picture:
        """Return the metres inside a cylinder between two heights, (rays, N)."""
        x, y, z = self.way
        across = np.maximum(x * x + y * y, np.float32(1e-12))
        root = across * np.float32(radius**2)
        root -= self.aside * self.aside
        np.sqrt(np.maximum(root, 0.0, out=root), out=root)
        near, far = -self.towards - root, root - self.towards
        near /= across
        far /= across
        slope = np.where(np.abs(z) < 1e-9, np.float32(1e-9), z)
        first, last = (np.float32(end - self.height) / slope for end in (low, high))
        np.maximum(near, np.minimum(first, last), out=near)
        np.minimum(far, np.maximum(first, last, out=first), out=far)
        far -= near
        np.maximum(far, 0.0, out=far)
        far *= self.lengths
        return np.asarray(far)


@dataclass(frozen=True)
class _Ball:
    """A solid ball."""

    centre: Points
    radius: float

    @property
    def ends(self) -> Points:
        return np.stack([self.centre, self.centre])

    def chords(self, window: tuple[slice, slice], projection: Projection,
               optical_T_patient: Transform) -> (
            tuple[NDArray[np.int64], NDArray[np.int64], Picture]):
        """Return what ``_Cylinder.chords`` does: a ray at d from the middle has 2 √(r² - d²)."""
        rows, columns = _near(projection, window, transform_points(optical_T_patient, self.ends),
                              self.radius)
        first = np.array([[window[1].start], [window[0].start]])
        matrix = projection.matrix
        pixels = (np.stack([columns, rows]) + first)[:, None, :] + _subpixels(4)[:, :, None]
        u, v = ((pixels[axis] - matrix[axis, 2]) / matrix[axis, axis] for axis in (0, 1))
        x, y, z = transform_points(optical_T_patient, self.centre)
        beside = (y - z * v) ** 2 + (z * u - x) ** 2 + (x * v - y * u) ** 2
        square = self.radius**2 - beside / (1.0 + u * u + v * v)
        return rows, columns, np.asarray(2.0 * np.sqrt(np.maximum(square, 0.0)), np.float32)


_Solid = _Cylinder | _Ball


def _bent(size: tuple[int, int], distortion: float) -> tuple[Picture, Picture] | None:
    """Return the columns and rows that each pixel of a distorted picture shows, or None.

    A point at r (1 at the middle of a side) is shown at r (1 + distortion r²).
    """
    if distortion == 0.0:
        return None
    x, y = np.meshgrid(*[(np.arange(count) - (count - 1) / 2) / (size[0] / 2) for count in size])
    shown = np.hypot(x, y)
    true = shown.copy()
    for _ in range(8):
        true = shown / (1.0 + distortion * true**2)
    shrink = true / np.maximum(shown, 1e-9) * (size[0] / 2)
    return (np.asarray(x * shrink + (size[0] - 1) / 2, np.float32),
            np.asarray(y * shrink + (size[1] - 1) / 2, np.float32))


def _spectrum(kvp: float) -> tuple[float, ...]:
    """Return the weights of the energy bins: harder with voltage, equal sum."""
    tilt = (kvp - 80.0) / 80.0
    raw = [weight * np.exp(tilt * (energy - 50.0) / 15.0)
           for weight, energy in zip(SPECTRUM_80, (35.0, 45.0, 55.0, 70.0), strict=True)]
    return tuple(float(value / sum(raw)) for value in raw)


def coarse_pixels(step: int) -> Array:
    """Return the (3, 3) map from pixels to pixels ``step`` times as large."""
    shift = 0.5 / step - 0.5
    return np.array([[1.0 / step, 0.0, shift], [0.0, 1.0 / step, shift], [0.0, 0.0, 1.0]])


def _extent(layer: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    left, top, width, height = cv2.boundingRect(layer)
    if width == 0:
        return 0, 0, 0, 0
    return (max(left - 1, 0), max(top - 1, 0), min(left + width + 1, layer.shape[1]),
            min(top + height + 1, layer.shape[0]))


def _box(low: Points, high: Points, detector: Array, shape: tuple[int, int],
         margin: float) -> tuple[Points, Points] | None:
    """Return what of a box (2,), (2,) in a plane the detector sees, metres; None if nothing.

    Args:
        low: lowest corner.
        high: highest corner.
        detector: (3, 3) from the plane to pixels.
        shape: rows and columns of the detector.
        margin: added on every side, metres.
    """
    width, height = shape[1], shape[0]
    corners = np.linalg.solve(detector, np.array([
        [-1.0, width, width, -1.0], [-1.0, -1.0, height, height], [1.0, 1.0, 1.0, 1.0]]))
    # A corner whose ray runs away from the plane bounds nothing.
    if np.all(corners[2] > 0.0):
        places = corners[:2] / corners[2]
        low, high = np.maximum(low, places.min(axis=1)), np.minimum(high, places.max(axis=1))
    if np.any(low >= high):
        return None
    return low - margin, high + margin


def _cylinders(needle: Needle) -> tuple[_Cylinder, ...]:
    shaft = _Cylinder(needle.pose, 0.0, needle.length, needle.diameter / 2, needle.bore / 2, 1.0)
    if needle.hub_length <= 0.0:
        return (shaft,)
    return shaft, _Cylinder(needle.pose, needle.length, needle.length + needle.hub_length,
                            needle.hub_diameter / 2, 0.0, needle.hub_steel)


def _bounds(projection: Projection, ends: Points, radius: float,
            margin: int) -> tuple[slice, slice]:
    """Return rows and columns of a box round a segment (2, 3) in the optical frame, clipped."""
    depth = np.maximum(ends[:, 2:], 1e-3)
    pixels = projection.pixels(np.concatenate([ends[:, :2], depth], axis=1))
    reach = radius * _focal(projection) / float(depth.min()) + margin
    low = np.floor(pixels.min(axis=0) - reach)
    high = np.ceil(pixels.max(axis=0) + reach) + 1
    size = (projection.width, projection.height)
    columns, rows = (slice(int(np.clip(a, 0, n)), int(np.clip(b, 0, n)))
                     for a, b, n in zip(low, high, size, strict=True))
    return rows, columns


def _windows(projection: Projection, optical_T_patient: Transform, steel: Sequence['_Solid'],
             fluids: Sequence[Injectate], margin: int) -> Iterator[tuple[slice, slice]]:
    """Return boxes that hold all steel and fluids and do not overlap."""
    boxes = []
    for fluid in fluids:
        middle = transform_points(optical_T_patient, np.stack([fluid.pose[:3, 3]] * 2))
        rows, columns = _bounds(projection, middle, fluid.reach, 2 * margin)
        if rows.start < rows.stop and columns.start < columns.stop:
            boxes.append((rows, columns))
    for solid in steel:
        ends = transform_points(optical_T_patient, solid.ends)
        rows, columns = _bounds(projection, ends, solid.radius, 2 * margin)
        if rows.start < rows.stop and columns.start < columns.stop:
            boxes.append((rows, columns))
    yield from _merged(boxes)


def _merged(boxes: list[tuple[slice, slice]]) -> list[tuple[slice, slice]]:
    result: list[tuple[slice, slice]] = []
    for box in boxes:
        rows, columns = box
        while touching := [other for other in result if _touch((rows, columns), other)]:
            for other in touching:
                result.remove(other)
            group = [(rows, columns), *touching]
            rows, columns = (slice(min(item[axis].start for item in group),
                                   max(item[axis].stop for item in group)) for axis in (0, 1))
        result.append((rows, columns))
    return result


def _touch(first: tuple[slice, slice], second: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _shrunk(window: tuple[slice, slice], margin: int,
            size: tuple[int, int]) -> tuple[slice, slice]:
    """Take the edge off a window, where a blur saw no neighbours, but not off the image."""
    rows, columns = (slice(piece.start + (margin if piece.start > 0 else 0),
                           piece.stop - (margin if piece.stop < limit else 0))
                     for piece, limit in zip(window, size[::-1], strict=True))
    return rows, columns


def _relative(inner: tuple[slice, slice], outer: tuple[slice, slice]) -> tuple[slice, slice]:
    rows, columns = (slice(a.start - b.start, a.stop - b.start)
                     for a, b in zip(inner, outer, strict=True))
    return rows, columns


def _near(projection: Projection, window: tuple[slice, slice], ends: Points,
          radius: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels of a window that a thick segment (2, 3) may touch."""
    depth = np.maximum(ends[:, 2:], 1e-3)
    start, end = projection.pixels(np.concatenate([ends[:, :2], depth], axis=1))
    reach = radius * _focal(projection) / float(depth.min()) + 1.0
    own = _bounds(projection, ends, radius, 2)
    first, last = ([pick(a, b) for a, b in zip(*pair, strict=True)] for pick, pair in (
        (max, [[piece.start for piece in box] for box in (own, window)]),
        (min, [[piece.stop for piece in box] for box in (own, window)])))
    x = np.arange(first[1], last[1], dtype=np.float32) - np.float32(start[0])
    y = np.arange(first[0], last[0], dtype=np.float32) - np.float32(start[1])
    axis = (end - start).astype(np.float32)
    along = (x * axis[0] + y[:, None] * axis[1]) / np.float32(max(float(axis @ axis), 1e-6))
    np.clip(along, 0.0, 1.0, out=along)
    distance = (x - along * axis[0]) ** 2 + (y[:, None] - along * axis[1]) ** 2
    rows, columns = np.nonzero(distance < reach**2)
    return rows + (first[0] - window[0].start), columns + (first[1] - window[1].start)


def _focal(projection: Projection) -> float:
    """Return the focal length in the smaller side of a pixel."""
    return float(max(projection.matrix[0, 0], projection.matrix[1, 1]))


def _subpixels(count: int) -> Array:
    """Return the (2, count²) offsets of rays that share a pixel, from its middle."""
    steps = (np.arange(count) + 0.5) / count - 0.5
    return np.stack(np.meshgrid(steps, steps)).reshape(2, -1)
