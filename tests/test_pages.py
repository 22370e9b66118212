"""The folder of an evaluation: its files agree with each other, and a browser shows the page."""

from __future__ import annotations

import csv
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from mrseg._checks import InputError
from mrseg.data import phantom
from mrseg.data.cases import Case
from mrseg.data.io import write_labels, write_volume
from mrseg.formats import write_csv
from mrseg.maps import Maps
from mrseg.pages import mean_dice, write_evaluation
from mrseg.passes import DEFAULT, Inference
from mrseg.segmenter import subject_digest

NAMES = ("air", "soft", "bone")
FILES = ("layout", "metrics", "subjects", "comparison", "confusion", "volumes")


class Blurred:
    """Answers with the truth, a share of its voxels exchanged: the worse the subject's number, the more."""

    class_names = NAMES
    sequence = "T1w"
    provenance = {"recipe": "none"}
    engine, precision = "tensorflow", "float32"

    def __init__(self, truths, strength):
        self.truths, self.strength, self.asked = truths, strength, []

    def predict(self, scan, *, inference):
        self.asked.append(inference)
        number = next(n for n, (image, _) in enumerate(self.truths) if np.allclose(image, scan[0], atol=1e-3))
        labels = self.truths[number][1].copy()
        rng = np.random.default_rng(number)
        wrong = rng.random(labels.shape) < self.strength * (number + 1)
        labels[wrong] = rng.integers(0, 3, labels.shape)[wrong]
        return Maps(labels, scan[1])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    cases, truths = [], []
    for number in range(3):
        head = phantom.head(number, shape=(32, 36, 24))
        image, affine = phantom.mr_image(head, "T1w")
        labels = phantom.attenuation_labels(head).astype(np.uint8)
        files = folder / f"s{number}.nii.gz", folder / f"s{number}_dseg.nii.gz"
        write_volume(files[0], image, affine)
        write_labels(files[1], labels, affine, NAMES, {})
        cases.append(Case(f"s{number}", {"T1w": files[0]}, None, {"T1w": files[1]}, "test"))
        truths.append((image, labels))
    return cases, truths


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory):
    cases, truths = cohort
    folder = tmp_path_factory.mktemp("runs")
    write_evaluation(Blurred(truths, 0.02), cases, folder / "first", distances=True, progress=False)
    log = folder / "log.csv"
    log.write_text("epoch,loss,val_loss\n0,1.0,1.1\n1,0.5,0.7\n2,0.4,0.8\n", encoding="utf-8")
    rows, text = write_evaluation(
        Blurred(truths, 0.05), cases, folder / "second", distances=True, log=log, progress=False,
        other=folder / "first" / "scores.csv",
    )  # fmt: skip
    return folder, rows, text


def table_of(folder, name):
    with open(folder / "second" / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_table_is_there_as_latex_and_csv(evaluated):
    folder, _, _ = evaluated
    names = sorted(path.name for path in (folder / "second" / "tables").iterdir())
    assert names == sorted(f"{name}.{kind}" for name in FILES for kind in ("csv", "tex"))
    for name in FILES:
        latex = (folder / "second" / "tables" / f"{name}.tex").read_text(encoding="utf-8")
        lines = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()
        assert sum(line.endswith(r"\\") for line in lines) == len(table_of(folder, name))


def test_the_three_poolings_are_named_in_the_table_of_the_papers_layout(evaluated):
    folder, rows, _ = evaluated
    lines = {row["pooling"]: row for row in table_of(folder, "layout")}
    assert set(lines) == {"voxels pooled", "mean over subjects", "mean over axial slices"}
    dice = [r["value"] for r in rows if r["metric"] == "dice" and r["class"] == "bone" and "slice" not in r]
    assert float(lines["mean over subjects"]["bone dice"]) == pytest.approx(np.mean(dice))
    sliced = [r["value"] for r in rows if r["metric"] == "dice" and r["class"] == "bone" and "slice" in r]
    assert len(sliced) == 3 * 24
    assert float(lines["mean over axial slices"]["bone dice"]) == pytest.approx(np.nanmean(sliced))


def test_scores_of_whole_subjects_and_of_slices_are_in_files_of_their_own(evaluated):
    folder, rows, _ = evaluated
    scores = (folder / "second" / "scores.csv").read_text(encoding="utf-8").splitlines()
    slices = (folder / "second" / "slices.csv").read_text(encoding="utf-8").splitlines()
    assert len(scores) + len(slices) == len(rows) + 2
    assert "slice" not in scores[0] and "plane,slice" in slices[0]


def test_the_confusion_matrix_of_the_page_counts_every_voxel_once(evaluated):
    folder, _, _ = evaluated
    lines = table_of(folder, "confusion")
    assert [line["truth"] for line in lines] == list(NAMES)
    counts = [[int(line[f"voxels {name}"]) for name in NAMES] for line in lines]
    assert np.sum(counts) == 3 * 32 * 36 * 24
    for line, row in zip(lines, counts, strict=True):
        assert sum(float(line[f"percent {name}"]) for name in NAMES) == pytest.approx(100)
        assert int(line["voxels"]) == sum(row)


def test_the_comparison_finds_the_better_method_and_says_so_on_the_terminal(evaluated):
    folder, _, text = evaluated
    lines = table_of(folder, "comparison")
    assert {line["class"] for line in lines if line["metric"] == "Dice"} == set(NAMES)
    assert all(float(line["difference"]) < 0 for line in lines if line["metric"] == "Dice")
    assert all(float(line["p_value"]) == 0.25 for line in lines)  # 2 / 2^3: three subjects prove nothing
    assert "second against first" in text and "mean over subjects" in text


def test_best_median_and_worst_are_the_subjects_in_order_of_their_noise(evaluated):
    page = (evaluated[0] / "second" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<figcaption>(s\d) \((\w+)\)", page) == [
        ("s0", "best"), ("s1", "median"), ("s2", "worst"),
    ]  # fmt: skip


def test_another_cohort_is_refused_before_the_first_prediction(cohort, tmp_path):
    cases, _ = cohort
    write_csv([{"subject": "s9", "class": "bone", "metric": "dice", "value": 0.5}], tmp_path / "scores.csv")
    with pytest.raises(InputError, match="only in the first: s0, s1, s2; only in the second: s9"):
        write_evaluation(NeverCalled(), cases, tmp_path / "out", other=tmp_path / "scores.csv")
    assert list((tmp_path / "out").iterdir()) == []


class NeverCalled(Blurred):
    def __init__(self):
        super().__init__([], 0.0)

    def predict(self, scan, *, inference):
        raise AssertionError("predicted")


def test_a_mean_dice_leaves_the_first_class_and_undefined_values_out():
    rows = [
        {"subject": "a", "class": name, "metric": "dice", "value": value}
        for name, value in (("air", 1.0), ("soft", 0.5), ("bone", math.nan))
    ]
    assert mean_dice(rows) == 0.5
    assert math.isnan(mean_dice(rows[:1]))


def test_the_comparison_of_an_evaluation_before_does_not_stay(cohort, tmp_path):
    (case, *_), truths = cohort
    other = tmp_path / "other.csv"
    rows, _ = write_evaluation(Blurred(truths, 0.05), [case], tmp_path / "out", progress=False)
    write_csv([row for row in rows if not row.get("plane")], other)
    for given in (other, None):
        write_evaluation(Blurred(truths, 0.05), [case], tmp_path / "out", other=given, progress=False)
        assert len(list((tmp_path / "out/tables").glob("comparison.*"))) == 2 * bool(given)
        assert ("paired by subject" in (tmp_path / "out/report.html").read_text(encoding="utf-8")) == bool(
            given
        )


def test_the_page_tells_how_the_network_was_asked_unless_as_ever(cohort, tmp_path):
    cases, truths = cohort
    for asked, told in ((DEFAULT, False), (Inference(mirror_axes=(0,)), True)):
        segmenter = Blurred(truths, 0.05)
        write_evaluation(segmenter, cases, tmp_path, inference=asked, progress=False)
        assert set(map(repr, segmenter.asked)) == {repr(asked)}
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ("mirror_axes" in page) == told and "openvino" not in page
    segmenter.engine, segmenter.precision = "openvino", "int8"
    write_evaluation(segmenter, cases, tmp_path, progress=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "openvino" in page and "int8" in page and "mirror_axes" not in page


@pytest.mark.parametrize("seen", [True, False])
def test_figures_of_subjects_that_were_trained_on_are_marked_on_the_page(cohort, tmp_path, seen):
    cases, truths = cohort
    segmenter = Blurred(truths, 0.05)
    segmenter.provenance = {"source": {"subject_digests": [subject_digest(cases[1])] if seen else []}}
    write_evaluation(segmenter, cases, tmp_path, seen_too=True, progress=False)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("Of the 3 subjects scored, 1 were trained on" in page) == seen


class Blind(Blurred):
    """Finds nothing."""

    def predict(self, scan, *, inference):
        return Maps(np.zeros(scan[0].shape, np.uint8), scan[1])


def test_one_subject_whose_structures_are_all_missed_still_has_its_page(cohort, tmp_path):
    cases, truths = cohort
    rows, text = write_evaluation(Blind(truths, 0), cases[:1], tmp_path, distances=True, progress=False)
    found = {(r["class"], r["metric"]): r["value"] for r in rows if "slice" not in r}
    assert found["bone", "dice"] == found["bone", "recall"] == 0 and found["bone", "hd95_mm"] == math.inf
    assert found["bone", "avd_percent"] == 100 and found["bone", "volume_predicted_ml"] == 0
    assert "\N{INFINITY}" in text and "1 subject, T1w" in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        "limits need two subjects or more" in page and "s0: mean Dice 0.000" in page and "(best)" not in page
    )


# A browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-sync",
    "--disable-component-update", "--disable-background-networking", "--enable-logging=stderr",
)  # fmt: skip
# The page's own policy forbids scripts; a copy with another policy reports on its pictures.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify([...document.images].map(
i => i.complete ? i.naturalWidth : 0).concat(["wide", document.documentElement.scrollWidth > innerWidth])) })
</script></body>"""


def browse(tmp_path, page, *arguments):
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments, page.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probed(tmp_path, text):
    """Widths of the pictures as the browser decoded them (0: broken), whether the page scrolls sideways."""
    assert POLICY in text
    copy = tmp_path / "probed.html"
    copy.write_text(
        text.replace(POLICY, POLICY + "; script-src 'unsafe-inline'").replace("</body>", PROBE),
        encoding="utf-8",
    )
    document, console = browse(tmp_path, copy, "--window-size=1200,900", "--dump-dom")
    found = re.search(r"<title>\[(.*?)\]</title>", document)
    assert found, "the page did not load"
    *widths, _, wide = found[1].replace('"', "").split(",")
    return [int(width) for width in widths], wide == "true", console


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


@needs_browser
def test_a_browser_shows_every_picture_and_heading_without_a_complaint(evaluated, tmp_path):
    page = evaluated[0] / "second" / "report.html"
    document, console = browse(tmp_path, page, "--dump-dom")
    assert console == []
    headings = re.findall(r"<h2>(.*?)</h2>", document)
    assert headings == ["Scores", "Comparison", "Confusion", "Volumes", "Training", "Cases"]
    assert document.count("<table>") == len(FILES)
    widths, wide, _ = probed(tmp_path, page.read_text(encoding="utf-8"))
    assert len(widths) == 4 + 3 and min(widths) > 100  # dots twice, volumes, curves; three cases
    assert not wide


@needs_browser
def test_the_probe_sees_a_broken_picture_and_the_console_a_forbidden_one(evaluated, tmp_path):
    text = (evaluated[0] / "second" / "report.html").read_text(encoding="utf-8")
    widths, _, _ = probed(tmp_path, text.replace("data:image/png;base64,", "data:image/png;base64,AAAA", 1))
    assert widths.count(0) == 1
    outside = tmp_path / "outside.html"
    outside.write_text(
        text.replace("<main>", '<main><img src="https://mrseg.invalid/x.png">'), encoding="utf-8"
    )
    assert any("violates" in line for line in browse(tmp_path, outside, "--dump-dom")[1])


@needs_browser
@pytest.mark.parametrize("width", [1400, 420])
def test_a_screenshot_has_ink_over_its_whole_height(evaluated, tmp_path, width):
    shot = tmp_path / "shot.png"
    browse(
        tmp_path,
        evaluated[0] / "second" / "report.html",
        f"--window-size={width},3000",
        f"--screenshot={shot}",
    )
    seen = np.asarray(Image.open(shot).convert("L")).astype(int)
    assert seen.shape[1] == width
    bands = seen.reshape(10, -1)
    assert (bands.max(axis=1) - bands.min(axis=1) > 100).all()
