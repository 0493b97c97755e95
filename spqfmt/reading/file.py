"""`spqfmt.open`: a packed model as a mapping of tensor names. torch is imported when a tensor of its is asked for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spqfmt.cached import cached_property
from spqfmt.codecs.elements import pack_elements
from spqfmt.container.model import open_model
from spqfmt.container.reader import Reader
from spqfmt.errors import OptionError, UnsupportedError, needed_by
from spqfmt.reading.report import TensorReport, report_tensor
from spqfmt.reading.restore import column_scale, numbers_of, restore, restore_block, restore_first
from spqfmt.reading.rows import Room, dtype_of, heap, holder, read_first, read_tensor
from spqfmt.records import TensorRecord
from spqfmt.schemes.floats import widen
from spqfmt.wire import DTYPES, SMALL_FLOATS

if TYPE_CHECKING:
    import torch

    from spqfmt.models.treatments import Treatment

_READ_NEEDS = "SpqFile.read, which gives tensors of torch (read_numpy gives arrays),"


class TensorHandle:
    """One stored tensor; nothing is decoded until `read`. Raises FormatError where its record breaks the format."""

    def __init__(self, reader: Reader, name: str, file_bytes: int) -> None:
        self._reader = reader
        self._name = name
        self._file_bytes = file_bytes

    @cached_property
    def _record(self) -> TensorRecord:
        return self._reader.index.by_name[self._name]

    @cached_property
    def info(self) -> TensorReport:
        """Shape, scheme, bits a weight, streams: what `spqfmt inspect` shows."""
        segment = self._reader.index.segment_of(self._name)
        return report_tensor(self._reader, self._record, segment.name, self._file_bytes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dimensions, as in its source."""
        return self._record.shape

    @property
    def dtype(self) -> str:
        """The dtype that it is restored in, by the format's name."""
        return self._record.dtype

    @property
    def tied_to(self) -> str | None:
        """The tensor whose values these are, or None."""
        return self._record.tied_to

    def input_treatment(self) -> "Treatment | None":
        """What the file asks to be done with the input of this tensor's layer; None for nothing."""
        from spqfmt.kernels.torch_arrays import to_torch
        from spqfmt.models.treatments import treatment

        record = self._record
        scale = None if record.activation_quantization is None else column_scale(self._reader, record)
        wide = None if scale is None else scale.to_float32()
        values = None if wide is None else to_torch(wide, "f32", wide.shape)
        return treatment(record.activation_clamp, record.activation_quantization, values)

    def read(
        self, rows: slice | None = None, dtype: "torch.dtype | None" = None, room: Room = heap
    ) -> "torch.Tensor":
        """The tensor, or some rows of its first dimension, dequantized; see `SpqFile.read`.

        A whole tensor that is not converted lies in memory that `room` gives.
        """
        with needed_by(_READ_NEEDS):
            from spqfmt.kernels.torch_arrays import is_float32

        record = self._record
        exact = "f32" if is_float32(dtype) and record.dtype in {"f16", "bf16"} else None
        value = restore(self._reader, record, exact, room) if rows is None else self._read_rows(rows, exact)
        if DTYPES[record.dtype].bits < 8:
            return _narrow(value, record, dtype)
        if dtype is not None and value.is_complex() and not dtype.is_complex:
            raise _loses(record, dtype)
        return value if dtype is None else value.to(dtype)

    def read_numpy(self, rows: slice | None = None, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """The tensor, or some rows of its first dimension, as an array; see `SpqFile.read_numpy`."""
        record = self._record
        wanted = None if dtype is None else np.dtype(dtype)
        held = holder(self._reader, record)
        exact = "f32" if wanted == np.float32 and record.dtype in {"f16", "bf16"} else None
        if rows is None:
            elements = read_tensor(self._reader, held, exact)
        elif record.shape:
            first, stop = _bounds(rows, record.shape[0])
            elements = read_first(self._reader, held, first, stop=stop, dtype=exact)
        else:
            elements = read_tensor(self._reader, held, exact)[rows]
        name = dtype_of(held, exact)
        if name == "bool":
            elements = elements.view(np.bool_)
        elif name == "bf16" or name in SMALL_FLOATS:
            elements = np.asarray(widen(elements, name))
        if wanted is not None and elements.dtype.kind == "c" and wanted.kind != "c":
            raise _loses(record, wanted)
        return elements if wanted is None else elements.astype(wanted, copy=False)

    def read_block(self, block: Sequence[range], *, exact: bool) -> "torch.Tensor":
        """Some elements of each dimension, one run of each, in memory of their own; the tensor is no scalar.

        `exact`: of a quantized tensor as float32, not rounded to its dtype.
        """
        wide = exact and self._record.dtype in {"f16", "bf16"}
        return restore_block(self._reader, self._record, block, "f32" if wide else None)

    def read_bytes(self) -> bytes:
        """The tensor's elements in row-major order, as a safetensors file has them: narrow ones packed."""
        elements = read_tensor(self._reader, self._record)
        return pack_elements(elements, self._record.dtype).tobytes()

    def _read_rows(self, rows: slice, dtype: str | None) -> "torch.Tensor":
        record = self._record
        if not record.shape:
            return restore(self._reader, record, dtype)[rows]
        first, stop = _bounds(rows, record.shape[0])
        return restore_first(self._reader, record, first, stop=stop, dtype=dtype)


def _bounds(rows: slice, n: int) -> tuple[int, int]:
    """The first of them, and the one after the last."""
    first, stop, step = rows.indices(n)
    if step != 1:
        raise ValueError("rows must be a slice without a step")
    return first, max(first, stop)


def _loses(record: TensorRecord, dtype: object) -> OptionError:
    return OptionError(f"tensor {record.name!r} is of complex numbers; {dtype} would lose a part of them")


def _narrow(codes: "torch.Tensor", record: TensorRecord, dtype: "torch.dtype | None") -> "torch.Tensor":
    """Floats of less than 8 bits, one a byte, as torch has them: as numbers of `dtype`, or in pairs."""
    if dtype is not None:
        return numbers_of(codes, record.dtype).to(dtype)
    if record.dtype != "f4_e2m1" or not codes.shape or codes.shape[-1] % 2:
        raise UnsupportedError(
            f"tensor {record.name!r}: torch has no dtype for {record.dtype} of this shape; give dtype=torch.float32 "
            "for its numbers, or read_bytes",
            record.dtype,
        )
    from spqfmt.kernels.torch_arrays import in_pairs

    elements = codes.numpy()
    return in_pairs(elements, pack_elements(elements, record.dtype))


class SpqFile(Mapping[str, TensorHandle]):
    """An open packed model as a mapping of tensors.

    Names come in execution order. Use it as a context manager, or close it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.model = open_model(path)
        self.path = self.model.path
        self._file_bytes = self.model.n_bytes

    def __getitem__(self, name: str) -> TensorHandle:
        return TensorHandle(self.model.reader_of(name), name, self._file_bytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.tensors)

    def __len__(self) -> int:
        return len(self.model.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.model.tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; later reads raise ValueError."""
        self.model.close()

    def read(
        self, name: str, rows: slice | None = None, dtype: "torch.dtype | None" = None
    ) -> "torch.Tensor":
        """A tensor in its own shape and dtype, dequantized, in memory of its own, on the CPU.

        `rows`: only these of the first dimension; only the chunks that hold them are read and decoded. `dtype`
        converts; float32 gives a quantized tensor's weights before they are rounded to the tensor's dtype. A tensor of
        f4_e2m1 comes in pairs, as torch.float4_e2m1fn_x2. Raises KeyError for an unknown name, FormatError when what is
        read is damaged, UnsupportedError for a dtype that torch lacks, OptionError for complex numbers as others.
        """
        return self[name].read(rows, dtype)

    def read_numpy(
        self, name: str, rows: slice | None = None, dtype: DTypeLike | None = None
    ) -> NDArray[Any]:
        """What `read` gives, as an array of numpy; needs no torch.

        What numpy has no dtype for, bf16 and floats of at most 8 bits, comes as float32, which holds all their numbers;
        `read_bytes` of the handle gives their bits. Raises as `read` does, but for no dtype UnsupportedError.
        """
        return self[name].read_numpy(rows, dtype)

    def part(self, folder: str) -> dict[str, TensorHandle]:
        """The tensors of one part of a pipeline, such as "unet", by their own names. KeyError where there is none."""
        prefix = f"{folder}/"
        found = {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}
        if not found:
            raise KeyError(folder)
        return found

    @cached_property
    def assets(self) -> dict[str, bytes]:
        """The model's small files by name: configuration, tokenizer, chat template."""
        return {name: self.model.read_asset(name) for name in self.model.asset_names}

    @property
    def content(self) -> str | None:
        """The digest of what the model's tensors hold (FORMAT.md 3.5), in hex; None where the file does not say it.

        It is the same whatever codec, chunks, shards or partial plan the file was packed with.
        """
        return self.model.index.content

    @property
    def metadata(self) -> dict[str, str]:
        """What the packer says of how the file was made."""
        return dict(self.model.index.metadata)

    @property
    def tied(self) -> dict[str, str]:
        """Tensor -> the tensor whose values it shares."""
        return {name: h.tied_to for name, h in self.items() if h.tied_to is not None}


def open_file(path: str | os.PathLike[str]) -> SpqFile:
    """Open a .spq file, or a model in shards by its .spq.index.json. Raises FormatError, OSError."""
    return SpqFile(path)
