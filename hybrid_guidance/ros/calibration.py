"""The calibration file as nodes use it."""

from datetime import datetime, timezone
from pathlib import Path

from hybrid_guidance.calibration.file import Calibration, CalibrationError, load
from hybrid_guidance.resources import resource
from hybrid_guidance.simulation.room import Belief


def load_calibrations(path: str) -> dict[str, Calibration]:
    """Return child frame to its calibration; a bare name is one of ``config/calibration``.

    Raises:
        CalibrationError: says file, entry, problem and cure.
    """
    file = Path(path)
    if not file.exists() and file.name == path:
        file = resource('config/calibration') / f'{path}.yaml'
    return {item.child: item for item in load(file, datetime.now(timezone.utc))}


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
