"""What a pack says when its method has quantized little of the model, or nothing."""

from collections.abc import Collection, Iterable, Iterator

from spqfmt.errors import ImporterError
from spqfmt.importers._quantized import quantized_arrays, raw_codes
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.packing.target import KEEPING
from spqfmt.quantize.base import KeepingMethod, Method
from spqfmt.records import FLOATS
from spqfmt.schemes.named import is_scheme_name
from spqfmt.schemes.registry import scheme_of

_WORTH_SAYING = 0.5
"""The share of a model's weights that is worth a note when it was kept."""


def array_notes(model: SourceModel, plan: PackPlan, method: Method) -> Iterator[str]:
    """What a pack says of the arrays of a quantizer that are stored as they are."""
    if method.name == KEEPING and model.quantized and _is_refused(model):
        yield (
            f"quantized already ({model.quantized}): no model is loaded from its arrays; {_what_keep_does(model)}"
        )
    if isinstance(method, KeepingMethod):
        left = _unknown(planned.source for planned in plan.tensors)
        if left:
            yield f"arrays of a quantizer that keep does not know are stored as they are: {left}; no model is loaded"


def _is_refused(model: SourceModel) -> bool:
    """Whether a loader will refuse arrays that are stored as they are: by themselves, or since the config is believed.

    Weights of floats are none, whatever the config or a file beside them says.
    """
    facts = [(tensor.name, tensor.shape, tensor.dtype) for tensor in model.tensors]
    if raw_codes(facts, has_codes=False):
        return True
    # The importer's order is another, so it may have named another one of them.
    by_dtype = {quantized_arrays([fact]) for fact in facts} - {""}
    return bool(by_dtype) and model.quantized not in by_dtype


def _what_keep_does(model: SourceModel) -> str:
    """What method keep makes of the arrays of a quantizer, or why it cannot take them."""
    try:
        tensors = model.as_weights().tensors
    except ImporterError as error:
        return f"--method keep cannot take its codes: {error}"
    left = _unknown(tensors)
    if not any(tensor.form for tensor in tensors):
        named = f"{left} and what lies beside" if left else "its arrays"
        return f"--method keep cannot take its codes: {named} are of no kind that it knows"
    if left:
        return f"--method keep takes its codes, but not {left}, and no model is loaded then either"
    return "--method keep stores the weights that they stand for, and gives the same files back"


def _unknown(tensors: Iterable[SourceTensor]) -> str:
    """The names of those that are arrays of a quantizer, in a few words, and why; empty where there are none."""
    left = [t for t in tensors if quantized_arrays([(t.name, t.shape, t.dtype)])]
    why = next((f" (because of {t.why_no_codes})" for t in left if t.why_no_codes), "")
    return "" if not left else left[0].name + (f" and {len(left) - 1} more" if len(left) > 1 else "") + why


class KeptTensors:
    """Counts what a method has quantized, and what it has left as it is without being told to."""

    def __init__(self, method: Method) -> None:
        self._method = method.name
        self._is_told = method.name == KEEPING or isinstance(method, KeepingMethod)
        """Whether the method does nothing but what it is told to."""
        self._n_quantized = 0
        self._n_weights = 0
        self._kept: dict[str, int] = {}
        self._again: list[SourceTensor] = []
        self._codes: list[SourceTensor] = []
        self._as_bytes: list[SourceTensor] = []
        self._no_codes: dict[str, str] = {}
        self._values: list[SourceTensor] = []

    def add(self, planned: PlannedTensor, scheme: str, why_no_codes: str) -> None:
        """One more tensor of the file: its scheme, and why its codes are kept as bytes where they are."""
        if planned.source.dtype in FLOATS:
            self._n_weights += planned.n_weights
        if self._is_told and planned.source.form:
            of_scheme = self._codes if scheme_of(scheme).is_quantized else self._values
            if why_no_codes:
                self._no_codes[planned.source.name] = why_no_codes
            else:
                (self._as_bytes if is_scheme_name(scheme) else of_scheme).append(planned.source)
        if scheme_of(scheme).is_quantized:
            self._n_quantized += planned.n_weights
            self._again += [planned.source] if planned.source.form else []
        elif (
            planned.n_weights
            and len(planned.source.shape) > 1
            and planned.source.role not in {"embedding", "head"}
        ):
            self._kept[planned.source.name] = planned.n_weights

    def notes(self, explained: Collection[str]) -> Iterator[str]:
        """One line for each fact. `explained` are tensors for which the report has reasons already."""
        if self._is_told:
            yield from self._told_notes()
            return
        if self._again:
            yield f"{_counted(self._again)} {self._method} has quantized again what they stand for"
        kept = {name: n for name, n in self._kept.items() if name not in explained}
        names = sorted(kept, key=lambda name: -kept[name])
        named = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)
        share = sum(kept.values()) / max(1, self._n_weights)
        why = f"by name and shape no linear layers of a block: {named}" if named else ""
        if not self._n_quantized:
            yield f"{self._method} quantized no tensor" + (f"; {why}" if why else "")
        elif share >= _WORTH_SAYING:
            yield f"{self._method} left {share:.0%} of the weights as they are, {why}"

    def _told_notes(self) -> Iterator[str]:
        """What has become of the source's codes where nothing was quantized."""
        if self._codes:
            yield f"{_counted(self._codes)} these are kept"
        for why in sorted(set(self._no_codes.values())):
            names = [name for name, of in self._no_codes.items() if of == why]
            named = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
            yield (
                f"kept as the bytes of its blocks, not as codes, because of {why}: {named}; the file comes back, but "
                "no model is loaded"
            )
        if self._as_bytes:
            yield (
                f"{_counted(self._as_bytes)} no scheme has these, so the bytes are kept; the file comes back, but no "
                "model is loaded. --dequantize stores the values that they stand for"
            )
        if self._values:
            yield f"{_counted(self._values)} the values that they stand for are stored"


def _counted(tensors: Collection[SourceTensor]) -> str:
    forms = ", ".join(sorted({tensor.form for tensor in tensors}))
    are = "tensor is" if len(tensors) == 1 else "tensors are"
    return f"{len(tensors)} {are} codes in the source ({forms}):"
