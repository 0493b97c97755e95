"""What loaders compute with, by the name of the scheme."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.loaders.schemes as package
from spqfmt.loaders.schemes.base import DeviceForm, LoaderScheme
from spqfmt.records import TensorRecord
from spqfmt.registry import find

PRODUCTS: Mapping[str, LoaderScheme] = MappingProxyType({p.name: p for p in find(package, "PRODUCTS")})


def device_form(record: TensorRecord) -> DeviceForm:
    """The form on a device of a tensor that is computed from there."""
    form = PRODUCTS[record.scheme].device
    assert form is not None, f"scheme {record.scheme} has no form on a device"
    return form


def has_device_form(record: TensorRecord) -> bool:
    """Whether a device computes from such tensors."""
    products = PRODUCTS.get(record.scheme)
    return products is not None and products.device is not None
