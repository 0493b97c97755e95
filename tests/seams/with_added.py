"""Packs a tiny model with modules that lie beside the package's own, and goes through all that a user does with it.

python with_added.py FOLDER codec|scheme|plain|source

Registries are filled when they are imported: so this is a process of its own, and `add` comes before all else.
"""

import json
import sys
from pathlib import Path
from typing import Any

from spqfmt import registry

HERE = Path(__file__).resolve().parent


def add() -> None:
    """Let the registries find the modules in `added`, as if they lay in the folders of the package."""
    original = registry.find

    def find(package: Any, attribute: str) -> Any:
        folder = HERE.joinpath("added", *package.__name__.split(".")[1:])
        if folder.is_dir() and str(folder) not in package.__path__:
            package.__path__.append(str(folder))
        return original(package, attribute)

    registry.find = find


add()
sys.path.insert(0, str(HERE.parents[1] / "tools" / "models"))

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

import spqfmt  # noqa: E402
from spqfmt.importers.registry import open_source  # noqa: E402
from spqfmt.loaders.device.simulated import SimulatedDevice  # noqa: E402
from spqfmt.loaders.model import load_onto  # noqa: E402
from spqfmt.loaders.packed.options import packing_options  # noqa: E402
from spqfmt.loaders.plan import plan_for_device, plan_model  # noqa: E402
from spqfmt.quantize.base import MethodOptions, Weight  # noqa: E402
from spqfmt.quantize.registry import METHODS  # noqa: E402
from spqfmt.rewriting.repack import repack  # noqa: E402

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)]])


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(INPUTS).logits.float()


def expected_tensors(folder: Path, method: str) -> dict[str, torch.Tensor]:
    """What a reader must give: each tensor as the method has it, rounded once to its dtype."""
    expected, options = {}, METHODS[method].check(MethodOptions())
    for tensor in open_source(folder).tensors:
        value, weight = tensor.load(), Weight.of(tensor)
        if METHODS[method].describe(weight, options):
            made = METHODS[method].quantize(weight, value, options).dequantize()
            value = torch.from_numpy(made).to(value.dtype)
        expected[tensor.name] = value
    return expected


def check(path: Path, expected: dict[str, torch.Tensor]) -> None:
    spqfmt.verify(path)
    with spqfmt.open(path) as file:
        for name, value in expected.items():
            assert torch.equal(file.read(name), value), name
            if value.dim() == 2:
                assert torch.equal(file.read(name, slice(3, 20)), value[3:20]), name


def run(folder: Path, method: str, codec: str) -> dict[str, Any]:
    tiny.build("llama", folder, dtype=torch.bfloat16)
    out = folder / "m.spq"
    report = spqfmt.pack(folder, out, method=method, codec=codec)
    assert not report.notes, report.notes
    expected = expected_tensors(folder, method)
    check(out, expected)
    found = spqfmt.inspect(out)
    smallest = plan_model(out).plan.smallest_bytes

    decoded, _ = spqfmt.load_model(out, packed=False)
    for name, parameter in decoded.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    reference = logits(decoded)
    size = float(reference.std())
    for memory in (None, smallest):
        packed, _ = spqfmt.load_model(out, packed=memory is None or None, memory=memory)
        # Plans follow rates that are measured each time: what is compared is the plan that was loaded by.
        planned = packed.packed_weights.plan.held_bytes
        assert packed.packed_weights.held_bytes <= planned <= (memory or planned)
        assert torch.allclose(logits(packed), reference, atol=0.1 * size)
        n_packed = sum(hasattr(module, "record") for module in packed.modules())
        packed.packed_weights.close()
    least = plan_for_device(out).plan
    device = SimulatedDevice(capacity_bytes=least.smallest_bytes)
    wanted = packing_options(out, "cuda", least.smallest_bytes, None, None, None)
    there, _ = load_onto(out, device.torch_device, device, wanted)
    assert torch.allclose(logits(there), reference, atol=0.1 * size)
    n_on_device = sum(hasattr(module, "record") for module in there.modules())
    there.packed_weights.close()

    again = folder / "again.spq"
    repack(out, again, codec="zstd")
    check(again, expected)
    repack(again, again, codec=codec, force=True)
    check(again, expected)
    assert {s.codec for t in spqfmt.inspect(again).tensors for s in t.streams} == {
        s.codec for t in found.tensors for s in t.streams
    }
    repack(out, again, partial="speed", force=True)
    check(again, expected)
    spqfmt.unpack(out, folder / "unpacked")
    return {
        "codecs": sorted({s.codec for t in found.tensors for s in t.streams}),
        "schemes": sorted({t.scheme for t in found.tensors}),
        "packed": n_packed,
        "on device": n_on_device,
    }


def run_source(folder: Path) -> dict[str, Any]:
    """A source that stores codes: kept they restore its very values, and other methods say what they do."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for name in ("layers.0.up", "layers.0.down"):
        arrays[name] = rng.integers(-128, 128, (40, 70)).astype(np.int8)
        arrays[f"{name}.scales"] = rng.uniform(0.01, 0.1, 40).astype(np.float16)
    source = folder / "codes.npz"
    np.savez(source, **arrays)
    expected = {tensor.name: tensor.load() for tensor in open_source(source).tensors}
    told = {"keep": "these are kept", "lossless": "the values that they stand for are stored"}
    for method, becomes in told.items():
        dequantize = method != "keep"
        [note] = spqfmt.pack(source, folder / "m.spq", method=method, dequantize=dequantize, force=True).notes
        assert note == f"2 tensors are codes in the source (int8 by rows): {becomes}"
        check(folder / "m.spq", expected)
        found = spqfmt.inspect(folder / "m.spq")
        assert {t.scheme for t in found.tensors} == {"uniform" if method == "keep" else "dense"}
    return {"notes": spqfmt.pack(source, folder / "m.spq", method="rtn", dequantize=True, force=True).notes}


CASES = {"codec": ("rtn", "deflate"), "scheme": ("halving", "auto"), "plain": ("plain_halving", "auto")}

if __name__ == "__main__":
    where, case = Path(sys.argv[1]), sys.argv[2]
    json.dump(run_source(where) if case == "source" else run(where, *CASES[case]), sys.stdout)
