"""What computes for the loader on a device, and the checks that all kernels make before they launch anything."""

from abc import ABC, abstractmethod

import torch

from spqfmt.kernels.device.chunks import READ_AHEAD_BYTES, DecodePlan
from spqfmt.kernels.device.fusing import FUSED_FLOATS, MAX_FUSED_TOKENS, FusedPlan, Kind, kind_of
from spqfmt.kernels.device.matrix import CODE_DTYPES, DeviceFloats, Matrix
from spqfmt.kernels.device.merging import MergeJob, MergePlan, Plane, Source, plan_merges
from spqfmt.kernels.device.prepared import ALIGNMENT, Decode, Product, RowsByNumber
from spqfmt.kernels.device.unfolding import UnfoldPlan

MAX_TOKENS = 16
"""Tokens that `multiply` takes at most; more are cheaper as a product with dequantized weights."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class DeviceKernels(ABC):
    """Kernels over tensors of one device: arguments are checked here, a subclass has the loops.

    All memory is the caller's. Everything is launched on the current stream and nothing waits for it ("torch", the
    plain twin, does wait). What decoding finds damaged is added to `error`, int32 [1], by atomic or; the caller reads
    it where it waits anyway and hands it to `raise_fault`. Tensors that do not fit together raise ValueError before a
    launch.
    """

    name: str

    def decode_chunks(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        """Decode the chunks of a plan, whose records are on this device.

        `stored` uint8, beginning at a multiple of 4, with READ_AHEAD_BYTES after the last chunk; `out` uint8, likewise
        aligned; `tables` int32 of at least plan.table_words, scratch that nothing else uses meanwhile.
        """
        self.prepare_decode(stored, plan, out, tables=tables, error=error)()

    def prepare_decode(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> Decode:
        """What `decode_chunks` does, as often as it is called; all memory must stay where it is."""
        _check_plan(stored, plan, tables, error)
        _require(out.dtype == torch.uint8 and out.is_contiguous(), "out is not uint8, contiguous")
        decoded = max((job.out_offset + job.out_bytes for job in plan.jobs), default=0)
        _require(decoded <= out.numel(), "chunks pass the end of out")
        return self._prepare_decode(stored, plan, out, tables=tables, error=error)

    def prepare_merge(
        self, stored: torch.Tensor, scratch: torch.Tensor, plan: MergePlan, out: torch.Tensor
    ) -> Decode:
        """Planes of all jobs of a plan, in `stored` and `scratch`, become elements in `out`, as often as it is called.

        All are uint8 and contiguous and must stay where they are; the plan's records are on this device.
        """
        for tensor in (stored, scratch, out):
            _require(
                tensor.dtype == torch.uint8 and tensor.is_contiguous(), "planes are not uint8, contiguous"
            )
        sizes = {Source.STORED: stored.numel(), Source.SCRATCH: scratch.numel()}
        for job in plan.jobs:
            fits = all(at + job.n <= sizes[source] for source, at in job.planes if source in sizes)
            _require(fits, "planes pass the end of what they are in")
            _require(job.out_offset + job.n * len(job.planes) <= out.numel(), "elements pass the end of out")
        return self._prepare_merge(stored, scratch, plan, out)

    def prepare_unfold(self, plan: UnfoldPlan, out: torch.Tensor, error: torch.Tensor) -> Decode:
        """Path codes of all jobs of a plan, in `out`, become codes there: once after each decoding.

        `out` is uint8, contiguous; the plan's records are on this device. The memory must stay where it is.
        """
        _require(out.dtype == torch.uint8 and out.is_contiguous(), "path codes are not uint8, contiguous")
        _require(error.dtype == torch.int32 and error.numel() == 1, "error is not one int32")
        ends = (job.offset + job.n_rows * job.n_columns for job in plan.jobs)
        _require(max(ends, default=0) <= out.numel(), "path codes pass the end of out")
        return self._prepare_unfold(plan, out, error)

    def merge_planes(self, planes: torch.Tensor, out: torch.Tensor, *, rotated: bool) -> None:
        """Planes of one chunk, uint8 [bytes of an element, n], become n elements of `out` (any dtype of that size)."""
        size, n = planes.shape
        _require(planes.dtype == torch.uint8 and planes.is_contiguous(), "planes are not uint8, contiguous")
        _require(
            size in (2, 4, 8) and out.dtype.itemsize == size, "planes are not the bytes of out's elements"
        )
        _require(out.numel() == n and out.is_contiguous(), "planes and elements are not as many")
        own = tuple(Plane(Source.SCRATCH, number * n) for number in range(size))
        plan = plan_merges([MergeJob(own, n, 0, rotated)])
        scratch, to = planes.view(-1), out.view(-1).view(torch.uint8)
        self.prepare_merge(scratch, scratch, plan.at(plan.records.to(planes.device)), to)()

    def dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, *, first: int = 0
    ) -> None:
        """Weights of stored rows (columns with by_columns) `channels`, outliers in place, rounded to out's dtype.

        `codes` uint8, packed as in the file; code number `first` is the first of the first channel. `out` is float32,
        bfloat16 or float16, contiguous: [len(channels), columns], or [rows, len(channels)] with by_columns.
        """
        _check_codes(codes, matrix, channels, first)
        _check_weights(matrix, channels, out)
        if out.numel():
            self._dequantize(codes, matrix, channels, out=out, first=first)

    def multiply(
        self,
        x: torch.Tensor,
        codes: torch.Tensor,
        matrix: Matrix,
        rows: range,
        y: torch.Tensor,
        *,
        first: int = 0,
    ) -> None:
        """y[:, rows] = x W[rows]^T straight from codes, for a matrix by rows; float32 sums.

        `x` [1 to MAX_TOKENS, columns] float32, bfloat16 or float16, contiguous, in stored column order; `y` float32
        [n_tokens, rows of the matrix], contiguous. `codes` and `first` as in `dequantize`. For more than one token
        weights are rounded to x's dtype first, as a product with dequantized weights would.
        """
        _require(not matrix.by_columns, "the product wants codes by rows")
        _check_codes(codes, matrix, rows, first)
        _require(1 <= len(x) <= MAX_TOKENS, f"the product takes 1 to {MAX_TOKENS} tokens")
        _require(x.dtype in FLOATS and x.is_contiguous(), "x is no contiguous float tensor")
        _require(x.shape[1] == matrix.shape[1], "x has not the matrix's columns")
        _require(y.dtype == torch.float32 and y.is_contiguous(), "y is not float32, contiguous")
        _require(y.shape == (len(x), matrix.shape[0]), "y is not tokens by rows")
        if len(rows):
            self._multiply(x, codes, matrix, rows=rows, y=y, first=first)

    def prepare_product(
        self,
        matrix: Matrix,
        rows: range,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        first: int = 0,
        is_one: bool,
    ) -> Product:
        """y[:, rows] = x W[rows]^T + bias as often as it is called, `y` rounded once to `dtype`, which `x` has too.

        As `multiply` does it, for one token or for up to MAX_TOKENS; `codes` are given with each call. `bias`, a float
        for each row of the matrix, and the matrix's own tensors must stay where they are.
        """
        _require(not matrix.by_columns, "the product wants codes by rows")
        _require(dtype in FLOATS, "x is no float tensor")
        _require(rows.step == 1 and 0 <= rows.start < rows.stop <= matrix.n_channels, "no such rows")
        _require(bias is None or bias.shape == matrix.shape[:1], "the bias is not one number for each row")
        return self._prepare_product(matrix, rows, dtype, bias, first=first, is_one=is_one)

    def prepare_fused(
        self,
        stored: torch.Tensor,
        plan: FusedPlan,
        matrix: Matrix | DeviceFloats,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        sums: torch.Tensor,
        error: torch.Tensor | None = None,
        is_one: bool,
    ) -> Product | None:
        """What `prepare_product` does for the plan's rows, straight from `stored`: up to MAX_FUSED_TOKENS tokens.

        None: there is no kernel for that; a dense matrix takes bfloat16 alone. `stored` as in `decode_chunks`, the
        plan's records on this device; with outliers, the matrix has their changes. `sums` is scratch memory of any
        dtype, plan.sum_bytes of it, that nothing else uses while the product runs. Weights are float32 for any number
        of tokens. The calls do not read the codes that they are given. Damage, where `error` is given, as in
        `decode_chunks`.
        """
        kind = kind_of(matrix)
        if kind is None or kind.per_symbol != plan.per_symbol or dtype not in FUSED_FLOATS:
            return None
        _require((kind is Kind.BFLOATS) == plan.is_of_bfloats, "the plan is one of other weights")
        if kind is Kind.BFLOATS and dtype != torch.bfloat16:
            return None
        if sums.nbytes < plan.sum_bytes(1 if is_one else MAX_FUSED_TOKENS) or sums.data_ptr() % ALIGNMENT:
            return None
        _require(0 <= plan.rows.start < plan.rows.stop <= matrix.shape[0], "no such rows")
        _require(plan.records.device == stored.device, "the plan's records are on another device")
        _require(bias is None or bias.shape == matrix.shape[:1], "the bias is not one number for each row")
        outliers = matrix.outliers if isinstance(matrix, Matrix) else None
        _require(outliers is None or outliers.changes is not None, "outliers have no changes")
        return self._prepare_fused(
            stored, plan, matrix, dtype, bias=bias, sums=sums, error=error, is_one=is_one
        )

    def prepare_rows(
        self, matrix: Matrix, rows: range, dtype: torch.dtype, *, first: int = 0
    ) -> RowsByNumber:
        """Rows by number as `dequantize` gives them, as often as it is called."""
        _require(not matrix.by_columns, "rows by number want codes by rows")
        _require(dtype in FLOATS, "rows are no floats")
        return self._prepare_rows(matrix, rows, dtype, first)

    @abstractmethod
    def _prepare_decode(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> Decode: ...

    @abstractmethod
    def _prepare_merge(
        self, stored: torch.Tensor, scratch: torch.Tensor, plan: MergePlan, out: torch.Tensor
    ) -> Decode: ...

    @abstractmethod
    def _prepare_unfold(self, plan: UnfoldPlan, out: torch.Tensor, error: torch.Tensor) -> Decode: ...

    @abstractmethod
    def _dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, first: int
    ) -> None: ...

    @abstractmethod
    def _multiply(
        self, x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
    ) -> None: ...

    @abstractmethod
    def _prepare_product(
        self,
        matrix: Matrix,
        rows: range,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        first: int,
        *,
        is_one: bool,
    ) -> Product: ...

    @abstractmethod
    def _prepare_fused(
        self,
        stored: torch.Tensor,
        plan: FusedPlan,
        matrix: Matrix | DeviceFloats,
        dtype: torch.dtype,
        *,
        bias: torch.Tensor | None,
        sums: torch.Tensor,
        error: torch.Tensor | None,
        is_one: bool,
    ) -> Product | None: ...

    @abstractmethod
    def _prepare_rows(self, matrix: Matrix, rows: range, dtype: torch.dtype, first: int) -> RowsByNumber: ...


def _check_plan(stored: torch.Tensor, plan: DecodePlan, tables: torch.Tensor, error: torch.Tensor) -> None:
    _require(stored.dtype == torch.uint8 and stored.is_contiguous(), "stored is not uint8, contiguous")
    end = max((job.stored_offset + job.stored_bytes for job in plan.jobs), default=0)
    _require(
        end + READ_AHEAD_BYTES <= stored.numel(),
        f"stored has less than {READ_AHEAD_BYTES} bytes after its chunks",
    )
    low = max((job.low + job.raw_bytes for job in plan.jobs if job.low is not None), default=0)
    _require(low + 4 <= stored.numel(), "low bytes pass the end of stored")
    _require(tables.dtype == torch.int32 and tables.numel() >= plan.table_words, "tables are too small")
    _require(error.dtype == torch.int32 and error.numel() == 1, "error is not one int32")
    _require(plan.records.device == stored.device, "the plan's records are on another device")


def _check_codes(codes: torch.Tensor, matrix: Matrix, channels: range, first: int) -> None:
    bits, _ = CODE_DTYPES[matrix.code_dtype]
    width = matrix.shape[0] if matrix.by_columns else matrix.shape[1]
    _require(codes.dtype == torch.uint8 and codes.is_contiguous(), "codes are not uint8, contiguous")
    _require(
        channels.step == 1 and 0 <= channels.start <= channels.stop <= matrix.n_channels, "no such channels"
    )
    _require(
        first >= 0 and (first + len(channels) * width) * bits <= 8 * codes.numel(),
        "codes are fewer than these channels have",
    )


def _check_weights(matrix: Matrix, channels: range, out: torch.Tensor) -> None:
    rows, columns = matrix.shape
    shape = (rows, len(channels)) if matrix.by_columns else (len(channels), columns)
    _require(out.dtype in FLOATS and out.is_contiguous(), "out is no contiguous float tensor")
    _require(out.shape == shape, f"out is {list(out.shape)}, not {list(shape)}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
