"""A few mutated DICOM files and OpenIGTLink streams; ``bench/fuzz.py`` runs 500 of each."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / 'bench' / 'fuzz.py'


def test_mutated_files_and_streams_are_read_or_refused_and_what_comes_after_them_is_read() -> None:
    ended = subprocess.run([sys.executable, str(BENCH), '--cases', '30'], capture_output=True,
                           text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert sum(found['dicom']['outcomes'].values()) == 30
    assert found['dicom']['outcomes']['refused'] < 30
    assert found['openigtlink']['outcomes'] == {'good image after it': 30}
    # They got past the CRC, and some of them were refused behind it.
    heard = found['openigtlink']['heard'][0]
    assert heard['IMAGE'] > 40
    assert heard['refused'] > 30
