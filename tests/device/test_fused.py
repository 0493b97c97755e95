"""Products straight from compressed parts on a simulated device: what is such, and that it gives the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_support
import numpy as np
import pytest
import tiny
import torch
import transformers
from device_support import engine_of, loaded_onto_device, logits_of

import spqfmt
from spqfmt.codecs.threads import blocks
from spqfmt.container.reader import Reader
from spqfmt.kernels.device.fusing import MAX_FUSED_TOKENS
from spqfmt.kernels.torch_device.kernels import TorchKernels
from spqfmt.loaders.load import Ceilings, device_inventory
from spqfmt.loaders.plan import plan_for_device
from spqfmt.quantize.rtn import round_symmetric
from spqfmt.reading.restore import restore
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.dense import Dense
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.uniform import Uniform

SHAPE = 24, 256


def weights(generator: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(generator.normal(0, 1, SHAPE).astype(np.float32))


def rich(generator: np.random.Generator, **more: Any) -> Uniform:
    rows, columns = np.nonzero(generator.random(SHAPE) < 0.02)
    return Uniform(
        generator.normal(0, 20, SHAPE).clip(-128, 127).astype(np.int8),
        np.float32(0.01),
        "i8",
        row_scale=Scale(generator.uniform(0.5, 2, SHAPE[0]).astype(np.float32), "f32"),
        column_scale=Scale(generator.integers(90, 160, SHAPE[1]).astype(np.uint8), "log8", 16, -120),
        outliers=Outliers(rows, columns, generator.normal(0, 5, rows.size).astype(np.float32), "f32"),
        **more,
    )


def groups(generator: np.random.Generator, bits: int, size: int) -> Grouped:
    n_groups = SHAPE[0], -(-SHAPE[1] // size)
    most = (1 << bits) - 1
    codes = generator.normal(most / 2, most / 12, SHAPE).clip(0, most).astype(np.uint8)
    scale = GroupValues(generator.uniform(0.01, 0.1, n_groups).astype(np.float16), "f16")
    zeros = GroupValues(generator.integers(0, most, n_groups).astype(np.uint8), f"u{bits}")
    return Grouped(codes, f"u{bits}", size, bits, scale, zero_point=zeros)


def second_level(generator: np.random.Generator, n_groups: int) -> Grouped:
    given = groups(generator, 8, SHAPE[1] // n_groups)
    codes = generator.integers(1, 8, (SHAPE[0], n_groups)).astype(np.uint8)
    steps = np.full((SHAPE[0], 1), 0.01, np.float16)
    return replace(given, scale=GroupValues(codes, "u4", steps), supergroup=(1, n_groups))


def bfloats(generator: np.random.Generator) -> Dense:
    bits = generator.normal(0, 0.5, SHAPE).astype(np.float32).view(np.uint32) >> 16
    return Dense(bits.astype(np.uint16), "bf16")


FUSED: dict[str, Callable[[np.random.Generator], Any]] = {
    "rows": lambda g: round_symmetric(weights(g), 8, per_row=True),
    "columns, outliers": rich,
    "groups of 8 bits": lambda g: groups(g, 8, 64),
    "groups of 4 bits": lambda g: groups(g, 4, 32),
    "bf16": bfloats,
}
DECODED: dict[str, Callable[[np.random.Generator], Any]] = {
    "groups of 48": lambda g: groups(g, 8, 48),
    "groups of 2 bits": lambda g: groups(g, 2, 32),
    "scales of a second level": lambda g: second_level(g, SHAPE[1] // 32),
    "scales in 8 bits": lambda g: replace(
        groups(g, 8, 32), scale=GroupValues(g.integers(40, 70, (SHAPE[0], 8)).astype(np.uint8), "f8_e4m3")
    ),
    "by columns": lambda g: rich(g, layout=Layout("columns")),
}


def products(path: Path, residency: str, n_tokens: int) -> tuple[set[str], torch.Tensor, torch.Tensor]:
    """What a product does, what it gives, and what that is exactly."""
    with Reader(path) as reader:
        matrix = restore(reader, reader.index.by_name["w"], "f32").double()
    engine, device = engine_of(path, residency)
    planned = engine.plan.fused_bytes > 0
    direct = engine.direct_product("w", rounds=False)
    x = torch.randn(n_tokens, SHAPE[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    device.trace.clear()
    with torch.no_grad():
        bias = torch.nn.Parameter(torch.arange(float(SHAPE[0])).bfloat16())
        y = engine.multiply("w", x, bias, int8_activations=False) if direct is None else direct(x, bias)
    assert y is not None
    done = {done.label.split()[0] for done in device.trace}
    engine.close()
    assert planned or "fused" not in done
    assert n_tokens > MAX_FUSED_TOKENS or planned == ("fused" in done)
    return done, y, x.double() @ matrix.t() + bias.double()


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize(("n_tokens", "does"), [(1, "fused"), (8, "fused"), (9, "compute")])
def test_few_tokens_are_multiplied_without_decoding(
    name: str, n_tokens: int, does: str, write_tensors: Callable[..., Path], generator: Any
) -> None:
    path = write_tensors({"w": (FUSED[name](generator).encode(), SHAPE)}, chunk_bytes=1 << 13, codec="rans")
    done, found, exact = products(path, "compressed", n_tokens)
    assert {does} == done - {"decode"}
    assert torch.allclose(found.double(), exact, rtol=0.02, atol=1)


@pytest.mark.parametrize("residency", ["decoded", "host", "disk"])
def test_what_is_not_compressed_on_the_device_is_not(
    residency: str, write_tensors: Callable[..., Path], generator: Any
) -> None:
    path = write_tensors({"w": (FUSED["rows"](generator).encode(), SHAPE)}, chunk_bytes=1 << 13, codec="rans")
    assert "fused" not in products(path, residency, 1)[0]


@pytest.mark.parametrize("name", sorted(DECODED))
def test_other_forms_are_decoded(name: str, write_tensors: Callable[..., Path], generator: Any) -> None:
    path = write_tensors({"w": (DECODED[name](generator).encode(), SHAPE)}, chunk_bytes=1 << 13, codec="rans")
    done, found, exact = products(path, "compressed", 1)
    assert "fused" not in done
    assert torch.allclose(found.double(), exact, rtol=0.02, atol=1)


def test_what_is_planned_to_be_decoded_first_is(
    write_tensors: Callable[..., Path], generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tensors({"w": (FUSED["rows"](generator).encode(), SHAPE)}, chunk_bytes=1 << 13, codec="rans")
    monkeypatch.setattr(device_support, "RATES", replace(device_support.RATES, fused=1e6))
    assert "fused" not in products(path, "compressed", 1)[0]


@pytest.mark.parametrize("name", ["columns, outliers", "groups of 4 bits", "bf16"])
def test_where_there_is_no_driver_it_is_decoded(
    name: str, write_tensors: Callable[..., Path], generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tensors({"w": (FUSED[name](generator).encode(), SHAPE)}, chunk_bytes=1 << 13, codec="rans")
    monkeypatch.setattr(TorchKernels, "_prepare_fused", lambda *_, **__: None)
    engine, device = engine_of(path, "compressed")
    direct = engine.direct_product("w", rounds=False)
    assert direct is not None
    assert engine.plan.fused_bytes > 0
    x = torch.randn(1, SHAPE[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        found = direct(x, None)
    expected, _ = engine_of(path, "decoded")
    decoded = expected.direct_product("w", rounds=False)
    assert decoded is not None
    assert torch.equal(found, decoded(x, None))
    assert not [done for done in device.trace if done.label.startswith("fused")]


def test_a_model_whose_codes_stay_compressed_says_what_its_weights_say(
    tmp_path: Path,
) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**{**tiny._LLAMA, **shape})
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        source = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        with torch.no_grad():
            for parameter in source.parameters():
                if parameter.dim() == 2:  # most codes are small, so that rows are worth compressing
                    parameter[:, 0] *= 60
        source.save_pretrained(tmp_path)
    with blocks(13):
        spqfmt.pack(tmp_path, tmp_path / "m.spq", method="rtn", codec="rans")
    whole, _ = spqfmt.load_model(tmp_path / "m.spq", packed=False)
    plan = plan_for_device(tmp_path / "m.spq", rates=device_support.RATES).plan
    room = plan.stored_bytes // 2
    model, device = loaded_onto_device(tmp_path / "m.spq", plan.smallest_bytes + room, None)
    assert model.packed_weights.plan.fused_bytes > 0
    for n_tokens in (1, 20):
        device.trace.clear()
        ids = torch.arange(n_tokens)[None]
        assert torch.allclose(logits_of(model, ids), logits_of(whole, ids), rtol=0.05, atol=0.02)
        fused = [done for done in device.trace if done.label.startswith("fused")]
        assert bool(fused) is (n_tokens <= MAX_FUSED_TOKENS)


def llama(folder: Path, *, tied: bool) -> Any:
    """A small one that was saved there."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    shape |= {"tie_word_embeddings": tied}
    config = transformers.LlamaConfig(**{**tiny._LLAMA, **shape})
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        source = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        source.save_pretrained(folder)
    return source


@pytest.mark.parametrize("tied", [False, True])
def test_bf16_stays_compressed_where_that_is_faster_than_to_have_it_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    source = llama(tmp_path, tied=tied)
    with blocks(13):
        spqfmt.pack(tmp_path, tmp_path / "m.spq", method="lossless", codec="rans")
    for fused, is_faster in ((1e9, False), (1e12, True)):
        monkeypatch.setattr(device_support, "RATES", replace(device_support.RATES, fused=fused))
        model, device = loaded_onto_device(tmp_path / "m.spq", 1 << 30, None)
        plan = model.packed_weights.plan
        assert plan.is_streamed is is_faster
        # what rows are looked up of is decoded all the same, on the device
        assert not plan.on_host.lookups.parts
        for part in plan.parts:
            assert part.residency == ("compressed" if is_faster and not part.item.lookups else "decoded")
        for n_tokens in (1, 20):
            device.trace.clear()
            ids = torch.arange(n_tokens)[None]
            assert torch.allclose(logits_of(model, ids), logits_of(source, ids), rtol=0.05, atol=0.02)
            fused_ones = [done for done in device.trace if done.label.startswith("fused")]
            assert bool(fused_ones) is (is_faster and n_tokens <= MAX_FUSED_TOKENS)
        model.packed_weights.close()


def test_bf16_is_multiplied_straight_by_bf16_alone(
    write_tensors: Callable[..., Path], generator: Any
) -> None:
    path = write_tensors({"w": (bfloats(generator).encode(), SHAPE)}, codec="rans")
    with Reader(path) as reader:
        for dtype in (torch.float16, torch.bfloat16):
            made = device_inventory(
                reader.index.tensors, [], {"w": 0}, float_bytes=0, dtype=dtype, ceilings=Ceilings()
            )
            assert (made.items[0].sending.fused is not None) is (dtype is torch.bfloat16)


def test_in_float32_it_is_decoded(write_tensors: Callable[..., Path], generator: Any) -> None:
    path = write_tensors({"w": (FUSED["columns, outliers"](generator).encode(), SHAPE)}, codec="rans")
    with Reader(path) as reader:
        records = reader.index.tensors
        loads = {
            dtype: device_inventory(records, [], {"w": 0}, float_bytes=0, dtype=dtype, ceilings=Ceilings())
            for dtype in (torch.float32, torch.bfloat16)
        }
    found = {dtype: (i.items[0].sending.fused is not None, i.change_bytes > 0) for dtype, i in loads.items()}
    assert found == {torch.float32: (False, False), torch.bfloat16: (True, True)}


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_other_codecs_are_decoded(codec: str, write_tensors: Callable[..., Path], generator: Any) -> None:
    path = write_tensors({"w": (FUSED["rows"](generator).encode(), SHAPE)}, chunk_bytes=1 << 13, codec=codec)
    assert "fused" not in products(path, "compressed", 1)[0]
