from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from hybrid_guidance.calibration.file import (
    Calibration,
    CalibrationError,
    Delay,
    load,
    load_delays,
    save,
    update,
)
from hybrid_guidance.imaging.geometry import ImageGeometry

NOW = datetime(2030, 6, 1, tzinfo=timezone.utc)


def entry(**changes: Any) -> dict[str, Any]:
    """Return a valid ultrasound entry; a change to None removes the key."""
    values: dict[str, Any] = {
        'kind': 'ultrasound-spatial', 'parent': 'ultrasound_probe', 'child': 'ultrasound_image',
        'translation': [0.01, -0.02, 0.03], 'rotation_xyzw': [0.0, 0.0, 0.6, 0.8],
        'deviation': [1e-3, 2e-3, 3e-3, 0.01, 0.02, 0.03], 'method': 'N-wire',
        'date': '2030-05-01T10:00:00+02:00', 'expires': '2031-05-01', 'samples': 190,
        'inliers': 181, 'residual': 4.8e-4, 'held_out_error': 5.4e-4, 'made_by': 'a test',
        'image': {'spacing': [8e-5, 7e-5], 'origin': [410.0, 0.0]}}
    values |= changes
    return {key: value for key, value in values.items() if value is not None}


def write(path: Path, *entries: Any, **envelope: Any) -> Path:
    document = {'format': 'hybrid_guidance/calibration', 'version': 1,
                'calibrations': list(entries)} | envelope
    path.write_text(yaml.safe_dump(document))
    return path


def test_an_entry_means_what_the_format_says(tmp_path: Path) -> None:
    (calibration,) = load(write(tmp_path / 'c.yaml', entry()), NOW)
    expected = Rotation.from_quat([0.0, 0.0, 0.6, 0.8]).as_matrix()
    np.testing.assert_allclose(calibration.transform[:3, :3], expected, atol=1e-12)
    np.testing.assert_allclose(calibration.transform[:3, 3], [0.01, -0.02, 0.03])
    np.testing.assert_allclose(np.diag(calibration.covariance),
                               np.square([1e-3, 2e-3, 3e-3, 0.01, 0.02, 0.03]))
    assert calibration.date == datetime(2030, 5, 1, 8, tzinfo=timezone.utc)
    assert calibration.expires == datetime(2031, 5, 1, tzinfo=timezone.utc)
    assert calibration.image is not None
    projection = calibration.image.projection((820, 616))
    np.testing.assert_allclose(projection.pixels(np.array([8e-5, 14e-5, 0.0])), [411.0, 2.0])


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(6, 6)) * 1e-3
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=4).as_matrix()
    pose[:3, 3] = [0.1, 0.2, 1.3]
    (first,) = load(write(tmp_path / 'c.yaml', entry()), NOW)
    saved = (first, replace(first, kind='carm', parent='carm', child='fluoroscopy_optical_frame',
                            transform=pose, covariance=root @ root.T, image=None, samples=None,
                            inliers=None, residual=None, held_out_error=None))
    save(tmp_path / 'd.yaml', saved)
    loaded = load(tmp_path / 'd.yaml', NOW)
    for before, after in zip(saved, loaded, strict=True):
        np.testing.assert_allclose(after.transform, before.transform, atol=1e-12)
        np.testing.assert_allclose(after.covariance, before.covariance, rtol=1e-12)
        for field in ('kind', 'parent', 'child', 'method', 'date', 'expires', 'samples',
                      'inliers', 'residual', 'held_out_error', 'made_by', 'image'):
            assert getattr(after, field) == getattr(before, field)
    assert [path.name for path in tmp_path.glob('d.yaml*')] == ['d.yaml']


def test_a_skewed_image_is_loaded_and_saved(tmp_path: Path) -> None:
    image = {'spacing': [8e-5, 7e-5], 'origin': [410.0, 0.0], 'skew': -4e-6}
    (calibration,) = load(write(tmp_path / 'c.yaml', entry(image=image)), NOW)
    assert calibration.image is not None
    # Ten pixels down are 0.04 mm to the left.
    point = calibration.image.projection((820, 616)).back_project(np.array([410.0, 10.0]))
    np.testing.assert_allclose(point, [-4e-5, 7e-4, 0.0], atol=1e-15)
    save(tmp_path / 'd.yaml', [calibration])
    assert load(tmp_path / 'd.yaml', NOW)[0].image == calibration.image


def test_a_probe_whose_images_carry_their_scale_needs_no_image(tmp_path: Path) -> None:
    for plain in (entry(image=None), {**entry(), 'image': None}):
        (calibration,) = load(write(tmp_path / 'c.yaml', plain), NOW)
        assert calibration.image is None
        save(tmp_path / 'd.yaml', [calibration])
        assert load(tmp_path / 'd.yaml', NOW)[0].image is None


def test_a_quaternion_is_normalised_within_a_thousandth_only(tmp_path: Path) -> None:
    near = entry(rotation_xyzw=[0.0, 0.0, 0.6005, 0.8005])
    (calibration,) = load(write(tmp_path / 'c.yaml', near), NOW)
    assert np.linalg.det(calibration.transform[:3, :3]) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(CalibrationError, match=r'has length 1\.4'):
        load(write(tmp_path / 'c.yaml', entry(rotation_xyzw=[0.0, 0.0, 1.0, 1.0])), NOW)


BAD_COVARIANCE = np.diag([1.0, 1, 1, 1, 1, -1]).ravel().tolist()
BAD = {
    'missing key': (entry(method=None), "key 'method' is missing; add it"),
    'unknown key': (entry(colour='red'), "unknown key 'colour'; remove it"),
    'not a mapping': ('hello', 'must be a mapping'),
    'kind': (entry(kind='guess'), "unknown kind 'guess'; one of carm, ultrasound-spatial"),
    'kind no text': (entry(kind=[1]), "'kind' must be text"),
    'foreign frame': (entry(child='needle_tip'), "has child 'ultrasound_image'"),
    'not finite': (entry(translation=[0.0, float('nan'), 0.0]), 'not finite'),
    'huge': (entry(translation=[10**400, 0, 0]), 'not finite'),
    'words': (entry(translation='0 0 0'), "'translation' must be 3 numbers"),
    'too few': (entry(rotation_xyzw=[0.0, 0.0, 1.0]), "'rotation_xyzw' must be 4 numbers"),
    'not unit': (entry(rotation_xyzw=[0.0, 0.0, 0.0, 0.0]), 'has length 0'),
    'both covariances': (entry(covariance=[0.0] * 36), 'exactly one of'),
    'no covariance': (entry(deviation=None), 'exactly one of'),
    'negative deviation': (entry(deviation=[-1.0] * 6), 'negative'),
    'indefinite': (entry(deviation=None, covariance=BAD_COVARIANCE), 'positive semidefinite'),
    'asymmetric': (entry(deviation=None, covariance=[1.0, 1.0] + [0.0] * 34), 'not symmetric'),
    'expired': (entry(expires='2030-05-20'), 'expired on 2030-05-20; repeat "hybrid-guidance'),
    'future': (entry(date='2030-07-01'), 'was made on 2030-07-01 00:00 UTC, in the future'),
    'date': (entry(date='soon'), "'date' must be a date such as"),
    'inliers': (entry(inliers=200), '200 inliers of 190 samples'),
    'samples': (entry(samples=-1), "'samples' must be a whole number"),
    'residual': (entry(residual=-1e-3), "'residual' must not be negative"),
    'image half': (entry(image={'spacing': [1e-4, 1e-4]}), '"image" must hold'),
    'image skew': (entry(image={'spacing': [1e-4, 1e-4], 'origin': [0, 0], 'skew': 'much'}),
                   "'image skew' must be 1 number"),
    'image more': (entry(image={'spacing': [1e-4, 1e-4], 'origin': [0, 0], 'depth': 1}),
                   'nothing else'),
    'image spacing': (entry(image={'spacing': [0.0, 1.0], 'origin': [0, 0]}), 'above zero'),
    'image of a C-arm': (entry(kind='carm', parent='carm', child='fluoroscopy_optical_frame'),
                         'belongs to ultrasound-spatial only'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_entry_is_refused_with_file_entry_and_reason(name: str, tmp_path: Path) -> None:
    bad, reason = BAD[name]
    good = entry(kind='registration', parent='world', child='patient', image=None)
    path = write(tmp_path / 'site.yaml', good, bad)
    with pytest.raises(CalibrationError) as caught:
        load(path, NOW)
    assert str(caught.value).startswith(f'{path}, calibration 2')
    assert reason in str(caught.value)


def test_a_second_parent_of_one_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r'calibration 2 .*a second calibration of'):
        load(write(tmp_path / 'c.yaml', entry(), entry()), NOW)


@pytest.mark.parametrize(('text', 'reason'), [
    ('a: [1, 2', 'not valid YAML'), ('', 'not a calibration file'), ('[1, 2]', 'not a calibration'),
    ('!!python/object/apply:os.getcwd []', 'not valid YAML'),
    ('format: hybrid_guidance/calibration\nversion: 2', 'version 2 cannot be read'),
    ('format: hybrid_guidance/calibration\nversion: 1\nextra: 1', "unknown key 'extra'"),
    ('format: hybrid_guidance/calibration\nversion: 1', '"calibrations" must be a list'),
    ('\x00', 'not valid YAML'), ('d: 2030-13-45', 'not valid YAML'), ('[' * 2000, 'not valid YAML'),
])
def test_a_file_of_another_kind_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    with pytest.raises(CalibrationError) as caught:
        load(path, NOW)
    assert str(caught.value).startswith(f'{path}: {reason}')


def test_a_bomb_of_aliases_is_refused_with_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / 'c.yaml'
    lines = ['format: hybrid_guidance/calibration', 'version: 1', 'calibrations:', '- &a0 [x, x]']
    lines += [f'- &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' for n in range(1, 40)]
    lines += ['- {' + ', '.join(f'{key}: *a39' for key in entry()) + '}']
    path.write_text('\n'.join(lines))
    with pytest.raises(CalibrationError, match='must be a mapping'):
        load(path, NOW)
    path.write_text('\n'.join(['a: &b', *lines[3:-1], *lines[:2], 'calibrations:', lines[-1]]))
    with pytest.raises(CalibrationError) as caught:
        load(path, NOW)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r'cannot be read .*check the path'):
        load(tmp_path / 'none.yaml', NOW)


def test_saving_refuses_what_loading_would(tmp_path: Path) -> None:
    (calibration,) = load(write(tmp_path / 'c.yaml', entry()), NOW)
    sheared = calibration.transform.copy()
    sheared[0, 1] += 0.01
    bad: list[Calibration] = [replace(calibration, transform=sheared),
                              replace(calibration, covariance=-np.eye(6)),
                              replace(calibration, image=ImageGeometry((0.0, 1.0), (0.0, 0.0)))]
    for one in bad:
        with pytest.raises(CalibrationError, match='not saved'):
            save(tmp_path / 'd.yaml', [one])
    with pytest.raises(CalibrationError, match='a second calibration'):
        save(tmp_path / 'd.yaml', [calibration, calibration])
    assert not (tmp_path / 'd.yaml').exists()
    with pytest.raises(CalibrationError, match='cannot be written'):
        save(tmp_path / 'nowhere' / 'd.yaml', [calibration])


def test_a_calibration_expires_while_it_is_in_use(tmp_path: Path) -> None:
    """Negative control: the same file, a second before and at its expiry."""
    path = write(tmp_path / 'c.yaml', entry(expires='2030-06-02T00:00:00+00:00'))
    expiry = datetime(2030, 6, 2, tzinfo=timezone.utc)
    assert load(path, expiry - timedelta(seconds=1))
    with pytest.raises(CalibrationError, match='expired on 2030-06-02'):
        load(path, expiry)


def late(**changes: Any) -> Delay:
    values: dict[str, Any] = {
        'sensor': 'ultrasound', 'delay': 0.0648, 'deviation': 1e-3, 'method': 'water tank',
        'date': NOW - timedelta(days=1), 'expires': NOW + timedelta(days=30), 'samples': 201,
        'inliers': 198, 'residual': 4e-4, 'held_out_error': 4.2e-4, 'made_by': 'a test'}
    return Delay(**(values | changes))


def test_a_new_calibration_takes_the_place_of_the_old_and_leaves_the_others(
        tmp_path: Path) -> None:
    path = write(tmp_path / 'c.yaml', entry(), entry(
        kind='carm', parent='carm', child='fluoroscopy_optical_frame', image=None,
        camera={'focal': [5400.0, 5401.0], 'centre': [530.0, 505.0],
                'distortion': [-0.3, 0.0, 0.0, 0.0, 0.0], 'size': [1024, 1024]}))
    old, carm = load(path, NOW)
    update(path, replace(old, samples=77, inliers=70), late())
    found = load(path, NOW)
    assert [item.samples for item in found] == [77, 190]
    assert found[1].camera == carm.camera
    assert carm.camera is not None
    assert carm.camera.projection().matrix[0, 0] == 5400.0
    update(path, late(delay=-0.01))
    assert load_delays(path, NOW) == {'ultrasound': late(delay=-0.01)}
    assert len(load(path, NOW)) == 2


def test_an_expired_entry_stays_in_the_file_and_stays_refused(tmp_path: Path) -> None:
    path = write(tmp_path / 'c.yaml', entry(expires='2030-05-20'))
    update(path, late())
    with pytest.raises(CalibrationError, match='expired on 2030-05-20'):
        load(path, NOW)
    assert load_delays(path, NOW)['ultrasound'].delay == 0.0648


@pytest.mark.parametrize(('changes', 'message'), [
    ({'expires': '2030-05-20'}, 'expired on 2030-05-20; repeat "hybrid-guidance calibrate '
                                'ultrasound-temporal"'),
    ({'delay': 'soon'}, "'delay' must be 1 number"), ({'deviation': -1.0}, 'not be negative'),
    ({'colour': 'red'}, "'colour' is missing or unknown"), ({'date': 'today'}, "'date' must be")])
def test_a_malformed_or_expired_delay_is_refused(tmp_path: Path, changes: dict[str, Any],
                                                 message: str) -> None:
    path = tmp_path / 'c.yaml'
    update(path, late())
    document = yaml.safe_load(path.read_text())
    document['delays'][0] |= changes
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(CalibrationError, match=message):
        load_delays(path, NOW)


@pytest.mark.parametrize(('camera', 'message'), [
    ({'focal': [1.0, 1.0]}, 'must hold "focal"'), ('wide', 'must hold "focal"'),
    ({'focal': [0.0, 1.0], 'centre': [1, 1], 'distortion': [0] * 5, 'size': [9, 9]}, 'above zero')])
def test_malformed_intrinsics_are_refused(tmp_path: Path, camera: Any, message: str) -> None:
    carm = entry(kind='carm', parent='carm', child='fluoroscopy_optical_frame', image=None,
                 camera=camera)
    with pytest.raises(CalibrationError, match=message):
        load(write(tmp_path / 'c.yaml', carm), NOW)
