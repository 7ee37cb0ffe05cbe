from pathlib import Path as FilePath

import numpy as np
import pytest
import yaml

from hybrid_guidance.planning.choice import RankedPath, TermValue
from hybrid_guidance.planning.path import Path, PlanError
from hybrid_guidance.planning.plan_file import Plan, load, save


def plan() -> Plan:
    paths = tuple(RankedPath(Path(np.array([0.01 * k, 0.02, 0.1]), np.zeros(3)), 0.5 + k, {
        'length': TermValue(0.1, 'mm', 0.12, 0.3),
        'beam_angle': TermValue(1.2, '°', np.nan, 0.2),
        'aorta': TermValue(0.02, 'mm', 0.01, 0.0, True)}) for k in range(3))
    return Plan('some_procedure', 'simulated patient 4', 2.0, paths, 1)


def test_a_plan_comes_back_as_it_was(tmp_path: FilePath) -> None:
    save(tmp_path / 'plan.yaml', plan())
    back, made = load(tmp_path / 'plan.yaml'), plan()
    assert (back.procedure, back.anatomy, back.sigmas, back.chosen) == (
        made.procedure, made.anatomy, made.sigmas, made.chosen)
    assert np.array_equal(back.path.entry, made.paths[1].path.entry)
    for before, after in zip(made.paths, back.paths, strict=True):
        assert after.cost == before.cost
        for name, term in before.terms.items():
            assert np.array_equal([term.value, term.limit, term.cost], [
                after.terms[name].value, after.terms[name].limit, after.terms[name].cost],
                equal_nan=True)
            assert after.terms[name].shown() == term.shown()


def test_people_can_read_it(tmp_path: FilePath) -> None:
    save(tmp_path / 'plan.yaml', plan())
    content = yaml.safe_load((tmp_path / 'plan.yaml').read_text(encoding='utf-8'))
    assert content['axes'] == 'LPS'
    assert content['chosen'] == 2
    assert content['paths'][0]['terms']['aorta']['shown'] == '> 20.0 mm'


@pytest.mark.parametrize(('change', 'words'), [
    ({'format': 'other'}, 'is no plan'),
    ({'axes': 'RAS'}, 'LPS axes'),
    ({'chosen': 4}, 'chosen is 4, of 3'),
    ({'paths': [{'entry': [0, 0, 1]}]}, 'not complete'),
    ({'paths': [{'entry': [0, 0], 'target': [0, 0, 0], 'cost': 1, 'terms': {}}]},
     'three numbers'),
    ({'paths': [{'entry': [0, 0, 0], 'target': [0, 0, 0], 'cost': 1, 'terms': {}}]},
     'less than 1 mm apart'),
])
def test_a_plan_that_cannot_be_is_refused(tmp_path: FilePath, change: dict[str, object],
                                          words: str) -> None:
    file = tmp_path / 'plan.yaml'
    save(file, plan())
    content = yaml.safe_load(file.read_text(encoding='utf-8'))
    file.write_text(yaml.safe_dump({**content, **change}), encoding='utf-8')
    with pytest.raises(PlanError, match=words) as error:
        load(file)
    assert str(file) in str(error.value)
