"""A linear layer whose rows a file has in several tensors (spqfmt/models/stacked_heads.py)."""

from collections.abc import Mapping

import torch
from torch import nn

from spqfmt.loaders.packed.modules import Holding, Packed, PackedProduct
from spqfmt.loaders.packed.weight import PackedWeight
from spqfmt.models.stacked_heads import whole_of


class PackedRows(PackedProduct):
    """Some rows of a layer, of every head. It is none of torch's layers: adapters are the whole layer's."""

    def packed_weights(self) -> dict[str, torch.Tensor]:
        """Nothing: the layer has the weight."""
        return {}


class RowsApart(Holding, nn.Linear):
    """In the place of an nn.Linear whose rows are in several tensors, of each some of every head, one after the other.

    `sizes`: of each part its rows and columns, by the name that it gets here; packed modules come into their places.
    What looks for linear layers finds this one, and none of the parts.
    """

    def __init__(self, heads: int, sizes: Mapping[str, tuple[int, int]], dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # that of the class would make a parameter
        self._heads = heads
        self._dtype = dtype
        self.in_features = next(columns for _, columns in sizes.values())
        self.out_features = sum(rows for rows, _ in sizes.values())
        self.register_parameter("bias", None)
        for name, (n_rows, n_columns) in sizes.items():
            self.add_module(name, nn.Linear(n_columns, n_rows, bias=False, device="meta"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in_features] -> [..., out_features], by heads."""
        parts = [part(x).unflatten(-1, (self._heads, -1)) for part in self.children()]
        return torch.cat(parts, -1).flatten(-2)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # it is not to be set
        """The weight of the layer, decoded where its values are wanted; on meta until it is loaded."""
        parts = [part for part in self.children() if isinstance(part, Packed)]
        if not self.is_loaded:
            return torch.empty(self.out_features, self.in_features, dtype=self._dtype, device="meta")
        if torch.compiler.is_compiling():
            return self._by_heads([part.weight for part in parts])
        engine = parts[0].engine
        name = whole_of(parts[0].record.name)
        n_bytes = self.out_features * self.in_features * self._dtype.itemsize

        def values() -> torch.Tensor:
            # The parts are there beside the whole while this is made.
            return engine.room.decode(
                name, 2 * n_bytes, lambda: self._by_heads([engine.values(part.record.name) for part in parts])
            )

        return PackedWeight(
            name=name,
            shape=(self.out_features, self.in_features),
            dtype=self._dtype,
            device=engine.torch_device,
            owner=engine,
            values=values,
            product=None,
        )

    @property
    def is_loaded(self) -> bool:
        """Whether all parts have an engine."""
        return all(isinstance(part, Packed) and part.is_loaded for part in self.children())

    def _by_heads(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.reshape(self._heads, -1, self.in_features) for part in rows], 1).flatten(0, 1)
