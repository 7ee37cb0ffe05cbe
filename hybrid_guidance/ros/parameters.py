"""A parameter table as ROS parameters: declared with ranges, checked whoever sets them."""

from dataclasses import replace
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from hybrid_guidance.parameters import Parameter, ParameterError, table

T = TypeVar('T')


def descriptor(row: Parameter) -> ParameterDescriptor:
    """Return what ``ros2 param describe`` shows for a row of the table.

    Typing is dynamic so that 1 is taken for 1.0 and a wrong type is refused in our words.
    """
    result = ParameterDescriptor(description=row.meaning + (f' [{row.unit}]' if row.unit else ''),
                                 additional_constraints=row.bounds, read_only=row.fixed,
                                 dynamic_typing=True)
    if isinstance(row.default, float) and row.low is not None and row.high is not None:
        result.floating_point_range = [
            FloatingPointRange(from_value=float(row.low), to_value=float(row.high))]
    elif type(row.default) is int and row.low is not None and row.high is not None:
        result.integer_range = [IntegerRange(from_value=int(row.low), to_value=int(row.high))]
    return result


class Parameters(Generic[T]):
    """The declared parameters of one node; ``values`` is always a valid, frozen whole.

    Args:
        node: whose parameters.
        values_type: a frozen dataclass made with ``parameter``.

    Raises:
        ParameterError: a value given at start is not taken.
    """

    def __init__(self, node: Node, values_type: type[T]) -> None:
        self._rows = {row.name: row for row in table(values_type)}
        given = {name: self._declare(node, row) for name, row in self._rows.items()}
        self.values: T = values_type(**given)
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._take)

    def _declare(self, node: Node, row: Parameter) -> Any:
        try:
            declared = node.declare_parameter(row.name, row.default, descriptor(row))
        except InvalidParameterValueException as error:
            raise ParameterError(f'{row.name}: {error}; it takes {row.bounds}') from None
        return row.check(declared.value)

    def _check(self, parameters: list[RosParameter]) -> SetParametersResult:
        try:
            for item in parameters:
                if item.name in self._rows:
                    self._rows[item.name].check(item.value)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _take(self, parameters: list[RosParameter]) -> None:
        changed = {item.name: self._rows[item.name].check(item.value)
                   for item in parameters if item.name in self._rows}
        self.values = replace(self.values, **changed)  # type: ignore[type-var]
