"""What all kinds of ``calibrate`` share: outcomes, arguments, recordings."""

import argparse
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from getpass import getuser
from pathlib import Path

import numpy as np

from hybrid_guidance.calibration import chart
from hybrid_guidance.calibration.chart import Panel, Series, histogram
from hybrid_guidance.calibration.file import Calibration, CalibrationError, Delay
from hybrid_guidance.calibration.recorded import (
    Pictures,
    is_bag,
    read_images,
    read_tf,
    track_of,
)
from hybrid_guidance.calibration.track import Track
from hybrid_guidance.geometry.types import Array
from hybrid_guidance.imaging.sequence import open_sequence

MM = 1e3
"""Millimetres in a metre."""


@dataclass(frozen=True)
class Outcome:
    """What one command found.

    Attributes:
        entry: for the calibration file.
        lines: of the report.
        panels: of its picture.
    """

    entry: Calibration | Delay
    lines: tuple[str, ...]
    panels: tuple[Panel, ...]


def dates(arguments: argparse.Namespace) -> tuple[datetime, datetime]:
    """Return when the calibration was made and until when it may be used."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    if not 0.0 < arguments.valid_for <= 3650.0:
        raise CalibrationError(f'--valid-for {arguments.valid_for:g}: give between 0 and 3650 days')
    return now, now + timedelta(days=arguments.valid_for)


def made_by(arguments: argparse.Namespace) -> str:
    """Return who made it and with what."""
    try:
        who = getuser()
    except (KeyError, OSError):
        who = 'somebody'
    return f'{who}, hybrid-guidance calibrate {arguments.kind}'


def positive(text: str) -> float:
    """Return the finite number above zero that an option was given.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not 0.0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a number above zero')
    return value


def files(parser: argparse.ArgumentParser, **meaning: str) -> None:
    """Add arguments that name files: what each is for."""
    for name, text in meaning.items():
        parser.add_argument(name, type=Path, help=text)


def frames(parser: argparse.ArgumentParser, **names: str) -> None:
    """Add options that name frames of a recording, with what each is called at first."""
    for name, default in names.items():
        parser.add_argument(f'--{name.replace("_", "-")}', default=default, metavar='FRAME',
                            help='name of that frame in the recording (default: %(default)s)')


_sequence = lru_cache(maxsize=2)(open_sequence)


def track_in(path: Path, parent: str, child: str) -> Track:
    """Return a track out of a sequence or a bag."""
    if is_bag(path):
        return read_tf(path, parent, child)
    return track_of(_sequence(path), path, parent, child)


def pictures_in(path: Path, topic: str) -> Pictures:
    """Return the images of a sequence or a bag."""
    if is_bag(path):
        return read_images(path, topic)
    recording = _sequence(path)
    return Pictures(recording.start_time + np.array(recording.times),
                    lambda index: recording[index].pixels,
                    None if recording.numbers is None else np.array(recording.numbers))


def error_panels(title: str, errors: Array) -> tuple[Panel, Panel]:
    """Return the panels of (N,) m, pose by pose and as a distribution."""
    return (Panel(title, 'pose', 'mm', (
                Series(np.arange(len(errors), dtype=float), errors * MM),)),
            Panel('Its distribution', 'mm', 'share (%)', (
                histogram(errors * MM, '', chart.BLUE, float(errors.max()) * MM),)))
