"""What embedding and head do, seen block by block, against the whole model and its gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from calibration_models import Onlooker, make_engine

import spqfmt
from spqfmt.calibration.ends import Ends
from spqfmt.calibration.gradients import output_gradients, watch_head
from spqfmt.calibration.model import ModelShell
from spqfmt.errors import UnsupportedError
from spqfmt.importers import open_source

SEED = 3


def _ids() -> torch.Tensor:
    return torch.randint(0, 200, (3, 16), generator=torch.Generator().manual_seed(0))


def _whole(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Means over tokens: h h^T before the head, p, p (1 - p), gradients by what the embedding gives and by the head."""
    generator = torch.Generator().manual_seed(SEED)
    seen: dict[str, list[torch.Tensor]] = {"states": [], "p": [], "embedded": [], "of_head": []}
    for row in ids:
        kept: dict[str, Any] = {}
        hooks = [
            model.get_input_embeddings().register_forward_hook(
                lambda _, __, out, k=kept: k.setdefault("embedded", out.requires_grad_())
            ),
            model.get_output_embeddings().register_forward_hook(
                lambda _, args, out, k=kept: k.update(states=args[0], of_head=out)
            ),
        ]
        logits = model(input_ids=row[None], use_cache=False).logits[0].float()
        for hook in hooks:
            hook.remove()
        p = logits.detach().softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
        embedded, of_head = torch.autograd.grad(loss, [kept["embedded"], kept["of_head"]])
        for name, value in (
            ("states", kept["states"][0]),
            ("p", p),
            ("embedded", embedded[0]),
            ("of_head", of_head[0]),
        ):
            seen[name].append(value.detach().double())
    return {name: torch.cat(values) for name, values in seen.items()}


def _cohere(path: Path) -> Path:
    config = transformers.CohereConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        logit_scale=0.25,
    )
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
        tiny.byte_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma", "gpt2", "cohere"])
def test_ends_are_those_of_the_whole_model(
    family: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = _cohere(tmp_path / family) if family == "cohere" else folder(family)
    ids = _ids()
    shell = ModelShell(open_source(path), dtype=torch.float32)
    ends = Ends(shell.model)
    output_gradients(shell, ids, lambda block: [], seed=SEED, ends=ends)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    whole, n = _whole(model, ids), ids.numel()
    assert ends.is_tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    assert model.get_parameter(ends.embedding_name) is model.get_input_embeddings().weight
    assert ends.states is not None
    assert ends.gradients is not None
    assert ends.looked_up is not None
    assert ends.curvatures is not None
    assert torch.allclose(
        ends.states.matrix.double(), 2 / n * whole["states"].T @ whole["states"], rtol=1e-3, atol=1e-4
    )
    # By the rows themselves: some modules multiply what they look up.
    embedding = model.get_input_embeddings()
    rows = torch.nn.functional.embedding(ids, embedding.weight.detach())
    factor = float((embedding(ids).detach() * rows).sum() / (rows * rows).sum())
    assert (factor > 2) == (family == "gemma")
    expected = 2 / n * factor**2 * whole["embedded"].T @ whole["embedded"]
    found = ends.gradients.matrix.double() * ends.scale**2
    # Where positions are added to what is looked up, the two are a little alike by chance.
    tolerance = 0.3 if family == "gpt2" else 1e-2
    assert abs(float(found.trace() / expected.trace()) - 1) < tolerance
    assert torch.allclose(ends.looked_up, whole["p"].mean(0), rtol=1e-3, atol=1e-6)
    behind = 0.25 if family == "cohere" else 1.0
    p = whole["p"]
    # Of labels that are drawn, so that the sum over all rows is what is known well.
    assert float(ends.curvatures.sum()) == pytest.approx(
        float(whole["of_head"].square().mean(0).sum()), rel=1e-3
    )
    assert float(ends.curvatures.sum()) == pytest.approx(
        behind**2 * float((p - p * p).mean(0).sum()), rel=0.2
    )


def test_without_gradients_the_head_is_seen_too(folder: Callable[[str], Path]) -> None:
    engine = make_engine(folder("llama_tied"), Onlooker())
    ends = Ends(engine.shell.model)
    list(engine.run(to_the_end=True))
    watch_head(engine.shell, engine.samples[:2], engine.blocks, ends)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder("llama_tied"), dtype=torch.float32)
    whole, n = _whole(model, engine.samples[:2]), engine.samples[:2].numel()
    assert ends.states is not None
    assert ends.curvatures is not None
    expected = 2 / n * whole["states"].T @ whole["states"]
    assert torch.allclose(ends.states.matrix.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.allclose(ends.curvatures, (whole["p"] - whole["p"].square()).mean(0), rtol=1e-3, atol=1e-6)
    assert ends.gradients is None


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_embedding_and_head_have_steps_by_columns_where_they_are_known(
    family: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    text = Path(__file__).resolve().parents[2] / "LICENSE"
    for gradients in (False, True):
        out = tmp_path / f"{gradients}.spq"
        few: dict[str, Any] = {"calibration": text, "samples": 4, "seq_len": 32, "gradients": gradients}
        spqfmt.pack(folder(family), out, method="ecq", bits=6, **few)
        roles = {t.name: {s.role for s in t.streams} for t in spqfmt.inspect(out).tensors if t.method}
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in roles:
                # What an embedding of its own does is known by gradients alone.
                is_known = gradients or name.startswith("lm_head") or family == "llama_tied"
                assert ("column_scales" in roles[name]) == is_known
                assert "row_scales" in roles[name]
        assert "model.embed_tokens.weight" in roles
        spqfmt.verify(out)


def test_a_head_that_cannot_be_looked_at_is_said(
    folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise UnsupportedError("no head is here", "head")

    monkeypatch.setattr("spqfmt.packing.fit.survey.watch_head", fail)
    text = Path(__file__).resolve().parents[2] / "LICENSE"
    few: dict[str, Any] = {"calibration": text, "samples": 2, "seq_len": 32, "effort": "fast"}
    report = spqfmt.pack(folder("llama"), tmp_path / "m.spq", method="ecq", bits=6, **few)
    assert "head and embedding are quantized by the norms of their rows: no head is here" in report.notes
