"""Image to needle/pose, node to node, beside the bare transport of the same image.

A source process publishes images rendered beforehand (ultrasound 640 x 480 at 30 Hz,
fluoroscopy 1024 x 1024 mono16 at 15 Hz), stamped as they leave, with the tracked poses of that
moment. The package's own nodes see them. Three further processes receive: one the bare images of
each sensor (as each tracker does), one ``needle/pose``; all times count from the image's stamp.
Everything is simulated.

Usage: python bench/latency.py [--seconds 60]
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

RATES = {'ultrasound': 30.0, 'fluoroscopy': 15.0}
SINKS = (*RATES, 'poses')
BAR = 2.0
NODES = ('fluoroscopy_tracker_node', 'ultrasound_tracker_node', 'fusion_node', 'planner_node',
         'overlay_node')


def render_frames(count: int):
    """Return both sensors' images of a needle that goes in, and what they were taken with."""
    from hybrid_guidance.procedure import load_procedure
    from hybrid_guidance.simulation.anatomy import build_patient
    from hybrid_guidance.simulation.instruments import needle_on_path
    from hybrid_guidance.simulation.ultrasound import UltrasoundRenderer
    from hybrid_guidance.simulation.xray import Technique, XrayRenderer

    procedure = load_procedure('lumbar_facet_injection')
    setup, patient = procedure.fluoroscopy, build_patient(procedure.region, 1, procedure.target)
    ultrasound = UltrasoundRenderer(patient, procedure.ultrasound.probe,
                                    procedure.ultrasound_projection(), 1)
    xray = XrayRenderer(patient, procedure.fluoroscopy_projection(), Technique(
        setup.kvp, setup.mas_per_pulse, setup.source_to_detector, setup.detector_size), 1)
    # Slow enough that going in and out looks like one motion to the filter.
    depths = 0.036 + 0.012 * (1 - np.cos(np.linspace(0, 2 * np.pi, count, endpoint=False))) / 2
    slices, pulses = [], []
    for number, depth in enumerate(depths):
        needle = needle_on_path(procedure.entry, procedure.target, depth,
                                procedure.needle.diameter, procedure.needle.length)
        slices.append(ultrasound.render(procedure.patient_T_ultrasound(), [needle], 0.0).copy())
        if number % 2 == 0:
            pulses.append(xray.render(procedure.patient_T_fluoroscopy(), [needle]).copy())
    return procedure, {'ultrasound': slices, 'fluoroscopy': pulses}


def source(seconds: float) -> None:
    """Publish both streams for some seconds, then say how many frames of each."""
    import rclpy
    from rclpy.node import Node

    from hybrid_guidance.geometry.rigid import inverse
    from hybrid_guidance.imaging.frame import Frame
    from hybrid_guidance.ros import tf
    from hybrid_guidance.ros.calibration import load_calibrations
    from hybrid_guidance.ros.convert import transform_message
    from hybrid_guidance.ros.frames import FramePublisher

    procedure, images = render_frames(600)
    calibrations = load_calibrations('simulated')
    world_T_patient = calibrations['patient'].transform
    rclpy.init()
    node = Node('bench_source')
    broadcaster = tf.TransformBroadcaster(node)
    sensors = {
        'ultrasound': ('ultrasound_image', procedure.patient_T_ultrasound(),
                       procedure.ultrasound_projection()),
        'fluoroscopy': ('fluoroscopy_optical_frame', procedure.patient_T_fluoroscopy(),
                        procedure.fluoroscopy_projection())}
    publishers = {name: FramePublisher(node, name, frame)
                  for name, (frame, _, _) in sensors.items()}
    sent = dict.fromkeys(sensors, 0)

    def send(name: str) -> None:
        frame, patient_T_sensor, projection = sensors[name]
        mount = calibrations[frame]
        world_T_mount = world_T_patient @ patient_T_sensor @ inverse(mount.transform)
        pixels = images[name][sent[name] % len(images[name])]
        now = node.get_clock().now().nanoseconds
        broadcaster.sendTransform([transform_message('world', mount.parent, now, world_T_mount)])
        publishers[name].publish(Frame(pixels, now, projection))
        sent[name] += 1

    print('ready', flush=True)
    sys.stdin.readline()
    # Two machines share no clock: one frame more sweeps their phase once through all there are.
    rates = {**RATES, 'fluoroscopy': RATES['fluoroscopy'] + 1.0 / seconds}
    begin = time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        for name, rate in rates.items():
            if sent[name] <= elapsed * rate:
                send(name)
        following = min(sent[name] / rate for name, rate in rates.items())
        time.sleep(max(begin + following - time.monotonic(), 0.0))
    time.sleep(1.0)
    print(json.dumps(sent), flush=True)


def sink(kind: str) -> None:
    """Receive one sensor's images, or poses, until told to stop; say when each stamp arrived."""
    import rclpy
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from rclpy.node import Node
    from sensor_msgs.msg import Image

    from hybrid_guidance.ros import environment, qos
    from hybrid_guidance.ros.convert import stamp_ns

    # As every node that guides: what is compared must be treated alike.
    environment.answer_at_once()
    rclpy.init()
    node = Node(f'bench_{kind}_sink')
    times: dict[int, int] = {}

    def take(message) -> None:
        # rclpy has read the whole message by now, as it has for every node.
        times[stamp_ns(message.header.stamp)] = node.get_clock().now().nanoseconds
    if kind in RATES:
        node.create_subscription(Image, f'{kind}/image_raw', take, qos.IMAGE)
    else:
        node.create_subscription(PoseWithCovarianceStamped, 'needle/pose', take,
                                 qos.OBSERVATION)
    print('ready', flush=True)
    with contextlib.suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.spin(node)
    print(json.dumps(times), flush=True)


def start(role: str, *arguments: str) -> subprocess.Popen:
    """Start this file in another role.

    In a session of its own, as every node is: Linux shares the processors between sessions first,
    and four roles in one would starve beside the nodes, and lose images.
    """
    from hybrid_guidance.supervisor import PARENT
    return subprocess.Popen([sys.executable, __file__, '--role', role, *arguments], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            start_new_session=True,
                            env={**os.environ, PARENT: str(os.getpid())})


def measure(seconds: float):
    """Run everything; return frames sent, arrival times, and CPU seconds of each node."""
    from hybrid_guidance.supervisor import Supervisor, node_command, ros_arguments

    supervisor = Supervisor(lambda name, line: None, lambda name, status, lines: print(
        f'{name} has ended: {lines}', file=sys.stderr), os.environ)
    for name in NODES:
        supervisor.start(name, node_command(name, *ros_arguments(name, {})))
    roles = {**{name: start(name) for name in SINKS},
             'source': start('source', '--seconds', str(seconds))}
    for process in roles.values():
        process.stdout.readline()
    # Discovery and the first use of everything are no part of the measurement.
    time.sleep(5.0)
    processes = {name: psutil.Process(child.process.pid)
                 for name, child in supervisor.children.items()}
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    roles['source'].stdin.write('go\n')
    roles['source'].stdin.flush()
    sent = json.loads(roles['source'].stdout.readline())
    cpu = {name: sum(process.cpu_times()[:2]) - before[name]
           for name, process in processes.items()}
    arrived = {}
    for name in SINKS:
        roles[name].send_signal(2)
        arrived[name] = json.loads(roles[name].stdout.readline())
    supervisor.stop()
    for process in roles.values():
        # All has been said; Fast DDS can turn in circles for ever when a process that used it ends.
        process.kill()
        process.wait()
    return sent, arrived, cpu


def spread(milliseconds) -> str:
    """Return p50, p95 and p99 for people."""
    return '  '.join(f'p{q} {np.percentile(milliseconds, q):6.2f}' for q in (50, 95, 99))


def report(seconds: float) -> bool:
    """Measure, print, end each comparison with one JSON line; tell whether the bars hold."""
    sent, arrived, cpu = measure(seconds)
    good = True
    for name in RATES:
        bare = {stamp: (when - int(stamp)) * 1e-6 for stamp, when in arrived[name].items()}
        poses = {stamp: (when - int(stamp)) * 1e-6 for stamp, when in arrived['poses'].items()
                 if stamp in bare}
        print(f'{name}: {sent[name]} sent, {sent[name] - len(bare)} lost, {len(poses)} poses')
        print(f'  bare transport        {spread(list(bare.values()))} ms')
        print(f'  image to needle/pose  {spread(list(poses.values()))} ms')
        value, reference = (float(np.median(list(group.values()))) for group in (poses, bare))
        lost = sent[name] - len(bare)
        good &= value <= BAR * reference and lost == 0 and len(poses) > 0.9 * sent[name]
        print(json.dumps({'name': f'latency_{name}', 'value': round(value, 3), 'unit': 'ms',
                          'bar': round(BAR * reference, 3), 'reference': round(reference, 3),
                          'ratio': round(value / reference, 3)}))
        print(json.dumps({'name': f'frames_lost_{name}', 'value': lost, 'unit': 'frames',
                          'bar': 0, 'reference': sent[name],
                          'ratio': round(lost / sent[name], 5)}))
    print('CPU, share of one core: ' + ', '.join(
        f'{name} {used / seconds:.0%}' for name, used in cpu.items()))
    return good


def main() -> int:
    """Run the role asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--role', choices=('report', 'source', *SINKS),
                        default='report')
    arguments = parser.parse_args()
    from hybrid_guidance.ros import environment
    from hybrid_guidance.supervisor import end_with_parent
    environment.prepare()
    if arguments.role != 'report':
        end_with_parent()
    if arguments.role == 'source':
        source(arguments.seconds)
    elif arguments.role in SINKS:
        sink(arguments.role)
    else:
        return 0 if report(arguments.seconds) else 1
    return 0


if __name__ == '__main__':
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(101 + os.getpid() % 100))
    # Both streams are made in this folder's own processes; nothing else is to be heard.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
