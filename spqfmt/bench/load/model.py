"""Built-in files to load: eight layers of INT8 codes, or of BF16 weights."""

from pathlib import Path

import numpy as np

from spqfmt import wire
from spqfmt.bench.data import ROW, synthetic
from spqfmt.codecs.chunks import chunk_sizes, split
from spqfmt.codecs.elements import CARRIERS
from spqfmt.container.encode import encode_chunk
from spqfmt.container.writer import Writer
from spqfmt.records import Stream, TensorRecord

N_LAYERS = 8
DATA = {"int8": "i8", "bf16": "bf16"}


def write_model(path: Path, data: str, n_symbols: int) -> None:
    """Write a .spq file of N_LAYERS dense tensors, `n_symbols` of data set `data` (a key of DATA) in each."""
    dtype = DATA[data]
    values = synthetic(data, n_symbols).layouts[0].raw.view(CARRIERS[dtype])
    sizes = chunk_sizes(values.size, wire.DTYPES[dtype].bits, ROW)
    with Writer(path, wire.CHUNK_ALIGNMENT, force=True) as writer:
        for layer in range(N_LAYERS):
            name = f"layers.{layer}"
            writer.begin_segment(name)
            rolled = np.roll(values, layer * ROW)  # the same statistics, other bytes
            chunks = [encode_chunk(part, dtype, "auto") for part in split(rolled, sizes)]
            stream = Stream("values", dtype, values.size)
            shape = (values.size // ROW, ROW)
            writer.add_tensor(
                TensorRecord(f"{name}.weight", shape, dtype, "dense", streams=(stream,)), [chunks]
            )
        writer.seal({})
        writer.publish()
