"""Recording from the running graph what a calibration needs, and saying what it has so far."""

import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_guidance.calibration.file import CalibrationError

if TYPE_CHECKING:
    from hybrid_guidance.ros.executor import MessageExecutor

Say = Callable[[str], None]

_START_S = 10.0
_WORDS_S = 2.0


def record(path: Path, seconds: float, pairs: Sequence[tuple[str, str]], images: str,
           say: Say) -> None:
    """Record /tf and images of the running graph into a rosbag2 folder.

    The clock starts once everything that is needed comes.

    Args:
        path: folder that does not exist yet.
        seconds: to record.
        pairs: (parent, child) frames whose poses are needed, as in the graph or as PLUS calls them.
        images: topic that is needed; '' for none.
        say: told every two seconds what there is so far.

    Raises:
        CalibrationError: a length that makes no sense, or something that is needed does not come.
    """
    if not 1.0 <= seconds <= 3600.0:
        raise CalibrationError(f'--record {seconds:g}: give between 1 and 3600 seconds')
    if path.suffix:
        raise CalibrationError(f'{path}: a recording becomes a folder; name it without "'
                               f'{path.suffix}"')
    if not path.parent.is_dir():
        raise CalibrationError(f'{path}: there is no folder {path.parent}; make it first')
    if find_spec('rosbags') is None:
        raise CalibrationError('--record needs rosbags: pip install rosbags')
    from hybrid_guidance.nodes.recorder_node import RecorderNode
    from hybrid_guidance.ros import environment
    from hybrid_guidance.ros.coverage import Coverage
    from hybrid_guidance.ros.embedded import embedded
    from hybrid_guidance.ros.executor import MessageExecutor
    environment.prepare()
    topics = ' '.join(filter(None, ('/tf', '/tf_static', '/diagnostics', images)))
    try:
        with embedded(RecorderNode, {'directory': str(path), 'topics': topics}) as (node, _):
            coverage, executor = Coverage(node, pairs, images), MessageExecutor(node)
            _spin(executor, _START_S, lambda: not coverage.missing)
            if coverage.missing:
                raise CalibrationError(f'{coverage.missing} within {_START_S:g} s; start the graph '
                                       'and the tracker, and name frames and topics as they do')
            say(f'{path}: recording for {seconds:g} s')
            begun = time.monotonic()
            while (gone := time.monotonic() - begun) < seconds:
                _spin(executor, min(_WORDS_S, seconds - gone))
                say(f'{min(time.monotonic() - begun, seconds):5.0f} of {seconds:g} s  '
                    f'{coverage.words}')
    except BaseException:
        # Half a recording must not be taken for a whole one the next time.
        shutil.rmtree(path, ignore_errors=True)
        raise


def _spin(executor: 'MessageExecutor', seconds: float,
          done: Callable[[], bool] = lambda: False) -> None:
    end = time.monotonic() + seconds
    executor.spin(lambda: done() or time.monotonic() >= end)
