"""A script of test_fork.py: what a process does with a model, done again in forked children.

python forked.py FOLDER: one line for each kind of work, "WAY: NAME ok" or what went wrong. Each child has an alarm.
"""

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import spqfmt
from spqfmt.kernels import native

CHILD_SECONDS = 120

folder = Path(sys.argv[1])
file = folder / "model.spq"
Work = Callable[[], Any]


def digest(*chunks: Any) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def read() -> str:
    with spqfmt.open(file) as opened:
        return digest(*(opened.read(name).contiguous().view(torch.uint8).numpy() for name in opened))


def written(write: Callable[[Path], object]) -> str:
    out = folder / f"{os.getpid()}.spq"
    write(out)
    made = out.read_bytes()
    out.unlink()
    return digest(made)


def unpacked() -> str:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        spqfmt.unpack(file, Path(out))
        return digest((Path(out) / "model.safetensors").read_bytes())


def measure() -> str:
    from spqfmt.reading.measure import measure_file

    return digest(
        repr([tensor.measured for tensor in measure_file(file, spqfmt.inspect(file)).tensors]).encode()
    )


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        # The second pass finds what the first left: buffers, parts read ahead.
        return torch.cat([model(torch.arange(n)[None]).logits.float().flatten() for n in (40, 1)])


def loaded(**options: Any) -> torch.Tensor:
    model, _ = spqfmt.load_model(file, **options)
    return logits(model)


def decoded() -> tuple[str, torch.Tensor]:
    model, _ = spqfmt.load_model(file)
    weights = (value.view(torch.uint8).numpy() for _, value in sorted(model.state_dict().items()))
    return digest(*weights), logits(model)


def same(found: Any, expected: Any) -> bool:
    """Equal, but for last bits of torch's sums, which depend on its threads and on where in memory weights lie."""
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, torch.Tensor):
        return torch.allclose(found, expected, rtol=0, atol=0.05 * float(expected.std()))
    return bool(found == expected)


def products() -> str:
    """torch's own, shared among its threads."""
    numbers = torch.arange(1 << 20, dtype=torch.float32).reshape(1024, 1024)
    return digest(
        (numbers @ numbers).numpy(), torch.nn.functional.silu(numbers).numpy(), repr(threads()).encode()
    )


def threads() -> tuple[int, ...]:
    from spqfmt.codecs.threads import n_threads

    return (n_threads(), torch.get_num_threads())


def in_child(name: str, work: Work, expected: object) -> str:
    """How the work ends in a forked child."""
    child = os.fork()
    if child == 0:
        signal.alarm(CHILD_SECONDS)
        status = 3
        try:
            status = 0 if same(work(), expected) else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return (
            f"{name} hung"
            if os.WTERMSIG(status) == signal.SIGALRM
            else f"{name} died of {os.WTERMSIG(status)}"
        )
    return f"{name} {['ok', 'ended', 'differs', 'raised'][os.WEXITSTATUS(status)]}"


def every_work() -> dict[str, Work]:
    from spqfmt.kernels.context import Context, using

    smallest = int((folder / "ceiling").read_text())

    def from_disk() -> torch.Tensor:
        # Reading is slow, so that a plan keeps in memory what it can, and leaves the rest on disk.
        with using(Context(read_rate=1e6)):
            return loaded(memory=smallest)

    with using(Context(read_rate=1e6)):
        kept, _ = spqfmt.load_model(file, memory=smallest)
    assert any(part.residency == "disk" for part in kept.packed_weights.plan.parts)
    return {
        "torch": products,
        "read": read,
        "verify": lambda: str(spqfmt.verify(file)),
        "measure": measure,
        "unpack": unpacked,
        "lossless": lambda: written(lambda out: spqfmt.pack(folder / "source", out)),
        "rtn": lambda: written(lambda out: spqfmt.pack(folder / "source", out, method="rtn")),
        "repack": lambda: written(lambda out: spqfmt.repack(file, out, codec="zstd")),
        "decoded": decoded,
        "packed": lambda: loaded(packed=True),
        "on disk": from_disk,
        "loaded before": lambda: logits(kept),
    }


def each(works: Mapping[str, Work], begin: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Each work in a child of a process that has done all of them; the child begins with `begin`."""

    def in_turn(work: Work) -> object:
        begin()
        return work()

    expected = {name: work() for name, work in works.items()}
    for name, work in works.items():
        yield in_child(name, partial(in_turn, work), expected[name])


def one_after_the_other(works: Mapping[str, Work]) -> Iterator[str]:
    """All works, and one in a child of a child."""
    yield from each(works)
    expected = read()
    grandchild = partial(in_child, "read", read, expected)
    yield in_child("child's child", lambda: read() + grandchild(), f"{expected}read ok")


def while_others_work(works: Mapping[str, Work]) -> Iterator[str]:
    """Children of a process whose other threads read, and compute with the model that the child takes over."""
    names = ("read", "loaded before", "packed")
    expected = {name: works[name]() for name in names}
    ended = threading.Event()

    def repeat(name: str) -> None:
        while not ended.is_set():
            works[name]()

    others = [threading.Thread(target=repeat, args=(name,)) for name in names[:2]]
    for other in others:
        other.start()
    for number in range(6):
        name = names[number % len(names)]
        yield in_child(name, works[name], expected[name])
    ended.set()
    for other in others:
        other.join()


def without_a_team(works: Mapping[str, Work]) -> Iterator[str]:
    """Where torch's threads cannot be sent home before the fork: a child works without them."""
    native._native.disband_team = lambda: False  # type: ignore[assignment]
    yield from each({name: works[name] for name in ("read", "rtn", "packed", "loaded before")})


def start_no_threads() -> None:
    """As under a limit of processes: Python, C++ and torch's runtime are refused threads; here for their stacks."""
    system, attributes = ctypes.CDLL(None), (ctypes.c_char * 64)()
    system.pthread_attr_init(attributes)
    system.pthread_attr_setstacksize(attributes, ctypes.c_size_t(1 << 46))
    assert system.pthread_setattr_default_np(attributes) == 0


def without_more_threads(works: Mapping[str, Work]) -> Iterator[str]:
    """In children that cannot start a thread."""
    # libgomp ends a process that is refused a thread, unless torch was told of it, as loading and packing do.
    others = {name: work for name, work in works.items() if name not in {"torch", "loaded before"}}
    yield from each(others, start_no_threads)


class Rows(Dataset[torch.Tensor]):
    """Rows of a tensor, read when asked for."""

    def __init__(self) -> None:
        self.opened = spqfmt.open(file)
        self.name = "model.layers.0.mlp.up_proj.weight"

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.opened.read(self.name, rows=slice(row, row + 1))


def workers(_works: Mapping[str, Work]) -> Iterator[str]:
    """DataLoader and a pool over a file that the parent has opened and read."""
    rows = Rows()
    whole = rows.opened.read(rows.name)[: len(rows)]
    loader = DataLoader(rows, batch_size=16, num_workers=2, multiprocessing_context="fork")
    found = torch.cat([batch.flatten(0, 1) for batch in loader])
    yield f"loader {'ok' if torch.equal(found, whole) else 'differs'}"
    expected = read()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        yield f"pool {'ok' if pool.starmap(read, [()] * 4) == [expected] * 4 else 'differs'}"


if __name__ == "__main__":
    all_works = every_work()
    for way in (one_after_the_other, while_others_work, without_more_threads, workers, without_a_team):
        for line in way(all_works):
            sys.stdout.write(f"{way.__name__}: {line}\n")
            sys.stdout.flush()
