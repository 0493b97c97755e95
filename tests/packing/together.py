"""A script of test_together.py: processes that pack one model, forked of one that has imported what takes long.

python together.py FOLDER: what each process has said, how it has ended, and what it has read of the source, as JSON.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import tiny
import tiny_gguf
import torch
import transformers
from torch import distributed, multiprocessing

from spqfmt.cli import main
from spqfmt.cli import pack as _  # once for all
from spqfmt.container.writer import Writer
from spqfmt.importers._source_file import SourceFile
from spqfmt.packing import together as _packing  # noqa: F401

folder = Path(sys.argv[1])
LLAMA, GGUF, ONE_FILE = folder / "llama", folder / "m.gguf", folder / "one"
LOSSLESS = [str(LLAMA), "--shard-size", "60kB"]
CALIBRATED = [str(folder / "words"), "--samples", "4", "--seq-len", "16"]
GPTQ = [*CALIBRATED, "--method", "gptq", "--bits", "4", "--group-size", "16"]
ECQ = [*CALIBRATED, "--method", "ecq", "--bits", "3"]
CASES: dict[str, tuple[int, list[str]]] = {
    "lossless of 1": (1, LOSSLESS),
    "lossless of 2": (2, LOSSLESS),
    "lossless of 4": (4, LOSSLESS),
    "one file of 3": (3, [str(ONE_FILE), "--shard-size", "60kB", "--no-identity", "--codec", "zstd"]),
    "rtn of 2": (
        2,
        [str(LLAMA), "--shard-size", "30kB", *["--method", "rtn", "--bits", "4", "--group-size", "16"]],
    ),
    "rows of 2": (2, [str(ONE_FILE), "--shard-size", "40kB", *["--method", "rtn", "--ranks", "2"]]),
    "keep of 3": (3, [str(GGUF), "--shard-size", "60kB", "--chunk-alignment", "4096"]),
    "gptq of 2": (2, [*GPTQ, "--no-sequential"]),
    "gptq of 4": (4, [*GPTQ, "--shard-size", "60kB"]),
    "spqr of 3": (3, [*CALIBRATED, "--method", "spqr", "--no-sequential"]),
    "jsq of 2": (2, [*CALIBRATED, "--method", "jsq"]),
    "ecq of 2": (2, ECQ),
    "best of 4": (4, [*CALIBRATED, "--fit", "120kB", "--trellis", "--effort", "best"]),
    "size of 3": (
        3,
        [*CALIBRATED[:1], "--fit-memory", "260kB", *["--no-calibration", "--embedding-bits", "4"]],
    ),
    "more than shards": (4, [str(LLAMA), "--shard-size", "1GB"]),
}
REFUSED = {
    "one file": [],
    "partial": ["--partial", "every:2", "--shard-size", "1MB"],
    "no method": ["--method", "nonsense", "--shard-size", "1MB"],
}


def prepare() -> None:
    torch.manual_seed(1)
    with tiny.quiet():
        config = transformers.LlamaConfig(**tiny._LLAMA | {"num_hidden_layers": 8})
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        model.save_pretrained(LLAMA, max_shard_size="150KB")
        config = transformers.LlamaConfig(**tiny._LLAMA | {"num_hidden_layers": 5})
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder / "words")
        tiny.byte_tokenizer().save_pretrained(folder / "words")
    tiny.build("llama", ONE_FILE, dtype=torch.bfloat16)
    tiny_gguf.write("llama", GGUF, quantize=gguf.GGMLQuantizationType.Q8_0)
    shutil.copytree(LLAMA, folder / "changed")
    tiny.build("llama", folder / "nan", dtype=torch.bfloat16)
    with (folder / "nan/model.safetensors").open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        file.write(b"\xff" * 64)


def process(number: int, size: int, arguments: list[str], hook: Callable[[int], None]) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "SPQFMT_THREADS": "2"}
    read: list[list[Any]] = []
    into = SourceFile.read_into

    def counted(self: SourceFile, offset: int, buffer: memoryview, what: str = "it") -> None:
        read.append([what, len(buffer)])
        into(self, offset, buffer, what)

    SourceFile.read_into = counted  # type: ignore[method-assign]
    hook(number)
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        code = main._run(["pack", *arguments])
    told = {"code": code, "said": said.getvalue(), "shown": shown.getvalue(), "read": read}
    (folder / f"told.{number}.json").write_text(json.dumps(told))
    os._exit(code)


def run(size: int, arguments: list[str], hook: Callable[[int], None] = lambda number: None) -> list[Any]:
    """What each of `size` processes tells; None of one that died. The store is held here, as torchrun holds it."""
    for number in range(size):
        (folder / f"told.{number}.json").unlink(missing_ok=True)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=process, args=(k, size, arguments, hook)) for k in range(size)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        child.kill()
    del os.environ["TORCHELASTIC_RUN_ID"]
    files = [folder / f"told.{number}.json" for number in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def at_second_shard(number: int, act: Callable[[], None]) -> Callable[[int], None]:
    """A hook: process `number` does this instead of giving its second shard a name; the others wait for that."""
    marker = folder / "marker"
    marker.unlink(missing_ok=True)

    def hook(own: int) -> None:
        publish, count = Writer.publish, [0]

        def counted(self: Writer) -> None:
            count[0] += 1
            if own == number and count[0] == 2:
                marker.touch()
                act()
            elif own != number and count[0] == 2:
                end = time.monotonic() + 60
                while not marker.exists() and time.monotonic() < end:
                    time.sleep(0.01)
            publish(self)

        Writer.publish = counted  # type: ignore[method-assign]

    return hook


def dies() -> None:
    os._exit(9)


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def left(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out.parent)) for path in out.parent.rglob("*") if path.is_file())


def broken(name: str, number: int, act: Callable[[], None]) -> dict[str, Any]:
    """A pack in which a process fails, and what a resume by others makes of what is left."""
    out = folder / name / "m.spq"
    out.parent.mkdir()
    arguments = [str(LLAMA), str(out), "--shard-size", "60kB"]
    told: dict[str, Any] = {"told": run(3, arguments, at_second_shard(number, act)), "left": left(out)}
    told["without a word"] = run(2, arguments)
    told["others"] = run(2, [*arguments, "--resume", "--codec", "zstd"])
    for file in sorted((out.parent / "m.spq.resume").glob("shard-*.spq"))[:1]:
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
    told["damaged"] = str(file)
    told["resumed"] = run(2, [*arguments, "--resume"])
    told["in the end"] = left(out)
    return told


def broken_blocks(name: str, sizes: tuple[int, int]) -> dict[str, Any]:
    """A calibrated pack in which a process dies, and what others make of what is left."""
    out = folder / name.split(maxsplit=1)[0] / "m.spq"
    out.parent.mkdir()
    source, *options = CASES[name][1]
    arguments = [source, str(out), *options]
    told: dict[str, Any] = {"told": run(sizes[0], arguments, at_second_shard(1, dies)), "left": left(out)}
    told["resumed"] = run(sizes[1], [*arguments, "--resume"])
    told["in the end"] = left(out)
    return told


def changed() -> list[Any]:
    out = folder / "c" / "m.spq"
    out.parent.mkdir()
    source = folder / "changed"
    run(2, [str(source), str(out), "--shard-size", "60kB"], at_second_shard(1, dies))
    file = min(source.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return run(2, [str(source), str(out), "--shard-size", "60kB", "--resume"])


def fails() -> dict[str, Any]:
    out = folder / "f" / "m.spq"
    out.parent.mkdir()
    arguments = [str(folder / "nan"), str(out), "--shard-size", "30kB", "--method", "rtn"]
    return {"told": run(3, arguments), "left": left(out)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests were started in the background
    assert not distributed.is_initialized()
    prepare()
    (folder / "out").mkdir()
    (folder / "plain").mkdir()
    found: dict[str, Any] = {"refused": {}, "cases": {}}
    for name, (size, (source, *options)) in CASES.items():
        stem = name.replace(" ", "_") + ".spq"
        found["cases"][name] = run(size, [source, str(folder / "out" / stem), *options])
    for name, options in REFUSED.items():
        found["refused"][name] = run(2, [str(LLAMA), str(folder / "out/refused.spq"), *options])
    found["dry"] = run(2, [*LOSSLESS[:1], str(folder / "out/dry.spq"), *LOSSLESS[1:], "--dry-run"])
    found["dies"] = broken("dies", 1, dies)
    found["interrupted"] = broken("interrupted", 0, interrupted)
    found["blocks"] = {
        "gptq of 2": broken_blocks("gptq of 2", (3, 4)),
        "ecq of 2": broken_blocks("ecq of 2", (2, 3)),
    }
    found["changed"] = changed()
    found["fails"] = fails()
    # After the last fork: other threads may be started.
    made: dict[tuple[str, ...], Path] = {}
    for name, (_, arguments) in CASES.items():
        file = folder / "plain" / (name.replace(" ", "_") + ".spq")
        if (same := made.get(tuple(arguments))) is not None:
            shutil.copy(same, file)
            continue
        assert main._run(["pack", arguments[0], str(file), "--quiet", *arguments[1:]]) == 0
        if file.exists():  # one file, without shards that have the name in theirs
            made[tuple(arguments)] = file
    (folder / "found.json").write_text(json.dumps(found))
