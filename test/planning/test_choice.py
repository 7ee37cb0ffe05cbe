import numpy as np
import pytest

from hybrid_guidance.planning.candidates import Candidates, Term
from hybrid_guidance.planning.choice import choose, table

TARGET = np.zeros(3)


def candidates(count: int = 400) -> Candidates:
    """Entries on a plane; cost falls towards one side, where a limit refuses the last stretch."""
    places = np.random.default_rng(5).uniform(-0.02, 0.02, (count, 2))
    entries = np.column_stack([places, np.full(count, 0.05)])
    room = entries[:, 0] + 0.010
    none = np.zeros(count)
    free = {name: Term(unit, none + 0.1, np.nan, none, none) for name, unit in (
        ('length', 'mm'), ('skin_angle', '°'), ('out_of_slice', 'mm'), ('beam_angle', '°'),
        ('ray_angle', '°'))}
    return Candidates(TARGET, entries, {
        **free, 'artery': Term('mm', room, 0.0, np.maximum(-room, 0.0), entries[:, 0] + 1.0),
        'aorta': Term('mm', none + 0.05, 0.01, none, none, 0.05)})


def test_best_first_none_refused_and_none_like_another() -> None:
    found = candidates()
    chosen = choose(found, 4, 0.008)
    allowed = found.entries[found.entries[:, 0] >= -0.010]
    assert np.allclose(chosen[0].path.entry, allowed[np.argmin(allowed[:, 0])])
    assert [path.cost for path in chosen] == sorted(path.cost for path in chosen)
    entries = np.array([path.path.entry for path in chosen])
    apart = np.linalg.norm(entries[:, None] - entries, axis=-1) + np.eye(4)
    assert len(chosen) == 4
    assert apart.min() >= 0.008
    assert entries[:, 0].min() >= -0.010


def test_offers_no_more_than_there_are() -> None:
    assert len(choose(candidates(), 100, 0.02)) < 10
    refused = candidates()
    far = Candidates(TARGET, refused.entries[refused.entries[:, 0] < -0.011], {
        name: Term(term.unit, *(value[refused.entries[:, 0] < -0.011] if np.ndim(value) else value
                                for value in (term.value, term.limit, term.excess, term.cost)))
        for name, term in refused.terms.items()})
    assert choose(far) == ()


def test_nearest_is_what_has_least_room_past_its_margin() -> None:
    best = choose(candidates(), 1)[0]
    assert best.nearest[0] == 'artery'
    assert best.nearest[1] == pytest.approx(best.path.entry[0] + 0.010)


def test_table_says_what_is_only_a_bound() -> None:
    chosen = choose(candidates(), 2)
    assert chosen[0].terms['aorta'].shown() == '> 50.0 mm'
    assert 'artery' in table(chosen)
    assert len(table(chosen).splitlines()) == 3
