"""Method keep on GPTQ's arrays: the values of AutoGPTQ's kernel, the same files back, products from the codes."""

import json
import re
from pathlib import Path
from typing import Any

import packed_words
import pytest
import tiny
import torch
from coded import Arrays, check_refused, keep, same, write_arrays, write_model
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

AT = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS = 64, 128


def quantizer(bits: int = 4, group_size: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": True, **more}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 20


def groups_of(columns: int, size: int, *, is_ordered: bool = False) -> torch.Tensor:
    """The group of each column; with act-order in any order."""
    groups = torch.arange(columns) // size
    return (
        groups[torch.randperm(columns, generator=torch.Generator().manual_seed(1))] if is_ordered else groups
    )


def restored(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """As AutoGPTQ's torch kernel computes: scales[g_idx] * (weight - zeros[g_idx]), in float16."""
    return (scales[groups] * (codes - zeros[groups])).T.contiguous()


def layer(
    bits: int, size: int, *, symmetric: bool = True, is_ordered: bool = False, **options: Any
) -> tuple[Arrays, torch.Tensor]:
    """The arrays of a layer, and its weight."""
    groups = groups_of(COLUMNS, size, is_ordered=is_ordered)
    scales, zeros, codes = packed_words.grid(normal(ROWS, COLUMNS), groups, bits, symmetric=symmetric)
    arrays = packed_words.gptq_arrays(AT, codes, scales, zeros, bits=bits, of_column=groups, **options)
    # Version 1 reads what is stored as the largest number as one more.
    is_least = (zeros == 0) & (options.get("version", 1) == 1)
    return arrays, restored(codes, scales, torch.where(is_least, 1 << bits, zeros), groups)


def source(folder: Path, arrays: Arrays, **config: Any) -> Path:
    return write_arrays(folder / "source", {"quantization_config": quantizer(**config)}, arrays)


def check(folder: Path, weight: torch.Tensor) -> None:
    """Keep a folder of one layer; its weight must be this one."""
    with spqfmt.open(keep(folder)) as file:
        assert set(file) == {f"{AT}.weight"}
        assert same(file.read(f"{AT}.weight"), weight)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize("size", [32, -1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes(tmp_path: Path, bits: int, symmetric: bool, size: int, is_ordered: bool, version: int) -> None:
    of_group = COLUMNS if size == -1 else size
    arrays, weight = layer(bits, of_group, symmetric=symmetric, is_ordered=is_ordered, version=version)
    form = {1: "gptq", 2: "gptq_v2"}[version]
    check(source(tmp_path, arrays, bits=bits, group_size=size, checkpoint_format=form), weight)


@pytest.mark.parametrize(("size", "shared"), [(32, "groups of 32"), (-1, "a scale for each row")])
def test_inspect_says_what_it_was_and_what_coding_saves(tmp_path: Path, size: int, shared: str) -> None:
    arrays, _ = layer(4, COLUMNS if size == -1 else size)
    path = keep(source(tmp_path, arrays, group_size=size))
    report = spqfmt.inspect(path)
    assert report.source is not None
    [tensor] = report.tensors
    there = sum(value.nbytes for value in arrays.values())
    assert report.source.forms == {f"GPTQ int4, {shared}": (1, there, tensor.stored_bytes)}


@pytest.mark.parametrize("word_bits", [8, 16, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_of_other_sizes(tmp_path: Path, bits: int, word_bits: int) -> None:
    arrays, weight = layer(bits, 32, word_bits=word_bits)
    check(source(tmp_path, arrays, bits=bits, pack_dtype=f"int{word_bits}"), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_version_1_reads_the_largest_number_as_one_more(tmp_path: Path, bits: int) -> None:
    """A zero point of 256 is no u8, so those of 8 bits are levels."""
    arrays, _ = layer(bits, 32, version=2)
    zeros = torch.randint(1, (1 << bits) + 1, (4, ROWS), generator=torch.Generator().manual_seed(bits))
    zeros[0, 0] = 1 << bits
    arrays[f"{AT}.qzeros"] = packed_words.in_words((zeros - 1).T, bits).T
    groups = groups_of(COLUMNS, 32)
    codes = packed_words.grid(normal(ROWS, COLUMNS), groups, bits, symmetric=True)[2]
    weight = restored(codes, arrays[f"{AT}.scales"], zeros, groups)
    check(source(tmp_path, arrays, bits=bits, sym=False), weight)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("keep_order", [True, False])
def test_without_a_config_symmetric_codes_say_it_all(tmp_path: Path, keep_order: bool, version: int) -> None:
    arrays, weight = layer(3, 32, is_ordered=keep_order, version=version)
    if not keep_order:
        del arrays[f"{AT}.g_idx"]
    check(write_arrays(tmp_path / "source", {}, arrays), weight)


def test_without_a_config_other_zero_points_may_be_of_either_version(tmp_path: Path) -> None:
    arrays, _ = layer(4, 32, symmetric=False)
    report = spqfmt.pack(write_arrays(tmp_path / "source", {}, arrays), tmp_path / "m.spq")
    assert "because of zero points of a version that no config tells" in report.notes[0]
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical


def test_the_config_of_early_checkpoints_lies_beside(tmp_path: Path) -> None:
    arrays, weight = layer(4, 32, version=2)
    folder = write_arrays(tmp_path / "source", {}, arrays)
    beside = {"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    (folder / "quantize_config.json").write_text(json.dumps(beside))
    check(folder, weight)
    (folder / "quantize_config.json").write_text('{"bits": 4,')
    with pytest.raises(ImporterError, match=r"quantize_config.json: not valid JSON"):
        spqfmt.pack(folder, tmp_path / "m.spq", method="keep")


def test_a_last_group_may_be_smaller(tmp_path: Path) -> None:
    arrays, weight = layer(4, 48, is_ordered=True)
    check(source(tmp_path, arrays, group_size=48), weight)


@pytest.mark.parametrize("size", [1 << 70, 128])
def test_groups_larger_than_the_layer(tmp_path: Path, size: int) -> None:
    arrays, weight = layer(4, COLUMNS)
    check(source(tmp_path, arrays, group_size=size), weight)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_symmetric_zero_points_of_the_other_version_are_refused(
    tmp_path: Path, bits: int, version: int
) -> None:
    arrays, _ = layer(bits, 32, version=version)
    other = {1: "gptq_v2", 2: "gptq"}[version]
    folder = source(tmp_path, arrays, bits=bits, checkpoint_format=other)
    check_refused(folder, f"has the zero points of version {version} where sym is true")


def test_auto_round_packs_as_auto_gptq_does(tmp_path: Path) -> None:
    arrays, weight = layer(4, 32)
    more = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    check(source(tmp_path, arrays, **more), weight)


def test_dynamic_overrides_of_layers(tmp_path: Path) -> None:
    arrays, weight = layer(8, 64)
    own = {"bits": 8, "group_size": 64}
    dynamics = (
        {"-:.*down_proj": {}, r"+:.*\.up_proj": own},
        # The first that matches counts, and those that cannot be looked at may.
        {r"model\.layers\.0\.mlp\.up_proj$": own, "-:.*up_proj": {}},
        {"+:(": {"bits": 2}, "+:x": own},
        {r"+:(.*)*up_proj": {"bits": 2}, "+:x": own},
    )
    for number, dynamic in enumerate(dynamics):
        folder = tmp_path / str(number)
        folder.mkdir()
        check(source(folder, arrays, dynamic=dynamic), weight)


def test_numbers_carried_as_gptqmodel_does(tmp_path: Path) -> None:
    """It takes one off all zero points of a word at once, and adds it so."""
    for bits in (2, 4, 8):
        folder = tmp_path / str(bits)
        folder.mkdir()
        arrays, _ = layer(bits, 32, symmetric=False, version=2)
        zeros = torch.randint(0, 1 << bits, (4, ROWS), generator=torch.Generator().manual_seed(bits))
        # Of 8 bits a carry has no room beside a code, so only the highest number of a word may be the largest.
        zeros = zeros.clamp(min=1) if bits == 8 else zeros
        zeros[:, 32 // bits - 1] = 0
        words = packed_words.in_words(zeros.T, bits).T
        ones = sum(1 << at for at in range(0, 32, bits))
        less = (words.long() - ones) % (1 << 32)
        arrays[f"{AT}.qzeros"] = torch.where(less >= 1 << 31, less - (1 << 32), less).int()
        groups = groups_of(COLUMNS, 32)
        codes = packed_words.grid(normal(ROWS, COLUMNS), groups, bits, symmetric=False)[2]
        weight = restored(codes, arrays[f"{AT}.scales"], zeros, groups)
        check(source(folder, arrays, bits=bits, sym=False, meta={"quantizer": ["gptqmodel:7.7.0"]}), weight)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "llama with a head"])
def test_models_of_other_kinds(tmp_path: Path, family: str) -> None:
    """A Conv1D has its inputs first, experts are matrices of their own, and a head may be quantized as well."""
    folder = tmp_path / "source"
    tiny.build(family.partition(" ")[0], folder, dtype=torch.float16)
    arrays, expected = {}, {}
    for name, value in load_file(folder / "model.safetensors").items():
        linear = value.mT if family == "gpt2" and value.ndim == 2 else value
        is_linear = re.search(r"_proj\.|experts|\.c_(attn|proj|fc)\.|lm_head", name) and value.ndim == 2
        if not is_linear or len(linear) % 8 or linear.shape[1] % 8:
            arrays[name] = value
            continue
        groups = groups_of(linear.shape[1], 16, is_ordered=True)
        scales, zeros, codes = packed_words.grid(linear, groups, 4, symmetric=True)
        weight = restored(codes, scales, zeros, groups)
        expected[name] = weight.T.contiguous() if family == "gpt2" else weight
        arrays |= packed_words.gptq_arrays(
            name.removesuffix(".weight"), codes, scales, zeros, bits=4, of_column=groups
        )
    save_file(
        {name: value.contiguous().clone() for name, value in arrays.items()}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": quantizer(group_size=16)})
    )
    path = keep(folder)
    with spqfmt.open(path) as file:
        assert {name for name in file if file[name].info.scheme == "grouped"} == set(expected)
        assert all(same(file.read(name), weight) for name, weight in expected.items())
    inputs = torch.arange(20)[None]
    with torch.inference_mode():
        logits = spqfmt.load_model(path, packed=False)[0](inputs).logits.float()
        computed = spqfmt.load_model(path, packed=True)[0](inputs).logits.float()
    assert torch.allclose(logits, computed, atol=0.05 * float(logits.std()))


@pytest.mark.parametrize("bits", [3, 4])
def test_inspect_tells_what_the_arrays_took(tmp_path: Path, bits: int) -> None:
    arrays, _ = layer(bits, 32, is_ordered=True)
    report = spqfmt.inspect(keep(source(tmp_path, arrays, bits=bits)))
    assert report.source is not None
    [(form, (n, there, here))] = report.source.forms.items()
    assert (form, n, here) == (f"GPTQ int{bits}, groups of 32", 1, report.tensors[0].stored_bytes)
    assert there == sum(array.numel() * array.element_size() for array in arrays.values())


def test_weights_of_a_conv1d_have_their_inputs_first(tmp_path: Path) -> None:
    arrays, weight = layer(4, 32, is_ordered=True)
    name = "h.0.attn.c_attn"
    config = {"model_type": "gpt2", "quantization_config": quantizer()}
    renamed = {key.replace(AT, name): value for key, value in arrays.items()}
    with spqfmt.open(keep(write_arrays(tmp_path / "source", config, renamed))) as file:
        assert same(file.read(f"{name}.weight"), weight.T.contiguous())


@pytest.mark.parametrize("is_ordered", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False), (2, False), (8, True)])
def test_a_model_computes_from_its_codes(
    tmp_path: Path, bits: int, symmetric: bool, is_ordered: bool
) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        if weight.shape[1] * bits % 32 or len(weight) * bits % 32:
            expected[f"{module}.weight"] = weight.half()
            return {f"{module}.weight": weight.half()}
        groups = groups_of(weight.shape[1], 16, is_ordered=is_ordered)
        scales, zeros, codes = packed_words.grid(weight, groups, bits, symmetric=symmetric)
        zeros = zeros.clamp(min=1)
        expected[f"{module}.weight"] = restored(codes, scales, zeros, groups)
        return packed_words.gptq_arrays(module, codes, scales, zeros, bits=bits, of_column=groups)

    folder = tmp_path / "source"
    write_model(folder, quantizer(bits, 16, desc_act=is_ordered), quantize)
    path = keep(folder)
    model, _ = spqfmt.load_model(path, dtype=torch.float16, packed=False)
    state = model.state_dict()
    assert expected
    assert all(same(state[name], value) for name, value in expected.items())
    assert not plan_model(path).whole
    if is_ordered:
        with spqfmt.open(path) as file:
            records = [file.model.tensors[f"model.layers.1.self_attn.{key}_proj.weight"] for key in "qk"]
        holders = [record.by_role["permutation"].same_as for record in records]
        # Layers of the same inputs have their order once.
        assert [holder is None for holder in holders] == [True, False]
    inputs = torch.arange(20)[None]
    with torch.inference_mode():
        logits = model(inputs).logits.float()
        of_folder = spqfmt.load_model(folder, dtype=torch.float16, packed=False)[0](inputs).logits.float()
        computed = spqfmt.load_model(path, packed=True, dtype=torch.float16)[0](inputs).logits.float()
    assert torch.equal(of_folder, logits)
    assert torch.allclose(logits, computed, atol=0.05 * float(logits.std()))


PLAIN, _ = layer(4, 32)


def changed(**arrays: torch.Tensor) -> Arrays:
    return PLAIN | {f"{AT}.{key}": value for key, value in arrays.items()}


ORDER = PLAIN[f"{AT}.g_idx"]
# arrays, what the config says besides, words of the error
CONTRADICTIONS: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "scales of other groups": (
        changed(scales=torch.ones(5, ROWS).half()),
        {},
        rf"tensor '{AT}.qzeros' of shape \[4, 8\] does not fit '{AT}.scales' of shape \[5, 64\]",
    ),
    "scales of other outputs": (
        changed(scales=torch.ones(4, 32).half()),
        {},
        rf"tensor '{AT}.scales' of shape \[4, 32\] does not fit '{AT}.qweight' of shape \[16, 64\]",
    ),
    "zero points of other outputs": (
        changed(qzeros=torch.zeros(4, 7, dtype=torch.int32)),
        {},
        rf"tensor '{AT}.qzeros' of shape \[4, 7\] does not fit '{AT}.scales'",
    ),
    "other bits": (PLAIN, {"bits": 8}, rf"tensor '{AT}.qzeros' .* and config.json says 8 bits"),
    "bits that nobody has": (PLAIN, {"bits": "four"}, rf"tensor '{AT}.qweight': config.json says bits 'four'"),
    "other groups": (
        PLAIN,
        {"group_size": 64},
        rf"tensor '{AT}.scales' of shape \[4, 64\] does not fit .*, 128 columns in groups of 64",
    ),
    "a group size of nothing": (PLAIN, {"group_size": 0}, rf"tensor '{AT}.qweight': config.json says group_size 0"),
    "an order of other columns": (
        changed(g_idx=ORDER[:64]),
        {},
        rf"tensor '{AT}.g_idx' of shape \[64\] does not fit '{AT}.qweight'",
    ),
    "a group that is not there": (
        changed(g_idx=ORDER + 1), {}, rf"tensor '{AT}.g_idx' names group 4 of 4; download",
    ),
    "an order that is missing": (
        {name: array for name, array in PLAIN.items() if name != f"{AT}.g_idx"},
        {"desc_act": True},
        rf"tensor '{AT}.g_idx' is missing, but config.json says desc_act true; download",
    ),
    "a group below 0": (changed(g_idx=ORDER - 1), {}, rf"tensor '{AT}.g_idx' names group -1 of 4"),
    "a version that nobody knows": (
        PLAIN, {"checkpoint_format": "gptq_v9"}, rf"'{AT}.qweight': config.json says checkpoint_format 'gptq_v9'",
    ),
    "bits that no layer has": (PLAIN, {"bits": 2, "dynamic": {"+:x": {"bits": 8}}}, "and config.json says 2 bits"),
    "no scales": (
        {name: array for name, array in PLAIN.items() if not name.endswith("scales")},
        {},
        rf"tensor '{AT}.scales' is missing beside '{AT}.qweight'; download the model again",
    ),
    "no zero points": (
        {name: array for name, array in PLAIN.items() if not name.endswith("qzeros")}, {}, rf"'{AT}.qzeros' is missing",
    ),
    "scales in a line": (
        changed(scales=torch.ones(4 * ROWS).half()),
        {},
        rf"tensor '{AT}.scales' of shape \[256\] is no matrix, but config.json says GPTQ",
    ),
    "words of another dtype": (
        changed(qzeros=torch.zeros(4, 8)), {}, rf"tensor '{AT}.qweight' .* is of i32, f32, f16, which is not GPTQ",
    ),
    "a config without bits": (PLAIN, {"bits": None}, rf"'{AT}.qweight': what config.json says of GPTQ has no bits"),
    "dynamic of other bits": (
        PLAIN, {"dynamic": {r"+:.*\.(?:gate|up)_proj": {"bits": 8}}}, rf"'{AT}.qzeros' .* and config.json says 8 bits",
    ),
    "dynamic of other groups": (
        PLAIN, {"dynamic": {r".*\.0\..*": {"group_size": 64}}}, rf"'{AT}.scales' .*, 128 columns in groups of 64",
    ),
    "dynamic that leaves it out": (
        PLAIN, {"dynamic": {r"-:.*\.mlp\.": {}}}, rf"'{AT}.qweight' holds codes, but config.json says under dyn",
    ),
    "dynamic that is none": (PLAIN, {"dynamic": 4}, r"its dynamic of quantization is no object"),
    "a scale that is no number": (
        changed(scales=torch.full((4, ROWS), torch.nan).half()), {}, rf"tensor '{AT}.scales' holds scales that are NaN",
    ),
    "another method": (PLAIN, {"quant_method": "awq", "version": "gemm"}, rf"tensor '{AT}.scales' .* does not fit"),
    "a method without such arrays": (
        PLAIN, {"quant_method": "fp8"}, "is stored as GPTQ, but config.json says quant_method 'fp8'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    arrays, config, words = CONTRADICTIONS[kind]
    folder = source(tmp_path, arrays, **config)
    check_refused(folder, words)


# arrays, what the config says besides, because of what they are left
LEFT: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "planes": (PLAIN, {"checkpoint_format": "gptq_p"}, "the format 'gptq_p'"),
    "groups of several sizes": (
        changed(g_idx=torch.zeros(COLUMNS, dtype=torch.int32)),
        {},
        "groups of several sizes, which no scheme has",
    ),
    "outputs that fill no words": (
        changed(
            qweight=PLAIN[f"{AT}.qweight"][:, :60],
            scales=PLAIN[f"{AT}.scales"][:, :60],
        ),
        {},
        "numbers that do not fill whole words",
    ),
    "inputs that fill no words": (
        changed(g_idx=ORDER[:124]),
        {},
        "numbers that do not fill whole words",
    ),
    "a carry of 8 bits": (
        changed(
            qweight=torch.zeros(32, ROWS, dtype=torch.int32),
            qzeros=torch.full((4, 16), 255, dtype=torch.int32),
        ),
        {"bits": 8, "meta": {"quantizer": "gptqmodel:7.7.0"}},
        "zero points of 8 bits with a carry",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_codes_that_would_not_come_back_are_left_alone(tmp_path: Path, kind: str) -> None:
    arrays, config, why = LEFT[kind]
    folder = source(tmp_path, arrays, **config)
    assert {tensor.name for tensor in open_source(folder).as_weights().tensors} == set(arrays)
    report = spqfmt.pack(folder, tmp_path / "m.spq")
    named = f"{AT}.qweight (because of {why}) and what lies beside are of no kind that it knows"
    assert any("quantized already (gptq)" in note and note.endswith(named) for note in report.notes), (
        report.notes
    )
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
