"""A client of an OpenIGTLink server: PLUS, 3D Slicer, a scanner, or pyigtl.

pyigtl's own client is not used: it keeps the latest message of each device only, goes on reading
for ever from a server that has closed the connection, gives up half a header after 10 ms and then
reads pixels for headers, and asks for as many bytes as any header announces.
"""

import contextlib
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hybrid_guidance.geometry.types import Image
from hybrid_guidance.imaging.device_clock import DeviceClock
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.imaging.openigtlink import (
    HEADER_SIZE,
    KNOWN_TYPES,
    PORT,
    FramingError,
    Header,
    LinkError,
    LinkImage,
    LinkPose,
    LinkStatus,
    Message,
    decode,
    parse_header,
)
from hybrid_guidance.imaging.retry import keep_trying

T = TypeVar('T')

STALL_S = 5.0
"""A message must be whole so long after its first byte."""

SILENCE_S = 1.0
"""No image for so long is reported."""

_KEPT_IMAGES = 8
_KEPT_POSES = 512
_KEPT_DEVICES = 32
_CHUNK = 1 << 18
_TICK = 0.2
_MESSAGES_PER_S = 2000


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of ``host`` or ``host:port``, with or without ``igtl://``.

    Raises:
        SourceError: it is neither.
    """
    match = re.fullmatch(r'(?:igtl://)?([\w.-]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?/?', text.strip())
    port = int(match[2] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise SourceError(f'"{text}" is no address of an OpenIGTLink server; write host:port, '
                          f'such as 192.168.1.20:{PORT}')
    return match[1].strip('[]'), port


@dataclass(frozen=True)
class TimedPose:
    """A pose and when it was taken, in ns of our clock."""

    pose: LinkPose
    stamp_ns: int


class LinkStream:
    """What one server sends, from a thread of its own.

    Args:
        address: ``host:port``.
        now_ns: the clock that stamps.
        on_message: called from the thread when there is something to take.
        device: name of the IMAGE device to take; '' takes the first that sends one.
        backoff: s, first and longest pause before it connects again.
    """

    def __init__(self, address: str, now_ns: Callable[[], int], on_message: Callable[[], None],
                 device: str = '', backoff: tuple[float, float] = (0.1, 1.0)) -> None:
        self._host, self._port = parse_address(address)
        self._name = f'{self._host}:{self._port}'
        self._now_ns, self._on_message = now_ns, on_message
        self._device = device
        self._pictures: deque[tuple[Image, int]] = deque(maxlen=_KEPT_IMAGES)
        self._poses: deque[TimedPose] = deque(maxlen=_KEPT_POSES)
        self._statuses: dict[str, LinkStatus] = {}
        self._clock = DeviceClock()
        self._last: LinkImage | None = None
        self._image_at = time.monotonic()
        self._connected = False
        self._words = f'{self._name}: not connected yet'
        self._refused: dict[str, str] = {}
        self.opened = self.repeated = self.dropped = 0
        self.counts: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=keep_trying, args=(self._listen, self._ended, backoff), name=f'link {address}',
            daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """What is wrong, in words; '' when images come."""
        if not self._connected:
            return self._words
        if (since := time.monotonic() - self._image_at) > SILENCE_S:
            about = self._refused.get('IMAGE') or (
                f'no new image for {since:.0f} s; it sends {self._said()}')
            return f'{self._name}: {about}'
        return ''

    @property
    def refused(self) -> str:
        """The latest thing that each kind of message was refused for, in words; '' when nothing."""
        return '; '.join(tuple(self._refused.values()))

    @property
    def values(self) -> dict[str, object]:
        """Numbers to show."""
        offset = self._clock.offset_ns
        return {'received': self._said(), 'clock offset, s': (
            'unknown' if offset is None else f'{offset * 1e-9:.4f}'),
            'clock jumps': self._clock.jumps, 'doubtful stamps': self._clock.doubtful}

    def _said(self) -> str:
        return ', '.join(f'{kind} {number}' for kind, number in sorted(self.counts.items())
                         ) or 'nothing'

    def take(self) -> tuple[Image, int] | None:
        """Return the oldest picture not taken yet and its time in ns, or None."""
        return _popped(self._pictures)

    def take_pose(self) -> TimedPose | None:
        """Return the oldest pose not taken yet, or None."""
        return _popped(self._poses)

    @property
    def statuses(self) -> tuple[LinkStatus, ...]:
        """The latest status of each device that told one."""
        return tuple(self._statuses.values())

    def close(self) -> None:
        """End the thread and hang up."""
        self._ended.set()
        self._thread.join(timeout=2.0)

    def _listen(self) -> bool:
        """Connect and take messages; tell whether that lasted.

        A peer that hangs up at once, or sends nonsense, must not be called without a pause.
        """
        began = time.monotonic()
        try:
            with socket.create_connection((self._host, self._port), timeout=1.0) as line:
                self._tune(line)
                self.opened += 1
                self._connected, self._image_at = True, time.monotonic()
                self._read(line)
        except FramingError as error:
            self._words = f'{self._name}: {error}; connecting again'
        except OSError as error:
            self._words = (f'{self._name}: {error}; trying again. Is the server running, and '
                           'is this its address and port?')
        self._connected = False
        return time.monotonic() - began > 1.0

    @staticmethod
    def _tune(line: socket.socket) -> None:
        """Notice within seconds that a peer, or the cable to it, is gone."""
        line.settimeout(_TICK)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (('TCP_KEEPIDLE', 2), ('TCP_KEEPINTVL', 1), ('TCP_KEEPCNT', 3)):
            with contextlib.suppress(OSError, AttributeError):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def _read(self, line: socket.socket) -> None:
        """Take messages until the peer hangs up; raises OSError or FramingError."""
        budget, since = _MESSAGES_PER_S // 10, time.monotonic()
        while not self._ended.is_set():
            data = self._receive(line, HEADER_SIZE, None)
            if not data:
                return
            header = parse_header(data)
            body = self._receive(line, header.body_size, time.monotonic() + STALL_S)
            self._take_in(header, body, self._now_ns())
            budget -= 1
            if budget <= 0:
                # A flood waits in the line, not in our memory, and leaves the processor to others.
                self._ended.wait(max(since + 0.1 - time.monotonic(), 0.0))
                budget, since = _MESSAGES_PER_S // 10, time.monotonic()

    def _receive(self, line: socket.socket, size: int, until: float | None) -> bytes:
        """Return exactly ``size`` bytes; none where the peer hung up before the first.

        Memory grows with what arrives, never with what was announced. A wait for the first byte
        of a header has no end; what has begun has to end ``until``.
        """
        data = bytearray()
        while len(data) < size and not self._ended.is_set():
            try:
                chunk = line.recv(min(size - len(data), _CHUNK))
            except TimeoutError:
                chunk = None
            if chunk == b'':
                if until is None and not data:
                    raise ConnectionError('the server has hung up')
                raise ConnectionError('the server died in the middle of a message')
            if chunk:
                until = until or time.monotonic() + STALL_S
                data += chunk
            if until is not None and len(data) < size and time.monotonic() > until:
                raise ConnectionError(f'a message was not whole after {STALL_S:g} s: '
                                      f'{len(data)} of {size} bytes')
        return bytes(data) if len(data) == size else b''

    def _take_in(self, header: Header, body: bytes, arrival: int) -> None:
        self.counts[header.kind if header.kind in KNOWN_TYPES else 'other'] += 1
        if header.kind == 'IMAGE' and not self._wants(header.device):
            return
        try:
            messages = decode(header, body)
        except LinkError as error:
            self._refused[header.kind] = str(error)
            self.counts['refused'] += 1
            return
        self._refused.pop(header.kind, None)
        if sum(self._keep(message, arrival) for message in messages):
            self._on_message()

    def _wants(self, device: str) -> bool:
        self._device = self._device or device
        return device == self._device

    def _keep(self, message: Message, arrival: int) -> bool:
        if isinstance(message, LinkStatus):
            if message.device in self._statuses or len(self._statuses) < _KEPT_DEVICES:
                self._statuses[message.device] = message
            return True
        # A stamp of zero is none.
        stamp = self._clock.to_ours(message.time, arrival) if message.time else arrival
        if stamp is None:
            return False
        if isinstance(message, LinkPose):
            self._poses.append(TimedPose(message, stamp))
            return True
        return self._keep_image(message, stamp)

    def _keep_image(self, image: LinkImage, stamp: int) -> bool:
        last, self._last = self._last, image
        if last is not None and np.array_equal(image.pixels, last.pixels):
            self.repeated += 1
            return False
        self._image_at = time.monotonic()
        self.dropped += len(self._pictures) == _KEPT_IMAGES
        self._pictures.append((image.pixels, stamp))
        return True


def _popped(queue: deque[T]) -> T | None:
    try:
        return queue.popleft()
    except IndexError:
        return None
