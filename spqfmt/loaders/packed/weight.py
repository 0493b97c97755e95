"""What `weight` of a packed module is: a tensor whose values are decoded where an operation wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from spqfmt.errors import SpqError

Product = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(x, bias): x [..., columns] times the matrix plus the bias, [..., rows] in x's dtype."""
Rows = Callable[[torch.Tensor], torch.Tensor]
"""(ids): rows of the matrix by numbers [...] that are not negative, [..., columns]."""

_TENSOR: Any = torch.Tensor
_OF_THE_FORM = frozenset(
    {getattr(_TENSOR, name).__get__
     for name in ("shape", "dtype", "device", "ndim", "layout", "is_meta", "is_cuda", "is_sparse", "is_quantized",
                  "is_nested", "is_leaf", "requires_grad", "grad", "grad_fn", "itemsize", "nbytes")}
    | {getattr(_TENSOR, name)
       for name in ("size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_complex",
                    "stride", "is_contiguous", "__len__", "__hash__", "__repr__")}
)  # fmt: skip
_OF_ITS_MEMORY = frozenset(
    {_TENSOR.data_ptr, _TENSOR.untyped_storage, _TENSOR.storage, _TENSOR.share_memory_, _TENSOR.pin_memory}
)
_SAME = frozenset({_TENSOR.data.__get__, _TENSOR.detach, _TENSOR.contiguous})
_CHANGES = frozenset({_TENSOR.__setitem__, _TENSOR.data.__set__})
_TO_TRAIN = frozenset({_TENSOR.requires_grad.__set__, _TENSOR.requires_grad_})
_OF_CHANGED_ROWS = frozenset({_TENSOR.index_copy, torch.index_copy})
"""How PEFT makes an embedding some of whose rows are trained."""
UNCHANGED = "packed weights cannot be changed; load with packed=False to change them"
SAVE_INSTEAD = "save_pretrained of its model writes a folder that loads again"
"""What to do where a packed model would be pickled."""
NUMBERS = frozenset({torch.int32, torch.int64})
"""What rows are looked up by."""
_IN_PLACE = frozenset(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
)


class PackedWeight(torch.Tensor):
    """Shape, dtype and device of a weight, in no memory. Nothing can change it.

    A product, as torch.nn.functional.linear makes it, is computed from the codes, and single rows of an embedding are
    looked up. For any other operation the values are decoded, and go with its result.
    """

    _name: str
    _owner: object
    _values: Callable[[], torch.Tensor]
    _product: Product | None
    _rows: Rows | None
    _tied: str | None

    @staticmethod
    def __new__(
        cls,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        values: Callable[[], torch.Tensor],
        product: Product | None,
        rows: Rows | None = None,
        owner: object = None,
        tied: str | None = None,
    ) -> PackedWeight:
        """`values` decodes the weight; `product` and `rows` None: those of the decoded weight.

        `owner` has the weights, of which this is the one of its name. `tied` names a packed weight that is this one.
        """
        made: PackedWeight = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=device
        )
        made._name, made._values, made._product, made._rows = name, values, product, rows
        made._owner, made._tied = owner, tied
        return made

    def is_same(self, other: Any) -> bool:
        """Whether it is the weight that `other` is."""
        return self._owner is other._owner and self._name == other._name

    def __reduce_ex__(self, protocol: object) -> Any:
        raise SpqError(f"{self._name}: a packed weight cannot be pickled: {SAVE_INSTEAD}")

    def decoded(self) -> torch.Tensor:
        """An ordinary tensor of the values, which is the caller's."""
        return self._values()

    def __repr__(self) -> str:  # type: ignore[override]  # torch's own takes an option of its printer
        return f"PackedWeight({self._name!r}, {list(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What becomes of an operation on such a tensor. SpqError where it would change it or look into its memory."""
        options = dict(kwargs or {})
        if func in _OF_THE_FORM:
            return super().__torch_function__(func, types, args, options)  # type: ignore[no-untyped-call]
        if func in _SAME:
            return args[0]
        if func in _OF_ITS_MEMORY:
            raise SpqError(
                f"{args[0]._name}: a packed weight has no memory of its own; clone() gives a tensor that has"
            )
        if func in _TO_TRAIN:
            return _train(*args, **options)
        if func in _OF_CHANGED_ROWS and isinstance(args[0], PackedWeight) and args[0]._tied is not None:
            raise SpqError(
                f"{args[0]._name}: {args[0]._tied} is tied to it and stays packed, so that rows which an adapter "
                "changes would not reach it; load with packed=False for such an adapter"
            )
        _refuse_change(options.get("out"))
        if func in _CHANGES or _is_in_place(func):
            # torch.nn.init names the tensor that it fills.
            _refuse_change(args[:1], options.get("tensor"))
        if func is torch.nn.functional.linear:
            return _linear(*args, **options)
        if func is _TENSOR.__getitem__ and (row := _row(*args)) is not None:
            return row
        args, options = tree_map(_decoded, (args, options))
        return func(*args, **options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own is untyped
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Operations that are called below torch's Python functions."""
        options = dict(kwargs or {})
        _refuse_change(options.get("out"))
        if func._schema.is_mutable:
            _refuse_change(args[:1])
        args, options = tree_map(_decoded, (args, options))
        return func(*args, **options)


def _decoded(value: Any) -> Any:
    return value.decoded() if isinstance(value, PackedWeight) else value


def _train(weight: PackedWeight, requires_grad: bool = True) -> PackedWeight:
    """Freeze it, which it is. SpqError where it is to be trained."""
    if requires_grad:
        raise SpqError(
            f"{weight._name}: packed weights are not trained; load with packed=False to train them"
        )
    return weight


def _linear(x: Any, weight: Any, bias: Any = None) -> torch.Tensor:
    x, bias = _decoded(x), _decoded(bias)
    product = weight._product if isinstance(weight, PackedWeight) else None
    if product is None or not _fits(x, weight, bias):
        # torch's own product says what does not fit, and casts where autocast does.
        return torch.nn.functional.linear(x, _decoded(weight), bias)
    y: torch.Tensor = product(x, bias)
    return y


def _fits(x: Any, weight: PackedWeight, bias: Any) -> bool:
    rows, columns = weight.shape
    if not isinstance(x, torch.Tensor) or autocast_dtype(x) is not None:
        return False
    form = weight.dtype, weight.device
    fits = (x.dtype, x.device) == form and x.dim() > 0 and x.shape[-1] == columns
    return fits and (bias is None or (bias.shape == (rows,) and (bias.dtype, bias.device) == form))


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """What autocast computes products of such a tensor in; None where it is off."""
    where = x.device.type
    return torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else None


def _row(weight: Any, index: Any) -> torch.Tensor | None:
    """weight[index] where that is rows of an embedding by number, as models take that of padding; None for all else."""
    first, *others = index if isinstance(index, tuple) else (index,)
    if not isinstance(weight, PackedWeight) or weight._rows is None or others not in ([], [slice(None)]):
        return None
    if type(first) is not int and not (isinstance(first, torch.Tensor) and first.dtype in NUMBERS):
        return None
    ids = torch.as_tensor(first)
    return weight._rows(torch.where(ids < 0, ids + len(weight), ids))


def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _refuse_change(*values: Any) -> None:
    for value in tree_leaves(values):
        if isinstance(value, PackedWeight):
            raise SpqError(f"{value._name}: {UNCHANGED}")
