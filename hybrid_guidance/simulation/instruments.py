"""Needles and markers as the simulated images see them."""

from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.geometry import needle as segment
from hybrid_guidance.geometry.rigid import inverse, pose_along, transform
from hybrid_guidance.geometry.types import Points, Transform


@dataclass(frozen=True)
class Needle:
    """A straight needle with a hub.

    Attributes:
        pose: (4, 4) patient_T_needle; origin at the tip, +z from hub to tip.
        diameter: outer diameter of the shaft, metres.
        length: from the tip to the hub, metres.
        bore: inner diameter, metres; zero with the stylet in place.
        hub_diameter: metres.
        hub_length: metres, behind the shaft.
        hub_steel: steel that attenuates as much as the hub's material, as a fraction of its
            volume (polymer round a steel insert).
        glint: the last millimetre, ground to a bevel, echoes more than the shaft.
    """

    pose: Transform
    diameter: float
    length: float
    bore: float = 0.0
    hub_diameter: float = 0.006
    hub_length: float = 0.016
    hub_steel: float = 0.08
    glint: bool = True

    @property
    def shaft(self) -> Points:
        """The (2, 3) ends of the shaft in ``patient``: hub end, then tip."""
        return segment.shaft(self.pose, self.length)

    def at(self, pose: Transform) -> 'Needle':
        """Return the same needle at another (4, 4) patient_T_needle."""
        return replace(self, pose=pose)


@dataclass(frozen=True)
class Marker:
    """A radiopaque ball of steel, as on the skin or in a phantom for calibration.

    Attributes:
        centre: (3,) metres, in ``patient``.
        diameter: metres.
    """

    centre: Points
    diameter: float = 0.002


def needle_on_path(entry: Points, target: Points, depth: float, diameter: float,
                   length: float) -> Needle:
    """Return a needle on the straight path from entry to target, its tip ``depth`` inside.

    Args:
        entry: (3,) metres, in ``patient``.
        target: (3,) metres, in ``patient``.
        depth: metres from the entry to the tip; negative while it is still outside.
        diameter: metres.
        length: metres.
    """
    direction = np.asarray(target, dtype=float) - entry
    unit = direction / np.linalg.norm(direction)
    return Needle(pose_along(entry + depth * unit, direction), diameter, length)


def insertion(needle: Needle, entry: Points, target: Points) -> float:
    """Return how deep a needle is, metres: along its axis, from the plane of the skin at entry.

    Args:
        needle: of which only the tip and its direction count.
        entry: (3,) metres, in ``patient``.
        target: (3,) metres, in ``patient``; the plane is square to the path there.
    """
    path = (target - entry) / np.linalg.norm(target - entry)
    ahead = max(float(needle.pose[:3, 2] @ path), 0.5)
    return max(float((needle.pose[:3, 3] - entry) @ path) / ahead, 0.0)


def bent_at(needle: Needle, curvature: float, inserted: float) -> tuple[Needle, ...]:
    """Return a needle whose bevel turned it, as ``bent``, of the true pose of its tip."""
    away = bent(needle.at(np.eye(4)), curvature, inserted)[0].pose
    return bent(needle.at(needle.pose @ inverse(away)), curvature, inserted)


def bent(needle: Needle, curvature: float, inserted: float, pieces: int = 6) -> tuple[Needle, ...]:
    """Return a needle whose bevel turned it in tissue, as straight pieces, the tip's first.

    From where it enters the tissue its axis is an arc towards +x of its frame: a bevelled tip cuts
    a path of one curvature (Webster et al., Int J Robot Res 2006;25:509). What is outside stays.

    Args:
        needle: as it would be if it were rigid.
        curvature: 1/m, of bevel and tissue together: 0 is rigid, 1 to 3 fine needles in muscle.
        inserted: length in tissue, metres.
        pieces: how many the arc is cut into.
    """
    inserted = min(inserted, needle.length)
    if curvature == 0.0 or inserted <= 0.0:
        return (needle,)
    step = inserted / pieces
    # Along the arc from the skin: place and direction in the frame of the rigid needle.
    ends = np.linspace(0.0, inserted, pieces + 1)
    turn = curvature * ends
    places = np.stack([(1.0 - np.cos(turn)) / curvature, 0.0 * ends,
                       np.sin(turn) / curvature - inserted], axis=-1)
    chord = 0.5 * (turn[:-1] + turn[1:])
    poses = np.tile(np.eye(4), (pieces, 1, 1))
    poses[:, 0, 0], poses[:, 0, 2] = np.cos(chord), np.sin(chord)
    poses[:, 2, 0], poses[:, 2, 2] = -np.sin(chord), np.cos(chord)
    poses[:, :3, 3] = places[1:]
    parts = [Needle(pose, needle.diameter, step, needle.bore, needle.hub_diameter, 0.0,
                    needle.hub_steel, glint=False) for pose in needle.pose @ poses]
    outside = replace(needle, pose=needle.pose @ transform(translation=places[0]),
                      length=max(needle.length - inserted, 1e-6), glint=False)
    return (replace(parts[-1], glint=True), *parts[-2::-1], outside)
