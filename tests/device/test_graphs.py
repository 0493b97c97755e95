"""A token as one graph, on a simulated device that forbids what CUDA forbids while it records."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_support
import pytest
import tiny
import torch
import transformers
from device_support import RATES, loaded_onto_device
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import spqfmt
from spqfmt.codecs.threads import blocks
from spqfmt.errors import BackendError
from spqfmt.kernels.device.matrix import Matrix, UniformScales
from spqfmt.kernels.torch_device.kernels import TorchKernels
from spqfmt.kernels.torch_rans import RansBlocks, decode_blocks
from spqfmt.loaders.device import BufferConflictError, Fault, SimulatedDevice
from spqfmt.loaders.device.graphs import MOST_RECORDED, TokenGraphs, as_graphs, refusal
from spqfmt.loaders.device.seam import Queue, Work
from spqfmt.loaders.device.simulated_graphs import Recording
from spqfmt.loaders.load import plan_device

PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(5)]])
N_TOKENS = 7
N_PLAIN = 4
"""The prompt's, the two before there is a graph, and the one that is computed both ways."""
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "tie_word_embeddings": False}
STATES = {
    "8 bits, decoded": ("rtn", {}),
    "4 bits, decoded": ("rtn", {"bits": 4, "group_size": 32}),
    "bf16, decoded": ("lossless", {}),
    "8 bits, compressed": ("rtn", {}),
    "bf16, compressed": ("lossless", {}),
    "8 bits, straight": ("rtn", {}),
    "bf16, straight": ("lossless", {}),
}
Files = Callable[[str], Path]
MATRIX = Matrix((2, 8), "i8", UniformScales(torch.ones(2)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A small Llama by a method of STATES, made once, whose codes are worth compressing."""
    root = tmp_path_factory.mktemp("graphs")
    config = transformers.LlamaConfig(**tiny._LLAMA | SHAPE)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter[:, 0] *= 60
        model.save_pretrained(root)

    def pack(state: str) -> Path:
        method, options = STATES[state]
        path = root / f"{method}{options.get('bits', '')}.spq"
        if not path.exists():
            with blocks(13):
                spqfmt.pack(root, path, method=method, codec="rans", **options)
        return path

    return pack


@pytest.fixture(scope="module", autouse=True)
def decoded_once() -> Iterator[None]:
    """The plain decoder takes a second for what is decoded for each token: the same blocks give the same symbols."""
    known: dict[Any, Any] = {}

    def decode(
        words: torch.Tensor, of: RansBlocks, frequencies: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key = tuple(t.numpy().tobytes() for t in (words, *of, frequencies))
        if key not in known:
            known[key] = decode_blocks(words, of, frequencies)
        symbols, faults = known[key]
        return symbols.clone(), faults.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spqfmt.kernels.torch_device.rans.decode_blocks", decode)
        yield


@contextlib.contextmanager
def loaded(
    packed: Files, state: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, SimulatedDevice]]:
    """The model with weights of products in that state, and its device."""
    how = state.rpartition(" ")[2]
    rates = replace(RATES, fused=1e9 if how == "decoded" else 1e12)

    def planned(*arguments: Any, **options: Any) -> Any:
        plan = plan_device(*arguments, **options)
        return replace(plan, parts=tuple(replace(p, fused=p.fused and how == "straight") for p in plan.parts))

    monkeypatch.setattr(device_support, "RATES", rates)
    monkeypatch.setattr("spqfmt.loaders.load.plan_device", planned)
    monkeypatch.setattr("spqfmt.loaders.load.DEVICE_PART_BYTES", 1 << 14)
    model, device = loaded_onto_device(packed(state), 1 << 30, None)
    products = [part for part in model.packed_weights.plan.parts if not part.item.lookups]
    expected = ("decoded" if how == "decoded" else "compressed", how == "straight")
    assert expected in {(part.residency, part.fused) for part in products}
    yield model, device
    model.packed_weights.close()


def answer(model: Any, prompt: torch.Tensor = PROMPT) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and their logits, with a cache that does not grow."""
    with torch.inference_mode():
        found = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS,
            do_sample=False, cache_implementation="static", disable_compile=True, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return found.sequences[0].tolist(), list(found.logits)


def same(one: tuple[list[int], list[torch.Tensor]], other: tuple[list[int], list[torch.Tensor]]) -> bool:
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1]))


@contextlib.contextmanager
def no_words() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("state", STATES)
def test_a_whole_token_is_a_graph_that_gives_the_same_bits(
    packed: Files, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(packed, state, monkeypatch) as (model, device):
        assert refusal(model) is None
        expected = answer(model)
        assert len({str(logits) for logits in expected[1]}) == N_TOKENS, "every token must have its own"
        device.trace.clear()
        recorded, add = [], Recording.add

        def noted(self: Recording, stream: Queue, work: Work) -> None:
            recorded.append(work.label)
            add(self, stream, work)

        monkeypatch.setattr(Recording, "add", noted)
        with no_words(), as_graphs(model) as graphs:
            assert same(answer(model), expected)
        assert any(label.startswith("fused") for label in recorded) is state.endswith("straight")
        decoded = [label for label in recorded if label.startswith("decode")]
        # each group once, and none for the next token
        assert len(set(decoded)) == len(decoded)
        assert (len(decoded) > 1) is state.endswith("compressed")
        assert (graphs.n_replayed, graphs.why) == (N_TOKENS - N_PLAIN + 1, None)
        assert device.trace[-1].label == "a graph"
        assert "forward" not in vars(model)
        # what was decoded for a graph is nobody else's afterwards
        assert same(answer(model), expected)


def spoiled(graph: Any, spoil: Callable[[], None]) -> Any:
    class Spoiled:
        def replay(self) -> None:
            graph.replay()
            spoil()

    return Spoiled()


def test_a_graph_that_gives_other_bits_is_not_used(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        expected, record = answer(model), model.packed_weights.record

        def wrong(run: Callable[[], Any]) -> tuple[Any, Any]:
            graph, outputs = record(run)

            def one_bit() -> None:
                outputs["logits"].view(torch.int16)[0, 0, 3] ^= 1

            return spoiled(graph, one_bit), outputs

        monkeypatch.setattr(model.packed_weights, "record", wrong)
        with (
            pytest.warns(match="without a graph: its first graph gave other bits"),
            as_graphs(model) as graphs,
        ):
            assert same(answer(model), expected)
        assert graphs.n_replayed == 1


def test_a_graph_that_leaves_the_cache_otherwise_is_not_used(
    packed: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        expected, record = answer(model), model.packed_weights.record

        def wrong(run: Callable[[], Any]) -> tuple[Any, Any]:
            graph, outputs = record(run)

            def one_row() -> None:  # that no logits depend on yet
                outputs["past_key_values"].layers[1].values[..., -1, :] = 1

            return spoiled(graph, one_row), outputs

        monkeypatch.setattr(model.packed_weights, "record", wrong)
        with pytest.warns(match="gave other bits"), as_graphs(model):
            assert same(answer(model), expected)


@pytest.mark.parametrize("label", ["record a graph", "compute model.layers.1", "decode model.layers"])
def test_where_recording_fails_tokens_are_computed_as_before(
    packed: Files, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    with loaded(packed, "8 bits, compressed", monkeypatch) as (model, device):
        expected, record = answer(model), model.packed_weights.record

        def failing(run: Callable[[], Any]) -> Any:
            device.faults.append(Fault(label, "fail"))
            return record(run)

        words = f"without a graph: it cannot be recorded: the device failed at '{label}"
        monkeypatch.setattr(model.packed_weights, "record", failing)
        with pytest.warns(match=words), as_graphs(model) as graphs:
            assert same(answer(model), expected)
        monkeypatch.undo()
        assert graphs.n_replayed == 0
        with no_words(), as_graphs(model):
            assert same(answer(model), expected)


def test_a_graph_that_fails_when_it_is_given_is_not_used(
    packed: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, device):
        expected = answer(model)
        record = model.packed_weights.record

        def then_fail(run: Callable[[], Any]) -> Any:
            found = record(run)
            device.faults.append(Fault("a graph", "fail"))
            return found

        monkeypatch.setattr(model.packed_weights, "record", then_fail)
        with pytest.warns(match="its first graph failed: the device failed at 'a graph'"), as_graphs(model):
            assert same(answer(model), expected)


def test_what_the_host_must_see_is_not_recorded(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        layer, own = model.model.layers[1], model.model.layers[1].mlp.forward
        expected = answer(model)
        layer.mlp.forward = lambda x: own(x) if float(x[0, 0, 0]) < 1e9 else x
        with pytest.warns(match="_local_scalar_dense while a graph is recorded"), as_graphs(model):
            assert same(answer(model), expected)


def test_a_cache_of_another_kind_gets_no_graph(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        config = transformers.MistralConfig(**SHAPE, sliding_window=8)
        cache = transformers.StaticCache(config, max_cache_len=16)
        cache.layers[0].__class__ = type("Counting", (type(cache.layers[0]),), {})
        monkeypatch.setattr(model, "forward", lambda **_: 7, raising=False)
        ids = torch.zeros(1, 1, dtype=torch.int64)
        words = r"layers of its own \(Counting\)"
        with torch.inference_mode(), pytest.warns(match=words), as_graphs(model):
            assert model(input_ids=ids, past_key_values=cache) == 7


def test_a_sliding_window_has_graphs_until_it_is_full(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**tiny._LLAMA | SHAPE | {"hidden_size": 64}, sliding_window=64)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path)
    spqfmt.pack(tmp_path, tmp_path / "m.spq", method="rtn")
    model, _ = loaded_onto_device(tmp_path / "m.spq", None, None)
    expected = answer(model)
    with no_words(), as_graphs(model) as graphs:
        assert same(answer(model), expected)
    assert graphs.n_replayed == N_TOKENS - N_PLAIN + 1
    model.config.sliding_window = len(PROMPT[0]) + 5
    expected = answer(model)
    with pytest.warns(match="without a graph: its sliding window is full"), as_graphs(model) as graphs:
        assert same(answer(model), expected)
    # the compared one, and two until five tokens behind the prompt are there
    assert graphs.n_replayed == 3
    model.packed_weights.close()


def tokens(model: Any, graphs_of: Callable[[Any], Any], change: Callable[[int], None]) -> list[torch.Tensor]:
    """Logits of tokens one after the other in one cache, where something changes before each."""
    cache = transformers.StaticCache(model.config, max_cache_len=16)
    found = []
    with torch.inference_mode(), graphs_of(model):
        for n in range(9):
            change(n)
            inputs = {"input_ids": torch.tensor([[n + 1]]), "position_ids": torch.tensor([[n]])}
            mask = (torch.arange(16) <= n)[None, None, None]
            found.append(model(**inputs, attention_mask=mask, past_key_values=cache).logits)
    return found


def test_weights_that_move_are_recorded_anew(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, compressed", monkeypatch) as (model, _):
        norm = model.model.norm
        first = norm.weight.data

        def move(n: int) -> None:
            if n == 0:
                norm.weight.data = first
            elif n == 5:  # a graph would go on with the old ones, which are still there
                norm.weight.data = first * 2

        expected = tokens(model, contextlib.nullcontext, move)
        assert not torch.equal(expected[5], expected[4])
        made: list[TokenGraphs] = []

        @contextlib.contextmanager
        def kept(model: Any) -> Iterator[None]:
            with as_graphs(model) as graphs:
                made.append(graphs)
                yield

        with no_words():
            found = tokens(model, kept, move)
        assert all(map(torch.equal, found, expected))
        # tokens 2 to 4, and behind the move 7 and 8
        assert made[0].n_replayed == 5


def test_inputs_of_another_form_are_recorded_anew_but_not_for_ever(
    packed: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        calls: list[dict[str, Any]] = []
        model.forward = lambda **inputs: calls.append(inputs)
        cache = transformers.StaticCache(model.config, max_cache_len=16)
        with torch.inference_mode(), as_graphs(model) as graphs:
            for n in range(MOST_RECORDED + 1):
                assert graphs.why is None
                with contextlib.nullcontext() if n < MOST_RECORDED else pytest.warns(match="again and again"):
                    model(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=n)
        assert len(calls) == MOST_RECORDED + 1
        del model.forward


def test_inputs_that_are_more_than_tensors_get_no_graph(
    packed: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        monkeypatch.setattr(model, "forward", lambda **_: 7, raising=False)
        cache = transformers.StaticCache(model.config, max_cache_len=16)
        inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64), "images": [torch.zeros(1)]}
        words = r"its inputs are more than tensors \(images\)"
        with torch.inference_mode(), pytest.warns(match=words), as_graphs(model):
            assert model(**inputs, past_key_values=cache) == 7


def test_a_prompt_of_one_token_is_one(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, compressed", monkeypatch) as (model, _):
        expected = answer(model, PROMPT[:, :1])
        with no_words(), as_graphs(model) as graphs:
            assert same(answer(model, PROMPT[:, :1]), expected)
        assert graphs.n_replayed == N_TOKENS - 2


def test_answers_that_are_computed_otherwise_are_told(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _), torch.inference_mode():
        with (
            pytest.warns(match="something else was called in place of LlamaForCausalLM's forward"),
            as_graphs(model),
        ):
            type(model).forward(model, PROMPT)
        with pytest.warns(match="no token came with a cache that does not grow"), as_graphs(model):
            model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=3, min_new_tokens=3)
        with no_words(), as_graphs(model):
            model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=1)


def test_one_answer_at_a_time_has_graphs(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        expected = answer(model)
        with as_graphs(model) as first:
            with pytest.warns(match="another answer of this model has them now"), as_graphs(model) as second:
                pass
            assert same(answer(model), expected)
        assert (first.n_replayed > 0, second.n_replayed) == (True, 0)
        with no_words(), as_graphs(model) as third:
            assert same(answer(model), expected)
        assert third.n_replayed == first.n_replayed


def test_models_without_such_a_cache_have_no_graphs(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        assert refusal(model) is None
        model.config.layer_types = ["full_attention", "linear_attention"]
        words = refusal(model)
        assert words is not None
        assert words.startswith(
            ("its cache has layers of its own (LinearAttentionLayer", "it has no cache that")
        )
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "_supports_default_dynamic_cache", lambda _: False)
            assert refusal(model) == "its cache is of a kind of its own"
            patch.setattr(type(model), "is_remote_code", lambda _: True)
            assert refusal(model) == "its code came with it"


def test_hooks_are_called_for_every_token(packed: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(packed, "8 bits, decoded", monkeypatch) as (model, _):
        called: list[int] = []
        handle = model.model.norm.register_forward_hook(lambda *_: called.append(1))
        with pytest.warns(match="it has hooks, or changes itself"), as_graphs(model):
            answer(model)
        handle.remove()
        # once for the prompt and each token, and while the second one is recorded
        assert len(called) == N_TOKENS + 1


def test_what_comes_from_the_host_or_the_file_gets_no_graph(tmp_path: Path, packed: Files) -> None:
    from spqfmt.loaders.plan import plan_for_device

    path = packed("bf16, decoded")
    plan = plan_for_device(path, rates=RATES).plan
    model, _ = loaded_onto_device(path, plan.smallest_bytes, None)
    assert refusal(model) == "model.embed_tokens: the host looks up its rows"
    words = model.packed_weights.never_recorded
    assert words is not None
    assert words.endswith("GiB of the weights are not on the device, and come anew for each token")
    model.packed_weights.close()
    tiny.build("mixtral", tmp_path / "source", dtype=torch.bfloat16)
    spqfmt.pack(tmp_path / "source", tmp_path / "m.spq", method="rtn")
    model, _ = loaded_onto_device(tmp_path / "m.spq", None, None)
    assert refusal(model) == "model.layers.0.mlp.experts: the host asks which experts a token has"
    with pytest.warns(match="it cannot be recorded: tolist while a graph is recorded"), as_graphs(model):
        answer(model)
    model.packed_weights.close()
    model, _ = spqfmt.load_model(tmp_path / "m.spq", packed=False)
    assert refusal(model) == "its weights are not packed on a GPU"


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_what_transformers_computes_of_a_token_needs_no_value_and_no_tensor_of_the_host(name: str) -> None:
    """On a device without values: what would be read there, or come from the CPU, is seen."""
    config = tiny.configurations()[name]
    where: Any = {"device": "meta"}
    with torch.inference_mode(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16().eval()
        cache = transformers.StaticCache(config, max_cache_len=16)
    found: list[str] = []

    class Crossings(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            if "cpu" in {t.device.type for t in tensors if t.dim()} or "lift_fresh" in func.__name__:
                found.append(str(func))
            return result

    with torch.inference_mode():
        for n, watch in ((5, contextlib.nullcontext()), (1, Crossings())):
            ids = torch.zeros(1, n, dtype=torch.int64, **where)
            mask = torch.ones(1, 1, n, 16, dtype=torch.bool, **where)
            with watch:
                model(ids, attention_mask=mask, past_key_values=cache, position_ids=ids)
    assert found == []


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="torch that knows no such operations")
@pytest.mark.parametrize(
    ("state", "unsafe"), [("8 bits, decoded", []), ("8 bits, straight", ["linear_unrecorded"])]
)
def test_a_compiler_makes_no_cuda_graph_of_what_is_decoded_for_each_token(
    packed: Files, monkeypatch: pytest.MonkeyPatch, state: str, unsafe: list[str]
) -> None:
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(node.target for node in graph.graph.nodes if "spqfmt" in str(node.target))
        return graph.forward

    with loaded(packed, state, monkeypatch) as (model, _):
        expected = model.model.layers[0].mlp(
            x := torch.ones(1, 1, SHAPE["hidden_size"], dtype=torch.bfloat16)
        )
        torch.compiler.reset()
        compiled = torch.compile(model.model.layers[0].mlp, fullgraph=True, backend=backend)
        assert torch.allclose(compiled(x), expected, rtol=0.05, atol=0.02)
        torch.compiler.reset()
        found = [str(t).split(".")[1] for t in seen if torch.Tag.cudagraph_unsafe in t.tags]
    assert len(seen) == 3
    assert sorted(set(found)) == unsafe


class TestDevice:
    """What CUDA forbids, or does not record, while it records is an error here."""

    @pytest.fixture
    def device(self) -> SimulatedDevice:
        return SimulatedDevice(RATES)

    @pytest.fixture
    def memory(self, device: SimulatedDevice) -> Any:
        return device.allocate(64)

    def test_other_queues_are_recorded_where_they_wait_for_it_and_it_for_them(
        self, device: SimulatedDevice, memory: Any
    ) -> None:
        work = Work("set", (), (memory,))

        def given() -> None:
            device.wait(Queue.DECODE, device.record(Queue.COMPUTE))
            device.enqueue(Queue.DECODE, work, lambda: memory.tensor.fill_(3))
            device.wait(Queue.COMPUTE, device.record(Queue.DECODE))
            device.enqueue(Queue.COMPUTE, work, lambda: memory.tensor.add_(1))

        before = memory.tensor.clone()
        graph, _ = device.capture(given)
        assert torch.equal(memory.tensor, before)
        n_done, seconds = len(device.trace), device._free[Queue.COMPUTE]
        for _ in range(2):
            graph.replay()
            assert memory.tensor.unique().tolist() == [4]
        assert [done.label for done in device.trace[n_done:]] == ["a graph"] * 2
        assert device._free[Queue.COMPUTE] == pytest.approx(seconds + 2 * 2 * RATES.operation_s)

    def test_python_is_not_run_again_and_addresses_stay(self, device: SimulatedDevice) -> None:
        x, calls = torch.ones(2), []

        def given() -> torch.Tensor:
            calls.append(1)
            return (x * 2 + len(calls)).view(2, 1)

        graph, y = device.capture(given)
        assert not torch.equal(y, torch.tensor([[3.0], [3.0]])), "nothing is computed yet"
        graph.replay()
        assert y.tolist() == [[3.0], [3.0]]
        x.fill_(5)
        graph.replay()
        assert y.tolist() == [[11.0], [11.0]]
        assert calls == [1]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (lambda d, e: d.synchronize(e), "the host asks for an event"),
            (lambda d, e: e.done(), "the host asks for an event"),
            (lambda d, e: d.wait(Queue.COMPUTE, e), "an event of before a graph is waited for"),
            (lambda d, e: d.allocate(1), "memory is allocated"),
            (lambda d, e: d.allocate_host(1), "memory of the host is allocated"),
            (lambda d, e: d.read(Work("r"), lambda: None, None), "r while a graph"),
            (lambda d, e: d.capture(lambda: None), "another graph"),
            (
                lambda d, e: d.enqueue(Queue.DECODE, Work("x"), lambda: None),
                "'x' is given to decode, which no graph",
            ),
            (
                lambda d, e: d.wait(Queue.DECODE, d.record(Queue.COMPUTE)),
                "does not wait for decode at the end",
            ),
            (lambda d, e: torch.ones(1).item(), "_local_scalar_dense .* the host would wait"),
            (lambda d, e: torch.ones(1).tolist(), "tolist .* the host would wait"),
            (lambda d, e: torch.ones(1).cpu(), "cpu .* the host would wait"),
            (lambda d, e: torch.ones(3).nonzero(), "nonzero .* the host would wait"),
            (lambda d, e: torch.ones(3)[torch.ones(3) > 0], "index .* the host would wait"),
            (lambda d, e: torch.tensor([1.0]), "lies in the host's memory"),
            (
                lambda d, e: TorchKernels().prepare_rows(MATRIX, range(2), torch.float32),
                "a kernel is prepared",
            ),
        ],
    )
    def test_what_is_forbidden(
        self, device: SimulatedDevice, given: Callable[[SimulatedDevice, Any], Any], words: str
    ) -> None:
        event = device.record(Queue.DECODE)
        with pytest.raises(BackendError, match=words):
            device.capture(lambda: given(device, event))
        # it works as before
        device.synchronize(event)
        device.allocate(1)
        graph, y = device.capture(lambda: torch.ones(2) * 3)
        graph.replay()
        assert y.tolist() == [3.0, 3.0]

    def test_events_of_a_graph_are_nothing_outside_it(self, device: SimulatedDevice) -> None:
        _, event = device.capture(lambda: device.record(Queue.COMPUTE))
        for ask in (event.done, lambda: device.synchronize(event), lambda: device.wait(Queue.DECODE, event)):
            with pytest.raises(BackendError, match="an event of a graph is asked for outside it"):
                ask()

    def test_a_graph_is_watched_like_all_other_work(self, device: SimulatedDevice, memory: Any) -> None:
        work = Work("set", (), (memory,))
        graph, _ = device.capture(lambda: device.enqueue(Queue.COMPUTE, work, lambda: memory.tensor.fill_(1)))
        device.enqueue(Queue.DECODE, work, lambda: memory.tensor.fill_(2))
        with pytest.raises(
            BufferConflictError, match="'a graph' on compute writes what 'set' on decode writes"
        ):
            graph.replay()
