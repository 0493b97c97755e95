"""Experts that are computed one by one: what comes out, what is read, and what stays whole with a word for it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mixture
import pytest
import torch
import transformers
from probe import build, distance, model_classes, near, wrong_weights
from probe_inputs import inputs_for, outputs
from spq_command import run as spq
from tiny_config import tiny_config

import spqfmt
from spqfmt.loaders import load_model
from spqfmt.loaders.packed.experts import PackedExperts
from spqfmt.loaders.plan import plan_model
from spqfmt.packing import plan as packing_plan

# Separate experts, and stacks of them either way; with biases, clamps, inputs that are scaled, renamed tensors.
FAMILIES = (
    "aria_text",
    "deepseek_v3",
    "gpt_oss",
    "granitemoehybrid",
    "llama4_text",
    "mixtral",
    "olmoe",
    "qwen3_moe",
)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "lossless": {"method": "lossless"},
    "4 bits": {"method": "rtn", "bits": 4, "group_size": 32},
    "8 bits": {"method": "rtn", "bits": 8},
    "ecq": {"method": "ecq", "bits": 3.5, "no_calibration": True},
}


def made(family: str, folder: Path, dtype: torch.dtype = torch.float32, **method: Any) -> tuple[Any, Path]:
    """A small model of a family, and it packed."""
    model_class = model_classes(transformers.CONFIG_MAPPING[family])[0]
    model = build(model_class, dtype)
    model.save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", **method)
    return model, folder / "m.spq"


def experts_of(model: Any) -> list[PackedExperts]:
    return [module for module in model.modules() if isinstance(module, PackedExperts)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, method) for family in FAMILIES for method in ("lossless", "4 bits")),
        *((family, method) for family in ("gpt_oss", "mixtral") for method in ("8 bits", "ecq")),
    ],
)
def test_packed_experts_compute_what_decoded_ones_do(tmp_path: Path, family: str, method: str) -> None:
    model, path = made(family, tmp_path, **METHODS[method])
    given = inputs_for(model)
    decoded, _ = load_model(path, packed=False)
    wanted = outputs(decoded, given)
    plan = plan_model(path)
    assert not plan.whole
    smallest, all_of_it = plan.plan.smallest_bytes, plan.plan.held_bytes
    for options in ({"packed": True}, {"memory": smallest}, {"memory": (smallest + all_of_it) // 2}):
        loaded, _ = load_model(path, **options)
        experts = experts_of(loaded)
        assert experts
        assert loaded.num_parameters() == decoded.num_parameters()
        assert near(got := outputs(loaded, given), wanted), distance(got, wanted)
        assert wrong_weights(decoded, loaded) == []
        weights = loaded.packed_weights
        assert weights.held_bytes + weights.plan.fixed.floats == weights.plan.held_bytes
        weights.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lossless", "4 bits", "ecq"])
@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "qwen3_moe"])
def test_gradients_go_through_experts_and_to_their_router(tmp_path: Path, family: str, method: str) -> None:
    _, path = made(family, tmp_path, **METHODS[method])
    found = []
    for options in ({"packed": False}, {"packed": True}, {"memory": plan_model(path).plan.smallest_bytes}):
        loaded, _ = load_model(path, **options)
        assert bool(experts_of(loaded)) == (options.get("packed") is not False)
        embedded = loaded.get_input_embeddings()(torch.tensor([[9, 31, 77, 120, 5]])).detach()
        embedded.requires_grad_()
        loaded(inputs_embeds=embedded).logits.square().sum().backward()
        found.append(embedded.grad)
    wanted, *got = found
    assert wanted.norm() > 0
    assert all((each - wanted).norm() <= 1e-4 * wanted.norm() for each in got)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_mixture_compiles_without_a_break(tmp_path: Path, backend: str) -> None:
    _, path = made("qwen3_moe", tmp_path, **METHODS["4 bits"])
    loaded, _ = load_model(path, memory=plan_model(path).plan.smallest_bytes)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    ids = torch.tensor([[9, 31, 77, 120, 5]])
    compiled = torch.compile(loaded, fullgraph=True, backend=backend)
    with torch.inference_mode():
        assert near([compiled(ids).logits], [wanted := loaded(ids).logits])
        # Other experts are chosen, by the same graph.
        assert not near([compiled(ids + 9).logits], [wanted])
    assert not counters["graph_break"]
    loaded.packed_weights.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "qwen3_moe"])
def test_compiled_experts_give_the_same_numbers_and_gradients(tmp_path: Path, family: str) -> None:
    _, path = made(family, tmp_path, **METHODS["4 bits"])
    loaded, _ = load_model(path, packed=True)
    torch._dynamo.reset()
    module = experts_of(loaded)[0]
    x = torch.linspace(-2, 2, 12 * 64).view(12, 64)
    index = torch.arange(24).view(12, 2) % 4
    routing = (index, torch.linspace(0.1, 0.9, 24).view(12, 2)) if module.place.form.calls == "routed" else ()
    found = []
    for called in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        given = [t.clone().requires_grad_() if t.is_floating_point() else t for t in (x, *routing)]
        y = called(*given)
        y.square().sum().backward()
        found.append([y.detach(), *(t.grad for t in given if t.is_floating_point())])
    assert all(t.abs().max() > 0 for t in found[0])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*found, strict=True))
    loaded.packed_weights.close()


@pytest.mark.filterwarnings("ignore")
def test_a_state_dict_has_the_stacks(tmp_path: Path) -> None:
    _, path = made("gpt_oss", tmp_path, **METHODS["4 bits"])
    expected, state = load_model(path)[0].state_dict(), load_model(path, packed=True)[0].state_dict()
    assert sorted(state) == sorted(expected)
    assert all(torch.equal(state[name].clone(), value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_tokens_are_the_same_at_every_ceiling(tmp_path: Path, family: str) -> None:
    _, path = made(family, tmp_path, torch.bfloat16, method="rtn", bits=4, group_size=32)
    plan = plan_model(path).plan
    ids = torch.tensor([[9, 31, 77, 120]])
    tokens = set()
    for memory in (None, plan.smallest_bytes, (plan.smallest_bytes + plan.held_bytes) // 2, plan.held_bytes):
        loaded, _ = load_model(path, **({"packed": True} if memory is None else {"memory": memory}))
        made_of = loaded.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        tokens.add(tuple(made_of[0].tolist()))
        loaded.packed_weights.close()
    assert len(tokens) == 1
    assert len(next(iter(tokens))) == 16


@pytest.mark.filterwarnings("ignore")
def test_from_pretrained_has_packed_experts(tmp_path: Path) -> None:
    model, path = made("gpt_oss", tmp_path / "source", method="rtn", bits=4, group_size=32)
    folder = tmp_path / "packed"
    folder.mkdir()
    path.rename(folder / "m.spq")
    (path.parent / "config.json").rename(folder / "config.json")
    given = inputs_for(model)
    wanted = outputs(load_model(folder / "m.spq", packed=False)[0], given)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, memory="1MiB")
    assert len(experts_of(loaded)) == model.config.num_hidden_layers
    assert near(outputs(loaded, given), wanted)
    loaded.packed_weights.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_plan_and_inspect_show_experts(tmp_path: Path, family: str) -> None:
    model, path = made(family, tmp_path, method="rtn", bits=4, group_size=32)
    n_layers = model.config.num_hidden_layers
    shown = spq("plan", path).stdout
    assert "model.layers.0 experts " in shown
    assert "a token is expected to use 50.0 % of those in a layer" in shown
    layers = json.loads(spq("plan", path, "--json").stdout)["layers"]
    assert {layer.get("share") for layer in layers} == {None, 0.5}
    of_experts = [layer["name"] for layer in layers if "share" in layer]
    assert len(of_experts) == n_layers * 4 * (2 if family == "gpt_oss" else 3)
    assert all(".experts" in name for name in of_experts)
    found = json.loads(spq("inspect", path, "--json").stdout)["experts"]
    n_weights = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3)
    assert (found["n_modules"], found["n_experts"], found["n_weights"]) == (n_layers, 4, n_weights)
    assert f"experts: 4 in each of {n_layers} layers" in spq("inspect", path).stdout


@pytest.mark.filterwarnings("ignore")
def test_the_mixture_that_is_measured_gives_the_same_tokens_at_every_ceiling(tmp_path: Path) -> None:
    folder, path = tmp_path / "source", tmp_path / "m.spq"
    mixture.build(folder, mixture.TINY, 2)
    spqfmt.pack(folder, path, method="rtn", bits=4, group_size=32)
    plan = plan_model(path).plan
    smallest = plan.smallest_bytes
    sizes = [p.item.part.stored_bytes for p in plan.parts if p.item.share is not None]
    script = Path(mixture.__file__).parents[1] / "bench" / "mixture_rates.py"
    options = ["--memory", f"{smallest},{smallest + 10_000}", "--tokens", "4", "--json"]
    done = subprocess.run(
        [sys.executable, script, path, *options], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["same_tokens"]
    whole, least, more = found["rows"]
    assert whole["products_ms"] > 0
    assert least["read_bytes"] > more["read_bytes"] > 0
    # Of two layers four experts each, of three matrices.
    assert 24 * min(sizes) <= least["routed_bytes"] == more["routed_bytes"] <= 24 * max(sizes)


@pytest.mark.filterwarnings("ignore")
def test_a_stack_that_is_not_cut_is_decoded_whole_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_plan, "cut_at_matrices", lambda encoded, _: encoded)
    model, path = made("gpt_oss", tmp_path, method="rtn", bits=4, group_size=32)
    plan = plan_model(path)
    assert plan.whole["model.layers.0.mlp.experts.gate_up_proj"] == "chunks of several matrices"
    loaded, _ = load_model(path, packed=True)
    assert not experts_of(loaded)
    given = inputs_for(model)
    assert near(outputs(loaded, given), outputs(load_model(path, packed=False)[0], given))
    loaded.packed_weights.close()


@pytest.mark.filterwarnings("ignore")
def test_another_dtype_is_refused_by_name(tmp_path: Path) -> None:
    _, path = made("qwen3_moe", tmp_path, method="rtn", bits=8)
    loaded, _ = load_model(path, packed=True)
    experts = experts_of(loaded)[0]
    index, weights = torch.tensor([[0, 1]]), torch.ones(1, 2)
    with pytest.raises(TypeError, match=r"layers\.0\.mlp\.experts: .*float64"):
        experts(torch.ones(1, 64, dtype=torch.float64), index, weights)
    with pytest.raises(spqfmt.SpqError, match="cannot become"):
        loaded.double()
    loaded.packed_weights.close()


def ceiling_without_experts(path: Path) -> int:
    """Room for all that is no expert's, and for no part of an expert."""
    plan = plan_model(path).plan
    dense = sum(p.item.part.decoded_bytes for p in plan.parts if p.item.share is None)
    memory = plan.smallest_bytes + dense
    there = plan_model(path, memory=memory).plan
    assert {p.residency for p in there.parts if p.item.share is None} == {"decoded"}
    assert {p.residency for p in there.parts if p.item.share is not None} == {"disk"}
    return memory


def routed(model: Any) -> list[set[tuple[int, int]]]:
    """What the experts of each layer are asked for, (layer, expert), as the model runs: a set for each pass so far."""
    passes: list[set[tuple[int, int]]] = []

    def watch(layer: int, experts: PackedExperts) -> None:
        inner = experts._in_turn

        def in_turn(wanted: Any, n_tokens: int) -> Any:
            wanted = list(wanted)
            if layer == 0:
                passes.append(set())
            passes[-1].update((layer, expert) for expert in wanted)
            return inner(wanted, n_tokens)

        experts._in_turn = in_turn

    for layer, experts in enumerate(experts_of(model)):
        watch(layer, experts)
    return passes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "qwen3_moe"])
def test_only_the_experts_that_are_chosen_are_read(tmp_path: Path, family: str) -> None:
    _, path = made(family, tmp_path, torch.bfloat16, method="rtn", bits=4, group_size=32)
    loaded, _ = load_model(path, memory=ceiling_without_experts(path))
    weights, experts, passes = loaded.packed_weights, experts_of(loaded), routed(loaded)
    stored = [
        [sum(weights.plan.parts[n].item.part.stored_bytes for n in parts) for parts in layer._parts]
        for layer in experts
    ]
    n_all = sum(map(sum, stored))
    for token in (9, 31, 120):
        before = weights.n_read_bytes
        with torch.inference_mode():
            loaded(torch.tensor([[token]]))
        read = weights.n_read_bytes - before
        assert read == sum(stored[layer][expert] for layer, expert in passes[-1])
        assert 0 < read < n_all
    weights.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("codec", ["auto", "raw"])
def test_experts_that_are_used_often_stay_in_memory(tmp_path: Path, codec: str) -> None:
    config = tiny_config(transformers.Qwen3MoeConfig, {"num_experts": 32, "num_hidden_layers": 2})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path)
    path = tmp_path / "m.spq"
    spqfmt.pack(tmp_path, path, method="rtn", bits=4, group_size=32, codec=codec)
    items = [p.item for p in plan_model(path).plan.parts if p.item.share is not None]
    memory = ceiling_without_experts(path) + sum(item.part.stored_bytes for item in items) // 2
    on_disk = [p for p in plan_model(path, memory=memory).plan.parts if p.residency == "disk"]
    assert len(items) // 3 < len(on_disk) < len(items)
    loaded, _ = load_model(path, memory=memory)
    weights = loaded.packed_weights
    held = weights.held_bytes
    logits = []

    def read_for(token: int) -> int:
        before = weights.n_read_bytes
        with torch.inference_mode():
            logits.append(loaded(torch.tensor([[token]])).logits)
        return int(weights.n_read_bytes - before)

    token = next(token for token in range(8, 200) if read_for(token) > 0)
    # Those in their places were used as often, until this is the one that counts.
    read = [read_for(token) for _ in range(200)]
    assert read[-2:] == [0, 0]
    assert all(torch.equal(found, logits[-1]) for found in logits[-200:])
    # Others come back, with the numbers that they had.
    with torch.inference_mode():
        other = loaded(torch.tensor([[31]])).logits
    whole, _ = load_model(path, packed=True)
    with torch.inference_mode():
        assert torch.equal(whole(torch.tensor([[31]])).logits, other)
    assert weights.held_bytes == held
    for model in (loaded, whole):
        model.packed_weights.close()
