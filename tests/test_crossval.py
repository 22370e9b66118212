"""Cross-validation: folds by subject, grids decided on validation subjects, runs that go on when stopped."""

import dataclasses
import itertools
import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg import claims, configuration, crossval, experiments
from mrseg._checks import InputError
from mrseg.crossval import cross_validate
from mrseg.data.cases import Case, read_cases, write_cases
from mrseg.data.io import write_labels, write_volume
from mrseg.dealing import check_classes, folds, subset
from mrseg.experiments import Experiment, overrides_of
from mrseg.recipes.loader import load_recipe
from mrseg.segmenter import subject_digest
from mrseg.summaries import read_rows
from mrseg.training import EarlyStopping

NAMES = ["air", "soft", "bone"]
RECIPE = """
name: tiny
title: a tiny network on tiny slices
paper: phantom
command: mrseg crossval tiny.yaml
sequence: T2w
class_names: [air, soft, bone]
network: {builder: unet, arguments: {filters: 2, head: softmax}}
sampling: {patch_shape: [16, 16, 1], overlap: 0.0}
loss: {name: dice}
training: {epochs: 2, batch_size: 4, learning_rate: 5.0e-3}
"""


def case(subject, split="train", sequences=("T2w",), labelled=None):
    images = {name: Path(f"{subject}_{name}.nii") for name in sequences}
    labels = {name: Path(f"{subject}_{name}_dseg.nii") for name in (labelled or sequences)}
    return Case(subject, images, None, labels, split)


def subjects(cases, split):
    return {c.subject for c in cases if c.split == split}


@settings(max_examples=40, deadline=None)
@given(people=st.integers(2, 14), data=st.data(), seed=st.integers(0, 5))
def test_every_subject_is_validated_once_and_folds_differ_by_one_at_most(people, data, seed):
    count = data.draw(st.integers(2, people))
    cases = [case(f"s{i}", ("train", "val")[i % 2]) for i in range(people)]
    cases += [case("t", "test"), case("other", sequences=("T1w",)), case("unlabelled", labelled=("none",))]
    dealt = folds(cases, count, sequence="T2w", seed=seed)
    held = [subjects(fold, "val") for fold in dealt]
    assert sorted(itertools.chain(*held)) == sorted(f"s{i}" for i in range(people))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for fold, aside in zip(dealt, held, strict=True):
        assert subjects(fold, "test") == {"t"}
        assert subjects(fold, "train") == {f"s{i}" for i in range(people)} - aside | {"other", "unlabelled"}
    assert folds(cases[::-1], count, sequence="T2w", seed=seed)[0][::-1] == dealt[0]


def test_cases_of_one_subject_go_together():
    cases = [case(name, sequences=("T2w",)) for name in "aabbcc"]
    for fold in folds(cases, 3, sequence="T2w"):
        assert not subjects(fold, "val") & subjects(fold, "train")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_folds_without_a_subject_are_refused(count):
    with pytest.raises(InputError, match=f"{count} folds of 3 subjects"):
        folds([case("a"), case("b"), case("c"), case("t", "test")], count, sequence="T2w")


def test_a_smaller_number_of_subjects_lies_in_a_larger_one():
    cases = [case(f"s{i}", sequences=("T1w", "T2w")) for i in range(6)] + [
        case("v", "val"),
        case("t", "test"),
    ]
    kept = [
        {c.subject for c in subset(cases, count, sequence="T2w") if c.split == "train" and "T2w" in c.images}
        for count in (1, 3, 6)
    ]
    assert list(map(len, kept)) == [1, 3, 6] and kept[0] < kept[1] < kept[2]
    rest = subset(cases, 1, sequence="T2w")
    assert sum("T1w" in c.images for c in rest) == 6  # their other sequence still trains
    assert subjects(rest, "val") == {"v"} and subjects(rest, "test") == {"t"}
    with pytest.raises(InputError, match="7 of 6"):
        subset(cases, 7, sequence="T2w")


def test_a_fold_without_a_class_is_named(tmp_path):
    cases = cohort(tmp_path, bone=[0, 1])
    dealt = folds(cases, 3, sequence="T2w", seed=0)
    with pytest.raises(InputError, match=r"no bone in the val subjects of fold \d"):
        check_classes(dealt, "T2w", NAMES)
    check_classes(folds(cohort(tmp_path / "all"), 3, sequence="T2w"), "T2w", NAMES)


@pytest.mark.parametrize("value", [1.0e-5, 3, True, None, "1e-3", "T2w", [2, 4], {"a": [1.5]}])
def test_a_value_reaches_the_recipe_as_what_it_is(value):
    key, _, text = overrides_of({"training.learning_rate": value})[0].partition("=")
    page = {}
    configuration.override(page, f"{key}={text}")
    assert page == {"training": {"learning_rate": value}}
    assert type(page["training"]["learning_rate"]) is type(value)


def test_a_grid_is_every_combination():
    grid = {"training.learning_rate": [1.0, 2.0], "training.batch_size": [3, 4]}
    points = Experiment("a", "x", grid=grid).points
    assert [tuple(p.values()) for p in points] == [(1.0, 3), (1.0, 4), (2.0, 3), (2.0, 4)]
    assert Experiment("a", "x").points == ({},)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grid": {"training.epochs": []}}, "a list of values"),
        ({"grid": {"training.epochs": 3}}, "a list of values"),
        ({"grid": {"training.epochs": [1]}, "folded": False}, "validation subjects of a fold"),
        ({"subjects": ()}, "different numbers"),
        ({"subjects": (2, 2)}, "different numbers"),
        ({"subjects": (-1,)}, "different numbers"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Experiment("a", "x", **wrong)


def waves(*named, given=False):
    return [[e.name for e in wave] for wave in experiments.in_waves(named, given)]


def test_sources_come_before_what_starts_from_them():
    c, b, a = Experiment("c", "x", source="b"), Experiment("b", "x", source="a"), Experiment("a", "x")
    other = Experiment("d", "x", source="given")
    assert waves(c, b, a) == [["a"], ["b"], ["c"]]
    assert waves(c, other, a, b, given=True) == [["d", "a"], ["b"], ["c"]]
    with pytest.raises(InputError, match="c from b, which has a network for every fold"):
        waves(b, dataclasses.replace(c, folded=False), a)
    with pytest.raises(InputError, match="no circle.*b, c"):
        waves(dataclasses.replace(b, source="c"), c)
    with pytest.raises(InputError, match="source of c"):
        waves(c)
    with pytest.raises(InputError, match="name of its own.*a b"):
        waves(Experiment("a b", "x"), Experiment("a/b", "x"))


def cohort(folder, bone=range(5)):
    """Five training subjects and a test subject: a bright square of bone in soft tissue in air."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(6):
        labels = np.zeros((16, 16, 4), np.uint8)
        labels[3:13, 2 + number % 3 : 13] = 1
        if number in bone or number == 5:
            labels[6:9, 6:10] = 2
        image = (labels * 100.0 + rng.normal(0, 10, labels.shape) + 20).astype(np.float32)
        stem = folder / f"s{number}"
        write_volume(stem.with_name(f"s{number}_T2w.nii.gz"), image, np.eye(4))
        write_labels(stem.with_name(f"s{number}_dseg.nii.gz"), labels, np.eye(4), NAMES, {})
        cases.append(
            Case(
                f"s{number}", {"T2w": folder / f"s{number}_T2w.nii.gz"}, None,
                {"T2w": folder / f"s{number}_dseg.nii.gz"}, "test" if number == 5 else "train",
            )
        )  # fmt: skip
    write_cases(cases, folder / "cohort.tsv")
    return read_cases(folder / "cohort.tsv")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder, cohort(folder)


def run(scans, output, **options):
    folder, cases = scans
    grid = {"training.learning_rate": [1.0e-5, 2.0e-2]}
    experiment = Experiment("tiny", str(folder / "tiny.yaml"), grid=grid)
    return cross_validate(
        [experiment], cases, output, sequence="T2w", folds=2, choose="bone", progress=False, **options
    )


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    return output, *run(scans, output)


def test_every_subject_is_scored_by_the_network_that_has_not_seen_it(whole):
    output, rows, _ = whole
    for fold in (1, 2):
        card = output / f"trials/tiny/fold{fold}_point1/segmenter/segmenter.json"
        seen = set(json.loads(card.read_text(encoding="utf-8"))["provenance"]["subject_digests"])
        held = {r["subject"] for r in rows if (r["split"], r["fold"]) == ("val", fold)}
        assert held and not seen & {subject_digest(case(subject)) for subject in held}
    dice = [r["subject"] for r in rows if (r["split"], r["class"], r["metric"]) == ("val", "bone", "dice")]
    assert Counter(dice) == Counter(f"s{i}" for i in range(5))


def test_the_grid_is_decided_on_validation_subjects_and_only_the_chosen_meets_the_test(whole):
    output, rows, trials = whole
    for fold in (1, 2):
        points = [t for t in trials if t["fold"] == fold]
        best = max(points, key=lambda t: t["validation_dice"])
        assert [t["chosen"] for t in points] == [t is best for t in points]
        for trial in points:
            scored = (output / trial["folder"] / "scores_test_T2w.csv").exists()
            assert scored == trial["chosen"]
    assert {t["point"] for t in trials} == {"training.learning_rate=1e-05", "training.learning_rate=0.02"}
    assert {r["fold"] for r in rows if r["split"] == "test"} == {1, 2}
    assert all(t["validation_decides"] for t in trials)


def test_a_stopped_run_goes_on_and_ends_with_the_same_scores(scans, whole, tmp_path, monkeypatch):
    calls = []

    def train(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_recipe(*arguments, **options)

    train_recipe = crossval.train_recipe
    monkeypatch.setattr(crossval, "train_recipe", train)
    with pytest.raises(KeyboardInterrupt):
        run(scans, tmp_path)
    assert len(list(tmp_path.rglob("trial.json"))) == 2
    run(scans, tmp_path)
    assert len(calls) == 5  # two before, the one that was stopped, and the two that were left
    assert (tmp_path / "scores.csv").read_bytes() == (whole[0] / "scores.csv").read_bytes()
    monkeypatch.setattr(crossval, "train_recipe", None)  # nothing is trained a second time
    assert run(scans, tmp_path)[0] == whole[1]


def test_every_training_is_given_the_cache(scans, tmp_path, monkeypatch):
    given = []

    def train(*arguments, **options):
        given.append(options["cache"])
        raise KeyboardInterrupt

    monkeypatch.setattr(crossval, "train_recipe", train)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(KeyboardInterrupt):
            run(scans, tmp_path / "run", cache=cache)
    assert given == [None, tmp_path / "cache"]


def test_a_folder_holds_one_study(scans, whole):
    with pytest.raises(InputError, match="holds one study.*point1, done with others"):
        run(scans, whole[0], overrides=["training.epochs=3"])
    with pytest.raises(InputError, match="holds one study"):
        run(scans, whole[0], seed=1)


def test_what_is_written_reads_back(whole):
    output, rows, _ = whole
    read = read_rows(output / "scores.csv")
    assert [r["value"] for r in read] == pytest.approx([r["value"] for r in rows], nan_ok=True)
    assert load_recipe(output / "trials/tiny/fold1_point2/recipe.yaml").training.learning_rate == 2.0e-2


def test_the_fold_takes_the_place_of_the_recipe_s_validation_subjects(scans, tmp_path):
    folder, cases = scans
    experiment = Experiment("tiny", str(folder / "tiny.yaml"), set={"validation_subjects": ["s1"]})
    plan = experiments.Plan([experiment], cases, tmp_path, "T2w", 2, (), 0, None)
    assert all(t.recipe.validation_subjects == () for t in plan.trials(experiment))


def test_fewer_subjects_train_as_many_steps(scans, tmp_path):
    folder, cases = scans
    experiment = Experiment("tiny", str(folder / "tiny.yaml"), subjects=(0, 1))
    plan = experiments.Plan([experiment], cases, tmp_path, "T2w", 2, (), 0, None)
    trials = plan.trials(experiment)
    epochs = {(t.fold, t.subjects): t.recipe.training.epochs for t in trials}
    sizes = {t.fold: len([c for c in t.cases if c.split == "train"]) for t in trials if not t.subjects}
    assert epochs == {(fold, n): 2 * (size if n else 1) for fold, size in sizes.items() for n in (0, 1)}
    early = EarlyStopping(monitor="loss", patience=2)
    training = dataclasses.replace(trials[0].recipe.training, early_stopping=early)
    stopping = dataclasses.replace(trials[0].recipe, training=training)
    assert experiments._lengthened(stopping, 2.0) is stopping


def test_a_second_cross_validation_in_one_folder_is_refused(scans, tmp_path, monkeypatch):
    folder, cases = scans
    monkeypatch.setattr(claims, "PATIENCE_S", 0.0)
    (tmp_path / "trials").mkdir()
    experiment = Experiment("tiny", str(folder / "tiny.yaml"))
    refused = pytest.raises(InputError, match=f"One process at a time.*which process {os.getpid()} on")
    with claims.alone(tmp_path / "trials"), refused:
        cross_validate([experiment], cases, tmp_path, sequence="T2w", folds=2, progress=False)
    assert os.listdir(tmp_path) == ["trials"]


def test_a_damaged_note_of_a_trial_is_told_with_its_name(scans, tmp_path):
    folder, cases = scans
    note = tmp_path / "trials/tiny/fold1/trial.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"signature": ', encoding="utf-8")
    experiment = Experiment("tiny", str(folder / "tiny.yaml"))
    with pytest.raises(InputError, match=f"trial.json is as mrseg wrote it.*Remove {note}"):
        cross_validate([experiment], cases, tmp_path, sequence="T2w", folds=2, progress=False)


def test_a_trial_that_fails_is_named(scans, tmp_path):
    folder, cases = scans
    experiment = Experiment("tiny", str(folder / "tiny.yaml"), set={"training.batch_size": 1000})
    with pytest.raises(InputError, match="tiny/fold1: An epoch must fill"):
        cross_validate([experiment], cases, tmp_path, sequence="T2w", folds=2, progress=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lost_worker_loses_nothing(scans, whole, tmp_path):
    """One of two Dask workers is killed during its training; the run ends with every score."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        address = cluster.scheduler_address
        with ThreadPoolExecutor(1) as thread, distributed.Client(address) as client:
            running = thread.submit(run, scans, tmp_path, scheduler=address)
            while not list(tmp_path.rglob("state.json")):  # a first epoch is there
                time.sleep(0.05)
                assert not running.done()
            victim = next(iter(client.run(os.getpid).values()))
            os.kill(victim, signal.SIGKILL)
            rows, trials = running.result(timeout=600)
    assert [t["folder"] for t in trials] == [t["folder"] for t in whole[2]]
    # one thread a worker: sums in another order than here
    ours, theirs = ([r["value"] for r in found] for found in (rows, whole[1]))
    assert ours == pytest.approx(theirs, rel=0.05, abs=0.05, nan_ok=True)


def planned(scans, output, *experiments, overrides=(), given=None, **options):
    folder, cases = scans
    made = [
        Experiment(name, str(folder / "tiny.yaml"), **{"set": {"training.epochs": 1}, **keys})
        for name, keys in experiments
    ]
    return cross_validate(
        made,
        cases,
        output,
        sequence="T2w",
        folds=2,
        overrides=overrides,
        source=given,
        progress=False,
        **options,
    )


OPEN = {"transfer": {"mechanism": "open"}}
BY_VALIDATION = {"training.early_stopping": {"monitor": "val_loss", "patience": 2}}


@pytest.fixture
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(crossval, "train_recipe", None)


@pytest.mark.parametrize("decides", [{}, BY_VALIDATION])
@pytest.mark.usefixtures("nothing_is_trained")
def test_a_source_that_has_seen_a_fold_s_subjects_is_refused_before_any_training(
    scans, whole, tmp_path, decides
):
    fine = ("fine", {"source": "once", "set": {**OPEN, **decides}})
    with pytest.raises(InputError, match=r"s0, whom the source once of fine has seen.*folded: true"):
        planned(scans, tmp_path, ("once", {"folded": False}), fine)
    given = whole[0] / "trials/tiny/fold1_point1/segmenter"
    with pytest.raises(InputError, match="whom the source given of fine has seen"):
        planned(scans, tmp_path, ("fine", {**fine[1], "source": "given"}), given=given)
    # once, then folded, then folded: the last comes from it too
    last = ("last", {"source": "fine", "set": {**OPEN, **decides}})
    with pytest.raises(InputError, match="the source once"):
        planned(scans, tmp_path, last, fine, ("once", {"folded": False}))


@pytest.mark.usefixtures("nothing_is_trained")
def test_what_cannot_end_well_is_refused_before_any_training(scans, tmp_path):
    a, b = ("a", {"source": "b", "set": OPEN}), ("b", {"source": "a", "set": OPEN})
    with pytest.raises(InputError, match="no circle"):
        planned(scans, tmp_path, ("first", {}), a, b)
    with pytest.raises(InputError, match="Add 0 to the subjects of few"):
        planned(scans, tmp_path, ("few", {"subjects": (1,)}), ("b", {"source": "few", "set": OPEN}))
    grid = {"training.learning_rate": [1.0, 2.0]}
    for override in ("training.learning_rate=3.0", "training={epochs: 1}"):
        with pytest.raises(InputError, match="grid of training.learning_rate in a"):
            planned(scans, tmp_path, ("a", {"grid": grid}), overrides=[override])
    for names in (("Open", "open"), ("..",), ("",), ("given",)):
        with pytest.raises(InputError, match="name of its own"):
            planned(scans, tmp_path, *((name, {}) for name in names))


def test_what_starts_from_a_decided_network_was_decided_too(scans, tmp_path):
    folder, cases = scans
    grid = {"training.learning_rate": [1.0e-3, 1.0e-2]}
    page = str(folder / "tiny.yaml")
    chain = [
        Experiment("searched", page, grid=grid),
        Experiment("plain", page),
        Experiment("after", page, source="searched", set=OPEN),
        Experiment("beside", page, source="plain", set=OPEN),
        Experiment("stopped", page, set=BY_VALIDATION),
    ]
    plan = experiments.Plan(chain, cases, tmp_path, "T2w", 2, (), 0, None)
    assert [e.name for e in chain if plan.decided(e.name)] == ["searched", "after", "stopped"]


def test_workers_that_write_elsewhere_are_told_and_nothing_is_trained_twice(scans, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(crossval, "run_jobs", lambda function, jobs, **options: seen.extend(jobs))
    monkeypatch.setattr(crossval, "train_recipe", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="Every worker writes into the same folders.*fold1"):
        planned(scans, "run", ("a", {}))
    # whoever does them may have been started in another folder
    assert all(trial.output.is_absolute() for trial in seen)
    assert all(file.is_absolute() for t in seen for c in t.cases for file in c.images.values())


def test_a_point_of_a_grid_that_diverges_is_not_chosen_and_stops_nothing(scans, tmp_path, monkeypatch):
    folder, cases = scans
    grid = {"training.learning_rate": [1.0e30, 1.0e-3]}
    experiment = Experiment("a", str(folder / "tiny.yaml"), grid=grid)
    plan = experiments.Plan([experiment], cases, tmp_path, "T2w", 2, (), 0, None)
    points = plan.trials(experiment)[:2]

    def network(trial, cases):
        weight = np.array([np.nan if trial.recipe.training.learning_rate > 1 else 0.5])
        return SimpleNamespace(model=SimpleNamespace(get_weights=lambda: [weight]))

    def evaluate(segmenter, cases, *, sequence, seen_too):
        if np.isnan(segmenter.model.get_weights()[0]).any():
            raise InputError("A network must give finite probabilities.")
        counts = {"voxels_true": 8, "voxels_predicted": 8, "voxels_both": 4, "voxels_all": 16, "dice": 0.5}
        return [
            {"subject": c.subject, "sequence": sequence, "class": name, "metric": metric, "value": value}
            for c in cases
            for name in NAMES
            for metric, value in counts.items()
        ]

    monkeypatch.setattr(crossval, "_train", network)
    monkeypatch.setattr(crossval, "evaluate", evaluate)
    for choose in ("bone", ""):
        assert np.isnan(crossval._validation_dice(points[0], choose))
        assert crossval._best(points, choose) is points[1]
    with pytest.raises(InputError, match="NaN for all of a"):
        crossval._best([points[0], points[0]], "bone")
    alone = dataclasses.replace(points[0], point={}, output=tmp_path / "alone")
    with pytest.raises(InputError, match="finite probabilities"):
        crossval.run_trial(alone)
