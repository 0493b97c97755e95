"""How long `spqfmt inspect` takes on a file of many tensors.

python tools/bench/time_inspect.py [--tensors 1000] [--chunks 32] [--rounds 5]

Makes a file of tensors in groups of 64 whose codes have that many chunks each, as 64 million 4-bit codes have, and
prints the seconds of each command as a process of its own: the fastest round and the median, and the processor's
seconds of the fastest, which other work on the machine changes least.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from spqfmt.container.encode import encode_chunk
from spqfmt.container.writer import Writer
from spqfmt.records import Stream, TensorRecord

KINDS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
COLUMNS, GROUP = 1024, 64
COMMANDS = (["inspect"], ["inspect", "--by", "projection"], ["inspect", "--json"])


def make_file(path: Path, n_tensors: int, n_chunks: int, seed: int = 0) -> None:
    """Grouped tensors of `n_chunks` rows, each row of codes a chunk of its own."""
    random = np.random.default_rng(seed)
    groups = n_chunks * (COLUMNS // GROUP)
    with Writer(path, 64, force=True) as writer:
        for number in range(n_tensors):
            layer, kind = divmod(number, len(KINDS))
            if kind == 0:
                writer.begin_segment(f"model.layers.{layer}")
            record = TensorRecord(
                name=f"model.layers.{layer}.{KINDS[kind]}.weight",
                shape=(n_chunks, COLUMNS),
                dtype="bf16",
                scheme="grouped",
                method="rtn",
                parameters={"group_size": GROUP, "bits": 4, "orientation": "rows"},
                streams=(Stream("codes", "u4", n_chunks * COLUMNS), Stream("scales", "f16", groups)),
            )
            codes = np.clip(np.rint(random.normal(8, 2, (n_chunks, COLUMNS))), 0, 15).astype(np.uint8)
            scales = random.lognormal(-4, 0.3, groups).astype(np.float16)
            chunks = [encode_chunk(row, "u4", "rans") for row in codes]
            writer.add_tensor(record, [chunks, [encode_chunk(scales, "f16", "auto")]])
        writer.seal({"method": "rtn"})
        writer.publish()


def seconds(command: list[str], rounds: int) -> tuple[list[float], list[float]]:
    """Wall-clock and processor time of the command, started anew each round."""
    program = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()", *command]
    taken, busy = [], []
    for _ in range(rounds):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(program, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return taken, busy


def main() -> None:
    """Make the file, time the commands, remove it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.spq"
        make_file(path, arguments.tensors, arguments.chunks)
        print(f"{arguments.tensors} tensors of {arguments.chunks} chunks, {path.stat().st_size:,} bytes")
        for command in COMMANDS:
            taken, busy = seconds([command[0], str(path), *command[1:]], arguments.rounds)
            print(
                f"{min(taken):6.3f} s, median {statistics.median(taken):6.3f} s, processor {min(busy):6.3f} s: "
                f"{' '.join(command)}"
            )


if __name__ == "__main__":
    main()
