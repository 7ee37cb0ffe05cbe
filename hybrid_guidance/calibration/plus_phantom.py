"""Phantoms and fixed transforms out of a PLUS device set: wires, landmarks, frames."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.calibration.plus import (
    parse,
    read_length,
    read_matrix,
    transform_elements,
)
from hybrid_guidance.calibration.wires import WirePhantom
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Array, Points, Transform


def read_wires(path: str | Path) -> WirePhantom:
    """Return the N-wires of a device set.

    Raises:
        CalibrationError: unreadable, or no wires in it.
    """
    path = Path(path)
    patterns = [pattern for pattern in parse(path).iter('Pattern') if len(pattern) == 3]
    if len(patterns) < 2:
        raise CalibrationError(f'{path}: describes {len(patterns)} N patterns of three wires, two '
                               'are needed; name the device set with the PhantomDefinition')
    wires = [[[_point(path, wire, end) for end in ('EndPointFront', 'EndPointBack')]
              for wire in pattern] for pattern in patterns]
    names = tuple((str(p[0].get('Name')), str(p[1].get('Name')), str(p[2].get('Name')))
                  for p in patterns)
    return WirePhantom(np.array(wires), names)


def read_landmarks(path: str | Path) -> tuple[tuple[str, ...], Points]:
    """Return names and (N, 3) metres of a phantom's landmarks.

    Raises:
        CalibrationError: unreadable, or fewer than three.
    """
    path = Path(path)
    elements = list(parse(path).iter('Landmark'))
    if len(elements) < 3:
        raise CalibrationError(f'{path}: describes {len(elements)} landmarks, three are needed; '
                               'name the device set with the PhantomDefinition')
    return (tuple(str(element.get('Name')) for element in elements),
            np.array([_point(path, element, 'Position') for element in elements]))


def read_transform(path: str | Path, source: str, target: str) -> Transform:
    """Return ``target_T_source`` in metres, exactly rigid.

    Raises:
        CalibrationError: not there, or not rigid to 1e-3.
    """
    path = Path(path)
    element = next(iter(transform_elements(parse(path), source, target)), None)
    if element is None:
        raise CalibrationError(f'{path}: has no transform from {source!r} to {target!r}; '
                               'name a file that has it, or calibrate it first')
    matrix = read_matrix(path, element)
    left, singular, right = np.linalg.svd(matrix[:3, :3])
    if np.abs(singular - 1.0).max() > 1e-3 or np.linalg.det(matrix[:3, :3]) < 0.0:
        raise CalibrationError(f'{path}: {source} to {target} is not a rotation and a '
                               'translation; calibrate it again')
    matrix[:3, :3] = left @ right
    matrix[:3, 3] *= 1e-3
    return matrix


def read_registration(path: str | Path, reference: str) -> tuple[Transform, Array | None]:
    """Return ``reference_T_phantom`` and what it is not known by.

    Returns:
        (4, 4) metres, and (6, 6) m² and rad² in the phantom's own axes: the error that the file
        states, along each axis at the middle of the landmarks, and as an angle at their distance
        from it. None where it states none.

    Raises:
        CalibrationError: not there, not rigid, or an error that is none.
    """
    path = Path(path)
    transform = read_transform(path, 'Phantom', reference)
    element = next(transform_elements(parse(path), 'Phantom', reference))
    error = read_length(path, element, 'Error')
    if not error:
        return transform, None
    _, landmarks = read_landmarks(path)
    middle = landmarks.mean(axis=0)
    radius = float(np.sqrt(np.mean(np.sum((landmarks - middle)**2, axis=1))))
    # A turn about the middle moves the phantom's origin.
    lever = np.eye(6)
    lever[:3, 3:] = rigid.skew(middle)
    return transform, np.asarray(lever @ np.diag([error**2] * 3 + [(error / radius)**2] * 3)
                                 @ lever.T)


def read_face(path: str | Path) -> tuple[float, float] | None:
    """Return the pixel of the mid transducer face, where the file has it."""
    path = Path(path)
    for element in transform_elements(parse(path), 'Image', 'TransducerOriginPixel'):
        matrix = read_matrix(path, element)
        return float(-matrix[0, 3]), float(-matrix[1, 3])
    return None


def _point(path: Path, element: ElementTree.Element, attribute: str) -> Array:
    try:
        values = np.array([float(token) for token in (element.get(attribute) or '').split()])
    except ValueError:
        values = np.empty(0)
    if values.shape != (3,) or not np.all(np.isfinite(values)):
        raise CalibrationError(f'{path}: {attribute} of {element.get("Name")!r} is not three '
                               'numbers in millimetres; correct it')
    return values * 1e-3
