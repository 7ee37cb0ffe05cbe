"""A plan as a YAML file: ranked paths, what they were judged by, which one is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import yaml

from hybrid_guidance.planning.choice import RankedPath, TermValue
from hybrid_guidance.planning.path import Path, PlanError

FORMAT = 'hybrid_guidance plan 1'


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        procedure: its name.
        anatomy: what it was made on, in words: which patient, simulated or not.
        sigmas: k of the clearances.
        paths: ranked, the best first. In ``patient``: LPS axes, m.
        chosen: index of the path to take.
    """

    procedure: str
    anatomy: str
    sigmas: float
    paths: tuple[RankedPath, ...]
    chosen: int = 0

    @property
    def path(self) -> Path:
        """The path to take."""
        return self.paths[self.chosen].path


def save(file: FilePath, plan: Plan) -> None:
    """Write a plan.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        'format': FORMAT, 'procedure': plan.procedure, 'anatomy': plan.anatomy,
        'frame': 'patient', 'axes': 'LPS', 'unit': 'm, rad', 'sigmas': plan.sigmas,
        'chosen': plan.chosen + 1, 'paths': [_written(path) for path in plan.paths]}
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True),
                    encoding='utf-8')


def _written(ranked: RankedPath) -> dict[str, Any]:
    return {'cost': ranked.cost, 'entry': ranked.path.entry.tolist(),
            'target': ranked.path.target.tolist(),
            'terms': {name: {'value': term.value, 'shown': term.shown(), 'unit': term.unit,
                             'limit': term.limit if np.isfinite(term.limit) else None,
                             'cost': term.cost, 'at_least': term.at_least}
                      for name, term in ranked.terms.items()}}


def load(file: FilePath) -> Plan:
    """Read a plan.

    Raises:
        PlanError: no plan, or one that cannot be; the message says where and what to do.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f'{file}: cannot be read as YAML ({error})') from error
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise PlanError(f'{file}: is no plan; make one with "hybrid-guidance plan"')
    if content.get('axes') != 'LPS' or content.get('unit') != 'm, rad':
        raise PlanError(f'{file}: a plan is in LPS axes, m and rad; convert it')
    try:
        paths = tuple(_read(value) for value in content['paths'])
        plan = Plan(str(content['procedure']), str(content['anatomy']), float(content['sigmas']),
                    paths, int(content['chosen']) - 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f'{file}: is not complete ({error!r}); make it again with '
                        '"hybrid-guidance plan"') from error
    if not 0 <= plan.chosen < len(paths):
        raise PlanError(f'{file}: chosen is {plan.chosen + 1}, of {len(paths)} paths; correct it')
    return plan


def _read(value: Mapping[str, Any]) -> RankedPath:
    entry, target = (np.array(value[key], dtype=float) for key in ('entry', 'target'))
    if entry.shape != (3,) or target.shape != (3,):
        raise ValueError('entry and target must be three numbers each')
    return RankedPath(Path(entry, target), float(value['cost']), {
        str(name): TermValue(float(term['value']), str(term['unit']),
                             float('nan') if term['limit'] is None else float(term['limit']),
                             float(term['cost']), bool(term['at_least']))
        for name, term in value['terms'].items()})
