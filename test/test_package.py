"""What a user of ROS 2 must install, against what the sources import."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hybrid_guidance import doctor

ROOT = Path(__file__).parents[1]
KEYS = {'cv2': 'python3-opencv', 'numpy': 'python3-numpy', 'open3d': 'python3-open3d-pip',
        'rosbags': 'python3-rosbags-pip', 'scipy': 'python3-scipy', 'yaml': 'python3-yaml',
        'transforms3d': 'python3-transforms3d'}
"""Module to its key of rosdep; what ROS itself brings has the key of its own name."""


def imported() -> Iterator[str]:
    """Yield every module outside of Python and of this package that the sources import."""
    for path in (ROOT / 'hybrid_guidance').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module or ''] if isinstance(node, ast.ImportFrom) else [])
            yield from (name.partition('.')[0] for name in names)


def dependencies() -> set[str]:
    tree = ElementTree.parse(ROOT / 'package.xml')
    return {item.text or '' for item in tree.iter('exec_depend')}


def by_pip() -> set[str]:
    line = re.search(r'^    pip install (.*)$', (ROOT / 'README.md').read_text('utf-8'), re.M)
    assert line is not None
    return {re.sub('[>=].*', '', word.strip('"')) for word in line[1].split()}


def test_every_import_comes_with_rosdep_or_with_the_line_of_pip() -> None:
    others = set(imported()) - set(sys.stdlib_module_names) - {'hybrid_guidance', ''}
    assert {'cv2', 'rclpy', 'pydicom'} <= others
    known = dependencies() | by_pip()
    assert {name for name in others if KEYS.get(name, name) not in known} == set()
    assert not {key for key in dependencies() if key.startswith('python3')} - set(KEYS.values())


def test_versions_for_machines_without_ros_have_all_that_pip_brings() -> None:
    pinned = {line.partition('==')[0] for line in (ROOT / 'requirements.txt').read_text().split()}
    assert by_pip() <= pinned


@pytest.mark.parametrize(('module', 'check'), [
    ('pydicom', 'pydicom'), ('pyigtl', 'OpenIGTLink'), ('rosbags', 'recordings'),
    ('pylibjpeg', 'JPEG in DICOM')])
def test_what_rosdep_cannot_bring_is_named_by_the_doctor_with_its_line(
        monkeypatch: pytest.MonkeyPatch, module: str, check: str) -> None:
    found = doctor.find_spec
    monkeypatch.setattr(doctor, 'find_spec', lambda name: None if name == module else found(name))
    one, = (item for item in doctor.examine() if item.name == check)
    assert not one.good
    assert one.needed is (module == 'pydicom')
    assert 'pip install' in one.cure
    assert module in one.cure


def test_a_pydicom_that_is_too_old_is_no_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydicom
    monkeypatch.setattr(pydicom, '__version__', '2.4.3')
    one, = (item for item in doctor.examine() if item.name == 'pydicom')
    assert not one.good
    assert '"pydicom>=3"' in one.cure
