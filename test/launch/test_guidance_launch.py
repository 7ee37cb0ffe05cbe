"""The real launch file: every node comes up, images flow, and nothing is left behind."""

import os
import signal
import time
import unittest
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec('launch_ros') is None or find_spec('launch_testing') is None:
    pytest.skip('ROS 2 launch and launch_testing are not installed here',
                allow_module_level=True)

import launch_testing.actions
import launch_testing.asserts
import rclpy
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from hybrid_guidance import graph

try:
    SHARE = Path(get_package_share_directory('hybrid_guidance'))
except PackageNotFoundError:
    pytest.skip('hybrid_guidance is not installed (colcon build, then source its setup)',
                allow_module_level=True)

NAMES = {name for name, _ in graph.nodes({})}


def processes() -> list[int]:
    """Return the processes of this package's nodes that this process has started."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            parent = int(path.read_text().rpartition(')')[2].split()[1])
            words = (path.parent / 'cmdline').read_bytes().decode().split('\0')
        except (OSError, ValueError):
            continue
        if parent == os.getpid() and any('/lib/hybrid_guidance/' in word for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.launch_test
def generate_test_description() -> LaunchDescription:
    """Start the whole graph as a user would."""
    return LaunchDescription([
        IncludeLaunchDescription(PythonLaunchDescriptionSource(
            str(SHARE / 'launch' / 'guidance.launch.py'))),
        launch_testing.actions.ReadyToTest()])


class TestRunning(unittest.TestCase):
    """While it runs."""

    def setUp(self) -> None:
        rclpy.init()
        self.node = rclpy.create_node('launch_test')

    def tearDown(self) -> None:
        self.node.destroy_node()
        rclpy.try_shutdown()

    def spin(self, until: Callable[[], Any], words: str) -> None:
        deadline = time.monotonic() + 30.0
        while not until() and time.monotonic() < deadline:
            rclpy.spin_once(self.node, timeout_sec=0.1)
        assert until(), words

    def test_every_node_is_up_and_images_of_both_sensors_flow(self) -> None:
        self.spin(lambda: set(self.node.get_node_names()) >= NAMES, 'not every node came up')
        assert len(processes()) == len(NAMES)
        images: dict[str, list[Image]] = {'fluoroscopy': [], 'ultrasound': []}
        for sensor, seen in images.items():
            self.node.create_subscription(
                Image, f'{sensor}/image_raw', seen.append, qos_profile_sensor_data)
        self.spin(lambda: len(images['ultrasound']) > 10, 'no ultrasound')
        expose = self.node.create_client(Trigger, 'fluoroscopy/expose')
        self.spin(expose.service_is_ready, 'no fluoroscopy/expose')
        # The image goes to the readers that the node knows of: until ours is one, ask again.
        while not images['fluoroscopy']:
            answer = expose.call_async(Trigger.Request())
            self.spin(answer.done, 'no answer')
            if answer.result().success:
                self.spin(lambda: images['fluoroscopy'], 'exposed, and no image')


@launch_testing.post_shutdown_test()
class TestAfterwards(unittest.TestCase):
    """After it was told to stop."""

    def test_every_node_ended_by_itself_without_a_trace(self, proc_info: Any,
                                                        proc_output: Any) -> None:
        launch_testing.asserts.assertExitCodes(proc_info, allowable_exit_codes=[0])
        assert len(proc_info.processes()) == len(NAMES)
        for info in proc_info:
            text = ''.join(part.text.decode() for part in proc_output[info.process_name])
            assert 'Traceback' not in text

    def test_no_process_is_left(self) -> None:
        left = processes()
        for process in left:
            os.kill(process, signal.SIGKILL)
        assert not left
