"""The JSON schema of the calibration file against what is written, and against what is refused."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from test_file import BAD, NOW, entry, late, write

from hybrid_guidance.calibration.file import KINDS, load, update
from hybrid_guidance.resources import resource

FOLDER = resource('config/calibration')
SCHEMA = json.loads((FOLDER / 'schema.json').read_text(encoding='utf-8'))
CHECK = jsonschema.Draft202012Validator(SCHEMA)

BEYOND = {'not finite', 'huge', 'not unit', 'indefinite', 'asymmetric', 'expired', 'future',
          'inliers', 'image of a C-arm'}
"""What no schema can say: it is left to ``load``."""


def errors(path: Path) -> list[str]:
    document: Any = yaml.safe_load(path.read_text(encoding='utf-8'))
    # YAML knows dates, JSON does not.
    plain = json.loads(json.dumps(document, default=str))
    return [error.message for error in CHECK.iter_errors(plain)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.yaml')), ids=lambda path: path.name)
def test_every_file_that_comes_with_it_has_its_form(path: Path) -> None:
    assert errors(path) == []


def test_what_is_written_has_its_form(tmp_path: Path) -> None:
    path = write(tmp_path / 'c.yaml', entry(), entry(
        kind='carm', parent='carm', child='fluoroscopy_optical_frame', image=None,
        camera={'focal': [5400.0, 5401.0], 'centre': [530.0, 505.0],
                'distortion': [-0.3, 0.0, 0.0, 0.0, 0.0], 'size': [1024, 1024]}))
    update(path, *load(path, NOW), late())
    assert errors(path) == []


@pytest.mark.parametrize('name', sorted(set(BAD) - BEYOND))
def test_what_load_refuses_for_its_form_the_schema_refuses_too(name: str, tmp_path: Path) -> None:
    assert errors(write(tmp_path / 'c.yaml', BAD[name][0]))


def test_kinds_and_their_frames_are_those_of_the_code() -> None:
    entry_schema = SCHEMA['properties']['calibrations']['items']
    frames = {rule['if']['properties']['kind']['const']: tuple(
        rule['then']['properties'][end]['const'] for end in ('parent', 'child'))
        for rule in entry_schema['allOf']}
    assert frames == KINDS
    assert entry_schema['properties']['kind']['enum'] == list(KINDS)
