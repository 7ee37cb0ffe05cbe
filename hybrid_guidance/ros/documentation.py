"""The parameter tables of all nodes, from the nodes themselves."""

from importlib import import_module

from hybrid_guidance.graph import GRAPH, GraphError
from hybrid_guidance.parameters import markdown


def parameter_tables(only: str | None = None) -> str:
    """Return Markdown of every node's parameters, or of one.

    Raises:
        GraphError: there is no node ``only``.
    """
    names = [node.name for node in GRAPH]
    if only is not None and only not in names:
        raise GraphError(f'there is no {only}; there are {", ".join(names)}')
    names = names if only is None else [only]
    return '\n\n'.join(f'### `{name}`\n\n{markdown(parameters_of(name))}' for name in names)


def parameters_of(node: str) -> type:
    """Return the parameter dataclass of a node."""
    module = import_module(f'hybrid_guidance.nodes.{node}')
    stem = ''.join(part.capitalize() for part in node.removesuffix('_node').split('_'))
    found: type = getattr(module, f'{stem}Parameters')
    return found
