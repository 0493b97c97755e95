"""A source that keeps its codes, in one module: an .npz of int8 codes with a float16 scale for each row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.uniform import Uniform


class NumpyCodes:
    kind = "numpy_codes"

    def accepts(self, path: Path) -> bool:
        return path.suffix == ".npz"

    def open(self, path: Path) -> SourceModel:
        with np.load(path) as file:
            arrays = dict(file)
        return SourceModel(tuple(_tensors(arrays)), (), "", self.kind)


def _tensors(arrays: Mapping[str, Any]) -> list[SourceTensor]:
    tensors = []
    for name in sorted({key.removesuffix(".scales") for key in arrays}):
        codes, scales = arrays[name], arrays[f"{name}.scales"]

        def stored(codes: Any = codes, scales: Any = scales) -> Uniform:
            return Uniform(codes, np.float32(1), row_scale=Scale(scales, "f16"))

        def load(codes: Any = codes, scales: Any = scales) -> torch.Tensor:
            return torch.from_numpy(codes * scales.astype(np.float32)[:, None]).to(torch.bfloat16)

        tensors.append(
            SourceTensor(
                name=name,
                shape=codes.shape,
                dtype="bf16",
                segment="all",
                role="linear",
                transposed=False,
                tied_to=None,
                load=load,
                form="int8 by rows",
                stored=stored,
            )
        )
    return tensors


IMPORTER = NumpyCodes()
