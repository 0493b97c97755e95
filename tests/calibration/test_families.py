"""Models whose blocks are called in their own ways: calibrated, or refused in one line before anything is done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from calibration_models import TEXT, tiny

import spqfmt
from spqfmt.errors import UnsupportedError
from spqfmt.loaders import load_model
from spqfmt.progress import Silent

SHORT = {"vocab_size": tiny.VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
HIDDEN = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}


def _models() -> dict[str, Callable[[], Any]]:
    t = transformers
    encoder = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    return {
        # Its layers are called in another order than the file has them: what they share lies with the first there.
        "distilbert": lambda: t.DistilBertForMaskedLM(
            t.DistilBertConfig(**SHORT, dim=48, n_layers=2, n_heads=4, hidden_dim=80, max_position_embeddings=64)
        ),
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**SHORT, **HIDDEN, max_position_embeddings=64)),
        # Its blocks multiply by dt_proj.weight themselves.
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(**SHORT, hidden_size=48, num_hidden_layers=2, state_size=8)),
        "jamba": lambda: t.JambaForCausalLM(
            t.JambaConfig(
                **SHORT, **HIDDEN, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
                num_experts_per_tok=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
            )
        ),
        # No layer of its blocks has a name that says so.
        "albert": lambda: t.AlbertForMaskedLM(
            t.AlbertConfig(**SHORT, **HIDDEN, embedding_size=16, max_position_embeddings=64)
        ),
        "llava": lambda: t.LlavaForConditionalGeneration(
            t.LlavaConfig(
                vision_config=t.CLIPVisionConfig(**HIDDEN, image_size=16, patch_size=8),
                text_config=t.LlamaConfig(**SHORT, **HIDDEN, num_key_value_heads=2),
                image_token_index=200,
            )
        ),
        # It sends hidden states to the device of its first parameter, in the vision part, which is not run.
        "idefics3": lambda: t.Idefics3ForConditionalGeneration(
            t.Idefics3Config(
                vision_config={**HIDDEN, "image_size": 16, "patch_size": 8},
                text_config=t.LlamaConfig(**SHORT, **HIDDEN, num_key_value_heads=2),
                image_token_id=200, pad_token_id=257, scale_factor=1,
            )
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=tiny.VOCABULARY, d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4)
        ),
        "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**SHORT, **encoder)),
        "whisper": lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(**SHORT, **encoder, num_mel_bins=16, decoder_start_token_id=256, suppress_tokens=[])
        ),
        # One block of it is in several places.
        "zamba2": lambda: t.Zamba2ForCausalLM(
            t.Zamba2Config(
                **SHORT, **{**HIDDEN, "num_hidden_layers": 4}, num_key_value_heads=4, mamba_d_state=8, n_mamba_heads=6,
                mamba_headdim=16, chunk_size=8, num_mem_blocks=1, hybrid_layer_ids=[1, 3],
                layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            )
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**HIDDEN, image_size=16, patch_size=8)),
        "wav2vec2": lambda: t.Wav2Vec2ForCTC(
            t.Wav2Vec2Config(
                **SHORT, **HIDDEN, conv_dim=(16,), conv_stride=(5,), conv_kernel=(10,), num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=4,
            )
        ),
        "blip": lambda: t.BlipForConditionalGeneration(
            t.BlipConfig(
                vision_config=t.BlipVisionConfig(**HIDDEN, image_size=16, patch_size=8).to_dict(),
                text_config=t.BlipTextConfig(**SHORT, **HIDDEN, encoder_hidden_size=48, sep_token_id=257).to_dict(),
            )
        ),
        "xlm": lambda: t.XLMWithLMHeadModel(
            t.XLMConfig(n_words=tiny.VOCABULARY, emb_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a model of `_models`, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng(devices=[]), tiny.quiet():
                torch.manual_seed(0)
                _models()[name]().save_pretrained(made[name])
                tiny.byte_tokenizer().save_pretrained(made[name])
        return made[name]

    return get


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(
            (family, "spqr")
            for family in ("distilbert", "bert", "mamba", "jamba", "albert", "llava", "idefics3")
        ),
        *((family, "ecq") for family in ("distilbert", "mamba")),
        ("distilbert", "dc"),
    ],
)
def test_odd_blocks_are_calibrated(
    family: str, method: str, odd_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.spq"
    report = spqfmt.pack(odd_folder(family), out, method=method, calibration=TEXT, samples=2, seq_len=16)
    spqfmt.verify(out)
    if family == "mamba":
        # Nobody sees the input of a layer that is not called.
        assert set(report.left_dense.values()) == {"no sample reached it"} or method == "ecq"
    if family in {"llava", "idefics3"}:
        assert set(report.left_dense.values()) == {"it lies outside the blocks"} or method == "ecq"
    model, _ = load_model(out, packed=False)
    ids = torch.tensor([[5, 80, 33, 7, 91, 200]])[:, :5]
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.parametrize("method", [{"method": "spqr"}, {"method": "ecq", "bits": 8}], ids=str)
@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("t5", "needs a decoder-only model, T5ForConditionalGeneration has an encoder"),
        ("bart", "has an encoder"),
        ("whisper", "has an encoder"),
        ("zamba2", r"model\.layers\.3\.shared_transformer\.\S+ in common with another block"),
        ("vit", "runs a model on text, ViTForImageClassification takes pixel_values"),
        ("wav2vec2", "takes input_values"),
        ("blip", "takes pixel_values"),
        ("xlm", r"transformer\.ffns runs before transformer\.attentions is done"),
    ],
)
def test_what_cannot_be_run_block_by_block_is_refused_before_anything_is_quantized(
    family: str,
    words: str,
    method: dict[str, Any],
    odd_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages: list[str] = []
    monkeypatch.setattr(Silent, "stage", lambda _, text: stages.append(text))
    with pytest.raises(
        UnsupportedError, match=rf"calibration.*{words}.*take a method that needs no calibration"
    ):
        spqfmt.pack(odd_folder(family), tmp_path / "m.spq", **method, calibration=TEXT, samples=2, seq_len=16)
    assert not [stage for stage in stages if "quantizing" in stage or "inputs" in stage]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("bart", {"fit": "400KiB"}),
        ("llava", {"bits": 7}),
        *(
            (family, {"fit_memory": "3MiB"})
            for family in ("t5", "whisper", "xlm", "mamba", "llava", "albert")
        ),
    ],
    ids=str,
)
def test_a_size_is_kept_without_calibration(
    family: str, size: dict[str, Any], odd_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.spq"
    report = spqfmt.pack(odd_folder(family), out, method="ecq", no_calibration=True, **size)
    spqfmt.verify(out)
    if "fit" in size:
        assert report.file_bytes <= 400 * 1024
