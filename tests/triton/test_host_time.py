"""How many launches a token of a 7B takes, through Triton's launcher with a driver that does nothing; no times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels that are interpreted have no launcher", allow_module_level=True)

TOOL = Path(__file__).resolve().parents[2] / "tools" / "gpu" / "host_time.py"
N_MATRICES = 32 * 7 + 1
MOST = {"decoded": 250, "compressed": 600}


@pytest.fixture(scope="module")
def costs():
    """One token of each case, in a process whose driver is not the real one."""
    done = subprocess.run(
        [sys.executable, TOOL, "--json"], check=True, capture_output=True, text=True, timeout=300
    )
    return {cost["case"]: cost for cost in json.loads(done.stdout)}


def test_a_token_of_decoded_codes_is_one_launch_a_matrix_and_one_for_its_row(costs):
    for case in ("7B int8, decoded", "7B int4, decoded"):
        cost = costs[case]
        assert cost["launches"] == N_MATRICES + 1 <= MOST["decoded"]
        assert cost["torch_launches"] == cost["copies"] == cost["host_waits"] == cost["events"] == 0


def test_a_token_of_compressed_codes_decodes_each_group_by_two_launches(costs):
    cost = costs["7B int8, compressed"]
    n_groups = cost["groups"]
    # A group is released, awaited twice, recorded; of blocks of 64 KiB hardly a group is multiplied straight.
    assert N_MATRICES + n_groups <= cost["launches"] <= N_MATRICES + 3 * n_groups <= MOST["compressed"]
    assert 0 < cost["events"] <= 4 * n_groups
    assert cost["torch_launches"] == cost["copies"] == cost["host_waits"] == 0


def test_a_token_straight_from_compressed_codes_is_two_launches_a_matrix(costs):
    for case in ("7B int8, fused", "7B bf16, fused"):
        cost = costs[case]
        # The last matrix is larger than a group may be; a row is looked up here or on the host, and no queue waits.
        assert 2 * N_MATRICES <= cost["launches"] <= 2 * N_MATRICES + 4 <= MOST["compressed"]
        assert cost["torch_launches"] <= 1
        assert cost["events"] == cost["copies"] == cost["host_waits"] == 0


def test_lossless_weights_are_put_together_by_what_decodes_them(costs):
    """Two launches a group, and torch's products: none for planes, whose chunks are thousands."""
    cost = costs["7B bf16, compressed"]
    n_groups = cost["groups"]
    assert cost["launches"] == 2 * n_groups
    assert N_MATRICES <= cost["torch_launches"] <= N_MATRICES + n_groups
    assert cost["launches"] + cost["torch_launches"] <= MOST["compressed"]
    assert cost["events"] == 4 * n_groups
    assert cost["copies"] == cost["host_waits"] == 0
