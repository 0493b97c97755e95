"""`unpack --as gptq`: values as AutoGPTQ's layout states them, codes, scales and zero points those of the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch
from coded import same, write_arrays
from packed_models import CALIBRATED, METHODS, OTHERS, values
from safetensors.torch import load_file

import spqfmt
from spqfmt.errors import EncodeError

AS: Literal["gptq"] = "gptq"
Arrays = dict[str, torch.Tensor]
AT = "model.layers.0.mlp.up_proj.weight"


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers along the rows of words, as AutoGPTQ packs them: those of 3 bits run on into the next word."""
    spread = ((words.long()[..., None] >> torch.arange(32)) & 1).reshape(len(words), -1, bits)
    return (spread << torch.arange(bits)).sum(-1)


def settings_of(folder: Path, name: str) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    module = name.removesuffix(".weight")
    own = config.get("dynamic", {}).get("+:^" + module.replace(".", r"\.") + "$", {})
    return {**config, **own}


def restored(folder: Path, arrays: Arrays, name: str) -> torch.Tensor:
    """As its dequantization does, in float32: scale[g] * (code - zero[g]), g the group of the input."""
    stem, settings = name.removesuffix("weight"), settings_of(folder, name)
    bits = settings["bits"]
    codes = fields(arrays[f"{stem}qweight"].T, bits)
    zeros = fields(arrays[f"{stem}qzeros"], bits) + (settings["checkpoint_format"] == "gptq")
    group = arrays[f"{stem}g_idx"].long()
    size = codes.shape[1] if settings["group_size"] == -1 else settings["group_size"]
    assert settings["desc_act"] == (not torch.equal(group, torch.arange(len(group)) // size))
    assert settings["sym"] == bool((zeros == 1 << (bits - 1)).all())
    return arrays[f"{stem}scales"].float()[group].T * (codes - zeros[group].T)


def check(path: Path, folder: Path) -> list[str]:
    """Every value of the folder is that of the file, before layers are rounded; names of these."""
    arrays = load_file(folder / "model.safetensors")
    exact, coded = values(path, torch.float32), []
    for name, value in values(path).items():
        if name.removesuffix("weight") + "qweight" in arrays:
            assert torch.equal(restored(folder, arrays, name), exact[name]), name
            coded.append(name)
        else:
            assert same(arrays[name], value), name
    return coded


FITTING = [what for what in METHODS if "groups" in what or "gptq" in what]


@pytest.mark.parametrize("what", [*FITTING, "gptq, act-order"])
def test_values_are_those_of_the_file(tiny_folder: Callable[[str], Path], tmp_path: Path, what: str) -> None:
    """With rows of whole words for each number of bits."""
    options = METHODS.get(what, {"method": "gptq", "group_size": 16, **CALIBRATED})
    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(tiny_folder("mistral"), path, **options)
    if what == "rtn, groups of 3 bits":
        with pytest.raises(EncodeError, match="176 codes of 3 bits fill no whole words"):
            spqfmt.unpack(path, out, as_=AS)
        return
    report = spqfmt.unpack(path, out, as_=AS)
    assert len(check(path, out)) == 14
    assert set(report.plain) == {"model.embed_tokens.weight", "lm_head.weight"}
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["desc_act"] == (what == "gptq, act-order")
    assert (config["group_size"] == -1) == ("a grid a row" in what)
    assert "dynamic" not in config
    # The importer takes the same arrays as codes.
    spqfmt.pack(out, tmp_path / "again.spq", method="keep")
    again, exact = values(tmp_path / "again.spq", torch.float32), values(path, torch.float32)
    assert all(torch.equal(value, exact[name]) for name, value in again.items())
    with spqfmt.open(tmp_path / "again.spq") as file:
        assert file[AT].info.scheme == "grouped"
    # As GPTQ it is the source's own then; as compressed-tensors, or the other way, the codes are the same.
    assert spqfmt.unpack(tmp_path / "again.spq", tmp_path / "of_source", as_=AS).identical
    if not config["desc_act"]:
        spqfmt.unpack(tmp_path / "again.spq", tmp_path / "other", as_="compressed-tensors")
        spqfmt.pack(tmp_path / "other", tmp_path / "other.spq", method="keep")
        other = values(tmp_path / "other.spq", torch.float32)
        assert all(torch.equal(value, exact[name]) for name, value in other.items())


@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_every_number_of_bits(tmp_path: Path, bits: int, shift: float) -> None:
    """Where all weights of a group are positive its zero point is 0, which only version 2 holds."""
    config = {"architectures": ["LlamaForCausalLM"]}
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(bits)).add(shift).half()
    source = write_arrays(tmp_path / "source", config, {AT: weight})
    spqfmt.pack(source, tmp_path / "m.spq", method="rtn", bits=bits, group_size=32)
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)
    assert check(tmp_path / "m.spq", tmp_path / "out") == [AT]
    settings = settings_of(tmp_path / "out", AT)
    assert settings["bits"] == (8 if bits == 5 else bits)
    assert settings["checkpoint_format"] == ("gptq_v2" if shift else "gptq")


@pytest.mark.parametrize("what", ["outliers", "second level"])
def test_what_lies_on_no_even_grid_is_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    options, why = OTHERS[what]
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", **options)
    with pytest.raises(EncodeError, match=rf"tensor 'model\.layers\.\d\.[\w.]+': .*({why}).*--as dense"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)
    assert [file.name for file in tmp_path.iterdir()] == ["m.spq"]


def test_scales_that_f16_does_not_hold_are_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", method="rtn")
    with pytest.raises(
        EncodeError, match=r"q_proj.weight': its scales are no numbers of F16, which GPTQ does not hold"
    ):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)


def test_a_tied_head_shards_and_routers(tmp_path: Path) -> None:
    tiny.build("llama_tied", tmp_path / "source", dtype=torch.float16)
    options: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 16}
    spqfmt.pack(tmp_path / "source", tmp_path / "m.spq", shard_size="60kB", **options)
    spqfmt.unpack(tmp_path / "m.spq.index.json", tmp_path / "out", as_=AS)
    assert len(check(tmp_path / "m.spq.index.json", tmp_path / "out")) == 14
    tiny.build("mixtral", tmp_path / "experts", dtype=torch.float16)
    spqfmt.pack(tmp_path / "experts", tmp_path / "e.spq", **options)
    spqfmt.unpack(tmp_path / "e.spq", tmp_path / "of_experts", as_=AS)
    assert len(check(tmp_path / "e.spq", tmp_path / "of_experts")) == 2 * (4 + 4 * 3)
    config = json.loads((tmp_path / "of_experts" / "config.json").read_text())["quantization_config"]
    assert len(config["dynamic"]) == 2
    assert all(pattern.startswith("-:^") and "gate" in pattern for pattern in config["dynamic"])


def test_layers_of_other_bits_are_named(tmp_path: Path) -> None:
    """Codes of ggml that lie on an even grid, of two kinds; those with minimums are refused."""
    name = "model.layers.{}.mlp.up_proj.weight"
    generator = torch.Generator().manual_seed(0)
    arrays: Arrays = {}
    for layer, bits in enumerate((4, 4, 8)):
        at = name.format(layer)
        words = torch.randint(-(1 << 31), 1 << 31, (32, 96 * bits // 32), generator=generator).int()
        scales = torch.rand(32, 3, generator=generator).add(0.01).half()
        arrays |= {f"{at}_packed": words, f"{at}_scale": scales, f"{at}_shape": torch.tensor([32, 96])}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(write_arrays(tmp_path / "source", config, arrays), path, method="keep")
    spqfmt.unpack(path, out, as_=AS)
    assert check(path, out) == [name.format(layer) for layer in range(3)]
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["sym"]) == (4, True)
    assert config["dynamic"] == {
        r"+:^model\.layers\.2\.mlp\.up_proj$": {"bits": 8, "group_size": 32, "sym": True, "desc_act": False}
    }
