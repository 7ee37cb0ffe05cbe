"""overlay_node: takes images only for somebody, holds the last X-ray, says why it is grey."""

import numpy as np
from sensor_msgs.msg import Image

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.imaging.frame import Frame
from hybrid_guidance.nodes.overlay_node import OverlayNode
from hybrid_guidance.ros import qos
from hybrid_guidance.ros.frames import FramePublisher


def watch(graph, sensor: str):
    """Subscribe to an overlay; return the subscription and the pictures that come."""
    pictures: list[Image] = []
    return graph.node.create_subscription(
        Image, f'{sensor}/overlay', pictures.append, qos.OVERLAY), pictures


def publisher(graph, sensor: str):
    """Return what publishes a grey image of a sensor now."""
    frames = FramePublisher(graph.node, sensor, f'{sensor}_image')
    pixels = np.full((48, 64), 90, np.uint8)
    return frames, lambda: frames.publish(Frame(
        pixels, graph.node.get_clock().now().nanoseconds, Projection.uncalibrated((64, 48))))


def test_ultrasound_is_taken_only_while_somebody_watches(peer) -> None:
    graph = peer('fluoroscopy')
    frames, show = publisher(graph, 'ultrasound')
    graph.start(OverlayNode)
    graph.spin_for(0.5)
    assert not frames.has_reader
    subscription, pictures = watch(graph, 'ultrasound')
    graph.spin(lambda: frames.has_reader)

    def shown() -> bool:
        show()
        return bool(pictures)
    graph.spin(shown)
    assert (pictures[0].width, pictures[0].height, pictures[0].encoding) == (64, 48, 'rgb8')
    graph.spin(lambda: graph.hears('overlay_node', 'ultrasound', 'not calibrated'))
    graph.node.destroy_subscription(subscription)
    graph.spin(lambda: not frames.has_reader)


def test_an_x_ray_from_before_somebody_watched_is_shown(peer) -> None:
    """The next one may not come for minutes."""
    graph = peer('ultrasound')
    frames, show = publisher(graph, 'fluoroscopy')
    graph.start(OverlayNode)
    graph.spin(lambda: frames.has_reader)
    show()
    graph.spin_for(0.5)
    _, pictures = watch(graph, 'fluoroscopy')
    graph.spin(lambda: bool(pictures))
