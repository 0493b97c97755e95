r"""vLLM's classes load what `unpack --as compressed-tensors` writes, on the CPU: all but products, which want a GPU.

Its wheel alone is 336 MB, so this runs where vLLM is installed. Beside torch 2.13 these are enough to import them:

    pip install --no-deps --target DIR vllm==0.33.0 apache-tvm-ffi==0.1.11 pyzmq msgspec cachetools cloudpickle blake3 \
        py-cpuinfo protobuf einops depyf astor dill prometheus_client orjson pybase64 cbor2 partial-json-parser lark \
        outlines_core jsonschema jsonschema-specifications referencing rpds-py sentencepiece tiktoken ijson \
        setproctitle watchfiles python-json-logger fastapi numba llvmlite aiohttp multidict yarl frozenlist propcache \
        aiosignal aiohappyeyeballs six diskcache llguidance xgrammar mistral_common pycountry pydantic-extra-types \
        opentelemetry-api opentelemetry-sdk opentelemetry-semantic-conventions importlib-metadata zipp \
        openai-harmony uvloop
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from packed_models import METHODS, values
from safetensors.torch import load_file

import spqfmt

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def vllm_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process that is all ranks, and products that decompress weights, by torch's own."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16

    with (
        pytest.MonkeyPatch.context() as patch,
        set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))),
    ):
        patch.setenv("VLLM_BATCH_INVARIANT", "1")
        patch.setattr(compressed_tensors_wNa16, "matmul_batch_invariant", torch.matmul)
        meeting = tmp_path_factory.mktemp("vllm") / "meeting"
        init_distributed_environment(
            world_size=1, rank=0, local_rank=0, distributed_init_method=f"file://{meeting}", backend="gloo"
        )
        initialize_model_parallel(1)
        yield
        destroy_model_parallel()
        destroy_distributed_environment()


@pytest.mark.usefixtures("vllm_on_cpu")
@pytest.mark.parametrize(
    "what",
    ["rtn, 8 bits a row", "rtn, 4 bits a row", "rtn, groups of 4 bits", "rtn, groups of 3 bits", "ecq"],
)
def test_layers_multiply_by_the_weights_of_the_file(
    tiny_folder: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsConfig,
    )

    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(tiny_folder("llama"), path, **METHODS[what])
    spqfmt.unpack(path, out, as_="compressed-tensors")
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    config, arrays = CompressedTensorsConfig.from_config(said), load_file(out / "model.safetensors")
    coded = [name for name in values(path) if f"{name}_packed" in arrays]
    assert len(coded) == 14
    for name, value in values(path).items():
        if name not in coded:
            continue
        rows, columns = value.shape
        module = name.removesuffix(".weight")
        layer = ReplicatedLinear(
            columns, rows, bias=False, quant_config=config, prefix=module, params_dtype=torch.float32
        )
        parameters = dict(layer.named_parameters())
        assert {f"{module}.{key}" for key in parameters} == {
            key for key in arrays if key.startswith(f"{module}.")
        }
        for key, parameter in parameters.items():
            parameter.weight_loader(parameter, arrays[f"{module}.{key}"])
        layer.quant_method.process_weights_after_loading(layer)
        found, _ = layer(torch.eye(columns))
        assert torch.equal(found.T, value.float()), name
