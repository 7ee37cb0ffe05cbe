"""What a recording has so far: which poses and images have come, and how they moved."""

from collections.abc import Sequence

import numpy as np
from rclpy.time import Time

from hybrid_guidance.calibration.recorded import graph_frame
from hybrid_guidance.calibration.solve import mean_rotation
from hybrid_guidance.geometry import rigid
from hybrid_guidance.geometry.types import Transform
from hybrid_guidance.nodes.recorder_node import RecorderNode
from hybrid_guidance.ros import tf
from hybrid_guidance.ros.convert import matrix_from_transform, stamp_ns

_LOOK_S = 0.03


class Coverage:
    """Watches the frames and images that a calibration needs.

    Args:
        node: records.
        pairs: (parent, child) frames, as in the graph or as PLUS calls them.
        images: topic; '' for none.
    """

    def __init__(self, node: RecorderNode, pairs: Sequence[tuple[str, str]],
                 images: str) -> None:
        self._node, self._topic = node, images
        self._poses: dict[tuple[str, str], dict[int, Transform]] = {pair: {} for pair in pairs}
        node.listen_to_frames()
        node.create_timer(_LOOK_S, self.look)

    def look(self) -> None:
        """Take the newest pose of every pair."""
        for pair, poses in self._poses.items():
            for parent, child in (pair, (_name(pair[0]), _name(pair[1]))):
                try:
                    found = self._node.buffer.lookup_transform(parent, child, Time())
                except tf.TransformException:
                    continue
                poses[stamp_ns(found.header.stamp)] = matrix_from_transform(found.transform)
                break

    @property
    def missing(self) -> str:
        """What has not come, in words; '' when everything does."""
        lacking = [f'no pose of {_name(child)} in {_name(parent)}'
                   for (parent, child), poses in self._poses.items() if len(poses) < 2]
        if self._topic and not self._node.counts[self._topic]:
            lacking.append(f'no image on {self._topic}')
        return ' and '.join(lacking)

    @property
    def words(self) -> str:
        """What has come so far."""
        parts = [_moved(child, np.array(list(poses.values())))
                 for (_, child), poses in self._poses.items() if poses]
        if self._topic:
            parts.append(f'{self._node.counts[self._topic]} images')
        return '; '.join(parts)


def _name(frame: str) -> str:
    """Return what the graph calls a frame that it does not know by this name."""
    return graph_frame(frame, frozenset())


def _moved(name: str, poses: Transform) -> str:
    """Say how far (N, 4, 4) poses went and turned, by which a missing motion is seen."""
    span = np.ptp(poses[:, :3, 3], axis=0) * 1e3
    mean = mean_rotation(poses[:, :3, :3])
    turned = np.rad2deg(np.std([rigid.vector_from_rotation(mean.T @ pose[:3, :3])
                                for pose in poses], axis=0))
    return (f'{name}: moved by {span[0]:.0f}, {span[1]:.0f}, {span[2]:.0f} mm, turned by '
            f'{turned[0]:.0f}, {turned[1]:.0f}, {turned[2]:.0f} deg (sd) about its x, y, z')
