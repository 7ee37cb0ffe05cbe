"""What a node's process needs around it before rclpy starts, so that no user has to know it."""

import contextlib
import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

from hybrid_guidance.resources import resource


def prepare(environment: dict[str, str] | None = None) -> None:
    """Choose the DDS transport that carries whole images, unless the user chose one.

    Read by Fast DDS only; Cyclone DDS and Zenoh carry images as they are.

    Args:
        environment: changed in place; this process's own when not given.
    """
    target = os.environ if environment is None else environment
    chosen = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE',
              'FASTDDS_BUILTIN_TRANSPORTS')
    if not any(name in target for name in chosen):
        target['FASTDDS_DEFAULT_PROFILES_FILE'] = str(resource('config/fastdds.xml'))


def yield_to_others(niceness: int) -> None:
    """Let this process use a processor only when no node that guides wants it.

    Linux compares niceness within a session only, where it groups processes by session, so a
    session of one node must say it for the whole (sched(7), "The autogroup feature").

    Args:
        niceness: 0 to 19, more is humbler.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path('/proc/self/autogroup').write_text(str(niceness))


def answer_at_once(slice_ns: int = 100_000) -> None:
    """Let this process have a processor as soon as something arrives for it.

    Linux (6.12 and later) lets what wakes up run before what runs, where its time slice is the
    shorter (sched_setattr(2)); a node works for a few milliseconds, and others may go on soon.
    Threads begun later inherit it. Elsewhere nothing changes.

    Args:
        slice_ns: least share of time before others have their turn; usually 1 to 3 million.
    """
    call = {'x86_64': 314, 'aarch64': 274}.get(platform.machine())
    if sys.platform != 'linux' or call is None:
        return
    normal = struct.pack('=IIQiIQQQ', 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, slice_ns,
                         0, 0)
    ctypes.CDLL(None).syscall(call, 0, normal, 0)


def keep_memory(size: int = 1 << 28) -> None:
    """Let the C library keep the memory of images that are gone for those that come.

    Given back and asked for again with every image, each of its pages would be cleared by the
    kernel: 600 page faults for an X-ray of 2 MiB, which takes a core more than a millisecond.

    Args:
        size: bytes that may be kept.
    """
    trim_threshold, mmap_threshold = -1, -3  # mallopt(3), GNU; other C libraries have none
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, size)
        library.mallopt(mmap_threshold, 1 << 25)
