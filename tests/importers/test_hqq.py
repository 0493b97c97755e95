"""Method keep on HQQ: codes of eight bits and less in groups along either axis, its values, the same files."""

from pathlib import Path
from typing import Any

import grids
import pytest
import torch
from coded import Arrays, check_loaded, check_refused, keep, same, write_arrays, write_model

import spqfmt
from spqfmt.errors import ImporterError, UnsupportedError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

MODULE = "model.layers.0.mlp.up_proj."
AT = f"{MODULE}weight"
HQQ: dict[str, Any] = {"quant_method": "hqq"}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """As its BitPack does: the highest bits of all bytes first."""
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(8 - bits, -1, -bits)])


def library(arrays: Arrays, bits: int, dtype: torch.dtype, stem: str = MODULE) -> torch.Tensor:
    """As its Quantizer.dequantize does, each operation in `dtype`."""
    codes = unpacked(arrays[f"{stem}W_q"].view(torch.uint8), bits).to(dtype)
    zero, scale = arrays[f"{stem}zero"].to(dtype), arrays[f"{stem}scale"].to(dtype)
    return ((codes - zero) * scale).reshape(arrays[f"{stem}shape"].tolist())


def restored(arrays: Arrays, bits: int, stem: str = MODULE) -> torch.Tensor:
    """The same in float32, rounded once."""
    return library(arrays, bits, torch.float32, stem).to(arrays[f"{stem}scale"].dtype)


GRIDS: dict[str, tuple[tuple[int, int], int | None, int]] = {
    "groups in rows": ((24, 128), 64, 1),
    "rows end within groups": ((32, 48), 64, 1),
    "rows": ((24, 40), None, 1),
    "groups of columns": ((24, 128), 64, 0),
    "columns": ((24, 40), None, 0),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_along_either_axis(tmp_path: Path, grid: str, bits: int, dtype: torch.dtype) -> None:
    shape, size, axis = GRIDS[grid]
    arrays = grids.hqq(MODULE, normal(*shape).to(dtype), bits, group_size=size, axis=axis)
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": HQQ}, arrays))
    expected = restored(arrays, bits)
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        assert same(file.read(AT), expected)
        assert same(file.read(AT)[5:7], expected[5:7])
        assert (file.model.tensors[AT].view is None) == (grid in ("groups in rows", "rows"))
    [tensor] = open_source(tmp_path / "source").as_weights().tensors
    assert same(tensor.load(), expected)
    # The library rounds the difference as well, and what lies near nought is near in steps of the difference.
    unit = torch.finfo(dtype).eps / 2
    of_difference = expected.float().abs() * 2 * unit + torch.finfo(dtype).tiny
    assert ((library(arrays, bits, dtype).float() - expected.float()).abs() <= 1.01 * of_difference).all()


def test_values_are_the_library_s_to_the_bit_where_zeros_are_integers(tmp_path: Path) -> None:
    arrays = grids.hqq(MODULE, normal(24, 128).bfloat16(), 4)
    arrays[f"{MODULE}zero"] = arrays[f"{MODULE}zero"].round()
    path = keep(write_arrays(tmp_path / "source", {}, arrays))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), library(arrays, 4, torch.bfloat16))


@pytest.mark.parametrize(("held", "said"), [(8, 7), (8, 6), (8, 5), (2, 1.58)])
def test_codes_may_take_more_bits_than_they_need(tmp_path: Path, held: int, said: float) -> None:
    """As the library packs numbers of bits for which it has no packing."""
    arrays = grids.hqq(MODULE, normal(24, 128).bfloat16(), held)
    arrays[f"{MODULE}nbits"] = torch.tensor(said, dtype=torch.float32 if said < 2 else torch.int32)
    path = keep(write_arrays(tmp_path / "source", {}, arrays))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(arrays, held))


@pytest.mark.parametrize("as_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bytes_may_lie_in_another_dtype(tmp_path: Path, as_dtype: torch.dtype) -> None:
    arrays = grids.hqq(MODULE, normal(24, 128).bfloat16(), 2)
    arrays |= {
        f"{MODULE}W_q": arrays[f"{MODULE}W_q"].view(as_dtype),
        f"{MODULE}view_as_float": torch.tensor(1).byte(),
    }
    path = keep(write_arrays(tmp_path / "source", {}, arrays))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(arrays, 2))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_a_model_loads_with_these_values(tmp_path: Path, bits: int, axis: int) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        arrays = grids.hqq(f"{module}.", weight, bits, group_size=16, axis=axis)
        expected[f"{module}.weight"] = restored(arrays, bits, f"{module}.")
        return arrays

    source = tmp_path / "source"
    write_model(source, HQQ, quantize)
    path = keep(source)
    assert len(expected) == 14
    check_loaded(path, source, expected)
    assert set(plan_model(path).whole.values()) == ({"groups in a view"} if axis == 0 else set())


ARRAYS = grids.hqq(MODULE, normal(24, 128).bfloat16(), 4)
COLUMNS = grids.hqq(MODULE, normal(24, 128).bfloat16(), 4, axis=0)


def changed(**arrays: torch.Tensor) -> Arrays:
    return ARRAYS | {MODULE + name: value for name, value in arrays.items()}


CONTRADICTIONS: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "a config of other bits": (
        {**HQQ, "quant_config": {"weight_quant_params": {"nbits": 8}}},
        ARRAYS,
        rf"tensor '{MODULE}W_q' has nbits 4, but config.json says '8'; download both again",
    ),
    "a config of other groups": (
        {**HQQ, "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 128}}},
        ARRAYS,
        rf"tensor '{MODULE}W_q' has group_size 64, but config.json says '128'",
    ),
    "scales of other groups": (
        HQQ,
        changed(scale=torch.ones(24, 1).bfloat16()),
        rf"tensor '{MODULE}scale' of shape \[24, 1\] does not fit '{MODULE}W_q' of shape \[24, 64\]: \[48, 1\] are due",
    ),
    "zeros along the other axis": (
        HQQ,
        changed(zero=torch.ones(1, 48).bfloat16()),
        rf"tensor '{MODULE}zero' of shape \[1, 48\] does not fit",
    ),
    "another axis": (HQQ, changed(axis=torch.tensor(0)), rf"tensor '{MODULE}scale' .*: \[1, 48\] are due"),
    "no axis": (HQQ, changed(axis=torch.tensor(2)), rf"tensor '{MODULE}axis' says \[2\], neither 0 nor 1"),
    "another shape": (
        HQQ,
        changed(shape=torch.tensor([48, 128])),
        rf"tensor '{MODULE}scale' of shape \[48, 1\] does not fit .*: \[96, 1\] are due",
    ),
    "no matrix": (
        HQQ,
        changed(shape=torch.tensor([3072])),
        rf"tensor '{MODULE}shape' says \[3072\], no matrix",
    ),
    "other bits": (
        HQQ,
        changed(packing=torch.tensor(list(b"2bit_u8"), dtype=torch.uint8)),
        rf"tensor '{MODULE}shape' of shape \[2\] does not fit '{MODULE}W_q' .*which says 24 x 128 of 2 bits",
    ),
    "codes the other way round": (
        HQQ,
        changed(W_q=ARRAYS[f"{MODULE}W_q"].t()),
        rf"tensor '{MODULE}W_q' of shape \[64, 24\] does not fit '{MODULE}shape' .*: 24 rows of 64 bytes are due",
    ),
    "codes in a line": (
        HQQ,
        changed(W_q=ARRAYS[f"{MODULE}W_q"].flatten()),
        rf"tensor '{MODULE}W_q' of shape \[1536\] does not fit .*: 24 rows of 64 bytes are due",
    ),
    "codes in another dtype the other way round": (
        HQQ,
        changed(W_q=ARRAYS[f"{MODULE}W_q"].t().contiguous().view(torch.bfloat16)),
        rf"tensor '{MODULE}W_q' of shape \[64, 12\] does not fit .*: 24 rows of 64 bytes are due",
    ),
    "codes in columns the other way round": (
        HQQ,
        COLUMNS | {f"{MODULE}W_q": COLUMNS[f"{MODULE}W_q"].t()},
        rf"tensor '{MODULE}W_q' of shape \[48, 32\] does not fit .*: 32 rows of 48 bytes are due",
    ),
    "codes of bool": (
        HQQ,
        changed(W_q=ARRAYS[f"{MODULE}W_q"].bool()),
        rf"tensor '{MODULE}W_q' of shape \[24, 64\] does not fit .*: codes of bool",
    ),
    **{
        f"{bits} bits in codes of four": (
            HQQ,
            changed(nbits=torch.tensor(bits)),
            rf"tensor '{MODULE}nbits' says \[{bits}\], but '{MODULE}W_q' holds codes of 4 bits",
        )
        for bits in (8, 3, 2, 0, -4, 99)
    },
    "a number of bits that is bool": (
        HQQ,
        changed(nbits=torch.tensor(True)),
        rf"tensor '{MODULE}nbits' of bool and shape \[\] says nothing of a layer",
    ),
    "two numbers of bits": (
        HQQ,
        changed(nbits=torch.tensor([4, 4])),
        rf"tensor '{MODULE}nbits' says \[4, 4\], but",
    ),
    "no number of bits": (
        HQQ,
        {name: value for name, value in ARRAYS.items() if not name.endswith("nbits")},
        rf"tensor '{MODULE}nbits' is missing beside '{MODULE}W_q'",
    ),
    "no shape": (
        HQQ,
        {name: value for name, value in ARRAYS.items() if not name.endswith("shape")},
        rf"tensor '{MODULE}shape' is missing beside '{MODULE}W_q'",
    ),
    "groups that do not divide": (
        HQQ,
        changed(group_size=torch.tensor(100)),
        rf"tensor '{MODULE}group_size' says \[100\], which does not divide \[24, 128\]",
    ),
    "a size that is an array": (
        HQQ,
        changed(group_size=torch.ones(80, dtype=torch.int32)),
        rf"tensor '{MODULE}group_size' of i32 and shape \[80\] says nothing of a layer",
    ),
    "a zero that is no number": (
        HQQ,
        changed(zero=torch.full((48, 1), torch.nan).bfloat16()),
        rf"tensor '{MODULE}zero' holds scales that are NaN",
    ),
    "a config of another quantizer": (
        {"quant_method": "bitsandbytes"},
        ARRAYS,
        rf"'{MODULE}W_q' is stored as codes of HQQ, but config.json says quant_method 'bitsandbytes'",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    quantizer, arrays, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": quantizer}, arrays)
    check_refused(source, words)


LEFT: dict[str, tuple[Arrays, str]] = {
    "ten codes in 32 bits": (
        changed(packing=torch.tensor(list(b"3bit_32"), dtype=torch.uint8)),
        "(because of codes that lie as '3bit_32' says)",
    ),
    "zeros of another dtype": (
        changed(zero=ARRAYS[f"{MODULE}zero"].float()),
        "(because of scales of bf16 with zeros of f32)",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_lies_in_another_way_is_left_as_arrays(tmp_path: Path, kind: str) -> None:
    arrays, why = LEFT[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": HQQ}, arrays)
    with pytest.raises(ImporterError, match="stores no codes that method keep could keep"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")
    notes = spqfmt.pack(source, tmp_path / "m.spq").notes
    assert any(why in note for note in notes), notes
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical


class _Runs:
    """What a pickle may say: call this."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "run")


def test_its_own_file_is_read_by_the_safe_loader_alone(tmp_path: Path) -> None:
    # As `save_quantized` of hqq 0.2 writes it: a dictionary of layers, numbers of a layer among its arrays.
    layer = {"W_q": ARRAYS[f"{MODULE}W_q"], "nbits": 4, "group_size": 64, "shape": torch.Size((24, 128))}
    layer |= {"scale": ARRAYS[f"{MODULE}scale"], "zero": ARRAYS[f"{MODULE}zero"], "packing": "4bit_u8"}
    model: dict[str, Any] = {MODULE[:-1]: layer, "model.norm": {"weight": torch.ones(8)}}
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    torch.save(model, source / "qmodel.pt")
    [note] = spqfmt.pack(source, tmp_path / "m.spq").notes
    assert "no model is loaded from its arrays" in note
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert torch.equal(file.read(f"{MODULE}W_q"), layer["W_q"])
        assert torch.equal(file.read(f"{MODULE}zero"), layer["zero"])
    with pytest.raises(UnsupportedError, match=r"quantized by another format \(hqq"):
        spqfmt.load_model(tmp_path / "m.spq")
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", with_code=True).identical
    torch.save(model | {"more": _Runs(tmp_path / "mark")}, source / "qmodel.pt")
    with pytest.raises(ImporterError, match=r"qmodel.pt: .*torch's safe loader refuses .*safetensors"):
        spqfmt.pack(source, tmp_path / "m.spq", force=True)
    assert not (tmp_path / "mark").exists()
