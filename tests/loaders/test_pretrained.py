"""transformers' from_pretrained on a folder that holds a packed model."""

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

import spqfmt
from spqfmt.container.reader import Reader
from spqfmt.loaders.packed.modules import PackedLinear
from spqfmt.transformers_hook import install, packed_file

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)]])
Folder = Callable[[str], Path]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(INPUTS).logits
    return output


def from_pretrained(folder: Path, **options: Any) -> Any:
    with tiny.quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def packed_folder(source: Path, tmp_path: Path, **options: Any) -> Path:
    report = spqfmt.pack(source, tmp_path / "m.spq", **options)
    spqfmt.unpack(report.files[-1], tmp_path / "folder", keep_packed=True)
    return tmp_path / "folder"


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_lossless_it_is_the_model_of_the_source_folder(
    tmp_path: Path, tiny_folder: Folder, name: str
) -> None:
    folder = packed_folder(tiny_folder(name), tmp_path)
    model, expected = from_pretrained(folder), from_pretrained(tiny_folder(name))
    assert not list(folder.glob("*.safetensors"))
    assert type(model) is type(expected)
    assert model.dtype == expected.dtype
    assert not model.training
    assert torch.equal(logits(model), logits(expected))
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert model.name_or_path == model.config.name_or_path == str(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Grüße, 12 €")["input_ids"]) == "Grüße, 12 €"


def test_while_weights_are_read_nothing_is_looked_through_for_garbage(
    tmp_path: Path, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, on = packed_folder(tiny_folder("llama"), tmp_path), []
    read = Reader.restore

    def restore(*given: Any, **named: Any) -> None:
        on.append(gc.isenabled())
        read(*given, **named)

    monkeypatch.setattr(Reader, "restore", restore)
    from_pretrained(folder)
    spqfmt.load_model(tmp_path / "m.spq")
    assert on
    assert not any(on)
    assert gc.isenabled()


def test_quantized_it_is_the_model_that_load_model_gives(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path, method="rtn", bits=4)
    for dtype in (torch.float32, "bfloat16"):
        expected, _ = spqfmt.load_model(tmp_path / "m.spq", dtype=dtype, packed=False)
        assert torch.equal(logits(from_pretrained(folder, dtype=dtype)), logits(expected))


def test_shards(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path, shard_size=200_000)
    assert len(list(folder.glob("*.spq"))) > 1
    assert torch.equal(logits(from_pretrained(folder)), logits(from_pretrained(tiny_folder("llama"))))


def test_a_partial_file_is_the_same_model(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path)
    spqfmt.repack(folder / "m.spq", folder / "m.spq", partial="every:2", force=True)
    assert torch.equal(logits(from_pretrained(folder)), logits(from_pretrained(tiny_folder("llama"))))


def test_options_of_transformers_reach_it(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path)
    model, info = from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config._attn_implementation == "eager"
    with tiny.quiet():
        bare = transformers.AutoModel.from_pretrained(folder)
        direct = transformers.LlamaForCausalLM.from_pretrained(folder, output_attentions=True)
    assert type(bare) is transformers.LlamaModel
    assert direct.config.output_attentions
    assert torch.equal(bare.embed_tokens.weight, model.model.embed_tokens.weight)
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "below").symlink_to(folder)
    below = from_pretrained(tmp_path / "above", subfolder="below")
    assert torch.equal(logits(below), logits(from_pretrained(folder)))


def test_a_ceiling_gives_packed_layers(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path, method="rtn", bits=8)
    model = from_pretrained(folder, memory="10MiB")
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)
    expected, _ = spqfmt.load_model(tmp_path / "m.spq", memory="10MiB")
    assert torch.equal(logits(model), logits(expected))
    with pytest.raises(spqfmt.MemoryBudgetError):
        from_pretrained(folder, memory=1000)
    with pytest.raises(spqfmt.OptionError, match="not a LlamaModel"), tiny.quiet():
        transformers.AutoModel.from_pretrained(folder, packed=True)


def test_inputs_are_treated_as_the_file_asks(tmp_path: Path, tiny_folder: Folder) -> None:
    options = {"method": "smoothquant", "samples": 2, "seq_len": 32}
    folder = packed_folder(tiny_folder("llama"), tmp_path, **options)
    with Reader(tmp_path / "m.spq") as reader:
        assert any(tensor.activation_quantization for tensor in reader.index.tensors)
    expected, _ = spqfmt.load_model(tmp_path / "m.spq", dtype=torch.float32, packed=False)
    assert torch.equal(logits(from_pretrained(folder, dtype=torch.float32)), logits(expected))


def test_a_folder_that_transformers_can_load_is_left_to_it(tmp_path: Path, tiny_folder: Folder) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "both")
    (tmp_path / "both" / "broken.spq").write_bytes(b"never read")
    assert torch.equal(
        logits(from_pretrained(tmp_path / "both")), logits(from_pretrained(tiny_folder("llama")))
    )


def test_the_folder_can_be_given_by_the_name_that_transformers_has_for_it(
    tmp_path: Path, tiny_folder: Folder
) -> None:
    llama = transformers.LlamaForCausalLM
    with tiny.quiet():
        source = llama.from_pretrained(pretrained_model_name_or_path=tiny_folder("llama"))
        packed = llama.from_pretrained(
            pretrained_model_name_or_path=packed_folder(tiny_folder("llama"), tmp_path)
        )
    assert torch.equal(logits(packed), logits(source))


def test_what_is_no_folder_with_a_packed_model(tmp_path: Path) -> None:
    (tmp_path / "m.spq").write_bytes(b"")
    assert packed_file(tmp_path) == packed_file(str(tmp_path)) == tmp_path / "m.spq"
    for other in (None, 3, "no/such-folder", tmp_path / "m.spq", ""):
        assert packed_file(other) is None
    (tmp_path / "m.spq.index.json").write_bytes(b"")
    assert packed_file(tmp_path) == tmp_path / "m.spq.index.json"
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert packed_file(tmp_path) is None


def test_two_packed_models_in_a_folder_are_refused(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path)
    shutil.copy(folder / "m.spq", folder / "n.spq")
    with pytest.raises(spqfmt.OptionError, match=r"more than one packed model in it: m\.spq, n\.spq"):
        from_pretrained(folder)


def test_a_damaged_chunk_is_raised_as_such(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path)
    with Reader(folder / "m.spq") as reader:
        offset = reader.index.tensors[3].streams[0].chunks[0].planes[0].offset
    damaged = bytearray((folder / "m.spq").read_bytes())
    damaged[offset] ^= 1
    (folder / "m.spq").write_bytes(damaged)
    with pytest.raises(spqfmt.ChecksumError, match=r"m\.spq: tensor"):
        from_pretrained(folder)


def test_a_config_of_another_quantization_format_is_refused(tmp_path: Path, tiny_folder: Folder) -> None:
    folder = packed_folder(tiny_folder("llama"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(spqfmt.UnsupportedError, match="another format"):
        from_pretrained(folder)


def test_a_state_dict_is_not_our_concern(tmp_path: Path, tiny_folder: Folder) -> None:
    expected = from_pretrained(tiny_folder("llama"))
    with tiny.quiet():
        model = transformers.LlamaForCausalLM.from_pretrained(
            None, config=expected.config, state_dict=expected.state_dict()
        )
    assert torch.equal(logits(model), logits(expected))


def test_installing_again_wraps_nothing_twice() -> None:
    before = transformers.PreTrainedModel.from_pretrained.__func__
    install()
    assert transformers.PreTrainedModel.from_pretrained.__func__ is before


def test_an_asset_with_the_name_of_the_file_is_refused(tmp_path: Path, tiny_folder: Folder) -> None:
    from spqfmt.exporters.huggingface import export_huggingface

    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq")
    with pytest.raises(spqfmt.EncodeError, match="no name that may be written into a folder"):
        export_huggingface(tmp_path / "out", [], {"m.spq": b"other"}, copies=[tmp_path / "m.spq"])
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


@pytest.mark.parametrize(
    "imports",
    [
        "spqfmt, transformers.modeling_utils",
        "transformers.modeling_utils, spqfmt",
        # Who only asks where the module is must not use up the hook.
        "spqfmt, importlib.util as u; u.find_spec('transformers.modeling_utils'); import transformers.modeling_utils",
    ],
)
def test_the_order_of_the_imports_does_not_matter(imports: str) -> None:
    code = f"import {imports}\nassert transformers.PreTrainedModel.from_pretrained.__func__.is_of_spqfmt"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_importing_spqfmt_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, spqfmt\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
