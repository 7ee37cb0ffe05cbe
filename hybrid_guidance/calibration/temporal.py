"""How late images are stamped, from one motion that both the image and the tracker saw.

The probe goes up and down over the floor of a water tank. The depth of the floor in the image is
compared with the tracked motion along its main direction, shifted in time until both agree best:
least squares with free gain and offset, which is the maximum of the correlation (Treece et al.,
Ultrasound Med. Biol. 2003), refined between samples by a parabola. A grabber's stamps jitter by
tens of milliseconds while its frames come regularly: where frame numbers are known, the stamps
are also tried smoothed to a straight line in time, and the clock that explains the motion better
is taken.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration import gates
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry.types import Array, Image

_BLOCKS = 8
_MINIMUM_CONTRAST = 12.0


@dataclass(frozen=True)
class DelayCalibration:
    """A delay and how well it is known.

    Attributes:
        delay: seconds by which images are stamped later than poses of the same moment. PLUS's
            TrackerLagSec is this with the opposite sign.
        deviation: seconds, by leaving out blocks of time.
        residual: metres, root mean square of what the motion leaves unexplained.
        held_out: metres, the same of blocks that were not used.
        regular: whether stamps were smoothed to a regular clock.
        samples: images with a floor in them.
        inliers: images that agree.
        scale: pixels per metre of tracked motion.
        times: (N,) seconds of the images used, on the clock used.
        signal: (N,) pixels of the floor.
        predicted: (N,) pixels, from the tracked motion.
    """

    delay: float
    deviation: float
    residual: float
    held_out: float
    regular: bool
    samples: int
    inliers: int
    scale: float
    times: Array
    signal: Array
    predicted: Array


def floor_depth(image: Image, step: int = 4) -> float:
    """Return the depth in pixels at mid image of a bright straight line across it; NaN if none.

    The brightest row of each column, then a line by iteratively reweighted least absolute
    deviations, so that spots and gaps do not matter.
    """
    smooth = cv2.GaussianBlur(image, (0, 0), 2.0)[:, ::step].astype(np.float64)
    rows, peaks = smooth.argmax(axis=0).astype(float), smooth.max(axis=0)
    seen = peaks > max(_MINIMUM_CONTRAST, 0.2 * float(peaks.max()))
    if np.count_nonzero(seen) < 20:
        return float('nan')
    columns = (np.flatnonzero(seen) * step).astype(float)
    design = np.column_stack([np.ones(len(columns)), columns - 0.5 * image.shape[1]])
    rows, weights = rows[seen], np.ones(len(columns))
    line = np.zeros(2)
    for _ in range(12):
        line = np.linalg.lstsq(design * weights[:, None], rows * weights, rcond=None)[0]
        weights = 1.0 / np.sqrt(np.maximum(np.abs(rows - design @ line), 1.0))
    near = np.abs(rows - design @ line) < 6.0
    if np.count_nonzero(near) < 0.4 * len(rows):
        return float('nan')
    # The floor leaves the image's middle at the ends of a tilted sweep: the line still holds.
    return float(np.linalg.lstsq(design[near], rows[near], rcond=None)[0][0])


def regular_times(stamps: Array, numbers: NDArray[np.intp]) -> Array:
    """Return the (N,) stamps as a straight line of the frames' numbers (robust)."""
    centred = numbers - numbers.mean()
    weights = np.ones(len(stamps))
    fitted = stamps
    for _ in range(10):
        slope, start = np.polyfit(centred, stamps, 1, w=weights)
        fitted = slope * centred + start
        spread = max(1.4826 * float(np.median(np.abs(stamps - fitted))), 1e-6)
        weights = 1.0 / np.maximum(np.abs(stamps - fitted) / (2.0 * spread), 1.0)
    return np.asarray(fitted)


def calibrate_delay(stamps: Array, signal: Array, track: Track, *,
                    numbers: NDArray[np.intp] | None = None,
                    span: float = 0.5) -> DelayCalibration:
    """Solve the delay of images against a tracker.

    Args:
        stamps: (N,) seconds of the images, on the clock of the track.
        signal: (N,) pixels, where something that stands still is in each; NaN where it is not.
        track: of the probe, in a frame that stands still.
        numbers: (N,) of the frames as the grabber counted them, if known.
        span: seconds, largest delay looked for, either way.

    Raises:
        GateError: too few images, too little or too slow motion, a motion that does not explain
            the images, or a delay at the end of the span.
    """
    track = track.without_glitches()
    inside = (stamps > track.times[0] + span) & (stamps < track.times[-1] - span)
    good = np.isfinite(signal) & inside
    gates.require_samples(int(good.sum()), 60,
                          'images with the floor in them and poses around them')
    motion = _main_motion(track, stamps[good])
    clocks = [(stamps, False)]
    if numbers is not None and len(np.unique(np.diff(numbers))) < 0.2 * len(numbers):
        clocks.append((regular_times(stamps, numbers), True))
    found = [_solve(clock[good], signal[good], track.times, motion, span, regular)
             for clock, regular in clocks]
    best = min(found, key=lambda one: one.held_out)
    if abs(best.delay) > span - 0.005:
        raise gates.GateError(f'no delay within ±{span:g} s fits; check that image and tracker '
                              'were recorded at the same time, or give a larger --span')
    gates.require_held_out(best.held_out * 1e3, 2.0, 'mm', 'the tracked motion does not explain '
                           'the image: move the probe straight up and down over a flat floor, '
                           'without tilting it')
    return best


def _main_motion(track: Track, stamps: Array) -> Array:
    """Return (M,) metres along the direction of most motion, of every pose."""
    inside = (track.times >= stamps[0]) & (track.times <= stamps[-1])
    positions = track.poses[:, :3, 3]
    centre = positions[inside].mean(axis=0)
    direction = np.linalg.svd(positions[inside] - centre, full_matrices=False)[2][0]
    motion = np.asarray((positions - centre) @ direction)
    if float(motion[inside].std()) < 2e-3:
        raise gates.GateError(f'the probe moved by {motion[inside].std() * 1e3:.1f} mm (standard '
                              'deviation), 2 mm are needed; the motion that is missing is up and '
                              'down: 2 cm, about once a second, for 15 s')
    speed = np.gradient(motion, track.times)[inside]
    if float(np.sqrt(np.mean(speed**2))) < 5e-3:
        raise gates.GateError('the probe moved too slowly to tell a delay, '
                              f'{np.sqrt(np.mean(speed**2)) * 1e3:.1f} mm/s where 5 mm/s are '
                              'needed; move it up and down about once a second')
    return motion


def _fit(times: Array, signal: Array, poses: Array, motion: Array, delay: float) -> Array:
    """Return gain and offset of the motion at one delay."""
    design = np.column_stack([np.interp(times - delay, poses, motion), np.ones(len(times))])
    return np.asarray(np.linalg.lstsq(design, signal, rcond=None)[0])


def _errors(times: Array, signal: Array, poses: Array, motion: Array, delay: float,
            line: Array) -> Array:
    return np.asarray(signal - line[0] * np.interp(times - delay, poses, motion) - line[1])


def _search(times: Array, signal: Array, poses: Array, motion: Array, span: float) -> float:
    """Return the delay of least squares: a grid of 2 ms, then a parabola through its best."""
    def cost(delay: float) -> float:
        line = _fit(times, signal, poses, motion, delay)
        return float(np.sum(_errors(times, signal, poses, motion, delay, line)**2))
    coarse = np.arange(-span, span + 1e-9, 0.01)
    near = coarse[int(np.argmin([cost(delay) for delay in coarse]))]
    # The parabola is as wide as the noise needs: linear interpolation has kinks at each pose.
    fine = near + np.arange(-0.02, 0.0201, 0.002)
    for _ in range(3):
        square, linear, _ = np.polyfit(fine - near, [cost(delay) for delay in fine], 2)
        if not square > 0.0:
            return float(near)
        near += float(np.clip(-linear / (2.0 * square), -0.02, 0.02))
        fine = near + np.arange(-0.02, 0.0201, 0.002)
    return float(near)


def _solve(times: Array, signal: Array, poses: Array, motion: Array, span: float,
           regular: bool) -> DelayCalibration:
    delay = _search(times, signal, poses, motion, span)
    line = _fit(times, signal, poses, motion, delay)
    errors = np.abs(_errors(times, signal, poses, motion, delay, line))
    keep = errors <= 4.0 * 1.4826 * float(np.median(errors)) + 1.0
    gates.require_inliers(int(keep.sum()), len(times), 0.6, 'images')
    times, signal = times[keep], signal[keep]
    delay = _search(times, signal, poses, motion, span)
    line = _fit(times, signal, poses, motion, delay)
    block = np.arange(len(times)) * _BLOCKS // len(times)
    delays, unseen = [], np.zeros(len(times))
    for number in range(_BLOCKS):
        used, held = block != number, block == number
        delays.append(_search(times[used], signal[used], poses, motion, span))
        part = _fit(times[used], signal[used], poses, motion, delays[-1])
        unseen[held] = _errors(times[held], signal[held], poses, motion, delays[-1], part)
    gain = max(abs(float(line[0])), 1e-9)
    left = _errors(times, signal, poses, motion, delay, line)
    spread = np.sqrt((_BLOCKS - 1) / _BLOCKS * np.sum((np.array(delays) - np.mean(delays))**2))
    return DelayCalibration(
        delay, float(spread), float(np.sqrt(np.mean(left**2))) / gain,
        float(np.sqrt(np.mean(unseen**2))) / gain, regular, len(keep), len(times), gain, times,
        signal, signal - left)
