"""An OpenIGTLink server streams into ``ultrasound_node``: is anything lost, and for how long?

    python bench/openigtlink.py                      # 5 minutes, then five restarts
    python bench/openigtlink.py --seconds 10 --restarts 1

The server is pyigtl's, used as its examples do (``--serve`` runs it alone), in its own process.
It sends 640 x 480 images that carry their number, with a transform each. The node is a process of
its own, too; this one counts what it publishes. pyigtl's server throws away what it could not send
of more than 100 messages, so where the machine stands still images are lost before they reach us:
the node's own counts, and the longest pause of this process, tell such losses apart.

A restart kills the server (SIGKILL) in the middle of what it does and starts another; the clock
runs from its start to the first new image here, and includes starting Python and pyigtl in the
server; "from listening" leaves that out.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np

SIZE = (480, 640)


def serve(port: int, rate: float) -> None:
    """Send images and transforms for ever, like pyigtl's example_tracked_image_server."""
    import pyigtl
    server = pyigtl.OpenIGTLinkServer(port=port, local_server=True)
    voxels = np.random.default_rng(1).integers(0, 255, (8, 1, *SIZE), dtype=np.uint8)
    matrix, number, due = np.eye(4), 0, time.monotonic()
    while True:
        if not server.is_connected():
            time.sleep(0.01)
            due = time.monotonic()
            continue
        pixels = voxels[number % len(voxels)].copy()
        pixels[0, 0, :4] = np.frombuffer(np.uint32(number).tobytes(), np.uint8)
        image = pyigtl.ImageMessage(pixels, device_name='Image')
        matrix[0, 3] = 20.0 * np.sin(0.01 * number)
        server.send_message(image, wait=False)
        server.send_message(pyigtl.TransformMessage(
            matrix, device_name='ProbeToTracker', timestamp=image.timestamp), wait=False)
        number += 1
        due += 1.0 / rate
        time.sleep(max(due - time.monotonic(), 0.0))


def start_server(port: int, rate: float) -> subprocess.Popen[bytes]:
    """Start ``serve`` in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, '--serve', str(port), '--rate', str(rate)])


def wait_for_port(port: int) -> float:
    """Wait until somebody listens, without connecting: pyigtl serves one client only."""
    deadline = time.monotonic() + 30.0
    wanted = f':{port:04X} '
    while time.monotonic() < deadline:
        with open('/proc/net/tcp', encoding='ascii') as table:
            if any(wanted in line and ' 0A ' in line for line in table):
                return time.monotonic()
        time.sleep(0.005)
    raise SystemExit(f'nobody listens on port {port}')


class Listener:
    """Counts the images of ``ultrasound/image_raw`` by the number that each carries."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image
        from tf2_msgs.msg import TFMessage
        rclpy.init()
        self.node = rclpy.create_node('bench_openigtlink')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.numbers: list[int] = []
        self.ages: list[float] = []
        self.transforms = 0
        self.node_says: dict[str, str] = {}
        self.longest_pause = 0.0
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)
        self.node.create_subscription(Image, 'ultrasound/image_raw', self._image, 100)
        self.node.create_subscription(TFMessage, '/tf', self._tf, 1000)

    def _image(self, message) -> None:
        now = self.node.get_clock().now().nanoseconds
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.ages.append((now - stamp) * 1e-6)
        self.numbers.append(int(np.frombuffer(bytes(message.data[:4]), np.uint32)[0]))

    def _diagnostics(self, message) -> None:
        for status in message.status:
            if status.name == 'ultrasound_node':
                self.node_says = {item.key: item.value for item in status.values}

    def _tf(self, message) -> None:
        self.transforms += len(message.transforms)

    def spin(self, seconds: float, until=lambda: False) -> None:
        """Listen for so long, or until something is so."""
        deadline = time.monotonic() + seconds
        last = time.monotonic()
        while last < deadline and not until():
            self.executor.spin_once(timeout_sec=0.02)
            self.longest_pause = max(self.longest_pause, time.monotonic() - last)
            last = time.monotonic()

    def clear(self) -> None:
        """Forget what was heard."""
        self.numbers, self.ages, self.transforms, self.longest_pause = [], [], 0, 0.0


def streamed(listener: Listener, seconds: float) -> dict[str, object]:
    """Count what comes in a time, and what is missing between the first and the last."""
    listener.clear()
    listener.spin(seconds)
    if len(listener.numbers) < 2:
        raise SystemExit(f'{len(listener.numbers)} images came in {seconds:g} s; the node says '
                         f'{listener.node_says or "nothing"}; is the machine busy?')
    numbers = np.array(listener.numbers)
    steps = np.diff(numbers)
    return {'seconds': seconds, 'images': len(numbers), 'transforms': listener.transforms,
            'lost': int(numbers[-1] - numbers[0] + 1 - len(numbers)),
            'out of order': int(np.count_nonzero(steps <= 0)),
            'longest pause of this process, s': round(listener.longest_pause, 2),
            'node says, since its start': {key: listener.node_says.get(key) for key in (
                'received', 'frames', 'dropped', 'repeated', 'doubtful stamps', 'opened')},
            'age ms, median': round(float(np.median(listener.ages)), 2),
            'age ms, p99': round(float(np.quantile(listener.ages, 0.99)), 2)}


def restarted(listener: Listener, server, port: int, rate: float):
    """Kill the server in the middle, start another; return it and how long images were away."""
    server.send_signal(signal.SIGKILL)
    server.wait()
    listener.spin(0.3)
    listener.clear()
    began = time.monotonic()
    server = start_server(port, rate)
    listening = wait_for_port(port)
    listener.spin(20.0, until=lambda: bool(listener.numbers))
    back = time.monotonic()
    if not listener.numbers:
        raise SystemExit('no image came back within 20 s')
    listener.spin(1.0)
    return server, {'from start, s': round(back - began, 3),
                    'from listening, s': round(back - listening, 3)}


def main() -> None:
    """Run the bench, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--serve', type=int, metavar='PORT')
    parser.add_argument('--rate', type=float, default=30.0)
    parser.add_argument('--seconds', type=float, default=300.0)
    parser.add_argument('--restarts', type=int, default=5)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.rate)
    from hybrid_guidance.ros import environment
    from hybrid_guidance.supervisor import node_command
    environment.prepare()
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    node = subprocess.Popen([*node_command('ultrasound_node'), '--ros-args', '-p',
                             'source:=openigtlink', '-p', f'file:=127.0.0.1:{port}'],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    server = start_server(port, arguments.rate)
    try:
        listener = Listener()
        listener.spin(240.0, until=lambda: len(listener.numbers) > 30)
        result = {'stream': streamed(listener, arguments.seconds), 'restarts': []}
        for _ in range(arguments.restarts):
            server, away = restarted(listener, server, port, arguments.rate)
            result['restarts'].append(away)
        print(json.dumps(result, indent=1))
    finally:
        node.terminate()
        server.kill()


if __name__ == '__main__':
    main()
