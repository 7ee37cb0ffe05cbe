"""rviz/guidance.rviz against what RViz itself writes, and against what the graph publishes.

RViz says nothing when it cannot use a key or a value: an unknown key is ignored, a value of the
wrong type becomes a minimum, two displays of different types on one topic end the whole load.
The tables below are the properties of RViz 14.3.1 (rviz_common and rviz_default_plugins, branch
rolling, December 2024), as its constructors create and ``Property::save`` names them.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import interfaces
import pytest
import yaml
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from hybrid_guidance.resources import resource
from hybrid_guidance.ros import qos

Config = dict[str, Any]

COLOUR = re.compile(r'\d{1,3}; \d{1,3}; \d{1,3}')
NUMBER = (int, float)
XYZ = {'X': NUMBER, 'Y': NUMBER, 'Z': NUMBER}
QUALITY = {'Depth': int, 'History Policy': {'Keep Last'}, 'Reliability Policy': {'Reliable'},
           'Durability Policy': {'Volatile', 'Transient Local'}, 'Value': str}
FILTERED = {**QUALITY, 'Filter size': int}
ANYTHING = dict
SHOWN = {'Class': str, 'Name': str, 'Enabled': bool, 'Value': bool}
STEREO = {'Stereo Eye Separation': NUMBER, 'Stereo Focal Distance': NUMBER,
          'Swap Stereo Eyes': bool, 'Value': bool}

DISPLAYS: dict[str, Config] = {
    'Grid': {
        **SHOWN, 'Alpha': NUMBER, 'Cell Size': NUMBER, 'Color': COLOUR, 'Offset': XYZ,
        'Line Style': {'Line Width': NUMBER, 'Value': {'Lines', 'Billboards'}},
        'Normal Cell Count': int, 'Plane': {'XY', 'XZ', 'YZ'}, 'Plane Cell Count': int,
        'Reference Frame': str},
    'TF': {
        **SHOWN, 'Filter (blacklist)': str, 'Filter (whitelist)': str, 'Frame Timeout': NUMBER,
        'Frames': {'All Enabled': bool}, 'Marker Scale': NUMBER, 'Show Arrows': bool,
        'Show Axes': bool, 'Show Names': bool, 'Tree': ANYTHING, 'Update Interval': NUMBER},
    'Image': {
        **SHOWN, 'Max Value': NUMBER, 'Median window': int, 'Min Value': NUMBER,
        'Normalize Range': bool, 'Topic': QUALITY},
    'MarkerArray': {**SHOWN, 'Namespaces': ANYTHING, 'Topic': QUALITY},
    'Path': {
        **SHOWN, 'Alpha': NUMBER, 'Buffer Length': int, 'Color': COLOUR, 'Head Diameter': NUMBER,
        'Head Length': NUMBER, 'Length': NUMBER, 'Line Style': {'Lines', 'Billboards'},
        'Line Width': NUMBER, 'Offset': XYZ, 'Pose Color': COLOUR,
        'Pose Style': {'None', 'Axes', 'Arrows'}, 'Radius': NUMBER, 'Shaft Diameter': NUMBER,
        'Shaft Length': NUMBER, 'Topic': FILTERED},
    'PoseWithCovariance': {
        **SHOWN, 'Alpha': NUMBER, 'Axes Length': NUMBER, 'Axes Radius': NUMBER, 'Color': COLOUR,
        'Covariance': {
            'Value': bool,
            'Orientation': {
                'Alpha': NUMBER, 'Color': COLOUR, 'Color Style': {'Unique', 'RGB'},
                'Frame': {'Local', 'Fixed'}, 'Offset': NUMBER, 'Scale': NUMBER, 'Value': bool},
            'Position': {'Alpha': NUMBER, 'Color': COLOUR, 'Scale': NUMBER, 'Value': bool}},
        'Head Length': NUMBER, 'Head Radius': NUMBER, 'Shaft Length': NUMBER,
        'Shaft Radius': NUMBER, 'Shape': {'Arrow', 'Axes'}, 'Topic': FILTERED},
    'PointCloud2': {
        **SHOWN, 'Alpha': NUMBER, 'Autocompute Intensity Bounds': bool,
        'Autocompute Value Bounds': {'Max Value': NUMBER, 'Min Value': NUMBER, 'Value': bool},
        'Axis': {'X', 'Y', 'Z'}, 'Channel Name': str, 'Color': COLOUR,
        'Color Transformer': {'', 'AxisColor', 'FlatColor', 'Intensity', 'RGB8'},
        'Decay Time': NUMBER, 'Invert Rainbow': bool, 'Max Color': COLOUR,
        'Max Intensity': NUMBER, 'Min Color': COLOUR, 'Min Intensity': NUMBER,
        'Position Transformer': {'', 'XYZ'}, 'Selectable': bool, 'Size (Pixels)': NUMBER,
        'Size (m)': NUMBER, 'Topic': QUALITY, 'Use Fixed Frame': bool, 'Use rainbow': bool,
        'Style': {'Points', 'Squares', 'Flat Squares', 'Spheres', 'Boxes', 'Tiles'}},
    'PointStamped': {
        **SHOWN, 'Alpha': NUMBER, 'Color': COLOUR, 'History Length': int, 'Radius': NUMBER,
        'Topic': FILTERED},
}
TOOLS: dict[str, Config] = {
    'MoveCamera': {}, 'Interact': {'Hide Inactive Objects': bool}, 'Select': {},
    'FocusCamera': {}, 'Measure': {'Line color': COLOUR},
    'PublishPoint': {'Single click': bool, 'Topic': QUALITY},
}
VIEWS: dict[str, Config] = {
    'Orbit': {
        'Name': str, 'Value': {'Orbit (rviz_default_plugins)'}, 'Distance': NUMBER,
        'Enable Stereo Rendering': STEREO, 'Focal Point': XYZ, 'Focal Shape Fixed Size': bool,
        'Focal Shape Size': NUMBER, 'Invert Z Axis': bool, 'Near Clip Distance': NUMBER,
        'Pitch': NUMBER, 'Target Frame': str, 'Yaw': NUMBER},
}
PANELS: dict[str, Config] = {
    'Displays': {'Name': str, 'Help Height': int, 'Tree Height': int, 'Property Tree Widget': {
        'Expanded': list, 'Splitter Ratio': NUMBER}},
    'Tool Properties': {'Name': str, 'Expanded': list, 'Splitter Ratio': NUMBER},
    'Views': {'Name': str, 'Expanded': list, 'Splitter Ratio': NUMBER},
}
OPTIONS: Config = {'Background Color': COLOUR, 'Fixed Frame': str, 'Frame Rate': int}
MESSAGES = {
    'Image': 'sensor_msgs/msg/Image', 'MarkerArray': 'visualization_msgs/msg/MarkerArray',
    'Path': 'nav_msgs/msg/Path', 'PointCloud2': 'sensor_msgs/msg/PointCloud2',
    'PointStamped': 'geometry_msgs/msg/PointStamped',
    'PoseWithCovariance': 'geometry_msgs/msg/PoseWithCovarianceStamped',
    'PublishPoint': 'geometry_msgs/msg/PointStamped',
}


def load() -> Config:
    found: Config = yaml.safe_load(resource('rviz/guidance.rviz').read_text(encoding='utf-8'))
    return found


def manager(config: Config) -> Config:
    found: Config = config['Visualization Manager']
    return found


def kind(item: Config) -> str:
    return str(item['Class']).rpartition('/')[2]


def with_topic(config: Config) -> Iterator[Config]:
    """Yield every display and tool that has a topic."""
    for item in [*manager(config)['Displays'], *manager(config)['Tools']]:
        if 'Topic' in item:
            yield item


def differences(value: Any, known: Any, where: str) -> Iterator[str]:
    """Yield in words what of a value RViz would ignore or misread."""
    if isinstance(known, dict):
        if not isinstance(value, dict):
            yield f'{where}: {value!r} is not a group'
            return
        for key, inner in value.items():
            if key in known:
                yield from differences(inner, known[key], f'{where}/{key}')
            else:
                yield f'{where}/{key}: no such property'
    elif isinstance(known, set):
        if value not in list(known):
            yield f'{where}: {value!r} is not one of {sorted(known)}'
    elif isinstance(known, re.Pattern):
        if not (isinstance(value, str) and known.fullmatch(value)
                and all(int(part) < 256 for part in value.split(';'))):
            yield f'{where}: {value!r} is not a colour'
    elif not isinstance(value, known) or (isinstance(value, bool) and known is not bool):
        yield f'{where}: {value!r} is of the wrong type'


def check_properties(config: Config) -> list[str]:
    """Every class is known; every key and value is one that RViz writes for it."""
    scene = manager(config)
    wrong = list(differences(scene['Global Options'], OPTIONS, 'Global Options'))
    groups = [(scene['Displays'], 'rviz_default_plugins', DISPLAYS),
              (scene['Tools'], 'rviz_default_plugins', TOOLS),
              ([scene['Views']['Current']], 'rviz_default_plugins', VIEWS),
              (config['Panels'], 'rviz_common', PANELS)]
    for items, package, table in groups:
        for item in items:
            if item['Class'] != f'{package}/{kind(item)}' or kind(item) not in table:
                wrong.append(f'{item["Class"]}: no such class')
                continue
            known = {**table[kind(item)], 'Class': str}
            wrong += differences(item, known, item.get('Name', kind(item)))
    if scene['Transformation'] != {'Current': {'Class': 'rviz_default_plugins/TF'}}:
        wrong.append('Transformation: not tf')
    return wrong


def check_topics(config: Config) -> list[str]:
    """Every topic is one of the graph, of the type that the display or tool handles."""
    types = {name: topic.type for name, topic in interfaces.topics().items()}
    return [f'{kind(item)} on {item["Topic"]["Value"]}, which is '
            f'{types.get(item["Topic"]["Value"], "nowhere")}'
            for item in with_topic(config)
            if types.get(item['Topic']['Value']) != MESSAGES[kind(item)]]


def check_one_type_a_topic(config: Config) -> list[str]:
    """Displays of two types on one topic make RViz drop the whole file."""
    seen: dict[str, str] = {}
    return [item['Topic']['Value'] for item in with_topic(config)
            if seen.setdefault(item['Topic']['Value'], kind(item)) != kind(item)]


def quality(topic: Config) -> QoSProfile:
    return QoSProfile(
        depth=topic['Depth'],
        history=HistoryPolicy[topic['History Policy'].upper().replace(' ', '_')],
        reliability=ReliabilityPolicy[topic['Reliability Policy'].upper().replace(' ', '_')],
        durability=DurabilityPolicy[topic['Durability Policy'].upper().replace(' ', '_')])


def check_qos(config: Config) -> list[str]:
    """Displays ask for exactly what is offered: less loses latched state, more gets nothing."""
    offered = {name: getattr(qos, topic.quality, None)
               for name, topic in interfaces.topics().items()}
    wrong = []
    for item in manager(config)['Displays']:
        if 'Topic' in item and (wanted := offered.get(item['Topic']['Value'])) is not None:
            asked = quality(item['Topic'])
            if (asked.depth, asked.durability, asked.reliability) != (
                    wanted.depth, wanted.durability, wanted.reliability):
                wrong.append(item['Name'])
    return wrong


CHECKS: list[Callable[[Config], list[str]]] = [
    check_properties, check_topics, check_one_type_a_topic, check_qos]


@pytest.mark.parametrize('check', CHECKS)
def test_scene_is_one_that_rviz_takes_whole(check: Callable[[Config], list[str]]) -> None:
    assert check(load()) == []


def display(config: Config, name: str) -> Config:
    return next(item for item in manager(config)['Displays'] if item['Name'] == name)


@pytest.mark.parametrize(('check', 'spoil'), [
    (check_properties, lambda c: display(c, 'Table').update({'Cell Size': 'wide'})),
    (check_properties, lambda c: display(c, 'Table').update({'Alpha': True})),
    (check_properties, lambda c: display(c, 'Needle')['Covariance'].update({'Scale': 2})),
    (check_properties, lambda c: display(c, 'Path').update({'Color': '25; 204'})),
    (check_properties, lambda c: display(c, 'Path').update({'Line Style': {'Value': 'Lines'}})),
    (check_properties, lambda c: display(c, 'X-ray').update({'Class': 'rviz/Image'})),
    (check_properties, lambda c: display(c, 'X-ray').update({'Topic': 'fluoroscopy/overlay'})),
    (check_properties, lambda c: manager(c)['Views']['Current'].update(
        {'Class': 'rviz_default_plugins/Orbiter'})),
    (check_properties, lambda c: manager(c)['Tools'].append({'Class': 'rviz_default_plugins/X'})),
    (check_topics, lambda c: display(c, 'X-ray')['Topic'].update({'Value': 'xray/overlay'})),
    (check_topics, lambda c: display(c, 'Plan')['Topic'].update({'Value': 'plan/path'})),
    (check_one_type_a_topic, lambda c: display(c, 'Plan')['Topic'].update(
        {'Value': 'plan/path'})),
    (check_qos, lambda c: display(c, 'Plan')['Topic'].update({'Durability Policy': 'Volatile'})),
    (check_qos, lambda c: display(c, 'Needle')['Topic'].update(
        {'Durability Policy': 'Transient Local'})),
])
def test_spoiled_scene_is_found(check: Callable[[Config], list[str]],
                                spoil: Callable[[Config], None]) -> None:
    """Negative controls: what RViz would swallow without a word."""
    config = copy.deepcopy(load())
    spoil(config)
    assert check(config)


def test_scene_shows_what_the_graph_has_to_show() -> None:
    shown = {(kind(item), item['Topic']['Value'], item['Enabled'])
             for item in manager(load())['Displays'] if 'Topic' in item}
    assert shown == {
        ('Image', 'fluoroscopy/overlay', True), ('Image', 'ultrasound/overlay', True),
        ('MarkerArray', 'guidance/markers', True), ('MarkerArray', 'plan/markers', True),
        ('MarkerArray', 'ground_truth/markers', False), ('Path', 'plan/path', True),
        ('PoseWithCovariance', 'needle/pose', True), ('PointStamped', 'plan/nearest_structure',
                                                      True),
        ('PointCloud2', 'ultrasound/bone_surface', True)}
    assert manager(load())['Global Options']['Fixed Frame'] == 'world'


def test_every_name_is_relative_so_that_a_namespace_moves_the_scene() -> None:
    """RViz makes its subscriptions in its node's namespace; a leading slash would pin them."""
    assert not [item for item in with_topic(load()) if item['Topic']['Value'].startswith('/')]


def test_both_ends_of_the_plan_can_be_clicked() -> None:
    points = [item['Topic']['Value'] for item in manager(load())['Tools']
              if kind(item) == 'PublishPoint']
    assert points == ['plan/target', 'plan/entry']


def test_clicked_points_reach_the_planner() -> None:
    for item in manager(load())['Tools']:
        if kind(item) == 'PublishPoint':
            asked = getattr(qos, interfaces.topics()[item['Topic']['Value']].quality)
            assert asked.durability == DurabilityPolicy.VOLATILE


def test_scene_is_installed() -> None:
    setup = (Path(__file__).parents[2] / 'setup.py').read_text(encoding='utf-8')
    assert "shared('launch', 'config', 'rviz')" in setup
