"""A served model, asked by OpenAI's own client and by clients that send nonsense or leave."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
import serve_rates
import urllib3
import uvicorn
from spq_command import run

from spqfmt.loaders import Sampling, generate
from spqfmt.loaders.answering import Answering
from spqfmt.serving import app as serving_app
from spqfmt.serving import connections
from spqfmt.serving.app import MOST_BODY_BYTES, is_loopback, make_app
from spqfmt.serving.connections import TimedConnection
from spqfmt.serving.requests import Question, RequestError
from spqfmt.serving.waiting import Job
from spqfmt.serving.worker import Worker

HELLO = [{"role": "user", "content": "hello"}]
EXACT = {"temperature": 0, "max_tokens": 12}


@contextlib.contextmanager
def serving(loaded: tuple[Any, Any], **options: Any) -> Iterator[str]:
    """The address of a server in this process."""
    bounds = {"most_at_once": 8, "most_waiting": 64, "most_prompt": None}
    worker = Worker(*loaded, **{name: options.pop(name, value) for name, value in bounds.items()})
    app = make_app(worker, "talker", most_tokens=100, **options)
    with socket.create_server(("127.0.0.1", 0)) as listener, running(app, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert not worker._thread.is_alive()


@contextlib.contextmanager
def running(app: Any, listener: socket.socket) -> Iterator[uvicorn.Server]:
    """A server in a thread of its own."""
    server = uvicorn.Server(
        uvicorn.Config(app, http=TimedConnection, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(loaded_talker: tuple[Any, Any]) -> Iterator[str]:
    with serving(loaded_talker) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(address: str, body: object, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = urllib3.request(
        "POST",
        address + path,
        body=data,
        headers={"Content-Type": "application/json", **headers},
        retries=False,
        timeout=30,
    )
    return found.status, json.loads(found.data)


def test_a_chat_is_answered_as_run_does(client: openai.OpenAI, loaded_talker: tuple[Any, Any]) -> None:
    expected = generate(*loaded_talker, HELLO, Sampling(12))
    found = client.chat.completions.create(model="talker", messages=HELLO, **EXACT)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected.n_prompt_tokens, 12)


def test_a_chat_streams(client: openai.OpenAI, loaded_talker: tuple[Any, Any]) -> None:
    expected = generate(*loaded_talker, HELLO, Sampling(12))
    with client.chat.completions.create(
        model="talker", messages=HELLO, stream=True, stream_options={"include_usage": True}, **EXACT
    ) as stream:
        pieces = list(stream)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == expected.text
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == "length"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == 12


def test_texts_are_completed(client: openai.OpenAI, loaded_talker: tuple[Any, Any]) -> None:
    whole = generate(*loaded_talker, "hello", Sampling(40), chat=False).text
    stop = whole[10:13]
    found = client.completions.create(model="talker", prompt="hello", temperature=0, max_tokens=40, stop=stop)
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    with client.completions.create(model="talker", prompt="hello", stream=True, **EXACT) as stream:
        streamed = "".join(piece.choices[0].text for piece in stream)
    assert streamed == generate(*loaded_talker, "hello", Sampling(12), chat=False).text


def test_seeds_repeat_and_differ(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> str | None:
        found = client.chat.completions.create(
            model="talker", messages=HELLO, max_tokens=12, temperature=1.5, **options
        )
        return found.choices[0].message.content

    assert ask(seed=3) == ask(seed=3) != ask(seed=4)
    assert ask() != ask()


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["talker"]
    assert client.models.retrieve("talker").owned_by == "spqfmt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        client.chat.completions.create(model="other", messages=HELLO)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        ([], 400, "not a JSON object"),
        ({}, 400, "messages is a list"),
        ({"messages": []}, 400, "messages is a list"),
        ({"messages": ["x"]}, 400, "message 0 has no known role"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "message 0 has no known role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "message 0 has no known role"),
        ({"messages": [{"role": {}, "content": "x"}]}, 400, "message 0 has no known role"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "message 0: its content is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "is not text"),
        ({"messages": HELLO, "n": 2}, 400, "n is not supported here"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools is not supported here"),
        ({"messages": HELLO, "repetition_penalty": 5.0}, 400, "repetition_penalty is not supported here"),
        ({"messages": HELLO, "min_p": 0.9}, 400, "min_p is not supported here"),
        ({"messages": HELLO, "logprobs": 0}, 400, "logprobs is not supported here"),
        ({"messages": HELLO, "no_such_name": 1}, 400, "'no_such_name' is not supported here"),
        ({"messages": HELLO, "temperature": -1}, 400, "temperature -1"),
        ({"messages": HELLO, "temperature": 1e-300}, 400, "temperature 1e-300"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, "temperature nan"),
        ({"messages": HELLO, "temperature": 10**400}, 400, "temperature is out of range"),
        ({"messages": HELLO, "top_p": "x"}, 400, "top_p is of a wrong type"),
        ({"messages": HELLO, "max_tokens": 0}, 400, "max_tokens 0"),
        ({"messages": HELLO, "max_tokens": True}, 400, "max_tokens is of a wrong type"),
        ({"messages": HELLO, "stop": [1]}, 400, "stop is a text or a list"),
        ({"messages": HELLO, "stop": ""}, 400, "an empty stop text"),
        ({"messages": HELLO, "seed": -1}, 400, "seed -1"),
        ({"messages": HELLO, "stream_options": 1}, 400, "stream_options is of a wrong type"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "the model takes 128"),
        (b" " * (MOST_BODY_BYTES + 1), 413, "more than 4194304 bytes"),
    ],
)
def test_nonsense_is_refused_in_words(address: str, body: object, status: int, said: str) -> None:
    found, answer = post(address, body)
    assert found == status
    assert said in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_halves_of_characters_are_text(address: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud800x"}], "max_tokens": 1, "temperature": 0}'
    assert post(address, body)[0] == 200


def test_other_ways_in_are_closed(address: str) -> None:
    assert post(address, {"messages": HELLO}, **{"Content-Type": "text/plain"})[0] == 415
    assert post(address, {}, path="/v1/embeddings")[0] == 404
    assert urllib3.request("GET", f"{address}/v1/chat/completions").status == 405
    for host, status in [("evil.example", 400), ("[::1]:80", 200), ("localhost", 200), ("[", 400)]:
        found = urllib3.request("GET", f"{address}/v1/models", headers={"Host": host})
        assert found.status == status
        assert status == 200 or "ask for 127.0.0.1" in json.loads(found.data)["error"]["message"]
    hosts = ("127.0.0.2", "::1", "localhost", "192.168.0.7", "host")
    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False]


def test_a_key_is_wanted_where_one_is_set(loaded_talker: tuple[Any, Any]) -> None:
    with serving(loaded_talker, api_key="sesame") as address:
        for key, error in (("sesame", None), ("wrong", openai.AuthenticationError)):
            with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
                if error is None:
                    assert client.chat.completions.create(model="talker", messages=HELLO, **EXACT).choices
                else:
                    with pytest.raises(error):
                        client.models.list()
                    with pytest.raises(error):
                        client.chat.completions.create(model="talker", messages=HELLO)


def test_many_clients_get_their_own_answers(client: openai.OpenAI, loaded_talker: tuple[Any, Any]) -> None:
    texts = [f"hello {number}" for number in range(12)]

    def ask(text: str) -> str | None:
        said = [{"role": "user", "content": text}]
        found = client.chat.completions.create(model="talker", messages=said, temperature=0, max_tokens=4)  # type: ignore[arg-type]
        return found.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, texts))
    assert found == [
        generate(*loaded_talker, [{"role": "user", "content": text}], Sampling(4)).text for text in texts
    ]


def test_answers_under_way_share_steps(loaded_talker: tuple[Any, Any]) -> None:
    model, tokenizer = loaded_talker
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["input_ids"].shape), with_kwargs=True
    )
    says = [{"role": "user", "content": f"hello {number}"} for number in range(6)]
    try:
        with serving(loaded_talker, most_at_once=4) as address:
            bodies = [
                {"messages": [m], "temperature": 0.5, "seed": i, "max_tokens": 40} for i, m in enumerate(says)
            ]
            with ThreadPoolExecutor(6) as pool:
                found = list(pool.map(lambda body: post(address, body), bodies))
    finally:
        hook.remove()
    assert max(n_rows for n_rows, _ in rows) == 4
    assert len(rows) < 6 * 40 / 2
    for number, (status, answer) in enumerate(found):
        alone = generate(model, tokenizer, [says[number]], Sampling(40, 0.5, seed=number))
        assert (status, answer["choices"][0]["message"]["content"]) == (200, alone.text)


def test_a_long_prompt_is_read_in_pieces_between_steps_of_others(
    loaded_talker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spqfmt.serving.worker.PIECE_TOKENS", 8)
    shapes: list[tuple[int, int]] = []
    submitted: list[Job] = []
    real_submit = Worker.submit
    all_are_there = threading.Event()

    def submit(worker: Worker, job: Job) -> None:
        real_submit(worker, job)
        submitted.append(job)
        if len(submitted) == 4:
            all_are_there.set()

    monkeypatch.setattr(Worker, "submit", submit)
    asked = [[{"role": "user", "content": "a" * 90}], [{"role": "user", "content": "b" * 60}], HELLO]
    with serving(loaded_talker) as address:
        assert post(address, {"messages": HELLO, **EXACT})[0] == 200

        def note(_: object, __: object, given: dict[str, Any]) -> None:
            if shapes:
                assert all_are_there.wait(20)
            shapes.append(tuple(given["input_ids"].shape))

        hook = loaded_talker[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with ThreadPoolExecutor(3) as pool:
                first = pool.submit(post, address, {"messages": HELLO, "temperature": 0, "max_tokens": 80})
                while not shapes:
                    time.sleep(0.001)
                bodies = [{"messages": messages, "temperature": 0, "max_tokens": 6} for messages in asked[:2]]
                found = [*pool.map(lambda body: post(address, body), bodies), first.result()]
        finally:
            hook.remove()
    for (status, answer), messages, n in zip(found, asked, (6, 6, 80), strict=True):
        expected = generate(*loaded_talker, messages, Sampling(n)).text
        assert (status, answer["choices"][0]["message"]["content"]) == (200, expected)
    assert max(n_tokens for _, n_tokens in shapes) == 8
    # Between two pieces of prompts the first answer had a token more.
    pieces = [number for number, (_, n_tokens) in enumerate(shapes) if n_tokens > 1][1:]
    assert len(pieces) > 16
    assert all(after - before > 1 for before, after in pairwise(pieces))


def test_prompts_have_a_bound_of_the_servers(loaded_talker: tuple[Any, Any]) -> None:
    with serving(loaded_talker, most_prompt=20) as address:
        for n_bytes, said in [
            (30, "tokens, at most 20 tokens are read here"),
            (3000, "the prompt has 3000 bytes"),
        ]:
            body = {"messages": [{"role": "user", "content": "x" * n_bytes}]}
            status, answer = post(address, body)
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
            assert said in answer["error"]["message"]
        assert post(address, {"messages": HELLO, **EXACT})[0] == 200


def test_what_goes_wrong_in_a_step_ends_its_answers_alone(
    loaded_talker: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(loaded_talker) as address:
        assert post(address, {"messages": HELLO, **EXACT})[0] == 200
        with monkeypatch.context() as patched:
            patched.setattr("spqfmt.serving.worker.step", lambda *_: 1 / 0)
            assert post(address, {"messages": HELLO, **EXACT})[0] == 500
        assert "unexpected ZeroDivisionError" in capsys.readouterr().err
        with monkeypatch.context() as patched:
            patched.setattr("spqfmt.serving.worker.can_step_together", lambda _: False)
            with serving(loaded_talker) as other:
                assert post(other, {"messages": HELLO, **EXACT})[0] == 200
        assert post(address, {"messages": HELLO, **EXACT})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_worked_for(loaded_talker: tuple[Any, Any], *, stream: bool) -> None:
    steps = []
    hook = loaded_talker[0].register_forward_pre_hook(
        lambda *_: (steps.append(1), time.sleep(0.05))[:0] or None
    )
    body = json.dumps({"messages": HELLO, "temperature": 0, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    try:
        with serving(loaded_talker) as address:
            port = int(address.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as leaving:
                leaving.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
                while not steps:
                    time.sleep(0.01)
            assert post(address, {"messages": HELLO, "temperature": 0, "max_tokens": 1})[0] == 200
            assert len(steps) < 90
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"", b""),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: ", b""),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n",
            b"HTTP/1.1 408 ",
        ),
    ],
    ids=["nothing", "a head without end", "a body without end"],
)
def test_a_client_that_is_slow_to_ask_is_left(
    loaded_talker: tuple[Any, Any], said: bytes, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(serving_app, "BODY_SECONDS", 0.5)
    with serving(loaded_talker) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(said)
            found, begun = b"", time.monotonic()
            slow.settimeout(0.05)
            while True:
                try:
                    piece = slow.recv(1 << 16)
                except TimeoutError:
                    # A byte in time, as before.
                    assert time.monotonic() - begun < 10
                    if said and not found:
                        slow.sendall(b"x")
                    continue
                except ConnectionError:
                    break
                found += piece
                if not piece:
                    break
        assert found.startswith(answer)
        assert bool(found) == bool(answer)
        # Whoever waits for an answer for longer than that gets it.
        hook = loaded_talker[0].register_forward_pre_hook(lambda *_: time.sleep(0.3))
        try:
            assert post(address, {"messages": HELLO, **EXACT})[0] == 200
        finally:
            hook.remove()


@pytest.mark.parametrize(
    ("n_bytes", "reads"),
    [(40_000, False), (4_000_000, False), (600_000, True)],
    ids=["the end of an answer", "an answer", "it is slow"],
)
def test_a_client_that_does_not_take_its_answer_is_left(
    n_bytes: int, *, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 1.0)

    async def app(scope: Any, _: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200})
        for _ in range(n_bytes // 1000):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as slow:
        # The system's own buffers hold megabytes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(10)
        with running(app, listener) as server:
            slow.connect(listener.getsockname())
            slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not server.server_state.connections:
                time.sleep(0.01)
            begun, found = time.monotonic(), 0
            while not reads and server.server_state.connections:
                time.sleep(0.02)
                assert time.monotonic() - begun < 10
            # What the system still holds for who read nothing; all for who reads slowly, however long.
            with contextlib.suppress(ConnectionError):
                while piece := slow.recv(1 << 16):
                    found += len(piece)
                    time.sleep(0.005 if time.monotonic() - begun < 1.5 else 0)
            assert found > n_bytes if reads else found < 40_000


class _Scripted(Worker):
    """Says in which order it answers, once it may."""

    def __init__(self, most_waiting: int) -> None:
        self.order: list[str] = []
        self.may = threading.Event()
        super().__init__(None, None, most_waiting=most_waiting)

    def _generate(self, job: Job) -> Any:
        self.may.wait(10)
        self.order.append(str(job.asked.prompt))
        raise RequestError("done")


def test_clients_take_turns_and_a_full_queue_refuses() -> None:
    async def ask() -> None:
        worker = _Scripted(most_waiting=4)
        made = {}

        def submit(client: str, text: str) -> None:
            made[text] = Job(Question(text, Sampling(), is_stream=False, with_usage=False), client)
            worker.submit(made[text])

        submit("a", "a0")
        while worker.n_waiting:
            await asyncio.sleep(0.01)
        for client, text in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]:
            submit(client, text)
        with pytest.raises(RequestError) as refused:
            submit("c", "c1")
        assert refused.value.status == 503
        made["a2"].cancel()
        submit("c", "c1")
        worker.may.set()
        for text in ("a0", "a1", "a3", "b1", "c1"):
            assert isinstance(await asyncio.wait_for(made[text].events.get(), 10), RequestError)
        worker.close()
        assert worker.order == ["a0", "a1", "b1", "c1", "a3"]

    asyncio.run(ask())


def test_an_error_of_ours_is_an_answer_and_the_next_request_is_answered(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("spqfmt.loaders.encode_prompt", "spqfmt.serving.app.read_request"):
        with monkeypatch.context() as patched:
            patched.setattr(place, lambda *_, **__: 1 / 0)
            status, answer = post(address, {"messages": HELLO})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        said = capsys.readouterr().err
        assert ("unexpected ZeroDivisionError" in said, said.count("\n")) == (True, 1)
    assert post(address, {"messages": HELLO, **EXACT})[0] == 200


def test_the_command_serves_until_it_is_interrupted(talker: Path) -> None:
    command = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()"]
    options = ["serve", str(talker), "--port", "0", "--memory", "2MiB"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving talker at http://127.0.0.1:"), line
        address = line.split()[3].removesuffix("/v1")
        assert post(address, {"messages": HELLO, **EXACT})[0] == 200
        # More than one answer's time: some are in work or wait when it ends, and are told so.
        body = {"messages": HELLO, "temperature": 0, "max_tokens": 100}
        with ThreadPoolExecutor(12) as clients:
            answers = [clients.submit(post, address, body) for _ in range(12)]
            while not any(answer.done() for answer in answers):
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            found = [answer.result() for answer in answers]
        assert {status for status, _ in found} == {200, 503}
        assert all(
            "the server is ending" in said["error"]["message"] for status, said in found if status == 503
        )
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_said_before_loading(talker: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = run("serve", talker, "--port", other.getsockname()[1])
    assert done.code == 2
    assert "nothing can listen there" in done.stderr


def test_fifty_clients_lose_nothing(client: openai.OpenAI) -> None:
    found = serve_rates.crowd(client, seconds=1, n_tokens=6, model="talker")
    assert found.faults == []
    assert found.n_answers >= 50
    assert found.n_tokens == 6 * found.n_answers
    # The server's own end of the last one may come after the client's.
    for _ in range(100):
        gc.collect()
        held = [o for o in gc.get_objects() if type(o) in {Answering, Job}]
        if not held:
            break
        time.sleep(0.05)
    assert held == []
