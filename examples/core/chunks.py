"""Where the chunks of one stream of a packed file lie, for `decode`: offset, bytes, codec, checksum, decoded bytes.

python examples/core/chunks.py FILE.spq TENSOR ROLE > chunks.txt
"""

import sys

from spqfmt.container.model import open_model


def main() -> None:
    """Print a line for each plane of each chunk, in order."""
    path, tensor, role = sys.argv[1:]
    with open_model(path) as model:
        for chunk in model.tensors[tensor].by_role[role].chunks:
            for plane in chunk.planes:
                print(plane.offset, plane.stored_bytes, plane.codec, plane.crc32, plane.raw_bytes)


if __name__ == "__main__":
    main()
