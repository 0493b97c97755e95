"""What goes wrong leaves nothing half-written and loses nothing."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spqfmt
from spqfmt.container.writer import Writer
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

MakeModel = Callable[..., SourceModel]
MakeTensor = Callable[..., SourceTensor]


def packed(model: SourceModel, out: Path, *, force: bool = False, **options: Any) -> None:
    pack_model(model, out, pack_options(**options), force=force, progress=Silent())


def test_an_existing_file_is_kept_unless_forced(make_model: MakeModel, tmp_path: Path) -> None:
    out = tmp_path / "m.spq"
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="--force"):
        packed(make_model(), out)
    assert out.read_bytes() == b"mine"
    packed(make_model(), out, force=True)
    spqfmt.verify(out)
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_a_file_that_appears_meanwhile_is_kept(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.spq"
    seal = Writer.seal

    def late(self: Writer, *arguments: Any, **options: Any) -> Any:
        sealed = seal(self, *arguments, **options)
        out.write_bytes(b"mine")
        return sealed

    monkeypatch.setattr(Writer, "seal", late)
    with pytest.raises(FileExistsError):
        packed(make_model(), out)
    assert out.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_a_name_of_the_last_shard_that_is_taken_leaves_no_other_shard(
    make_model: MakeModel, tmp_path: Path
) -> None:
    packed(make_model(), tmp_path / "o.spq", shard_size=30_000)
    last = max(tmp_path.glob("o-*.spq")).name.replace("o-", "m-")
    assert not last.startswith("m-00001")
    (tmp_path / last).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=last):
        packed(make_model(), tmp_path / "m.spq", shard_size=30_000)
    assert (tmp_path / last).read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("o")] == [last]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_full_disk_leaves_what_was_there(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    out = tmp_path / "m.spq"
    out.write_bytes(b"mine")
    put = Writer._put
    calls = 0

    def full(self: Writer, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > kept:
            raise OSError(errno.ENOSPC, "No space left on device", str(out))
        put(self, data)

    monkeypatch.setattr(Writer, "_put", full)
    with pytest.raises(OSError, match="No space left"):
        packed(make_model(), out, force=True)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, source_tensor: MakeTensor, bad: float) -> None:
    weight = torch.ones(8, 8)
    weight[3, 4] = bad
    model = SourceModel((source_tensor("layers.0.broken", weight),), (), "", "")
    with pytest.raises(spqfmt.EncodeError, match=r"layers\.0\.broken.*NaN or Inf"):
        packed(model, tmp_path / "m.spq", method="rtn")
    assert not list(tmp_path.iterdir())
    packed(model, tmp_path / "m.spq", method="lossless")


def test_a_source_that_fails_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    tensor = model.tensors[-2]

    def fail() -> torch.Tensor:
        raise spqfmt.ImporterError("the source broke")

    broken = type(tensor)(**{**vars(tensor), "load": fail})
    model = SourceModel((*model.tensors[:-2], broken), model.assets, "", "")
    with pytest.raises(spqfmt.ImporterError, match="the source broke"):
        packed(model, tmp_path / "m.spq")
    assert not list(tmp_path.iterdir())


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(spqfmt.ImporterError, match="no weights"):
        packed(SourceModel((), (), "", ""), tmp_path / "m.spq")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "nothing"},
        {"method": "lossless", "bits": 4},
        {"method": "rtn", "bits": 9},
        {"method": "rtn", "bits": 1},
        {"method": "rtn", "embedding_bits": 12},
        {"method": "rtn", "granularity": "row", "group_size": 4},
        {"method": "rtn", "group_size": 0},
        {"codec": "lzma"},
        {"partial": "every:0"},
        {"partial": "some"},
        {"shard_size": "big"},
        {"shard_size": "9" * 400 + "GiB"},
        {"shard_size": 0},
    ],
    ids=lambda options: str(options)[:40],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(spqfmt.OptionError):
        pack_options(**options)


def test_a_name_that_is_not_spq(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(spqfmt.OptionError, match=r"\.spq"):
        packed(make_model(), tmp_path / "m.bin")


def test_every_flipped_bit_and_every_prefix_of_a_packed_model(
    tmp_path: Path, source_tensor: MakeTensor
) -> None:
    """verify accepts nothing but the file itself."""
    generator = torch.Generator().manual_seed(0)
    tensors = (
        source_tensor("a", torch.randn(9, 33, generator=generator)),
        source_tensor("b", torch.randn(5, generator=generator), role="other"),
    )
    out = tmp_path / "m.spq"
    packed(SourceModel(tensors, (), "", ""), out, method="rtn", bits=4, group_size=16)
    whole = out.read_bytes()
    for n in range(len(whole)):
        out.write_bytes(whole[:n])
        with pytest.raises((spqfmt.NotSpqError, spqfmt.TruncatedError)):
            spqfmt.verify(out)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        out.write_bytes(damaged)
        with pytest.raises(spqfmt.FormatError) as caught:
            spqfmt.verify(out)
        assert str(caught.value).startswith(f"{out}: ")
        assert "\n" not in str(caught.value)
