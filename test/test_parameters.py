from dataclasses import dataclass

import pytest

from hybrid_guidance.parameters import ParameterError, markdown, parameter, table


@dataclass(frozen=True)
class Example:
    gain: float = parameter(1.0, low=0.0, high=2.0, unit='m', meaning='a number')
    count: int = parameter(3, low=1, high=9, meaning='a whole number')
    mode: str = parameter('a', choices=('a', 'b'), meaning='a word')
    loop: bool = parameter(True, meaning='a switch')


ROWS = {row.name: row for row in table(Example)}


@pytest.mark.parametrize(('name', 'value', 'taken'), [
    ('gain', 1, 1.0), ('gain', 2.0, 2.0), ('count', 9, 9), ('mode', 'b', 'b'),
    ('loop', False, False)])
def test_good_values_are_taken_in_their_type(name: str, value: object, taken: object) -> None:
    assert ROWS[name].check(value) == taken
    assert type(ROWS[name].check(value)) is type(taken)


@pytest.mark.parametrize(('name', 'value', 'words'), [
    ('gain', float('nan'), 'finite'), ('gain', float('inf'), 'finite'),
    ('gain', 2.1, r'\[0, 2\] m'), ('gain', '1', 'not a float'), ('gain', True, 'not a float'),
    ('count', 0, r'\[1, 9\]'), ('count', 2.0, 'not a int'), ('count', True, 'not a int'),
    ('mode', 'c', 'a, b'), ('loop', 1, 'not a bool')])
def test_bad_values_are_refused_in_words(name: str, value: object, words: str) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        ROWS[name].check(value)
    assert name in str(caught.value)


@pytest.mark.parametrize(('name', 'text', 'taken'), [
    ('gain', '1', 1.0), ('gain', '5e-1', 0.5), ('count', '9', 9), ('mode', 'b', 'b'),
    ('loop', 'false', False), ('loop', 'True', True)])
def test_what_is_typed_becomes_a_value_of_the_type(name: str, text: str, taken: object) -> None:
    assert ROWS[name].parse(text) == taken
    assert type(ROWS[name].parse(text)) is type(taken)


@pytest.mark.parametrize(('name', 'text'), [
    ('gain', ''), ('gain', 'nan'), ('gain', '3'), ('count', '2.5'), ('loop', '1'), ('mode', '')])
def test_what_is_typed_wrongly_is_refused(name: str, text: str) -> None:
    with pytest.raises(ParameterError, match=name):
        ROWS[name].parse(text)


def test_a_number_without_bounds_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match='low and high'):
        parameter(1.0, meaning='unbounded')


def test_the_table_documents_every_parameter() -> None:
    text = markdown(Example)
    for name in ('gain', 'count', 'mode', 'loop'):
        assert f'`{name}`' in text
    assert '[0, 2] m' in text


def test_the_table_tells_what_can_only_be_set_at_start() -> None:
    @dataclass(frozen=True)
    class Both:
        file: str = parameter('', fixed=True, meaning='a file')
        gain: float = parameter(1.0, low=0.0, high=2.0, meaning='a number')
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in markdown(Both).splitlines()]
    assert [row[rows[0].index('Set')] for row in rows[2:]] == ['at start', 'any time']
    assert len({len(row) for row in rows}) == 1
