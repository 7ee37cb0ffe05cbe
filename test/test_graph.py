"""One description of the graph, read by the launch file and by the command line alike."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid_guidance import cli, graph
from hybrid_guidance.parameters import table
from hybrid_guidance.ros.documentation import parameters_of
from hybrid_guidance.supervisor import PARENT, Supervisor, ros_arguments

ROOT = Path(__file__).resolve().parents[1]
NAMES = [node.name for node in graph.GRAPH]
CHOSEN: list[dict[str, str]] = [
    {},
    {'namespace': 'lab', 'seed': '7', 'log_level': 'debug'},
    {'use_sim_time': 'true', 'procedure': 'other.yaml', 'calibration_file': 'mine.yaml'},
    {'fluoroscopy_source': 'dicom', 'fluoroscopy_file': 'run.dcm'},
    {'ultrasound_source': 'sequence', 'ultrasound_file': 'scan.igs.mha'},
    {'fluoroscopy_source': 'dicom', 'fluoroscopy_file': 'run.dcm',
     'ultrasound_source': 'sequence', 'ultrasound_file': 'scan.igs.mha'},
]


def started(given: dict[str, str]) -> dict[str, dict[str, Any]]:
    return dict(graph.nodes(given))


def test_defaults_complete_what_is_not_given() -> None:
    values = graph.complete({'seed': '3'})
    assert set(values) == {option.name for option in graph.OPTIONS}
    assert (values['seed'], values['ultrasound_source']) == ('3', 'simulated')


@pytest.mark.parametrize(('given', 'words'), [
    ({'sead': '3'}, ['sead', 'no such option', 'seed']),
    ({'ultrasound_source': 'telepathy'}, ['ultrasound_source', 'telepathy', 'sequence']),
    ({'use_sim_time': 'True'}, ['use_sim_time', 'True', 'true']),
])
def test_a_wrong_option_is_refused_in_words(given: dict[str, str], words: list[str]) -> None:
    with pytest.raises(graph.GraphError) as refusal:
        graph.complete(given)
    assert all(word in str(refusal.value) for word in words)


def test_every_default_is_one_of_its_choices() -> None:
    assert all(option.default in option.choices for option in graph.OPTIONS if option.choices)


def test_every_option_says_what_it_means() -> None:
    assert all(option.meaning for option in graph.OPTIONS)


def test_options_become_the_parameters_of_the_nodes_that_take_them() -> None:
    nodes = started({'seed': '7', 'ultrasound_source': 'dicom', 'ultrasound_file': 'us.dcm',
                     'use_sim_time': 'true', 'calibration_file': 'mine'})
    assert nodes['patient_node']['seed'] == 7
    assert nodes['ultrasound_node']['source'] == 'dicom'
    assert nodes['ultrasound_node']['file'] == 'us.dcm'
    assert nodes['fusion_node']['calibration_file'] == 'mine'
    assert all(parameters['use_sim_time'] is True for parameters in nodes.values())


@pytest.mark.parametrize(('given', 'there'), [
    ({}, True), ({'fluoroscopy_source': 'dicom'}, True), ({'ultrasound_source': 'dicom'}, True),
    ({'fluoroscopy_source': 'dicom', 'ultrasound_source': 'sequence'}, False)])
def test_simulated_patient_is_there_while_an_image_is_simulated(
        given: dict[str, str], there: bool) -> None:
    """Without one, no anatomy is the true one, and the planner must not believe in any."""
    nodes = started(given)
    assert ('patient_node' in nodes) is there
    assert nodes['planner_node'].get('anatomy') == (None if there else 'none')
    assert {*nodes, 'patient_node', 'openigtlink_node'} == set(NAMES)


def test_the_guidance_is_served_over_openigtlink_only_on_a_port() -> None:
    assert 'openigtlink_node' not in started({})
    assert started({'openigtlink_port': '18950'})['openigtlink_node']['port'] == 18950
    with pytest.raises(graph.GraphError, match='openigtlink_port'):
        started({'openigtlink_port': 'here'})


@pytest.mark.parametrize(('given', 'tracked'), [
    ({}, None), ({'fluoroscopy_source': 'simulated', 'ultrasound_source': 'simulated'}, None),
    ({'ultrasound_source': 'sequence'}, 'carm'), ({'ultrasound_source': 'dicom'}, 'carm'),
    ({'fluoroscopy_source': 'dicom'}, 'ultrasound_probe')])
def test_simulation_tracks_only_what_takes_simulated_images(
        given: dict[str, str], tracked: str | None) -> None:
    """A recording publishes the poses of its probe: one publisher for each frame."""
    assert started(given)['patient_node'].get('tracked') == tracked


@pytest.mark.parametrize('given', CHOSEN)
def test_every_parameter_given_is_one_that_the_node_takes(given: dict[str, str]) -> None:
    for name, parameters in [*graph.nodes(given), *graph.nodes(graph.complete(given))]:
        rows = {row.name: row for row in table(parameters_of(name))}
        for parameter, value in parameters.items():
            if parameter != 'use_sim_time':
                assert rows[parameter].check(value) == value


def test_what_is_not_given_is_left_to_the_node_or_a_file() -> None:
    assert all(parameters == {} for _, parameters in graph.nodes({}))


def test_defaults_of_options_are_those_of_the_parameters() -> None:
    """Or leaving them out would change what is started."""
    for name, parameters in graph.nodes(graph.complete({})):
        rows = {row.name: row for row in table(parameters_of(name))}
        assert {key: rows[key].default for key in parameters if key != 'use_sim_time'} == {
            key: value for key, value in parameters.items() if key != 'use_sim_time'}


def test_a_seed_is_a_whole_number() -> None:
    with pytest.raises(graph.GraphError, match='"one" is not a whole number'):
        graph.nodes({'seed': 'one'})


def test_choices_of_a_source_are_those_of_its_node() -> None:
    choices = {option.name: option.choices for option in graph.OPTIONS}
    for sensor in ('fluoroscopy', 'ultrasound'):
        rows = {row.name: row for row in table(parameters_of(f'{sensor}_node'))}
        assert choices[f'{sensor}_source'] == rows['source'].choices


@pytest.fixture(scope='module')
def installation() -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    import os

    import setuptools
    given: dict[str, Any] = {}
    before, original = os.getcwd(), setuptools.setup
    os.chdir(ROOT)
    setuptools.setup = given.update
    try:
        exec(compile((ROOT / 'setup.py').read_text(), 'setup.py', 'exec'), {})
    finally:
        setuptools.setup = original
        os.chdir(before)
    return given


@pytest.mark.parametrize('name', [*NAMES, 'recorder_node'])
def test_every_node_is_a_module_with_main_and_an_executable(
        name: str, installation: dict[str, Any]) -> None:
    assert callable(import_module(f'hybrid_guidance.nodes.{name}').main)
    assert f'{name} = hybrid_guidance.nodes.{name}:main' in (
        installation['entry_points']['console_scripts'])


def test_every_executable_can_be_run(installation: dict[str, Any]) -> None:
    for line in installation['entry_points']['console_scripts']:
        name, _, target = line.partition(' = ')
        module, _, function = target.partition(':')
        assert callable(getattr(import_module(module), function, None)), name


def test_launch_files_configuration_and_scene_are_installed(installation: dict[str, Any]) -> None:
    share = {f'{folder}/{Path(file).name}' for folder, files in installation['data_files']
             for file in files}
    assert {'share/hybrid_guidance/launch/guidance.launch.py',
            'share/hybrid_guidance/rviz/guidance.rviz',
            'share/hybrid_guidance/config/fastdds.xml',
            'share/hybrid_guidance/config/calibration/simulated.yaml',
            'share/hybrid_guidance/package.xml',
            'share/ament_index/resource_index/packages/hybrid_guidance'} <= share


class Listing(Supervisor):
    """A supervisor that notes what it is asked to start."""

    def __init__(self) -> None:
        super().__init__(lambda name, line: None, lambda name, status, lines: None, {})
        self.commands: dict[str, list[str]] = {}

    def start(self, name: str, command: Any) -> None:
        self.commands[name] = list(command)


LISTINGS: list[Listing] = []
"""Kept, because a supervisor takes its files with it."""


def commands(given: dict[str, str], **words: Any) -> dict[str, list[str]]:
    listing = Listing()
    LISTINGS.append(listing)
    cli._start_graph(listing, given, words.pop('sets', ()), **words)
    return listing.commands


def told(command: list[str]) -> dict[str, Any]:
    """Read the parameters from the node's own file, the last one on its command line."""
    assert '-p' not in command, 'a section of a file might win over it'
    file = command[len(command) - command[::-1].index('--params-file')]
    sections = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
    found = [section['ros__parameters'] for section in sections.values()]
    assert all(values == found[0] for values in found)
    return dict(found[0])


def name_and_namespace(command: list[str]) -> tuple[str, str]:
    rules = dict(word.split(':=') for word in command if word.startswith('__'))
    return rules['__node'], rules.get('__ns', '')


@pytest.mark.parametrize('given', CHOSEN)
def test_command_line_starts_what_the_graph_says(given: dict[str, str]) -> None:
    values = graph.complete(given)
    listed = commands(given)
    assert list(listed) == list(started(given))
    for name, parameters in started(given).items():
        assert told(listed[name]) == parameters
        space = f'/{values["namespace"]}' if values['namespace'] else ''
        assert name_and_namespace(listed[name]) == (name, space)
        assert listed[name][listed[name].index('--log-level') + 1] == values['log_level']


def test_only_and_without_choose_nodes() -> None:
    assert list(commands({}, only=['fusion_node'])) == ['fusion_node']
    assert 'overlay_node' not in commands({}, without=['overlay_node'])
    with pytest.raises(graph.GraphError, match='ghost_node'):
        commands({}, only=['ghost_node'])


def test_one_parameter_of_one_node_can_be_set() -> None:
    listed = commands({}, sets=['fusion_node.stale=0.7'])
    assert told(listed['fusion_node'])['stale'] == 0.7
    assert 'stale' not in told(listed['planner_node'])


@pytest.mark.parametrize(('wrong', 'words'), [
    ('fusion_node.stale', 'node.parameter=value'), ('stale=0.7', 'node.parameter=value'),
    ('ghost_node.stale=0.7', 'there is no ghost_node'),
    ('fusion_node.stael=0.7', 'there is no stael; there are .*stale'),
    ('fusion_node.stale=soon', "'soon' is not a float"), ('fusion_node.stale=nan', 'not a finite'),
    ('fusion_node.stale=99', 'not in'), ('ultrasound_node.loop=1', "'1' is not a bool"),
    ('patient_node.seed=1.5', 'not a int'), ('fusion_node.use_sim_time=maybe', 'not a bool'),
    ('ultrasound_node.source=radar', 'simulated, dicom, sequence')])
def test_what_cannot_be_set_is_refused_before_anything_starts(wrong: str, words: str) -> None:
    with pytest.raises(graph.GraphError, match=words) as refusal:
        commands({}, sets=[wrong])
    assert wrong in str(refusal.value)


@pytest.mark.parametrize(('pair', 'value'), [
    ('ultrasound_node.file=2012', '2012'), ('ultrasound_node.file=no', 'no'),
    ('ultrasound_node.file=', ''), ('ultrasound_node.file=a "b": {c} \\ # é=1.mha',
                                    'a "b": {c} \\ # é=1.mha'),
    ('ultrasound_node.loop=False', False), ('ultrasound_node.rate=20', 20.0),
    ('ultrasound_node.seed=3', 3), ('ultrasound_node.use_sim_time=true', True)])
def test_a_value_keeps_the_type_of_its_parameter(pair: str, value: Any) -> None:
    found = told(commands({}, sets=[pair])['ultrasound_node'])
    assert found == {pair.partition('=')[0].partition('.')[2]: value}
    assert type(*found.values()) is type(value)


def test_a_missing_file_of_parameters_is_refused() -> None:
    with pytest.raises(graph.GraphError, match=r'there is no file gone\.yaml'):
        commands({'params_file': 'gone.yaml'})


@pytest.mark.parametrize('namespace', ['', 'lab', '/lab/room/'])
@pytest.mark.parametrize('sections', [
    ['{name}'], ['/**'], ['/**/{name}'], ['{space}/{name}'],
    ['/**', '/**/{name}'], ['/**/{name}', '/**'], ['{space}/{name}', '/**', '/**/{name}']])
def test_what_is_set_wins_over_any_section_of_a_file(
        tmp_path: Path, namespace: str, sections: list[str]) -> None:
    """Read by ROS itself; what is not set is taken from the file."""
    import rclpy
    space = f'/{namespace.strip("/")}' if namespace else ''
    file = tmp_path / 'params.yaml'
    file.write_text(''.join(
        f'{section.format(space=space, name="overlay_node")}:\n'
        '  ros__parameters: {rate: 9.0, sigmas: 3.0}\n' for section in sections))
    given = {'params_file': str(file), **({'namespace': namespace} if namespace else {})}
    command = commands(given, sets=['overlay_node.rate=7'])['overlay_node']
    rclpy.init(args=command[command.index('--ros-args'):])
    node = rclpy.create_node('overlay_node')
    try:
        heard = bool(space == '' or sections != ['{name}'])
        assert node.get_fully_qualified_name() == f'{space}/overlay_node'
        assert node.declare_parameter('rate', 5.0).value == 7.0
        assert node.declare_parameter('sigmas', 2.0).value == (3.0 if heard else 2.0)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


@pytest.mark.parametrize('value', ['2012', 'no', '', 'a "b": {c} \\ # é=1.mha', '[1, 2]', "o'k"])
def test_text_arrives_as_text(value: str) -> None:
    """Both ways: in a file beside the user's, and on the command line."""
    import rclpy
    command = commands({}, sets=[f'ultrasound_node.file={value}'])['ultrasound_node']
    for words in (command[command.index('--ros-args'):],
                  ros_arguments('ultrasound_node', {'file': value})):
        rclpy.init(args=words)
        node = rclpy.create_node('ultrasound_node')
        assert node.declare_parameter('file', 'default').value == value
        node.destroy_node()
        rclpy.try_shutdown()


def test_files_of_parameters_go_with_the_supervisor() -> None:
    listing = Listing()
    cli._start_graph(listing, {}, ())
    assert listing.folder.is_dir()
    listing.stop()
    assert not listing.folder.exists()


# From here on with ROS's launch. A folder named launch, such as ours, is not it.
needs_launch = pytest.mark.skipif(find_spec('launch_ros') is None,
                                  reason='ROS 2 launch is not installed here')


def description() -> Any:
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    return get_launch_description_from_python_launch_file(
        str(ROOT / 'launch' / 'guidance.launch.py'))


def launched(given: dict[str, str]) -> dict[str, Any]:
    """Return (node action, context) by name, as the launch file would start them."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    context = LaunchContext()
    context.launch_configurations.update(given)
    actions: list[Any] = []
    for entity in description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            actions += entity.execute(context)
    for action in actions:
        action._perform_substitutions(context)
    return {action.node_name.rpartition('/')[2]: (action, context) for action in actions}


def words_launched(action: Any, context: Any) -> list[str]:
    """Return the words that the launch file gives, without what launch_ros adds at the start."""
    from launch.substitutions import TextSubstitution
    return [''.join(part.perform(context) for part in word) for word in action.cmd
            if all(isinstance(part, TextSubstitution) for part in word)]


def parameters_launched(action: Any, context: Any) -> dict[str, Any]:
    """Evaluate what the launch file hands to a node, the last of equal names winning."""
    from launch_ros.utilities import evaluate_parameters
    result: dict[str, Any] = {}
    for part in evaluate_parameters(context, action._Node__parameters):
        result |= part if isinstance(part, dict) else {}
    return result


@needs_launch
def test_launch_arguments_are_the_options_and_all_are_described() -> None:
    from launch import LaunchContext
    context = LaunchContext()
    arguments = {item.name: item for item in description().get_launch_arguments()}
    assert list(arguments) == [option.name for option in graph.OPTIONS]
    for option in graph.OPTIONS:
        found = arguments[option.name]
        default = ''.join(part.perform(context) for part in found.default_value)
        assert default == option.default
        assert option.meaning in found.description
        assert tuple(found.choices or ()) == option.choices


@needs_launch
@pytest.mark.parametrize('given', CHOSEN)
def test_launch_file_starts_what_the_command_line_starts(given: dict[str, str]) -> None:
    nodes, listed = launched(given), commands(given)
    assert set(nodes) == set(listed)
    for name, (action, context) in nodes.items():
        assert (action.node_package, action.node_executable) == ('hybrid_guidance', name)
        words = words_launched(action, context)
        assert action.node_name == f'{name_and_namespace(listed[name])[1]}/{name}'
        assert words[words.index('--log-level') + 1] == (
            listed[name][listed[name].index('--log-level') + 1])
        real = parameters_launched(action, context)
        assert real == told(listed[name])


@needs_launch
def test_options_given_come_after_the_file_and_others_do_not(tmp_path: Path) -> None:
    """What comes last wins; see docs/interfaces.md."""
    file = tmp_path / 'params.yaml'
    file.write_text('/**:\n  ros__parameters:\n    seed: 5\n')
    action, context = launched({'params_file': str(file), 'seed': '1'})['patient_node']
    kinds = [type(part).__name__ for part in action._Node__parameters]
    assert kinds == ['ParameterFile', 'dict']
    assert parameters_launched(action, context) == {'seed': 1}
    assert parameters_launched(*launched({'params_file': str(file)})['patient_node']) == {}


@needs_launch
def test_launch_refuses_a_missing_file_of_parameters() -> None:
    """Launch itself only warns, and starts every node without it."""
    with pytest.raises(graph.GraphError, match=r'there is no file gone\.yaml'):
        launched({'params_file': 'gone.yaml'})


@needs_launch
def test_scene_opens_in_the_namespace_of_the_graph() -> None:
    nodes = launched({'rviz': 'true', 'namespace': 'lab'})
    # Should it be missing, nothing else has been started yet.
    assert next(iter(nodes)) == 'rviz2'
    action, context = nodes['rviz2']
    words = words_launched(action, context)
    assert action.node_name == '/lab/rviz2'
    assert Path(words[words.index('-d') + 1]).is_file()


@needs_launch
def test_nodes_of_a_launch_end_with_it() -> None:
    """However it ends: each node asks Linux for a signal when this process is gone."""
    import os
    for action, context in launched({}).values():
        environment = {
            ''.join(part.perform(context) for part in name):
            ''.join(part.perform(context) for part in value)
            for name, value in action.additional_env}
        assert environment[PARENT] == str(os.getpid())
