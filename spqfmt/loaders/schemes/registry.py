"""What loaders compute with, by the name of the scheme."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.loaders.schemes as package
from spqfmt.loaders.schemes.base import DeviceForm, LoaderScheme
from spqfmt.records import TensorRecord
from spqfmt.registry import find
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.registry import is_packable, packed_scheme, scheme_of

PRODUCTS: Mapping[str, LoaderScheme] = MappingProxyType({p.name: p for p in find(package, "PRODUCTS")})


def keeps_up(record: TensorRecord) -> bool:
    """Whether products from codes are at least as fast as from floats: where they lie by rows when decoded."""
    if not scheme_of(record.scheme).is_quantized or not is_packable(record) or record.scheme not in PRODUCTS:
        return False
    return not by_columns(record) or packed_scheme(record).turns_columns


def device_form(record: TensorRecord) -> DeviceForm:
    """The form on a device of a tensor that is computed from there."""
    form = PRODUCTS[record.scheme].device
    assert form is not None, f"scheme {record.scheme} has no form on a device"
    return form


def has_device_form(record: TensorRecord) -> bool:
    """Whether a device computes from such tensors."""
    products = PRODUCTS.get(record.scheme)
    return products is not None and products.device is not None
