"""Weights that a model's own code reads have room under the ceiling, and what is not foreseen is refused."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import nn

import spqfmt
from spqfmt.cli.main import main
from spqfmt.errors import MemoryBudgetError
from spqfmt.loaders.plan import plan_for_device, plan_model
from spqfmt.models.own_code import own_code

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(12)]])
SIZE, RANK, INNER = 64, 8, 128


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mamba multiplies by the weight of dt_proj itself."""
    folder = tmp_path_factory.mktemp("mamba")
    config = transformers.MambaConfig(
        hidden_size=SIZE, num_hidden_layers=2, vocab_size=264, state_size=8, time_step_rank=RANK
    )
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq")
    return folder / "m.spq"


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(5, 4)
        self.padding = nn.Embedding(5, 4)
        self.mixed = nn.Linear(4, 4)
        self.called = nn.Linear(4, 6)
        self.clipped = nn.Linear(4, 4)
        self.scaled = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 9)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, input_ids: torch.Tensor | None = None) -> torch.Tensor:
        if self.training and x is not None:
            self.clipped.weight.data.clamp_(-1, 1)
        if input_ids is None:
            x = x @ self.unused.weight
        x = nn.functional.linear(x, self.mixed.weight.to(x.dtype)).to(self.clipped.weight.dtype)
        x = nn.functional.linear(x, self.called.weight)
        self.scaled.weight.data.mul_(2)
        return self.clipped(x) + self.padding.weight[0, :] + self.helped(x)

    def helped(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.linear(self.queries.weight).t()

    def never(self) -> torch.Tensor:
        return self.unused.weight + 1


def test_what_code_does_with_weights_is_found_in_it() -> None:
    model = nn.Sequential(Table())
    found = own_code(model)
    assert found.read == {"0": {"0.queries", "0.mixed"}}
    assert found.changed == {"0.scaled"}
    assert not found.read_somewhere
    sizes = {"0.queries": 20, "0.mixed": 16, "0.unused": 36, "0.scaled": 16}
    assert found.values_at_once(model, sizes) == 36


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_models_that_call_their_layers_read_nothing(kind: str) -> None:
    config: Any = transformers.T5Config() if kind == "t5" else tiny.configurations()[kind]
    model_class = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        found = own_code(model_class.from_config(config))
    assert not any(found.read.values())
    assert not found.changed
    assert not found.read_somewhere


def test_a_plan_keeps_room_for_the_largest_module_that_reads(
    mamba: Path, packed_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_model(mamba).plan
    assert plan.fixed.values == INNER * RANK * 4
    assert plan_model(packed_llama).plan.fixed.values == 0
    on_device = plan_for_device(mamba).plan
    assert on_device.fixed.values == INNER * RANK * 4
    for options in ([], ["--device", "cuda"]):
        for path, says in ((mamba, True), (packed_llama, False)):
            with pytest.raises(SystemExit):
                main(["plan", str(path), *options])
            said = capsys.readouterr().out
            assert (", 4.1 kB kept free for weights that the model's code reads" in said) == says


def test_reading_stays_in_that_room(mamba: Path) -> None:
    smallest = plan_model(mamba).plan.smallest_bytes
    loaded, _ = spqfmt.load_model(mamba, memory=smallest)
    assert loaded.packed_weights.plan.free_bytes == INNER * RANK * 4
    layer = loaded.backbone.layers[0].mixer
    with torch.inference_mode():
        first = loaded(INPUTS).logits
        assert torch.equal(loaded(INPUTS).logits, first)
        # Nobody's forward is running: the memory is the caller's.
        assert layer.in_proj.weight.float().shape == (2 * INNER, SIZE)

        def read_more(module: Any, inputs: Any) -> None:
            kept.append(layer.dt_proj.weight.t())

        kept: list[torch.Tensor] = []
        loaded.backbone.layers[1].mixer.dt_proj.register_forward_pre_hook(read_more)
        layer.x_proj.register_forward_pre_hook(read_more)
        with pytest.raises(
            MemoryBudgetError, match=r"dt_proj.weight: the model's code reads this weight, which is 4096"
        ):
            loaded(INPUTS)
        kept.clear()
        layer.x_proj._forward_pre_hooks.clear()
        assert torch.equal(loaded(INPUTS).logits, first)
    loaded.packed_weights.close()


def test_what_was_not_foreseen_is_refused_with_the_ceiling_that_does(packed_llama: Path) -> None:
    def loaded(memory: int | None) -> Any:
        model, _ = spqfmt.load_model(packed_llama, packed=True if memory is None else None, memory=memory)
        mlp = model.model.layers[0].mlp

        def read(module: Any, inputs: Any) -> None:
            mlp.down_proj.weight.sum()

        mlp.act_fn.register_forward_pre_hook(read)
        return model

    with torch.inference_mode():
        expected = loaded(None)(INPUTS).logits
        with pytest.raises(MemoryBudgetError, match=r"down_proj\.weight") as raised:
            loaded(plan_model(packed_llama).plan.smallest_bytes)(INPUTS)
        assert raised.value.smallest_bytes > plan_model(packed_llama).plan.smallest_bytes
        assert torch.allclose(loaded(1 << 30)(INPUTS).logits, expected, atol=0.02)


def test_one_row_is_looked_up(packed_llama: Path) -> None:
    model, _ = spqfmt.load_model(packed_llama, memory=plan_model(packed_llama).plan.smallest_bytes)
    embedding = model.get_input_embeddings()
    weight, values = embedding.weight, embedding.weight.clone()
    embedding._decode = None
    for index in (3, -1, (5, slice(None)), torch.tensor([1, -2]), torch.tensor(7)):
        assert torch.equal(weight[index], values[index])
    with pytest.raises(IndexError):
        weight[len(values)]
    model.packed_weights.close()


def test_an_embedding_that_transformers_changes_is_not_packed() -> None:
    with torch.device("meta"):
        funnel = transformers.FunnelModel(transformers.FunnelConfig(vocab_size=64, pad_token_id=0))
        bert = transformers.BertModel(transformers.BertConfig(vocab_size=64))
    # The row of padding is zero in a loaded Funnel, whatever its file says.
    assert own_code(funnel).changed == {"embeddings.word_embeddings"}
    assert own_code(bert).changed == set()


def test_layers_that_a_model_rescales_are_not_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.RwkvConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, rescale_every=2, context_length=32
    )
    with torch.random.fork_rng(devices=[]), tiny.quiet(), torch.inference_mode():
        torch.manual_seed(0)
        source = transformers.AutoModelForCausalLM.from_config(config).eval()
        source.save_pretrained(tmp_path)
        expected = source(INPUTS % 64).logits
    spqfmt.pack(tmp_path, tmp_path / "m.spq")
    loaded, _ = spqfmt.load_model(tmp_path / "m.spq", packed=True)
    with torch.inference_mode():
        assert torch.allclose(loaded(INPUTS % 64).logits, expected, atol=1e-5)
    block = loaded.rwkv.blocks[3]
    assert type(block.attention.output) is type(block.feed_forward.value) is nn.Linear
    assert hasattr(block.attention.key, "record")
    with pytest.raises(SystemExit):
        main(["plan", str(tmp_path / "m.spq")])
    said = "not packed, as their class changes them: rwkv.blocks.0.attention.output and 7 more"
    assert said in capsys.readouterr().out
