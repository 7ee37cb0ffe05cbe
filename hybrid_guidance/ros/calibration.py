"""The calibration file as nodes use it."""

from datetime import datetime, timezone
from pathlib import Path

from hybrid_guidance.calibration.file import (
    Calibration,
    CalibrationError,
    load,
    load_delays,
)
from hybrid_guidance.resources import resource
from hybrid_guidance.simulation.room import Belief


def load_calibrations(path: str) -> dict[str, Calibration]:
    """Return child frame to its calibration; a bare name is one of ``config/calibration``.

    Raises:
        CalibrationError: says file, entry, problem and cure.
    """
    return {item.child: item for item in load(_file(path), datetime.now(timezone.utc))}


def load_delay(path: str, sensor: str) -> float:
    """Return the seconds by which a sensor's pictures are late, 0 where the file says nothing.

    Raises:
        CalibrationError: says file, entry, problem and cure.
    """
    found = load_delays(_file(path), datetime.now(timezone.utc)).get(sensor)
    return 0.0 if found is None else found.delay


def _file(path: str) -> Path:
    file = Path(path)
    is_name = not file.exists() and file.name == path
    return resource('config/calibration') / f'{path}.yaml' if is_name else file


def load_beliefs(path: str) -> dict[str, Belief]:
    """Return child frame to what the file says of it, for the simulation to draw around.

    Raises:
        CalibrationError: unreadable, or a frame of the simulated room is missing.
    """
    found = load_calibrations(path)
    missing = {'patient', 'fluoroscopy_optical_frame', 'ultrasound_image'} - set(found)
    if missing:
        raise CalibrationError(f'{path}: the simulation needs {", ".join(sorted(missing))}; '
                               'use the calibration file "simulated"')
    return {child: Belief(item.transform, item.covariance) for child, item in found.items()}
