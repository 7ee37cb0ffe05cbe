"""A patient made of a CT: a phantom of known spheres and cylinders, in coarse voxels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import pose_along, transform_points
from hybrid_guidance.imaging.volume import Volume
from hybrid_guidance.procedure import load_procedure, save_procedure
from hybrid_guidance.simulation import xray
from hybrid_guidance.simulation.anatomy import AnatomyError, build_patient, build_structures
from hybrid_guidance.simulation.imported import (
    Imported,
    LabelRule,
    centre_of,
    import_patient,
    load_imported,
    mixture,
    read_rules,
    save_imported,
)
from hybrid_guidance.simulation.placement import placed
from hybrid_guidance.simulation.tissues import WATER_LEVEL, Tissue
from hybrid_guidance.simulation.xray import Technique, XrayRenderer

BODY, BONE, VESSEL = 0.060, 0.014, 0.006
MIDDLE = np.array([0.004, -0.003, 0.050])
VESSEL_AT = MIDDLE + (0.030, 0.0, 0.0)
RULES = {'ball': LabelRule((7,), Tissue.CORTICAL), 'vessel': LabelRule((3,), Tissue.BLOOD),
         'absent': LabelRule((9,), Tissue.NERVE)}
BONE_HU, VESSEL_HU = 900.0, 45.0


def phantom() -> tuple[Volume, Volume]:
    """A ball of muscle in air holds a ball of bone and a vessel along z; rows run to the right."""
    shape, affine = (60, 100, 90), np.diag([-0.0015, 0.0015, 0.0025, 1.0])
    affine[:3, 3] = MIDDLE - affine[:3, :3] @ (44.7, 44.3, 29.6)
    z, y, x = np.indices(shape)
    places = transform_points(affine, np.stack([x, y, z], axis=-1).astype(float))
    from_middle = np.linalg.norm(places - MIDDLE, axis=-1)
    from_vessel = np.linalg.norm((places - VESSEL_AT)[..., :2], axis=-1)
    ct = np.where(from_middle < BODY, 40, -1000).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    vessel = (from_vessel < VESSEL) & (from_middle < 0.045)
    ct[vessel], labels[vessel] = VESSEL_HU, 3
    ct[from_middle < BONE], labels[from_middle < BONE] = BONE_HU, 7
    # A table under the body, as dense as it, which is no patient.
    ct[:, -3:, :] = 60
    return Volume(ct, affine), Volume(labels, affine)


@pytest.fixture(scope='module')
def made() -> Imported:
    ct, labels = phantom()
    return import_patient(ct, labels, RULES, MIDDLE, (0.10, 0.10, 0.10), 0.001)


def test_surfaces_are_where_the_label_map_has_them(made: Imported) -> None:
    """Voxels are 1.5 and 2.5 mm wide: at the surface a third, beyond it half of one is missed."""
    patient = made.patient()
    rng = np.random.default_rng(1)
    ways = rng.normal(size=(400, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    for name, radius in (('ball', BONE), ('bone', BONE), ('skin', BODY)):
        off = patient.distance(name, MIDDLE + radius * ways)
        places = MIDDLE + radius * ways
        held = np.abs(places - MIDDLE).max(axis=1) < 0.045  # within the fine voxels
        assert np.sqrt(np.mean(off[held] ** 2)) < 0.0006, name
        assert abs(np.mean(off[held])) < 0.0004, name
    for way in (0.006, -0.004):
        off = patient.distance('ball', MIDDLE + (BONE + way) * ways)
        assert np.mean(off) == pytest.approx(way, abs=0.0009)
    assert 'absent' not in patient.structures


def test_distance_beyond_what_was_sampled_never_says_too_much(made: Imported) -> None:
    solid = made.solids['ball'].shape()
    rng = np.random.default_rng(2)
    points = MIDDLE + rng.uniform(-0.15, 0.15, (3000, 3))
    true = np.linalg.norm(points - MIDDLE, axis=1) - BONE
    # As much as half the longest side of a voxel is not known of the surface itself.
    assert np.all(solid.at(points) < true + 0.00125)
    assert np.all(solid.at(points)[true > 0.02] > 0.005)


def test_voxels_are_tissues_and_the_table_is_none(made: Imported) -> None:
    patient = made.patient()

    def tissue(point: np.ndarray) -> int:
        x, y, z = np.rint((point - made.grid.origin) / made.grid.spacing).astype(int)
        return int(patient.labels[z, y, x])

    assert tissue(MIDDLE) == Tissue.CANCELLOUS
    assert tissue(MIDDLE + (0.0, BONE - 0.0006, 0.0)) == Tissue.CORTICAL
    assert tissue(VESSEL_AT) == Tissue.BLOOD
    assert tissue(MIDDLE + (0.0, 0.025, 0.010)) == Tissue.MUSCLE
    y = made.surround.grid.axes()[1].ravel()
    assert made.surround.density[:, y > MIDDLE[1] + BODY + 0.008].max() == 0


@pytest.mark.parametrize('hounsfield', [-1000.0, -100.0, 0.0, 30.0, 300.0, 900.0, 1500.0])
def test_mixture_gives_back_what_the_ct_measured(hounsfield: float) -> None:
    """At 70 keV, by the renderer's own tables, a voxel attenuates as its Hounsfield units say."""
    share, density = mixture(np.array([hounsfield], np.float32))
    attenuation = float(density[0]) * xray.SOFT[3] + float(share[0]) * xray.BONE[3]
    assert attenuation / xray.SOFT[3] == pytest.approx(1.0 + hounsfield / 1000.0, abs=0.041)
    if hounsfield > 40.0 or hounsfield < 0.0:
        assert attenuation / xray.SOFT[3] == pytest.approx(1.0 + hounsfield / 1000.0, abs=0.002)


def test_a_ray_through_the_middle_meets_what_the_ct_holds(made: Imported) -> None:
    """Closed form: chords of the balls, mixed as ``mixture`` does; the surround takes part."""
    projection = Projection.perspective((1000.0, 1000.0), (50.0, 50.0), (101, 101))
    renderer = XrayRenderer(made.patient(), projection, Technique(), anatomy_step=1)
    for direction in (np.array([0.0, 1.0, 0.0]), np.array([0.2, 1.0, 0.1])):
        unit = direction / np.linalg.norm(direction)
        soft, bone = renderer.line_integrals(pose_along(MIDDLE - 0.5 * unit, direction))
        share, rest = (float(part[0]) for part in mixture(np.array([BONE_HU], np.float32)))
        assert bone[50, 50] == pytest.approx(2 * BONE * share, rel=0.05)
        assert soft[50, 50] == pytest.approx(2 * BONE * rest + 2 * (BODY - BONE) * 1.04, rel=0.03)


def test_no_edge_of_the_fine_voxels_shows(made: Imported) -> None:
    """Rays graze the faces of the box at right angles to the beam: no step there."""
    projection = Projection.perspective((2000.0, 2000.0), (100.0, 100.0), (201, 201))
    renderer = XrayRenderer(made.patient(), projection, Technique(), anatomy_step=1)
    soft, _ = renderer.line_integrals(pose_along(MIDDLE - (0.0, 1.0, 0.0), np.array([0.0, 1, 0])))
    x = (np.arange(201) - 100.0) / 2000.0
    chord = 2 * 1.04 * np.sqrt(np.maximum(BODY**2 - x**2, 0.0))
    row = 0.5 * (soft[100] + soft[:, 100])
    near = (np.abs(x) > 0.042) & (np.abs(x) < 0.050)
    assert np.abs(row[near] - chord[near]).max() < 0.004


def test_kept_and_read_again_it_is_the_same_patient(made: Imported, tmp_path: Path) -> None:
    path = save_imported(tmp_path / 'someone', made, {'ct': 'phantom'})
    again = build_patient(str(path), 5)
    first = made.patient()
    for name in ('labels', 'mineral', 'bone', 'sheets', 'density'):
        assert np.array_equal(getattr(again, name), getattr(first, name))
    points = MIDDLE + np.random.default_rng(3).uniform(-0.04, 0.04, (50, 3))
    structures = build_structures(str(path), 0)
    for name in ('ball', 'vessel', 'bone', 'skin'):
        assert np.allclose(structures[name].at(points), first.distance(name, points), atol=6e-6)
    (tmp_path / 'someone' / 'patient.npz').write_bytes(b'PK nothing')
    with pytest.raises(AnatomyError, match='import the patient again'):
        load_imported(path)


def test_a_procedure_placed_in_it_is_read_and_renders(made: Imported, tmp_path: Path) -> None:
    path = save_imported(tmp_path, made, {})
    target = MIDDLE + (0.0, BONE + 0.002, 0.0)
    like = load_procedure('hip_injection')
    procedure = placed(like, made.patient().structures, target, MIDDLE + (0.0, BODY, 0.0))
    file = tmp_path / 'mine.yaml'
    save_procedure(file, replace(procedure, region=path.name, avoid={'vessel': 0.002}))
    read = load_procedure(file)
    assert Path(read.region) == path.resolve()
    assert np.allclose(read.target, target)
    assert read.needle == like.needle
    assert read.fluoroscopy.primary_angle == pytest.approx(like.fluoroscopy.primary_angle)
    assert read.ultrasound.probe == like.ultrasound.probe
    assert read.planning.limits == pytest.approx(like.planning.limits)
    image = read.patient_T_ultrasound()
    skin = made.patient().distance('skin', image[:3, 3])
    assert abs(float(skin) + 0.001) < 0.0008
    # Seen from the path, the probe stands as it did.
    slice_ = np.linalg.inv(image) @ [*target, 1.0]
    assert abs(slice_[2]) < 0.001


def test_what_cannot_be_imported_says_what_to_do(tmp_path: Path) -> None:
    ct, labels = phantom()
    with pytest.raises(AnatomyError, match='not in the CT'):
        import_patient(ct, labels, RULES, MIDDLE + (0.5, 0.0, 0.0))
    with pytest.raises(AnatomyError, match='no structure spleen'):
        centre_of(labels, RULES, ('spleen',))
    with pytest.raises(AnatomyError, match='holds nothing of absent'):
        centre_of(labels, RULES, ('absent',))
    assert np.allclose(centre_of(labels, RULES, ()), MIDDLE, atol=0.0015)
    rules = tmp_path / 'rules.yaml'
    rules.write_text('structures: {a: {labels: [1], tissue: CHEESE}}')
    with pytest.raises(AnatomyError, match='CHEESE'):
        read_rules(rules)
    rules.write_text('structures: {a: {labels: [1], tissue: FAT}, b: {labels: [1], tissue: FAT}}')
    with pytest.raises(AnatomyError, match='only one structure'):
        read_rules(rules)


def test_rules_of_totalsegmentator_are_complete() -> None:
    from hybrid_guidance.resources import resource
    rules = read_rules(resource('config/labels') / 'totalsegmentator.yaml')
    assert rules['vertebrae_L5'] == LabelRule((27,), Tissue.CORTICAL)
    assert rules['aorta'] == LabelRule((52,), Tissue.BLOOD)
    assert sorted(label for rule in rules.values() for label in rule.labels) == list(range(1, 118))


def test_density_level_of_water_is_the_tables_own(made: Imported) -> None:
    """Muscle of 40 Hounsfield units is as dense as the digital patients' own."""
    x, y, z = np.rint((MIDDLE + (0.0, 0.025, 0.0) - made.grid.origin) / 0.001).astype(int)
    assert made.volumes['density'][z, y, x] == round(1.04 * WATER_LEVEL)
