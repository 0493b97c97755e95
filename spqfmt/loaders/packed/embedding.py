"""What stands in for torch's embedding where its weight is packed."""

from functools import partial

import torch
from torch import nn

from spqfmt.loaders.packed import compiled
from spqfmt.loaders.packed.modules import Packed, check_input
from spqfmt.loaders.packed.weight import NUMBERS, Rows
from spqfmt.loaders.packed.weights import Weights
from spqfmt.models.places import Share
from spqfmt.records import TensorRecord


class PackedEmbedding(Packed, nn.Embedding):
    """Rows of a packed matrix by number."""

    def __init__(
        self, record: TensorRecord, dtype: torch.dtype, padding_idx: int | None, share: Share | None = None
    ) -> None:
        super().__init__(record, dtype, share)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = padding_idx
        # What else torch's layer has: places that have other settings are not packed.
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False

    def attach(self, engine: Weights, number: int | None = None) -> None:
        """Compute with this engine from now on."""
        super().attach(engine, number)
        self._looks_up_here = engine.looks_up_here(self.record.name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, numbers [...], int32 or int64 -> [..., embedding_dim] in the model's dtype."""
        check_input(self, x)
        if x.dtype not in NUMBERS:
            return self._as_torch_does(nn.functional.embedding, x)
        share = self.share
        if share is None:
            return self._look_up(x)
        if share.of_columns:
            return self._look_up(x)[..., share.inside].contiguous()
        # Rows that other ranks have are zeros here, and all are summed.
        away = (x < share.wanted.start) | (x >= share.wanted.stop)
        rows = self._look_up(torch.where(away, share.inside.start, x - share.held.start))
        return rows.masked_fill(away[..., None], 0)

    def _look_up(self, x: torch.Tensor) -> torch.Tensor:
        record = self.record
        if torch.compiler.is_compiling():
            rows_of = compiled.look_up if self._looks_up_here else compiled.look_up_unrecorded
            rows: torch.Tensor = rows_of(
                x,
                weights=self._number,
                tensor=record.name,
                n_columns=record.matrix_shape[1],
                dtype=self._dtype,
            )
            return rows
        return self.engine.look_up(record.name, x)

    def _rows(self) -> Rows | None:
        return partial(self.engine.look_up, self.record.name)

    def extra_repr(self) -> str:
        """Show what nn.Embedding shows, and the scheme."""
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.record.scheme}"
