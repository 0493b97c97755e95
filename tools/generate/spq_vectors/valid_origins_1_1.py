"""The valid vectors of 1.1 whose source files are made of tensors that were taken apart."""

import numpy as np

from spq_vectors import expected
from spq_vectors.build import Record, Stream
from spq_vectors.encode import BITS, Rans, packed, raw
from spq_vectors.gguf_blocks import KINDS, Codes, random_blocks
from spq_vectors.source_files import Part, Sources, gguf, packed_words, safetensors
from spq_vectors.valid import Vector, dense, flat, matrix, whole
from spq_vectors.valid_floats_1_1 import finite, grouped
from spq_vectors.valid_grouped import scales
from spq_vectors.valid_levels_1_1 import IQ4_NL, NF4
from spq_vectors.valid_sources_1_1 import with_sources


def origin(*parts: Record) -> Record:
    """Return the key of a record for the layout `arrays`."""
    return {"origin": {"layout": "arrays", "version": 1, "parts": list(parts)}}


def turned(parameters_of: str, n_out: int, groups: int) -> Record:
    """Return a part that is a stream of [out, groups] by groups first."""
    return {"stream": parameters_of, "dims": [n_out, groups], "axes": [1, 0]}


def gptq_parts(n_out: int, n_in: int, groups: int, bits: int) -> list[Record]:
    """Return the parts of GPTQ, version 1 of its zero points."""
    words = {"unit_bits": 32, "unit_dims": [n_out, n_in * bits // 32], "unit_axes": [1, 0]}
    zeros = {**turned("zero_points", n_out, groups), "add": -1, "bits": bits}
    codes: Record = {"stream": "codes", "bits": bits, **words}
    return [codes, zeros, turned("scales", n_out, groups), {"stream": "column_groups"}]


def awq_parts(n_out: int, n_in: int, groups: int) -> list[Record]:
    """Return the parts of AWQ."""
    order: Record = {"bits": 4, "axes": [3, 0, 2, 1]}
    return [
        {"stream": "codes", "dims": [n_out // 8, 4, 2, n_in], **order},
        {"stream": "zero_points", "dims": [n_out // 8, 4, 2, groups], **order},
        turned("scales", n_out, groups),
    ]


def awq_words(codes: Codes) -> bytes:
    """Pack codes [n, out] as AWQ does: eight along the last axis to a word, in its order."""
    ordered = codes.reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    return packed_words(ordered, 4).astype("<u4").tobytes()


def origin_gptq() -> Vector:
    """GPTQ of 4 bits with act-order and version 1's zero points, of 3 bits, and AWQ."""
    n_out, n_in, size, groups = 32, 32, 8, 4
    tensors, contents, entries = [], {}, {}
    for number, (name, bits) in enumerate((("gptq4", 4), ("gptq3", 3), ("awq", 4))):
        order = [(13 * k) % n_in for k in range(n_in)] if name == "gptq4" else list(range(n_in))
        own = matrix(number, n_out, n_in, 0, (1 << bits) - 1)
        zeros = matrix(number + 10, n_out, groups, *((0, 15) if name == "awq" else (1, 1 << bits)))
        stored, scale = scales(number, n_out, groups, "f16")
        streams = [Stream("codes", "u4", flat(own[:, order]), [Rans(), raw], [512, 512])]
        streams += [Stream("permutation", "u16", order)] if name == "gptq4" else []
        streams += [Stream("scales", "f16", stored), Stream("zero_points", "u8", flat(zeros))]
        weights = np.empty((n_out, n_in), np.float32)
        weights[:, order] = expected.grouped(own[:, order], size, scale, zeros.astype(np.float32))
        contents[name] = expected.restored(weights, "f16")
        group_of = np.empty(n_in, "<i4")
        group_of[order] = np.arange(n_in) // size
        scale_bytes = np.array(stored, "<u2").reshape(n_out, groups).T.tobytes()
        if name == "awq":
            parts = awq_parts(n_out, n_in, groups)
            held = [awq_words(own.T), awq_words(zeros.T), scale_bytes]
        else:
            parts = gptq_parts(n_out, n_in, groups, bits)
            words = packed_words(own, bits).T, packed_words((zeros - 1).T, bits)
            held = [*(word.astype("<u4").tobytes() for word in words), scale_bytes, group_of.tobytes()]
        parameters: Record = {"group_size": size, "bits": bits}
        tensors.append(grouped(name, [n_out, n_in], "f16", streams, parameters, **origin(*parts)))
        for part, data in enumerate(held):
            kind = ("qweight", "qzeros", "scales", "g_idx")[part]
            dtype, width = ("F16", 2) if kind == "scales" else ("I32", 4)
            entries[f"{name}.{kind}"] = (dtype, [len(data) // width], Part(number, data, part))
    sources = Sources()
    sources.add("model.safetensors", safetensors(entries))
    shows = "like GPTQ (4 bits with act-order, 3 bits over words) and AWQ: qweight, qzeros, scales, g_idx from streams"
    return Vector(shows, with_sources(tensors, sources), contents, {}, sources.made)


def origin_arrays() -> Vector:
    """Codes and scales of other checkpoints as their arrays: FP8 tiles, experts of gpt-oss, int4 with a sign, NF4."""
    tensors, contents, entries = [], {}, {}
    fp8 = finite(1, 6 * 10, "f8_e4m3")
    stored, scale = scales(2, 2, 3, "f32")
    line = np.arange(6) // 4
    columns_first = [fp8[i * 10 + j] for j in range(10) for i in range(6)]
    streams = [Stream("codes", "f8_e4m3", columns_first), Stream("scales", "f32", stored)]
    tile: Record = {"group_rows": 4, "group_size": 4, "orientation": "columns"}
    both = origin({"stream": "codes"}, {"stream": "scales"})
    tensors.append(grouped("fp8", [6, 10], "bf16", streams, tile, **both))
    values = expected.f32(fp8, "f8_e4m3").reshape(6, 10)
    contents["fp8"] = expected.restored(expected.grouped(values, 4, scale, line=line), "bf16")
    entries["fp8"] = ("F8_E4M3", [6, 10], Part(0, bytes(fp8)))
    entries["fp8.scale"] = ("F32", [2, 3], Part(0, np.array(stored, "<u4").tobytes(), 1))
    mx = finite(3, 2 * 4 * 32, "f4_e2m1")
    exponents = [118 + k for k in range(8)]
    streams = [Stream("codes", "f4_e2m1", mx), Stream("scales", "f8_e8m0", exponents)]
    tensors.append(
        grouped("experts", [2, 32, 4], "bf16", streams, {"group_size": 32}, transposed=True, **both)
    )
    values = expected.f32(mx, "f4_e2m1").reshape(8, 32)
    weights = expected.grouped(values, 32, expected.f32(exponents, "f8_e8m0").reshape(8, 1))
    turned = np.ascontiguousarray(weights.reshape(2, 4, 32).swapaxes(1, 2))
    contents["experts"] = expected.restored(turned, "bf16")
    entries["experts_blocks"] = ("U8", [2, 4, 1, 16], Part(1, packed(4, mx)))
    entries["experts_scales"] = ("U8", [2, 4, 1], Part(1, bytes(exponents), 1))
    codes = matrix(4, 4, 16, -8, 7)
    stored, scale = scales(5, 4, 2, "f16")
    streams = [Stream("codes", "i4", flat(codes)), Stream("scales", "f16", stored)]
    both = origin(
        {"stream": "codes", "add": 8},
        {"stream": "scales"},
        {"stream": "column_groups", "bits": 64, "flip": True},
    )
    tensors.append(grouped("int4", [4, 16], "f16", streams, {"group_size": 8}, **both))
    contents["int4"] = expected.restored(expected.grouped(codes, 8, scale), "f16")
    entries["int4.packed"] = ("I32", [4, 2], Part(2, packed_words(codes + 8, 4).astype("<u4").tobytes()))
    entries["int4.scale"] = ("F16", [4, 2], Part(2, np.array(stored, "<u2").tobytes(), 1))
    held = (np.arange(16) // 8)[::-1].astype("<i8").tobytes()
    entries["int4.backwards"] = ("I64", [16], Part(2, held, 2))
    table = expected.bits_of(NF4, "f32")
    codes = matrix(6, 2, 16, 0, 15)
    stored, scale = scales(7, 2, 2, "f32")
    streams = [
        Stream("codes", "u4", flat(codes)),
        Stream("levels", "f32", table),
        Stream("scales", "f32", stored),
    ]
    high_first = {"stream": "codes", "dims": [16, 2], "axes": [0, 1], "flip": True}
    three = origin(high_first, {"stream": "scales"}, {"stream": "levels"})
    tensors.append(grouped("nf4", [2, 16], "bf16", streams, {"group_size": 8}, **three))
    contents["nf4"] = expected.restored(expected.grouped(expected.f32(table)[codes], 8, scale), "bf16")
    pairs = codes.reshape(-1, 2)
    entries["nf4"] = ("U8", [16, 1], Part(3, bytes((pairs[:, 0] << 4 | pairs[:, 1]).tolist())))
    entries["nf4.absmax"] = ("F32", [4], Part(3, np.array(stored, "<u4").tobytes(), 1))
    entries["nf4.quant_map"] = ("F32", [16], Part(3, np.array(table, "<u4").tobytes(), 2))
    rows_turned = dense("turned", [4, 6], "f16", [0x3000 + k for k in range(24)])
    rows = {"stream": "values", "dims": [2, 2, 6], "axes": [1, 0, 2]}
    rows_turned.extra = origin(rows)
    tensors.append(rows_turned)
    contents["turned"] = whole("f16", [0x3000 + k for k in range(24)])
    data = b"".join(contents["turned"][12 * i : 12 * i + 12] for i in (0, 2, 1, 3))
    entries["turned"] = ("F16", [4, 6], Part(4, data))
    sources = Sources()
    sources.add("model.safetensors", safetensors(entries))
    shows = "arrays of FP8 tiles stored by columns, of gpt-oss, of int4 with a sign, of NF4; rows in another order"
    return Vector(shows, with_sources(tensors, sources), contents, {}, sources.made)


def origin_gguf() -> Vector:
    """Every type of blocks that is taken apart."""
    tensors, contents, entries = [], {}, {}
    for number, (name, kind) in enumerate(KINDS.items()):
        rows, per_row = (4, 3) if kind.elements == 32 else (2, 1)
        columns = per_row * kind.elements
        blocks = random_blocks(name, number, rows * per_row)
        codes, split = kind.split(blocks)
        streams = [Stream("codes", kind.code_dtype, flat(codes))]
        values = codes.reshape(rows, columns).astype(np.float32)
        if name in ("IQ4_NL", "IQ4_XS", "MXFP4"):
            doubled = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
            table = expected.bits_of([k / 2 for k in doubled] if name == "MXFP4" else IQ4_NL, "f16")
            streams.append(Stream("levels", "f16", table))
            values = expected.f32(table, "f16")[codes.reshape(rows, columns)]
        streams += [Stream(role, dtype, flat(held)) for role, (dtype, held) in split.items()]
        parameters: Record = {"group_size": kind.group_size, "bits": BITS[kind.code_dtype]}
        per_block = kind.elements // kind.group_size
        known: dict[str, expected.F32] = {}
        for plural, single in (("scales", "scale"), ("minimums", "minimum")):
            if plural in split:
                dtype, held = split[plural]
                known[single] = expected.f32(flat(held), dtype).reshape(rows, per_row)
            elif f"{single}_codes" in split:
                steps = expected.f32(flat(split[f"{single}_steps"][1]), "f16").reshape(rows, per_row)
                second = split[f"{single}_codes"][1].reshape(rows, per_row * per_block)
                known[single] = expected.second_level(second, steps, None, 1, per_block)
                parameters["supergroup"] = {"rows": 1, "groups": per_block}
        extra: Record = {"origin": {"layout": "gguf", "version": 1, "type": name}}
        data = blocks.tobytes()
        if name == "Q4_0":
            extra["origin"] |= {"row_dims": [2, 2], "row_axes": [1, 0]}
            lines = [data[at : at + len(data) // rows] for at in range(0, len(data), len(data) // rows)]
            data = lines[0] + lines[2] + lines[1] + lines[3]
        tensors.append(grouped(name, [rows, columns], "f32", streams, parameters, **extra))
        weights = expected.grouped(values, kind.group_size, known["scale"], None, known.get("minimum"))
        contents[name] = expected.restored(weights, "f32")
        entries[name] = (name, [rows, columns], Part(number, data))
    mx = finite(9, 64, "f4_e2m1")
    exponents = [120, 131]
    streams = [Stream("codes", "f4_e2m1", mx), Stream("scales", "f8_e8m0", exponents)]
    extra = {"origin": {"layout": "gguf", "version": 1, "type": "MXFP4"}}
    tensors.append(grouped("MXFP4.floats", [1, 64], "f32", streams, {"group_size": 32}, **extra))
    scale = expected.f32(exponents, "f8_e8m0").reshape(1, 2)
    contents["MXFP4.floats"] = expected.restored(
        expected.grouped(expected.f32(mx, "f4_e2m1").reshape(1, 64), 32, scale), "f32"
    )
    data = b""
    for b, exponent in enumerate(exponents):
        data += bytes([exponent, *(mx[32 * b + j] | mx[32 * b + j + 16] << 4 for j in range(16))])
    entries["MXFP4.floats"] = ("MXFP4", [1, 64], Part(len(KINDS), data))
    sources = Sources()
    sources.add("model.gguf", gguf(entries))
    shows = (
        "blocks of GGUF: " + ", ".join(KINDS) + "; rows in another order; MXFP4 with levels and with floats"
    )
    return Vector(shows, with_sources(tensors, sources), contents, {}, sources.made)


def origin_gguf_columns() -> Vector:
    """Blocks whose columns are in another order than those of the matrix."""
    tensors, contents, entries = [], {}, {}
    for number, name in enumerate(("Q8_0", "Q6_K")):
        kind, rows = KINDS[name], 2
        columns, per_group = 2 * kind.elements, kind.group_size
        blocks = random_blocks(name, 40 + number, rows * 2)
        codes, split = kind.split(blocks)
        # In the file the column (head, value) is (value, head).
        place = [(k % 4) * (columns // 4) + k // 4 for k in range(columns)]
        streams = [Stream("codes", kind.code_dtype, flat(codes)), Stream("permutation", "u16", place)]
        streams += [Stream(role, dtype, flat(held)) for role, (dtype, held) in split.items()]
        parameters: Record = {"group_size": per_group, "bits": BITS[kind.code_dtype]}
        groups = columns // per_group
        if "scales" in split:
            scale = expected.f32(flat(split["scales"][1]), "f16").reshape(rows, groups)
        else:
            steps = expected.f32(flat(split["scale_steps"][1]), "f16").reshape(rows, 2)
            second = split["scale_codes"][1].reshape(rows, groups)
            scale = expected.second_level(second, steps, None, 1, groups // 2)
            parameters["supergroup"] = {"rows": 1, "groups": groups // 2}
        order = {"column_dims": [4, columns // 4], "column_axes": [1, 0]}
        extra: Record = {"origin": {"layout": "gguf", "version": 1, "type": name, **order}}
        tensors.append(grouped(name, [rows, columns], "f32", streams, parameters, **extra))
        stored = expected.grouped(codes.reshape(rows, columns).astype(np.float32), per_group, scale)
        weights = np.empty_like(stored)
        weights[:, place] = stored
        contents[name] = expected.restored(weights, "f32")
        entries[name] = (name, [rows, columns], Part(number, blocks.tobytes()))
    sources = Sources()
    sources.add("model.gguf", gguf(entries))
    shows = "blocks of GGUF, Q8_0 and Q6_K, whose columns are in another order than those of the matrix"
    return Vector(shows, with_sources(tensors, sources), contents, {}, sources.made)


MAKERS = (origin_gptq, origin_arrays, origin_gguf, origin_gguf_columns)
