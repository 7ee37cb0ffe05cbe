"""The simulated trackers, as the parameters of a node describe them."""

from dataclasses import dataclass

from hybrid_guidance.parameters import parameter
from hybrid_guidance.simulation.room import Tracker, Tracking


@dataclass(frozen=True)
class TrackerParameters:
    """Parameters of what is tracked, and how well."""

    tracked: str = parameter('all', choices=('all', 'carm', 'ultrasound_probe'), fixed=True,
                             meaning='whose pose goes to /tf; others have a tracker of their own')
    tracker_delay: float = parameter(0.02, low=0.0, high=0.5, unit='s', fixed=True,
                                     meaning='from taking a pose to publishing it')
    probe_position_noise: float = parameter(0.1e-3, low=0.0, high=0.01, unit='m', fixed=True,
                                            meaning='deviation of the tracked probe')
    probe_rotation_noise: float = parameter(0.001, low=0.0, high=0.1, unit='rad', fixed=True,
                                            meaning='deviation of the tracked probe')
    carm_position_noise: float = parameter(0.1e-3, low=0.0, high=0.01, unit='m', fixed=True,
                                           meaning='deviation of the tracked C-arm')
    carm_rotation_noise: float = parameter(0.0002, low=0.0, high=0.1, unit='rad', fixed=True,
                                           meaning='deviation of the tracked C-arm')
    tracker_bias: float = parameter(0.0, low=0.0, high=0.05, unit='m', fixed=True,
                                    meaning='constant error of every tracked position')
    tracker_dropout: float = parameter(0.0, low=0.0, high=0.9, fixed=True,
                                       meaning='share of the time in which trackers are blind')


def tracking(parameters: TrackerParameters, seed: int) -> Tracking:
    """Return the trackers of C-arm and probe; ``seed`` is of their noise."""
    given = parameters
    noises = {'carm': (given.carm_position_noise, given.carm_rotation_noise),
              'ultrasound_probe': (given.probe_position_noise, given.probe_rotation_noise)}
    return Tracking({
        name: Tracker(*noise, given.tracker_delay, seed + number, given.tracker_bias,
                      given.tracker_dropout)
        for number, (name, noise) in enumerate(noises.items())
        if given.tracked in ('all', name)})
