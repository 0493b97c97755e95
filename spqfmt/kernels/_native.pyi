from typing import Any, TypeAlias

import numpy as np

_Buffer: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, Any]
_Numbers: TypeAlias = tuple[
    _Buffer, int, _Buffer | None, _Buffer | None, int, _Buffer | None, int, _Buffer | None, int, int, int
]

def rans_encode(src: _Buffer, block_log2: int = 0) -> bytes: ...
def rans_decode(src: _Buffer, dst: _Buffer) -> None: ...
def crc32(src: _Buffer, value: int = 0) -> int: ...
def histogram(src: _Buffer, counts: _Buffer) -> None: ...
def split_planes(src: _Buffer, itemsize: int, rotate: bool, dst: _Buffer) -> None: ...
def merge_planes(src: _Buffer, itemsize: int, rotate: bool, dst: _Buffer) -> None: ...
def available_kernels() -> list[str]: ...
def kernel_variants() -> list[str]: ...
def active_kernels() -> str: ...
def select_kernels(name: str) -> None: ...
def default_kernels(name: str) -> None: ...
def pack_bits(src: _Buffer, bits: int, dst: _Buffer) -> None: ...
def take_blocks(layout: _Buffer, blocks: _Buffer, parts: list[_Buffer]) -> None: ...
def put_blocks(layout: _Buffer, parts: list[_Buffer], blocks: _Buffer) -> int: ...
def turn(src: _Buffer, n_channels: int, width: int, bits: int, dst: _Buffer, n_threads: int) -> None: ...
def unfold_paths(
    codes: _Buffer, n_columns: int, height: int, passed: int, history: _Buffer, n_threads: int
) -> bool: ...
def decode_chunks(src: _Buffer, jobs: _Buffer, dst: _Buffer, n_threads: int) -> None: ...
def decode_verified_chunks(src: _Buffer, jobs: _Buffer, dst: _Buffer, n_threads: int) -> None: ...
def usable_threads() -> int: ...
def startable_threads(n_threads: int) -> int: ...
def disband_team() -> bool: ...
def after_fork(disbanded: bool) -> None: ...
def check_json(text: _Buffer) -> None: ...
def project_json(text: _Buffer, begin: int, end: int, wanted: object) -> object: ...
def chunk_table(
    rows: _Buffer, planes: int, bits: int, begin: int, alignment: int, may_be_empty: bool, out: _Buffer
) -> int: ...
def tensor_places(text: _Buffer, spans: _Buffer, alignment: int, out: _Buffer) -> list[str]: ...
def dequantize_uniform(
    codes: _Buffer,
    first: int,
    bits: int,
    is_signed: bool,
    n_rows: int,
    n_columns: int,
    row: _Buffer,
    column: _Buffer | None,
    type: int,  # noqa: A002
    dst: _Buffer,
    n_threads: int,
) -> None: ...
def dequantize_grouped(
    codes: _Buffer,
    first: int,
    bits: int,
    is_signed: bool,
    n_rows: int,
    n_columns: int,
    values: _Buffer | None,
    group_size: int,
    scale: _Buffer,
    kind: int,
    offset: _Buffer | None,
    type: int,  # noqa: A002
    dst: _Buffer,
    n_threads: int,
) -> None: ...
def narrow(codes: _Buffer, out: _Buffer) -> bool: ...
def widen(narrow: _Buffer, out: _Buffer, n_threads: int) -> None: ...

class NarrowCodes:
    def __init__(self, parts: list[tuple[_Buffer, int]], n_columns: int) -> None: ...

class PieceCodes:
    def __init__(self, pieces: list[tuple[_Buffer | NarrowCodes, int]], n_rows: int) -> None: ...

class CodeMatrix:
    def __init__(
        self,
        n_rows: int,
        n_columns: int,
        bits: int,
        is_signed: bool,
        values: _Buffer | None,
        row: _Buffer | None,
        column: _Buffer | None,
        row_begin: _Buffer | None,
        outlier_columns: _Buffer | None,
        outlier_values: _Buffer | None,
        permutation: _Buffer | None,
        order: _Buffer | None,
        group_size: int,
        group_rows: int,
        stacked_rows: int,
        kind: int,
        group_scale: _Numbers | None,
        group_offset: _Numbers | None,
    ) -> None: ...
    def multiply(
        self,
        codes: _Buffer | NarrowCodes | PieceCodes,
        first_row: int,
        n_rows: int,
        x: int,
        float_type: int,
        n_tokens: int,
        y: int,
        bias: int,
        bias_type: int,
        n_threads: int,
        rounds: bool = False,
        /,
    ) -> None: ...
    def multiply_to_floats(
        self,
        codes: _Buffer | NarrowCodes | PieceCodes,
        x: int,
        x_type: int,
        n_tokens: int,
        y: int,
        n_threads: int,
        /,
    ) -> None: ...
    def round(
        self,
        x: int,
        float_type: int,
        n_tokens: int,
        codes: int,
        scales: int,
        n_threads: int,
        /,
    ) -> None: ...
    def finish(
        self,
        sums: int,
        scales: int,
        first_row: int,
        n_rows: int,
        n_tokens: int,
        y: int,
        float_type: int,
        bias: int,
        bias_type: int,
        n_threads: int,
        /,
    ) -> None: ...

class CodeMatrices:
    def __init__(self, pairs: list[tuple[CodeMatrix, _Buffer | NarrowCodes | PieceCodes]]) -> None: ...
    def multiply(
        self,
        x: int,
        float_type: int,
        n_tokens: int,
        outputs: tuple[int, ...],
        n_threads: int,
        rounds: bool,
        /,
    ) -> None: ...

class TokenLayer:
    def __init__(
        self,
        norms: tuple[tuple[int, float, float, bool] | None, ...],
        norms_heads: bool,
        products: tuple[tuple[CodeMatrices, tuple[int, ...], bool], ...],
        gate: int,
        n_heads: int,
        n_shared: int,
        key_size: int,
        value_size: int,
        scale: float,
        rotary: int,
    ) -> None: ...

class Unchanged:
    def __init__(
        self,
        same: list[tuple[dict[str, Any], str, Any]],
        empty: list[tuple[dict[str, Any], str]],
        kinds: list[tuple[Any, type]],
        tensors: list[tuple[Any, int]],
    ) -> None: ...
    def is_so(self) -> bool: ...

def step_layers(
    layers: list[TokenLayer],
    x: int,
    float_type: int,
    n_texts: int,
    cos: int,
    sin: int,
    caches: list[int],
    copies: int,
    outputs: list[int],
    n_threads: int,
    /,
) -> None: ...
def same_bytes(a: int, b: int, n: int, /) -> bool: ...
def root_mean_square(
    x: int,
    float_type: int,
    n_tokens: int,
    n_columns: int,
    weight: int,
    epsilon: float,
    offset: float,
    rounds_first: bool,
    y: int,
    n_threads: int,
    /,
) -> None: ...
def attend(
    q: int,
    float_type: int,
    keys: int,
    key_text: int,
    key_head: int,
    key_token: int,
    values: int,
    value_text: int,
    value_head: int,
    value_token: int,
    n_texts: int,
    n_heads: int,
    n_shared: int,
    n_tokens: int,
    key_size: int,
    value_size: int,
    scale: float,
    y: int,
    n_threads: int,
    /,
) -> None: ...
def rotate(
    x: int, float_type: int, n_tokens: int, n_heads: int, size: int, cos: int, sin: int, rotary: int, /
) -> None: ...
def gate_values(gate: int, up: int, float_type: int, form: int, n: int, /) -> None: ...
def choose_codes(
    name: str,
    values: _Buffer,
    n_rows: int,
    stride: int,
    first: int,
    n_columns: int,
    square: _Buffer,
    row_step: _Buffer,
    column_step: _Buffer,
    slope: _Buffer,
    bits: _Buffer,
    codes: _Buffer,
    out: _Buffer,
    borders: _Buffer,
    n_threads: int,
) -> None: ...
def improve_codes(
    name: str,
    values: _Buffer,
    n_rows: int,
    stride: int,
    first: int,
    n_columns: int,
    square: _Buffer,
    row_step: _Buffer,
    column_step: _Buffer,
    slope: _Buffer,
    bits: _Buffer,
    codes: _Buffer,
    out: _Buffer,
    borders: _Buffer,
    n_threads: int,
) -> None: ...
def choose_paths(
    name: str,
    values: _Buffer,
    n_rows: int,
    stride: int,
    first: int,
    n_columns: int,
    square: _Buffer,
    row_step: _Buffer,
    column_step: _Buffer,
    slope: _Buffer,
    bits: _Buffer,
    codes: _Buffer,
    out: _Buffer,
    borders: _Buffer,
    n_threads: int,
) -> None: ...
def improve_paths(
    name: str,
    values: _Buffer,
    n_rows: int,
    stride: int,
    first: int,
    n_columns: int,
    square: _Buffer,
    row_step: _Buffer,
    column_step: _Buffer,
    slope: _Buffer,
    bits: _Buffer,
    codes: _Buffer,
    out: _Buffer,
    borders: _Buffer,
    n_threads: int,
) -> None: ...
