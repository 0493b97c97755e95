"""What safetensors calls the dtypes: the format's names in capitals, but for one."""

_OTHERS = {"f4_e2m1": "F4"}
_OURS = {name: dtype for dtype, name in _OTHERS.items()}


def to_safetensors(dtype: str) -> str:
    """The name in a safetensors header."""
    return _OTHERS.get(dtype, dtype.upper())


def from_safetensors(name: str) -> str:
    """The dtype of a name in a safetensors header; in small letters for one that the format lacks."""
    return _OURS.get(name, name.lower())
