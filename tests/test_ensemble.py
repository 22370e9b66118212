from __future__ import annotations

import itertools
import logging
import math
import os
import tracemalloc

import keras
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import mrseg
from mrseg._checks import InputError
from mrseg.cli import main
from mrseg.data import phantom
from mrseg.data.cases import Case, write_cases
from mrseg.data.io import read_labels, read_sidecar, write_labels, write_volume
from mrseg.data.patches import PLANES, Sampling
from mrseg.data.preprocessing import Preprocessing
from mrseg.evaluation import evaluate
from mrseg.passes import Inference
from mrseg.postprocess import Postprocessing
from mrseg.prediction import predict_cohort
from mrseg.segmenter import Segmenter, subject_digest, trained_on

NAMES = ("background", "bright")
#: Axes of the file: to the front, to the top, to the left.
TURNED = np.array([[0, 0, -1.0, 9], [1.0, 0, 0, -4], [0, 2.0, 0, 7], [0, 0, 0, 1]])


def linear(share, patch=(8, 8, 8)):
    """Probability of class 1: ``share`` of the image's value, voxel by voxel."""
    image = keras.Input((*patch, 1))
    conv = keras.layers.Conv3D(2, 1)
    model = keras.Model(image, conv(image))
    conv.set_weights([np.array([-share, share]).reshape(1, 1, 1, 1, 2), np.array([1.0, 0.0])])
    return model


def box_blur(patch):
    """Probability of class 1: the mean of a pixel and its eight neighbours in the slice, 0 outside."""
    image = keras.Input((*(size for size in patch if size != 1), 1))
    conv = keras.layers.Conv2D(1, 3, padding="same", use_bias=False)
    mean = conv(image)
    conv.set_weights([np.full((3, 3, 1, 1), 1 / 9)])
    return keras.Model(image, keras.layers.Concatenate()([1 - mean, mean]))


def lopsided():
    """Probability of class 1: a voxel's left neighbour, so that the mirrored pass says something else."""
    image = keras.Input((8, 8, 8, 1))
    conv = keras.layers.Conv3D(1, 3, padding="same", use_bias=False)
    left = conv(image)
    kernel = np.zeros((3, 3, 3, 1, 1))
    kernel[0, 1, 1] = 1
    conv.set_weights([kernel])
    return keras.Model(image, keras.layers.Concatenate()([1 - left, left]))


def segmenter(model=None, **changes):
    parts = {
        "model": model or linear(1.0),
        "preprocessing": Preprocessing(normalization="min_max"),
        "sampling": Sampling((8, 8, 8)),
        "class_names": NAMES,
        "sequence": "T2w",
    }
    return Segmenter(**{**parts, **changes})


def scan(shape=(13, 11, 6), seed=0):
    """Values from 0 to 1 exactly, which min_max leaves as they are."""
    image = np.random.default_rng(seed).random(shape).astype(np.float32)
    image[0, 0, 0], image[1, 1, 1] = 0, 1
    return image, TURNED


def test_the_label_is_that_of_the_mean_of_two_networks_known_by_hand():
    """x and x/2 have the mean 3x/4, above a half where x > 2/3: neither network alone says so."""
    volume = scan()
    both = mrseg.Ensemble([segmenter(linear(1.0)), segmenter(linear(0.5))])
    maps = both.predict(volume, inference=Inference(uncertainty="entropy"), probabilities=True)
    p = 0.75 * volume[0].astype(float)
    np.testing.assert_allclose(maps.probabilities[..., 1], p, atol=1e-6)
    np.testing.assert_allclose(maps.probabilities[..., 0], 1 - p, atol=1e-6)
    np.testing.assert_array_equal(maps.labels, volume[0] > 2 / 3)
    np.testing.assert_array_equal(maps.affine, TURNED)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -(np.where(p > 0, p * np.log2(p), 0) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(maps.uncertainty, bits, atol=1e-5)
    image = both(volume)
    np.testing.assert_array_equal(np.asarray(image.dataobj), maps.labels)
    np.testing.assert_array_equal(image.affine, TURNED)
    np.testing.assert_array_equal(both.probabilities(volume), maps.probabilities)


def test_two_identical_members_are_one_member_to_the_bit(tmp_path):
    """The mean of a number and itself is that number; so it is in a temporary file."""
    volume, one = scan(), segmenter(lopsided())
    inference = Inference(uncertainty="entropy", mirror_axes=(0,))
    alone = one.predict(volume, inference=inference, probabilities=True)
    for scratch in (None, tmp_path):
        twice = mrseg.Ensemble([one, one]).predict(
            volume, inference=inference, probabilities=True, scratch=scratch
        )
        for name in ("labels", "affine", "probabilities", "uncertainty"):
            np.testing.assert_array_equal(getattr(twice, name), getattr(alone, name))
    assert list(tmp_path.iterdir()) == []
    plain = mrseg.Ensemble([one, one]).predict(volume)
    assert plain.probabilities is None and plain.uncertainty is None


def test_the_order_of_the_members_does_not_matter():
    volume = scan()
    three = [segmenter(linear(1.0)), segmenter(linear(0.3)), segmenter(lopsided())]
    answers = [mrseg.Ensemble(order).probabilities(volume) for order in itertools.permutations(three)]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=3e-7)


def test_coronal_axial_and_sagittal_slices_of_a_turned_scan_meet_voxel_by_voxel():
    """Each view blurs within its own slices; SciPy does so on the file's axes, whichever run where."""
    volume = scan((9, 10, 7))
    members = [
        segmenter(box_blur(sampling.patch_shape), sampling=sampling)
        for sampling in (Sampling((16, 16), plane=plane) for plane in PLANES)
    ]
    of_file = {"sagittal": 2, "coronal": 0, "axial": 1}  # TURNED
    blurred = [
        ndimage.uniform_filter(
            volume[0].astype(float),
            [1 if axis == of_file[plane] else 3 for axis in range(3)],
            mode="constant",
        )
        for plane in PLANES
    ]
    mean = np.mean(blurred, axis=0)
    found = mrseg.Ensemble(members).predict(volume, probabilities=True)
    np.testing.assert_allclose(found.probabilities[..., 1], mean, atol=1e-5)
    clear = np.abs(mean - 0.5) > 1e-4
    np.testing.assert_array_equal(found.labels[clear], (mean > 0.5)[clear])
    assert 0 < found.labels.mean() < 1


@pytest.mark.parametrize(
    "inference",
    [
        Inference(),
        Inference(mirror_axes=(0, 1), overlap=0.25, blending="constant"),
        Inference(extent="whole"),
        Inference(batch_size=1),
    ],
    ids=str,
)
def test_every_member_answers_as_it_does_alone_whatever_its_grid_and_however_it_is_asked(inference):
    members = [
        segmenter(lopsided(), crf=True),
        segmenter(
            lopsided(), preprocessing=Preprocessing("spacing", (2.0, 2.0, 2.0), normalization="min_max")
        ),
        segmenter(box_blur((8, 1, 8)), sampling=Sampling((8, 1, 8), overlap=0.0)),
    ]
    volume = scan()
    alone = [
        member.predict(volume, inference=inference, probabilities=True).probabilities for member in members
    ]
    found = mrseg.Ensemble(members).predict(volume, inference=inference, probabilities=True)
    np.testing.assert_allclose(found.probabilities, np.mean(alone, axis=0), atol=3e-7)


def sure_of_bright(probability):
    """The same probability of class 1 everywhere."""
    image = keras.Input((8, 8, 8, 1))
    conv = keras.layers.Conv3D(2, 1)
    model = keras.Model(image, conv(image))
    conv.set_weights([np.zeros((1, 1, 1, 1, 2)), np.array([1 - probability, probability])])
    return model


def test_outside_its_grid_a_member_says_class_0_and_counts_as_much_as_the_others():
    """Inside the box (0.9 + 0.8) / 2; outside it, where one network sees nothing, (0 + 0.8) / 2."""
    image = np.zeros((16, 12, 10), np.float32)
    inside = (slice(4, 12), slice(3, 9), slice(2, 8))
    image[inside] = np.random.default_rng(0).uniform(1, 5, (8, 6, 6))
    cut = segmenter(sure_of_bright(0.9), preprocessing=Preprocessing("foreground", normalization="min_max"))
    found = mrseg.Ensemble([cut, segmenter(sure_of_bright(0.8))]).predict((image, TURNED), probabilities=True)
    wanted = np.full(image.shape, 0.4)
    wanted[inside] = 0.85
    np.testing.assert_allclose(found.probabilities[..., 1], wanted, atol=1e-6)
    np.testing.assert_array_equal(found.labels, image > 0)


def test_the_clean_up_that_members_share_is_done_once_on_the_mean():
    """Two bright pieces; the larger is one for the mean alone: no member's own map holds all of it."""
    image = np.zeros((12, 9, 8), np.float32)
    image[1:5, 2:6, 2:6] = 0.8
    image[8:10, 2:4, 2:4] = 1.0
    steps = Postprocessing(largest_component=(1,), replacement="background")
    both = mrseg.Ensemble([segmenter(linear(share), postprocessing=steps) for share in (1.0, 0.5)])
    maps = both.predict((image, TURNED), probabilities=True)
    np.testing.assert_array_equal(maps.labels, image == np.float32(0.8))
    assert maps.probabilities[8, 2, 2, 1] == 0.75  # before the clean-up
    assert both.postprocessing == steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ("background", "dark")}, "same class_names. Received: .*bright.*member 1.*dark.*2"),
        ({"sequence": "T1w"}, "same sequence. Received: 'T2w' .*'T1w'.* same MR sequence"),
        ({"postprocessing": Postprocessing(largest_foreground=True)}, "same postprocessing.*one clean-up"),
    ],
)
def test_members_that_disagree_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        mrseg.Ensemble([segmenter(), segmenter(**changes)])


@pytest.mark.parametrize(
    ("members", "received"),
    [([], "0"), (["one"], "1"), (["one", "runs/t1/segmenter"], "str"), (["one", "ensemble"], "Ensemble")],
)
def test_an_ensemble_is_of_two_or_more_segmenters(members, received):
    one = segmenter()
    named = {"one": one, "ensemble": mrseg.Ensemble([one, one])}
    with pytest.raises(InputError, match=f"two or more members.*Received: {received}"):
        mrseg.Ensemble([named.get(member, member) for member in members])


@pytest.mark.parametrize(
    "inference",
    [
        Inference(uncertainty="mirror", mirror_axes=(0,)),
        Inference(uncertainty="dropout", dropout_samples=2),
    ],
    ids=lambda inference: inference.uncertainty,
)
def test_variances_over_the_passes_of_one_network_are_refused_at_every_door(inference):
    both = mrseg.Ensemble([segmenter(), segmenter()])
    native = (scan()[0].shape, TURNED)
    for asked in (
        lambda: both.check(inference),
        lambda: both.predict(scan(), inference=inference),
        lambda: both.memory_mb(native, inference=inference),
    ):
        with pytest.raises(InputError, match=r"entropy of its mean.*--uncertainty entropy"):
            asked()


def test_what_a_member_refuses_is_told_with_its_number():
    image = keras.Input((8, 8, 8, 1))
    dropped = keras.layers.Dropout(0.5)(image) * 0.5  # 0 or the value itself
    both = mrseg.Ensemble(
        [segmenter(keras.Model(image, keras.layers.Concatenate()([1 - dropped, dropped]))), segmenter()]
    )
    both.check(Inference(mirror_axes=(0,), uncertainty="entropy"))
    for refused in (both.check, lambda inference: both.predict(scan(), inference=inference)):
        with pytest.raises(InputError, match="Member 2 of 2: .*network with dropout"):
            refused(Inference(dropout_samples=2))


def test_a_prediction_takes_no_more_memory_than_stated_and_not_much_less(caplog):
    volume = scan((96, 64, 80))
    sampling = Sampling((32, 32, 16))
    both = mrseg.Ensemble(
        [segmenter(linear(share, sampling.patch_shape), sampling=sampling) for share in (1.0, 0.5)]
    )
    inference = Inference(uncertainty="entropy")
    both.predict(scan((32, 32, 16)))  # compiled
    tracemalloc.start()
    with caplog.at_level(logging.INFO, logger="mrseg.ensemble"):
        both.predict(volume, inference=inference)
    peak = (tracemalloc.get_traced_memory()[1] + volume[0].nbytes) / 1e6
    tracemalloc.stop()
    native = (volume[0].shape, TURNED)
    stated = both.memory_mb(native, inference=inference)
    assert stated / 3 < peak < stated
    assert f"2 members: at most {stated:.0f} MB" in caplog.text
    twice = 2 * 4 * 2 * math.prod(native[0]) / 1e6
    without = both.memory_mb(native, inference=inference, probabilities=False)
    assert without + twice / 2 <= stated <= without + twice  # the preparation may need more than a member


def test_the_digest_is_of_the_members_in_their_order_and_of_nothing_else(tmp_path):
    a, b, c = (segmenter(linear(share)) for share in (1.0, 0.5, 0.25))
    digests = {
        mrseg.Ensemble(members).digest for members in ([a, b], [b, a], [a, c], [a, b, c], [a, a], [b, b])
    }
    assert len(digests | {a.digest, b.digest, c.digest}) == 9
    again = Segmenter.load(b.save(tmp_path / "b"))
    assert mrseg.Ensemble([a, again]).digest == mrseg.Ensemble([a, b]).digest


def test_engines_are_named_once_or_each():
    a, b = segmenter(), segmenter(engine="openvino")
    assert mrseg.Ensemble([a, a]).engine == "tensorflow"
    assert mrseg.Ensemble([a, b]).engine == "tensorflow, openvino"
    assert mrseg.Ensemble([a, b]).precision == "float32"


def bids_scan(folder, subject, seed=0):
    path = folder / f"sub-{subject}/anat/sub-{subject}_T2w.nii.gz"
    path.parent.mkdir(parents=True)
    volume = scan((9, 8, 7), seed)
    write_volume(path, *volume)
    return volume[0]


def statuses(rows):
    return [row["status"] for row in rows]


def test_a_cohort_is_done_again_for_another_member_and_otherwise_left_as_it_is(tmp_path):
    image = bids_scan(tmp_path / "raw", "01")
    a, b, c = (segmenter(linear(share), provenance={"share": share}) for share in (1.0, 0.5, 0.4))
    out = tmp_path / "out"
    both = mrseg.Ensemble([a, b])
    assert statuses(predict_cohort(both, tmp_path / "raw", out, probabilities=True)) == ["written"]
    file = out / "sub-01/anat/sub-01_desc-mrseg_dseg.nii.gz"
    np.testing.assert_array_equal(read_labels(file)[0], image > 2 / 3)
    origin = read_sidecar(file)["provenance"]
    assert origin["segmenter"] == {"members": [{"share": 1.0}, {"share": 0.5}]}
    assert origin["segmenter_digest"] == both.digest
    mean = nib.load(file.with_name("sub-01_desc-mrseg_probseg.nii.gz")).get_fdata()[..., 1]
    np.testing.assert_allclose(mean, 0.75 * image, atol=1e-6)
    os.utime(file, (1, 1))
    again = mrseg.Ensemble([a, Segmenter.load(b.save(tmp_path / "b"))])
    assert statuses(predict_cohort(again, tmp_path / "raw", out)) == ["there already"]
    assert file.stat().st_mtime == 1
    for other in (mrseg.Ensemble([a, c]), mrseg.Ensemble([a, b, c]), a):
        assert statuses(predict_cohort(other, tmp_path / "raw", out)) == ["written"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_load_every_member_once_and_write_the_very_files(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    for number, subject in enumerate(("01", "02")):
        bids_scan(tmp_path / "raw", subject, number)
    members = [segmenter(linear(1.0), batch_size=3), segmenter(linear(0.5), engine="openvino", threads=1)]
    both = mrseg.Ensemble(members)
    predict_cohort(both, tmp_path / "raw", tmp_path / "here")
    loaded, load = [], Segmenter.load

    def recorded(folder, **engine):
        loaded.append((folder, load(folder, **engine)))
        return loaded[-1][1]

    monkeypatch.setattr(Segmenter, "load", recorded)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as one:
        rows = predict_cohort(both, tmp_path / "raw", tmp_path / "there", scheduler=one.scheduler_address)
    assert statuses(rows) == ["written", "written"]
    assert [(made.engine, made.threads, made.batch_size) for _, made in loaded] == [
        ("tensorflow", None, 3), ("openvino", 1, 2),
    ]  # fmt: skip
    assert not any(folder.exists() for folder, _ in loaded)
    here, there = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")
         if file.is_file()}
        for name in ("here", "there")
    )  # fmt: skip
    assert here == there


def case(folder, subject, split="test"):
    volume = scan((9, 8, 7))
    write_volume(folder / f"{subject}.nii.gz", *volume)
    truth = (volume[0] > 2 / 3).astype(np.uint8)
    write_labels(folder / f"{subject}_l.nii.gz", truth, TURNED, NAMES, {})
    return Case(
        subject, {"T2w": folder / f"{subject}.nii.gz"}, None, {"T2w": folder / f"{subject}_l.nii.gz"}, split
    )


def dice_of_bright(rows):
    (value,) = [row["value"] for row in rows if (row["class"], row["metric"]) == ("bright", "dice")]
    return value


def test_the_mean_is_scored_and_not_a_member(tmp_path):
    members = [segmenter(linear(share)) for share in (1.0, 0.5)]
    assert dice_of_bright(evaluate(mrseg.Ensemble(members), [case(tmp_path, "s1")])) == 1.0
    assert all(dice_of_bright(evaluate(member, [case(tmp_path, "s1")])) < 1 for member in members)


def test_subjects_that_any_member_or_its_source_has_seen_are_refused(tmp_path):
    cases = [case(tmp_path, "s1"), case(tmp_path, "s2"), case(tmp_path, "s3")]
    seen = [{"subject_digests": [subject_digest(one)]} for one in cases]
    both = mrseg.Ensemble(
        [segmenter(provenance=seen[0]), segmenter(provenance={"subject_digests": [], "source": seen[2]})]
    )
    assert trained_on(both, cases) == ["s1", "s3"]
    for one, refused in zip(cases, (True, False, True), strict=True):
        if refused:
            with pytest.raises(InputError, match=f"not trained on.*{one.subject}"):
                evaluate(both, [one])
        assert evaluate(both, [one], seen_too=True)


def test_labels_of_another_sequence_come_from_the_mean(tmp_path):
    """Scans that lie on each other: what the ensemble says of one is the label of the other."""
    head = phantom.head(6, shape=(24, 24, 20))
    images = {sequence: tmp_path / f"{sequence}.nii.gz" for sequence in ("T1w", "T2w")}
    for sequence, path in images.items():
        write_volume(path, *phantom.mr_image(head, sequence))
    both = mrseg.Ensemble([segmenter(linear(share), sequence="T1w") for share in (1.0, 0.5)])
    (made,) = mrseg.pseudo_label(
        both, [Case("s1", images)], tmp_path / "out", sequence="T2w", labels_from="T1w", progress=False
    )
    labels = read_labels(made.labels["T2w"])[0]
    judged = labels != 255
    np.testing.assert_array_equal(labels[judged], both.predict(images["T1w"]).labels[judged])
    assert 0 < labels[judged].mean() < 1 and judged.mean() > 0.9


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Two segmenters: one in a folder, the other known by its name."""
    monkeypatch.setenv("MRSEG_WEIGHTS", str(tmp_path / "store"))
    first = segmenter(linear(1.0)).save(tmp_path / "first")
    seen = {"subject_digests": [subject_digest(Case("seen", {}))]}
    segmenter(linear(0.5), provenance=seen).save(tmp_path / "store/second")
    return [str(first), "second"]


def test_the_commands_predict_and_resume_with_several(saved, tmp_path, capsys):
    image = bids_scan(tmp_path / "raw", "01")
    given = ["predict", "--segmenter", *saved]
    scan_file, out = tmp_path / "raw/sub-01/anat/sub-01_T2w.nii.gz", tmp_path / "t2_dseg.nii.gz"
    assert main([*given, "--input", str(scan_file), "--output", str(out), "--uncertainty", "entropy"]) == 0
    np.testing.assert_array_equal(read_labels(out)[0], image > 2 / 3)
    assert (tmp_path / "t2_desc-uncertainty_entropy.nii.gz").exists()
    cohort = ["--data", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]
    for told in ("1 written", "1 there already"):
        assert main([*given, *cohort]) == 0
        assert told in capsys.readouterr().out
    assert main([*given, saved[0], *cohort]) == 0
    assert "1 written" in capsys.readouterr().out
    assert main([*given, *cohort, "--uncertainty", "mirror"]) == 2
    assert "entropy of its mean" in capsys.readouterr().err


def test_the_command_evaluates_several_and_guards_what_each_has_seen(saved, tmp_path, capsys):
    write_cases([case(tmp_path, "new"), case(tmp_path, "seen", "val")], tmp_path / "cohort.tsv")
    given = ["evaluate", "--segmenter", *saved, "--data", str(tmp_path / "cohort.tsv")]
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    for file in ("scores.csv", "slices.csv", "report.html", "tables/layout.tex"):
        assert (tmp_path / "out" / file).exists()
    assert "T2w,bright,dice,1.0" in (tmp_path / "out/scores.csv").read_text(encoding="utf-8")
    write_cases([case(tmp_path, "new"), case(tmp_path, "seen")], tmp_path / "cohort.tsv")
    assert main([*given, "--output", str(tmp_path / "again")]) == 2
    assert "not trained on. Received: seen" in capsys.readouterr().err
    assert main([*given, "--output", str(tmp_path / "again"), "--seen-too"]) == 0
    page = (tmp_path / "again/report.html").read_text(encoding="utf-8")
    assert "Of the 2 subjects scored, 1 were trained on" in page
