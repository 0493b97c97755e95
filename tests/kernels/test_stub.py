"""The stub of the native module says what its functions take."""

import ast
import re
from pathlib import Path

import pytest

from spqfmt import kernels
from spqfmt.kernels import _native

STUB = ast.parse(Path(kernels.__file__).with_name("_native.pyi").read_text("utf-8"))
FUNCTIONS = {part.name: part for part in STUB.body if isinstance(part, ast.FunctionDef)}


def _takes(function: ast.FunctionDef) -> tuple[int, list[str]]:
    """How many arguments a function takes by their places alone, and the names of those behind."""
    places = function.args.posonlyargs
    return len(places), [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_those_of_the_stub(name: str) -> None:
    [(signature, *_)] = getattr(_native, name).__nb_signature__
    [made] = ast.parse(re.sub(r"\\\d+", "object", signature) + ": ...").body
    assert isinstance(made, ast.FunctionDef)
    assert _takes(made) == _takes(FUNCTIONS[name])
