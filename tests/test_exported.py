from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import mrseg
from mrseg._checks import InputError
from mrseg.cli import main
from mrseg.data import phantom
from mrseg.exported import CARD
from mrseg.passes import Inference

FORMATS = ("openvino", "onnx")


@pytest.fixture(scope="module")
def segmenter():
    return mrseg.Segmenter.load("phantom_t1_unet")


@pytest.fixture(scope="module")
def scan():
    return phantom.mr_image(phantom.head(3, shape=(40, 48, 40)), "T1w")


@pytest.fixture(scope="module")
def folders(segmenter, tmp_path_factory):
    place = tmp_path_factory.mktemp("exports")
    return {name: segmenter.export(place / name, format=name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_gives_the_segmenter_s_labels_without_keras(name, folders, segmenter, scan, tmp_path):
    file = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(*scan), file)
    code = (
        "import sys, numpy as np, mrseg\n"
        f"maps = mrseg.Exported.load({str(folders[name])!r}).predict({str(file)!r}, probabilities=True)\n"
        f"np.savez({str(tmp_path / 'maps.npz')!r}, labels=maps.labels, probabilities=maps.probabilities)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    known = segmenter.predict(file, probabilities=True)
    with np.load(tmp_path / "maps.npz") as maps:
        np.testing.assert_allclose(maps["probabilities"], known.probabilities, atol=1e-4)
        first, second = np.sort(known.probabilities, -1)[..., :-3:-1].transpose(3, 0, 1, 2)
        clear = first - second > 1e-3
        assert clear.mean() > 0.99 and len(np.unique(known.labels)) == 3
        np.testing.assert_array_equal(maps["labels"][clear], known.labels[clear])


def test_the_card_says_what_the_segmenter_is(folders, segmenter):
    exported = mrseg.Exported.load(folders["onnx"], threads=1)
    for name in (
        "preprocessing",
        "sampling",
        "class_names",
        "sequence",
        "crf",
        "postprocessing",
        "provenance",
    ):
        assert getattr(exported, name) == getattr(segmenter, name)
    card = json.loads((folders["onnx"] / CARD).read_text())
    assert card["digest"] == segmenter.digest
    assert card["input_shape"] == [2, *segmenter.sampling.input_shape]


@pytest.mark.parametrize("name", FORMATS)
def test_the_readme_s_call_runs_beside_the_network(name, folders, segmenter):
    text = (folders[name] / "README.md").read_text()
    assert f"(batch, the same axes, {len(segmenter.class_names)} classes)" in text
    call = text.split("```python")[-1].split("```")[0]
    shape = (2, *segmenter.sampling.input_shape)
    code = f"import numpy as np\nbatch = np.zeros({shape}, np.float32)\n{call}\nprint(probabilities.shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folders[name], check=True, capture_output=True, encoding="utf-8"
    )
    assert done.stdout.strip() == str((*shape[:-1], len(segmenter.class_names)))


@pytest.mark.parametrize(
    "changes", [{"extent": "whole"}, {"dropout_samples": 3}, {"batch_size": 5}], ids=lambda c: next(iter(c))
)
def test_what_a_fixed_network_cannot_do_is_refused(changes, folders, scan):
    with pytest.raises(InputError, match="batches of a fixed size.*ask the segmenter itself"):
        mrseg.Exported.load(folders["onnx"]).predict(scan, inference=Inference(**changes))


def test_mirrors_and_entropy_are_as_the_segmenter_s(folders, segmenter, scan):
    inference = Inference(mirror_axes=(0,), uncertainty="entropy", overlap=0.5)
    ours = mrseg.Exported.load(folders["onnx"]).predict(scan, inference=inference)
    np.testing.assert_allclose(
        ours.uncertainty, segmenter.predict(scan, inference=inference).uncertainty, atol=1e-3
    )


def test_a_damaged_export_is_refused(folders, segmenter, tmp_path):
    folder = segmenter.export(tmp_path / "e", format="onnx")
    with open(folder / "network.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="another checksum"):
        mrseg.Exported.load(folder)
    (folder / CARD).write_text("{}")
    with pytest.raises(InputError, match="format is one of"):
        mrseg.Exported.load(folder)
    (folder / CARD).unlink()
    with pytest.raises(FileNotFoundError, match="without export.json.*mrseg export"):
        mrseg.Exported.load(folder)


def test_an_export_replaces_an_export_and_nothing_else(segmenter, tmp_path):
    folder = segmenter.export(tmp_path / "e", format="onnx", batch_size=1)
    assert mrseg.Exported.load(segmenter.export(folder, format="onnx", batch_size=3)).batch_size == 3
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="replaces an export or an empty folder only"):
        segmenter.export(kept, format="onnx")
    assert [f.name for f in kept.iterdir()] == ["thesis.txt"]


def test_the_command_writes_an_export(tmp_path, capsys):
    assert (
        main(
            ["export", "--segmenter", "phantom_t1_unet", "--format", "onnx", "--output", str(tmp_path / "e")]
        )
        == 0
    )
    assert str(tmp_path / "e") in capsys.readouterr().out
    assert mrseg.Exported.load(tmp_path / "e").class_names == ("air", "soft", "bone")
    bad = ["export", "--segmenter", "phantom_t1_unet", "--format", "onnx", "--batch-size", "0"]
    assert main([*bad, "--output", str(tmp_path / "e")]) == 2
