"""A trellis of fixed rate for the table of methods: every linear layer as QTIP and EXL3 quantize it, in the main.

    python tools/paper/evaluate_methods.py OUT_DIR --text FILE --rows trellis

Our own, for the comparison only (arXiv 2406.11235); it needs a C compiler (`cc`, or what CC names). Weights and Hessian
are turned by random signs and Hadamard matrices on both sides, which makes weights nearly normal and alike. Then they
are taken in tiles of 16 x 16: a tile is the values of a closed path through a bitshift trellis (trellis_paths.c), and
what a tile is off by is fed back to the columns after it, 16 at a time (LDLQ). Every weight has the same bits.

What those have besides is left out: fine-tuning, thousands of samples, EXL3's scales of rows and columns, and 2^16
states. These are 2^13, normal quantiles in random order in place of a computed code: at 2, 3 and 4 bits a normal
variable lies 0.11, 0.14 and 0.17 bits above the rate-distortion bound (0.07, 0.08 and 0.11 with 2^16). Hessians are
those of the float model. Where the number of columns or rows is no power of two, a random orthogonal matrix turns its
odd part.

No file is written: `stored` are the bits of the paths and a scale in binary32 for each matrix. Signs and matrices
follow from a seed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import torch
from method_results import figures_of_no_file
from method_rows import Options
from numpy.typing import NDArray

from spqfmt.calibration.engine import Calibration
from spqfmt.calibration.text import CalibrationOptions
from spqfmt.exporters import export_huggingface
from spqfmt.importers import SourceTensor, open_source
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, LookingMethod, Result
from spqfmt.quantize.feedback import factorize
from spqfmt.quantize.statistics import Hessian

Floats: TypeAlias = NDArray[np.float32]

STATE_BITS = 13
TILE = 16
DAMPING = 0.01
_SPREAD = {2: 1.02, 3: 1.06, 4: 1.08}
"""The deviation of the code by bits, where that of the weights is 1; tried on a normal variable."""
_SCALE_BITS = 32


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("trellis_paths.c")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "paths.so"
        compiler = os.environ.get("CC", "cc").split()
        # Not all compilers know the word for other processors.
        native = ["-march=native"] if platform.machine() in {"x86_64", "AMD64"} else []
        flags = ["-O3", *native, "-shared", "-fPIC"]
        subprocess.run([*compiler, *flags, "-o", str(made), str(source), "-lm"], check=True)
        return ctypes.CDLL(str(made))


@cache
def codebook(bits: int, state_bits: int = STATE_BITS) -> Floats:
    """What each state stands for, float32 [2^state_bits]: quantiles of a normal variable, in random order."""
    n = 1 << state_bits
    quantiles = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    order = np.random.default_rng(0).permutation(n)
    return (np.array(quantiles) * _SPREAD[bits]).astype(np.float32)[order]


def closed_paths(values: Floats, bits: int, state_bits: int = STATE_BITS) -> NDArray[np.uint16]:
    """States [n, length] of the paths whose values are nearest to `values` of that shape."""
    values = np.ascontiguousarray(values, np.float32)
    states = np.empty(values.shape, np.uint16)
    code = codebook(bits, state_bits)
    numbers = [ctypes.c_int(number) for number in (*values.shape, state_bits, bits)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (values, code, states)]
    if _library().closed_paths(pointers[0], *numbers, *pointers[1:]):
        raise MemoryError("no memory for the paths")
    return states


class Turn:
    """A random orthogonal change of `size` coordinates, the same for each size."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(size)
        even = size & -size
        self._signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
        self._hadamard = torch.ones(1, 1)
        while len(self._hadamard) < even:
            h = self._hadamard
            self._hadamard = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)]) / math.sqrt(2)
        self._odd: torch.Tensor = torch.linalg.qr(
            torch.randn(size // even, size // even, generator=generator)
        )[0]

    def there(self, rows: torch.Tensor) -> torch.Tensor:
        """Turn each row, float32 [n, size]."""
        turned = torch.matmul(self._odd, self._parts(rows * self._signs) @ self._hadamard)
        return turned.flatten(1)

    def back(self, rows: torch.Tensor) -> torch.Tensor:
        """Undo what `there` does to rows."""
        turned = torch.matmul(self._odd.t(), self._parts(rows) @ self._hadamard)
        return turned.flatten(1) * self._signs

    def _parts(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(len(rows), len(self._odd), -1)


def quantize_matrix(matrix: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
    """What `matrix`, float32 [out, in], becomes. `upper` is the factor of its Hessian, turned."""
    rows, columns = Turn(matrix.shape[0]), Turn(matrix.shape[1])
    work = rows.there(columns.there(matrix).t().contiguous()).t().contiguous()
    scale = float(work.square().mean().sqrt()) or 1.0
    for first in range(0, matrix.shape[1], TILE):
        here, later = slice(first, first + TILE), slice(first + TILE, None)
        wanted = work[:, here].clone()
        work[:, here] = scale * _nearest(wanted / scale, bits)
        # A whole run of columns is off: the inverse of its corner of U stands for a column's 1 / U_jj.
        errors = wanted - work[:, here]
        passed_on = torch.linalg.solve_triangular(upper[here, here], errors, upper=True, left=False)
        work[:, later] -= passed_on @ upper[here, later]
    return columns.back(rows.back(work.t().contiguous()).t().contiguous())


def _nearest(run: torch.Tensor, bits: int) -> torch.Tensor:
    """The values of the paths through `run`, [rows, TILE or fewer], tile by tile."""
    found = []
    whole = len(run) // TILE * TILE
    for part, height in ((run[:whole], TILE), (run[whole:], len(run) - whole)):
        if len(part):
            paths = closed_paths(part.reshape(-1, height * part.shape[1]).numpy(), bits)
            found.append(torch.from_numpy(codebook(bits)[paths]).reshape(part.shape))
    return torch.cat(found)


class Quantizer(LookingMethod):
    """Quantizes what it looks at, and keeps it: float32 [out, in] in `made`, by tensor name."""

    def __init__(self, bits: int) -> None:
        self.made: dict[str, torch.Tensor] = {}
        self._bits = bits

    def accumulator(self, n_columns: int, options: MethodOptions) -> Hessian:
        """Return what sums up the Hessian of the inputs."""
        return Hessian(n_columns)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Quantize all layers of a block; nothing is put in their place."""
        for site in block.sites:
            assert isinstance(site.statistics, Hessian)
            hessian = site.statistics.take()
            turn = Turn(len(hessian))
            turned = turn.there(turn.there(hessian).t().contiguous())
            upper = factorize(turned, DAMPING, act_order=False).upper
            for layer in site.layers:
                self.made[layer.weight.name] = quantize_matrix(layer.matrix(), upper, self._bits)
        return {}


def pack(source: Path, out: Path, options: Options) -> dict[str, float | None]:
    """Write the model with these weights as a Hugging Face folder, and return the costs of the row.

    `file_bytes` are those of all tensors, without a container. Layers that nothing reaches stay as they are.
    """
    started = time.monotonic()
    bits = int(options["bits"])
    model = open_source(source)
    linear = {t.name: Weight.of(t) for t in model.tensors if t.role == "linear" and t.tied_to is None}
    quantizer = Quantizer(bits)
    calibration = CalibrationOptions(
        samples=int(options["samples"]), seq_len=int(options["seq-len"]), sequential=False
    )
    engine = Calibration(
        source=model,
        method=quantizer,
        method_options=MethodOptions(),
        options=calibration,
        wanted=linear,
    )
    for _ in engine.run():
        pass
    tensors: list[SourceTensor] = []
    n_weights, n_bits, kept_bytes, raw_bytes = 0, 0, 0, 0
    for tensor in model.tensors:
        n_bytes = 0 if tensor.tied_to else math.prod(tensor.shape) * tensor.load().element_size()
        raw_bytes += n_bytes
        made = quantizer.made.get(tensor.name)
        if made is None:
            kept_bytes += n_bytes
            tensors.append(tensor)
            continue
        n_weights += made.numel()
        n_bits += made.numel() * bits + _SCALE_BITS
        value = (made.t() if tensor.transposed else made).reshape(tensor.shape).contiguous()
        tensors.append(dataclasses.replace(tensor, dtype="f32", load=partial(_given, value)))
    export_huggingface(out, tensors, {asset.name: asset.data for asset in model.assets})
    return figures_of_no_file(
        raw_bytes, kept_bytes, n_weights, n_bits=n_bits, seconds=time.monotonic() - started
    )


def _given(value: torch.Tensor) -> torch.Tensor:
    return value
