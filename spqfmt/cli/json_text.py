"""JSON on stdout, written as it is made: a report of a million tensors need not be there as text too."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice

import click

_AT_ONCE = 1024


def echo_json(value: object) -> None:
    """Print one object of plain data and records (dataclasses), whose lists may be iterators."""
    texts = _pieces(value)
    while some := "".join(islice(texts, _AT_ONCE)):
        click.echo(some, nl=False)
    click.echo()


def shallow(record: object) -> dict[str, object]:
    """The fields of a dataclass as they are."""
    assert is_dataclass(record)
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _pieces(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _joined("{", (((json.dumps(str(k)) + ": "), v) for k, v in value.items()), "}")
    elif isinstance(value, Iterable) and not isinstance(value, str):
        yield from _joined("[", (("", member) for member in value), "]")
    else:
        yield json.dumps(value, default=shallow)


def _joined(begin: str, members: Iterable[tuple[str, object]], end: str) -> Iterator[str]:
    yield begin
    for number, (key, member) in enumerate(members):
        yield (", " if number else "") + key
        yield from _pieces(member)
    yield end
