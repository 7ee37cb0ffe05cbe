"""The documentation against the nodes themselves, each started alone."""

import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import interfaces
import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from hybrid_guidance.graph import GRAPH
from hybrid_guidance.ros import environment, qos
from hybrid_guidance.ros.documentation import parameter_tables

ROS_OWN_TOPICS = {'/rosout', '/parameter_events', '/clock'}
ROS_OWN_SERVICES = re.compile(r'/\w+/(\w*parameter\w*|get_type_description)$')
NODES = [*(node.name for node in GRAPH), 'operator_node']
"""``recorder_node`` has no topics of its own: it takes what it finds."""


def node_type(name: str) -> type[Node]:
    stem = ''.join(part.capitalize() for part in name.split('_'))
    found: type[Node] = getattr(import_module(f'hybrid_guidance.nodes.{name}'), stem)
    return found


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start one node, with words of the command line."""
    monkeypatch.chdir(tmp_path)
    environment.prepare()
    started: list[Node] = []

    def begin(name: str, *words: str) -> Node:
        rclpy.init(args=['--ros-args', *words] if words else None)
        started.append(node_type(name)())
        return started[0]
    yield begin
    for node in started:
        node.destroy_node()
    rclpy.try_shutdown()


def until_known(look: Callable[[], list[Any]]) -> list[Any]:
    """Ask until the graph knows its own node, then until the answer stays the same."""
    deadline, before = time.monotonic() + 5.0, None
    while time.monotonic() < deadline:
        now = look()
        if now and now == before:
            return now
        before = now
        time.sleep(0.05)
    raise AssertionError('the graph does not know its node')


def named(found: list[tuple[str, list[str]]], topics: bool = True) -> dict[str, str]:
    """Return name to type as the documentation writes them, without ROS's own."""
    return {name if name in ('/tf', '/tf_static', '/diagnostics') else name[1:]: types[0]
            for name, types in found
            if name not in ROS_OWN_TOPICS and (topics or not ROS_OWN_SERVICES.match(name))}


def documented(side: str, node: str) -> dict[str, str]:
    return {topic.name: topic.type for topic in interfaces.topics().values()
            if getattr(topic, side) & {node, 'every node'}}


def publications(node: Node) -> dict[str, str]:
    return named(until_known(lambda: node.get_publisher_names_and_types_by_node(
        node.get_name(), node.get_namespace())))


def subscriptions(node: Node) -> dict[str, str]:
    return named(node.get_subscriber_names_and_types_by_node(
        node.get_name(), node.get_namespace()))


def qualities(node: Node) -> Iterator[tuple[str, QoSProfile, QoSProfile, bool]]:
    """Yield (topic, documented, real QoS, whether published) of each topic in the table."""
    for topic in interfaces.topics().values():
        wanted = getattr(qos, topic.quality, None)
        if wanted is None:
            continue
        for info in node.get_publishers_info_by_topic(topic.name):
            yield topic.name, wanted, info.qos_profile, True
        for info in node.get_subscriptions_info_by_topic(topic.name):
            yield topic.name, wanted, info.qos_profile, False


def suits(wanted: QoSProfile, real: QoSProfile, published: bool) -> bool:
    """Tell whether an endpoint is what the table says, or can hear what the table says."""
    reliable = real.reliability == ReliabilityPolicy.RELIABLE
    if published:
        return (reliable and real.durability == wanted.durability
                and real.lifespan.nanoseconds == (wanted.lifespan.nanoseconds
                                                  or real.lifespan.nanoseconds))
    return wanted.durability == DurabilityPolicy.TRANSIENT_LOCAL or (
        real.durability != DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.mark.parametrize('name', NODES)
def test_topics_services_and_qos_of_a_node_are_those_of_the_document(
        name: str, start: Callable[..., Node]) -> None:
    node = start(name)
    for view in getattr(node, '_views', ()):
        view.listen(node, is_watched=True)
    assert publications(node) == documented('publishers', name)
    assert subscriptions(node) == documented('subscribers', name)
    served = named(node.get_service_names_and_types_by_node(name, '/'), topics=False)
    called = named(node.get_client_names_and_types_by_node(name, '/'), topics=False)
    every = interfaces.services().values()
    assert served == {item.name: item.type for item in every if item.server == name}
    assert called == {item.name: item.type for item in every if name in item.clients}
    unlike = [(topic, real) for topic, wanted, real, published in qualities(node)
              if not suits(wanted, real, published)]
    assert not unlike


def test_a_recording_publishes_its_poses_on_tf(start: Callable[..., Node]) -> None:
    """What the table marks "(recording)", and nothing of the simulation."""
    node = start('ultrasound_node', '-p', 'source:=sequence')
    assert set(publications(node)) == {*documented('publishers', 'ultrasound_node'), '/tf'}
    assert subscriptions(node) == {}


def test_topics_that_are_said_not_to_exist_do_not() -> None:
    section = interfaces.text().partition('## Names that are taken')[2].partition('\n## ')[0]
    taken = set(re.findall(r'`([a-z_]+/[a-z_]+)`', section))
    assert taken
    sources = '\n'.join(path.read_text(encoding='utf-8') for path in (
        interfaces.DOCUMENT.parents[1] / 'hybrid_guidance').rglob('*.py'))
    there = {name for name in taken if f"'{name}'" in sources}
    assert not there, 'they exist now: move them to the tables'
    assert not taken & {*interfaces.topics(), *interfaces.services()}


def test_table_of_qos_is_that_of_the_code() -> None:
    table = {row[0].strip('`'): row[1:4] for row in interfaces.rows('### Quality of service')}
    for name, (depth, durability, lifespan) in table.items():
        profile: QoSProfile = getattr(qos, name)
        assert int(depth) == profile.depth
        assert durability == profile.durability.name.lower().replace('_', ' ')
        seconds = profile.lifespan.nanoseconds * 1e-9
        assert lifespan == (f'{seconds:g} s' if 0 < seconds < 1e9 else '')
    used = {topic.quality for topic in interfaces.topics().values()}
    assert used - {"tf2's", 'depth 10'} == set(table)


def test_parameter_tables_are_the_generated_ones() -> None:
    """Cure: put the output of ``hybrid-guidance parameters`` between the two marks."""
    written = re.search(r'<!-- parameters -->\n(.*)\n<!-- /parameters -->', interfaces.text(),
                        re.DOTALL)
    assert written
    assert written[1] == parameter_tables()


def test_wrong_documentation_is_found(start: Callable[..., Node],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: another type, a topic too many, another QoS."""
    node = start('fluoroscopy_tracker_node')
    publications(node)
    spoiled = interfaces.text().replace(
        '| `fluoroscopy/needle` | `geometry_msgs/msg/PoseWithCovarianceStamped`',
        '| `fluoroscopy/needle` | `geometry_msgs/msg/PoseStamped`')
    spoiled = re.sub(r'(`fluoroscopy/needle`.*)`OBSERVATION`', r'\1`STATE`', spoiled)
    monkeypatch.setattr(interfaces, 'text', lambda: spoiled)
    assert publications(node) != documented('publishers', 'fluoroscopy_tracker_node')
    assert not all(suits(wanted, real, published)
                   for _, wanted, real, published in qualities(node))
