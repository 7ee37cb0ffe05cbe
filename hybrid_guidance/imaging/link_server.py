"""A server that sends packed messages to several clients, each as fast as it can take them.

pyigtl's own server is not used: it serves one client at a time, waits for ever on one that has gone
quietly, takes over the signals of its process, and lets a slow client see old messages.
"""

import contextlib
import socket
import threading
import time

_TICK = 0.2
_SEND_S = 2.0
_MOST_CLIENTS = 8


class LinkServer:
    """Listens, and sends each client the newest message of every name.

    A client that is slower than its messages misses some, but never gets old ones; one that takes
    nothing for 2 s is let go. What clients say is read and ignored.

    Args:
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        OSError: the address or port cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listener = socket.create_server((host, port))
        self._listener.settimeout(_TICK)
        self.port = int(self._listener.getsockname()[1])
        self._clients: list[_Client] = []
        self._ended = threading.Event()
        self.served = self.sent = self.replaced = 0
        self._thread = threading.Thread(target=self._accept, name='link server', daemon=True)
        self._thread.start()

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def send(self, name: str, message: bytes) -> None:
        """Send a packed message to every client, instead of one of that name that still waits."""
        for client in tuple(self._clients):
            self.replaced += client.put(name, message)
            self.sent += 1

    def close(self) -> None:
        """Hang up on everybody."""
        self._ended.set()
        self._thread.join(timeout=2.0)
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError, OSError):
                line, _ = self._listener.accept()
                if len(self._clients) >= _MOST_CLIENTS:
                    line.close()
                    continue
                client = _Client(line)
                self._clients.append(client)
                self.served += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: '_Client') -> None:
        try:
            client.run(self._ended)
        finally:
            self._clients.remove(client)


class _Client:
    """One client and what waits for it, newest message of each name."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._waiting: dict[str, bytes] = {}
        self._news = threading.Condition()

    def put(self, name: str, message: bytes) -> bool:
        """Let a message wait; tell whether an older one of that name was still waiting."""
        with self._news:
            replaced = name in self._waiting
            self._waiting[name] = message
            self._news.notify()
        return replaced

    def run(self, ended: threading.Event) -> None:
        """Send until the client is gone."""
        with self._line, contextlib.suppress(OSError):
            while not ended.is_set() and self._is_there():
                with self._news:
                    if not self._waiting:
                        self._news.wait(_TICK)
                    message = self._waiting.pop(next(iter(self._waiting)), b'') \
                        if self._waiting else b''
                self._line.settimeout(_SEND_S)
                self._line.sendall(message)

    def _is_there(self) -> bool:
        """Read what the client said; tell whether it is still there."""
        self._line.setblocking(False)
        until = time.monotonic() + 0.01
        try:
            # Not for ever: a client that talks without end must not keep us from sending.
            while time.monotonic() < until:
                if not self._line.recv(1 << 16):
                    return False
        except BlockingIOError:
            pass
        return True
