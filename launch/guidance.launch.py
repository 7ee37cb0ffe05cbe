"""Start the whole graph: ros2 launch hybrid_guidance guidance.launch.py --show-args."""

import os

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from hybrid_guidance import graph
from hybrid_guidance.resources import resource
from hybrid_guidance.ros import environment
from hybrid_guidance.supervisor import PARENT


def note(context: LaunchContext, given: graph.Values) -> list[LaunchDescriptionEntity]:
    """Remember which arguments the user has given, before launch fills in the defaults."""
    known = context.launch_configurations
    given.update({option.name: known[option.name] for option in graph.OPTIONS
                  if option.name in known})
    return []


def start(context: LaunchContext, given: graph.Values) -> list[LaunchDescriptionEntity]:
    """Return the actions for the arguments given; defaults stay out of the way of params_file."""
    values = graph.complete(given)
    files = [values['params_file']] if values['params_file'] else []
    # A node that outlives its launch would go on publishing with nobody to stop it.
    common = {'namespace': values['namespace'], 'output': 'screen',
              'additional_env': {PARENT: str(os.getpid())}}
    log_level = ['--ros-args', '--log-level', values['log_level']]
    nodes = [
        Node(package=graph.PACKAGE, executable=name, name=name, arguments=log_level,
             parameters=[*files, parameters], **common)
        for name, parameters in graph.nodes(given)]
    if values['rviz'] != 'true':
        return nodes
    # The topics of the scene are relative: the namespace moves them, too. First, because launch
    # leaves what it has started running when it finds that RViz is not installed.
    rviz = Node(package='rviz2', executable='rviz2', name='rviz2',
                arguments=['-d', str(resource('rviz/guidance.rviz')), *log_level],
                parameters=[{'use_sim_time': values['use_sim_time'] == 'true'}], **common)
    return [rviz, *nodes]


def generate_launch_description() -> LaunchDescription:
    """Describe every argument and start the nodes."""
    environment.prepare(os.environ)
    given: graph.Values = {}
    arguments = [DeclareLaunchArgument(
        option.name, default_value=option.default, description=option.meaning,
        **({'choices': list(option.choices)} if option.choices else {}))
        for option in graph.OPTIONS]
    return LaunchDescription([OpaqueFunction(function=note, args=[given]), *arguments,
                              OpaqueFunction(function=start, args=[given])])
