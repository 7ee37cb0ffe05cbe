"""Records every topic of the graph into an MCAP bag, as it came over the wire."""

import shutil
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from hybrid_guidance.parameters import parameter
from hybrid_guidance.ros.node import GuidanceNode, run

IMAGE = 'sensor_msgs/msg/Image'
NO_TIME = QosTime(2147483647, 4294967295)


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of ``recorder_node``."""

    directory: str = parameter('bag', fixed=True, meaning=(
        'where the bag is written; one that is there is replaced'))
    topics: str = parameter('', fixed=True, meaning=(
        'topics recorded, with spaces between; empty: every one that appears'))
    image_rate: float = parameter(0.0, low=0.0, high=1000.0, unit='Hz', fixed=True, meaning=(
        'images recorded of each topic and second, at most; 0 is all of them'))


class RecorderNode(GuidanceNode[RecorderParameters]):
    """Subscribes to topics as they appear and writes what comes, undecoded.

    Attributes:
        counts: messages written of each topic.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__('recorder_node', RecorderParameters, **options)
        directory = Path(self.parameters.directory)
        if (directory / 'metadata.yaml').exists():
            shutil.rmtree(directory)
        self._writer = Writer(directory, version=9, storage_plugin=StoragePlugin.MCAP)
        # Chunks of the MCAP are compressed, so that every player reads them as they are.
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._types = get_typestore(Stores.ROS2_KILTED)
        self._wanted = frozenset(self.parameters.topics.split())
        self._topics: set[str] = set()
        self._last_ns: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.create_timer(0.25, self._discover)

    def _discover(self) -> None:
        for topic, types in self.get_topic_names_and_types():
            if self._wanted and topic not in self._wanted:
                continue
            publishers = self.get_publishers_info_by_topic(topic)
            if topic not in self._topics and publishers:
                self._topics.add(topic)
                self._record(topic, types[0], all(
                    info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
                    for info in publishers))

    def _record(self, topic: str, kind: str, latched: bool) -> None:
        offered = Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE,
                      QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
                      NO_TIME, NO_TIME, QosLiveliness.AUTOMATIC, NO_TIME, False)
        connection = self._writer.add_connection(
            topic, kind, typestore=self._types, offered_qos_profiles=[offered])
        quality = QoSProfile(depth=2 if kind == IMAGE else 100)
        if latched:
            quality.durability = DurabilityPolicy.TRANSIENT_LOCAL
        package, _, name = kind.partition('/msg/')
        self.create_subscription(getattr(import_module(f'{package}.msg'), name), topic,
                                 lambda data: self._write(connection, data), quality, raw=True)

    def _write(self, connection: Any, data: bytes) -> None:
        now = self.now_ns()
        if connection.msgtype == IMAGE and self.parameters.image_rate > 0.0:
            if now - self._last_ns.get(connection.topic, 0) < 1e9 / self.parameters.image_rate:
                return
            self._last_ns[connection.topic] = now
        self._writer.write(connection, now, data)
        self.counts[connection.topic] += 1

    def destroy_node(self) -> None:
        """Finish the bag, so that it can be played."""
        self._writer.close()
        super().destroy_node()


def main() -> None:
    """Run the node."""
    run(RecorderNode, niceness=10)


if __name__ == '__main__':
    main()
