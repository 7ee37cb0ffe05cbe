"""A picture of the room in 3-D without a graphics card: voxels and planes along view rays."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Array, Image, Points, Transform
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.tissues import Tissue

Colours = NDArray[np.float32]

_STEP = 0.0014
_SHRINK = 2
# Red, green, blue of what is drawn as a surface; the rest is seen through.
_COLOURS = {
    Tissue.CORTICAL: (0.93, 0.89, 0.78), Tissue.BLOOD: (0.80, 0.20, 0.18),
    Tissue.NERVE: (0.98, 0.85, 0.25), Tissue.FLUID: (0.35, 0.65, 0.90)}
_BACKGROUND = (0.11, 0.12, 0.15)
_SKIN = (0.86, 0.66, 0.55)
_SKIN_OPACITY = 0.16


@dataclass(frozen=True)
class Plane:
    """A picture in space.

    Attributes:
        patient_T_plane: (4, 4); the picture lies at z = 0.
        projection: from (x, y, 0) of the plane to pixels: orthographic.
        picture: (H, W) uint8.
        opacity: 0 to 1; black is more transparent.
    """

    patient_T_plane: Transform
    projection: Projection
    picture: Image
    opacity: float


def view(patient: Patient, needle: Needle, planes: Sequence[Plane], target: Points,
         direction: Array, size: tuple[int, int] = (800, 600), width: float = 0.24) -> Image:
    """Return a parallel projection of a patient as (H, W, 3) uint8, BGR.

    Args:
        patient: whose bones, vessels and nerves are drawn.
        needle: drawn through everything.
        planes: image planes with their pictures.
        target: (3,) middle of the view, in ``patient``; marked.
        direction: (3,) from the eye into the scene, in ``patient``.
        size: (columns, rows).
        width: of the view, metres.
    """
    rows = _axes(direction)
    pixel = width / size[0]
    u = (np.arange(size[0]) - (size[0] - 1) / 2) * pixel
    v = (np.arange(size[1]) - (size[1] - 1) / 2) * pixel
    grid = target + u[None, :, None] * rows[0] + v[:, None, None] * rows[1]
    surface, depth, skin = _marched(patient, grid, rows[2])
    origin = grid.reshape(-1, 3)
    background, tint = np.array(_BACKGROUND, np.float32), np.array(_SKIN, np.float32)
    colour: Colours = np.where(np.isfinite(depth)[:, None], surface, background)
    colour += skin[:, None] * (tint - colour)
    for plane in planes:
        _lay(colour, depth, plane, origin, rows[2])
    picture = np.ascontiguousarray(colour.reshape(size[1], size[0], 3)[..., ::-1] * 255.0)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    _draw(picture, needle, target, rows, pixel)
    return picture


def _axes(direction: Array) -> Array:
    """Return right, down and forward of the eye as rows; the head of the patient is up."""
    forward = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def _marched(patient: Patient, grid: Array, forward: Array) -> tuple[Colours, Array, Array]:
    """March every second ray of every second row; surfaces are smoother than voxels anyway."""
    coarse = grid[::2, ::2]
    shape, size = coarse.shape[:2], grid.shape[1::-1]
    found = _march(patient, coarse.reshape(-1, 3).astype(np.float32), forward.astype(np.float32))
    colour, depth, skin = (part.reshape(*shape, -1).astype(np.float32) for part in found)
    return (cv2.resize(colour, size, interpolation=cv2.INTER_LINEAR).reshape(-1, 3),
            cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST).reshape(-1).astype(float),
            cv2.resize(skin, size, interpolation=cv2.INTER_LINEAR).reshape(-1))


def _march(patient: Patient, origin: Points, forward: Array) -> tuple[Colours, Array, Array]:
    """Return colour and depth (infinite: none) of the first surface, and the skin's opacity."""
    labels = patient.labels[::_SHRINK, ::_SHRINK, ::_SHRINK]
    kinds = np.zeros(256, np.uint8)
    for number, tissue in enumerate(_COLOURS, start=1):
        kinds[tissue] = number
    kinds[Tissue.CANCELLOUS] = kinds[Tissue.CORTICAL]
    solid = _pooled(np.asarray(cv2.LUT(patient.labels, kinds)))
    normals = _smooth(solid > 0)
    spacing = patient.grid.spacing * _SHRINK
    limits = np.array(labels.shape[::-1]) - 1
    depth = np.full(len(origin), np.inf)
    kind = np.zeros(len(origin), np.uint8)
    body = np.zeros(len(origin), bool)
    start = (origin - patient.grid.origin).astype(np.float32)
    for distance in np.arange(-0.19, 0.19, _STEP, dtype=np.float32):
        active = np.flatnonzero(~np.isfinite(depth))
        cells = (start[active] + distance * forward) * np.float32(1.0 / spacing)
        whole = np.rint(cells).astype(np.int32)
        ok = np.all((whole >= 0) & (whole <= limits), axis=1)
        active, whole = active[ok], whole[ok]
        place = (whole[:, 2], whole[:, 1], whole[:, 0])
        found = solid[place]
        body[active] |= labels[place] != Tissue.AIR
        depth[active[found > 0]] = distance
        kind[active[found > 0]] = found[found > 0]
    colour = np.zeros((len(origin), 3), np.float32)
    hit = np.flatnonzero(np.isfinite(depth))
    points = origin[hit] + depth[hit, None] * forward
    normal = _gradient(normals, (points - patient.grid.origin) / spacing)
    light = np.array(-forward + 0.5 * np.array([0.6, -0.3, 0.7]))
    shade = np.clip(-normal @ (light / np.linalg.norm(light)), 0.0, 1.0)
    palette = np.array([(0.0, 0.0, 0.0), *_COLOURS.values()], np.float32)
    colour[hit] = palette[kind[hit]] * (0.25 + 0.75 * shade[:, None])
    return colour, depth, np.where(body, _SKIN_OPACITY, 0.0)


def _pooled(solid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the highest kind of every block of voxels: no thin layer falls between them."""
    for axis in range(3):
        solid = np.maximum.reduceat(solid, np.arange(0, solid.shape[axis], _SHRINK), axis=axis)
    return solid


def _smooth(solid: NDArray[np.bool_]) -> Colours:
    field = np.stack([cv2.GaussianBlur(layer, (0, 0), 1.2) for layer in solid.astype(np.float32)])
    flat = cv2.GaussianBlur(field.reshape(len(field), -1), (1, 7), sigmaX=0.01, sigmaY=1.2)
    return np.asarray(flat.reshape(field.shape), np.float32)


def _gradient(field: Colours, cells: Points) -> Array:
    whole = np.clip(np.rint(cells).astype(np.int32), 1, np.array(field.shape[::-1]) - 2)
    x, y, z = whole.T
    slope = np.stack([field[z, y, x + 1] - field[z, y, x - 1],
                      field[z, y + 1, x] - field[z, y - 1, x],
                      field[z + 1, y, x] - field[z - 1, y, x]], axis=-1)
    return np.asarray(slope / (np.linalg.norm(slope, axis=1, keepdims=True) + 1e-6))


def _lay(colour: Colours, depth: Array, plane: Plane, origin: Points, forward: Array) -> None:
    """Blend a plane over what lies behind it, in place."""
    plane_T_patient = inverse(plane.patient_T_plane)
    start = transform_points(plane_T_patient, origin.astype(float))
    along = plane_T_patient[:3, :3] @ forward
    distance = -start[:, 2] / (along[2] if abs(along[2]) > 1e-6 else 1e-6)
    pixels = plane.projection.pixels(start + distance[:, None] * along)
    shown = np.asarray(plane.projection.contains(pixels), bool) & (distance < depth)
    column, row = np.rint(pixels[shown]).astype(int).T
    height, width = plane.picture.shape
    grey = plane.picture[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)] / 255.0
    share = (plane.opacity * np.clip(0.25 + 2.0 * grey, 0.0, 1.0))[:, None]
    colour[shown] += share * (grey[:, None] - colour[shown])


def _draw(picture: Image, needle: Needle, target: Points, rows: Array, pixel: float) -> None:
    middle = (np.array(picture.shape[1::-1]) - 1) / 2

    def place(point: Points) -> tuple[int, int]:
        return tuple(np.rint(16 * (middle + rows[:2] @ (point - target) / pixel)).astype(int))

    hub, tip = needle.shaft
    cv2.line(picture, place(hub), place(tip), (20, 20, 20), 5, cv2.LINE_AA, 4)
    cv2.line(picture, place(hub), place(tip), (80, 235, 255), 2, cv2.LINE_AA, 4)
    cv2.circle(picture, place(target), 16 * 7, (200, 80, 255), 2, cv2.LINE_AA, 4)
