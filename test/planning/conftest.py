"""A task in a body of balls."""

import numpy as np
import pytest
from balls import BALLS, BODY, ball

from hybrid_guidance.geometry.rigid import transform
from hybrid_guidance.planning.anatomy_map import AnatomyMap, build_map
from hybrid_guidance.planning.candidates import Task
from hybrid_guidance.planning.doubt import Doubt
from hybrid_guidance.procedure import Probe


@pytest.fixture(scope='session')
def task() -> Task:
    """From the skin on the x axis to a target 40 mm below it; the slice is z = 0."""
    slice_ = transform(np.column_stack([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
                       np.array([BODY, 0.05, 0.0]))
    return Task(np.array([0.040, 0.0, 0.0]), np.array([BODY, 0.0, 0.0]), 0.09, 0.0004,
                {'bone': 0.0002, 'artery': 0.002}, slice_, Probe('linear', np.inf, 0.04),
                np.array([0.0, 0.0, -0.6]), doubt=Doubt(2.0, 0.0003, 0.0004, 0.01))


@pytest.fixture(scope='session')
def anatomy(task: Task) -> AnatomyMap:
    return build_map({name: ball(*value) for name, value in BALLS.items()}, *task.region(),
                     band=task.band)
