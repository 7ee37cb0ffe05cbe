"""Starting the nodes as processes, watching them, and stopping exactly those."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARENT = 'HYBRID_GUIDANCE_PARENT'
"""Environment variable with the process whose end ends a node (see ``end_with_parent``)."""

_LAST_LINES = 15
_GRACE_S = 10.0


@dataclass
class Child:
    """One running node.

    Attributes:
        name: of the node.
        process: it runs in.
        lines: what it printed last.
    """

    name: str
    process: 'subprocess.Popen[str]'
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    reader: threading.Thread | None = None


class Supervisor:
    """Runs a set of nodes.

    Args:
        on_line: called with (node, line) for everything that a node prints.
        on_death: called with (node, exit status, its last lines) when a node ends by itself.
        environment: of the nodes.

    Attributes:
        children: the running nodes, by name.
        folder: for files of parameters; it is gone after ``stop``.
    """

    def __init__(self, on_line: Callable[[str, str], None],
                 on_death: Callable[[str, int, Sequence[str]], None],
                 environment: Mapping[str, str]) -> None:
        self._on_line, self._on_death = on_line, on_death
        self._environment = {**environment, PARENT: str(os.getpid()), 'PYTHONUNBUFFERED': '1'}
        self.children: dict[str, Child] = {}
        self._folder = tempfile.TemporaryDirectory(prefix='hybrid_guidance-')
        self.folder = Path(self._folder.name)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one node in a session of its own, so that Ctrl-C reaches only us."""
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors='replace',
                                   env=self._environment, start_new_session=True)
        child = Child(name, process)
        child.reader = threading.Thread(target=self._read, args=(child,), daemon=True)
        child.reader.start()
        self.children[name] = child

    def watch(self) -> list[str]:
        """Report every node that has ended since the last call; return their names."""
        ended = [child for child in self.children.values() if child.process.poll() is not None]
        for child in ended:
            if child.reader is not None:
                child.reader.join(timeout=1.0)
            del self.children[child.name]
            self._on_death(child.name, child.process.returncode, tuple(child.lines))
        return [child.name for child in ended]

    def stop(self) -> list[str]:
        """End every node: interrupt, then kill what does not go; return who was killed."""
        for child in self.children.values():
            _signal(child, signal.SIGINT)
        deadline = time.monotonic() + _GRACE_S
        killed = []
        for child in self.children.values():
            try:
                child.process.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                killed.append(child.name)
                _signal(child, signal.SIGKILL)
                child.process.wait()
        self.children.clear()
        self._folder.cleanup()
        return killed

    def _read(self, child: Child) -> None:
        assert child.process.stdout is not None
        for line in child.process.stdout:
            text = line.rstrip('\n')
            child.lines.append(text)
            self._on_line(child.name, text)


def end_with_parent() -> None:
    """End this process, a node, when the process that started it is gone, however.

    Raises:
        SystemExit: it is gone already.
    """
    parent = os.environ.get(PARENT, '')
    if not parent:
        return
    if parent == str(os.getppid()):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # Linux tells of an end from now on, and nobody of one before, while we were still starting.
    if parent != str(os.getppid()) and not _is_running(parent):
        sys.exit('the process that started this node has ended')


def _is_running(process: str) -> bool:
    """Tell whether a process is there and not only waiting to be buried."""
    try:
        state = Path('/proc', process, 'stat').read_text(errors='replace')
    except OSError:
        return False
    return state.rpartition(')')[2].split()[0] not in 'ZX'


def _signal(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(number)


def ros_arguments(name: str, parameters: Mapping[str, Any], namespace: str = '',
                  params_files: Sequence[str | Path] = (), log_level: str = 'info') -> list[str]:
    """Return the ``--ros-args`` for one node.

    A section of a file may win over ``parameters``: beside a user's file give them as the last
    file instead (see ``parameter_file``).
    """
    arguments = ['--ros-args', '-r', f'__node:={name}', '--log-level', log_level]
    if namespace:
        arguments += ['-r', f'__ns:=/{namespace.strip("/")}']
    for file in params_files:
        arguments += ['--params-file', str(file)]
    for parameter, value in parameters.items():
        arguments += ['-p', f'{parameter}:={_yaml(value)}']
    return arguments


def parameter_file(folder: Path, name: str, parameters: Mapping[str, Any],
                   namespace: str = '') -> Path:
    """Write one node's parameters so that, read last, they win over any file before.

    Args:
        folder: where to write.
        name: of the node.
        parameters: name to value.
        namespace: of the node.

    Returns:
        The file.
    """
    values = ', '.join(f'{_yaml(key)}: {_yaml(value)}' for key, value in parameters.items())
    # ROS takes the sections in the order in which the files first name them, and the last one
    # wins: our values stand in every section that a file may have for this node.
    space = f'/{namespace.strip("/")}' if namespace else ''
    sections = ('/**', f'/**/{name}', f'{space}/{name}')
    file = folder / f'{name}.yaml'
    file.write_text(''.join(f'{_yaml(section)}: {{"ros__parameters": {{{values}}}}}\n'
                            for section in sections), encoding='utf-8')
    return file


def node_command(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a node of this package."""
    return [sys.executable, '-m', f'hybrid_guidance.nodes.{name}', *arguments]


def _yaml(value: Any) -> str:
    """Return a value in YAML that keeps its type: the text "2012" or "no" stays text."""
    return json.dumps(value if isinstance(value, (bool, int, float)) else str(value),
                      ensure_ascii=False)
