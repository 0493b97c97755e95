"""Files of torch.save: what they hold is found by torch's safe loader (weights_only), which runs nothing of theirs.

Of a zip file, which torch writes since 1.6, only names and places are unpickled; values are read where they lie, as
those of safetensors are. An older file is loaded whole.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from spqfmt.errors import ImporterError, one_sentence
from spqfmt.importers._safetensors import Header, Stored
from spqfmt.importers._source_file import SourceFile
from spqfmt.stand_ins import BEGIN_BYTES, what_came_instead

if TYPE_CHECKING:
    import torch

_LOCAL_HEADER_BYTES = 30
_MAX_DEPTH = 100
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_pickle(file: SourceFile) -> Header:
    """The tensors of one file by name: keys of nested dictionaries and numbers of lists, joined by dots.

    Raises ImporterError for a file that is none of torch's, or that holds more than its safe loader allows.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not file.n_bytes:
        raise ImporterError(f"{file.path}: an empty file; download it again")
    instead = what_came_instead(bytes(file.read(0, BEGIN_BYTES)))
    if instead:
        raise ImporterError(f"{file.path}: {instead}")
    is_zip = _is_zip(file)
    try:
        with warnings.catch_warnings(), _unlogged(), FakeTensorMode() if is_zip else nullcontext():
            warnings.simplefilter("ignore")  # of the protocol of a pickle
            found = torch.load(file.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = _GLOBAL.search(str(error))
        what = f" ({why[1]})" if why else ""
        raise ImporterError(
            f"{file.path}: it holds more than tensors, which torch's safe loader refuses{what}; save its state "
            "dict as safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch stumble anywhere
        raise ImporterError(
            f"{file.path}: torch cannot load it as plain tensors ({one_sentence(error)}); sparse, nested and quantized "
            "ones cannot be held; if it is damaged, download it again"
        ) from None
    places = _places(file) if is_zip else {}
    file.check_unchanged()
    tensors: dict[str, Stored] = {}
    for name, tensor in _tensors(file, found):
        if name in tensors:
            raise ImporterError(f"{file.path}: two tensors become {name}; save it as safetensors")
        tensors[name] = _stored(file, name, tensor, places if is_zip else None)
    if not tensors:
        raise ImporterError(f"{file.path}: no tensors in it; give the file that holds the weights")
    return Header(file, tensors, {})


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep what torch logs of a tensor that has no form without values off the terminal: the error is shown."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def _tensors(
    file: SourceFile, value: Any, name: str = "", depth: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if depth > _MAX_DEPTH:
        raise ImporterError(
            f"{file.path}: lists within lists, or within themselves; save its state dict alone"
        )
    if isinstance(value, torch.Tensor):
        yield name or "tensor", value
        return
    inside: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list | tuple):
        inside = enumerate(value)
    for key, member in inside:
        yield from _tensors(file, member, f"{name}.{key}" if name else str(key), depth + 1)


def _is_zip(file: SourceFile) -> bool:
    try:
        return zipfile.is_zipfile(file.path)
    except zipfile.BadZipFile:
        return False


def _places(file: SourceFile) -> dict[int, int]:
    """Where stored entries of the zip begin, with their size."""
    places = {}
    try:
        with zipfile.ZipFile(file.path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    continue
                head = file.read(entry.header_offset, _LOCAL_HEADER_BYTES)
                lengths = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
                places[entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)] = entry.file_size
    except Exception as error:  # noqa: BLE001 - a damaged archive makes zipfile stumble anywhere
        raise ImporterError(f"{file.path}: broken file ({error}); download it again") from None
    return places


def _stored(file: SourceFile, name: str, tensor: torch.Tensor, places: dict[int, int] | None) -> Stored:
    import torch

    from spqfmt.kernels.torch_arrays import TORCH_DTYPES

    names = {dtype: ours for ours, dtype in TORCH_DTYPES.items()}
    if tensor.layout != torch.strided or tensor.dtype not in names or tensor.is_quantized:
        raise ImporterError(
            f"{file.path}: tensor {name} is {tensor.dtype}, {tensor.layout}, which .spq cannot hold"
        )
    shape, dtype = tuple(tensor.shape), names[tensor.dtype]
    n_bytes = tensor.numel() * tensor.element_size()
    if places is None:
        value = tensor.detach().contiguous()
        return Stored(file=file, shape=shape, dtype=dtype, offset=None, n_bytes=n_bytes, read=value.clone)
    storage = tensor.untyped_storage()
    begin = int(getattr(storage, "_checkpoint_offset", None) or 0)
    if n_bytes and places.get(begin) != storage.nbytes():
        raise ImporterError(f"{file.path}: tensor {name} does not lie where torch writes one; save it again")
    if tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj():
        return Stored(
            file=file,
            shape=shape,
            dtype=dtype,
            offset=begin + int(tensor.storage_offset()) * tensor.element_size(),
            n_bytes=n_bytes,
        )
    return Stored(
        file=file,
        shape=shape,
        dtype=dtype,
        offset=None,
        n_bytes=n_bytes,
        read=_strided(file, name, tensor, begin),
    )


def _strided(file: SourceFile, name: str, tensor: torch.Tensor, begin: int) -> Callable[[], torch.Tensor]:
    """What reads a tensor whose elements do not follow each other: its whole storage first."""
    shape, strides, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    n_bytes, dtype, negative, conjugate = (
        tensor.untyped_storage().nbytes(), tensor.dtype, tensor.is_neg(), tensor.is_conj(),
    )  # fmt: skip

    def load() -> torch.Tensor:
        import torch

        storage = torch.empty(n_bytes, dtype=torch.uint8)
        file.read_into(begin, storage.numpy().data, f"tensor {name}")
        value = torch.as_strided(storage.view(dtype), shape, strides, offset)
        value = torch._neg_view(value) if negative else value
        value = value.conj().resolve_conj() if conjugate else value
        return value.clone(memory_format=torch.contiguous_format)

    return load
