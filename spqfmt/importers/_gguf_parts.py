"""A GGUF model in several files, as llama-gguf-split names them: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from pathlib import Path

from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_reader import GgufHeader, GgufTensor, read_header
from spqfmt.importers._source_file import SourceFile

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_parts(path: Path) -> tuple[tuple[SourceFile, ...], GgufHeader]:
    """Read the files of a model, of which `path` is any, and what all of them hold. Raises ImporterError.

    The metadata are the first one's.
    """
    file = SourceFile(path)
    header = read_header(file)
    count = _count(file, header)
    name = _NAME.fullmatch(path.name)
    if count <= 1:
        # A file that was joined of parts has the count 0, one that was never cut none.
        if name is not None and int(name["count"]) > 1 and "split.count" in header.metadata:
            raise ImporterError(
                f"{path}: named as one of {int(name['count'])} parts of a model, but its metadata say split.count "
                f"{count}; name it otherwise if it is whole"
            )
        return (file,), header
    if name is None or int(name["count"]) != count:
        raise ImporterError(
            f"{path}: one of {count} parts of a model; name them all NAME-00001-of-{count:05}.gguf and so on"
        )
    headers: list[tuple[SourceFile, GgufHeader]] = []
    for number in range(1, count + 1):
        part = path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise ImporterError(f"{path}: part {part.name} of the model is not beside it")
        found = SourceFile(part)
        headers.append((found, read_header(found)))
        metadata = headers[-1][1].metadata
        if _count(*headers[-1]) != count or metadata.get("split.no") != number - 1:
            raise ImporterError(f"{part}: not part {number} of {count}, as its name says; download it again")
    tensors = _tensors(path, [of_part for _, of_part in headers])
    return tuple(found for found, _ in headers), GgufHeader(headers[0][1].metadata, tensors)


def _count(file: SourceFile, header: GgufHeader) -> int:
    count = header.metadata.get("split.count", 1)
    if type(count) is not int or count < 0:
        raise ImporterError(f"{file.path}: its metadata say split.count {count!r}; download it again")
    return count


def _tensors(path: Path, headers: list[GgufHeader]) -> tuple[GgufTensor, ...]:
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    due = headers[0].metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != due:
        raise ImporterError(f"{path}: its parts hold {len(tensors)} tensors, not {due}; download them again")
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise ImporterError(
                f"{path}: its parts hold two tensors of the name {tensor.name}; download them again"
            )
        names.add(tensor.name)
    return tensors
