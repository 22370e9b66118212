from __future__ import annotations

import json

import pytest

import mrseg
from mrseg._checks import InputError
from mrseg.derivatives import describe


def test_a_folder_of_derivatives_says_what_it_is_and_who_made_it(tmp_path):
    describe(tmp_path, "labels")
    content = json.loads((tmp_path / "dataset_description.json").read_text(encoding="utf-8"))
    assert content["DatasetType"] == "derivative" and content["Name"] == "labels"
    assert content["GeneratedBy"] == [{"Name": "mrseg", "Version": mrseg.__version__}]
    describe(tmp_path, "others")  # its own may be written again
    assert json.loads((tmp_path / "dataset_description.json").read_text(encoding="utf-8"))["Name"] == "others"


@pytest.mark.parametrize("text", ['{"Name": "study"}', '{"GeneratedBy": [{"Name": "fmriprep"}]}', "[]", "{"])
def test_another_data_sets_description_stays(tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="a folder of their own.*is not mrseg's"):
        describe(tmp_path, "labels")
    assert (tmp_path / "dataset_description.json").read_text(encoding="utf-8") == text
