"""Settings that name code come back only when they are asked for."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spq_command import run

import spqfmt
from spqfmt.models.code_settings import is_settings, without_code

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "models"))
import tiny

KERNEL = "canary/repo@main:fn"
NAMED: dict[str, dict[str, Any]] = {
    "attention": {"attn_implementation": KERNEL},
    "by its other name": {"_attn_implementation": KERNEL},
    "by its inner name": {"_attn_implementation_internal": f"paged|{KERNEL}"},
    "by parts": {"attn_implementation": {"": "eager", "text_config": "canary/repo"}},
    "experts": {"experts_implementation": KERNEL, "_experts_implementation": "a/b"},
    "more experts": {"_experts_implementation_internal": KERNEL},
    "kernels": {"use_kernels": True, "kernel_config": {"RMSNorm": KERNEL}},
    "modules": {"auto_map": {"AutoConfig": "evil.C"}, "custom_pipelines": {"x": {"impl": "evil.P"}}},
    "other folders": {"configuration_files": ["../config.4.json"], "transformers_weights": "/x"},
}
KEPT: dict[str, Any] = {
    "attn_implementation": "flash_attention_2",
    "experts_implementation": {"": "eager", "text_config": None},
    "use_kernels": False,
    "auto_map": {},
    "configuration_files": ["config.4.0.0.json"],
    "name_or_path": "owner/repo",
    "tokenizer_file": "/home/x/tokenizer.json",
    "quantization_config": {"tokenizer": "owner/repo"},
}


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize("nested", [False, True])
def test_what_names_code_is_left_out(case: str, nested: bool) -> None:
    inner = KEPT | NAMED[case] | {"last": [1, {"b": "\u00e9"}]}
    rest = {key: value for key, value in inner.items() if key not in NAMED[case]}
    wrap: Callable[[Any], Any] = (lambda part: {"text_config": [part]}) if nested else (lambda part: part)
    found = without_code("config.json", json.dumps(wrap(inner)).encode())
    assert found is not None
    assert json.loads(found[0]) == wrap(rest)
    assert set(found[1]) == set(NAMED[case])


@pytest.mark.parametrize("data", [json.dumps(KEPT).encode(), b"{", b"[]", b"\xff", b'"auto_map"', b""])
def test_everything_else_is_the_very_same(data: bytes) -> None:
    found = without_code("config.json", data)
    assert found is not None
    assert found[0] is data
    assert found[1] == ()


@pytest.mark.parametrize("data", [b"[" * 100_000, b" " * (4 << 20) + b"{}"])
def test_what_cannot_be_looked_into_is_none(data: bytes) -> None:
    assert without_code("config.json", data) is None


def test_modules_of_others_are_code() -> None:
    own = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    data = json.dumps([own, own | {"path": "1_Pooling"}]).encode()
    assert without_code("modules.json", data) == (data, ())
    for other in ("custom_st.Transformer", "canary/repo--custom.T", "sentence_transformersx.T", None, 1):
        assert without_code("x/Modules.json", json.dumps([own, own | {"type": other}]).encode()) is None
    assert without_code("modules.json", b"[1]") is None
    assert without_code("modules.json", b"{}") is None


def test_settings_are_known_by_their_names() -> None:
    names = [
        "config.json",
        "Config.JSON",
        "text_encoder/config.json",
        "tokenizer_config.json",
        "a/x_config.json",
    ]
    assert all(map(is_settings, names))
    assert not any(map(is_settings, ["tokenizer.json", "config.json.md", "config/vocab.json", "README.md"]))


def source(tmp_path: Path, settings: dict[str, Any]) -> Path:
    folder = tmp_path / "model"
    with tiny.quiet():
        tiny.build("llama", folder)
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    "options", [(), ("--as", "dense"), ("--keep-packed",)], ids=["source", "dense", "packed"]
)
def test_unpack_writes_them_only_with_code(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = source(tmp_path, NAMED["attention"] | NAMED["modules"])
    spqfmt.pack(folder, tmp_path / "m.spq")
    done = run("unpack", tmp_path / "m.spq", tmp_path / "out", *options)
    assert done.code == 0
    line = "written without attn_implementation, auto_map, custom_pipelines, which name code; --with-code writes all: "
    assert f"{line}config.json, tokenizer_config.json" in done.stderr.splitlines()
    for name in ("config.json", "tokenizer_config.json"):
        before = json.loads((folder / name).read_text())
        rest = {k: v for k, v in before.items() if k not in NAMED["attention"] | NAMED["modules"]}
        assert json.loads((tmp_path / "out" / name).read_text()) == rest
    if not options:
        assert f"{tmp_path / 'out'}: 3 files, identical to the source" in done.stderr.splitlines()
    done = run("unpack", tmp_path / "m.spq", tmp_path / "all", "--with-code", *options)
    assert (done.code, "written without" in done.stderr) == (0, False)
    for name in ("config.json", "tokenizer_config.json"):
        assert (tmp_path / "all" / name).read_bytes() == (folder / name).read_bytes()


def test_a_report_names_what_was_changed(tmp_path: Path) -> None:
    folder = source(tmp_path, NAMED["kernels"])
    spqfmt.pack(folder, tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    reason = "without use_kernels, kernel_config, which name code; --with-code writes all"
    assert report.identical
    assert report.changed == {"config.json": reason, "tokenizer_config.json": reason}
    assert set(report.written) == {"generation_config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("options", [{}, {"as_": "dense"}, {"keep_packed": True}])
def test_modules_of_others_are_left_out(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = source(tmp_path, {})
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "canary/repo--custom.T"}]))
    spqfmt.pack(folder, tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", **options)
    assert "--with-code" in report.left_out["modules.json"]
    assert not (tmp_path / "out" / "modules.json").exists()
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "all", with_code=True, **options)
    assert (tmp_path / "all" / "modules.json").read_bytes() == (folder / "modules.json").read_bytes()


def test_settings_that_cannot_be_looked_into_are_left_out(tmp_path: Path) -> None:
    folder = source(tmp_path, {})
    (folder / "x_config.json").write_text("[" * 100_000)
    shutil.copy(folder / "config.json", folder / "config.other.json")
    spqfmt.pack(folder, tmp_path / "m.spq")
    for number, options in enumerate(({}, {"as_": "dense"})):
        report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / f"out{number}", **options)  # type: ignore[arg-type]
        assert set(report.left_out) == {"x_config.json"}
        assert not (tmp_path / f"out{number}" / "x_config.json").exists()
        assert (tmp_path / f"out{number}" / "config.other.json").exists()
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "all", with_code=True)
    assert not report.left_out
