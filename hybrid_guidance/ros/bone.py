"""The bone of the CT in the live images, where a node's parameter names a CT."""

from dataclasses import dataclass
from typing import Any

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Image, Transform
from hybrid_guidance.parameters import parameter
from hybrid_guidance.registration.outline import Outline, OutlineMemory, make_outline
from hybrid_guidance.ros.node import GuidanceNode
from hybrid_guidance.worker import Worker, WorkerError

BONE = (90, 200, 255)
DOUBTFUL = (130, 130, 130)


@dataclass(frozen=True)
class BoneParameters:
    """Parameters of the contours of bone."""

    ct: str = parameter('none', fixed=True, meaning=(
        'CT whose bone is drawn: simulated, none, .nii.gz, .nrrd, folder of DICOM slices, or '
        'patient.yaml of an imported patient'))
    seed: int = parameter(1, low=0, high=2**31 - 1, fixed=True, meaning='of the simulated CT')
    bone_moved: float = parameter(0.0005, low=0.0, high=0.01, unit='m', fixed=True, meaning=(
        'contours of bone are drawn anew where sensor or patient moved by this'))


class BoneContours:
    """Draws the bone of the CT; reads the CT in a process of its own, and draws none until then.

    Args:
        node: the overlay's.
    """

    def __init__(self, node: GuidanceNode[Any]) -> None:
        self._node = node
        given = node.parameters
        self._memory: OutlineMemory | None = None
        self._worker: Worker[Outline] | None = None
        if given.ct != 'none':
            self._worker = Worker(make_outline, given.ct, given.procedure, given.seed)

    def draw(self, canvas: Image, sensor: str, projection: Projection,
             sensor_T_patient: Transform | None, trusted: bool) -> None:
        """Draw over a picture, in place; grey where the picture is not to be trusted."""
        if self._worker is not None and self._worker.is_done():
            try:
                self._memory = OutlineMemory(self._worker.result(),
                                             self._node.parameters.bone_moved)
            except WorkerError as error:
                self._node.health.set('bone', False, f'no contours of bone: {error}')
            self._worker = None
        if self._memory is not None and sensor_T_patient is not None:
            mask = self._memory.seen(sensor, projection, sensor_T_patient)
            canvas[mask] = BONE if trusted else DOUBTFUL
