"""The calibrated half of a pack: results of a method tensor by tensor, in the order in which the file wants them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from spqfmt.calibration.engine import BlockResult, Calibration
from spqfmt.calibration.relay import Relay
from spqfmt.calibration.text import CalibrationOptions, text_digest
from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.container.encode import encode_chunk
from spqfmt.errors import EndedError, OptionError
from spqfmt.importers.base import SourceModel
from spqfmt.kernels import native
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.fit.bounds import is_spent
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.packing.resume import ResumeFolder, check_alike
from spqfmt.processes import Processes
from spqfmt.quantize.base import GradedMethod, MethodOptions
from spqfmt.quantize.calibrated import Result, ResumedMethod, is_calibrated
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, Quantized, StreamData
from spqfmt.version import __version__


class CalibratedResults:
    """Runs the calibration just far enough for the tensor that is asked for."""

    def __init__(
        self,
        model: SourceModel,
        plan: PackPlan,
        options: PackOptions,
        folder: ResumeFolder,
        *,
        stage: Callable[[str], None],
    ) -> None:
        """Read the text and build the model's shell. Raises what Calibration and `folder` raise."""
        assert is_calibrated(options.method)
        self._method = options.method.name
        self._blind = isinstance(options.method, GradedMethod)
        """Whether the method can do without calibration, layer by layer."""
        self._resumed = options.method if isinstance(options.method, ResumedMethod) else None
        self._planned = {tensor.source.name: tensor for tensor in plan.tensors}
        wanted = {
            tensor.source.name: tensor.weight
            for tensor in plan.tensors
            if tensor.treatment and tensor.source.tied_to is None and tensor.source.role == "linear"
        }
        self._wanted = frozenset(wanted)
        self._spent = {
            t.source.name for t in plan.tensors if options.fit is not None and is_spent(t, options)
        }
        """Tensors that take of one size, in the order of the plan, whoever quantizes them."""
        self._engine = Calibration(
            source=model,
            method=options.method,
            method_options=options.method_options,
            options=options.calibration,
            wanted=wanted,
            stage=stage,
        )
        folder.n_wanted = len(self._engine.block_names)
        self._identity = identity_of(model, options, str(self._engine.shell.dtype))
        folder.begin(self._identity)
        self._folder = folder
        self._stage = stage
        self._numbers = {name: number for number, name in enumerate(self._engine.block_names)}
        self._options = options.method_options
        self._quantize_alone = options.method.quantize
        self._blocks = self._run()
        self._loaded: set[str] = set()
        self._results: dict[str, Result] = {}
        self._done: set[str] = set()
        self.skipped: dict[str, str] = {
            name: "it lies outside the blocks" for name in wanted if name not in self._engine.block_of
        }
        self.notes: list[str] = []
        self.formula_bits = 0.0
        self.formula_weights = 0

    def quantize_together(self, processes: Processes) -> None:
        """Have each block quantized by one of some processes, and kept in the folder that all have.

        The first process goes on from there as a pack does that takes up an interrupted one.
        """
        check_alike(self._identity, processes)
        found = processes.exchange(self._search().editing if processes.number == 0 else None)[0]
        before, behind = self._between_blocks()
        if processes.number == 0:
            # What of one size is taken before the first block; it is taken once, and kept for the file.
            self._results |= {name: Result(self._spend(name)) for name in before}
        counted = None if self._resumed is None else self._resumed.counted
        relay = Relay(self._engine, replace(self._options, editing=found), processes, self._resumed)
        for block in relay.run(self._load, self._is_saved):
            if block.name not in self._loaded:
                self._save(block)
            for name in behind[block.name]:
                if name not in block.results:
                    self._spend(name)
        processes.exchange(None)
        if self._resumed is not None:
            self._resumed.take_over(counted)
        self._blocks = self._left_there()

    def _between_blocks(self) -> tuple[list[str], Mapping[str, list[str]]]:
        """Tensors of the size that is spent before the first block, and from each on until the next one.

        Behind the last block nobody waits for them: they are the file's alone.
        """
        names = self._engine.block_names
        before: list[str] = []
        behind: dict[str, list[str]] = {name: [] for name in names}
        at = -1
        for name in self._planned:
            block = self._engine.block_of.get(name)
            at = max(at, -1 if block is None else self._numbers[block])
            if name in self._spent and at + 1 < len(names):
                (before if at < 0 else behind[names[at]]).append(name)
        return before, behind

    def _spend(self, name: str) -> Quantized:
        """Quantize a tensor that the calibration leaves out."""
        planned = self._planned[name]
        return self._quantize_alone(planned.weight, planned.source.load(), self._options)

    def _is_saved(self, name: str) -> bool:
        return self._folder.load(self._numbers[name]) is not None

    def _left_there(self) -> Iterator[BlockResult]:
        for name in self._engine.block_names:
            block = self._load(name)
            if block is None:
                raise EndedError(f"{self._folder.path}: {name} is not there any more, or damaged")
            yield block

    def _search(self) -> MethodOptions:
        """What is searched for, once for all runs."""
        editing = self._folder.load_search()
        found = self._engine.search() if editing is None else replace(self._options, editing=editing)
        if found is not self._options and found.editing is not None:
            self._folder.save_search(found.editing)
        return found

    def _run(self) -> Iterator[BlockResult]:
        yield from self._engine.run(self._load, self._search())

    def take(self, planned: PlannedTensor) -> Result | None:
        """What the method made of a tensor, once; None for one that it did not touch."""
        block = self._engine.block_of.get(planned.source.name)
        while block is not None and block not in self._done:
            self._add(next(self._blocks))
        return self._results.pop(planned.source.name, None)

    def wants(self, planned: PlannedTensor) -> bool:
        """Whether the tensor is the calibration's to quantize, rather than the method's alone (embedding, head)."""
        name = planned.source.name
        return name in self._wanted and not (self._blind and name in self.skipped)

    def left_dense(self) -> dict[str, str]:
        """Tensors that are stored as they are although the method was to quantize them, with the reason."""
        return {} if self._blind else self.skipped

    def all_notes(self) -> tuple[str, ...]:
        """What the samples begin with, and fallbacks, each one line."""
        blind = [f"{name}: {why}; quantized without calibration" for name, why in self.skipped.items()]
        begin = self._engine.begins_with
        bos = (
            [f"every calibration sample begins with {begin}, as the tokenizer begins a text"] if begin else []
        )
        return (*bos, *self.notes, *(blind if self._blind else ()))

    def _add(self, block: BlockResult) -> None:
        self._done.add(block.name)
        self._results |= block.results
        self.skipped |= block.skipped
        for name, result in block.results.items():
            self.notes += result.notes
            if result.formula_bits is not None:
                self.formula_bits += result.formula_bits
                self.formula_weights += self._planned[name].n_weights
        if block.name not in self._loaded:
            self._save(block)

    def _save(self, block: BlockResult) -> None:
        # In the order of the plan: a stream that two tensors share must come with the first of them.
        names = [name for name in self._planned if name in block.results]

        def tensors() -> Iterator[tuple[TensorRecord, Encoded]]:
            for name in names:
                result = block.results[name]
                encoded = self._planned[name].encode(result.quantized)
                yield self._planned[name].record(encoded, self._method, result), encoded

        metadata = {
            "skipped": json.dumps(dict(block.skipped)),
            "notes": json.dumps({name: block.results[name].notes for name in names}),
            "formula_bits": json.dumps({name: block.results[name].formula_bits for name in names}),
            "stages": json.dumps(block.stages),
            "source": self._source_digest(block.name),
        }
        self._folder.save(self._numbers[block.name], block.name, tensors(), encode=_encode, metadata=metadata)

    def _load(self, name: str) -> BlockResult | None:
        saved = self._folder.load(self._numbers[name])
        if saved is None:
            return None
        if saved.metadata["source"] != self._source_digest(name):
            raise OptionError(
                f"{self._folder.path}: the source's weights in {name} are not those of the interrupted pack; "
                "--force starts over"
            )
        notes, formula = (json.loads(saved.metadata[key]) for key in ("notes", "formula_bits"))
        self._stage(f"{name}: taken up")
        self._loaded.add(name)
        results = {
            tensor: Result(
                quantized=stored,
                activation_clamp=saved.records[tensor].activation_clamp,
                activation_quantization=saved.records[tensor].activation_quantization,
                formula_bits=formula[tensor],
                notes=tuple(notes[tensor]),
            )
            for tensor, stored in saved.tensors.items()
        }
        if self._resumed is not None:
            stages = json.loads(saved.metadata["stages"]) or [list(saved.tensors)]
            for names in stages:
                self._resumed.take_up({n: self._planned[n].encode(saved.tensors[n]) for n in names})
        return BlockResult(name, results, json.loads(saved.metadata["skipped"]))

    def _source_digest(self, block: str) -> str:
        checksum = 0
        for name, planned in self._planned.items():
            if self._engine.block_of.get(name) == block:
                checksum = native.crc32(to_numpy(planned.source.load()).reshape(-1).view("u1"), checksum)
        return f"{checksum:08x}"

    def metadata(self, calibration: CalibrationOptions) -> dict[str, str]:
        """What the file says of its calibration; the same for the same input and options."""
        described = {
            "text": text_digest(calibration),
            "samples": calibration.samples,
            "seq_len": calibration.seq_len,
            "seed": calibration.seed,
            "sequential": calibration.sequential,
        }
        if self._engine.begins_with:
            described["begins_with"] = self._engine.begins_with
        more = {"calibration": json.dumps(described, sort_keys=True)}
        if self.formula_weights:
            more["formula_bits_per_weight"] = f"{self.formula_bits / self.formula_weights:.4f}"
        return more


def _encode(stream: StreamData) -> Iterable[EncodedChunk]:
    return (encode_chunk(part, stream.dtype, "auto") for part in stream.chunks())


def identity_of(model: SourceModel, options: PackOptions, dtype: str) -> Mapping[str, object]:
    """What two runs must share to give the same file. `dtype`: what the model computes in, once that is known."""
    digest = hashlib.sha256()
    for tensor in model.tensors:
        digest.update(repr((tensor.name, tensor.shape, tensor.dtype, tensor.tied_to)).encode())
    for asset in model.assets:
        digest.update(asset.name.encode() + hashlib.sha256(asset.data).digest())
    calibration = options.calibration
    return {
        "writer": f"spqfmt {__version__}",
        "source": digest.hexdigest(),
        "method": options.method.name,
        "method_options": {k: v for k, v in vars(options.method_options).items() if v is not None},
        "calibration_text": text_digest(calibration),
        "samples": calibration.samples,
        "seq_len": calibration.seq_len,
        "seed": calibration.seed,
        "sequential": calibration.sequential,
        "no_bos": calibration.no_bos,
        "device": calibration.device,
        "compute_dtype": dtype,
        "fit": repr(options.fit),
    }
