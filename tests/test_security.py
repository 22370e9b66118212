"""What SECURITY.md promises: no code from files, nothing sent, nothing of a DICOM header in what is told."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrseg import cli
from mrseg.data import Preprocessing, Sampling, phantom
from mrseg.models import unet
from mrseg.segmenter import Segmenter

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "mrseg").rglob("*.py"))
#: Modules that run what a file says, or that only talk to other hosts.
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "tarfile", "ftplib", "http",
    "requests", "smtplib", "socket", "telnetlib", "urllib.request", "urllib3", "xmlrpc",
}  # fmt: skip
#: Where one is allowed: jobs travel so to Dask workers, which are the user's own; no file is read.
ALLOWED = {"mrseg/jobs.py": {"pickle", "cloudpickle"}}
CALLS = {"eval", "exec", "compile", "__import__"}
#: Function -> the arguments that it must be called with.
GUARDED = {
    ("np", "load"): {"allow_pickle": False},
    ("numpy", "load"): {"allow_pickle": False},
    ("saving", "load_model"): {"safe_mode": True},
    ("models", "load_model"): {"safe_mode": True},
}
FORBIDDEN = {
    ("yaml", "load"), ("yaml", "full_load"), ("yaml", "unsafe_load"), ("yaml", "load_all"), ("os", "system"),
    ("config", "enable_unsafe_deserialization"), ("shutil", "unpack_archive"), ("np", "fromregex"),
}  # fmt: skip


def findings(source: str) -> list[str]:
    """What a module does that it may not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in MODULES]
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES and a.name not in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            found += sorted(name for name in full if name in MODULES or name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    function = node.func
    given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    if isinstance(function, ast.Name):
        return [function.id] if function.id in CALLS else []
    if not isinstance(function, ast.Attribute):
        return []
    owner = function.value
    name = getattr(owner, "id", getattr(owner, "attr", ""))
    if (name, function.attr) in FORBIDDEN or given.get("shell") is True:
        return [f"{name}.{function.attr}"]
    if function.attr in ("extract", "extractall"):
        return [f"{name}.{function.attr}"]
    wanted = GUARDED.get((name, function.attr), {})
    return [
        f"{name}.{function.attr} without {key}={value}"
        for key, value in wanted.items()
        if given.get(key) is not value
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_what_a_file_says_or_talks_to_other_hosts(path):
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), set())
    assert set(findings(path.read_text(encoding="utf-8"))) == allowed


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import load", "import urllib.request", "from urllib import request",
        "import requests.sessions", "eval('1')", "np.load('x.npz')", "np.load('x.npz', allow_pickle=True)",
        "keras.saving.load_model('x.keras')", "keras.saving.load_model('x.keras', safe_mode=False)",
        "yaml.load(text, Loader)", "archive.extractall(folder)", "subprocess.run('ls', shell=True)",
        "keras.config.enable_unsafe_deserialization()", "import tarfile",
    ],
)  # fmt: skip
def test_the_reader_of_sources_sees_each_of_these(line):
    assert len(findings(line)) >= 1


@pytest.mark.parametrize(
    "line", ["from urllib.parse import quote", "yaml.safe_load(text)", "np.load('x', allow_pickle=False)"]
)
def test_the_reader_of_sources_lets_these_pass(line):
    assert findings(line) == []


def test_only_jobs_in_memory_are_pickled():
    """`dumps` and `loads` of bytes, never `dump` and `load` of a file."""
    text = (ROOT / "mrseg/jobs.py").read_text(encoding="utf-8")
    assert set(re.findall(r"pickle\.(\w+)", text)) <= {"dumps", "loads"}


def test_yaml_that_names_python_objects_is_refused(tmp_path, capsys):
    page = tmp_path / "evil.yaml"
    page.write_text(
        "!!python/object/apply:os.system ['touch " + str(tmp_path / "ran") + "']", encoding="utf-8"
    )
    assert cli.main(["recipes", str(page)]) == 2
    assert not (tmp_path / "ran").exists()
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_importing_and_using_the_library_opens_no_connection():
    """In a process of its own, in which every socket is an error."""
    script = """
import socket
def refuse(*_, **__):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import mrseg
from mrseg.data import Preprocessing, Sampling, phantom
from mrseg.models import unet
from mrseg.segmenter import Segmenter
one = mrseg.Segmenter.load("phantom_t1_unet")
image = phantom.mr_image(phantom.head(1, shape=(16, 20, 16)), "T1w")
assert one(image).shape == image[0].shape
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=300)
    assert socket.socket.connect  # of this process, untouched


# What identifies a patient


def dicom_files():
    path = ROOT / "tests/data/dicom_files.py"
    spec = importlib.util.spec_from_file_location("dicom_files", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Tags beside those that every slice of the tests has.
IDENTIFYING = {
    "0008|0080": ("LO", "St Elsewhere"),  # institution
    "0008|0090": ("PN", "Referrer^Ruth"),  # referring physician
    "0008|1070": ("PN", "Operator^Olga"),
    "0010|1040": ("LO", "12 Lime Street"),  # address
    "0008|0022": ("DA", "20240301"),  # acquisition date
    "0010|4000": ("LT", "comment on Janet"),
    "0018|1000": ("LO", "SERIAL998"),  # of the scanner
    "0020|0010": ("SH", "STUDY5512"),
}
FOLDER = "DOE_JANET_19520617"


def secrets(files) -> list[str]:
    return [*files.SECRETS.values(), *(text for _, text in IDENTIFYING.values()), FOLDER]


def write_series(files, folder: Path, volume, modality: str, sop: str) -> Path:
    """A RAS+ volume as a DICOM series with names, dates and places in its headers."""
    files.VR.update({tag: vr for tag, (vr, _) in IDENTIFYING.items()})
    array, affine = volume
    lps = np.diag([-1, -1, 1]) @ affine[:3]
    origins = (lps @ np.array([[0, 0, k, 1] for k in range(array.shape[2])]).T).T
    tags = {tag: text for tag, (_, text) in IDENTIFYING.items()}
    # Half of Hounsfield's unit or so is lost: voxels are whole numbers.
    return files.write_stack(
        folder, np.round(array).astype("<i2"), lps[:, :2], origins,
        {**tags, "0008|0060": modality, "0008|0016": sop, "0008|103e": "SERIES"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two heads, MR and CT on one grid, in folders that bear a patient's name."""
    files, root = dicom_files(), tmp_path_factory.mktemp("study")
    rows = ["subject\tT1w\tct\tsplit"]
    for seed, (subject, split) in enumerate({"s01": "train", "s02": "test"}.items(), start=1):
        head = phantom.head(seed, shape=(32, 36, 24))
        place = root / subject
        mr = phantom.mr_image(head, "T1w")
        ct, _ = phantom.ct_image(head, misalignment=False, shape=(32, 36, 24))
        write_series(files, place / f"{FOLDER}_mr", mr, "MR", files.MR)
        write_series(files, place / f"{FOLDER}_ct", (ct[0], mr[1]), "CT", files.CT)
        rows.append(f"{subject}\t{subject}/{FOLDER}_mr\t{subject}/{FOLDER}_ct\t{split}")
    (root / "cohort.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    header = (root / "s01" / f"{FOLDER}_mr" / "000.dcm").read_bytes()
    assert all(secret.encode() in header for secret in secrets(files) if secret != FOLDER)
    return root


def told(folder: Path) -> bytes:
    """Names and contents of all files below a folder, unpacked, but for those that list the user's own."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(path.relative_to(folder).as_posix().encode())
        if path.is_file() and path.name not in ("cohort.tsv", "run.json"):
            content = path.read_bytes()
            parts.append(gzip.decompress(content) if path.suffix == ".gz" else content)
    return b"\n".join(parts)


def assert_untold(text: bytes, but: tuple[str, ...] = ()) -> None:
    found = [word for word in secrets(dicom_files()) if word not in but and word.encode() in text]
    assert not found, [text[max(0, text.index(w.encode()) - 80) :][:200] for w in found]


def run(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_from_dicom_to_report_nothing_identifies_a_patient(study, tmp_path, caplog, capfd, trained):
    """Prepare, train, predict, evaluate; every file, every line on the screen, every record of the log."""
    caplog.set_level(logging.DEBUG)
    run("prepare", study / "cohort.tsv", "--output", tmp_path / "prepared", "--registered", "--workers", 1)
    segmenter = tmp_path / "t1" / "segmenter"
    if trained:
        small = ["training.epochs=1", "network.arguments.filters=2", "preprocessing.shape=[32,32,16]",
                 "preprocessing.spacing_mm=[7.0,7.0,9.0]", "sampling.patch_shape=[32,32,1]"]  # fmt: skip
        run("train", "phantom_t1_slices", "--data", tmp_path / "prepared", "--output", tmp_path / "t1",
            *(word for key in small for word in ("--set", key)))  # fmt: skip
    else:
        grid = Preprocessing(grid="head", shape=(32, 32, 16), spacing_mm=(7.0, 7.0, 9.0), normalization="lcn")
        model = unet((32, 32, 1), num_classes=3, filters=2)
        Segmenter(model, grid, Sampling((32, 32, 1)), ("air", "soft", "bone"), "T1w").save(segmenter)
    scan = study / "s02" / f"{FOLDER}_mr"
    run("predict", "--segmenter", segmenter, "--input", scan, "--output", tmp_path / "one" / "dseg.nii.gz")
    run("predict", "--segmenter", segmenter, "--data", study / "cohort.tsv", "--output", tmp_path / "all")
    run("brainmask", "--input", scan, "--output", tmp_path / "mask.nii.gz", "--method", "otsu")
    ct = study / "s02" / f"{FOLDER}_ct"
    run("attenuation", "--ct", ct, "--kvp", 120, "--outside", 0, "--output", tmp_path / "mu.nii.gz")
    run(
        "evaluate", "--segmenter", segmenter, "--data", tmp_path / "prepared", "--output", tmp_path / "scores"
    )
    screen = "".join(capfd.readouterr())
    assert_untold(told(tmp_path))
    # Paths of the user's own files may be named in messages, headers never.
    assert_untold((screen + caplog.text).encode(), but=(FOLDER, "19520617"))
    for needed in ("prepared/quality.html", "one/dseg.json", "scores/report.html", "mask.png", "mu.json"):
        assert (tmp_path / needed).exists()


@pytest.mark.parametrize("damage", ["0020|0032", "0028|0030"])
def test_the_error_of_a_damaged_series_repeats_no_header(tmp_path, capsys, damage):
    files = dicom_files()
    head = phantom.head(1, shape=(16, 20, 16))
    folder = write_series(files, tmp_path / "mr", phantom.mr_image(head, "T1w"), "MR", files.MR)
    content = (folder / "003.dcm").read_bytes()
    group, number = (int(part, 16) for part in damage.split("|"))
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little") + b"DS"
    at = content.index(tag) + 8
    (folder / "003.dcm").write_bytes(content[:at] + b"Doe" + content[at + 3 :])
    assert cli.main(["convert", str(folder), "--output", str(tmp_path / "x.nii.gz")]) == 2
    printed = "".join(capsys.readouterr())
    assert re.search(r"003\.dcm", printed)
    assert_untold(printed.encode())
    assert "Doe" not in printed  # what stands in the damaged tag
