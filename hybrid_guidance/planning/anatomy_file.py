"""Which structures an anatomy has, and from which files: label maps, meshes, or a YAML of both.

```yaml
labels: segmentation.nii.gz        # paths beside this file, or absolute
structures: {skin: 1, bone: [2, 3], aorta: 7}
meshes: {dural_sac: dura.stl}
space: RAS                         # only for meshes that do not say
```
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hybrid_guidance.planning.anatomy_map import LabelSource, Source
from hybrid_guidance.planning.files import PlanningFileError, read_labels, read_mesh
from hybrid_guidance.procedure import Procedure
from hybrid_guidance.simulation.anatomy import build_structures
from hybrid_guidance.simulation.shapes import Shape


@dataclass(frozen=True)
class AnatomyFiles:
    """Files that hold structures.

    Attributes:
        labels: a label map.
        structures: name to its labels.
        meshes: name to a closed mesh in mm.
        space: ``LPS`` or ``RAS``, of meshes that do not say.
    """

    labels: Path | None = None
    structures: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    meshes: Mapping[str, Path] = field(default_factory=dict)
    space: str | None = None

    def sources(self, needed: Iterable[str]) -> dict[str, Source | Shape]:
        """Read the structures that are needed.

        Raises:
            PlanningFileError: one cannot be used, or is not there.
        """
        missing = [name for name in needed if name not in {**self.structures, **self.meshes}]
        if missing:
            raise PlanningFileError(
                f'no structure is named {", ".join(missing)}; give each with --structure '
                'NAME=LABEL or --mesh NAME=FILE, or in the file of the anatomy')
        sources: dict[str, Source | Shape] = {
            name: read_mesh(self.meshes[name], self.space)
            for name in needed if name in self.meshes}
        labelled = [name for name in needed if name not in sources]
        if labelled and self.labels is None:
            raise PlanningFileError(f'{", ".join(labelled)}: no label map is named')
        if labelled and self.labels is not None:
            labels = read_labels(self.labels)
            sources |= {name: LabelSource(np.isin(labels.values, self.structures[name]),
                                          labels.patient_T_voxel) for name in labelled}
        return sources


def read_anatomy(path: Path) -> AnatomyFiles:
    """Read which files make an anatomy.

    Raises:
        PlanningFileError: unreadable, or of another form.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding='utf-8'))
        unknown = set(content) - {'labels', 'structures', 'meshes', 'space'}
        if unknown:
            raise ValueError(f'unknown: {", ".join(sorted(unknown))}')
        return AnatomyFiles(
            path.parent / content['labels'] if 'labels' in content else None,
            {str(name): tuple(int(label) for label in np.atleast_1d(labels))
             for name, labels in content.get('structures', {}).items()},
            {str(name): path.parent / file for name, file in content.get('meshes', {}).items()},
            content.get('space'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, TypeError,
            AttributeError) as error:
        raise PlanningFileError(
            f'{path}: must name labels, structures, meshes or space ({error}); see '
            'docs/planning.md') from error


def sources_of(anatomy: str, procedure: Procedure, seed: int) -> dict[str, Source | Shape]:
    """Return the skin and all that a procedure avoids, bone too.

    Args:
        anatomy: ``simulated``, ``none``, or a file for ``read_anatomy``.
        procedure: what is to be done.
        seed: of the simulated patient.

    Raises:
        PlanningFileError: a file that cannot be used.
    """
    needed = dict.fromkeys(('skin', 'bone', *procedure.avoid))
    if anatomy == 'none':
        return {}
    if anatomy == 'simulated':
        solids = build_structures(procedure.region, seed, procedure.target)
        return {name: solids[name] for name in needed}
    return read_anatomy(Path(anatomy)).sources(needed)
