"""A folder with models and files that faults happen to, and the commands that meet them."""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from commands import Fault, Seen, command, in_child, left_over
from running import smallest

TOOLS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    command: str
    seen: Counter[str]


class Place:
    """A folder with a source, what was packed from it, and an empty folder to write to.

    Commands that need a model read a small random llama.
    """

    def __init__(self, folder: Path, random_: random.Random) -> None:
        self.random = random_
        self.folder, self.out, self.log = folder, folder / "out", folder / "said"
        self.source, self.file = folder / "source", folder / "model.spq"
        self._make("tiny.py", "llama", self.source)
        self.ends_well("pack", self.source, self.file, "--method", "rtn", "--bits", 8, "--quiet")
        self.smallest = self.least(self.file)
        self.empty()

    def _make(self, tool: str, *arguments: object) -> None:
        """Run a tool of tools/models."""
        command = [sys.executable, str(TOOLS / "models" / tool), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def least(self, file: Path) -> int:
        """The least bytes that a file's weights can be held in."""
        in_child(lambda: print(smallest(file)), Fault(), self.log)
        return int(self.log.read_text(encoding="utf-8").split()[-1])

    def run_of(self, file: Path, least: int) -> tuple[object, ...]:
        """A `run` under the least ceiling."""
        return (*self._run(file), "--memory", str(least))

    def _run(self, file: Path) -> tuple[object, ...]:
        return ("run", file, "--prompt", "abc", "--max-new-tokens", 3, "--quiet")

    def trained(self) -> list[Path]:
        """Files of a trained model, glassllm: lossless, and 3 bits in groups."""
        source = self.folder / "glass"
        if not source.exists():
            self._make("glass.py", source)
        files = [self.folder / "glass-lossless.spq", self.folder / "glass-3.spq"]
        for file, method in zip(files, (("lossless",), ("rtn", "--bits", 3)), strict=True):
            self.ends_well("pack", source, file, "--method", *method, "--quiet")
        return files

    def real(self) -> Path:
        """SmolLM2-135M, in the codes of its GGUF file."""
        sys.path.append(str(TOOLS / "models"))
        from smollm2 import gguf_path

        file = self.folder / "smollm2.spq"
        self.ends_well("pack", gguf_path(), file, "--quiet")
        return file

    def ends_well(self, *arguments: object) -> Seen:
        """Run a command without a fault, which must go well."""
        seen = in_child(command(*arguments), Fault(), self.log)
        if seen.code:
            raise SystemExit(f"spqfmt {arguments}: {seen.said}")
        return seen

    def empty(self) -> None:
        """Have nothing in the folder that commands write to."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def readers(self) -> dict[str, tuple[object, ...]]:
        """Commands that read the file and write nothing that lasts, by what the table calls them."""
        return {
            "inspect": ("inspect", self.file),
            "verify --content": ("verify", self.file, "--content"),
            "run": self._run(self.file),
            "run --memory": self.run_of(self.file, self.smallest),
        }

    def writers(self) -> dict[str, tuple[object, ...]]:
        """Commands that write to the folder, by what the table calls them."""
        packed, model = self.out / "m.spq", self.out / "model"
        method = ("--method", "ecq", "--bits", 4, "--samples", 2, "--seq-len", 16)
        return {
            "pack --method rtn": ("pack", self.source, packed, "--method", "rtn", "--quiet", "--force"),
            "pack --method ecq --resume": (
                "pack",
                self.source,
                packed,
                *method,
                "--quiet",
                "--force",
            ),
            "pack --shard-size": ("pack", self.source, packed, "--shard-size", "100kB", "--quiet", "--force"),
            "repack": ("repack", self.file, packed, "--codec", "zstd", "--quiet", "--force"),
            "unpack": ("unpack", self.file, model, "--quiet"),
        }

    def is_whole(self) -> bool:
        """Whether what has a final name verifies."""
        files = [path for path in (self.out / "m.spq", self.out / "m.spq.index.json") if path.exists()]
        return all(in_child(command("verify", path), Fault(), self.log).code == 0 for path in files)

    def aftermath(self, ended: Seen) -> str:
        """What the folder shows after a command that failed or did not.

        A signal that comes after the files have their names, and before the process ends, leaves them: all, and whole.
        """
        if not ended.code:
            return "all there"
        left = [name for name in left_over(self.out, []) if not name.endswith(".resume")]
        if not left:
            return "nothing left"
        named = self.shards() or ["m.spq"]
        return "all there and whole" if left == named and self.is_whole() else f"LEFT {len(left)}"

    def shards(self) -> list[str]:
        """The names of the index of shards and of what it lists; none without one."""
        index = self.out / "m.spq.index.json"
        if not index.exists():
            return []
        shards = json.loads(index.read_text(encoding="utf-8"))["shards"]
        return sorted([index.name, *(shard["file"] for shard in shards)])
