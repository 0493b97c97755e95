"""What a model is loaded as where nobody says: its dtype, by what the processor is fast with, and packed or not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner

import spqfmt
from spqfmt.cli.eval import eval_
from spqfmt.cli.run import run
from spqfmt.errors import OptionError
from spqfmt.kernels import products
from spqfmt.loaders.choice import fast_dtype
from spqfmt.loaders.packed import PackedLinear
from spqfmt.loaders.plan import plan_model

TEXT = "The lifeboat was lost, and with it every hope of reaching the shore before dark. " * 3
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
MEASURE = products.product_seconds
SLOW_HALVES = {F32: 2.0, F16: 20.0, BF16: 1.0}
SLOW_BOTH = {F32: 1.0, F16: 9.0, BF16: 8.0}


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[torch.dtype, float]], None]:
    """Says how long a product takes in each dtype; of the others nobody may ask."""
    return lambda seconds: monkeypatch.setattr(products, "product_seconds", seconds.__getitem__)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> dict[str, Path]:
    """A model of float16, as floats, as codes by rows, and as codes of groups by columns."""
    folder = tmp_path_factory.mktemp("files")
    source = Path(shutil.copytree(tiny_folder("llama"), folder / "source"))
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=F16)
    model.save_pretrained(source)
    found = {"source": source}
    for name, options in {
        "floats": {"method": "lossless"},
        "codes": {"method": "rtn", "bits": 8},
        "groups": {"method": "rtn", "bits": 4, "group_size": 32},
    }.items():
        found[name] = folder / f"{name}.spq"
        spqfmt.pack(source, found[name], **options)
    return found


@pytest.mark.parametrize(
    ("seconds", "own", "is_packed", "expected"),
    [
        (SLOW_HALVES, F16, False, BF16),
        (SLOW_HALVES, F16, True, BF16),
        (SLOW_HALVES, BF16, True, BF16),
        (SLOW_BOTH, F16, False, F16),
        (SLOW_BOTH, F16, True, F32),
        (SLOW_BOTH, BF16, True, F32),
        ({F32: 1.0, F16: 1.4, BF16: 1.0}, F16, True, F16),
        ({}, BF16, False, BF16),
        ({}, F32, True, F32),
        ({}, torch.float64, True, torch.float64),
    ],
)
def test_another_dtype_only_where_the_own_one_is_slow_and_none_that_takes_more_memory(
    speeds: Callable[[dict[torch.dtype, float]], None],
    seconds: dict[torch.dtype, float],
    own: torch.dtype,
    expected: torch.dtype,
    *,
    is_packed: bool,
) -> None:
    speeds(seconds)
    assert fast_dtype(own, is_packed=is_packed) == expected


def test_a_product_is_measured_once() -> None:
    MEASURE.cache_clear()
    first = MEASURE(BF16)
    assert 0 < first < 10
    assert MEASURE(BF16) == first


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("floats", None, F16),
        ("floats", "fast", BF16),
        ("codes", None, BF16),
        ("codes", "fast", BF16),
        ("codes", "float16", F16),
        ("codes", F32, F32),
        ("source", None, F16),
        ("source", "fast", BF16),
    ],
)
def test_the_dtype_of_floats_is_the_files_and_that_of_codes_what_is_fast(
    files: dict[str, Path],
    speeds: Callable[[dict[torch.dtype, float]], None],
    name: str,
    dtype: torch.dtype | str | None,
    expected: torch.dtype,
) -> None:
    speeds(SLOW_HALVES)
    model, _ = spqfmt.load_model(files[name], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_ceiling_that_plan_names_holds_in_the_dtype_that_is_chosen(
    files: dict[str, Path], speeds: Callable[[dict[torch.dtype, float]], None]
) -> None:
    speeds(SLOW_BOTH)
    least = plan_model(files["codes"]).plan.smallest_bytes
    model, _ = spqfmt.load_model(files["codes"], memory=least)
    assert model.dtype == F16
    assert model.packed_weights.plan.held_bytes <= least


@pytest.mark.parametrize(
    ("name", "is_packed"), [("codes", True), ("groups", True), ("floats", False), ("source", False)]
)
def test_auto_keeps_codes_packed_and_nothing_else(
    files: dict[str, Path], name: str, *, is_packed: bool
) -> None:
    model, _ = spqfmt.load_model(files[name], packed="auto")
    asked_nothing, _ = spqfmt.load_model(files[name])
    ordinary, _ = spqfmt.load_model(files[name], packed=False)
    for found in (model, asked_nothing):
        assert any(isinstance(module, PackedLinear) for module in found.modules()) == is_packed
    linears = {type(module) for module in ordinary.modules() if isinstance(module, torch.nn.Linear)}
    assert linears == {torch.nn.Linear}
    if is_packed:
        assert model.packed_weights.plan.held_bytes == plan_model(files[name]).plan.held_bytes
    else:
        assert not hasattr(model, "packed_weights")
        assert type(model).__mro__[1:] == type(ordinary).__mro__[1:]


def test_auto_leaves_what_packed_layers_cannot_do_to_ordinary_ones(files: dict[str, Path]) -> None:
    model, _ = spqfmt.load_model(files["codes"], packed="auto", dtype="float64")
    assert not hasattr(model, "packed_weights")
    assert model.dtype == torch.float64
    with pytest.raises(OptionError, match="activations is for packed weights"):
        spqfmt.load_model(files["floats"], packed="auto", activations="int8")
    with pytest.raises(OptionError, match="'auto'"):
        spqfmt.load_model(files["codes"], packed="yes")  # type: ignore[arg-type]


def test_run_and_eval_say_what_they_compute_in(
    files: dict[str, Path], tmp_path: Path, speeds: Callable[[dict[torch.dtype, float]], None]
) -> None:
    speeds(SLOW_HALVES)
    (tmp_path / "text.txt").write_text(TEXT)
    for name, of_run, of_eval in (
        ("codes", "bfloat16 from packed codes", "float32 from packed codes"),
        ("floats", "bfloat16 from decoded weights", "float32 from decoded weights"),
    ):
        result = CliRunner().invoke(run, [str(files[name]), "--prompt", "Hi", "--max-new-tokens", "2"])
        assert result.stderr.splitlines()[-1].endswith(of_run), result.output
        result = CliRunner().invoke(eval_, [str(files[name]), "--text", str(tmp_path / "text.txt")])
        assert f"{of_eval})" in result.stdout, result.output


def test_eval_gives_the_same_figures_from_packed_codes(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    found = []
    for packed in ("auto", False):
        model, tokenizer = spqfmt.load_model(files["codes"], dtype=F32, packed=packed)
        ids = spqfmt.loaders.encode_text(tokenizer, TEXT)
        found.append(spqfmt.loaders.evaluate(model, ids, max_tokens=100).perplexity)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
