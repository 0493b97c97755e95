"""Method keep on bitsandbytes: levels of four bits in blocks, nested scales, bytes; its values, the same files."""

import json
from pathlib import Path
from typing import Any

import levels
import pytest
import torch
from coded import Arrays, check_loaded, check_refused, keep, same, write_arrays, write_model

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

AT = "model.layers.0.mlp.up_proj.weight"
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}


def four_bits(kind: str) -> dict[str, Any]:
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def restored(arrays: Arrays, name: str = AT) -> torch.Tensor:
    """As the library's plain kernels do: all in float32, rounded once to the dtype that the state names."""
    [text] = [value for key, value in arrays.items() if key.startswith(f"{name}.quant_state.")]
    state = json.loads(bytes(text.tolist()))
    packed = arrays[name].flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten().long()
    scales = arrays[f"{name}.absmax"]
    if scales.dtype == torch.uint8:
        steps = arrays[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])
        scales = arrays[f"{name}.nested_quant_map"][scales.long()] * steps[: len(scales)]
        scales = scales + torch.tensor(state["nested_offset"])
    spread = scales.repeat_interleave(state["blocksize"])[: len(codes)]
    values = arrays[f"{name}.quant_map"][codes] * spread
    return values.reshape(state["shape"]).to(getattr(torch, state["dtype"]))


def of_bytes(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As its int8_vectorwise_dequant does."""
    return codes * scales[:, None] * 7.874015718698502e-3


GRIDS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "blocks in rows": ((24, 128), 64, {"group_size": 64}),
    "256 scales are no whole rows": ((100, 192), 64, {"group_size": 64}),
    "blocks of whole rows": ((24, 64), 256, {"group_size": 64, "group_rows": 4}),
    "blocks of whole rows, the last one short": ((6, 64), 256, {"group_size": 64, "group_rows": 4}),
    "rows end within blocks": ((64, 176), 64, {"group_size": 64, "view": (176, 64)}),
    "a last block that is short": ((5, 174), 64, {"group_size": 64, "view": (1, 870)}),
    "a block that is longer than all": ((4, 64), 4096, {"group_size": 64, "group_rows": 4}),
    "large blocks": ((40, 1024), 4096, {"group_size": 1024, "group_rows": 4}),
    "experts": ((3, 8, 128), 64, {"group_size": 64}),
    "experts whose rows end within blocks": ((3, 8, 40), 64, {"group_size": 64, "view": (15, 64)}),
    "a vector": ((130,), 64, {"group_size": 64, "view": (1, 130)}),
}


@pytest.mark.parametrize("is_nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_of_four_bits(tmp_path: Path, grid: str, kind: str, is_nested: bool) -> None:
    shape, block, expected = GRIDS[grid]
    if is_nested and grid == "256 scales are no whole rows":
        expected = expected | {"view": (300, 64)}
    dtype = torch.bfloat16 if kind == "nf4" else torch.float16
    arrays = levels.four_bits(AT, normal(*shape).to(dtype), kind, is_nested=is_nested, block=block)
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": four_bits(kind)}, arrays))
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        record = file.model.tensors[AT]
        assert {"view": record.view, **record.parameters}.items() >= expected.items()
        assert same(file.read(AT), restored(arrays))
        assert same(file.read(AT)[-1], restored(arrays)[-1])
    [tensor] = open_source(tmp_path / "source").as_weights().tensors
    assert same(tensor.load(), restored(arrays))


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32, torch.int8], ids=str)
def test_bytes_may_lie_in_another_dtype(tmp_path: Path, storage: torch.dtype) -> None:
    arrays = levels.four_bits(AT, normal(16, 128).bfloat16(), "nf4", is_nested=True)
    arrays[AT] = arrays[AT].flatten().view(storage).unsqueeze(1)
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": four_bits("nf4")}, arrays))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(arrays))


def test_levels_are_those_of_the_file(tmp_path: Path) -> None:
    """A map of another version of the library, and one in which several codes mean the same."""
    arrays = levels.four_bits(AT, normal(16, 128).bfloat16(), "nf4")
    arrays[f"{AT}.quant_map"] = (normal(16) * 1e-3).round(decimals=3)
    path = keep(write_arrays(tmp_path / "source", {}, arrays))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(arrays))


@pytest.mark.parametrize("has_format", [False, True])
def test_codes_of_bytes(tmp_path: Path, has_format: bool) -> None:
    arrays = levels.int8(AT, normal(24, 40).bfloat16())
    arrays[AT][0, :3] = torch.tensor([-128, 127, 0])
    if not has_format:
        arrays = {name: value for name, value in arrays.items() if not name.endswith("_format")}
    config = {"quantization_config": INT8, "dtype": "float32"}
    path = keep(write_arrays(tmp_path / "source", config, arrays))
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        assert same(file.read(AT), of_bytes(arrays[AT], arrays[AT.replace("weight", "SCB")]))


@pytest.mark.parametrize("kind", ["nf4", "nf4-nested", "fp4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_loads_with_the_values_of_its_library(tmp_path: Path, kind: str, name: str) -> None:
    """Its Conv1D layers, which the library turns before it makes codes of them, come back as they were."""
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        at = f"{module}.weight"
        weight = weight.t().contiguous() if name == "gpt2" else weight
        if kind == "int8":
            arrays = levels.int8(at, weight)
            value = of_bytes(arrays[at], arrays[f"{module}.SCB"]).bfloat16()
        else:
            arrays = levels.four_bits(at, weight, kind[:3], is_nested=kind.endswith("nested"))
            value = restored(arrays, at)
        expected[at] = value.t().contiguous() if name == "gpt2" else value
        return arrays

    source = tmp_path / "source"
    write_model(source, INT8 if kind == "int8" else four_bits(kind[:3]), quantize, name)
    path = keep(source)
    assert len(expected) == {"llama": 14, "gpt2": 4}[name]
    check_loaded(path, source, expected)
    if kind == "int8":
        assert not plan_model(path).whole
    weights = (source / "model.safetensors").stat().st_size
    assert path.stat().st_size < 0.97 * weights


@pytest.mark.parametrize("is_nested", [False, True], ids=["plain", "nested"])
def test_a_turned_matrix_whose_blocks_are_no_parts_of_rows_stays_arrays(
    tmp_path: Path, is_nested: bool
) -> None:
    """No view of what the model has is in the order of such blocks. With whole blocks in rows its values are right."""
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 192,
        "n_layer": 1,
        "n_head": 4,
    }
    at = "transformer.h.0.attn.c_proj.weight"
    arrays = levels.four_bits(at, normal(192, 192).bfloat16(), "nf4", is_nested=is_nested)
    source, path = tmp_path / "source", tmp_path / "packed.spq"
    spqfmt.pack(write_arrays(source, config | {"quantization_config": four_bits("nf4")}, arrays), path)
    with spqfmt.open(path) as file:
        if is_nested:
            assert set(file) == set(arrays)
        else:
            assert same(file.read(at), restored(arrays, at).t())


def arrays_of(kind: str = "nf4", *, is_nested: bool = False, **changed: object) -> Arrays:
    """Arrays of a weight, with some of what their state says changed; None takes it out."""
    arrays = levels.four_bits(AT, normal(16, 128).bfloat16(), kind, is_nested=is_nested)
    key = f"{AT}.quant_state.bitsandbytes__{kind}"
    state = json.loads(bytes(arrays[key].tolist())) | changed
    return with_state(arrays, json.dumps({key: value for key, value in state.items() if value is not None}))


def with_state(arrays: Arrays, text: str) -> Arrays:
    [key] = [name for name in arrays if ".quant_state." in name]
    return {**arrays, key: torch.tensor(list(text.encode()), dtype=torch.uint8)}


STATE = f"{AT}.quant_state.bitsandbytes__nf4"
CONTRADICTIONS: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "a state that is cut short": (
        four_bits("nf4"),
        with_state(arrays_of(), '{"quant_type": "nf4", "blocksi'),
        rf"tensor '{STATE}' holds no JSON object",
    ),
    "a state that is a list": (
        four_bits("nf4"),
        with_state(arrays_of(), "[" * 100_000),
        rf"tensor '{STATE}' holds no JSON object",
    ),
    "a state of another kind": (
        four_bits("nf4"),
        arrays_of(quant_type="fp4"),
        rf"tensor '{STATE}' says .*\"quant_type\": \"fp4\"",
    ),
    "blocks of no size": (
        four_bits("nf4"),
        arrays_of(blocksize=0),
        rf"tensor '{STATE}' says .*\"blocksize\": 0",
    ),
    "no dtype": (four_bits("nf4"), arrays_of(dtype=None), rf"tensor '{STATE}' says .*does not fit"),
    "a dtype that nobody has": (four_bits("nf4"), arrays_of(dtype="float12"), rf"'{STATE}' says .*float12"),
    "no shape": (four_bits("nf4"), arrays_of(shape=None), rf"tensor '{STATE}' says .*does not fit"),
    "another shape": (
        four_bits("nf4"),
        arrays_of(shape=[16, 130]),
        rf"tensor '{STATE}' of shape \[\d+\] does not fit '{AT}' of shape \[1024, 1\], which says \[16, 130\]",
    ),
    "another size of blocks": (
        four_bits("nf4"),
        arrays_of(blocksize=128),
        rf"tensor '{AT}.absmax' of shape \[32\] does not fit '{AT}' of shape \[1024, 1\] in blocks of 128: 16 of f32",
    ),
    "an offset that nobody can hold": (
        four_bits("nf4"),
        arrays_of(is_nested=True, nested_offset=1e300),
        rf"tensor '{STATE}' holds an offset of 1e\+300",
    ),
    "no offset of nested scales": (
        four_bits("nf4"),
        arrays_of(is_nested=True, nested_offset=None),
        rf"tensor '{STATE}' says .*does not fit",
    ),
    "an offset that is no number": (
        four_bits("nf4"),
        arrays_of(is_nested=True, nested_offset=float("nan")),
        rf"tensor '{STATE}' holds an offset of nan; --method lossless keeps it",
    ),
    "an offset without nested scales": (
        four_bits("nf4"),
        arrays_of(nested_offset=0.5),
        rf"tensor '{STATE}' says .*does not fit",
    ),
    "nested scales of other blocks": (
        four_bits("nf4"),
        arrays_of(is_nested=True, nested_blocksize=8),
        rf"tensor '{AT}.nested_absmax' of shape \[1\] does not fit",
    ),
    "no levels": (
        four_bits("nf4"),
        {name: value for name, value in arrays_of().items() if not name.endswith("quant_map")},
        rf"tensor '{AT}.quant_map' is missing beside '{STATE}'",
    ),
    "no state": (
        four_bits("nf4"),
        {name: value for name, value in arrays_of().items() if name != STATE},
        rf"tensor '{STATE}' is missing beside '{AT}",
    ),
    "codes alone": (four_bits("nf4"), {AT: arrays_of()[AT]}, rf"tensor '{STATE}' is missing beside '{AT}'"),
    "no codes": (
        four_bits("nf4"),
        {name: value for name, value in arrays_of().items() if name != AT},
        rf"tensor '{AT}' is missing beside '{STATE}'",
    ),
    "bytes without scales": (
        INT8,
        {AT: levels.int8(AT, normal(16, 128))[AT]},
        rf"tensor '{AT.replace('weight', 'SCB')}' is missing beside '{AT}'",
    ),
    "scales without bytes": (
        INT8,
        {AT.replace("weight", "SCB"): torch.ones(16)},
        rf"tensor '{AT}' is missing beside '{AT.replace('weight', 'SCB')}'",
    ),
    "codes of bool": (
        four_bits("nf4"),
        arrays_of() | {AT: arrays_of()[AT].bool()},
        rf"tensor '{AT}' of shape \[1024, 1\] does not fit '{STATE}' of shape \[\d+\]: codes of bool",
    ),
    **{
        f"{end} in a row of its own": (
            four_bits("nf4"),
            arrays_of(is_nested=True) | {f"{AT}.{end}": arrays_of(is_nested=True)[f"{AT}.{end}"][None]},
            rf"tensor '{AT}.{end}' of shape \[1, {n}\] does not fit '{AT}' of shape \[1024, 1\]: a line of {n} is due",
        )
        for end, n in {"quant_map": 16, "nested_quant_map": 256}.items()
    },
    "a scale that is no number": (
        four_bits("nf4"),
        {**arrays_of(), f"{AT}.absmax": torch.full((32,), torch.nan)},
        rf"tensor '{AT}.absmax' holds scales that are NaN",
    ),
    "a level that is no number": (
        four_bits("nf4"),
        {**arrays_of(), f"{AT}.quant_map": torch.full((16,), torch.inf)},
        rf"tensor '{AT}.quant_map' holds scales that are NaN or infinite",
    ),
    "a config of another kind": (
        four_bits("fp4"),
        arrays_of(),
        rf"tensor '{AT}' is stored as NF4, but config.json says format fp4",
    ),
    "a config of another quantizer": (
        {"quant_method": "gptq", "bits": 4},
        arrays_of(),
        rf"tensor '{AT}' is stored as NF4, but config.json says quant_method 'gptq'",
    ),
    "bytes where the config speaks of levels": (
        four_bits("nf4"),
        levels.int8(AT, normal(16, 128)),
        rf"tensor '{AT}' is stored as LLM.int8, but config.json says format nf4",
    ),
    "scales of other rows": (
        INT8,
        levels.int8(AT, normal(16, 128)) | {AT.replace("weight", "SCB"): torch.ones(15)},
        r"SCB' of shape \[15\] does not fit",
    ),
    "a scale of a row that is no number": (
        INT8,
        levels.int8(AT, normal(16, 128)) | {AT.replace("weight", "SCB"): torch.full((16,), torch.nan)},
        r"SCB' holds scales that are NaN",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    quantizer, arrays, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": quantizer}, arrays)
    check_refused(source, words)


HALF_A_BYTE = levels.four_bits(AT, torch.nn.functional.pad(normal(3, 5), (0, 1)), "nf4")
OF_GPUS = {AT.replace("weight", "weight_format"): torch.tensor(2, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (HALF_A_BYTE | {STATE: arrays_of(shape=[3, 5])[STATE]}, "codes of an odd number"),
        (levels.int8(AT, normal(8, 8)) | OF_GPUS, "rows in a layout of GPUs"),
    ],
)
def test_what_no_scheme_holds_is_left_as_arrays(tmp_path: Path, arrays: Arrays, why: str) -> None:
    source = write_arrays(tmp_path / "source", {}, arrays)
    with pytest.raises(ImporterError, match="stores no codes that method keep could keep"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")
    notes = spqfmt.pack(source, tmp_path / "m.spq").notes
    assert any(f"because of {why}" in note for note in notes), notes
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical


def test_levels_that_tensors_of_a_layer_have_alike_are_stored_once(tmp_path: Path) -> None:
    """Not those of another layer, which may come to lie in another shard."""
    arrays: Arrays = {}
    for layer in range(2):
        for module in ("up_proj", "gate_proj"):
            name = f"model.layers.{layer}.mlp.{module}.weight"
            arrays |= levels.four_bits(name, normal(16, 128 + layer).bfloat16(), "nf4", is_nested=True)
    arrays["model.layers.1.mlp.up_proj.weight.quant_map"][3] += 0.01
    source = write_arrays(tmp_path / "source", {"quantization_config": four_bits("nf4")}, arrays)
    path = keep(source)
    with spqfmt.open(path) as file:
        records = file.model.tensors
        held = [[stream.role for stream in r.streams if stream.same_as is None] for r in records.values()]
        assert [sum(role.endswith("levels") for role in roles) for roles in held] == [2, 0, 2, 1]
        assert all(same(file.read(name), restored(arrays, name)) for name in records)
    shards = tmp_path / "cut.spq"
    spqfmt.pack(source, shards, method="keep", shard_size=4000)
    assert len(list(tmp_path.glob("cut-*.spq"))) == 2
    assert spqfmt.unpack(tmp_path / "cut.spq.index.json", tmp_path / "cut").identical
