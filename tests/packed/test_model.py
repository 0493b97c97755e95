"""Whole models from packed weights: every architecture, the ways models are used, and faults while they run."""

import copy
import gc
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import spqfmt
from spqfmt.container.index import parse_index
from spqfmt.container.reader import Reader
from spqfmt.errors import ChecksumError, CorruptError, FormatError, OptionError, SpqError, TruncatedError
from spqfmt.kernels.context import Context, using
from spqfmt.loaders.packed import PackedConv1D, PackedEmbedding, PackedLinear
from spqfmt.loaders.plan import plan_model

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])


def logits(model: Any, ids: torch.Tensor = INPUTS) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(ids).logits
    return output


def generate(model: Any, n_tokens: int = 12) -> list[int]:
    with torch.inference_mode():
        ids = model.generate(
            INPUTS, attention_mask=torch.ones_like(INPUTS), max_new_tokens=n_tokens, do_sample=False
        )
    tokens: list[int] = ids[0].tolist()
    return tokens


@pytest.fixture
def llama(tmp_path: Path, packed_llama: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copy(packed_llama, tmp_path / "m.spq"))


@pytest.fixture
def on_disk(llama: Path) -> Iterator[Any]:
    """A model that reads its weights from the file in every pass."""
    model, _ = spqfmt.load_model(llama, memory=plan_model(llama).plan.smallest_bytes)
    assert {p.residency for p in model.packed_weights.plan.parts} == {"disk"}
    yield model
    model.packed_weights.close()


def test_an_index_is_parsed_once_whatever_is_done_with_it(
    packed_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def parse(*given: Any, **named: Any) -> Any:
        parsed.append(1)
        return parse_index(*given, **named)

    monkeypatch.setattr("spqfmt.container.reader.parse_index", parse)
    plan_model(packed_llama)
    assert len(parsed) == 1
    model, _ = spqfmt.load_model(packed_llama, packed=True)
    model.packed_weights.close()
    assert len(parsed) == 2
    spqfmt.load_model(packed_llama)
    assert len(parsed) == 3


@pytest.mark.parametrize("method", ["rtn", "lossless"])
@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_every_architecture_at_every_ceiling(
    tmp_path: Path, tiny_folder: Callable[[str], Path], name: str, method: str
) -> None:
    spqfmt.pack(tiny_folder(name), tmp_path / "m.spq", method=method)
    reference, _ = spqfmt.load_model(tmp_path / "m.spq", dtype="float32", packed=False)
    expected = logits(reference)
    smallest = plan_model(tmp_path / "m.spq", dtype="float32").plan.smallest_bytes
    results = []
    for options in ({"packed": True}, {"memory": smallest}, {"memory": smallest + 40_000}):
        model, tokenizer = spqfmt.load_model(tmp_path / "m.spq", dtype="float32", **options)
        assert isinstance(model, type(reference))
        assert tokenizer is not None
        n_packed = sum(isinstance(module, PackedLinear | PackedConv1D) for module in model.modules())
        assert n_packed >= (1 if name in {"gpt2", "mixtral"} else 14)
        parameters = sum(p.nbytes for p in model.parameters())
        assert model.packed_weights.held_bytes + parameters == model.packed_weights.plan.held_bytes
        result = logits(model)
        assert torch.allclose(result, expected, atol=2e-4 * float(expected.abs().max()))
        results.append((result, generate(model, 3)))
        model.packed_weights.close()
    assert all(torch.equal(result, results[0][0]) and tokens == results[0][1] for result, tokens in results)


def test_a_tied_head_and_its_embedding_use_one_tensor(llama: Path) -> None:
    model, _ = spqfmt.load_model(llama, packed=True)
    assert isinstance(model.lm_head, PackedLinear)
    assert isinstance(model.model.embed_tokens, PackedEmbedding)
    assert model.lm_head.record is model.model.embed_tokens.record
    before = logits(model)
    model.tie_weights()  # as lm_eval does
    assert torch.equal(logits(model), before)
    [part] = [p for p in model.packed_weights.plan.parts if "embed" in p.name]
    assert part.item.products
    assert part.item.lookups


def test_batches_hooks_and_gradients(on_disk: Any) -> None:
    single = logits(on_disk)
    batch = logits(on_disk, INPUTS.repeat(3, 1))
    assert torch.allclose(batch[2], single[0], atol=0.05)
    seen: list[tuple[int, ...]] = []
    handle = on_disk.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, output: seen.append(tuple(output.shape))
    )
    logits(on_disk)
    handle.remove()
    assert seen == [(1, 24, 176)]
    assert not any(parameter.requires_grad for parameter in on_disk.parameters())
    assert torch.equal(on_disk(INPUTS).logits, single)
    on_disk.model.norm.requires_grad_(True)
    on_disk.model.layers[0].input_layernorm.requires_grad_(True)
    on_disk(INPUTS).logits.float().sum().backward()
    assert on_disk.model.norm.weight.grad.abs().max() > 0
    assert on_disk.model.layers[0].input_layernorm.weight.grad.abs().max() > 0


def test_what_would_lose_the_weights_is_refused(on_disk: Any, tmp_path: Path) -> None:
    with pytest.raises(SpqError, match="packed weights cannot be copied; load"):
        copy.deepcopy(on_disk)
    for save in (pickle.dumps, lambda model: torch.save(model, tmp_path / "m.pt")):
        with pytest.raises(SpqError, match="cannot be pickled: save_pretrained"):
            save(on_disk)
    with pytest.raises(SpqError, match="cannot be pickled: save_pretrained"):
        torch.save(on_disk.state_dict(), tmp_path / "m.pt")


def test_a_state_dict_has_the_weights_of_an_ordinary_model(llama: Path, on_disk: Any) -> None:
    ordinary, _ = spqfmt.load_model(llama, packed=False)
    expected, state = ordinary.state_dict(), on_disk.state_dict()
    assert sorted(state) == sorted(expected)
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert all(torch.equal(state[name].clone(), value) for name, value in expected.items())
    for parameter in ordinary.parameters():
        parameter.data.zero_()
    ordinary.load_state_dict(state)
    assert torch.equal(logits(ordinary), logits(spqfmt.load_model(llama, packed=False)[0]))
    on_disk.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"q_proj\.weight: packed weights cannot be changed"):
        on_disk.load_state_dict(ordinary.state_dict())


def test_two_models_from_one_file_and_one_from_two_threads(llama: Path, on_disk: Any) -> None:
    other, _ = spqfmt.load_model(llama, memory=plan_model(llama).plan.smallest_bytes)
    expected = generate(on_disk)
    assert generate(other) == expected
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(generate, [on_disk, on_disk, other])
        assert all(tokens == expected for tokens in results)


def test_a_model_that_is_dropped_takes_its_threads_and_file_along(llama: Path) -> None:
    smallest = plan_model(llama).plan.smallest_bytes
    logits(spqfmt.load_model(llama, memory=smallest)[0])
    gc.collect()
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(3):
        logits(spqfmt.load_model(llama, memory=smallest)[0])
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) <= (files, threads)


def test_a_closed_model_says_so(on_disk: Any) -> None:
    on_disk.packed_weights.close()
    with pytest.raises(SpqError, match="closed"):
        logits(on_disk)


def test_a_file_that_is_deleted_or_replaced_changes_nothing(llama: Path, on_disk: Any) -> None:
    expected = generate(on_disk)
    other = llama.with_name("other.spq")
    other.write_bytes(b"something else")
    other.replace(llama)
    assert generate(on_disk) == expected
    llama.unlink()
    assert generate(on_disk) == expected


def test_a_file_that_is_cut_short(llama: Path, on_disk: Any) -> None:
    expected, whole = generate(on_disk), llama.read_bytes()
    with llama.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(TruncatedError, match="ends before its end"):
        generate(on_disk)
    with llama.open("r+b") as file:
        file.write(whole)
    assert generate(on_disk) == expected


def test_a_checksum_that_fails_in_the_middle_of_generation(llama: Path, on_disk: Any) -> None:
    expected = generate(on_disk)
    with Reader(llama) as reader:
        plane = (
            reader.index.by_name["model.layers.1.mlp.down_proj.weight"].by_role["codes"].chunks[0].planes[0]
        )
    steps: list[int] = []

    def damage(*_: object) -> None:
        steps.append(0)
        if len(steps) == 4:
            flip(llama, plane.offset)

    handle = on_disk.model.norm.register_forward_hook(damage)
    with pytest.raises(ChecksumError, match=r"down_proj.*checksum") as caught:
        generate(on_disk)
    handle.remove()
    assert str(llama) in str(caught.value)
    assert caught.value.offset == plane.offset
    with pytest.raises(CorruptError):
        generate(on_disk)
    flip(llama, plane.offset)
    assert generate(on_disk) == expected


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def test_damage_found_while_loading(llama: Path) -> None:
    with Reader(llama) as reader:
        plane = reader.index.by_name["model.layers.0.mlp.up_proj.weight"].by_role["codes"].chunks[0].planes[0]
    flip(llama, plane.offset)
    with pytest.raises(FormatError, match="up_proj"):
        spqfmt.load_model(llama, packed=True)
    # What stays compressed is checked when it is read, too: not in the middle of a text.
    in_memory = plan_model(llama).plan.in_memory_bytes
    with using(Context(read_rate=1.0)), pytest.raises(ChecksumError, match="up_proj"):
        spqfmt.load_model(llama, memory=in_memory)


def test_an_interrupt_ends_generation_and_nothing_else(on_disk: Any) -> None:
    expected = generate(on_disk)
    # Under nohup and the like it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_for_long(on_disk)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert generate(on_disk) == expected


def run_for_long(model: Any) -> None:
    for _ in range(10_000):
        logits(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "not a size"),
        ({"memory": 0}, "at least 1 byte"),
        ({"memory": "1GiB", "packed": False}, "leave packed out"),
        ({"memory": "1GiB", "device": "meta"}, "on the CPU"),
        ({"activations": "int8", "packed": False}, "give memory="),
        ({"memory": "1GiB", "activations": "int4"}, "int8 or float"),
    ],
)
def test_options_that_make_no_sense(llama: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        spqfmt.load_model(llama, **options)


def test_a_ceiling_is_for_packed_files(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(OptionError, match="pack it first"):
        spqfmt.load_model(tiny_folder("llama"), memory="1GiB")


def test_a_file_is_opened_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned and what is read are of one file, also where another takes its place meanwhile."""
    opened = []
    original = Reader.__init__

    def counted(self: Reader, path: Any, *arguments: Any, **options: Any) -> None:
        opened.append(path)
        original(self, path, *arguments, **options)

    monkeypatch.setattr(Reader, "__init__", counted)
    smallest = plan_model(llama).plan.smallest_bytes
    assert len(opened) == 1
    model, _ = spqfmt.load_model(llama, memory=smallest)
    assert len(opened) == 2
    assert generate(model)
    model.packed_weights.close()
