"""Write a Hugging Face folder: safetensors shards with an index, and the assets. One tensor in memory at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, Protocol

from spqfmt.asset_names import as_files
from spqfmt.codecs.elements import pack_elements
from spqfmt.errors import EncodeError
from spqfmt.exporters.folder import refuse_full, whole_folder
from spqfmt.records import dense_bytes
from spqfmt.safetensors_names import to_safetensors
from spqfmt.wire import DTYPES

if TYPE_CHECKING:
    import torch

MAX_SHARD_BYTES = 5_000_000_000
# The safetensors library refuses a header of more than 100 MB. An entry is its name and at most so much more: eight
# dimensions and two offsets of up to 16 digits.
_MAX_HEADER_BYTES = 90_000_000
_ENTRY_BYTES = 250
# The key of a safetensors header that names no tensor.
_METADATA = "__metadata__"
# Bytes handed to the file at once, so that a tensor's copy as bytes stays small.
_WRITE_BYTES = 1 << 24


class ExportTensor(Protocol):
    """What a tensor needs to be written; `SourceTensor` is one."""

    @property
    def name(self) -> str:
        """Its name in the folder's files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what `load` returns."""

    @property
    def dtype(self) -> str:
        """Dtype of what `load` returns, by the names of `SourceTensor`."""

    @property
    def tied_to(self) -> str | None:
        """Set for a tensor that shares another one's values: it is left out, as `save_pretrained` does."""

    def load(self) -> torch.Tensor:
        """Read the values, onto any device."""


def export_huggingface(
    folder: str | Path,
    tensors: Iterable[ExportTensor],
    assets: Mapping[str, bytes | Iterable[bytes]],
    *,
    facts: Mapping[str, str] = MappingProxyType({}),
    max_shard_bytes: int = MAX_SHARD_BYTES,
    copies: Sequence[Path] = (),
    stems: Mapping[str, str] = MappingProxyType({}),
    others: Mapping[str, Iterable[bytes]] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Write `folder` with model.safetensors, or numbered shards of at most `max_shard_bytes` of data and an index.

    A tensor larger than that gets a shard of its own. An asset's bytes may come in pieces. `stems` has another name
    than "model": by "" for these files, by a folder's name for those of tensors whose names begin with it and a slash,
    which go into that folder without it. `others` are more files, whose names the caller has checked.
    `facts` go into every file's header. With `copies` these files are copied into the folder instead. Returns the names
    of the files of weights. All is written beside `folder` under a temporary name, synced and renamed, so a
    folder of that name is always whole. Raises FileExistsError when `folder` is a link, or exists and is not empty,
    EncodeError for an asset whose name may not be a file, and for a tensor that is not what it says or that safetensors
    cannot hold: by its name, or because its elements fill no whole bytes.
    """
    folder = Path(folder)
    refuse_full(folder)
    tensors = [tensor for tensor in tensors if tensor.tied_to is None]
    if any(tensor.name == _METADATA for tensor in tensors):
        raise EncodeError(
            f"tensor {_METADATA!r}: safetensors keeps this name for itself; rename it in the source"
        )
    for tensor in tensors:
        if math.prod(tensor.shape) * DTYPES[tensor.dtype].bits % 8:
            raise EncodeError(
                f"tensor {tensor.name!r}: {math.prod(tensor.shape)} elements of {tensor.dtype} fill no whole bytes, "
                "and safetensors holds no others"
            )
    refused = next(iter(set(assets) - set(as_files(assets))), None)
    if refused is not None:
        raise EncodeError(f"asset {refused!r} has no name that may be written into a folder (FORMAT.md 7.1)")
    with whole_folder(folder) as partial:
        weights = [file.name for file in copies]
        if copies:
            _copy(copies, partial)
        else:
            for part, inside in _by_part(tensors, stems).items():
                (partial / part).mkdir(exist_ok=True)
                names = _write_shards(
                    partial / part, stems.get(part, "model"), _shards(inside, max_shard_bytes), facts
                )
                weights += [f"{part}/{name}" if part else name for name in names]
        for name, data in {**assets, **others}.items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as handle:
                handle.writelines([data] if isinstance(data, bytes) else data)
    return tuple(weights)


@dataclass(frozen=True)
class _Inside:
    """A tensor of a part, by its name there."""

    name: str
    tensor: ExportTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def tied_to(self) -> str | None:
        return self.tensor.tied_to

    def load(self) -> torch.Tensor:
        return self.tensor.load()


def _by_part(tensors: list[ExportTensor], stems: Mapping[str, str]) -> dict[str, list[ExportTensor]]:
    """The tensors by folder, "" for those of none; that one is there where no other is."""
    parts: dict[str, list[ExportTensor]] = {}
    for tensor in tensors:
        part, slash, name = tensor.name.partition("/")
        if slash and part in stems:
            parts.setdefault(part, []).append(_Inside(name, tensor))
        else:
            parts.setdefault("", []).append(tensor)
    return parts or {"": []}


def _copy(files: Sequence[Path], folder: Path) -> None:
    for file in files:
        shutil.copyfile(file, folder / file.name)
        with (folder / file.name).open("rb+") as copy:
            os.fsync(copy.fileno())


def _n_bytes(tensor: ExportTensor) -> int:
    return dense_bytes(tensor.dtype, math.prod(tensor.shape))


def _shards(tensors: list[ExportTensor], max_shard_bytes: int) -> list[list[ExportTensor]]:
    """Cut the list, in its order, where the next tensor would pass a limit: of the data or of the header."""
    shards: list[list[ExportTensor]] = [[]]
    room, header_room = max_shard_bytes, _MAX_HEADER_BYTES
    for tensor in tensors:
        n_bytes, header_bytes = _n_bytes(tensor), len(json.dumps(tensor.name)) + _ENTRY_BYTES
        if shards[-1] and (n_bytes > room or header_bytes > header_room):
            shards.append([])
            room, header_room = max_shard_bytes, _MAX_HEADER_BYTES
        shards[-1].append(tensor)
        room -= n_bytes
        header_room -= header_bytes
    return shards


def _write_shards(
    folder: Path, stem: str, shards: list[list[ExportTensor]], facts: Mapping[str, str]
) -> list[str]:
    """Returns the names of what is written."""
    if len(shards) == 1:
        _write_safetensors(folder / f"{stem}.safetensors", shards[0], facts)
        return [f"{stem}.safetensors"]
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file_name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(folder / file_name, shard, facts)
        weight_map |= {tensor.name: file_name for tensor in shard}
    index = {
        "metadata": {"total_size": sum(_n_bytes(tensor) for shard in shards for tensor in shard)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return [*sorted(set(weight_map.values())), f"{stem}.safetensors.index.json"]


def _write_safetensors(file: Path, tensors: list[ExportTensor], facts: Mapping[str, str]) -> None:
    """The safetensors layout: u64 length of the header, JSON header, values one after the other.

    The library's own writer wants all tensors at once. Wider elements come first, so that every tensor is aligned.
    """
    tensors = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].bits)
    header: dict[str, object] = {_METADATA: {"format": "pt", **facts}}
    offset = 0
    for tensor in tensors:
        end = offset + _n_bytes(tensor)
        header[tensor.name] = {
            "dtype": to_safetensors(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            _write_values(handle, tensor)
        handle.flush()
        os.fsync(handle.fileno())


def _write_values(handle: BinaryIO, tensor: ExportTensor) -> None:
    # Files that are copied, or are the source's own, are written without torch.
    import torch

    from spqfmt.kernels.torch_arrays import TORCH_DTYPES

    value = tensor.load()
    if value.dtype != TORCH_DTYPES[tensor.dtype] or tuple(value.shape) != tuple(tensor.shape):
        raise EncodeError(
            f"tensor {tensor.name} came as {value.dtype} {tuple(value.shape)}, not {tensor.dtype} {tuple(tensor.shape)}"
        )
    if not value.numel():
        return  # an empty tensor that comes from numpy has a stride of 0, which no view as bytes takes
    # A view as uint8 needs a dimension to widen; `reshape(-1)` gives a scalar one.
    flat = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    if DTYPES[tensor.dtype].bits < 8:
        flat = torch.from_numpy(pack_elements(flat.numpy(), tensor.dtype))
    for start in range(0, flat.numel(), _WRITE_BYTES):
        handle.write(flat[start : start + _WRITE_BYTES].numpy().tobytes())
