"""One table for each node's parameters: type, default, bounds, unit, meaning.

The table declares the ROS parameters, validates what is set, and prints the documentation.
"""

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

Value = bool | int | float | str


class ParameterError(ValueError):
    """A value that a parameter does not take; the message names both and the bounds."""


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Attributes:
        name: as in YAML and ``ros2 param``.
        default: also fixes the type.
        low: smallest value taken, for numbers.
        high: largest value taken, for numbers.
        unit: of the value, for people.
        meaning: one sentence for people.
        choices: the only values taken, for text.
        fixed: whether it can only be set at start.
    """

    name: str
    default: Value
    low: float | None
    high: float | None
    unit: str
    meaning: str
    choices: tuple[str, ...]
    fixed: bool

    def check(self, value: Any) -> Any:
        """Return the value in the parameter's type.

        Raises:
            ParameterError: wrong type, not finite, out of bounds, not a choice.
        """
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise ParameterError(f'{self.name}: {value!r} is not a {kind.__name__}')
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f'{self.name}: {value} is not a finite number')
        if not self._within_bounds(value):
            raise ParameterError(f'{self.name}: {value} is not in {self.bounds}')
        if self.choices and value not in self.choices:
            raise ParameterError(f'{self.name}: {value!r} is not one of {", ".join(self.choices)}')
        return value

    def parse(self, text: str) -> Any:
        """Return what somebody typed as a value.

        Raises:
            ParameterError: see ``check``.
        """
        value: Any = text
        if isinstance(self.default, bool):
            value = {'true': True, 'false': False}.get(text.lower(), text)
        elif not isinstance(self.default, str):
            for kind in (int, float):
                with contextlib.suppress(ValueError):
                    value = kind(text)
                    break
        return self.check(value)

    def _within_bounds(self, value: Any) -> bool:
        return self.low is None or self.high is None or bool(self.low <= value <= self.high)

    @property
    def bounds(self) -> str:
        """The bounds or choices, for people."""
        if self.choices:
            return ', '.join(self.choices)
        if self.low is None:
            return ''
        return f'[{self.low:g}, {self.high:g}] {self.unit}'.rstrip()


def parameter(default: Any, *, meaning: str, low: float | None = None, high: float | None = None,
              unit: str = '', choices: tuple[str, ...] = (), fixed: bool = False) -> Any:
    """Declare one field of a parameter table.

    Raises:
        TypeError: a number without bounds (NaN passes every ROS parameter that has no range).
    """
    numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
    if numeric and (low is None or high is None):
        raise TypeError(f'the parameter "{meaning}" is a number and needs low and high')
    return field(default=default, metadata={'low': low, 'high': high, 'unit': unit,
                                            'meaning': meaning, 'choices': choices,
                                            'fixed': fixed})


def table(parameters: type[Any]) -> tuple[Parameter, ...]:
    """Return the rows of a parameter dataclass."""
    return tuple(Parameter(item.name, item.default, **item.metadata)  # type: ignore[arg-type]
                 for item in dataclasses.fields(parameters))


def markdown(parameters: type[Any]) -> str:
    """Return the table as Markdown, for the documentation."""
    rows = [f'| `{row.name}` | `{row.default!r}` | {row.bounds} | '
            f'{"at start" if row.fixed else "any time"} | {row.meaning} |'
            for row in table(parameters)]
    return '\n'.join(['| Parameter | Default | Takes | Set | Meaning |', '|---|---|---|---|---|',
                      *rows])
