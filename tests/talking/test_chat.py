"""A conversation: on a terminal of its own, and in this process."""

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from spq_command import run

from spqfmt.cli.chat import _Conversation, _talk
from spqfmt.cli.talking import Choosing, Talker
from spqfmt.cli.units import for_terminal
from spqfmt.errors import OptionError
from spqfmt.loaders import Sampling, generate
from spqfmt.loaders.sampling import StopCut

HOW = Sampling(12)


def answer(loaded: tuple[Any, Any], *said: str, system: str = "", how: Sampling = HOW) -> str:
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    before = [{"role": "system", "content": system}] if system else []
    return generate(*loaded, [*before, *messages], how).text


class _Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self._side, other = pty.openpty()
        command = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()"]
        environment = os.environ | {"TERM": "dumb", "COLUMNS": "400"}
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: _control(0),  # noqa: PLW1509
        )
        os.close(other)
        self.text = ""

    def until(self, end: str, *, again: str = "") -> str:
        """What came since the last time, up to `end`. `again` is typed every few seconds in which nothing comes.

        A Ctrl-C between the prompt and the wait for a line is seen with the next one alone, or where a key is awaited
        already, after that; so one that empties the line is typed in turn with it.
        """
        deadline, n_quiet = time.monotonic() + 100, 0
        while end not in self.text:
            assert time.monotonic() < deadline, f"{self.text}\n{self._state()}"
            n_quiet += 1
            if again and n_quiet % 4 == 0:
                self.type("\x15" if n_quiet % 8 == 0 else again)
            if select.select([self._side], [], [], 1)[0]:
                try:
                    self.text += os.read(self._side, 1 << 16).decode(errors="replace")
                except OSError:
                    break
        before, _, self.text = self.text.partition(end)
        return before.replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())

    def _state(self) -> str:
        """What the system says of each thread: where it waits, and what it does with signals."""
        said = []
        for task in sorted(Path(f"/proc/{self.process.pid}/task").glob("*")):
            with contextlib.suppress(OSError):
                lines = (task / "status").read_text().splitlines()
                kept = [
                    line
                    for line in lines
                    if line.startswith(("Name", "State", "SigPnd", "ShdPnd", "SigBlk", "SigIgn"))
                ]
                said.append(" ".join([task.name, *kept, (task / "wchan").read_text()]).replace("\t", " "))
        return "\n".join(said)

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._side)


def _control(side: int) -> None:
    """Make the terminal the one that Ctrl-C comes from, which what started the tests may have had ignored."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    fcntl.ioctl(side, termios.TIOCSCTTY, 0)


def test_line_ends_of_stop_texts_are_written_as_shells_allow() -> None:
    choosing = Choosing(0.0, None, None, 0, stop=("\\n\\n", "a\\t"))
    assert choosing.sampling(5) == Sampling(5, stop=("\n\n", "a\t"))


def test_a_conversation_on_a_terminal(talker: Path, loaded_talker: tuple[Any, Any]) -> None:
    first = answer(loaded_talker, "hello")
    second = answer(loaded_talker, "hello", first, "and more")
    told = answer(loaded_talker, "hello", system="short")
    terminal = _Terminal("chat", talker, "--max-new-tokens", 12)
    try:
        assert "/help lists commands" in terminal.until("> ")
        terminal.type("/help\n")
        assert "/again" in terminal.until("> ")
        terminal.type("\x03")
        assert "Ctrl-D leaves" in terminal.until("> ", again="\x03")
        terminal.type("hello\n")
        assert for_terminal(first) in terminal.until("(ended after 12 tokens)")
        terminal.until("> ")
        terminal.type("and more\n")
        assert for_terminal(second) in terminal.until("(ended after 12 tokens)")
        terminal.until("> ")
        terminal.type("/undo\n")
        assert "1 questions are left" in terminal.until("> ")
        # The arrow up twice: what was said before the command.
        terminal.type("\x1b[A\x1b[A\n")
        assert for_terminal(second) in terminal.until("(ended after 12 tokens)")
        terminal.until("> ")
        terminal.type("/system short\n")
        assert "a new conversation" in terminal.until("> ")
        terminal.type("hel\\\n")
        terminal.until("... ")
        terminal.type("\x15/nonsense\n")
        terminal.until("> ")
        terminal.type("/clear\n")
        terminal.until("> ")
        terminal.type("hello\n")
        assert for_terminal(told) in terminal.until("(ended after 12 tokens)")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    finally:
        terminal.close()


def conversation(loaded: tuple[Any, Any], **options: Any) -> _Conversation:
    return _Conversation(Talker(Path("m.spq"), *loaded, 0.0), options.get("how", HOW), options.get("system"))


@pytest.mark.parametrize("n_times", [1, 3])
def test_an_interrupt_ends_the_answer_and_keeps_what_came(
    loaded_talker: tuple[Any, Any], capsys: pytest.CaptureFixture[str], n_times: int
) -> None:
    talk = conversation(loaded_talker, how=Sampling(100))
    before = signal.getsignal(signal.SIGINT)
    n_steps = iter(range(1000))

    def step(*_: object) -> None:
        if next(n_steps) == 8:
            for _ in range(n_times):
                os.kill(os.getpid(), signal.SIGINT)

    hook = loaded_talker[0].register_forward_pre_hook(step)
    try:
        talk.ask("hello")
    finally:
        hook.remove()
    assert signal.getsignal(signal.SIGINT) is before
    whole = answer(loaded_talker, "hello", how=Sampling(100))
    (_, said) = talk._messages
    assert said["role"] == "assistant"
    assert 0 < len(said["content"]) < len(whole)
    assert whole.startswith(said["content"])
    talk.ask("more")
    assert [m["content"] for m in talk._messages][:3] == ["hello", said["content"], "more"]


def test_interrupts_after_an_answer_and_at_the_prompt_keep_the_conversation(
    loaded_talker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever between an answer and the next line a second one comes."""
    talk = conversation(loaded_talker)
    lines = iter(["hello", "", "and", None])

    def line() -> str | None:
        typed = next(lines)
        if typed == "":
            os.kill(os.getpid(), signal.SIGINT)
        return typed

    def tell(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("spqfmt.cli.chat._line", line)
    monkeypatch.setattr(_Conversation, "_tell", staticmethod(tell))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _talk(talk)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert [m["content"] for m in talk._messages[::2]] == ["hello", "and"]
    assert capsys.readouterr().err.count("Ctrl-D leaves") == 1


def test_whoever_does_not_want_to_wait_leaves(
    loaded_talker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spqfmt.cli.chat._ONE_GESTURE_SECONDS", -1.0)
    monkeypatch.setattr("spqfmt.cli.chat._line", lambda: "hello")
    hook = loaded_talker[0].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            _talk(conversation(loaded_talker))
    finally:
        hook.remove()


def test_again_after_the_last_seed_is_the_first(loaded_talker: tuple[Any, Any]) -> None:
    talk = conversation(loaded_talker, how=Sampling(12, temperature=2.0, seed=(1 << 64) - 1))
    talk.ask("hello")
    talk.command("/again", "")
    expected = answer(loaded_talker, "hello", how=Sampling(12, temperature=2.0, seed=0))
    assert talk._messages[-1]["content"] == expected


def test_again_answers_with_another_seed_and_failures_leave_the_conversation(
    loaded_talker: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    talk = conversation(loaded_talker, how=Sampling(12, temperature=2.0, seed=5))
    talk.command("/again", "")
    talk.ask("hello")
    first = talk._messages[-1]["content"]
    talk.command("/again", "")
    assert talk._messages[-1]["content"] != first
    assert talk._messages[-1]["content"] == answer(
        loaded_talker, "hello", how=Sampling(12, temperature=2.0, seed=6)
    )
    before = list(talk._messages)
    talk._loaded.tokenizer.chat_template, template = (
        "{{ raise_exception('no') }}",
        talk._loaded.tokenizer.chat_template,
    )
    try:
        talk.ask("fails")
    finally:
        talk._loaded.tokenizer.chat_template = template
    assert talk._messages == before
    said = capsys.readouterr().err
    assert "nothing was asked yet" in said
    assert "spqfmt: m.spq: the model's chat template failed" in said


def test_lines_of_a_pipe_are_a_conversation(
    talker: Path, loaded_talker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answer(loaded_talker, "hello")
    second = answer(loaded_talker, "hello", first, "more")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nmore\n/exit\nnever\n"))
    done = run("chat", talker, "--max-new-tokens", 12, "--quiet")
    assert (done.code, done.stdout) == (0, f"{first}\n{second}\n")


def test_run_takes_prompts_from_stdin_and_from_a_file(
    talker: Path, loaded_talker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ["--max-new-tokens", 12, "--quiet"]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    done = run("run", talker, "--prompt", "-", *options)
    assert (done.code, done.stdout) == (0, answer(loaded_talker, "hello") + "\n")
    (tmp_path / "prompts").write_text("hello\n\nmore\n")
    done = run("run", talker, "--prompts", tmp_path / "prompts", *options)
    expected = "\n\n".join(answer(loaded_talker, text) for text in ("hello", "more"))
    assert (done.code, done.stdout) == (0, expected + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nmore\n"))
    done = run("run", talker, "--prompts", "-", *options)
    assert (done.code, done.stdout) == (0, expected + "\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    done = run("run", talker, "--prompts", "-", *options)
    assert (done.code, done.stderr) == (2, "spqfmt: stdin: no prompts in it\n")
    for words in ([], ["--prompt", "x", "--prompts", tmp_path / "prompts"]):
        assert run("run", talker, *words).code == 2


def test_a_prompt_that_is_not_utf8_is_told(talker: Path) -> None:
    done = run("run", talker, "--prompt", os.fsdecode(b"a\xff"), "--quiet")
    assert (done.code, done.stdout) == (2, "")
    assert "character 1 of the prompt is half a character, or was not UTF-8" in done.stderr


def test_a_prompt_that_is_longer_than_the_model_is_told_first(
    talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"{talker}: the prompt has 20"
    done = run("run", talker, "--prompt", "x" * 200, "--raw", "--max-new-tokens", 2)
    assert done.code == 0
    assert done.stderr.startswith(said)
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 200))
    done = run("chat", talker, "--max-new-tokens", 2, "--quiet")
    assert done.code == 0
    assert done.stderr.startswith(said)


def test_stop_texts_end_an_answer_before_them(loaded_talker: tuple[Any, Any]) -> None:
    whole = answer(loaded_talker, "hello", how=Sampling(40))
    stop = whole[10:13]
    pieces: list[str] = []
    result = generate(
        *loaded_talker,
        [{"role": "user", "content": "hello"}],
        Sampling(40, stop=("never there", stop)),
        write=pieces.append,
    )
    assert result.text == "".join(pieces) == whole[: whole.index(stop)]
    assert result.finish == "stop"
    assert result.n_new_tokens < 40
    assert generate(*loaded_talker, "hello", Sampling(3)).finish == "length"


def test_top_k_and_top_p_are_taken(loaded_talker: tuple[Any, Any]) -> None:
    likeliest = answer(loaded_talker, "hello")
    for narrow in (Sampling(12, 5.0, top_k=1), Sampling(12, 5.0, top_p=1e-6)):
        assert answer(loaded_talker, "hello", how=narrow) == likeliest
    assert answer(loaded_talker, "hello", how=Sampling(12, 5.0, top_k=0, top_p=1.0)) != likeliest


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ("x" * 300,)},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Sampling(**options)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_stop_text_is_found_however_it_comes(cut: int) -> None:
    text = "one two END three"
    stop = StopCut(("END", "two E!"))
    shown = stop.feed(text[:cut]) + stop.feed(text[cut:]) + stop.feed("", is_last=True)
    assert (shown, stop.is_done) == ("one two ", True)
    held = StopCut(("END",))
    assert held.feed("an EN") == "an "
    assert held.feed("", is_last=True) == "EN"
