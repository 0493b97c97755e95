"""The invalid vectors of sections 6 to 8: activations, assets, shards."""

from spq_vectors.build import File, Record, Stream, zstd_index
from spq_vectors.invalid import bad, change, small
from spq_vectors.valid import dense


def beside_tensors() -> None:
    """Break rules of sections 6 to 8."""
    kinds = "low and high MUST be finite with low <= high; the ratio MUST be from 0 to 0.5."
    one, inf, minus_one = 0x3F800000, 0x7F800000, 0xBF800000

    def tensor(**extra: Record) -> File:
        own = dense("weight", [8], "u8", range(8))
        own.extra = extra
        return small(own)

    for name, clamp in (
        ("order", {"kind": "range", "low": one, "high": minus_one}),
        ("infinite", {"kind": "range", "low": one, "high": inf}),
        ("nan", {"kind": "range", "low": 0x7FC00000, "high": one}),
        ("ratio", {"kind": "ratio", "ratio": one, "scope": "token"}),
        ("ratio_negative", {"kind": "ratio", "ratio": minus_one, "scope": "token"}),
    ):  # fmt: skip
        bad(f"clamp_{name}", "corrupt", kinds, tensor(activation_clamp=clamp))
    clause = '`activation_clamp`: `{"kind": "range", "low": bits, "high": bits}`'
    bad("clamp_kind", "corrupt", clause, tensor(activation_clamp={"kind": "x", "low": 0, "high": 0}))
    listed = {"kind": ["range"], "low": 0, "high": 0}
    bad("clamp_kind_list", "corrupt", clause, tensor(activation_clamp=listed))
    bad("clamp_bits", "corrupt", clause, tensor(activation_clamp={"kind": "range", "low": 0, "high": 2**32}))
    bad("clamp_scope", "corrupt", '"scope": "tensor" | "token"}',
        tensor(activation_clamp={"kind": "ratio", "ratio": 0, "scope": "row"}))  # fmt: skip
    bad("activation_bits", "corrupt", '`activation_quantization`: `{"bits": 8, "scope": "token"}`',
        tensor(activation_quantization={"bits": 4, "scope": "token"}))  # fmt: skip
    clamp_to_one = {"kind": "range", "low": 0, "high": one}
    bad("feature_clamp", "corrupt", "a reader MUST refuse a file that uses a feature without its bit.",
        small(required=0, edit=change("tensors.0.activation_clamp", clamp_to_one)))  # fmt: skip
    plan = "No other rule is allowed; N is at least 1."
    bad("partial_plan_rule", "corrupt", plan, small(extra={"partial_plan": {"rule": "some", "n": 1}}))
    bad("partial_plan_n", "corrupt", plan, small(extra={"partial_plan": {"rule": "every", "n": 0}}))
    path = "parts of the characters `A-Z a-z 0-9 . _ -` separated by `/`, none of them empty, `.` or `..`."
    for number, name in enumerate(
        (
            "../x",
            "/x",
            "a//b",
            "a/",
            "a/./b",
            "",
            "a\\b",
            "C:x",
            "a b",
            "caf\u00e9",
            "a\0",
            "x\n",
            "..",
            "a" * 256,
        )
    ):
        bad(
            f"asset_name_{number:02}",
            "corrupt",
            path if len(name) < 256 else "relative path of 1 to 255 bytes",
            held(name),
        )
    unique = "Names MUST be unique, and no name followed by `/` may begin another."
    bad("asset_twice", "corrupt", unique, held("a", "b", "a"))
    bad("asset_is_folder", "corrupt", unique, held("a", "b", "a/c"))
    bad("asset_is_folder_later", "corrupt", unique, held("a/b/c", "a/b"))
    bad("assets_1025", "limit", "| `max_assets` | 1024 | |", held(*(f"{k}" for k in range(1025))))
    stream = "Its stream has role `asset` and dtype u8."
    bad("asset_dtype", "corrupt", stream, File(assets=[("a", Stream("asset", "i8", b"a"))]))
    bad("asset_role", "corrupt", stream, File(assets=[("a", Stream("values", "u8", b"a"))]))
    shard = '`shard`: `{"number": k, "count": n}`, 1 <= k <= n,'
    bad("shard_3_of_2", "corrupt", shard, small(extra={"shard": {"number": 3, "count": 2}}))
    bad("shard_0_of_2", "corrupt", shard, small(extra={"shard": {"number": 0, "count": 2}}))


def held(*names: str) -> File:
    """Return a file of empty assets."""
    empty = [(name, Stream("asset", "u8", b"")) for name in names]
    return File(assets=empty, compress=zstd_index if len(empty) > 3 else bytes)
