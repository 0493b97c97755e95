"""Whole models on a simulated device: the logits of the CPU at every ceiling, generation, errors, and no CUDA here."""

import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from device_support import RATES, loaded_onto_device, logits_of

import spqfmt
from spqfmt.errors import BackendError, ChecksumError, MemoryBudgetError, OptionError, SpqError
from spqfmt.loaders.packed import PackedEmbedding, PackedLinear
from spqfmt.loaders.plan import plan_for_device

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])
METHODS: dict[str, dict[str, Any]] = {
    "rtn 8": {"method": "rtn"},
    "rtn 4": {"method": "rtn", "bits": 4, "group_size": 32},
    "zstd": {"method": "rtn", "codec": "zstd"},
    "lossless": {"method": "lossless"},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model packed by a method of METHODS, made once: with so many layers that buffers are less than all of them."""
    root = tmp_path_factory.mktemp("packed")

    def pack(method: str) -> Path:
        folder = root / method.replace(" ", "")
        if not folder.exists():
            size = {"num_hidden_layers": 8 if method == "rtn 4" else 4}
            config = transformers.LlamaConfig(**tiny._LLAMA | size, tie_word_embeddings=True)
            with torch.random.fork_rng(devices=[]), tiny.quiet():
                torch.manual_seed(0)
                transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
            spqfmt.pack(folder, folder / "m.spq", **METHODS[method])
        return folder / "m.spq"

    return pack


def logits(model: Any, ids: torch.Tensor = INPUTS) -> torch.Tensor:
    return logits_of(model, ids)


def generate(model: Any) -> list[int]:
    with torch.inference_mode():
        ids = model.generate(
            INPUTS, attention_mask=torch.ones_like(INPUTS), max_new_tokens=2, do_sample=False
        )
    tokens: list[int] = ids[0].tolist()
    return tokens


@pytest.mark.parametrize("method", sorted(METHODS))
def test_logits_are_those_of_the_cpu_at_every_ceiling(
    packed: Callable[[str], Path], method: str, small_parts: None
) -> None:
    """Few tokens are multiplied from codes in float32, here as there, in another order of additions."""
    path = packed(method)
    reference, _ = spqfmt.load_model(path, dtype="float32", packed=True)
    expected, one = logits(reference), logits(reference, INPUTS[:, :1])
    reference.packed_weights.close()
    whole = plan_for_device(path, dtype="float32", rates=RATES).plan
    smallest, least_host = whole.smallest_bytes, whole.on_host.smallest_bytes
    results, seen = [], set()
    mixed = (smallest + whole.stored_bytes // 4, least_host + whole.stored_bytes // 4)
    # The plain decoder is slow: nothing but the disk only once.
    for memory, host in ((None, None), mixed, *([(smallest, least_host)] if method == "rtn 8" else [])):
        model, device = loaded_onto_device(path, memory, host, dtype="float32")
        plan = model.packed_weights.plan
        seen |= {part.residency for part in plan.parts}
        assert isinstance(model.lm_head, PackedLinear)
        assert isinstance(model.model.embed_tokens, PackedEmbedding)
        parameters = sum(parameter.nbytes for parameter in model.parameters())
        assert device.allocated_bytes + parameters == plan.held_bytes
        assert model.packed_weights.host_held_bytes == plan.host_held_bytes
        assert memory is None or plan.held_bytes <= memory
        assert host is None or plan.host_held_bytes <= host
        taken = device.allocated_bytes
        found, first = logits(model), logits(model, INPUTS[:, :1])
        assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max()))
        assert torch.allclose(first, one, atol=2e-4 * float(one.abs().max()))
        results.append((found, first, generate(model) if method == "rtn 8" else []))
        assert device.allocated_bytes == taken
        model.packed_weights.close()
    assert {"decoded", "host", "disk"} <= seen, "a ceiling does not make the plan that it is there for"
    for found, first, tokens in results:
        assert torch.equal(found, results[0][0])
        assert torch.equal(first, results[0][1])
        assert tokens == results[0][2]


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_every_architecture_under_the_least_ceilings(name: str, tmp_path: Path, small_parts: None) -> None:
    """For a prompt weights are dequantized: the result is that of decoded weights, but for the order of additions."""
    tiny.build(name, tmp_path / "source", dtype=torch.bfloat16)
    path = tmp_path / "m.spq"
    spqfmt.pack(tmp_path / "source", path, method="rtn")
    reference, _ = spqfmt.load_model(path, dtype="float32", packed=False)
    plan = plan_for_device(path, dtype="float32", rates=RATES).plan
    model, _ = loaded_onto_device(path, plan.smallest_bytes, plan.on_host.smallest_bytes, dtype="float32")
    assert isinstance(model, type(reference))
    expected = logits(reference)
    assert torch.allclose(logits(model), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    model.packed_weights.close()


@pytest.mark.skipif(importlib.util.find_spec("glassllm") is None, reason="glassllm is not installed")
def test_a_trained_model_has_the_logits_of_its_decoded_weights_bit_for_bit(
    tmp_path: Path, small_parts: None
) -> None:
    import glass

    glass.build(tmp_path / "source")
    spqfmt.pack(tmp_path / "source", tmp_path / "m.spq", method="rtn")
    reference, tokenizer = spqfmt.load_model(tmp_path / "m.spq", dtype="float32", packed=False)
    ids = tokenizer(
        "Alice was beginning to get very tired of sitting by her sister on the bank.", return_tensors="pt"
    )
    assert ids.input_ids.shape[1] > 16
    smallest = plan_for_device(tmp_path / "m.spq", dtype="float32", rates=RATES).plan.smallest_bytes
    model, _ = loaded_onto_device(tmp_path / "m.spq", smallest, None, dtype="float32")
    assert {part.residency for part in model.packed_weights.plan.parts} >= {"host"}
    assert torch.equal(logits(model, ids.input_ids), logits(reference, ids.input_ids))
    model.packed_weights.close()


def test_a_ceiling_that_is_too_low_is_refused_before_anything_is_read(
    packed: Callable[[str], Path], small_parts: None
) -> None:
    path = packed("rtn 8")
    plan = plan_for_device(path, rates=RATES).plan
    with pytest.raises(
        MemoryBudgetError, match=f"^memory .* needs at least .* \\({plan.smallest_bytes} bytes\\)"
    ):
        loaded_onto_device(path, plan.smallest_bytes - 1, None)
    with pytest.raises(MemoryBudgetError, match=f"^host_memory .*\\({plan.on_host.smallest_bytes} bytes\\)"):
        loaded_onto_device(path, plan.smallest_bytes, plan.on_host.smallest_bytes - 1)


def test_a_model_that_is_dropped_closes_its_file(packed: Callable[[str], Path], small_parts: None) -> None:
    path = packed("rtn 8")
    model, _ = loaded_onto_device(path, plan_for_device(path, rates=RATES).plan.smallest_bytes, None)
    engine = model.packed_weights
    logits(model)
    engine.close()
    engine.close()
    model, _ = loaded_onto_device(path, None, None)
    finalizer = model.packed_weights._finalizer
    del model, engine
    gc.collect()
    assert not finalizer.alive


def test_damage_is_told_by_file_and_tensor(
    packed: Callable[[str], Path], tmp_path: Path, small_parts: None
) -> None:
    path = tmp_path / "damaged.spq"
    data = bytearray(packed("rtn 8").read_bytes())
    with spqfmt.open(packed("rtn 8")) as file:
        record = file["model.layers.2.mlp.up_proj.weight"]._record
    data[record.by_role["codes"].chunks[0].planes[0].offset + 50] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ChecksumError, match=r"damaged\.spq: tensor 'model\.layers\.2\.mlp\.up_proj\.weight'"):
        loaded_onto_device(path, None, None)
    plan = plan_for_device(path, rates=RATES).plan
    model, _ = loaded_onto_device(path, plan.smallest_bytes, plan.on_host.smallest_bytes)
    with pytest.raises(ChecksumError, match=r"up_proj"):
        logits(model)
    model.packed_weights.close()


def test_options_that_do_not_go_together(packed: Callable[[str], Path]) -> None:
    path = packed("rtn 8")
    with pytest.raises(OptionError, match="host_memory is for a model on a device"):
        spqfmt.load_model(path, memory="1GiB", host_memory="1GiB")
    with pytest.raises(OptionError, match="not on 'meta'"):
        spqfmt.load_model(path, device="meta", memory="1GiB")
    with pytest.raises(OptionError, match="host_memory goes with memory"):
        spqfmt.load_model(path, device="cuda", host_memory="1GiB", packed=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("options", [{}, {"memory": "1GiB"}, {"memory": "1GiB", "host_memory": "1GiB"}])
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_without_cuda_there_is_one_clear_error(
    packed: Callable[[str], Path], device: Any, options: dict[str, str]
) -> None:
    with pytest.raises(
        BackendError, match=r"^device 'cuda(:1)?' cannot be used: (this torch has no CUDA|torch finds)"
    ):
        spqfmt.load_model(packed("rtn 8"), device=device, **options)


def test_inputs_must_be_where_the_weights_are(packed: Callable[[str], Path], small_parts: None) -> None:
    model, _ = loaded_onto_device(packed("rtn 8"), None, None)
    with pytest.raises(SpqError, match="packed weights are on cpu, the input is on meta"):
        model.lm_head(torch.zeros(1, 64, device="meta", dtype=torch.bfloat16))
    model.packed_weights.close()


def test_weights_that_the_models_code_reads_have_room_there_too(tmp_path: Path) -> None:
    """Mamba multiplies by the weight of dt_proj itself. The table of its embedding comes row by row from the host."""
    config = transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=9000, state_size=8)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        source = transformers.AutoModelForCausalLM.from_config(config).eval()
        source.save_pretrained(tmp_path)
    spqfmt.pack(tmp_path, tmp_path / "m.spq")
    whole = plan_for_device(tmp_path / "m.spq", rates=RATES).plan
    model, _ = loaded_onto_device(tmp_path / "m.spq", whole.smallest_bytes, whole.on_host.smallest_bytes)
    plan = model.packed_weights.plan
    layer = source.backbone.layers[0].mixer.dt_proj
    assert plan.fixed.values == plan.free_bytes == layer.weight.nbytes
    expected = logits(source)
    assert torch.allclose(logits(model), expected, atol=2e-4 * float(expected.abs().max()))
    embedding = model.backbone.embeddings
    assert torch.equal(embedding.weight.clone(), source.backbone.embeddings.weight)
    assert torch.equal(embedding.weight[7], source.backbone.embeddings.weight[7])

    def read(module: Any, inputs: Any) -> None:
        embedding.weight.sum()

    model.backbone.norm_f.register_forward_pre_hook(read)
    with pytest.raises(MemoryBudgetError, match=r"embeddings\.weight: the model's code reads this weight"):
        logits(model)
    model.packed_weights.close()
