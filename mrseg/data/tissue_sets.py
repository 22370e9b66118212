"""Data sets of brain tissues: IBSR18, MRBrainS13, NeoBrainS12. Public as ``mrseg.data.datasets``."""

from __future__ import annotations

from pathlib import Path

from mrseg._checks import choice, error, existing_folder
from mrseg.data.cases import Case
from mrseg.data.layouts import ENDINGS, Layout, folders

# Islam and Tabassum (2025), Data. The course published its test set (2, 10, 15) without labels, so the
# validation set is what results are reported on: it is our test split and decides nothing in training.
_IBSR18_SETS = {"Training_Set": "train", "Validation_Set": "test", "Test_Set": ""}
_IBSR18_SPLITS = {
    **dict.fromkeys((1, 3, 4, 5, 6, 7, 8, 9, 16, 18), "train"),
    **dict.fromkeys((11, 12, 13, 14, 17), "test"),
    **dict.fromkeys((2, 10, 15), ""),
}
_IBSR18_NITRC = ("ana", "ana_strip", "ana_brainmask", "seg_ana", "segTRI_ana", "segTRI_fill_ana")
_IBSR18_REMEDY = "Copy the missing files again; IBSR18 itself comes from www.nitrc.org/projects/ibsr."

_MRBRAINS13_SETS = {"TrainingData": ("train", 5), "TestData": ("test", 15)}
_MRBRAINS13_IMAGES = {"T1w": "T1", "T1IR": "T1_IR", "FLAIR": "T2_FLAIR"}
_MRBRAINS13_LABELS = {"structures": "LabelsForTraining", "tissues": "LabelsForTesting"}

_NEOBRAINS12_TRAINING = "trainingDataNeoBrainS12"
_NEOBRAINS12_TESTS = {
    "40wAxial": ("scans_axial_40", "set1"),
    "30wCoronal": ("scans_cor_30", "set2"),
    "40wCoronal": ("scans_cor_40", "set3"),
}
_NEOBRAINS12_SCANS = ("i1", "i2", "i3", "iC1", "iC2")


def ibsr18(folder: str | Path, *, labels: str = "segTRI") -> list[Case]:
    """Returns the cases of IBSR18: skull-stripped T1-w with manual labels.

    Args:
        folder: in the layout of the course of Islam and Tabassum 2025, ``Training_Set``, ``Validation_Set``
            and ``Test_Set`` (at least one of them), each with ``IBSR_xx/IBSR_xx.nii.gz`` and
            ``IBSR_xx/IBSR_xx_seg.nii.gz``; or in that of NITRC's release "IBSR_V2.0 skull-stripped NIfTI",
            ``IBSR_xx/IBSR_xx_ana_strip.nii.gz`` and ``IBSR_xx/IBSR_xx_segTRI_ana.nii.gz``, and others that
            are not used.
        labels: of NITRC's release: "segTRI", or "segTRI_fill", in which what no label covered inside of the
            brain is CSF. The course's labels leave it background, as "segTRI" does.

    Returns:
        Cases with sequence "T1w" and labels in the numbering of ``mrseg.data.labels.TISSUE_CLASSES``. The
        splits are those of Islam and Tabassum in both layouts: "train" for their training set, "test" for
        their validation set, and none for the test set, whose labels the course did not publish.

    Raises:
        FileNotFoundError: the folder, or files of it; all missing ones are named.
        InputError: no set or no subject in the folder.

    Reference:
        Islam and Tabassum 2025, Data. IBSR18: Center for Morphometric Analysis, Massachusetts General
        Hospital. NITRC's layout: the release notes (nitrc.org/frs/shownotes.php?release_id=2316) tell what
        each subject has; the files' names were read in public programs that use the release, and from one
        of them the meaning of "fill" (nitrc.org/forum/message.php?msg_id=25702, not read itself).
    """
    folder = existing_folder(folder)
    choice("labels", labels, ("segTRI", "segTRI_fill"))
    layout = Layout("IBSR18", _IBSR18_REMEDY)
    cases = []
    for name, split in _IBSR18_SETS.items():
        for subject in folders(folder / name, "IBSR_*"):
            image = layout.volume(subject, subject.name)
            seg = layout.volume(subject, f"{subject.name}_seg", needed=bool(split))
            cases.append(
                Case(subject.name, {"T1w": image}, None, {"T1w": seg} if seg.is_file() else {}, split)
            )
    if not cases:
        cases = _ibsr18_of_nitrc(folder, layout, labels)
    if not cases:
        raise error(
            "The IBSR18 folder holds Training_Set/IBSR_xx, Validation_Set/IBSR_xx or Test_Set/IBSR_xx "
            "(the course's layout), or IBSR_xx/IBSR_xx_ana_strip.nii.gz (NITRC's).",
            f"{folder} with {sorted(entry.name for entry in folder.iterdir())[:5]}",
            "Pass the folder above the sets; IBSR18 itself comes from www.nitrc.org/projects/ibsr.",
        )
    layout.subjects([case.subject for case in cases], [f"IBSR_{number:02}" for number in range(1, 19)])
    layout.close()
    return cases


def _ibsr18_of_nitrc(folder: Path, layout: Layout, labels: str) -> list[Case]:
    cases = []
    for subject in folders(folder, "IBSR_??"):
        layout.allow(subject, (f"{subject.name}_{name}" for name in _IBSR18_NITRC))
        image = layout.volume(subject, f"{subject.name}_ana_strip")
        seg = layout.volume(subject, f"{subject.name}_{labels}_ana")
        number = subject.name.removeprefix("IBSR_")
        split = _IBSR18_SPLITS.get(int(number), "") if number.isdecimal() else ""
        cases.append(Case(subject.name, {"T1w": image}, None, {"T1w": seg}, split))
    return cases


def mrbrains13(folder: str | Path, *, labels: str = "structures") -> list[Case]:
    """Returns the cases of MRBrainS13: adults at 3 T, three sequences on one grid of 0.958 x 0.958 x 3 mm.

    Args:
        folder: holds ``TrainingData/1`` to ``5`` and ``TestData/1`` to ``15`` (at least one of them), each
            with ``T1``, ``T1_IR``, ``T2_FLAIR`` and, in the training data, ``LabelsForTraining`` and
            ``LabelsForTesting``, as ``.nii`` or ``.mhd``. ``T1_1mm``, on another grid than the labels, is
            not used.
        labels: "structures", the eight of ``mrseg.data.labels.MRBRAINS13_CLASSES``, or "tissues", in the
            numbering of ``mrseg.data.labels.TISSUE_CLASSES``, with brain stem and cerebellum as background.
            ``mrseg.data.labels.MRBRAINS13_TO_TISSUE`` merges the first to the second.

    Returns:
        Cases "train-1" and so on, with sequences "T1w", "T1IR" and "FLAIR"; split "train" for the training
        data, "test" for test data that have labels, none for those without.

    Raises:
        FileNotFoundError: the folder, or files of it; all missing ones are named.
        InputError: no subject in the folder.

    Reference:
        https://mrbrains13.isi.uu.nl/data/ (sequences, numbers of subjects, labels) and the Readme.txt that
        comes with the data (names of the files, both kinds of labels), in a public copy. The names of the
        two folders were read in public programs that use the data. Whether the release on DataVerseNL
        (doi.org/10.34894/645ZIN) has labels of the test data was not found out.
    """
    folder = existing_folder(folder)
    choice("labels", labels, tuple(_MRBRAINS13_LABELS))
    layout = Layout("MRBrainS13", "Copy them again; MRBrainS13 comes from doi.org/10.34894/645ZIN.")
    cases, found = [], []
    for name, (split, _) in _MRBRAINS13_SETS.items():
        for subject in sorted(folders(folder / name, "*"), key=lambda path: path.name.zfill(3)):
            layout.allow(subject, ("T1_1mm", *_MRBRAINS13_LABELS.values()))
            images = {sequence: layout.volume(subject, stem) for sequence, stem in _MRBRAINS13_IMAGES.items()}
            seg = layout.volume(subject, _MRBRAINS13_LABELS[labels], needed=split == "train")
            of = dict.fromkeys(images, seg) if seg.is_file() else {}
            found.append(f"{name}/{subject.name}")
            cases.append(Case(f"{split}-{subject.name}", images, None, of, split if of else ""))
    if not cases:
        raise error(
            "The MRBrainS13 folder holds TrainingData/1 or TestData/1.",
            f"{folder} with {sorted(entry.name for entry in folder.iterdir())[:5]}",
            "Pass the folder above the two.",
        )
    published = [f"{name}/{i}" for name, (_, count) in _MRBRAINS13_SETS.items() for i in range(1, count + 1)]
    layout.subjects(found, published)
    layout.close()
    return cases


def neobrains12(folder: str | Path, *, acquisition: str | None = None) -> list[Case]:
    """Returns the cases of NeoBrainS12: newborns, T1-w and T2-w.

    The numbers of the labels were not found in print: compare them with the challenge's list before training
    (``mrseg.data.merge_labels`` renumbers).

    Args:
        folder: holds ``trainingDataNeoBrainS12/<acquisition>/<example>/`` with ``T1*``, ``T2*`` and
            ``manualSegm.nii.gz``, or the test scans ``scans_axial_40/set1_<scan>_t1.nii.gz``,
            ``scans_cor_30/set2_...`` and ``scans_cor_40/set3_...`` (``_t2`` likewise; five scans each), or
            both.
        acquisition: "40wAxial", "30wCoronal" or "40wCoronal" only; None takes all. The three differ in their
            grids and ages, and xu2017 takes them apart.

    Returns:
        Cases named by acquisition and example, with sequences "T1w" and "T2w"; split "train" for those with
        labels, none for the test scans, whose labels were not published. One label map serves both
        sequences; that both lie on its grid is checked when they are read.

    Raises:
        FileNotFoundError: the folder, or files of it; all missing ones are named.
        InputError: no scan of the acquisition in the folder.

    Reference:
        xu2017, Materials: five test scans of each acquisition, two training scans of axial 40 and of coronal
        30 weeks. The publisher's list of files was not found; the names were read in a public program that
        uses the data (github.com/omarocegueda/experiments, dataset_info.py).
    """
    folder = existing_folder(folder)
    if acquisition is not None:
        choice("acquisition", acquisition, tuple(_NEOBRAINS12_TESTS))
    layout = Layout("NeoBrainS12", "Copy them again; NeoBrainS12 comes from neobrains12.isi.uu.nl.")
    cases = []
    for kind in folders(folder / _NEOBRAINS12_TRAINING, "*"):
        for example in folders(kind, "*") if acquisition in (None, kind.name) else ():
            t1, t2 = (layout.volume(example, _stem(example, name)) for name in ("T1", "T2"))
            seg = layout.volume(example, "manualSegm")
            labels = {"T1w": seg, "T2w": seg}
            cases.append(Case(f"{kind.name}-{example.name}", {"T1w": t1, "T2w": t2}, None, labels, "train"))
    for kind_name, (scans, prefix) in _NEOBRAINS12_TESTS.items():
        if acquisition in (None, kind_name) and (folder / scans).is_dir():
            for scan in _NEOBRAINS12_SCANS:
                t1, t2 = (layout.volume(folder / scans, f"{prefix}_{scan}_{name}") for name in ("t1", "t2"))
                cases.append(Case(f"{kind_name}-{scan}", {"T1w": t1, "T2w": t2}))
    if not cases:
        raise error(
            f"The NeoBrainS12 folder holds {_NEOBRAINS12_TRAINING}/<acquisition>/<example> or "
            "scans_axial_40, scans_cor_30, scans_cor_40.",
            f"{folder} with {sorted(entry.name for entry in folder.iterdir())[:5]}",
            "Pass the folder above these.",
        )
    layout.close()
    return cases


def _stem(folder: Path, name: str) -> str:
    """The one stem in the folder that begins with ``name``, else ``name``: T2_1-1.nii.gz or T2.nii.gz."""
    stems = [
        file.name.removesuffix(ending)
        for ending in ENDINGS
        for file in sorted(folder.glob(f"{name}*{ending}"))
        if file.name == f"{name}{ending}" or file.name.startswith(f"{name}_")
    ]
    return stems[0] if len(stems) == 1 else name


def is_ibsr18(folder: Path) -> bool:
    """Whether ``ibsr18`` reads the folder."""
    return any((folder / name).is_dir() for name in _IBSR18_SETS) or bool(folders(folder, "IBSR_??"))


def is_mrbrains13(folder: Path) -> bool:
    """Whether ``mrbrains13`` reads the folder."""
    return any((folder / name).is_dir() for name in _MRBRAINS13_SETS)


def is_neobrains12(folder: Path) -> bool:
    """Whether ``neobrains12`` reads the folder."""
    names = [_NEOBRAINS12_TRAINING, *(scans for scans, _ in _NEOBRAINS12_TESTS.values())]
    return any((folder / name).is_dir() for name in names)
