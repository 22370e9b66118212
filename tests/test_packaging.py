"""What is installed is whole: data files, types, oldest versions, citation, the files of a wheel."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import mrseg

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?(.*)")


def tree() -> set[str]:
    """The files of the package, as they lie here."""
    files = (
        path for path in (ROOT / "mrseg").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return {path.relative_to(ROOT).as_posix() for path in files}


def requirements(section: str, key: str) -> dict[str, str]:
    """Name -> range, as setup.cfg gives them."""
    found = (REQUIREMENT.fullmatch(line.strip()) for line in SETUP[section][key].strip().splitlines())
    return {match[1].lower(): match[2] for match in found if match}


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements/lowest.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def digits(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def test_every_file_that_is_no_module_is_package_data():
    patterns = {
        (package.replace(".", "/"), pattern.strip())
        for package, listed in SETUP["options.package_data"].items()
        for pattern in listed.split(",")
    }
    for file in tree():
        if not file.endswith(".py"):
            assert any(
                Path(file).match(f"{package}/{pattern}") and file.startswith(package)
                for package, pattern in patterns
            ), file


def test_every_folder_of_modules_is_a_package():
    for file in tree():
        if file.endswith(".py"):
            assert (ROOT / file).with_name("__init__.py").exists(), file


def test_types_are_shipped():
    assert (ROOT / "mrseg/py.typed").exists()
    assert "Typing :: Typed" in SETUP["metadata"]["classifiers"]


def test_every_requirement_has_both_ends():
    for name, span in requirements("options", "install_requires").items():
        assert re.fullmatch(r">=[\d.]+,<[\d.]+", span), f"{name}{span}"


def test_the_oldest_versions_are_those_of_setup_cfg():
    """Each is pinned to the lower end: equal in the digits that the range states, the first of the rest."""
    lowest = pinned()
    ranges = requirements("options", "install_requires")
    for engine in ("openvino", "onnx"):
        ranges |= requirements("options.extras_require", engine)
    for name, span in ranges.items():
        low, high = (digits(end) for end in re.fullmatch(r">=([\d.]+),<([\d.]+)", span).groups())
        version = digits(lowest[name])
        assert version[: len(low)] == low, f"{name}: {lowest[name]} for {span}"
        assert version < high and all(number <= 1 for number in version[len(low) :])


def test_the_citation_is_that_of_this_version():
    card = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert card["cff-version"] == "1.2.0" and card["type"] == "software"
    assert card["version"] == mrseg.__version__
    assert card["license"] == SETUP["metadata"]["license"]
    assert all({"type", "title", "authors"} <= set(reference) for reference in card["references"])
    assert len(card["references"]) == len(list((ROOT / "docs/papers").glob("*.md")))


def test_the_changelog_begins_with_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first[1] == mrseg.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, built in a copy without network."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="68")
    folder = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "runs",
        "site",
        "dist",
        "build",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
        ".coverage*",
    )
    source = Path(shutil.copytree(ROOT, folder / "mrseg", ignore=left_out))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "dist"


@pytest.mark.slow  # builds
def test_the_wheel_holds_the_files_of_the_tree_and_no_other(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")  # nothing to compile
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(about).decode()
    assert {name for name in names if ".dist-info/" not in name} == tree()
    assert any(name.endswith("LICENSE") for name in names)
    assert f"Version: {mrseg.__version__}" in metadata and "Requires-Python: >=3.11" in metadata


@pytest.mark.slow  # builds
def test_the_sdist_holds_what_tests_and_documentation_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "mkdocs.yml", "Makefile"}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert tree() | needed <= names
    assert not [name for name in names if name.endswith((".pyc", ".nii.gz", ".dcm"))]
