"""The tensors of a file as a state dict that transformers loads: each is decoded when its turn comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch

from spqfmt.calibration.limits import within_limits
from spqfmt.codecs.threads import n_threads
from spqfmt.errors import SpqError
from spqfmt.kernels.context import current, using
from spqfmt.loaders.slabs import Slabs
from spqfmt.loaders.tensors import FLOATS, LazyTensor, StoredModel
from spqfmt.models.targets import Targets
from spqfmt.progress import Progress
from spqfmt.reading.rows import heap
from spqfmt.records import dense_bytes


@contextmanager
def lazy_state(
    stored: StoredModel,
    model_class: Any,
    config: Any,
    dtype: torch.dtype,
    progress: Progress,
    *,
    goes_on: bool = False,
) -> Iterator[dict[str, Any]]:
    """The state dict of `stored` for a model of that class and config that shall compute in `dtype`.

    `goes_on`: a tensor that cannot be read is zeros until then, so that nobody else waits for it in vain.
    Leaving the context raises what went wrong while a tensor was read: transformers turns some of it into messages of
    its own.
    """
    progress.start(sum(_source_bytes(t) for t in stored.tensors.values() if t.tied_to is None))
    shared = _shared(stored, model_class, config)
    wanted = [tensor for name, tensor in stored.tensors.items() if name not in shared]
    slabs = Slabs(prod(tensor.shape) * dtype.itemsize for tensor in wanted)
    reading = _Reading(dtype, progress, slabs, goes_on=goes_on)
    try:
        with within_limits():
            yield {
                name: _Handle(name, tensor, reading)
                for name, tensor in stored.tensors.items()
                if name not in shared
            }
    except Exception as error:
        if reading.error is not None and error is not reading.error:
            raise reading.error from error
        raise
    if reading.error is not None:
        raise reading.error


def _shared(stored: StoredModel, model_class: Any, config: Any) -> frozenset[str]:
    """Tied tensors that the model shares by itself: it decides. Those that it does not are filled from their source."""
    tied = {name: tensor.tied_to for name, tensor in stored.tensors.items() if tensor.tied_to is not None}
    if not tied:
        return frozenset()
    # A class that names the very pairs is believed: making a model to ask takes longer than a small one's weights.
    own: Any = getattr(model_class, "_tied_weights_keys", None)
    is_tying = isinstance(own, dict) and getattr(config, "tie_word_embeddings", False)
    if is_tying and tied.items() <= own.items() and stored.tensors.keys() >= set(tied.values()):
        return frozenset(tied)
    with torch.device("meta"):
        model = model_class(config)
    targets = Targets(model, stored.tensors)

    def source(name: str) -> str:
        parameter, _ = targets.find(name)
        return str(model.all_tied_weights_keys.get(parameter, parameter))

    return frozenset(
        name for name, other in tied.items() if other in stored.tensors and source(name) == source(other)
    )


class _Handle:
    """Stands in for a tensor in a state dict. transformers takes `handle[...]` once, as it does with safetensors."""

    def __init__(self, name: str, tensor: LazyTensor, reading: _Reading) -> None:
        self._name = name
        self._tensor = tensor
        self._reading = reading
        self.shape = torch.Size(tensor.shape)

    def get_shape(self) -> list[int]:
        """Return the shape as a safetensors slice has it, a list."""
        return list(self.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        block = _block_of(index, self._tensor.shape)
        if block is not None:
            return self._reading.read(self._name, self._tensor, block)
        return self._reading.read(self._name, self._tensor)[index]


def _block_of(index: Any, shape: tuple[int, ...]) -> list[range] | None:
    """Runs of elements of each dimension, where an index means these and not the whole tensor."""
    if not isinstance(index, tuple) or len(index) != len(shape):
        return None
    if any(not isinstance(some, slice) or some.step not in (None, 1) for some in index):
        return None
    block = [range(*some.indices(n)) for some, n in zip(index, shape, strict=True)]
    return None if all(len(some) == n for some, n in zip(block, shape, strict=True)) else block


class _Reading:
    """Reads the tensors, and keeps the first error: transformers turns some into messages of its own."""

    def __init__(self, dtype: torch.dtype, progress: Progress, slabs: Slabs, *, goes_on: bool) -> None:
        self._dtype = dtype
        self._goes_on = goes_on
        self._slabs = slabs
        self._exact = dtype == torch.float32
        self._context = current()
        self._progress = progress
        # transformers asks from several threads: small tensors are decoded side by side, one thread each, and a large
        # one uses all cores for itself, so more of them at once than cores would only take memory.
        self._turns = threading.BoundedSemaphore(n_threads())
        self.error: SpqError | OSError | None = None

    def read(self, name: str, tensor: LazyTensor, block: Sequence[range] | None = None) -> torch.Tensor:
        """The tensor, or some elements of each of its dimensions."""
        with self._turns, using(self._context):
            try:
                if block is not None:
                    return self._block(name, tensor, block)
                # What transformers converts is thrown away: in a slab its room would wait for all others of its size.
                stays = self._exact or FLOATS.get(tensor.dtype) == self._dtype
                value = tensor.read(self._exact, self._slabs.take if stays else heap)
            except (SpqError, OSError) as error:
                self.error = self.error or error
                if not self._goes_on:
                    raise
                shape = tensor.shape if block is None else [len(some) for some in block]
                return torch.zeros(shape, dtype=self._dtype)
        self._progress.advance(_source_bytes(tensor), name)
        return value

    def _block(self, name: str, tensor: LazyTensor, block: Sequence[range]) -> torch.Tensor:
        if tensor.read_block is None:
            value = tensor.read(self._exact, heap)[tuple(slice(s.start, s.stop) for s in block)].clone()
        else:
            value = tensor.read_block(block, self._exact)
        self._progress.advance(dense_bytes(tensor.dtype, value.numel()), name)
        return value


def _source_bytes(tensor: LazyTensor) -> int:
    return dense_bytes(tensor.dtype, prod(tensor.shape))
