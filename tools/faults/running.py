"""A model that runs while its file is truncated, replaced or deleted, at every residency; and many loads."""

import multiprocessing
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from commands import Fault, in_child, last_line

_RESIDENCIES: dict[str, dict[str, Any]] = {
    "decoded floats": {},
    "packed": {"packed": True},
    "from disk": {"memory": 0},
}


def smallest(file: Path) -> int:
    """Return the least bytes that a model's weights can be held in."""
    import spqfmt

    try:
        spqfmt.load_model(file, memory=1)
    except spqfmt.MemoryBudgetError as error:
        return int(error.smallest_bytes)
    return 1


def _load(file: Path, options: dict[str, Any]) -> Any:
    import spqfmt

    if options.get("memory") != 0:
        return spqfmt.load_model(file, **options)[0]
    model, _ = spqfmt.load_model(file, memory=smallest(file))
    places = {part.residency for part in model.packed_weights.plan.parts}
    if places != {"disk"}:
        raise SystemExit(f"NOTHING is tried of what stays on disk: {places}")
    return model


def _truncate(file: Path, at: float) -> None:
    os.truncate(file, int(file.stat().st_size * at))


def _overwrite(file: Path, at: float) -> None:
    with file.open("r+b") as opened:
        opened.seek(int(file.stat().st_size * at * 0.9))
        opened.write(os.urandom(4096))


def _replace(file: Path, at: float) -> None:
    other = file.with_name("other")
    other.write_bytes(os.urandom(file.stat().st_size))
    other.replace(file)


def _delete(file: Path, at: float) -> None:
    file.unlink()


_CHANGES: dict[str, Callable[[Path, float], None]] = {
    "truncated": _truncate,
    "overwritten in place": _overwrite,
    "replaced": _replace,
    "deleted": _delete,
}


def under_a_running_model(
    file: Path, folder: Path, random_: random.Random, trials: int
) -> Iterator[tuple[str, str, Counter[str]]]:
    """Yield fault, residency and what was seen: the same logits, or an error of ours; never others."""
    path = folder / "running.spq"
    for fault, change in _CHANGES.items():
        for residency, options in _RESIDENCIES.items():
            seen: Counter[str] = Counter()
            for _ in range(trials):
                shutil.copy(file, path)
                at = random_.random()

                def work(
                    options: dict[str, Any] = options,
                    change: Callable[[Path, float], None] = change,
                    at: float = at,
                ) -> None:
                    import torch

                    import spqfmt

                    model = _load(path, options)
                    tokens = torch.arange(9)[None]
                    with torch.inference_mode():
                        before = model(tokens).logits
                        change(path, at)
                        try:
                            same = torch.equal(model(tokens).logits, before)
                        except (spqfmt.FormatError, OSError) as error:
                            print(f"{type(error).__name__}", flush=True)
                            os._exit(1)
                    print("the same logits" if same else "OTHER LOGITS", flush=True)

                seen[last_line(in_child(work, Fault(), folder / "said"))] += 1
            yield f"file {fault}", f"model runs, {residency}", seen


def in_other_processes(file: Path, folder: Path, trials: int) -> Iterator[tuple[str, str, Counter[str]]]:
    """Yield how a process was started, residency and what was seen: the logits that the parent has.

    A forked child uses the parent's model, a spawned one loads the file itself.
    """
    for method in ("fork", "spawn"):
        for residency, options in _RESIDENCIES.items():
            seen: Counter[str] = Counter()
            for _ in range(trials):

                def work(method: str = method, options: dict[str, Any] = options) -> None:
                    import torch

                    model = _load(file, options)
                    expected = _logits(model)
                    context: Any = multiprocessing.get_context(method)
                    receives, sends = context.Pipe(duplex=False)
                    given = (sends, file, options, model if method == "fork" else None)
                    child = context.Process(target=_answer, args=given)
                    child.start()
                    sends.close()
                    found = torch.tensor(receives.recv()) if receives.poll(120) else torch.zeros(1)
                    child.join()
                    print(
                        "the same logits"
                        if torch.equal(found, expected) and not child.exitcode
                        else "OTHER LOGITS"
                    )

                seen[last_line(in_child(work, Fault(), folder / "said"))] += 1
            yield f"{method}ed child", f"model runs, {residency}", seen


def _answer(sends: Any, file: Path, options: dict[str, Any], model: Any) -> None:
    sends.send(_logits(model if model is not None else _load(file, options)).tolist())


def _logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.arange(9)[None]).logits.float()


def loads(file: Path, n: int) -> None:
    """Load a model many times in this process; print whether files, threads or memory stay behind."""
    import gc

    import spqfmt

    def state() -> tuple[int, int, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        files, threads = (len(list(Path("/proc/self", what).iterdir())) for what in ("fd", "task"))
        return files, threads, pages * 4096

    small: dict[str, Any] = {"memory": smallest(file)}
    ways: list[dict[str, Any]] = [{"packed": True}, small, {"packed": True}, small, {"packed": False}]
    for number in range(n):
        spqfmt.load_model(file, **ways[number % len(ways)])
        if number == n // 4:
            before = state()
    after = state()
    left = "no file or thread" if after[:2] <= before[:2] else f"LEFT files or threads {before} {after}"
    print(f"{left} and {(after[2] - before[2]) / (1 << 20):.1f} MiB more than after a quarter of them")
