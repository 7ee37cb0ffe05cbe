"""The calibration file: where each sensor sits, how well that is known, and until when.

YAML, version 1::

    format: hybrid_guidance/calibration
    version: 1
    calibrations:
    - kind: ultrasound-spatial          # one of KINDS
      parent: ultrasound_probe
      child: ultrasound_image
      translation: [x, y, z]            # m, of child in parent
      rotation_xyzw: [x, y, z, w]
      deviation: [m, m, m, rad, rad, rad]   # or covariance: 36 numbers, row by row
      method: N-wire
      date: 2030-01-31T12:00:00+00:00
      expires: 2031-01-31T12:00:00+00:00
      samples: 190                      # this and the next three may be null: not known
      inliers: 181
      residual: 0.00048                 # m
      held_out_error: 0.00054           # m
      made_by: hybrid-guidance calibrate
      image:                            # ultrasound-spatial only, and only where the images
        spacing: [x, y]                 # carry no scale of their own: m per pixel
        origin: [u0, v0]                # pixel of the mid transducer face
        skew: 0.0                       # m along x per pixel along v; may be left out
      camera:                           # carm only, and it may be left out
        focal: [fx, fy]                 # pixels
        centre: [cx, cy]
        distortion: [k1, k2, p1, p2, k3]    # OpenCV's order
        size: [width, height]
    delays:                             # may be left out
    - sensor: ultrasound
      delay: 0.0648                     # s, by which images are stamped late
      deviation: 0.001
      method: water tank                # and date, expires, samples, inliers, made_by as above
      residual: 0.0004                  # m, and held_out_error, of the motion that was matched
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import yaml

from hybrid_guidance.geometry import covariance as covariances
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.imaging.geometry import CameraGeometry, ImageGeometry

FORMAT = 'hybrid_guidance/calibration'
VERSION = 1
KINDS = {
    'carm': ('carm', 'fluoroscopy_optical_frame'),
    'ultrasound-spatial': ('ultrasound_probe', 'ultrasound_image'),
    'registration': ('world', 'patient'),
    'pivot': ('stylus', 'stylus_tip'),
    'phantom': ('reference', 'phantom'),
    'hand-eye': ('robot_flange', 'robot_marker'),
    'fluoroscopy-ultrasound': ('fluoroscopy_optical_frame', 'ultrasound_probe'),
}
"""Kind of calibration to (parent, child) frame."""

_TEXTS = ('kind', 'parent', 'child', 'method', 'made_by')
_COUNTS = ('samples', 'inliers')
_ERRORS = ('residual', 'held_out_error')
_REQUIRED = (*_TEXTS, *_COUNTS, *_ERRORS, 'translation', 'rotation_xyzw', 'date', 'expires')
_OPTIONAL = ('deviation', 'covariance', 'image', 'camera')
_DELAY_TEXTS = ('sensor', 'method', 'made_by')
_DELAY_REQUIRED = (*_DELAY_TEXTS, *_COUNTS, *_ERRORS, 'delay', 'deviation', 'date', 'expires')
_CLOCK_TOLERANCE = timedelta(minutes=5)
_REPEAT = 'repeat "hybrid-guidance calibrate"'


class CalibrationError(Exception):
    """A calibration that must not be used; says which file, which entry, why, and the cure."""


@dataclass(frozen=True)
class Calibration:
    """One fixed transform and what is known of it.

    Attributes:
        kind: one of ``KINDS``.
        parent: frame the transform takes points to.
        child: frame the transform takes points from.
        transform: (4, 4) ``parent_T_child``, metres.
        covariance: (6, 6), m² and rad², in the axes of the parent.
        method: how it was found.
        date: when, with a time zone.
        expires: from when on it may not be used.
        samples: observations that went in; None when not known.
        inliers: observations that it explains; None when not known.
        residual: of the observations used, in metres; None when not known.
        held_out_error: of observations not used, in metres; None when not known.
        made_by: program or person.
        image: pixel spacing and origin that belong to it (ultrasound only); None where the
            images carry their own.
        camera: intrinsics that were solved with it (carm only); None where images tell them.
    """

    kind: str
    parent: str
    child: str
    transform: Transform
    covariance: Array
    method: str
    date: datetime
    expires: datetime
    samples: int | None
    inliers: int | None
    residual: float | None
    held_out_error: float | None
    made_by: str
    image: ImageGeometry | None = None
    camera: CameraGeometry | None = None


@dataclass(frozen=True)
class Delay:
    """By how much a sensor's images are stamped late, and what is known of it.

    Attributes:
        sensor: whose images.
        delay: seconds to take off a stamp; negative where poses are late instead.
        deviation: seconds.
        method: how it was found; the rest as in ``Calibration``.
    """

    sensor: str
    delay: float
    deviation: float
    method: str
    date: datetime
    expires: datetime
    samples: int | None
    inliers: int | None
    residual: float | None
    held_out_error: float | None
    made_by: str


def load(path: str | Path, now: datetime) -> tuple[Calibration, ...]:
    """Read a calibration file and refuse whatever may not be used at ``now``.

    Args:
        path: the YAML file.
        now: the present; without a time zone it is UTC, as are times in the file.

    Raises:
        CalibrationError: file, entry, problem and cure are in its message.
    """
    return _loaded(Path(path), _utc(now))


def load_delays(path: str | Path, now: datetime) -> dict[str, Delay]:
    """Return sensor to its delay; those of a file without any are none.

    Raises:
        CalibrationError: as ``load``.
    """
    return _loaded_delays(Path(path), _utc(now))


def update(path: str | Path, *new: Calibration | Delay) -> None:
    """Put calibrations and delays into a file; those of other frames and sensors stay.

    Raises:
        CalibrationError: the file there is no calibration file, or cannot be written.
    """
    path = Path(path)
    exists = path.exists()
    # What expired stays in the file: it says when the sensor was last known.
    kept = {item.child: item for item in (_loaded(path, None) if exists else ())}
    delays = dict(_loaded_delays(path, None)) if exists else {}
    kept |= {item.child: item for item in new if isinstance(item, Calibration)}
    delays |= {item.sensor: item for item in new if isinstance(item, Delay)}
    save(path, kept.values(), delays.values())


def _loaded(path: Path, now: datetime | None) -> tuple[Calibration, ...]:
    loaded: list[Calibration] = []
    for number, entry in enumerate(_entries(path), start=1):
        where = f'{path}, calibration {number}'
        if isinstance(entry, Mapping) and isinstance(entry.get('kind'), str):
            where += f' ({entry["kind"]})'
        try:
            calibration = _calibration(entry)
            if now is not None:
                _check_dates(calibration, calibration.kind, now)
            _check_child(calibration, loaded)
        except CalibrationError as error:
            raise CalibrationError(f'{where}: {error}') from None
        loaded.append(calibration)
    return tuple(loaded)


def _loaded_delays(path: Path, now: datetime | None) -> dict[str, Delay]:
    loaded: dict[str, Delay] = {}
    for number, entry in enumerate(_entries(path, 'delays'), start=1):
        try:
            delay = _delay(entry)
            if delay.sensor in loaded:
                raise CalibrationError(f'a second delay of {delay.sensor!r}; keep one')
            if now is not None:
                _check_dates(delay, f'{delay.sensor}-temporal', now)
        except CalibrationError as error:
            raise CalibrationError(f'{path}, delay {number}: {error}') from None
        loaded[delay.sensor] = delay
    return loaded


def save(path: str | Path, calibrations: Iterable[Calibration],
         delays: Iterable[Delay] = ()) -> None:
    """Write a calibration file; an existing one is replaced whole or not at all.

    Raises:
        CalibrationError: an entry would not be accepted by ``load``, or the file cannot be
            written.
    """
    entries: list[dict[str, Any]] = []
    checked: list[Calibration] = []
    for calibration in calibrations:
        try:
            entry = _entry(calibration)
            checked_again = _calibration(entry)
            _check_child(checked_again, checked)
        except CalibrationError as error:
            raise CalibrationError(f'{path}, {calibration.kind}, not saved: {error}') from None
        entries.append(entry)
        checked.append(checked_again)
    document: dict[str, Any] = {'format': FORMAT, 'version': VERSION, 'calibrations': entries}
    late = [_delay_entry(delay) for delay in delays]
    document |= {'delays': late} if late else {}
    _write(Path(path), yaml.safe_dump(document, sort_keys=False, default_flow_style=None))


def _write(path: Path, text: str) -> None:
    """Write beside the target, then rename: a reader never meets half a file."""
    try:
        with tempfile.NamedTemporaryFile('w', encoding='utf-8', dir=path.parent,
                                         prefix=path.name, delete=False) as stream:
            stream.write(text)
        os.chmod(stream.name, 0o644)
        os.replace(stream.name, path)
    except OSError as error:
        raise CalibrationError(
            f'{path}: cannot be written ({error}); choose a folder that you may write') from error


def _entries(path: Path, key: str = 'calibrations') -> list[Any]:
    """Read the envelope of the file and return its entries, not yet checked."""
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CalibrationError(f'{path}: cannot be read ({error.strerror or error}); '
                               'check the path of the calibration file') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CalibrationError(f'{path}: not valid YAML ({_one_line(error)}); '
                               f'correct the file or {_REPEAT}') from error
    if not isinstance(document, Mapping) or document.get('format') != FORMAT:
        raise CalibrationError(f'{path}: not a calibration file; '
                               f'its first line must be "format: {FORMAT}"')
    if document.get('version') != VERSION:
        raise CalibrationError(f'{path}: version {short(document.get("version"))} cannot be read, '
                               f'only version {VERSION}; {_REPEAT} with this release')
    unknown = [name for name in document
               if name not in ('format', 'version', 'calibrations', 'delays')]
    if unknown:
        raise CalibrationError(f'{path}: unknown key {short(unknown[0])}; remove it')
    entries = document.get(key, [] if key == 'delays' else None)
    if not isinstance(entries, list):
        raise CalibrationError(f'{path}: "{key}" must be a list of {key}')
    return entries


def _delay(entry: Any) -> Delay:
    """Check one delay and build it."""
    if not isinstance(entry, Mapping):
        raise CalibrationError('must be a mapping of keys to values')
    odd = set(entry) ^ set(_DELAY_REQUIRED)
    if odd:
        raise CalibrationError(f'key {short(sorted(map(str, odd))[0])} is missing or unknown; '
                               'add it or remove it')
    texts = {key: _text(entry, key) for key in _DELAY_TEXTS}
    delay, deviation = (float(_numbers([entry[key]], key, 1)[0]) for key in ('delay', 'deviation'))
    if deviation < 0.0:
        raise CalibrationError('"deviation" must not be negative')
    samples, inliers = (_count(entry, key) for key in _COUNTS)
    residual, held_out = (_length(entry, key) for key in _ERRORS)
    return Delay(**texts, delay=delay, deviation=deviation, date=_date(entry, 'date'),
                 expires=_date(entry, 'expires'), samples=samples, inliers=inliers,
                 residual=residual, held_out_error=held_out)


def _delay_entry(delay: Delay) -> dict[str, Any]:
    entry = {key: getattr(delay, key) for key in _DELAY_REQUIRED}
    return entry | {key: _utc(getattr(delay, key)).isoformat() for key in ('date', 'expires')}


def _calibration(entry: Any) -> Calibration:
    """Check one entry and build the calibration."""
    if not isinstance(entry, Mapping):
        raise CalibrationError('must be a mapping of keys to values')
    _check_keys(entry)
    texts = {key: _text(entry, key) for key in _TEXTS}
    _check_frames(texts['kind'], texts['parent'], texts['child'])
    samples, inliers = (_count(entry, key) for key in _COUNTS)
    if samples is not None and inliers is not None and inliers > samples:
        raise CalibrationError(f'{inliers} inliers of {samples} samples; correct the counts')
    residual, held_out_error = (_length(entry, key) for key in _ERRORS)
    return Calibration(
        **texts, transform=_transform(entry), covariance=_covariance(entry),
        date=_date(entry, 'date'), expires=_date(entry, 'expires'), samples=samples,
        inliers=inliers, residual=residual, held_out_error=held_out_error,
        image=_image(entry, texts['kind']), camera=_camera(entry, texts['kind']))


def _check_keys(entry: Mapping[Any, Any]) -> None:
    missing = [key for key in _REQUIRED if key not in entry]
    if missing:
        raise CalibrationError(f'key {missing[0]!r} is missing; add it')
    unknown = [key for key in entry if key not in (*_REQUIRED, *_OPTIONAL)]
    if unknown:
        raise CalibrationError(f'unknown key {short(unknown[0])}; '
                               'remove it or correct its spelling')
    if ('deviation' in entry) == ('covariance' in entry):
        raise CalibrationError('needs exactly one of "deviation" (6 numbers) and '
                               '"covariance" (36 numbers)')


def _check_frames(kind: str, parent: str, child: str) -> None:
    if kind not in KINDS:
        raise CalibrationError(f'unknown kind {kind!r}; one of {", ".join(KINDS)}')
    if (parent, child) != KINDS[kind]:
        expected_parent, expected_child = KINDS[kind]
        raise CalibrationError(f'goes from {child!r} to {parent!r}; a calibration of kind {kind!r} '
                               f'has child {expected_child!r} and parent {expected_parent!r}')


def _check_dates(calibration: Calibration | Delay, kind: str, now: datetime) -> None:
    if calibration.expires <= now:
        raise CalibrationError(f'expired on {calibration.expires:%Y-%m-%d}; '
                               f'repeat "hybrid-guidance calibrate {kind}"')
    if calibration.date > now + _CLOCK_TOLERANCE:
        raise CalibrationError(f'was made on {calibration.date:%Y-%m-%d %H:%M} UTC, in the future; '
                               "correct the date or this computer's clock")


def _check_child(calibration: Calibration, before: Iterable[Calibration]) -> None:
    if any(other.child == calibration.child for other in before):
        raise CalibrationError(f'a second calibration of {calibration.child!r}; '
                               'keep one, a frame has one parent')


def _text(entry: Mapping[Any, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value:
        raise CalibrationError(f'{key!r} must be text, is {short(value)}')
    return value


def _count(entry: Mapping[Any, Any], key: str) -> int | None:
    value = entry[key]
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CalibrationError(f'{key!r} must be a whole number or null, is {short(value)}')
    return value


def _length(entry: Mapping[Any, Any], key: str) -> float | None:
    if entry[key] is None:
        return None
    value = float(_numbers([entry[key]], key, 1)[0])
    if value < 0.0:
        raise CalibrationError(f'{key!r} must not be negative, is {short(value)}')
    return value


def _numbers(value: Any, name: str, count: int) -> Array:
    """Return ``count`` finite numbers, or say what is wrong with them."""
    plain = isinstance(value, list) and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in value)
    if not plain or len(value) != count:
        raise CalibrationError(f'{name!r} must be {count} number{"s" * (count > 1)}, '
                               f'is {short(value)}')
    try:
        numbers = np.array(value, dtype=float)
    except OverflowError:
        numbers = np.array([np.inf])
    if not np.all(np.isfinite(numbers)):
        raise CalibrationError(f'{name!r} holds a number that is not finite; {_REPEAT}')
    return numbers


def _transform(entry: Mapping[Any, Any]) -> Transform:
    quaternion = _numbers(entry['rotation_xyzw'], 'rotation_xyzw', 4)
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1.0) > 1e-3:
        raise CalibrationError(f'"rotation_xyzw" has length {norm:.6g}, a rotation has 1; '
                               f'correct it or {_REPEAT}')
    return rigid.from_quaternion(quaternion / norm,
                                 _numbers(entry['translation'], 'translation', 3))


def _covariance(entry: Mapping[Any, Any]) -> Array:
    if 'deviation' in entry:
        deviation = _numbers(entry['deviation'], 'deviation', 6)
        if np.any(deviation < 0.0):
            raise CalibrationError('"deviation" holds a negative number')
        return np.diag(deviation**2)
    covariance = _numbers(entry['covariance'], 'covariance', 36).reshape(6, 6)
    if not covariances.is_valid(covariance):
        raise CalibrationError('"covariance" is not symmetric and positive semidefinite; '
                               f'correct it or {_REPEAT}')
    return covariance


def _image(entry: Mapping[Any, Any], kind: str) -> ImageGeometry | None:
    image = entry.get('image')
    if image is None:
        return None
    if kind != 'ultrasound-spatial':
        raise CalibrationError('"image" belongs to ultrasound-spatial only; remove it')
    if not isinstance(image, Mapping) or set(image) - {'skew'} != {'spacing', 'origin'}:
        raise CalibrationError('"image" must hold "spacing" and "origin", may hold "skew", '
                               'and nothing else')
    spacing = _numbers(image['spacing'], 'image spacing', 2)
    origin = _numbers(image['origin'], 'image origin', 2)
    skew = _numbers([image.get('skew', 0.0)], 'image skew', 1)
    if np.any(spacing <= 0.0):
        raise CalibrationError('"image spacing" must be above zero (metres per pixel)')
    return ImageGeometry((float(spacing[0]), float(spacing[1])),
                         (float(origin[0]), float(origin[1])), float(skew[0]))


def _camera(entry: Mapping[Any, Any], kind: str) -> CameraGeometry | None:
    camera = entry.get('camera')
    if camera is None:
        return None
    if kind != 'carm':
        raise CalibrationError('"camera" belongs to carm only; remove it')
    if not isinstance(camera, Mapping) or set(camera) != {'focal', 'centre', 'distortion', 'size'}:
        raise CalibrationError('"camera" must hold "focal", "centre", "distortion" and "size"')
    values = [_numbers(camera[key], f'camera {key}', count).tolist() for key, count in (
        ('focal', 2), ('centre', 2), ('distortion', 5), ('size', 2))]
    if min(values[0]) <= 0.0 or min(values[3]) < 1.0:
        raise CalibrationError('"camera" focal lengths and size must be above zero (pixels)')
    return CameraGeometry(tuple(values[0]), tuple(values[1]), tuple(values[2]),
                          (int(values[3][0]), int(values[3][1])))


def _date(entry: Mapping[Any, Any], key: str) -> datetime:
    value = entry[key]
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise CalibrationError(f'{key!r} must be a date such as 2030-01-31T12:00:00+00:00, '
                               f'is {short(entry[key])}')
    return _utc(value)


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError as error:
        raise CalibrationError(f'{moment} is no usable date') from error


def _entry(calibration: Calibration) -> dict[str, Any]:
    """Return what YAML writes for one calibration."""
    if not rigid.is_rigid(calibration.transform):
        raise CalibrationError('the transform is not rigid (a rotation and a translation, '
                               f'all numbers finite); {_REPEAT}')
    covariance = np.asarray(calibration.covariance, dtype=float)
    entry: dict[str, Any] = {
        'kind': calibration.kind, 'parent': calibration.parent, 'child': calibration.child,
        'translation': calibration.transform[:3, 3].tolist(),
        'rotation_xyzw': rigid.quaternion(calibration.transform).tolist()}
    if covariance.shape == (6, 6) and np.array_equal(covariance, np.diag(np.diag(covariance))) \
            and np.all(np.diag(covariance) >= 0.0):
        entry['deviation'] = np.sqrt(np.diag(covariance)).tolist()
    else:
        entry['covariance'] = covariance.ravel().tolist()
    entry |= {'method': calibration.method, 'date': _utc(calibration.date).isoformat(),
              'expires': _utc(calibration.expires).isoformat()}
    entry |= {key: getattr(calibration, key) for key in (*_COUNTS, *_ERRORS, 'made_by')}
    entry |= {key: float(entry[key]) for key in _ERRORS if entry[key] is not None}
    if calibration.image is not None:
        entry['image'] = {'spacing': [float(value) for value in calibration.image.spacing],
                          'origin': [float(value) for value in calibration.image.origin]}
        if calibration.image.skew:
            entry['image']['skew'] = float(calibration.image.skew)
    if calibration.camera is not None:
        entry['camera'] = {key: [float(value) for value in getattr(calibration.camera, key)]
                           for key in ('focal', 'centre', 'distortion', 'size')}
    return entry


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
