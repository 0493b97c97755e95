"""Which files of a folder are the model: what transformers would load, or a refusal that names both candidates."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from spqfmt.errors import ImporterError
from spqfmt.importers import open_source

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.build("llama", folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same class, in shards with an index."""
    folder = tmp_path_factory.mktemp("cut")
    tiny.build("llama", folder, seed=2, shard="100KB")
    return folder


@pytest.fixture
def both(tmp_path: Path, whole: Path, cut: Path) -> Path:
    """The file of the first beside the shards and the index of the second."""
    shutil.copytree(cut, tmp_path / "both")
    shutil.copy(whole / "model.safetensors", tmp_path / "both")
    return tmp_path / "both"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*-of-*.safetensors"))


def assert_as_transformers_loads_it(folder: Path) -> None:
    """Every parameter of the model that transformers makes of the folder is what the importer gives."""
    with tiny.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    loaded = {tensor.name: tensor.load() for tensor in open_source(folder).tensors}
    assert loaded.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(value, loaded[name]) for name, value in model.named_parameters())


def refusal(folder: Path) -> str:
    with pytest.raises(ImporterError) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_single_file_beside_an_index_of_another_model_is_refused_by_both_names(both: Path) -> None:
    message = refusal(both)
    assert str(both / "model.safetensors") in message
    assert INDEX in message
    assert shards(both)[0].name in message


def test_a_single_file_beside_an_index_of_more_tensors_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "more")
    tensors = load_file(whole / "model.safetensors")
    save_file({**tensors, "extra": torch.ones(2)}, folder / "other.safetensors")
    weight_map = dict.fromkeys([*tensors, "extra"], "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert "other.safetensors" in refusal(folder)


def test_one_model_in_both_forms_is_packed(tmp_path: Path, cut: Path) -> None:
    folder = shutil.copytree(cut, tmp_path / "same")
    tensors = {name: value for shard in shards(cut) for name, value in load_file(shard).items()}
    save_file(tensors, folder / "model.safetensors")
    assert_as_transformers_loads_it(folder)


@pytest.mark.parametrize("n_left", [0, 1])
def test_an_index_whose_shards_are_gone_is_no_candidate(both: Path, n_left: int) -> None:
    for shard in shards(both)[n_left:]:
        shard.unlink()
    assert_as_transformers_loads_it(both)


def test_an_index_whose_shards_are_cut_short_is_no_candidate(both: Path) -> None:
    shards(both)[1].write_bytes(shards(both)[1].read_bytes()[:-1])
    assert_as_transformers_loads_it(both)


def test_an_index_of_the_single_file_agrees_with_it(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "indexed")
    weight_map = dict.fromkeys(load_file(whole / "model.safetensors"), "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_as_transformers_loads_it(folder)


def test_a_broken_index_beside_a_single_file_is_not_looked_at(both: Path) -> None:
    (both / INDEX).write_text("{")
    assert_as_transformers_loads_it(both)


def test_shards_without_an_index_beside_a_single_file_are_left(both: Path) -> None:
    (both / INDEX).unlink()
    assert_as_transformers_loads_it(both)


def test_shards_of_another_number_that_the_index_does_not_name_are_left(tmp_path: Path, cut: Path) -> None:
    folder = shutil.copytree(cut, tmp_path / "saved_twice")
    tiny.build("llama", tmp_path / "old", seed=3, shard="200KB")
    old = shards(tmp_path / "old")
    assert len(old) not in (1, len(shards(cut)))
    for shard in old:
        shutil.copy(shard, folder)
    assert_as_transformers_loads_it(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "a.safetensors",
    ],
)
@pytest.mark.parametrize("form", ["whole", "cut"])
def test_weights_of_others_beside_the_model_are_left(
    tmp_path: Path, name: str, form: str, request: pytest.FixtureRequest
) -> None:
    folder = shutil.copytree(request.getfixturevalue(form), tmp_path / "beside")
    save_file({"model.norm.weight": torch.zeros(64)}, folder / name)
    assert_as_transformers_loads_it(folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "adapter_model.safetensors"])
def test_torch_files_that_transformers_would_load_rather_are_the_model(
    tmp_path: Path, whole: Path, name: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / name)
    torch.save({"model.norm.weight": torch.ones(64)}, folder / "pytorch_model.bin")
    (tensor,) = open_source(folder).tensors
    assert tensor.load().equal(torch.ones(64))


def test_an_adapter_alone_is_called_one(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "adapter")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "an adapter without the model" in refusal(folder)


def test_a_file_that_the_config_names_instead_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "named")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "fp16.safetensors"}))
    assert "'fp16.safetensors'" in refusal(folder)
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "model.safetensors"}))
    assert_as_transformers_loads_it(folder)


@pytest.mark.parametrize(("form", "link"), [("both", "model.safetensors"), ("cut", "model-00002-of-*")])
def test_a_link_to_nothing_is_never_passed_over(
    tmp_path: Path, both: Path, cut: Path, form: str, link: str
) -> None:
    folder = shutil.copytree(both if form == "both" else cut, tmp_path / "snapshot")
    [file] = folder.glob(link)
    file.unlink()
    file.symlink_to("../blobs/gone")
    assert re.search(rf"{re.escape(str(file))}: a link to ", refusal(folder))


def test_a_folder_whose_name_is_not_unicode(tmp_path: Path, whole: Path) -> None:
    folder = shutil.copytree(whole, Path(f"{tmp_path}/caf\udce9"))
    assert len(open_source(folder).tensors) == 21
