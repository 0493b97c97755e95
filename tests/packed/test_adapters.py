"""PEFT's adapters on packed layers: the gradients of the decoded model, files that both read, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_architectures
import pytest
import torch
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftModel,
    TrainableTokensConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)

import spqfmt
from spqfmt.errors import SpqError, UnusedTensorsWarning
from spqfmt.loaders.packed import PackedConv1D, PackedEmbedding, PackedLinear
from spqfmt.loaders.plan import plan_model

IDS = torch.tensor([[(i * 37 + 11 * k) % 256 for i in range(40)] for k in range(2)])
TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
# peft asks transformers for what it calls otherwise now.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
METHODS: dict[str, dict[str, Any]] = {
    "int8": {"method": "rtn"},
    "4 bits in groups": {"method": "rtn", "bits": 4, "group_size": 16},
    "spqr": {"method": "spqr", "bits": 3, "group_size": 16, "calibration": TEXT, "samples": 4, "seq_len": 32},
    "ecq": {"method": "ecq", "bits": 5, "no_calibration": True},
    "lossless": {},
}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module", params=sorted(METHODS))
def packed(
    request: pytest.FixtureRequest,
    tiny_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "m.spq"
    spqfmt.pack(tiny_folder("llama"), out, **METHODS[request.param])
    return out


@pytest.fixture(scope="module")
def llama(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "m.spq"
    spqfmt.pack(tiny_folder("llama"), out, **METHODS["int8"])
    return out


def smallest(path: Path, dtype: str = "float32") -> dict[str, Any]:
    return {"memory": plan_model(path, dtype=dtype).plan.smallest_bytes}


def adapted(path: Path, options: dict[str, Any], dtype: str = "float32", **lora: Any) -> Any:
    """A model with an adapter that does something from the start, the same one every time."""
    model, _ = spqfmt.load_model(path, dtype=dtype, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(**LORA | {"target_modules": "all-linear", "init_lora_weights": False} | lora)
        return get_peft_model(model, config)


def gradients(model: Any, training: bool = False) -> dict[str, torch.Tensor]:
    """`training` turns on dropout, and checkpointing."""
    model.train(training)
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], limit: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() <= limit * gradient.norm(), name


@pytest.mark.parametrize("where", ["in memory", "on disk"])
def test_gradients_are_those_of_the_decoded_model(packed: Path, where: str) -> None:
    options = {"packed": True} if where == "in memory" else smallest(packed)
    model, decoded = adapted(packed, options), adapted(packed, {})
    assert isinstance(model.base_model.model.model.layers[0].mlp.up_proj.base_layer, PackedLinear)
    assert_close(gradients(model), gradients(decoded), 1e-4)
    half, decoded = adapted(packed, options, "bfloat16"), adapted(packed, {}, "bfloat16")
    assert_close(gradients(half), gradients(decoded), 0.05)


def test_gradients_with_checkpointing_are_the_same(llama: Path) -> None:
    model = adapted(llama, smallest(llama))
    expected = gradients(model, training=True)
    again = adapted(llama, smallest(llama))
    prepare_model_for_kbit_training(again.base_model.model, use_gradient_checkpointing=True)
    for name, parameter in again.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert_close(gradients(again, training=True), expected, 1e-6)


def test_an_adapter_of_every_linear_layer_of_gpt2(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Its layers are transformers' Conv1D, whose weights are transposed."""
    path = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("gpt2"), path, method="rtn", bits=4, group_size=16)
    lora = {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}
    model, decoded = adapted(path, {"packed": True}, **lora), adapted(path, {}, **lora)
    transformer = model.base_model.model.transformer
    assert isinstance(transformer.h[0].mlp.c_fc.base_layer, PackedConv1D)
    assert isinstance(transformer.wte.base_layer, PackedEmbedding)
    assert_close(gradients(model), gradients(decoded), 1e-4)


def test_an_adapter_learns_is_saved_and_loaded_under_a_ceiling(packed: Path, tmp_path: Path) -> None:
    model = adapted(packed, {"packed": True}, init_lora_weights=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == model.get_nb_trainable_parameters()[0]
    optimizer = torch.optim.AdamW(trained, lr=0.005)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    base, _ = spqfmt.load_model(packed, dtype="float32", **smallest(packed))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    plain = PeftModel.from_pretrained(
        spqfmt.load_model(packed, dtype="float32", packed=False)[0], tmp_path / "adapter"
    ).eval()
    through_transformers, _ = spqfmt.load_model(packed, dtype="float32", packed=True)
    through_transformers.load_adapter(str(tmp_path / "adapter"))
    with torch.inference_mode():
        expected = model(IDS).logits
        assert torch.equal(loaded(IDS).logits, expected)
        assert torch.equal(through_transformers(IDS).logits, expected)
        assert torch.allclose(plain(IDS).logits, expected, atol=1e-4 * float(expected.abs().max()))
        with loaded.disable_adapter():
            without = spqfmt.load_model(packed, dtype="float32", packed=True)[0]
            assert torch.equal(loaded(IDS).logits, without(IDS).logits)
        tokens = [m.generate(IDS[:1], max_new_tokens=6, do_sample=False) for m in (model, loaded)]
        assert torch.equal(*tokens)


@pytest.fixture(scope="module")
def rows_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 Next from a GGUF file, with experts, and rows of a layer that lie apart."""
    folder = tmp_path_factory.mktemp("apart")
    gguf_architectures.write("qwen3next", folder / "m.gguf", quantize="Q8_0")
    spqfmt.pack(folder / "m.gguf", folder / "m.spq")
    return folder / "m.spq"


def test_an_adapter_of_rows_that_lie_apart(rows_apart: Path, tmp_path: Path) -> None:
    """They are one layer: the adapter is that of the decoded model, which loads it, and the other way round."""
    path, ids = rows_apart, IDS % 200
    names = ["in_proj_qkvz", "q_proj"]
    plain = adapted(path, {"packed": False}, target_modules=names)
    plain(input_ids=ids, labels=ids).loss.backward()
    plain.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    for options in ({"packed": True}, {"memory": "3MiB"}):
        model, _ = spqfmt.load_model(path, dtype="float32", **options)
        with torch.inference_mode():
            without = model(ids).logits
        loaded = PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True)
        loaded(input_ids=ids, labels=ids).loss.backward()
        expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
        found = {n: p.grad for n, p in loaded.named_parameters() if p.grad is not None}
        assert any("in_proj_qkvz" in name for name in found)
        assert_close(found, expected, 1e-3)
        with torch.inference_mode():
            logits = plain(ids).logits
            assert (logits - without).abs().max() > 0.1
            assert (loaded(ids).logits - logits).abs().max() < 1e-3 * logits.std()
    packed, _ = spqfmt.load_model(path, dtype="float32", packed=True)
    decoded, _ = spqfmt.load_model(path, dtype="float32", packed=False)
    own, theirs = packed.state_dict(), decoded.state_dict()
    assert own.keys() == theirs.keys()
    qkvz = "model.layers.0.linear_attn.in_proj_qkvz.weight"
    assert torch.equal(own[qkvz].clone(), theirs[qkvz])
    packed.load_state_dict(own)
    with pytest.raises(RuntimeError, match=f"{qkvz}: packed weights cannot be changed"):
        packed.load_state_dict(theirs)
    with pytest.raises(ValueError, match="Target module PackedRows"):
        get_peft_model(packed, LoraConfig(**LORA, target_modules=["in_proj_q"]))


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_an_adapter_of_experts_is_not_left_out_in_silence(rows_apart: Path) -> None:
    model, _ = spqfmt.load_model(rows_apart, dtype="float32", packed=True)
    why = r"no effect on packed ones \(model\.layers\.0\.mlp\.experts\.gate_up_proj and 7 more\)"
    with pytest.warns(UnusedTensorsWarning, match=why):
        everywhere = get_peft_model(model, LoraConfig(**LORA, target_modules="all-linear"))
    assert not [name for name, _ in everywhere.named_parameters() if "in_proj_qkvz.in_proj" in name]


def test_what_would_change_the_weights_is_refused(llama: Path) -> None:
    model = adapted(llama, {"packed": True})
    merges: list[Callable[[], Any]] = [
        model.merge_adapter,
        model.merge_and_unload,
        lambda: model.merge_and_unload(safe_merge=True),
        lambda: adapted(llama, {"packed": True}, init_lora_weights="pissa"),
    ]
    for merge in merges:
        with pytest.raises(
            SpqError, match=r"q_proj\.weight: packed weights cannot be changed; load with packed=False"
        ):
            merge()
    with pytest.raises(SpqError, match=r"lm_head\.weight: packed weights cannot be copied"):
        adapted(llama, {"packed": True}, modules_to_save=["lm_head"])
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, adapted(llama, {"packed": True})(IDS).logits)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"trainable_token_indices": [0, 37]}])
def test_other_kinds_read_the_weights_that_they_need(llama: Path, kind: dict[str, Any]) -> None:
    options = {"target_modules": ["q_proj", "down_proj"], **kind}
    model, decoded = adapted(llama, {"packed": True}, **options), adapted(llama, {}, **options)
    assert_close(gradients(model), gradients(decoded), 1e-3)


def test_ada_lora_trains_on_packed_layers(llama: Path) -> None:
    """It freezes the weight of its layer."""
    models = []
    for packed in (True, False):
        model, _ = spqfmt.load_model(llama, dtype="float32", packed=packed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AdaLoraConfig(target_modules=["q_proj"], total_step=9, init_lora_weights=False)
            models.append(get_peft_model(model, config))
    assert_close(*(gradients(model) for model in models), 1e-3)


@pytest.mark.filterwarnings("ignore:.*tied modules:UserWarning")
def test_adapters_of_a_tied_embedding_that_its_head_would_lack_are_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    spqfmt.pack(tiny_folder("llama_tied"), tmp_path / "m.spq", method="rtn")

    def tokens(model: Any) -> Any:
        return get_peft_model(
            model, TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"])
        )

    def together(model: Any) -> Any:
        return get_peft_model(model, LoraConfig(target_modules=["embed_tokens"], ensure_weight_tying=True))

    def second(model: Any) -> Any:
        adapters = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        adapters.add_adapter("b", LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1]))
        adapters.set_adapter("b")
        return adapters

    for put, reason in (
        (tokens, "stays packed"),
        (second, "stays packed"),
        (together, "ensure_weight_tying"),
    ):
        model, _ = spqfmt.load_model(tmp_path / "m.spq", packed=True)
        with pytest.raises(SpqError, match=rf"lm_head\.weight.*{reason}.*packed=False"):
            put(model)(IDS)
    model, _ = spqfmt.load_model(tmp_path / "m.spq", packed=True)
    heads = get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], trainable_token_indices={"lm_head": [1]})
    )
    assert torch.isfinite(heads(IDS).logits).all()


@pytest.mark.slow
def test_a_compiled_step_of_training_gives_the_same_gradients(llama: Path) -> None:
    model = adapted(llama, smallest(llama))
    expected = gradients(model)
    torch._dynamo.reset()
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(IDS, labels=IDS).loss.backward()
    assert_close({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, expected, 1e-5)
