"""OpenIGTLink bytes for tests, packed by pyigtl or by hand; and servers good and bad."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pyigtl
from pyigtl.messages import CRC64

IDENTITY = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0, 0, 0, 0)


def message(kind: str, body: bytes, device: str = 'Device', seconds: float = 100.0,
            crc: int | None = None, size: int | None = None, version: int = 1) -> bytes:
    """Pack a message by hand; crc and size can be lies."""
    whole = int(seconds)
    return struct.pack('>H12s20sIIQQ', version, kind.encode(), device.encode(), whole,
                       int((seconds - whole) * 2**32), len(body) if size is None else size,
                       CRC64(body) if crc is None else crc) + body


def image(pixels: np.ndarray, seconds: float = 100.0, device: str = 'Image') -> bytes:
    shape = pixels if pixels.ndim != 2 else pixels[None]
    return bytes(pyigtl.ImageMessage(shape, timestamp=seconds, device_name=device).pack())


def transform(matrix_mm: np.ndarray, seconds: float = 100.0,
              device: str = 'ProbeToTracker') -> bytes:
    return bytes(pyigtl.TransformMessage(matrix_mm, timestamp=seconds, device_name=device).pack())


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def server(serve: Callable[[socket.socket, int], None], port: int = 0) -> Iterator[int]:
    """Listen, and let ``serve`` talk to each client with its number; yields the port."""
    listener = socket.create_server(('127.0.0.1', port))
    listener.settimeout(0.05)
    ended = threading.Event()
    lines: list[socket.socket] = []

    def work() -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                lines.append(listener.accept()[0])
                with lines[-1], suppress(OSError):
                    serve(lines[-1], len(lines) - 1)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        for line in lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5.0)
        listener.close()


def wait(until: Callable[[], bool], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert until()
