"""What `spqfmt serve` gives one client, eight and fifty: tokens a second, errors, lost answers, memory.

    python tools/bench/serve_rates.py MODEL.spq [--rounds 5] [--tokens 100] [--seconds 60] [--dtype bfloat16 ...]

The server is the command, the clients are OpenAI's, streaming; options of loading go to both commands. One client's
rate counts from its first token to its last, as `spqfmt run` counts, and so does the processor's time of both for
these tokens; `run` takes turns with it, for other programs slow a machine down now and then, and what stands beside
is the median of the rounds' quotients. Beside eight clients' rate, from the first request to the last answer, stands
that of one client from its request on: both have read their prompts. Fifty then ask for a while, each for one greedy
answer behind the other: what an answer lacks, or says otherwise than the first to the same prompt, is counted. Exit
code 1 where there is any.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import openai

COMMAND = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()"]
MODEL = "model"
PROMPT = "Tell me the history of the city of Rome."
_N_CLIENTS = 8
_N_CROWD = 50
_N_PROMPTS = 10
_MOST_SECONDS = 600


@dataclass(frozen=True)
class Answer:
    """One answer as a client got it. Times are of its request, its first piece and its end."""

    text: str
    n_tokens: int
    finish: str
    start: float
    first: float
    last: float

    @property
    def rate(self) -> float:
        """Tokens a second after the first."""
        return (self.n_tokens - 1) / (self.last - self.first)

    @property
    def whole_rate(self) -> float:
        """Tokens a second since the request."""
        return self.n_tokens / (self.last - self.start)


@dataclass(frozen=True)
class Rates:
    """Tokens a second in one round, and milliseconds of the server's processor time for a token."""

    run: float
    run_work: float
    one: float
    one_work: float
    one_whole: float
    one_whole_work: float
    eight: float
    eight_work: float


@dataclass
class Crowd:
    """What many clients got in some time."""

    n_answers: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    """Errors, and answers that are not whole or not the first to the same prompt."""


def ask(
    client: openai.OpenAI,
    prompt: str,
    n_tokens: int,
    model: str = MODEL,
    at_piece: Callable[[], None] = lambda: None,
) -> Answer:
    """Stream one answer, to a chat where the model has a template; `at_piece` is called as each piece comes."""
    times, pieces, finish, n = [], [], "", 0
    start = time.perf_counter()
    with client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=n_tokens,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
    ) as stream:
        for event in stream:
            if event.usage is not None:
                n = event.usage.completion_tokens
            for choice in event.choices:
                if choice.delta.content:
                    times.append(time.perf_counter())
                    at_piece()
                    pieces.append(choice.delta.content)
                finish = choice.finish_reason or finish
    times.append(time.perf_counter())
    return Answer("".join(pieces), n, finish, start=start, first=times[0], last=times[-1])


def crowd(
    client: openai.OpenAI, seconds: float, n_tokens: int, n_clients: int = _N_CROWD, model: str = MODEL
) -> Crowd:
    """Let clients ask one request behind the other for some seconds, each one at least."""
    found, first, lock = Crowd(), dict[str, str](), threading.Lock()
    start = time.perf_counter()

    def go_on(number: int) -> None:
        turn = number
        while turn == number or time.perf_counter() < start + seconds:
            prompt = f"{PROMPT} {turn % _N_PROMPTS}"
            turn += 1
            try:
                answer = ask(client, prompt, n_tokens, model)
            except openai.OpenAIError as error:
                with lock:
                    found.faults.append(f"{type(error).__name__}: {error}")
                continue
            with lock:
                found.n_answers += 1
                found.n_tokens += answer.n_tokens
                if answer.finish not in {"length", "stop"} or not answer.n_tokens:
                    found.faults.append(f"not whole: {answer}")
                if first.setdefault(prompt, answer.text) != answer.text:
                    found.faults.append(f"another answer to the same prompt: {answer}")

    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(go_on, range(n_clients)))
    found.seconds = time.perf_counter() - start
    return found


@contextmanager
def serving(file: Path, options: list[str]) -> Iterator[tuple[openai.OpenAI, int]]:
    """A client of a server of its own, and the server's number."""
    command = [*COMMAND, "serve", str(file), "--port", "0", "--name", MODEL, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"at (http://\S+/v1)", line):
                    break
            else:
                raise SystemExit("the server did not begin")
            with openai.OpenAI(
                base_url=found[1], api_key="none", max_retries=0, timeout=_MOST_SECONDS
            ) as client:
                yield client, process.pid
        finally:
            process.terminate()


def work_seconds(process: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(process: int) -> float:
    """What is resident of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def run_rate(file: Path, n_tokens: int, options: list[str]) -> tuple[float, float]:
    """Tokens a second that `spqfmt run` says, and milliseconds of its processor's time for a token after the first."""
    command = [*COMMAND, "run", str(file), "--prompt", PROMPT, "--max-new-tokens", str(n_tokens), *options]
    worked = []
    with (
        TemporaryFile("w+") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        assert process.stdout is not None
        limit = threading.Timer(_MOST_SECONDS, process.kill)
        limit.start()
        while process.stdout.read1():  # type: ignore[attr-defined]
            worked.append(work_seconds(process.pid))
        code = process.wait()
        limit.cancel()
        stderr.seek(0)
        said = stderr.read()
    found = re.search(r"(\d+) new tokens at ([\d.]+) tokens/s", said)
    assert not code, said
    assert found is not None, said
    return float(found[2]), (worked[-1] - worked[0]) / (int(found[1]) - 1) * 1e3


def rates_of(client: openai.OpenAI, process: int, file: Path, *, n_tokens: int, options: list[str]) -> Rates:
    """One round of all."""
    alone, alone_work = run_rate(file, n_tokens, options)
    worked = [work_seconds(process)]
    one = ask(client, PROMPT, n_tokens, at_piece=lambda: worked.append(work_seconds(process)))
    one_worked = work_seconds(process) - worked[0]
    start, before = time.perf_counter(), work_seconds(process)
    with ThreadPoolExecutor(_N_CLIENTS) as pool:
        answers = list(pool.map(lambda i: ask(client, f"{PROMPT} {i}", n_tokens), range(_N_CLIENTS)))
    n_all = sum(answer.n_tokens for answer in answers)
    return Rates(
        run=alone,
        run_work=alone_work,
        one=one.rate,
        one_work=(worked[-1] - worked[1]) / (one.n_tokens - 1) * 1e3,
        one_whole=one.whole_rate,
        one_whole_work=one_worked / one.n_tokens * 1e3,
        eight=n_all / (time.perf_counter() - start),
        eight_work=(work_seconds(process) - before) / n_all * 1e3,
    )


def values(rounds: list[Rates], name: str) -> list[float]:
    """One figure of all rounds."""
    return [getattr(found, name) for found in rounds]


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    given, options = parser.parse_known_args()
    file, n_tokens = given.file, given.tokens
    with serving(file, options) as (client, process):
        ask(client, PROMPT, 8)
        rounds = [
            rates_of(client, process, file, n_tokens=n_tokens, options=options) for _ in range(given.rounds)
        ]
        print("| | tokens/s: best | median | beside | processor's ms a token: least | median |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, column, beside in (
            ("`run`", "run", "run"),
            ("one client", "one", "run"),
            ("one client, prompt included", "one_whole", "one_whole"),
            ("eight clients together, prompts included", "eight", "one_whole"),
        ):
            rates, worked = values(rounds, column), values(rounds, f"{column}_work")
            quotients = [rate / other for rate, other in zip(rates, values(rounds, beside), strict=True)]
            cells = [f"{max(rates):.1f}", f"{statistics.median(rates):.1f}"]
            cells.append(f"x {statistics.median(quotients):.2f}")
            cells += [f"{min(worked):.1f}", f"{statistics.median(worked):.1f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        # Fifty at once have taken what memory they take.
        crowd(client, min(5.0, given.seconds), 24)
        before = memory_mib(process)
        found = crowd(client, given.seconds, 24)
        after = memory_mib(process)
    print(
        f"{_N_CROWD} clients for {found.seconds:.0f} s: {found.n_answers} answers, "
        f"{found.n_tokens / found.seconds:.1f} tokens/s, {len(found.faults)} faults, "
        f"memory {before:.0f} -> {after:.0f} MiB"
    )
    for fault in found.faults[:5]:
        print(fault)
    raise SystemExit(bool(found.faults))


if __name__ == "__main__":
    main()
