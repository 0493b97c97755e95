"""Bytes of files that lie elsewhere: on web servers, on the hub, and wherever fsspec reads. Nothing here is imported
before an address is opened.
"""

from spqfmt.remote.blocks import BlocksAhead, open_blocks

__all__ = ["BlocksAhead", "open_blocks"]
