"""Processes that share a model: same tokens, each reads its part, and all end together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import spqfmt
from spqfmt.errors import OptionError

SCRIPT = Path(__file__).with_name("ranks.py")
SAME = (
    "lossless", "rtn8 packed", "shared8", "shared8 packed", "shared8 at its smallest", "from_pretrained",
    "from_pretrained packed", "mixtral packed", "int8 inputs", "jsq", "jsq packed",
)  # fmt: skip


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By the number of ranks, what each has found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(SCRIPT), str(folder)]
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, list[Any]] = json.loads((folder / "found.json").read_text())
    return told


@pytest.mark.parametrize("name", SAME)
def test_each_rank_gives_the_tokens_of_one_process(found: dict[str, list[Any]], name: str) -> None:
    [alone] = found["1"]
    told = [rank[name] for size in ("2", "4") for rank in found[size] if name in rank]
    assert len(told) >= 2
    for rank in told:
        assert rank.get("tokens") == alone[name]["tokens"], rank
        assert rank["numbers"] == alone[name]["numbers"]
        # Experts are decoded where several ranks share them.
        apart = 2 if name.startswith("mixtral") else 0
        # Of layers with scales of inputs that are rounded likewise.
        apart += sum("scales of columns" in why for why in rank["whole"].values())
        assert rank.get("modules", 0) == alone[name].get("modules", 0) - apart


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["lossless", "shared8 packed"])
def test_stored_for_ranks_each_reads_its_part(found: dict[str, list[Any]], name: str, size: int) -> None:
    for rank in found[str(size)]:
        told = rank[name]
        # Norms, biases and scales are small, and all have them.
        assert told["of"] / size <= told["read"] <= told["of"] / size + 0.12 * told["of"]
        assert not [why for why in told["whole"].values() if "stored" in why or "end" in why]


def test_packed_weights_are_held_and_read_in_parts(found: dict[str, list[Any]]) -> None:
    [alone] = found["1"]
    for size in (2, 4):
        parts = [rank["shared8 packed"]["parts"] for rank in found[str(size)]]
        assert max(parts) <= 1.05 * alone["shared8 packed"]["parts"] / size
        # Buffers are as large as the largest part.
        held = [rank["shared8 packed"]["held"] for rank in found[str(size)]]
        assert max(held) <= alone["shared8 packed"]["held"] * (1 / size + 0.3)
    for rank in found["2"]:
        told = rank["shared8 at its smallest"]
        assert told["held"] <= told["ceiling"] < alone["shared8 at its smallest"]["ceiling"]


def test_stored_otherwise_a_rank_says_what_it_reads_whole(found: dict[str, list[Any]]) -> None:
    for rank in found["2"]:
        whole = rank["rtn8 packed"]["whole"]
        assert whole["model.layers.0.mlp.down_proj.weight"] == "it is stored by rows"
        assert "model.norm.weight" not in whole
        assert rank["rtn8 packed"]["read"] > 0.9 * rank["rtn8 packed"]["of"]
        assert set(rank["mixtral packed"]["whole"].values()) >= {"experts, of several ranks"}


def test_gradients_reach_the_inputs(found: dict[str, list[Any]]) -> None:
    [alone] = found["1"]
    for rank in found["2"]:
        assert "gradient" in rank["gradients"], rank["gradients"]
        expected = torch.tensor(alone["gradients"]["gradient"])
        assert torch.allclose(torch.tensor(rank["gradients"]["gradient"]), expected, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_shared_is_refused_by_all_in_one_line(found: dict[str, list[Any]]) -> None:
    for rank in found["2"]:
        told = rank["heads"]
        assert told["error"] == "UnsupportedError"
        assert told["words"].endswith(
            "odd.spq: model.layers.0.self_attn.k_proj: 1 head cannot be shared out among 2 ranks"
        )
        assert "no plan for the ranks of a GPT2LMHeadModel" in rank["no plan"]["words"]
        assert "\n" not in rank["no plan"]["words"]


def test_damage_that_one_rank_reads_ends_all(found: dict[str, list[Any]]) -> None:
    """The last chunk of a layer that is cut along its inputs is the last rank's."""
    first, second = (rank["damaged"] for rank in found["2"])
    assert second["error"] == "ChecksumError"
    assert first["error"].endswith("Error")
    assert first["words"] == f"{second['words']} (rank 1)"
    assert "model.layers.1.mlp.down_proj.weight" in first["words"]


def test_where_a_rank_has_died_nobody_waits(found: dict[str, list[Any]]) -> None:
    first, second = found["2"]
    assert "dies" not in second
    assert "another rank has ended" in first["dies"]["words"]
    assert "\n" not in first["dies"]["words"]


def test_a_plan_of_ones_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="tp_plan is 'auto'"):
        spqfmt.load_model(tmp_path / "m.spq", tp_plan="colwise")
