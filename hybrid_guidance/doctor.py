"""What is installed and what is missing, and what to do about it."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from hybrid_guidance.resources import resource

_LIBRARIES = (('numpy', 'numpy'), ('scipy', 'SciPy'), ('cv2', 'OpenCV'), ('open3d', 'Open3D'),
              ('transforms3d', 'transforms3d'), ('yaml', 'PyYAML'))
"""(module, name for people) of what rosdep knows."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        good: whether it is as it should be.
        found: what is there.
        cure: what to do when it is not good.
        needed: whether the graph cannot run without it.
    """

    name: str
    good: bool
    found: str
    cure: str = ''
    needed: bool = True


def examine() -> list[Check]:
    """Look at everything; a check that fails in any way is a finding, never an end."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ('Python', _python), ('rclpy', _rclpy), ('middleware', _middleware),
        ('transport', _transport), ('tf2_msgs', _tf2_msgs), ('tf', _tf), ('launch', _launch),
        ('discovery', _range),
        *((name, partial(_library, module, name)) for module, name in _LIBRARIES),
        ('pydicom', _pydicom), ('JPEG in DICOM', _jpeg), ('OpenIGTLink', _openigtlink),
        ('recordings', _rosbags),
        *((f'calibration {path.name}', partial(_calibration, path)) for path in _calibrations())]
    return [_safely(name, check) for name, check in checks]


def report(checks: list[Check], colour: bool) -> str:
    """Return the findings as text, a line each, cures below."""
    lines = []
    for check in checks:
        mark = 'ok  ' if check.good else 'FAIL' if check.needed else 'note'
        if colour:
            code = 32 if check.good else 31 if check.needed else 33
            mark = f'\033[{code}m{mark}\033[0m'
        lines.append(f'{mark}  {check.name:<22} {check.found}')
        if not check.good and check.cure:
            lines.append(f'      -> {check.cure}')
    return '\n'.join(lines)


def _safely(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a broken installation fails in ways nobody can list
        return Check(name, False, f'{type(error).__name__}: {error}', 'install it again')


def _python() -> Check:
    return Check('Python', True, f'{platform.python_version()} on {platform.platform()}')


def _rclpy() -> Check:
    cure = '"make setup" on a machine without ROS 2; else source /opt/ros/<distro>/setup.bash'
    if find_spec('rclpy') is None:
        return Check('rclpy', False, 'not installed', cure)
    import_module('rclpy')
    distribution = os.environ.get('ROS_DISTRO', 'kilted (wheels)')
    return Check('rclpy', True, f'{_version("rclpy", "ros-rclpy")}, {distribution}', cure)


def _middleware() -> Check:
    from hybrid_guidance.ros.embedded import middleware
    return Check('middleware', True, middleware())


def _transport() -> Check:
    from hybrid_guidance.ros import environment
    values = dict(os.environ)
    environment.prepare(values)
    profile = values.get('FASTDDS_DEFAULT_PROFILES_FILE', '')
    if profile == str(resource('config/fastdds.xml')):
        return Check('transport', True, 'shared memory for whole images (config/fastdds.xml)')
    chosen = profile or values.get('FASTDDS_BUILTIN_TRANSPORTS', '')
    return Check('transport', False, f'chosen by you: {chosen}', (
        'images are lost when its shared memory is smaller than a few images; unset it to use '
        "this package's own"), needed=False)


def _tf2_msgs() -> Check:
    cure = 'apt install ros-<distro>-tf2-msgs, or "make setup" on a machine without ROS 2'
    if find_spec('tf2_msgs') is None:
        return Check('tf2_msgs', False, 'not installed', cure)
    from hybrid_guidance.ros.embedded import load_tf2_msgs
    load_tf2_msgs()
    return Check('tf2_msgs', True, 'type support loads', cure)


def _tf() -> Check:
    from hybrid_guidance.ros.tf import IMPLEMENTATION
    return Check('tf', True, IMPLEMENTATION if IMPLEMENTATION != 'built-in' else
                 'built-in (tf2_ros is not installed; same contract)')


def _launch() -> Check:
    there = find_spec('launch_ros') is not None
    return Check('launch', there, 'ros2 launch works' if there else 'not installed',
                 'not needed: "hybrid-guidance up" starts the same graph', needed=False)


def _range() -> Check:
    value = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    return Check('discovery', True, f'{value}, domain {os.environ.get("ROS_DOMAIN_ID", "0")}')


def _library(module: str, name: str) -> Check:
    if find_spec(module) is None:
        return Check(name, False, 'not installed',
                     'rosdep install --from-paths . (ROS 2), or "make setup"')
    loaded = import_module(module)
    return Check(name, True, getattr(loaded, '__version__', 'present'))


def _pydicom() -> Check:
    cure = 'pip install "pydicom>=3": rosdep knows none, and that of Ubuntu 24.04 is too old'
    if find_spec('pydicom') is None:
        return Check('pydicom', False, 'not installed', cure)
    version = str(import_module('pydicom').__version__)
    return Check('pydicom', int(version.partition('.')[0]) >= 3, version, cure)


def _rosbags() -> Check:
    there = find_spec('rosbags') is not None
    return Check('recordings', there, f'rosbags {_version("rosbags")}' if there else
                 'rosbags is not installed', 'pip install rosbags; without it nothing is recorded, '
                 'and no rosbag2 recording is read', needed=False)


def _jpeg() -> Check:
    there = find_spec('pylibjpeg') is not None and find_spec('libjpeg') is not None
    return Check('JPEG in DICOM', there, 'pylibjpeg' if there else 'not installed',
                 'pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg', needed=False)


def _openigtlink() -> Check:
    if find_spec('pyigtl') is None:
        return Check('OpenIGTLink', False, 'not installed', 'pip install pyigtl', needed=False)
    # Without its compiled part, the check sum of one image takes 80 ms instead of one.
    fast = find_spec('crcmod._crcfunext') is not None
    return Check('OpenIGTLink', fast, f'pyigtl {_version("pyigtl")}' + (
        '' if fast else ', with a slow crcmod: images will be lost'), (
        'apt install gcc python3-dev; pip install --force-reinstall --no-binary :all: crcmod'),
        needed=False)


def _calibrations() -> list[Path]:
    try:
        return sorted(resource('config/calibration').glob('*.yaml'))
    except FileNotFoundError:
        # Said by the check of the transport, whose file is missing, too.
        return []


def _calibration(path: Path) -> Check:
    from hybrid_guidance.calibration.file import CalibrationError, load
    name = f'calibration {path.name}'
    try:
        found = load(str(path), datetime.now(timezone.utc))
    except CalibrationError as error:
        return Check(name, False, str(error), 'calibrate again', needed=False)
    first = min(item.expires for item in found)
    return Check(name, True, f'{", ".join(item.child for item in found)}; '
                             f'valid until {first:%Y-%m-%d}')


def _version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return 'present'
