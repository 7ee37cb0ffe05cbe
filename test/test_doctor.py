"""The doctor on this machine, and on broken ones."""

import pytest

from hybrid_guidance import doctor

NAMES = ['Python', 'rclpy', 'middleware', 'transport', 'tf2_msgs', 'tf', 'launch', 'discovery',
         'numpy', 'OpenCV', 'Open3D', 'transforms3d', 'pydicom', 'JPEG in DICOM',
         'calibration simulated.yaml']


def test_everything_is_looked_at_and_what_is_needed_is_here() -> None:
    checks = doctor.examine()
    assert [check.name for check in checks if check.name in NAMES] == NAMES
    assert [check.name for check in checks if check.needed and not check.good] == []


def test_a_check_that_breaks_is_a_finding_under_the_same_name(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that breaks at every import still gets a report, line by line."""
    expected = [check.name for check in doctor.examine()]

    def broken(*anything: object) -> None:
        raise OSError('libGL.so.1: cannot open shared object file')
    monkeypatch.setattr(doctor, 'find_spec', broken)
    monkeypatch.setattr(doctor, 'datetime', broken)
    checks = doctor.examine()
    assert [check.name for check in checks] == expected
    found = {check.name: check for check in checks}
    for name in ('rclpy', 'OpenCV', 'pydicom', 'JPEG in DICOM', 'calibration simulated.yaml'):
        assert not found[name].good
        assert 'OSError' in found[name].found or 'AttributeError' in found[name].found
    assert 'lambda' not in doctor.report(checks, colour=False)


def test_an_installation_without_its_files_is_a_finding(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(relative: str) -> None:
        raise FileNotFoundError(f'{relative}: not found; install the package again')
    monkeypatch.setattr(doctor, 'resource', nowhere)
    assert 'install the package again' in doctor.report(doctor.examine(), colour=False)


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.find_spec
    monkeypatch.setattr(doctor, 'find_spec',
                        lambda name: None if name == 'open3d' else found(name))
    checks = doctor.examine()
    assert [check.name for check in checks if check.needed and not check.good] == ['Open3D']
    lines = doctor.report(checks, colour=False).splitlines()
    index = next(number for number, line in enumerate(lines) if 'Open3D' in line)
    assert lines[index].startswith('FAIL')
    assert 'make setup' in lines[index + 1]
