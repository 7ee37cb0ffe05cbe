"""Start the whole graph: ros2 launch hybrid_guidance guidance.launch.py --show-args."""

import os

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from hybrid_guidance import graph
from hybrid_guidance.resources import resource
from hybrid_guidance.ros import environment


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the actions for the arguments given."""
    values = graph.complete({option.name: LaunchConfiguration(option.name).perform(context)
                             for option in graph.OPTIONS})
    files = [values['params_file']] if values['params_file'] else []
    actions = [
        Node(package=graph.PACKAGE, executable=name, name=name, namespace=values['namespace'],
             parameters=[parameters, *files], output='screen',
             arguments=['--ros-args', '--log-level', values['log_level']])
        for name, parameters in graph.nodes(values)]
    if values['rviz'] == 'true':
        actions.append(Node(package='rviz2', executable='rviz2', name='rviz2', output='screen',
                            arguments=['-d', str(resource('rviz/guidance.rviz'))]))
    return actions


def generate_launch_description() -> LaunchDescription:
    """Describe every argument and start the nodes."""
    environment.prepare(os.environ)
    arguments = [DeclareLaunchArgument(
        option.name, default_value=option.default, description=option.meaning,
        **({'choices': list(option.choices)} if option.choices else {}))
        for option in graph.OPTIONS]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
