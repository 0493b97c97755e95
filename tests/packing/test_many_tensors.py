"""What a pack costs grows with the number of tensors, not with its square."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import spqfmt
from spqfmt.container.reader import Reader
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.fit.bounds import room_for
from spqfmt.packing.fit.spending import SizeBudget
from spqfmt.packing.fit.survey import fit
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.packing.plan import plan_pack
from spqfmt.progress import Silent

MANY = 20_000


def test_every_byte_of_a_source_is_read_about_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tensors = {f"model.layers.{i // 20}.x{i % 20}.weight": torch.full((2, 2), float(i)) for i in range(2000)}
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    n_read = 0
    read = SourceFile.read_into

    def counting(self: SourceFile, offset: int, buffer: memoryview, what: str = "it") -> None:
        nonlocal n_read
        n_read += len(buffer)
        read(self, offset, buffer, what)

    monkeypatch.setattr(SourceFile, "read_into", counting)
    spqfmt.pack(source, tmp_path / "m.spq")
    assert n_read <= 3 * (source / "model.safetensors").stat().st_size
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert all(torch.equal(file.read(name), value) for name, value in tensors.items())


@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_of_many_tensors_is_made_at_once(
    source_tensor: Callable[..., SourceTensor], tied: bool
) -> None:
    value = torch.zeros(2, 2)
    targets = [source_tensor(f"layers.{i}.x", value, segment=f"layers.{i}") for i in range(MANY // 2)]
    others = [
        source_tensor(f"y.{i}", value, segment="y", tied_to=f"layers.{i}.x" if tied else None)
        for i in range(MANY // 2)
    ]
    model = SourceModel((*targets, *others), (), "None", "memory")
    started = time.thread_time()
    plan = plan_pack(model, pack_options())
    assert time.thread_time() - started < 3  # with the square of their number: ten times as much
    assert sum(1 for _ in plan.tensors) == MANY
    if tied:
        assert all(
            [t.source.name for t in tensors][1:] == [f"y.{i}"] for i, (_, tensors) in enumerate(plan.segments)
        )


def test_a_large_index_is_compressed_in_a_moment(
    tmp_path: Path, make_model: Callable[..., SourceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    for number, limit in enumerate((1 << 30, 0)):
        monkeypatch.setattr("spqfmt.container.encode.MANY_TENSORS", limit)
        out = tmp_path / f"{number}.spq"
        pack_model(make_model(), out, pack_options(), force=False, progress=Silent())
        spqfmt.verify(out)
        with Reader(out) as reader:
            sizes.append(reader.trailer.index_stored_bytes)
    assert sizes[0] <= sizes[1] < 1.5 * sizes[0]


def test_a_size_that_is_aimed_at_is_foreseen_now_and_then(
    tmp_path: Path, source_tensor: Callable[..., SourceTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is foreseen costs as many steps as tensors are left: for each of them that would be their square."""
    n, foreseen = 600, 0
    shift = SizeBudget._shift

    def counting(self: SizeBudget, *arguments: Any) -> float:
        nonlocal foreseen
        foreseen += 1
        return shift(self, *arguments)

    monkeypatch.setattr(SizeBudget, "_shift", counting)
    generator = torch.Generator().manual_seed(0)
    tensors = [source_tensor(f"layers.{i}.x", torch.randn(64, 32, generator=generator)) for i in range(n)]
    model, out, wanted = SourceModel(tuple(tensors), (), "None", "memory"), tmp_path / "m.spq", n * 1700
    options = pack_options(fit=str(wanted), no_calibration=True)
    report = pack_model(model, out, options, force=False, progress=Silent())
    assert 0.98 * wanted < report.file_bytes <= wanted
    assert foreseen < n  # 1372 where each was foreseen anew


def test_what_is_taken_up_is_foreseen_as_what_was_spent_on(
    source_tensor: Callable[..., SourceTensor],
) -> None:
    """An interrupted pack goes on with the same bytes, wherever it was between two times of foreseeing."""
    generator = torch.Generator().manual_seed(0)
    values = {f"layers.{i}.x": torch.randn(16, 16, generator=generator) for i in range(150)}
    model = SourceModel(tuple(source_tensor(*item) for item in values.items()), (), "None", "memory")
    options = pack_options(fit=str(len(values) * 700), no_calibration=True)
    plan = plan_pack(model, options)
    room = room_for(model, plan, options)
    made: list[dict[str, Any]] = []
    for taken in (0, 70, 71):
        prepared, budget = fit(model, room, options, lambda _: None)
        encoded: dict[str, Any] = {}
        for number, planned in enumerate(plan.tensors):
            name = planned.source.name
            if number < taken:
                encoded[name] = made[0][name]
                budget.take_up({name: encoded[name]})
            else:
                weight, value = planned.weight, values[name]
                encoded[name] = prepared.method.quantize(weight, value, prepared.method_options).encode()
        made.append(encoded)
    for other in made[1:]:
        for name, encoded in made[0].items():
            assert encoded.parameters == other[name].parameters
            for stream, again in zip(encoded.streams, other[name].streams, strict=True):
                assert stream.elements.tobytes() == again.elements.tobytes()
