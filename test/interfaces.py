"""Reads the tables of docs/interfaces.md."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / 'docs' / 'interfaces.md'


@dataclass(frozen=True)
class Topic:
    """One row: ``publishers`` and ``subscribers`` are node names, ``quality`` one of qos.py."""

    name: str
    type: str
    publishers: frozenset[str]
    subscribers: frozenset[str]
    quality: str


@dataclass(frozen=True)
class Service:
    """One row."""

    name: str
    type: str
    server: str
    clients: frozenset[str]


def text() -> str:
    return DOCUMENT.read_text(encoding='utf-8')


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its head."""
    _, found, rest = text().partition(f'\n{heading}\n')
    assert found, f'{DOCUMENT.name} has no {heading}'
    lines = re.search(r'((?:^\|.*\n)+)', rest, re.MULTILINE)
    assert lines
    return [[cell.strip() for cell in line.strip('|').split('|')]
            for line in lines[1].splitlines()[2:]]


def nodes(cell: str) -> frozenset[str]:
    """Return the nodes that a cell names, but for those with a condition: ``node`` (when)."""
    return frozenset(re.findall(r'`(\w+_node)`(?! \()', cell)) or (
        frozenset({'every node'}) if cell == 'every node' else frozenset())


def topics() -> dict[str, Topic]:
    return {topic.name: topic for topic in (
        Topic(row[0].strip('`'), row[1].strip('`'), nodes(row[4]), nodes(row[5]),
              row[6].strip('`')) for row in rows('## Topics'))}


def services() -> dict[str, Service]:
    return {service.name: service for service in (
        Service(row[0].strip('`'), row[1].strip('`'), row[2].strip('`'), nodes(row[3]))
        for row in rows('## Services'))}
