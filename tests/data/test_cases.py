from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg.data import cases, io
from mrseg.data.cases import Case


def table(folder, *rows, name="cohort.tsv", files=True):
    """Writes rows (cells separated by spaces) as a table, and an empty file for every cell with a dot."""
    path = folder / name
    path.write_text("".join("\t".join(row.split(" ")) + "\n" for row in rows), encoding="utf-8")
    for cell in (cell for row in rows[1:] for cell in row.split(" ") if files and "." in cell):
        (folder / cell).parent.mkdir(parents=True, exist_ok=True)
        (folder / cell).touch()
    return path


def volume(path, shape=(3, 4, 5), spacing=1.0):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    io.write_volume(path, array, np.diag([spacing, 1, 1, 1]))


def test_a_table_becomes_cases_with_paths_from_its_folder(tmp_path):
    path = table(
        tmp_path,
        "subject T1w T2w ct labels_T1w split",
        "s01 mr/s01_T1.nii.gz n/a s01_ct.nii.gz s01_seg.nii.gz train",
        "s02  s02_T2.nii.gz n/a n/a ",
    )
    assert cases.read_cases(path) == [
        Case(
            "s01",
            {"T1w": tmp_path / "mr/s01_T1.nii.gz"},
            tmp_path / "s01_ct.nii.gz",
            {"T1w": tmp_path / "s01_seg.nii.gz"},
            "train",
        ),
        Case("s02", {"T2w": tmp_path / "s02_T2.nii.gz"}, None, {}, ""),
    ]


def test_labels_of_a_single_sequence_need_no_name(tmp_path):
    path = table(tmp_path, "subject dsc labels", "s01 a.nii b.nii")
    assert cases.read_cases(path)[0].labels == {"dsc": tmp_path / "b.nii"}


def test_labels_belong_to_every_sequence_on_their_grid(tmp_path):
    path = table(tmp_path, "subject T1w T2w FLAIR labels", "s01 a.nii b.nii c.nii seg.nii", files=False)
    for name in ("a.nii", "b.nii", "seg.nii"):
        volume(tmp_path / name)
    volume(tmp_path / "c.nii", spacing=2.0)
    assert cases.read_cases(path)[0].labels == {"T1w": tmp_path / "seg.nii", "T2w": tmp_path / "seg.nii"}


def test_labels_named_for_a_sequence_go_before_the_shared_ones(tmp_path):
    path = table(
        tmp_path, "subject T1w T2w labels labels_T2w", "s01 a.nii b.nii seg.nii own.nii", files=False
    )
    for name in ("a.nii", "b.nii", "seg.nii", "own.nii"):
        volume(tmp_path / name)
    assert cases.read_cases(path)[0].labels == {"T1w": tmp_path / "seg.nii", "T2w": tmp_path / "own.nii"}


def test_labels_on_the_grid_of_no_image_are_refused_with_the_distances(tmp_path):
    path = table(tmp_path, "subject T1w T2w labels", "s01 a.nii b.nii seg.nii", files=False)
    volume(tmp_path / "a.nii", spacing=2.0)
    volume(tmp_path / "b.nii", shape=(3, 4, 6))
    volume(tmp_path / "seg.nii")
    # Three voxels of 2 mm against 1 mm: the last centre is 2 mm away.
    with pytest.raises(InputError, match=r"row 2: labels lie on the grid.*'T1w': 2\.0, 'T2w': inf"):
        cases.read_cases(path)


def test_a_spreadsheets_byte_order_mark_quotes_and_blank_lines_are_read(tmp_path):
    (tmp_path / "a b.nii").touch()
    (tmp_path / "c.tsv").write_bytes(
        b'\xef\xbb\xbfsubject\tT1w\tsplit\r\n\r\ns01\t"a b.nii"\ttrain\r\n\t\t\r\n'
    )
    assert cases.read_cases(tmp_path / "c.tsv")[0].images == {"T1w": tmp_path / "a b.nii"}


def test_absolute_paths_stay(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.nii").touch()
    path = table(tmp_path / "in", "subject T1w", f"s01 {tmp_path / 'a.nii'}", files=False)
    assert cases.read_cases(path)[0].images == {"T1w": tmp_path / "a.nii"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["id T1w", "s01 a.nii"], ["'subject' among them", "'id', 'T1w'", "tabs"]),
        (["subject,T1w", "s01,a.nii"], ["'subject' among them", "tabs"]),
        (["subject T1w T1w", "s01 a.nii b.nii"], ["each column once"]),
        (["subject T1w"], ["at least one row"]),
        ([], ["'subject' among them"]),
        (
            ["subject T1w split", "s01 a.nii training"],
            ["row 2", "train, val, test", "'training'", "'train'?"],
        ),
        (["subject T1w split", "n/a a.nii train"], ["row 2", "names its subject"]),
        (["subject T1w split", "s01 n/a train"], ["row 2", "at least one sequence"]),
        (["subject T1w", "s01 a.nii train"], ["2 cells", "3 in row 2"]),
        (["subject T1w labels_T2w", "s01 a.nii b.nii"], ["labels_T2w needs an image in column T2w"]),
        (["subject ct", "s01 a.nii"], ["at least one sequence"]),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path, rows, words):
    path = table(tmp_path, *rows)
    with pytest.raises(InputError) as caught:
        cases.read_cases(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_file_is_named_with_row_and_column(tmp_path):
    path = table(tmp_path, "subject T1w ct", "s01 a.nii b.nii", "s02 c.nii d.nii")
    (tmp_path / "d.nii").unlink()
    with pytest.raises(FileNotFoundError, match=r"row 3, column ct.*d\.nii"):
        cases.read_cases(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cohort\.tsv"):
        cases.read_cases(tmp_path / "cohort.tsv")


def test_a_binary_table_is_refused(tmp_path):
    (tmp_path / "c.tsv").write_bytes(b"subject\tT1w\n\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        cases.read_cases(tmp_path / "c.tsv")


def test_a_subject_in_two_rows_is_refused_with_both_splits(tmp_path):
    path = table(tmp_path, "subject T1w split", "s01 a.nii train", "s02 b.nii train", "s01 c.nii test")
    with pytest.raises(InputError, match=r"s01 in row 2 \(split 'train'\) and row 4 \('test'\)"):
        cases.read_cases(path)


def test_a_written_table_is_read_back_the_same(tmp_path):
    for name in ("a.nii", "b.nii", "sub/c.nii", "seg.nii", "ct.nii"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "far.nii").touch()
    data = tmp_path / "data"
    wanted = [
        Case(
            "s 01",
            {"T1w": data / "a.nii", "T2w": data / "b.nii"},
            data / "ct.nii",
            {"T2w": data / "seg.nii"},
            "val",
        ),
        Case("s02", {"dsc": data / "sub/c.nii"}),
        Case("s03", {"T2w": tmp_path / "far.nii"}, split="test"),
    ]
    cases.write_cases(wanted, data / "cohort.tsv")
    assert cases.read_cases(data / "cohort.tsv") == wanted


def test_a_written_table_moves_with_its_folder(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.nii").touch()
    cases.write_cases([Case("s01", {"T1w": tmp_path / "old" / "a.nii"})], tmp_path / "old" / "cohort.tsv")
    (tmp_path / "old").rename(tmp_path / "new")
    assert cases.read_cases(tmp_path / "new" / "cohort.tsv")[0].images == {"T1w": tmp_path / "new" / "a.nii"}


def test_relative_paths_are_written_as_seen_from_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii").touch()
    cases.write_cases([Case("s01", {"T1w": Path("data/a.nii")})], "data/cohort.tsv")
    assert (tmp_path / "data" / "cohort.tsv").read_text(encoding="utf-8").splitlines()[1] == "s01\ta.nii\tn/a"


def test_no_cases_make_no_table(tmp_path):
    with pytest.raises(InputError, match="at least one case"):
        cases.write_cases([], tmp_path / "cohort.tsv")


def cohort(*splits):
    return [Case(f"s{i:02}", {"T1w": Path("a.nii")}, split=split) for i, split in enumerate(splits)]


def test_select_returns_one_split_in_order():
    assert [c.subject for c in cases.select(cohort("train", "val", "train"), "train")] == ["s00", "s02"]


def test_an_empty_split_is_refused_with_the_counts_of_the_others():
    with pytest.raises(InputError, match=r"'test' has at least one case.*'train': 1, '\(none\)': 1"):
        cases.select(cohort("train", ""), "test")


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="split is one of train, val, test"):
        cases.select(cohort("train"), "training")


def test_good_splits_pass():
    cases.check_splits(cohort("train", "val", "test", ""))
    cases.check_splits(cohort("train"), required=["train"])


def test_two_sessions_of_one_subject_may_share_its_split():
    cases.check_splits([*cohort("train", "val"), *cohort("train")])


def test_a_subject_in_two_splits_is_refused_by_name():
    with pytest.raises(InputError, match="s00 in 'train' and 'test'"):
        cases.check_splits([*cohort("train", "val"), *cohort("test")])


def test_a_required_split_without_cases_is_refused():
    with pytest.raises(InputError, match="'val' has at least one case"):
        cases.check_splits(cohort("train", "test"))


def test_a_split_nobody_knows_is_refused_with_the_subject():
    with pytest.raises(InputError, match="split of subject s01.*'holdout'"):
        cases.check_splits(cohort("train", "holdout"))


def test_subjects_are_dealt_in_the_papers_proportions():
    # Mecheter et al. 2023: 50 patients, 30 / 10 / 10.
    dealt = cases.split_by_subject(cohort(*[""] * 50), {"train": 0.6, "val": 0.2, "test": 0.2}, seed=0)
    assert Counter(case.split for case in dealt) == {"train": 30, "val": 10, "test": 10}


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 40), st.integers(0, 5), st.tuples(*[st.integers(1, 10)] * 3), st.randoms())
def test_a_split_covers_everyone_once_whatever_the_order(size, seed, weights, random):
    fractions = {name: w / sum(weights) for name, w in zip(cases.SPLITS, weights, strict=True)}
    everyone = cohort(*[""] * size)
    twice = everyone + everyone
    random.shuffle(twice)
    dealt = cases.split_by_subject(twice, fractions, seed)
    cases.check_splits(dealt, required=cases.SPLITS)
    assert [case.subject for case in dealt] == [case.subject for case in twice]
    by_subject = {case.subject: case.split for case in dealt}
    assert by_subject == {c.subject: c.split for c in cases.split_by_subject(everyone, fractions, seed)}
    counts = Counter(by_subject.values())
    for name, share in fractions.items():
        # At most one off the exact share, but for small splits that are lifted to one subject.
        assert counts[name] >= max(1, int(share * size) - 1)


def test_another_seed_deals_otherwise():
    one, other = (
        cases.split_by_subject(cohort(*[""] * 30), {"train": 0.5, "test": 0.5}, seed) for seed in (0, 1)
    )
    assert [c.split for c in one] != [c.split for c in other]


@pytest.mark.parametrize(
    ("fractions", "word"),
    [
        ({"train": 0.5, "val": 0.4}, "sum to 1"),
        ({"train": 1.0, "val": 0.0}, "positive"),
        ({"train": 0.5, "valid": 0.5}, "split is one of"),
        ({}, "sum to 1"),
        ({"train": 0.4, "val": 0.3, "test": 0.3}, "2 subjects for 3 splits"),
    ],
)
def test_bad_fractions_are_refused(fractions, word):
    with pytest.raises(InputError, match=word):
        cases.split_by_subject(cohort("", ""), fractions, seed=0)


@pytest.mark.parametrize("column", ["CT", "Split", "LABELS"])
def test_a_column_that_is_written_large_is_no_sequence(tmp_path, column):
    table = tmp_path / "cohort.tsv"
    table.write_text(f"subject\tT1w\t{column}\na\tb.nii.gz\tc.nii.gz\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"Received: '{column}'. Write '{column.lower()}'"):
        cases.read_cases(table)
