"""The node graph as one table; the launch file and the command line both start this."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = 'hybrid_guidance'


class GraphError(ValueError):
    """An option that the graph does not take; the message says which and what it takes."""


@dataclass(frozen=True)
class Option:
    """A launch argument: name, default, what it means, and the only values it takes."""

    name: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()


OPTIONS = (
    Option('namespace', '', 'namespace of every node and topic'),
    Option('params_file', '', 'YAML file of ROS parameters for the nodes'),
    Option('use_sim_time', 'false', 'take the time from /clock', ('true', 'false')),
    Option('procedure', 'lumbar_facet_injection', 'name or YAML file of the procedure'),
    Option('fluoroscopy_source', 'simulated', 'where X-ray images come from',
           ('simulated', 'dicom', 'images', 'video', 'openigtlink')),
    Option('fluoroscopy_file', '',
           'DICOM file; folder of images; device, address or file of a video; host:port'),
    Option('ultrasound_source', 'simulated', 'where ultrasound images come from',
           ('simulated', 'dicom', 'sequence', 'images', 'video', 'openigtlink')),
    Option('ultrasound_file', '',
           'DICOM file or recording; folder of images; device, address or file of a video; '
           'host:port'),
    Option('calibration_file', 'simulated', 'name or file of the calibration'),
    Option('seed', '1', 'of the simulation'),
    Option('ct', 'none', 'CT of the patient for fusion/register and the contours of its bone: '
           'simulated, none, .nii.gz, .nrrd, folder of DICOM slices, or patient.yaml'),
    Option('openigtlink_port', '0', 'port on which 3D Slicer finds the guidance; 0: none'),
    Option('rviz', 'false', 'open RViz with the scene of this package', ('true', 'false')),
    Option('robot', 'none', 'robot that holds the needle', ('none',)),
    Option('log_level', 'info', 'of every node', ('debug', 'info', 'warn', 'error', 'fatal')),
)

Values = dict[str, str]


@dataclass(frozen=True)
class GraphNode:
    """One node of the graph.

    Attributes:
        name: of node and executable.
        parameters: option to the parameter that takes its value.
        when: whether the options ask for this node.
    """

    name: str
    parameters: dict[str, str]
    when: Callable[[Values], bool] = lambda values: True


def _sources_simulated(values: Values) -> dict[str, bool]:
    """Return whether the images that each tracked body takes are simulated."""
    return {'carm': values['fluoroscopy_source'] == 'simulated',
            'ultrasound_probe': values['ultrasound_source'] == 'simulated'}


def _simulated(values: Values) -> bool:
    return any(_sources_simulated(values).values())


_SIMULATION = {'procedure': 'procedure', 'calibration_file': 'calibration_file', 'seed': 'seed'}

GRAPH = (
    GraphNode('patient_node', _SIMULATION, _simulated),
    GraphNode('fluoroscopy_node', {**_SIMULATION, 'fluoroscopy_source': 'source',
                                   'fluoroscopy_file': 'file'}),
    GraphNode('ultrasound_node', {**_SIMULATION, 'ultrasound_source': 'source',
                                  'ultrasound_file': 'file'}),
    GraphNode('fluoroscopy_tracker_node', {}),
    GraphNode('ultrasound_tracker_node', {}),
    GraphNode('fusion_node', {'calibration_file': 'calibration_file', 'ct': 'ct',
                              'procedure': 'procedure', 'seed': 'seed'}),
    GraphNode('planner_node', {'procedure': 'procedure', 'seed': 'seed'}),
    GraphNode('overlay_node', {'procedure': 'procedure', 'ct': 'ct', 'seed': 'seed'}),
    GraphNode('openigtlink_node', {'openigtlink_port': 'port'},
              lambda values: values['openigtlink_port'] != '0'),
)


_NUMBERS = ('seed', 'openigtlink_port')


def _whole(given: Values, option: str) -> int:
    try:
        return int(given[option])
    except ValueError:
        raise GraphError(f'{option}: "{given[option]}" is not a whole number') from None


def complete(given: Values) -> Values:
    """Return every option's value, the given ones checked.

    Raises:
        GraphError: an unknown option, a value that it does not take, or no file of parameters
            where one is named: launch would start without it.
    """
    known = {option.name: option for option in OPTIONS}
    for name, value in given.items():
        if name not in known:
            raise GraphError(f'{name}: no such option; there are {", ".join(known)}')
        choices = known[name].choices
        if choices and value not in choices:
            raise GraphError(f'{name}: "{value}" is not one of {", ".join(choices)}')
    if (file := given.get('params_file', '')) and not Path(file).is_file():
        raise GraphError(f'params_file: there is no file {file}')
    return {**{name: option.default for name, option in known.items()}, **given}


def nodes(given: Values) -> list[tuple[str, dict[str, Any]]]:
    """Return (node, its parameters) for the options given.

    An option that is not given sets no parameter: its default is the node's own, and a file of
    parameters may say otherwise.

    Raises:
        GraphError: see ``complete``.
    """
    values = complete(given)
    started = []
    for node in GRAPH:
        if not node.when(values):
            continue
        parameters: dict[str, Any] = {}
        if 'use_sim_time' in given:
            parameters['use_sim_time'] = given['use_sim_time'] == 'true'
        for option, parameter in node.parameters.items():
            if option in given:
                parameters[parameter] = (
                    _whole(given, option) if option in _NUMBERS else given[option])
        # A recording brings the poses of its own sensor: one from the simulation beside it would
        # be a second publisher of the same frame, and of a place where nothing was.
        if node.name == 'patient_node' and not all(_sources_simulated(values).values()):
            parameters['tracked'] = next(
                body for body, simulated in _sources_simulated(values).items() if simulated)
        # Without a simulated patient there is no anatomy that could be true.
        if node.name == 'planner_node' and not _simulated(values):
            parameters['anatomy'] = 'none'
        started.append((node.name, parameters))
    return started

