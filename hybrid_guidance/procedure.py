"""A procedure: where the needle shall go, with what, and how the two imagers stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hybrid_guidance.geometry.carm import patient_T_optical
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.resources import resource

FOLDER = 'config/procedures'
ANATOMY = 'config/anatomy'


MOST_BY_EYE = 0.75
"""Share of the way to the target that no needle goes unseen."""


class ProcedureError(Exception):
    """A procedure that cannot be used; the message says what, where and what to do."""


@dataclass(frozen=True)
class NeedleModel:
    """The needle to use.

    Attributes:
        name: as on the box, with its gauge.
        diameter: outer diameter, metres.
        length: tip to hub, metres.
    """

    name: str
    diameter: float
    length: float


@dataclass(frozen=True)
class FluoroscopySetup:
    """A C-arm at one position (angles as DICOM PS3.3 C.8.7.5 defines them).

    Attributes:
        source_to_detector: metres.
        source_to_isocentre: metres.
        primary_angle: radians; 0 is the detector anterior, +π/2 at the patient's left.
        secondary_angle: radians; positive tilts the detector towards the head.
        isocentre: (3,) metres, in ``patient``.
        detector_size: (width, height) in metres.
        pixels: (columns, rows).
        kvp: tube voltage, kV.
        mas_per_pulse: tube charge of one pulse, mA·s.
    """

    source_to_detector: float
    source_to_isocentre: float
    primary_angle: float
    secondary_angle: float
    isocentre: Points
    detector_size: tuple[float, float]
    pixels: tuple[int, int]
    kvp: float
    mas_per_pulse: float


@dataclass(frozen=True)
class Probe:
    """An ultrasound transducer.

    Attributes:
        kind: ``curvilinear`` or ``linear``.
        radius: of the transducer face, metres; infinite for a linear one.
        field_of_view: angle of the sector, radians; of a linear probe its width, metres.
        frequency: centre frequency, Hz.
    """

    kind: str
    radius: float
    field_of_view: float
    frequency: float = 5e6


@dataclass(frozen=True)
class UltrasoundSetup:
    """A probe at one position.

    Attributes:
        probe: the transducer.
        depth: how far the image reaches below the transducer face, metres.
        pixels: (columns, rows).
        pixel_spacing: metres, the same in both directions.
        face: (3,) middle of the transducer face, in ``patient``.
        lateral: (3,) unit vector of the image's x.
        depth_direction: (3,) unit vector of the image's y.
    """

    probe: Probe
    depth: float
    pixels: tuple[int, int]
    pixel_spacing: float
    face: Points
    lateral: Array
    depth_direction: Array


@dataclass(frozen=True)
class PlanningSetup:
    """How paths of an entry window are limited and ranked.

    Attributes:
        window: radius of the entry window round ``entry``, across the way to the target, m.
        comfort: m beyond its margin from which a structure costs nothing.
        limits: ``hub`` (needle that stays outside, m), ``skin_angle`` (from the normal, rad),
            ``bone`` (m to keep from it), ``probe`` (m between entry and housing),
            ``out_of_slice`` (m, of the last 15 mm).
        weights: what being at the limit costs: ``length``, ``skin_angle``, ``structure`` (each
            but those named here), ``out_of_slice``, ``beam_angle``, ``ray_angle``.
    """

    window: float = 0.020
    comfort: float = 0.008
    limits: Mapping[str, float] = field(default_factory=lambda: {
        'hub': 0.003, 'skin_angle': float(np.radians(65.0)), 'bone': 0.0002, 'probe': 0.0,
        'out_of_slice': 0.010})
    weights: Mapping[str, float] = field(default_factory=lambda: {
        'length': 0.5, 'skin_angle': 0.3, 'structure': 1.0, 'out_of_slice': 2.0,
        'beam_angle': 0.7, 'ray_angle': 0.7})


@dataclass(frozen=True)
class Procedure:
    """What is to be done. Points are in ``patient``.

    Attributes:
        name: identifier, also the stem of its file.
        region: anatomy that it needs: name of a file of ``config/anatomy``, or path of such a file.
        summary: one sentence.
        target: (3,) where the tip shall be, metres.
        entry: (3,) where the needle passes the skin, metres.
        needle: the needle.
        fluoroscopy: C-arm position and technique.
        ultrasound: probe and its position.
        avoid: structure name to the margin to keep, metres.
        insert_by_eye: how far the needle may go in before an image has shown it, metres.
        planning: limits and weights of paths.
    """

    name: str
    region: str
    summary: str
    target: Points
    entry: Points
    needle: NeedleModel
    fluoroscopy: FluoroscopySetup
    ultrasound: UltrasoundSetup
    avoid: Mapping[str, float]
    insert_by_eye: float
    planning: PlanningSetup = field(default_factory=PlanningSetup)

    @property
    def path_length(self) -> float:
        """Metres from entry to target."""
        return float(np.linalg.norm(self.target - self.entry))

    def patient_T_fluoroscopy(self) -> Transform:
        """Return the (4, 4) patient_T_optical: origin at the source, z towards the detector."""
        setup = self.fluoroscopy
        return patient_T_optical(setup.primary_angle, setup.secondary_angle,
                                 setup.source_to_isocentre, setup.isocentre)

    def fluoroscopy_projection(self) -> Projection:
        """Return the perspective projection from the optical frame to detector pixels."""
        setup = self.fluoroscopy
        focal = [setup.source_to_detector * count / size
                 for count, size in zip(setup.pixels, setup.detector_size, strict=True)]
        centre = ((setup.pixels[0] - 1) / 2, (setup.pixels[1] - 1) / 2)
        return Projection.perspective((focal[0], focal[1]), centre, setup.pixels)

    def patient_T_ultrasound(self) -> Transform:
        """Return the (4, 4) patient_T_image: x lateral, y depth, z elevation."""
        setup = self.ultrasound
        elevation = np.cross(setup.lateral, setup.depth_direction)
        return transform(np.column_stack([setup.lateral, setup.depth_direction, elevation]),
                         setup.face)

    def ultrasound_projection(self) -> Projection:
        """Return the orthographic projection from the image frame to pixels."""
        setup = self.ultrasound
        step = setup.pixel_spacing
        rise = face_rise(setup.probe)
        slack = max(setup.pixels[1] * step - rise - setup.depth, 0.0) / 2
        return Projection.orthographic(
            (step, step), ((setup.pixels[0] - 1) / 2, (rise + slack) / step), setup.pixels)


def face_rise(probe: Probe) -> float:
    """Return how far the ends of a curved transducer face stand back from its middle, metres."""
    if not np.isfinite(probe.radius):
        return 0.0
    return float(probe.radius * (1.0 - np.cos(probe.field_of_view / 2)))


def procedure_names() -> tuple[str, ...]:
    """Return the names of the procedures that come with the package, sorted."""
    return tuple(sorted(path.stem for path in resource(FOLDER).glob('*.yaml')))


def load_procedure(name_or_path: str | Path) -> Procedure:
    """Read a procedure by its name or from a YAML file.

    Raises:
        ProcedureError: unknown, unreadable, incomplete or impossible; the message says what,
            where and what to do.
    """
    path = _find(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise ProcedureError(f'{path}: cannot be read as YAML ({error}); correct it') from error
    if not isinstance(content, dict):
        raise ProcedureError(f'{path}: is no table of keys; copy one of {FOLDER} and edit it')
    return _procedure(_Reader(content, path))


def save_procedure(path: Path, procedure: Procedure) -> None:
    """Write a procedure as a YAML file that ``load_procedure`` reads.

    Raises:
        OSError: the file cannot be written.
    """
    arm, scan, probe = procedure.fluoroscopy, procedure.ultrasound, procedure.ultrasound.probe
    flat = not np.isfinite(probe.radius)
    shape = ({'width': probe.field_of_view} if flat else
             {'radius': probe.radius, 'field_of_view_deg': float(np.degrees(probe.field_of_view))})
    planning, limits = procedure.planning, dict(procedure.planning.limits)
    limits['skin_angle_deg'] = float(np.degrees(limits.pop('skin_angle')))
    content = {
        'name': procedure.name, 'region': procedure.region, 'summary': procedure.summary,
        'target': procedure.target.tolist(), 'entry': procedure.entry.tolist(),
        'insert_by_eye': procedure.insert_by_eye, 'needle': vars(procedure.needle),
        'fluoroscopy': {
            'source_to_detector': arm.source_to_detector,
            'source_to_isocentre': arm.source_to_isocentre,
            'primary_angle_deg': float(np.degrees(arm.primary_angle)),
            'secondary_angle_deg': float(np.degrees(arm.secondary_angle)),
            'isocentre': arm.isocentre.tolist(), 'detector_size': list(arm.detector_size),
            'pixels': list(arm.pixels), 'kvp': arm.kvp, 'mas_per_pulse': arm.mas_per_pulse},
        'ultrasound': {
            'probe': {'kind': probe.kind, **shape, 'frequency': probe.frequency},
            'depth': scan.depth, 'pixels': list(scan.pixels), 'pixel_spacing': scan.pixel_spacing,
            'face': scan.face.tolist(), 'lateral': scan.lateral.tolist(),
            'depth_direction': scan.depth_direction.tolist()},
        'avoid': dict(procedure.avoid),
        'planning': {'window': planning.window, 'comfort': planning.comfort, 'limits': limits,
                     'weights': dict(planning.weights)}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding='utf-8')


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in ('.yaml', '.yml'):
        if not path.is_file():
            raise ProcedureError(f'{path}: no such file; name an existing YAML file')
        return path
    if str(name_or_path) not in procedure_names():
        raise ProcedureError(f'procedure "{name_or_path}" is unknown; use one of: '
                             f'{", ".join(procedure_names())}, or the path of a YAML file')
    return resource(FOLDER) / f'{name_or_path}.yaml'


class _Reader:
    """Takes values out of a YAML table; what is missing or wrong names file and key."""

    def __init__(self, content: Mapping[str, Any], path: Path, prefix: str = '') -> None:
        self._content = content
        self._path = path
        self._prefix = prefix

    def fail(self, key: str, problem: str) -> ProcedureError:
        return ProcedureError(f'{self._path}: {self._prefix}{key} {problem}')

    def raw(self, key: str) -> Any:
        if key not in self._content or self._content[key] is None:
            raise self.fail(key, 'is missing; add it')
        return self._content[key]

    def table(self, key: str) -> '_Reader':
        content = self.raw(key)
        if not isinstance(content, dict):
            raise self.fail(key, 'must be a table of keys; indent its keys below it')
        return _Reader(content, self._path, f'{self._prefix}{key}.')

    def has(self, key: str) -> bool:
        return self._content.get(key) is not None

    def known(self, keys: tuple[str, ...]) -> None:
        for key in self.names():
            if key not in keys:
                raise self.fail(key, f'is unknown; use one of: {", ".join(keys)}')

    def names(self) -> tuple[str, ...]:
        return tuple(str(key) for key in self._content)

    def text(self, key: str) -> str:
        return str(self.raw(key))

    def beside(self, key: str) -> Path:
        """Return the path of a file that is named relative to this one."""
        path = (self._path.parent / self.text(key)).resolve()
        if not path.is_file():
            raise self.fail(key, f'names {path}, which is no file; correct it')
        return path

    def numbers(self, key: str, count: int) -> Array:
        try:
            values = np.array(self.raw(key), dtype=float)
        except (TypeError, ValueError) as error:
            raise self.fail(key, f'must be {count} numbers; got {self.raw(key)!r}') from error
        if values.shape != (count,) or not np.all(np.isfinite(values)):
            raise self.fail(key, f'must be {count} finite numbers; got {self.raw(key)!r}')
        return values

    def number(self, key: str, minimum: float = -np.inf) -> float:
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f'must be a number; got {value!r}')
        if not np.isfinite(value):
            raise self.fail(key, f'must be finite; got {value!r}')
        if value <= minimum:
            raise self.fail(key, f'must be above {minimum:g}; got {value!r}')
        return float(value)

    def positive(self, key: str) -> float:
        return self.number(key, 0.0)

    def size(self, key: str) -> tuple[int, int]:
        values = self.numbers(key, 2)
        if np.any(values < 1) or np.any(values != np.round(values)):
            raise self.fail(key, f'must be two whole numbers above 0; got {self.raw(key)!r}')
        return int(values[0]), int(values[1])


def _procedure(read: _Reader) -> Procedure:
    target, entry = read.numbers('target', 3), read.numbers('entry', 3)
    if float(np.linalg.norm(target - entry)) < 1e-4:
        raise read.fail('entry', 'is the target; move it to where the needle passes the skin')
    avoid = read.table('avoid')
    return Procedure(
        read.text('name'), _region(read), read.text('summary'), target, entry,
        _needle(read.table('needle')), _fluoroscopy(read.table('fluoroscopy')),
        _ultrasound(read.table('ultrasound')),
        {key: avoid.positive(key) for key in avoid.names()},
        _insert_by_eye(read, float(np.linalg.norm(target - entry))),
        _planning(read.table('planning'), avoid.names()) if read.has('planning')
        else PlanningSetup())


def _insert_by_eye(read: _Reader, way: float) -> float:
    depth = read.positive('insert_by_eye')
    if depth > MOST_BY_EYE * way:
        raise read.fail('insert_by_eye', f'must be below {MOST_BY_EYE * way:.4f}, three quarters '
                                         f'of the way to the target; got {depth!r}')
    return depth


def _planning(read: _Reader, avoid: tuple[str, ...]) -> PlanningSetup:
    """Read what differs from the defaults."""
    setup = PlanningSetup()
    read.known(('window', 'comfort', 'limits', 'weights'))
    limits, weights = dict(setup.limits), dict(setup.weights)
    if read.has('limits'):
        table = read.table('limits')
        table.known(('hub', 'skin_angle_deg', 'bone', 'probe', 'out_of_slice'))
        for key in table.names():
            value = table.number(key, -1.0)
            limits[key.removesuffix('_deg')] = (
                float(np.radians(value)) if key.endswith('_deg') else value)
    if read.has('weights'):
        table = read.table('weights')
        table.known((*setup.weights, 'bone', *avoid))
        weights |= {key: table.number(key, -1e-9) for key in table.names()}
    return PlanningSetup(
        read.positive('window') if read.has('window') else setup.window,
        read.positive('comfort') if read.has('comfort') else setup.comfort, limits, weights)


def _region(read: _Reader) -> str:
    region = read.text('region')
    if region.endswith('.yaml'):
        return str(read.beside('region'))
    known = sorted(path.stem for path in resource(ANATOMY).glob('*.yaml'))
    if region not in known:
        raise read.fail('region', f'"{region}" is no known anatomy; use one of: '
                                  f'{", ".join(known)}')
    return region


def _needle(read: _Reader) -> NeedleModel:
    return NeedleModel(read.text('name'), read.positive('diameter'), read.positive('length'))


def _fluoroscopy(read: _Reader) -> FluoroscopySetup:
    distance = read.positive('source_to_detector')
    isocentre_distance = read.positive('source_to_isocentre')
    if isocentre_distance >= distance:
        raise read.fail('source_to_isocentre', 'must be below source_to_detector; correct one')
    size = read.numbers('detector_size', 2)
    if np.any(size <= 0.0):
        raise read.fail('detector_size', f'must be above 0; got {size.tolist()}')
    secondary = read.number('secondary_angle_deg')
    if abs(secondary) > 80.0:
        raise read.fail('secondary_angle_deg', f'must be within 80 degrees; got {secondary:g}')
    return FluoroscopySetup(
        distance, isocentre_distance, float(np.radians(read.number('primary_angle_deg'))),
        float(np.radians(secondary)), read.numbers('isocentre', 3),
        (float(size[0]), float(size[1])), read.size('pixels'),
        read.positive('kvp'), read.positive('mas_per_pulse'))


def _probe(read: _Reader) -> Probe:
    kind = read.text('kind')
    if kind == 'curvilinear':
        view = float(np.radians(read.positive('field_of_view_deg')))
        return Probe(kind, read.positive('radius'), view, read.positive('frequency'))
    if kind == 'linear':
        return Probe(kind, float('inf'), read.positive('width'), read.positive('frequency'))
    raise read.fail('kind', f'must be curvilinear or linear; got "{kind}"')


def _ultrasound(read: _Reader) -> UltrasoundSetup:
    lateral, depth = read.numbers('lateral', 3), read.numbers('depth_direction', 3)
    if float(np.linalg.norm(np.cross(lateral, depth))) < 1e-9:
        raise read.fail('lateral', 'is parallel to depth_direction; make it perpendicular')
    depth = depth / np.linalg.norm(depth)
    lateral = lateral - (lateral @ depth) * depth
    return UltrasoundSetup(
        _probe(read.table('probe')), read.positive('depth'), read.size('pixels'),
        read.positive('pixel_spacing'), read.numbers('face', 3),
        lateral / np.linalg.norm(lateral), depth)
