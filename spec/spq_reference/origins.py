"""FORMAT.md 7.3: the parts of a tensor that was taken apart from a foreign layout, by the files of spec/origins."""

from spq_reference import arrays, gguf
from spq_reference.errors import Unsupported
from spq_reference.records import Tensor
from spq_reference.restore import Streams
from spq_reference.text import integer, string

LAYOUTS = {("arrays", 1): arrays.parts, ("gguf", 1): gguf.parts}


def parts(tensor: Tensor, streams: Streams) -> list[bytes]:
    """Return the parts of a tensor with an origin."""
    # > A reader that does not know a layout reads the tensor nevertheless; only the files that need its parts are
    # > *unsupported*.
    origin = tensor.origin or {}
    layout = string(origin["layout"]), integer(origin["version"], 1)
    if layout not in LAYOUTS:
        raise Unsupported(f"{tensor.name}: layout {layout[0]} {layout[1]}")
    return LAYOUTS[layout](tensor, streams)
