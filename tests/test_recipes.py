from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from mrseg import pseudo_labels, training
from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.cases import Case, read_cases, select
from mrseg.data.io import read_volume
from mrseg.data.pipeline import build_dataset
from mrseg.data.preprocessing import Preprocessing
from mrseg.data.registration import Registration
from mrseg.data.tissue_sets import ibsr18
from mrseg.models.builders import BUILDERS, NETWORKS, matching
from mrseg.recipes import build_network, list_recipes, load_recipe, runner
from mrseg.recipes.loader import Transfer
from mrseg.recipes.runner import train_recipe
from mrseg.segmenter import Segmenter, subject_digest
from mrseg.transfer.fusion import hybrid

SMALL = ["network.arguments.filters=2"]
PAPERS = {"mecheter2020", "mecheter2023", "xu2017", "alkhimova2022", "islam2025", "phantom", "beyond"}


def page(tmp_path, **changes):
    text = load_recipe("phantom_t1").as_dict()
    text.update(changes)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list_recipes())
def test_every_page_loads_names_itself_and_says_how_to_run_it(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.paper in PAPERS
    assert recipe.paper == "phantom" or name in recipe.command
    assert recipe.paper == "phantom" or (recipe.transfer is None) == ("mrseg train" in recipe.command)


def test_a_page_of_no_paper_says_so_and_promises_no_figures():
    pages = [load_recipe(name) for name in list_recipes() if load_recipe(name).paper == "beyond"]
    assert pages
    assert all(page.title.startswith("beyond the papers") and not page.expected for page in pages)


@pytest.mark.parametrize("name", list_recipes())
def test_every_page_survives_writing_and_reading(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(recipe.as_dict()), encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    "name", [n for n in list_recipes() if load_recipe(n).paper not in ("phantom", "beyond")]
)
def test_expected_figures_are_consistent_with_each_other(name):
    """Jaccard = dice / (2 - dice), in every row that prints both; averages of folds may break it by 0.005."""
    expected = load_recipe(name).expected
    assert expected or name.endswith("_short")  # a shortened recipe has no figures of the paper
    for tissue, row in expected.items():
        if tissue != "corrected" and "jaccard" in row:
            assert row["jaccard"] == pytest.approx(row["dice"] / (2 - row["dice"]), abs=0.01)
        if tissue != "corrected" and "precision" in row:
            harmonic = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
            assert row["dice"] == pytest.approx(harmonic, abs=0.02)


#: For each builder, a patch and a width that a step on two cores can bear; what makes the page remains.
SHRUNK = {
    "segnet": (32, 2),
    "se_unet3d": (16, 2),
    "vgg_fcn": (16, 2),
    "res_unet": (16, 2),
    "unet": (16, 2),
    "sep_res_unet": (16, 2),
    "attention_unet": (16, 2),
}


def shrunk(name):
    """The recipe with a small patch, few filters, a batch of two and no learned start."""
    recipe = load_recipe(name)
    size, filters = SHRUNK[recipe.network.builder]
    patch = tuple(1 if n == 1 else size for n in recipe.sampling.patch_shape)
    network = {**recipe.network.arguments, "filters": filters}
    return dataclasses.replace(
        recipe,
        network=dataclasses.replace(recipe.network, arguments=network),
        sampling=dataclasses.replace(recipe.sampling, patch_shape=patch, patches_per_volume=2),
        training=dataclasses.replace(recipe.training, batch_size=2),
    )


@pytest.mark.parametrize("name", list_recipes())
def test_every_page_builds_its_network_and_takes_a_step_that_trains_what_it_says(name):
    recipe = shrunk(name)
    source = None
    if recipe.transfer is not None:
        source, _ = build_network(dataclasses.replace(recipe, transfer=None))
    model, account = build_network(recipe, source)
    before = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    rng = np.random.default_rng(0)
    shape = tuple(max(n, 8) for n in recipe.sampling.patch_shape)
    scans = [
        (rng.random(shape, np.float32), rng.integers(0, len(recipe.class_names), shape).astype(np.uint8))
        for _ in range(2)
    ]
    if recipe.transfer is not None and not recipe.transfer.trains:
        assert "loaded" in account
        return
    batches = build_dataset(scans, recipe.sampling, batch_size=2, augmentation=recipe.augmentation)
    training._compile(model, recipe.training, recipe.loss, recipe.class_names, steps=1)
    model.run_eagerly = True  # a single step: tracing it would take longer
    (batch,) = batches.take(1)
    assert np.isfinite(model.train_on_batch(*batch)[0])
    after = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    trained = {w.path for w in model.trainable_weights}
    frozen = {w.path for layer in model.layers if not layer.trainable for w in layer.weights}
    assert moved & trained and not moved & frozen


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_recipe_that_the_table_of_networks_names_trains_that_network(network):
    recipe = load_recipe(network.recipe)
    assert recipe.network.builder == network.builder and recipe.paper == network.paper
    assert len(recipe.class_names) == network.num_classes
    if network.name == network.builder or network.name == "vgg_fcn_adult":
        assert matching(recipe.network.builder, recipe.network.arguments) == network
        assert recipe.sampling.input_shape == network.input_shape
        model = BUILDERS[recipe.network.builder](
            network.input_shape, network.num_classes, **recipe.network.arguments
        )
        assert model.count_params() == network.parameters


#: Arguments that change the number of parameters, and are in no row of the table.
OTHERS = {
    "sep_res_unet": {"skip": "add"},
    "res_unet": {"position": "none"},
    "se_unet3d": {"recalibration": "concat"},
}


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.name == n.builder], ids=lambda n: n.name)
def test_a_row_of_the_table_matches_whatever_has_its_parameters_and_nothing_else(network):
    assert matching(network.builder, {"weight_decay": 0.1, "name": "other"}) == network
    assert matching(network.builder, {"filters": 8}) is None
    if network.builder in OTHERS:
        arguments = OTHERS[network.builder]
        assert matching(network.builder, arguments) is None
        assert network.build(**arguments).count_params() != network.parameters


@pytest.mark.parametrize("mechanism", ["none", "open", "conservative6", "hybrid_multiply", "hybrid_concat"])
def test_a_transfer_page_builds_its_network_from_the_t1_network(mechanism):
    t1, nothing = build_network(load_recipe("mecheter2023_t1", SMALL))
    assert nothing == ""
    recipe = load_recipe(f"mecheter2023_{mechanism}", SMALL)
    model, account = build_network(recipe, t1)
    assert model.output_shape == t1.output_shape
    assert "loaded" in account
    if mechanism == "conservative6":
        trained = {w.path.split("/")[0] for w in model.trainable_weights}
        assert "decoder2_conv1" in trained and "decoder3_conv1" not in trained
    if mechanism.startswith("hybrid"):
        assert not any(w.path.startswith("adapted_") for w in model.trainable_weights)


def test_a_transfer_without_source_and_a_source_without_transfer_are_refused():
    with pytest.raises(InputError, match="needs a trained network"):
        build_network(load_recipe("mecheter2023_open", SMALL))
    t1, _ = build_network(load_recipe("mecheter2023_t1", SMALL))
    with pytest.raises(InputError, match="trains from scratch"):
        build_network(load_recipe("mecheter2023_t1", SMALL), t1)


def test_weights_of_another_width_are_refused_by_name():
    t1, _ = build_network(load_recipe("mecheter2023_t1", SMALL))
    with pytest.raises(InputError, match="encoder1_conv1"):
        build_network(load_recipe("mecheter2023_open", ["network.arguments.filters=3"]), t1)


def test_weights_of_another_network_or_grid_are_refused_by_their_names(tmp_path):
    cases = read_cases(
        phantom.write_cohort(tmp_path / "raw", subjects={"train": 1}, sequences=("T2w",), shape=(16, 18, 12),
                             registered=True)
    )  # fmt: skip
    for source, words in (
        (
            "phantom_t1_segnet",
            "those of a segnet; recipe phantom_t2_slices builds a unet.*a recipe of segnet",
        ),
        (
            "phantom_t1_unet",
            r"shape \(64, 96, 64\) there, \(32, 32, 32\) in recipe phantom_t2_slices.*Take the",
        ),
    ):
        recipe = load_recipe("phantom_t2_slices", ["preprocessing.shape=[32,32,32]"])
        with pytest.raises(InputError, match=words):
            train_recipe(recipe, cases, tmp_path / "out", source=source, progress=False)
    other = [dataclasses.replace(case, images={"T1w": case.images["T2w"]}, labels={}) for case in cases]
    with pytest.raises(InputError, match="1 subjects of the split 'train', with images T1w"):
        train_recipe(
            load_recipe("phantom_t2_slices"),
            other,
            tmp_path / "out",
            source="phantom_t1_unet",
            progress=False,
        )


def test_a_network_is_carried_over_with_the_scale_of_its_input():
    small = ["network.arguments.filters=4", "sampling.patch_shape=[32,32,1]"]
    scaled = [*small, "network.arguments.input_deviation=74"]
    newborns, _ = build_network(load_recipe("xu2017_exp1", scaled))
    carried = "transfer={mechanism: open}"
    with pytest.raises(InputError, match=r"input_deviation.*0\.0135.*\[\] in the recipe"):
        build_network(load_recipe("xu2017_exp1", [*small, carried]), newborns)
    model, _ = build_network(load_recipe("xu2017_exp1", [*scaled, carried]), newborns)
    image = np.random.default_rng(0).uniform(-128, 128, (1, *model.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(model(image), newborns(image), atol=1e-6)


def test_overrides_reach_nested_keys_and_keep_the_rest():
    recipe = load_recipe("islam2025_unet", ["training.epochs=12", "network.arguments.filters=8"])
    assert recipe.training.epochs == 12
    assert recipe.network.arguments == {"filters": 8, "head": "sigmoid"}


def test_a_page_takes_from_its_base_what_it_does_not_say():
    assert load_recipe("mecheter2023_hybrid_concat").training.batch_size == 1
    assert load_recipe("mecheter2023_hybrid_concat").training.learning_rate == 1e-4
    assert load_recipe("islam2025_unet_short").training.plateau is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainning": {}}, ["trainning", "Did you mean 'training'"]),
        ({"training": {"learning_rate": "1e-3"}}, ["training.learning_rate is a number", "1.0e-3"]),
        ({"training": {"epochs": 2.5}}, ["training.epochs is a whole number"]),
        ({"training": {"epochs": True}}, ["training.epochs is a whole number"]),
        ({"training": [1]}, ["training is a group of keys"]),
        ({"sampling": {"patch_shape": [8, 8]}}, ["sampling.patch_shape is a sequence of 3"]),
        ({"preprocessing": {"spacing_mm": [1.0, 2.0]}}, ["preprocessing.spacing_mm is a list of 3 values"]),
        ({"sampling": {"patch_shape": [8, 8, "8"]}}, ["sampling.patch_shape[2] is a whole number"]),
        ({"sampling": {}}, ["needs the key patch_shape"]),
        ({"class_names": "air"}, ["class_names is a list"]),
        ({"network": {"builder": "se_unet"}}, ["network.builder", "se_unet3d"]),
        ({"transfer": {"mechanism": "closed"}}, ["transfer.mechanism"]),
        ({"network": {"builder": "unet", "arguments": 3}}, ["network.arguments is a group of keys"]),
        ({"network": {"builder": "unet", "arguments": {"weight_decay": "1e-3"}}}, ["a number", "1.0e-3"]),
        ({"network": {"builder": "segnet", "arguments": {"filters": 8.0}}}, ["filters is a whole number"]),
        ({"more_sequences": ["T1w"]}, ["Every sequence trains once", "T1w, T1w"]),
        ({"dark_classes": ["bones"]}, ["dark_classes", "Did you mean 'bone'"]),
        ({"random_contrasts": -1}, ["random_contrasts", "-1"]),
        ({"random_contrasts": 2, "transfer": {"mechanism": "statistics"}}, ["to train on", "statistics"]),
        ({"transfer": {"mechanism": "open", "head": True}}, ["transfer.head", "affine"]),
        ({"transfer": {"mechanism": "none", "labels_from": "FLAIR"}}, ["labels_from", "trains"]),
        ({"transfer": {"mechanism": "open", "labels_from": "T1w"}}, ["another sequence", "T1w"]),
    ],
)
def test_a_wrong_page_is_one_clear_error(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        load_recipe(page(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)


def test_yaml_reads_1e_3_as_text_and_the_error_says_so(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: phantom_t1\ntraining: {learning_rate: 1e-3}\n", encoding="utf-8")
    with pytest.raises(InputError, match="write 1.0e-3"):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'islam2025_unet'"):
        load_recipe("islam2025_unett")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "a: b: c"])
def test_a_file_that_is_no_page_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs",
        "training.epochs.more=3",
        "training.epoch=3",
        "training.epochs=[",
        "training.seed=-1",
        "training.momentum=1.0",
        "network.arguments.filtres=4",
        "training={plateau: {factor: 1.5}}",
    ],
)
def test_a_wrong_override_is_refused(override):
    with pytest.raises(InputError):
        load_recipe("phantom_t1", [override])


def labelled_cases(folder):
    manifest = phantom.write_cohort(
        folder, subjects={"train": 1, "test": 1}, shape=(12, 12, 12), registered=True
    )
    return read_cases(manifest)


@pytest.fixture
def no_training(monkeypatch):
    """`train_recipe` up to the training, which does nothing."""
    monkeypatch.setattr(runner, "_train", lambda *_: None)


def finished_run(folder, cases):
    """A folder as a finished training of phantom_t1 leaves it, without the training."""
    train_recipe(load_recipe("phantom_t1"), cases[:1], folder)
    (folder / "segmenter").mkdir(exist_ok=True)


def test_a_begun_folder_refuses_other_settings_and_other_cases_and_a_failed_start_does_not(
    tmp_path, no_training
):
    cases = [dataclasses.replace(case, split="train") for case in labelled_cases(tmp_path / "raw")]
    folder, other = tmp_path / "run", load_recipe("phantom_t1", ["training.epochs=3"])
    train_recipe(other, cases[:1], folder)
    finished_run(folder, cases)  # nothing was begun before, so the corrected recipe is taken
    finished_run(folder, cases)
    with pytest.raises(InputError, match="one run.*another recipe"):
        train_recipe(other, cases[:1], folder)
    with pytest.raises(InputError, match="one run.*another cases"):
        train_recipe(load_recipe("phantom_t1"), cases[1:], folder)


def source_of(recipe, **changes):
    model, _ = build_network(recipe)
    parts = {
        "preprocessing": recipe.preprocessing,
        "sampling": recipe.sampling,
        "class_names": recipe.class_names,
    }
    return Segmenter(model=model, **{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"class_names": ("bone", "soft", "air")}, "class_names"),
        ({"preprocessing": Preprocessing()}, "preprocessing"),
    ],
)
def test_a_source_with_other_classes_or_preprocessing_is_refused(tmp_path, changes, word):
    source = source_of(load_recipe("phantom_t1", SMALL), **changes)
    cases = [dataclasses.replace(c, images={"T2w": c.images["T1w"]}, labels={"T2w": c.labels["T1w"]})
             for c in labelled_cases(tmp_path / "raw")]  # fmt: skip
    with pytest.raises(InputError, match=f"{word} it was trained with"):
        train_recipe(load_recipe("phantom_t2", SMALL), cases, tmp_path / "o", source=source, progress=False)


def test_a_begun_transfer_knows_its_source_again_after_it_was_saved_anew_and_refuses_another(
    tmp_path, no_training
):
    recipe = load_recipe("phantom_t2", [*SMALL, "sequence=T1w"])
    cases, source = labelled_cases(tmp_path / "raw")[:1], source_of(load_recipe("phantom_t1", SMALL))
    folder = tmp_path / "run"
    train_recipe(recipe, cases, folder, source=source)
    (folder / "segmenter").mkdir()
    train_recipe(recipe, cases, folder, source=Segmenter.load(source.save(tmp_path / "t1")))
    source.model.get_layer("head_logits").bias.assign([1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="one run.*another source"):
        train_recipe(recipe, cases, folder, source=source)


def test_a_test_subject_that_the_source_has_seen_is_refused(tmp_path):
    recipe = load_recipe("phantom_t1", SMALL)
    cases = [dataclasses.replace(c, images={"T2w": c.images["T1w"]}, labels={"T2w": c.labels["T1w"]})
             for c in labelled_cases(tmp_path / "raw")]  # fmt: skip
    seen = {"subject_digests": [subject_digest(cases[1])], "source": None}
    with pytest.raises(InputError, match=f"no network of the chain has seen.*{cases[1].subject}"):
        train_recipe(
            load_recipe("phantom_t2", SMALL), cases, tmp_path / "o", progress=False,
            source=source_of(recipe, provenance=seen),
        )  # fmt: skip


def test_what_is_passed_on_names_no_subject():
    case = Case("Smith_John_1961", {}, None, {}, "train")
    recipe = dataclasses.replace(load_recipe("phantom_t1"), validation_subjects=("Smith_John_1961",))
    assert "Smith" not in str(runner._provenance(recipe, [case], [], None))
    exp1 = load_recipe("xu2017_exp1", ["network.arguments.weights=/data/Smith_John/vgg16.weights.h5"])
    assert "Smith" not in str(runner._provenance(exp1, [case], [], None))


def test_a_recipe_that_is_its_own_base_is_refused(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text(f"base: {path}\n", encoding="utf-8")
    with pytest.raises(InputError, match="not its own base"):
        load_recipe(path)


@pytest.mark.parametrize(("subject", "split"), [("s2", "test"), ("s9", "train")])
def test_validation_subjects_come_from_the_training_split(tmp_path, subject, split):
    cases = [Case("s1", {}, None, {}, "train"), Case("s2", {}, None, {}, split)]
    recipe = dataclasses.replace(load_recipe("phantom_t1"), validation_subjects=(subject,))
    with pytest.raises(InputError, match=f"subjects of the split 'train'.*{subject}"):
        train_recipe(recipe, cases, tmp_path, progress=False)


def test_a_subject_in_two_splits_is_refused_before_training(tmp_path):
    cases = [Case("s1", {}, None, {}, "train"), Case("s1", {}, None, {}, "test")]
    with pytest.raises(InputError, match="one split only"):
        train_recipe(load_recipe("phantom_t1"), cases, tmp_path, progress=False)


def test_the_builders_table_is_what_recipes_may_name():
    assert {load_recipe(name).network.builder for name in list_recipes()} <= set(BUILDERS)
    assert keras.backend.backend() in ("tensorflow", "jax")


def recorded_fit(monkeypatch):
    """Replaces the training by a look at its first batches."""
    seen = {}

    def look(model, train, validation, settings, **options):
        seen["train"] = [tuple(np.asarray(t) for t in batch) for batch in train]
        seen["validation"] = validation and [np.asarray(x) for x, _ in validation]
        return []

    monkeypatch.setattr(runner, "fit", look)
    return seen


def two_sequences(folder):
    """Three subjects: the first has T1w alone, the second T2w alone, the third both."""
    manifest = phantom.write_cohort(
        folder, subjects={"train": 3}, sequences=("T1w", "T2w"), shape=(12, 12, 12), registered=True
    )
    first, second, third = read_cases(manifest)
    only = [
        dataclasses.replace(c, images={s: c.images[s]}, labels={s: c.labels[s]})
        for c, s in ((first, "T1w"), (second, "T2w"))
    ]
    return [*only, third]


def test_scans_of_every_named_sequence_train_and_the_claim_names_them(tmp_path, monkeypatch):
    seen = recorded_fit(monkeypatch)
    recipe = load_recipe(
        "phantom_t1",
        [*SMALL, "sequence=T2w", "more_sequences=[T1w]", "training.batch_size=1",
         "sampling={patch_shape: [8,8,8], overlap: 0.0, patches_per_volume: 1}",
         "preprocessing={grid: native, normalization: min_max}"],
    )  # fmt: skip
    train_recipe(recipe, two_sequences(tmp_path / "raw"), tmp_path / "run", progress=False)
    assert len(seen["train"]) == 4  # T2w of two subjects, T1w of two
    claimed = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["cases"]
    assert sorted(name.split("_")[-1] for _, _, name, _ in claimed) == [
        "T1w.nii.gz", "T1w.nii.gz", "T2w.nii.gz", "T2w.nii.gz",
    ]  # fmt: skip


def test_other_sequences_alone_do_not_make_a_network_of_this_one(tmp_path):
    recipe = load_recipe("phantom_t1", [*SMALL, "sequence=T2w", "more_sequences=[T1w]"])
    with pytest.raises(InputError, match="at least one case with a T2w image"):
        train_recipe(recipe, two_sequences(tmp_path / "raw")[:1], tmp_path / "run", progress=False)


def test_the_training_mean_is_subtracted_kept_with_the_segmenter_and_handed_on(tmp_path, monkeypatch):
    seen = recorded_fit(monkeypatch)
    cases = [case for case in two_sequences(tmp_path / "raw") if "T1w" in case.images]
    options = [
        "network={builder: vgg_fcn, arguments: {filters: 2, stages: 4}}", "subtract_mean=true",
        "sampling={patch_shape: [8,8,1], overlap: 0.0, neighbours: 1}", "training.batch_size=1",
        "preprocessing={grid: acquisition, normalization: histogram_equalization}",
    ]  # fmt: skip
    recipe = load_recipe("phantom_t1", options)
    segmenter = train_recipe(recipe, cases, tmp_path / "run", progress=False)
    images = [recipe.preprocessing.image(read_volume(case.images["T1w"]))[0] for case in cases]
    middle = float(np.mean(images))
    mean = segmenter.sampling.channel_mean
    assert mean[1] == pytest.approx(middle, rel=1e-5) and max(mean[0], mean[2]) < mean[1]
    assert Segmenter.load(tmp_path / "run/segmenter").sampling.channel_mean == mean
    outside = -np.asarray(mean, np.float32)
    first_slices = [x[0, ..., 0] for x, _ in seen["train"] if np.allclose(x[0, ..., 0], outside[0])]
    assert first_slices  # the slice before the first is 0 before the mean is subtracted

    t2 = [case for case in two_sequences(tmp_path / "raw") if "T2w" in case.images]
    carried = load_recipe("phantom_t2", [*options, "transfer.mechanism=open"])
    assert train_recipe(
        carried, t2, tmp_path / "t2", source=segmenter, progress=False
    ).sampling.channel_mean == mean  # fmt: skip


def steps(model, recipe):
    """Two steps on noise; the names of the variables that moved, by whether they are trained."""
    before = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    rng = np.random.default_rng(0)
    images = rng.normal(2, 3, (2, *model.input_shape[1:])).astype(np.float32)
    labels = rng.integers(0, len(recipe.class_names), images.shape[:-1]).astype(np.uint8)
    training._compile(model, recipe.training, recipe.loss, recipe.class_names, steps=2)
    model.run_eagerly = True
    for _ in range(2):
        model.train_on_batch(images, labels)
    trained = {w.path for w in model.trainable_weights}
    moved = [w for w in model.weights if not np.array_equal(before[w.path], keras.ops.convert_to_numpy(w))]
    return {w.path for w in moved if w.path in trained}, {w.path for w in moved if w.path not in trained}


@pytest.mark.parametrize("base", ["phantom_t1", "phantom_t1_slices"])
@pytest.mark.parametrize("head", [False, True])
def test_affine_moves_gamma_and_beta_the_statistics_and_at_most_the_head(base, head):
    recipe = shrunk(base)
    source, _ = build_network(recipe)
    transfer = Transfer("affine", head=head)
    recipe = dataclasses.replace(recipe, transfer=transfer)
    model, account = build_network(recipe, source)
    trained, others = steps(model, recipe)
    assert {path.split("/")[-1] for path in trained if "head_logits" not in path} == {"gamma", "beta"}
    assert {path for path in trained if "head_logits" in path} == (
        {"head_logits/kernel", "head_logits/bias"} if head else set()
    )
    assert {path.split("/")[-1] for path in others} == {"moving_mean", "moving_variance"}
    assert "trainable after" in account


def tiny(name, *more):
    """Options for heads of 16 voxels."""
    shape = "[16,16,1]" if name.endswith("slices") else "[16,16,16]"
    return [
        *SMALL, "training.epochs=1", "training.batch_size=2",
        f"sampling={{patch_shape: {shape}, overlap: 0.0, patches_per_volume: 2}}",
        "preprocessing={grid: native, normalization: lcn}", *more,
    ]  # fmt: skip


def unlabelled_pairs(folder, count=2, **options):
    """Subjects with T1-w and T2-w scans, nobody knows their labels."""
    manifest = phantom.write_cohort(
        folder, subjects={"train": count}, sequences=("T1w", "T2w"), shape=(16, 16, 16), ct=False, **options
    )
    return read_cases(manifest)


@pytest.mark.parametrize("base", ["phantom_t1", "phantom_t1_slices"])
def test_statistics_need_no_labels_and_move_statistics_alone(tmp_path, base):
    source = source_of(load_recipe(base, tiny(base)))
    recipe = load_recipe(base, tiny(base, "sequence=T2w", "transfer={mechanism: statistics}"))
    cases = unlabelled_pairs(tmp_path / "raw")
    carried = train_recipe(recipe, cases, tmp_path / "run", source=source, progress=False)
    old = {w.path: np.array(w) for w in source.model.weights}
    moved = {w.path.split("/")[-1] for w in carried.model.weights if not np.array_equal(w, old[w.path])}
    assert moved == {"moving_mean", "moving_variance"}
    assert "mean moved by" in (tmp_path / "run/transfer.txt").read_text(encoding="utf-8")
    again = train_recipe(recipe, cases, tmp_path / "run", source=source, progress=False)
    for one, other in zip(carried.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # threads may sum in another order


def test_every_other_mechanism_still_demands_labels(tmp_path):
    recipe = load_recipe("phantom_t2", tiny("phantom_t2"))
    with pytest.raises(InputError, match="T2w image and its labels"):
        train_recipe(
            recipe, unlabelled_pairs(tmp_path / "raw", 1), tmp_path / "run",
            source=source_of(load_recipe("phantom_t1", tiny("phantom_t1"))), progress=False,
        )  # fmt: skip


def test_random_contrasts_stand_for_every_training_scan_and_come_back_the_same(tmp_path, monkeypatch):
    seen = recorded_fit(monkeypatch)
    cases = unlabelled_pairs(tmp_path / "raw", 2, labels=True)
    cases = [*cases, dataclasses.replace(cases[0], subject="other", split="val")]

    def batches(run, *more):
        options = tiny("phantom_t1", "random_contrasts=3", "training.batch_size=1", *more)
        options += ["sampling.patches_per_volume=null"]
        train_recipe(load_recipe("phantom_t1", options), cases, tmp_path / run, progress=False)
        return seen["train"], seen["validation"]

    first, validation = batches("a")
    assert len(first) == 6 and len(validation) == 1
    again, _ = batches("b")
    for (x, y), (same_x, same_y) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, same_x)
        np.testing.assert_array_equal(y, same_y)
    images = [x.tobytes() for x, _ in first]
    assert len(set(images)) == 6
    other, _ = batches("c", "training.seed=1")
    assert not set(images) & {x.tobytes() for x, _ in other}


def test_pseudo_labels_come_from_the_source_are_kept_and_train(tmp_path, monkeypatch):
    seen = recorded_fit(monkeypatch)
    quality = {"mutual_information_before": 1.0, "mutual_information_after": 1.0}
    in_place = Registration((), {**quality, "overlap": 1.0, "jacobian_min": 1.0, "jacobian_max": 1.0}, {})
    monkeypatch.setattr(pseudo_labels, "register", lambda *_, **options: in_place)
    source = source_of(load_recipe("phantom_t1", tiny("phantom_t1")))
    source.model.get_layer("head_logits").bias.assign([0.0, 0.0, 100.0])  # says bone everywhere
    cases = unlabelled_pairs(tmp_path / "raw", 2)
    cases[1] = dataclasses.replace(cases[1], images={"T2w": cases[1].images["T2w"]})
    more = ["training.batch_size=1", "transfer={mechanism: open, labels_from: T1w}"]
    recipe = load_recipe("phantom_t2", tiny("phantom_t2", *more))
    train_recipe(recipe, cases, tmp_path / "run", source=source, progress=False)
    made = sorted(path.name for path in (tmp_path / "run/pseudo_labels").iterdir())
    assert made == ["phantom001_T2w_dseg.json", "phantom001_T2w_dseg.nii.gz"]
    assert len(seen["train"]) == 2  # two patches of the only subject with a T1-w scan
    values = np.unique([y for _, y in seen["train"]])
    assert 2 in values and set(values) <= {2, 255}
    before = (tmp_path / "run/pseudo_labels" / made[1]).stat().st_mtime_ns
    train_recipe(recipe, cases, tmp_path / "run", source=source, progress=False)
    assert (tmp_path / "run/pseudo_labels" / made[1]).stat().st_mtime_ns == before
    with pytest.raises(InputError, match="T2w image and one of T1w"):
        train_recipe(recipe, cases[1:], tmp_path / "none", source=source, progress=False)


def test_a_recipe_that_keeps_features_ends_with_the_network_of_one_that_does_not(tmp_path):
    source = source_of(load_recipe("phantom_t1", tiny("phantom_t1")))
    cases = unlabelled_pairs(tmp_path / "raw", 2, labels=True)
    options = ["sampling.patches_per_volume=null", "transfer={mechanism: conservative, convs: 0}"]
    trained = {}
    for kind in ("none", "float32"):
        more = [*options, f"training.cache_features={kind}"]
        trained[kind] = train_recipe(
            load_recipe("phantom_t2", tiny("phantom_t2", *more)), cases, tmp_path / kind,
            source=source, progress=False,
        ).model  # fmt: skip
    assert [w.path for w in trained["none"].weights] == [w.path for w in trained["float32"].weights]
    for one, other in zip(*(model.get_weights() for model in trained.values()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    hybrid(trained["float32"])  # the network is whole: it may be cut and fused again


@pytest.mark.parametrize(
    ("option", "why"),
    [("sampling.patches_per_volume=1", "random patches"), ("augmentation.flip_axes=[0]", "augmentation")],
)
def test_where_data_change_features_are_not_kept_and_the_log_says_why(
    tmp_path, monkeypatch, caplog, option, why
):
    recorded_fit(monkeypatch)
    options = tiny(
        "phantom_t1", "sampling.patches_per_volume=null", "training.cache_features=float16", option,
        "training.batch_size=1",
    )  # fmt: skip
    cases = unlabelled_pairs(tmp_path / "raw", 1, labels=True)
    with caplog.at_level("WARNING"):
        train_recipe(load_recipe("phantom_t1", options), cases, tmp_path / "run", progress=False)
    assert f"without a cache of features: {why}" in caplog.text


@pytest.mark.data
@pytest.mark.skipif("MRSEG_DATA" not in os.environ, reason="MRSEG_DATA is not set")
def test_the_patches_of_the_recipes_for_ibsr18_fit_into_every_training_scan():
    cases = select(ibsr18(Path(os.environ["MRSEG_DATA"]) / "ibsr18"), "train")
    assert len(cases) == 10
    recipes = [recipe for recipe in map(load_recipe, list_recipes()) if "ibsr18" in recipe.command]
    assert len(recipes) == 9
    for case in cases:
        scan = read_volume(case.images["T1w"])
        shapes = {}
        for recipe in recipes:
            if recipe.preprocessing.grid not in shapes:
                shapes[recipe.preprocessing.grid] = recipe.preprocessing.image(scan)[0].shape
            shape = shapes[recipe.preprocessing.grid]
            assert all(np.less_equal(recipe.sampling.patch_shape, shape)), (recipe.name, case.subject, shape)
