"""Block by block: run the samples, let the method quantize, run them again through what it made.

Memory holds one block's weights, the samples' hidden states, and one batch's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from transformers.pytorch_utils import Conv1D

from spqfmt.calibration.blocks import LINEAR, Blocks, record_calls
from spqfmt.calibration.experts import (
    ExpertRows,
    ExpertStack,
    expert_sites,
    find_part,
    find_stack,
    of_expert,
    put_part,
)
from spqfmt.calibration.model import ModelShell, load_tokenizer
from spqfmt.calibration.paired import Pair, pair_of, stages
from spqfmt.calibration.runs import BlockRun, Counter, treat_inputs
from spqfmt.calibration.sites import FoundSite, Watch
from spqfmt.calibration.text import CalibrationOptions, choose_samples, sample_start
from spqfmt.calibration.tokens import check_ids, described
from spqfmt.calibration.trials import EngineTrials
from spqfmt.errors import EncodeError
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.kernels.cuda_device import own_device, require_cuda
from spqfmt.kernels.pages import give_back
from spqfmt.models.treatments import treatment
from spqfmt.quantize.base import MethodOptions, Weight, as_matrix
from spqfmt.quantize.calibrated import (
    Accumulator,
    Block,
    CalibratedMethod,
    CorrectingMethod,
    EditingMethod,
    Layer,
    Result,
    SearchingMethod,
    Site,
    column_scale,
    simulate,
)
from spqfmt.quantize.drift import Drift

BATCH_TOKENS = 4096
"""Samples are run together up to this many tokens: enough to keep the cores busy, small beside a block."""


@dataclass(frozen=True)
class BlockResult:
    """What became of one block: results and, for tensors that were wanted and stay as they are, the reasons."""

    name: str
    results: Mapping[str, Result]
    skipped: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[tuple[str, ...], ...] = ()
    """Names of what was quantized at once, in the order of that; empty where all was."""


Finished = Callable[[str], BlockResult | None]
"""The result of a block that an earlier run has quantized, or None."""


def _no_earlier_run(block: str) -> None:
    return None


class Calibration:
    """Calibrates a source model for a method. `wanted` are the tensors that the method means to quantize."""

    def __init__(
        self,
        source: SourceModel,
        method: CalibratedMethod,
        method_options: MethodOptions,
        options: CalibrationOptions,
        wanted: Mapping[str, Weight],
        *,
        dtype: torch.dtype | None = None,
        stage: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Read the text and run the model up to its first block.

        `dtype` is what the model computes in; by default float32, or bfloat16 where the source's weights have 16 bits
        and `options.device` multiplies them natively. `stage` is told what goes on. Raises OptionError for a bad text,
        BackendError for a device that is not there, ImporterError or UnsupportedError for a model that cannot be run.
        """
        device = own_device(options.device)
        if device.type != "cpu":
            require_cuda(device)
        self._method = method
        self._method_options = method_options
        self.is_sequential = options.sequential
        """Whether blocks see what the quantized ones before them give."""
        self._wanted = wanted
        self.stage = stage
        if dtype is None:
            # What is searched for (jsq's clamps) is less than a step of bfloat16.
            searches = isinstance(method, SearchingMethod) and bool(method_options.search_steps)
            dtype = torch.float32 if searches else _compute_dtype(wanted, device)
        self.shell = ModelShell(source, dtype=dtype, device=device)
        tokenizer = load_tokenizer(source)
        samples = choose_samples(tokenizer, options, self.shell.longest)
        check_ids(self.shell.model, tokenizer, samples)
        self.begins_with = described(tokenizer, sample_start(tokenizer, options))
        """The tokens that every sample begins with, by name."""
        batches = list(torch.split(samples, max(1, BATCH_TOKENS // samples.shape[1])))
        stage("embedding the samples")
        self.samples = samples
        """Token ids, int64 [samples, tokens]."""
        self.sites: dict[str, tuple[str, ...]] = {}
        """The first tensor that reads each input, by block; known once the block was run."""
        self._found: dict[str, list[FoundSite]] = {}
        self._blocks = record_calls(self.shell, batches)
        if options.sequential and isinstance(method, CorrectingMethod) and method.corrects:
            self._blocks = replace(self._blocks, unquantized=list(self._blocks.hidden))
        self.block_names = self._blocks.names
        self.block_of = {
            tensor.name: name for name in self.block_names for tensor in self.shell.tensors_of(name)
        }

    def search(self) -> MethodOptions:
        """The options to quantize with: what was given, or what a method that searches finds on the model."""
        options = self._method_options
        if isinstance(self._method, SearchingMethod):
            options = self._method.search(EngineTrials(self), options)
            # What a few samples have shown of the structure may be less than what all of them do (experts).
            self._found.clear()
            self.stage("search is done")
        return options

    @property
    def blocks(self) -> Blocks:
        """The blocks; their hidden states are those before the block that is quantized next."""
        return self._blocks

    def run(
        self,
        finished: Finished = _no_earlier_run,
        options: MethodOptions | None = None,
        *,
        to_the_end: bool = False,
    ) -> Iterator[BlockResult]:
        """Give the results of the blocks, in order.

        Where `finished` knows the results of a block, it is only run, not quantized again. `options` is what `search`
        has found; without it, the search comes first. `to_the_end`: the last block is run too, for what stands behind.
        """
        options = self.search() if options is None else options
        for number in range(len(self.block_names)):
            advance = to_the_end or number + 1 < len(self.block_names)
            yield self.step(self._blocks, number, options, finished, advance=advance)

    def step(
        self,
        blocks: Blocks,
        number: int,
        options: MethodOptions,
        finished: Finished = _no_earlier_run,
        *,
        advance: bool = True,
    ) -> BlockResult:
        """Quantize block `number`, whose inputs are the hidden states of `blocks`; these are then the outputs."""
        name = self.block_names[number]
        tensors = self.shell.tensors_of(name)
        block = self.shell.model.get_submodule(name)
        self.shell.fill(tensors)
        with torch.no_grad():
            parts = self._find_parts(name, block, tensors)
            run = BlockRun(
                name=name,
                block=block,
                calls=blocks.calls[number],
                hidden=blocks.hidden,
                stage=self.stage,
                parts=parts,
            )
            wanted = [self.shell.targets[t.name][0] for t in tensors if t.name in self._wanted]
            pair = pair_of(run, blocks, number, [target.removeprefix(f"{name}.") for target in wanted])
            result = finished(name) or self._quantize(run, tensors, options, pair)
            with ExitStack() as hooks:
                if advance and self.is_sequential:
                    self._put_in(run, result.results, hooks)
                if advance:
                    run.advance()
            if advance and pair is not None:
                pair.advance()
        self.shell.empty(block)
        # Of SmolLM2 half as much again would stay with the process, in pieces between what lives on.
        give_back()
        return result

    def pass_through(self, blocks: Blocks, number: int) -> None:
        """Run block `number` as the source has it: the hidden states of `blocks` are then its outputs."""
        self.step(blocks, number, self._method_options, lambda name: BlockResult(name, {}))

    def _quantize(
        self, run: BlockRun, tensors: list[SourceTensor], options: MethodOptions, pair: Pair | None
    ) -> BlockResult:
        layers, skipped = self._layers(run, tensors)
        found = self._find_sites(
            run, [name for name, (layer, _) in layers.items() if layer.weight.name not in run.parts]
        )
        with ExitStack() as hooks:
            self.sites[run.name] = tuple(layers[site.modules[0]][0].weight.name for site in found)
            if isinstance(self._method, EditingMethod):
                for site in found:
                    names = [layers[module][0].weight.name for module in site.modules]
                    treat = treatment(self._method.edit(names, options), None)
                    if treat is not None:
                        treat_inputs(run.block, site.modules, treat, hooks)
            found = [*found, *expert_sites(run.parts.values())]
            work = _Work(run=run, tensors=tensors, options=options, layers=layers, skipped=skipped, pair=pair)
            if pair is None:
                return BlockResult(run.name, self._quantize_sites(work, found), skipped)
            results: dict[str, Result] = {}
            made_by_stage: list[tuple[str, ...]] = []
            for stage in stages(found):
                made = self._quantize_sites(work, stage)
                self._put_in(run, made, hooks)
                results |= made
                made_by_stage.append(tuple(made))
            return BlockResult(run.name, results, skipped, tuple(made_by_stage))

    def _find_parts(
        self, name: str, block: torch.nn.Module, tensors: list[SourceTensor]
    ) -> dict[str, ExpertRows | ExpertStack]:
        """Where the wanted tensors of merged experts lie, by tensor name; the block holds the source's weights."""
        rows: dict[str, ExpertRows] = {}
        stacks: dict[str, ExpertStack] = {}
        for tensor in tensors:
            target, alone = self.shell.targets[tensor.name]
            if tensor.name not in self._wanted:
                continue
            parameter = target.removeprefix(f"{name}.")
            if alone:
                stack = find_stack(block, parameter, tensor.shape, transposed=tensor.transposed)
                stacks |= {} if stack is None else {tensor.name: stack}
            else:
                part = find_part(block, parameter, tensor.load(), set(rows.values()))
                rows |= {} if part is None else {tensor.name: part}
        return {**rows, **stacks}

    def _find_sites(self, run: BlockRun, modules: list[str]) -> list[FoundSite]:
        """What reads the same input; looked at once while the block is tried again and again."""
        if run.name not in self._found:
            watch = Watch(run.block)
            with watch.installed():
                run.batch(0)
            self._found[run.name] = watch.sites(modules, run.batch_tokens)
        return self._found[run.name]

    def _quantize_sites(self, work: _Work, found: list[FoundSite]) -> dict[str, Result]:
        run, layers = work.run, work.layers
        accumulators = [self._method.accumulator(layers[site.modules[0]][1], work.options) for site in found]
        counters = [Counter(accumulator) for accumulator in accumulators]
        drifts: list[Drift | None] = [None] * len(found)
        if work.pair is None:
            run.gather({site.input_name: counter.add for site, counter in zip(found, counters, strict=True)})
        else:
            drifts = work.pair.gather(found, counters)
        sites = []
        for site, counter, drift in zip(found, counters, drifts, strict=True):
            if counter.n_tokens or site.merged:
                made = _site(run, site, [layers[m][0] for m in site.modules], counter.accumulator)
                sites.append(replace(made, drift=drift))
            else:
                work.skipped.update({layers[m][0].weight.name: "no sample reached it" for m in site.modules})
        others = {
            self.shell.targets[t.name][0].removeprefix(f"{run.name}."): (Weight.of(t), t.load)
            for t in work.tensors
            if self.shell.targets[t.name][1] and t.name not in {x.weight.name for x, _ in layers.values()}
        }
        self.stage(f"{run.name}: quantizing")
        block = Block(
            name=run.name,
            sites=tuple(sites),
            module=run.block,
            tensors=others,
            run_first=lambda: run.batch(0),
        )
        results = dict(self._method.quantize_block(block, work.options))
        for site, counter in zip(found, counters, strict=True):
            for tensor_name in (layers[module][0].weight.name for module in site.modules if site.merged):
                if tensor_name in results:
                    results[tensor_name] = of_expert(tensor_name, results[tensor_name], counter.n_tokens)
        done = {layer.weight.name for site in sites for layer in site.layers}
        work.skipped.update({name: "the method left it out" for name in done if name not in results})
        return results

    def _layers(
        self, run: BlockRun, tensors: list[SourceTensor]
    ) -> tuple[dict[str, tuple[Layer, int]], dict[str, str]]:
        """Layers by module name with their number of input columns, and the wanted tensors that are no layer."""
        layers: dict[str, tuple[Layer, int]] = {}
        skipped: dict[str, str] = {}
        for tensor in tensors:
            weight = self._wanted.get(tensor.name)
            if weight is None:
                continue
            target, alone = self.shell.targets[tensor.name]
            if (part := run.parts.get(tensor.name)) is not None:
                layer = Layer(weight, part.name, _matrix_reader(weight, tensor))
                layers[part.name] = layer, weight.shape[-2 if weight.transposed else -1]
                continue
            module_name = target.removeprefix(f"{run.name}.").removesuffix(".weight")
            module = run.block.get_submodule(module_name) if alone and target.endswith(".weight") else None
            if not alone:
                skipped[tensor.name] = "in this model it is merged with others in a way that is not known"
                continue
            if not isinstance(module, LINEAR):
                skipped[tensor.name] = "in this model it is no linear layer, whose inputs are not seen"
                continue
            assert isinstance(module.weight, torch.Tensor)
            columns = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            if weight.transposed != isinstance(module, Conv1D):
                raise EncodeError(
                    f"tensor {tensor.name!r}: its module and its source disagree on what its rows are"
                )
            layer = Layer(weight, module_name, _matrix_reader(weight, tensor))
            layers[module_name] = layer, columns
        return layers, skipped

    def _put_in(self, run: BlockRun, results: Mapping[str, Result], hooks: ExitStack) -> None:
        """Let the block compute with what the method made."""
        block = run.block
        alike: dict[tuple[int, int, int], tuple[Result, list[str]]] = {}
        for tensor_name, result in results.items():
            if tensor_name in run.parts:
                put_part(block, run.parts[tensor_name], simulate(result.quantized))
                continue
            target = self.shell.targets[tensor_name][0].removeprefix(f"{run.name}.")
            module_name, _, parameter = target.rpartition(".")
            module = block.get_submodule(module_name)
            value = simulate(result.quantized)
            value = value.t() if isinstance(module, Conv1D) else value
            old = getattr(module, parameter)
            old.copy_(value.reshape(old.shape))
            # The layers of one site have their records and their scale in common, not only equal ones.
            scale = column_scale(result.quantized)
            key = id(result.activation_clamp), id(result.activation_quantization), id(scale)
            alike.setdefault(key, (result, []))[1].append(module_name)
        for result, modules in alike.values():
            scale = column_scale(result.quantized)
            values = None if scale is None else torch.from_numpy(scale.to_float32())
            treat = treatment(result.activation_clamp, result.activation_quantization, values)
            if treat is not None:
                treat_inputs(block, tuple(modules), treat, hooks)


@dataclass(frozen=True)
class _Work:
    """A block that is quantized: `layers` by module name with their number of input columns; `skipped` grows."""

    run: BlockRun
    tensors: list[SourceTensor]
    options: MethodOptions
    layers: dict[str, tuple[Layer, int]]
    skipped: dict[str, str]
    pair: Pair | None


def _site(run: BlockRun, site: FoundSite, layers: list[Layer], statistics: Accumulator) -> Site:
    return Site(
        layers=tuple(layers),
        statistics=statistics,
        inputs=lambda: run.inputs(site.input_name),
        producer=site.producer,
        shared=site.shared or bool(site.merged),
    )


def _matrix_reader(weight: Weight, tensor: SourceTensor) -> Callable[[], torch.Tensor]:
    return lambda: as_matrix(weight, tensor.load()).clone()


def _compute_dtype(wanted: Mapping[str, Weight], device: torch.device) -> torch.dtype:
    small = bool(wanted) and all(weight.dtype in {"f16", "bf16"} for weight in wanted.values())
    if not small:
        return torch.float32
    if device.type != "cpu":
        return torch.bfloat16
    # Elsewhere bfloat16 is emulated, and slower than float32.
    capability = torch.cpu.get_capabilities()
    native = capability.get("avx512_bf16") or capability.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32
