"""Processes that hold a model together, each a part of every layer: transformers' tensor parallelism.

transformers cuts parameters and puts the parts of results together. What is done here: the processes find each other,
go on or end together, and count what each has read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from spqfmt.container.reader import Reader
from spqfmt.errors import BackendError, OptionError, SpqError, UnsupportedError, one_sentence
from spqfmt.loaders.packed.shares import of_all_inputs
from spqfmt.loaders.tensors import StoredModel
from spqfmt.models.places import Share
from spqfmt.models.rank_plan import part_of, styles_of
from spqfmt.models.treatments import Treatment

AUTO = "auto"
"""The plan that transformers has for a model's class."""


@dataclass(frozen=True)
class Ranks:
    """Number `rank` of `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """What transformers' from_pretrained is told of it."""
        if self.size == 1:
            return {}
        # Not at the top: older versions of transformers that load without ranks have no such module.
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan=AUTO, tp_size=self.size)}


ALONE = Ranks()


@dataclass(frozen=True)
class LoadedByRanks:
    """What a rank of `size` has read of the file to load its part of the model.

    `n_read_bytes`: bytes of the file but for its index, of `n_file_bytes` that all tensors have there. `whole`: by the
    name of a tensor, why more of it is read and held than this rank's part.
    """

    rank: int
    size: int
    n_read_bytes: int
    n_file_bytes: int
    whole: Mapping[str, str] = field(default_factory=dict)


def join(tp_plan: str | None, device_type: str) -> Ranks:
    """Find the other processes that torchrun has started; one alone where there are none. None: no plan is asked for.

    Raises OptionError, and BackendError where they do not answer.
    """
    if tp_plan is None:
        return ALONE
    if tp_plan != AUTO:
        raise OptionError(f"tp_plan is {AUTO!r}, the plan that transformers has for a model, not {tp_plan!r}")
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE
        if _accelerator() == "cpu":
            try:
                distributed.init_process_group("gloo")
            except (RuntimeError, ValueError) as error:
                raise BackendError(f"tp_plan: the other ranks do not answer: {one_sentence(error)}") from None
        else:
            from transformers.distributed.utils import _ensure_torch_distributed

            _ensure_torch_distributed()
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    if ranks.size > 1 and device_type != "cpu":
        raise OptionError(
            "device: with tp_plan each rank has the device that transformers gives it; leave it out"
        )
    return ranks


def _accelerator() -> str:
    found = torch.accelerator.current_accelerator()
    return "cpu" if found is None else found.type


class _EndedError(SpqError):
    """Another rank has failed, and all know it."""


@contextmanager
def together(path: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """A step that all ranks get through, or none: where one fails the others raise SpqError with its words.

    What is given waits inside until all have come so far. Nobody waits for a rank that has ended.
    """
    if ranks.size == 1:
        yield lambda: None
        return
    try:
        yield lambda: _exchange(path, ranks, None)
    except _EndedError:
        raise
    except Exception as error:
        _exchange(path, ranks, error)
        raise
    _exchange(path, ranks, None)


def _exchange(path: Path, ranks: Ranks, own: Exception | None) -> None:
    found: list[Any] = [None] * ranks.size
    try:
        distributed.all_gather_object(found, None if own is None else str(own))
    except RuntimeError as error:  # what a process group raises where the other end is closed
        if own is None:
            raise _EndedError(f"{path}: another rank has ended: {one_sentence(error)}") from None
    if own is None:
        for number, words in enumerate(found):
            if words is not None:
                raise _EndedError(f"{words} (rank {number})")


def check_plan(path: Path, model: Any, ranks: Ranks) -> None:
    """Raise UnsupportedError where transformers cannot share out a model of this class among so many ranks.

    `model` needs no weights.
    """
    name, styles = type(model).__name__, styles_of(model)
    if not styles:
        raise UnsupportedError(
            f"{path}: transformers has no plan for the ranks of a {name}; load it in one process, without tp_plan",
            "tensor parallel",
        )
    for layer, style in styles.items():
        if why := _uncut(model, layer, style, ranks.size):
            raise UnsupportedError(
                f"{path}: {layer}: {why} cannot be shared out among {ranks.size} ranks", "tensor parallel"
            )


def _uncut(model: Any, layer: str, style: str, size: int) -> str:
    """What of a layer cannot be cut: heads of attention, which a rank has whole, or a side that is too short."""
    module: Any = model.get_submodule(layer) if layer in dict(model.named_modules()) else None
    is_out = style == "colwise"
    if module is None or not (is_out or style == "rowwise"):
        return ""
    n = getattr(module, "out_features" if is_out else "in_features", None)
    if n is None:
        return ""
    if -(-n // size) * (size - 1) >= n:
        return f"{n} {'outputs' if is_out else 'inputs'}"
    parent = model.get_submodule(layer.rpartition(".")[0])
    width = getattr(parent, "head_dim", None)
    if isinstance(width, int) and width > 0 and n % width == 0 and n // width % size:
        return "1 head" if n == width else f"{n // width} heads"
    return ""


class Counted:
    """Counts what a rank reads from when it is made to when it is called, and tells the model."""

    def __init__(self, ranks: Ranks, readers: Sequence[Reader], whole: Mapping[str, str]) -> None:
        self._ranks, self._readers, self._whole = ranks, tuple(readers), whole
        self._before = self._n_read_bytes

    @property
    def _n_read_bytes(self) -> int:
        return sum(reader.n_read_bytes for reader in self._readers)

    def __call__(self, model: Any) -> None:
        """Let the model say what was read; nothing where one process has all."""
        if self._ranks.size > 1:
            streams = (s for r in self._readers for record in r.index.tensors for s in record.streams)
            model.loaded_by_ranks = LoadedByRanks(
                rank=self._ranks.rank,
                size=self._ranks.size,
                n_read_bytes=self._n_read_bytes - self._before,
                n_file_bytes=sum(stream.stored_bytes for stream in streams),
                whole=self._whole,
            )


def counted_alone(path: Path, model_class: Any, config: Any, stored: StoredModel, ranks: Ranks) -> Counted:
    """What counts for a model whose weights all become parameters. Raises as `check_plan` does."""
    if ranks.size > 1:
        with torch.device("meta"):
            check_plan(path, model_class(config), ranks)
    return Counted(ranks, () if stored.opened is None else stored.opened.readers, {})


def of_ranks(model: Any, ranks: Ranks) -> Callable[[str, Treatment], Treatment]:
    """What `treat_inputs` does in the layers of a loaded model: some see a part of their inputs alone."""
    styles = styles_of(model) if ranks.size > 1 else {}

    def adapted(module: str, treat: Treatment) -> Treatment:
        if styles.get(module) != "rowwise":
            return treat  # the other styles cut inputs behind the hook
        layer = model.get_submodule(module)
        part = part_of(layer.in_features, ranks.rank, ranks.size)
        share = Share((layer.out_features, layer.in_features), of_columns=True, wanted=part, held=part)
        return of_all_inputs(treat, share)

    return adapted
