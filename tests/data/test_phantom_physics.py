"""Contrasts of the phantom follow from its signal equations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data import phantom_physics as physics


@pytest.fixture(scope="module")
def head() -> phantom.Head:
    return phantom.head(4)


def means(head: phantom.Head, image: np.ndarray) -> dict[str, float]:
    """Mean value of each pure tissue: least squares of the image on the tissue fractions."""
    shares = head.fractions.reshape(len(head.tissues), -1).astype(np.float64)
    present = shares.max(axis=1) > 0.5
    values = np.linalg.lstsq(shares[present].T, image.reshape(-1).astype(np.float64), rcond=None)[0]
    return dict(zip(np.array(head.tissues)[present], values, strict=True))


def test_spin_echo_is_a_quarter_after_one_half_life_of_each_kind():
    tissue = physics.Tissue(t1_ms=1000, t2_ms=100, t2star_ms=1, proton_density=0.8, hu=0)
    found = physics.spin_echo(tissue, tr_ms=1000 * np.log(2), te_ms=100 * np.log(2))
    assert found == pytest.approx(0.8 * 0.25)


def test_gradient_echo_at_90_degrees_is_saturation_recovery():
    tissue = physics.Tissue(t1_ms=500, t2_ms=1, t2star_ms=50, proton_density=1, hu=0)
    found = physics.spoiled_gradient_echo(tissue, tr_ms=500 * np.log(2), te_ms=50 * np.log(2), flip_deg=90)
    assert found == pytest.approx(0.25)


def test_gradient_echo_is_strongest_at_the_ernst_angle():
    tissue = physics.TISSUE_TABLE["wm"]
    ernst = np.rad2deg(np.arccos(np.exp(-18 / tissue.t1_ms)))
    signal = [
        physics.spoiled_gradient_echo(tissue, tr_ms=18, te_ms=5, flip_deg=ernst + d) for d in (-2, 0, 2)
    ]
    assert signal[1] == max(signal)


def test_t1w_order_is_white_grey_csf_and_bone_and_air_are_dark(head):
    found = means(head, phantom.mr_image(head, "T1w", noise=0, bias=0)[0])
    assert found["fat"] > found["wm"] > found["deep_gm"] > found["gm"] > found["csf"]
    assert max(found["air"], found["cortical_bone"]) < 0.1 * found["wm"]
    assert found["diploe"] < 0.6 * found["fat"]


def test_t2w_order_is_csf_grey_white_and_bone_and_air_are_dark(head):
    found = means(head, phantom.mr_image(head, "T2w", noise=0, bias=0)[0])
    assert found["csf"] > 1.5 * found["gm"] > 1.5 * found["wm"] > 0
    assert max(found["air"], found["cortical_bone"]) < 0.1 * found["wm"]


def test_t2w_is_no_monotone_remapping_of_t1w(head):
    t1, t2 = (phantom.mr_image(head, sequence, noise=0, bias=0)[0] for sequence in ("T1w", "T2w"))
    brain = phantom.tissue_labels(head) > 0
    whole = phantom.attenuation_labels(head) > 0
    assert stats.spearmanr(t1[brain], t2[brain]).statistic < 0  # falling within the brain ...
    rising = stats.spearmanr(t1[whole & ~brain], t2[whole & ~brain]).statistic
    assert rising > 0.3  # ... and rising outside it: one curve cannot do both
    assert abs(stats.spearmanr(t1[whole], t2[whole]).statistic) < 0.8


def test_ct_values_of_tissues_lie_in_their_published_ranges(head):
    spacing = np.diag(head.affine)[:3]
    (ct, affine), _ = phantom.ct_image(
        head, shape=head.shape, spacing_mm=spacing, noise_hu=0, misalignment=False
    )
    np.testing.assert_allclose(affine, head.affine)
    found = means(head, ct)
    ranges = {
        "air": (-1001, -995), "fat": (-110, -80), "skin_muscle": (30, 60), "csf": (0, 16), "wm": (20, 35),
        "gm": (32, 45), "diploe": (300, 900), "cortical_bone": (1000, 1900),
    }  # fmt: skip
    for tissue, (low, high) in ranges.items():
        assert low <= found[tissue] <= high, tissue
    assert found["gm"] > found["wm"]


def test_diploe_with_its_trabeculae_is_between_marrow_and_cortical_bone():
    head = phantom.head(4, shape=(96, 112, 40))
    shares = dict(zip(head.tissues, head.fractions.astype(np.float32), strict=True))
    spongy = (shares["diploe"] > 0.3) & (shares["diploe"] + shares["cortical_bone"] > 0.98)
    hu = 500 * shares["diploe"][spongy] + 1500 * shares["cortical_bone"][spongy]
    assert 500 < np.median(hu) < 1000


def test_bolus_lowers_the_signal_and_it_recovers_most_in_grey_matter():
    head = phantom.head(4, shape=(48, 56, 20))
    series, affine = phantom.dsc_series(head, timepoints=40, arrival_s=15.0, noise=0, bias=0)
    assert series.shape == (48, 56, 20, 40)
    np.testing.assert_allclose(affine, head.affine)
    times = (0, 5, 9, *range(12, 20), 39)  # the bolus comes at time point 10
    curves = [means(head, series[..., t]) for t in times]
    lost = {
        tissue: 1 - np.array([c[tissue] for c in curves]) / curves[0][tissue]
        for tissue in ("gm", "wm", "fat", "csf", "skin_muscle")
    }
    for tissue in ("gm", "wm"):
        assert np.abs(lost[tissue][:3]).max() < 1e-3  # steady before
        assert lost[tissue][-1] < 0.5 * lost[tissue].max()  # recovers
    assert lost["gm"].max() == pytest.approx(0.40, abs=0.02)  # the stated dose
    assert 0.05 < lost["wm"].max() < lost["gm"].max() / 1.5
    assert max(np.abs(lost[tissue]).max() for tissue in ("fat", "csf")) < 0.01
    assert lost["skin_muscle"].max() < 0.05


def test_area_under_the_bolus_is_proportional_to_blood_volume():
    times = np.arange(0, 120, 0.5)
    area = physics.bolus_r2star(times, 10.0).sum(axis=1)
    names = list(physics.TISSUE_TABLE)
    ratio = area[names.index("gm")] / area[names.index("wm")]
    assert ratio == pytest.approx(4.0 / 2.0, rel=0.02)  # CBV 4 % against 2 %


def test_rician_noise_of_nothing_has_the_rayleigh_mean():
    noise = physics.rician(np.zeros(200_000, np.float32), 3.0, np.random.default_rng(0))
    assert noise.min() >= 0
    assert noise.mean() == pytest.approx(3.0 * np.sqrt(np.pi / 2), rel=0.01)


def test_noise_level_is_the_stated_share_of_white_matter(head):
    image = phantom.mr_image(head, "T1w", noise=0.05, bias=0)[0]
    white = physics.tissue_signals("T1w")[head.tissues.index("wm")]
    outside = head.fractions[0] > 0.999
    outside[:, :, :30] = False  # leave the airways out
    assert image[outside].mean() == pytest.approx(0.05 * white * np.sqrt(np.pi / 2), rel=0.15)


def test_bias_field_is_smooth_and_stays_within_its_strength():
    field = physics.bias_field((40, 50, 30), np.random.default_rng(2), 0.2)
    assert np.abs(np.log(field)).max() == pytest.approx(0.2, rel=1e-4)
    assert max(np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)) < 0.05
    assert (physics.bias_field((4, 4, 4), np.random.default_rng(0), 0.0) == 1).all()


def test_ct_noise_has_the_stated_deviation(head):
    quiet, loud = (phantom.ct_image(head, shape=(60, 60, 40), noise_hu=n)[0][0] for n in (0.0, 12.0))
    inside = quiet > -900  # air is clipped at -1024 HU
    assert (loud - quiet)[inside].std() == pytest.approx(12.0, rel=0.05)
    assert loud.min() >= -1024


@pytest.mark.parametrize("bad", [{"noise": -0.1}, {"bias": -1.0}, {"noise": float("nan")}, {"seed": -1}])
def test_bad_image_settings_are_refused(head, bad):
    with pytest.raises(InputError, match="from 0"):
        phantom.mr_image(head, "T1w", **bad)


def test_unknown_sequences_and_bolus_settings_are_refused(head):
    with pytest.raises(InputError, match="T1w, T2w"):
        phantom.mr_image(head, "FLAIR")
    with pytest.raises(InputError, match="timepoints"):
        phantom.dsc_series(head, timepoints=0)
    with pytest.raises(InputError, match="arrival_s"):
        phantom.dsc_series(head, arrival_s=-1.0)
    with pytest.raises(InputError, match="noise_hu"):
        phantom.ct_image(head, noise_hu=-1.0)
