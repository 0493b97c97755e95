"""What the house asks of code that no linter knows: calls, names of classes, docstrings."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for folder in ("spqfmt", "tools") for path in (ROOT / folder).rglob("*.py"))
MOST_WITHOUT_NAMES = 4
ROWS_OF_TABLES = ROOT / "tools" / "generate" / "spq_vectors"  # a vector is a row: its fields stand in columns
NAMELESS = {  # what these call takes no names: struct, and the native products, which are called for every token
    "_TRAILER.pack",
    "matrix.multiply",
    "self._matrix.finish",
    "self._matrix.multiply",
    "self._matrix.round",
}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def own_names() -> set[str]:
    """Functions, methods and classes of the package and its tools, but for those that take any number of values."""
    names: dict[str, bool] = {}
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                takes_any = isinstance(node, ast.FunctionDef) and node.args.vararg is not None
                names[node.name] = names.get(node.name, False) or not takes_any
    return {name for name, has_fields in names.items() if has_fields}


def foreign_names(module: ast.Module) -> set[str]:
    """What a module imports from other packages, and what it has that takes any number of values."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef) and node.args.vararg is not None:
            found.add(node.name)
        elif isinstance(node, ast.Import):
            found |= {
                alias.asname or alias.name for alias in node.names if not alias.name.startswith("spqfmt")
            }
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("spqfmt"):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def long_calls(text: str, own: set[str]) -> Iterator[str]:
    """Calls of our own functions and records with more values without a name than the house allows."""
    module = ast.parse(text)
    foreign = foreign_names(module)
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func.value if isinstance(node.func, ast.Subscript) else node.func)
        values = [value for value in node.args if not isinstance(value, ast.Starred)]
        is_own = called.split(".")[-1] in own and called.split(".")[0] not in foreign
        if len(values) > MOST_WITHOUT_NAMES and is_own and called not in NAMELESS:
            yield f"{node.lineno}: {called}"


def test_calls_with_many_fields_name_them() -> None:
    own = own_names()
    found = {
        f"{path.relative_to(ROOT)}:{call}"
        for path in MODULES
        if ROWS_OF_TABLES not in path.parents
        for call in long_calls(path.read_text(encoding="utf-8"), own)
    }
    assert found == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("f(1, 2, 3, 4)", []),
        ("f(1, 2, 3, 4, e=5)", []),
        ("\nx.f(1, 2, 3, 4, 5)", ["2: x.f"]),
        ("other(1, 2, 3, 4, 5)", []),
        ("def f(*values): ...\nf(1, 2, 3, 4, 5)", []),
        ("from struct import f\nf(1, 2, 3, 4, 5)", []),
        ("from spqfmt.a import f\nf(1, 2, 3, 4, 5, *more)", ["2: f"]),
    ],
)
def test_the_check_of_calls_finds_them(text: str, found: list[str]) -> None:
    assert list(long_calls(text, {"f"})) == found


def test_no_class_name_stands_twice() -> None:
    places = defaultdict(list)
    for path in (ROOT / "spqfmt").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


FEWEST_WORDS = 4
RIDDLES = {"as", "by", "from", "of", "see"}  # "By rows." says nothing of what is by rows


def first_sentence(docstring: str) -> str:
    return re.split(r"(?<=[.?!])\s", " ".join(docstring.split("\n\n", maxsplit=1)[0].split()))[0]


def is_riddle(docstring: str) -> bool:
    words = first_sentence(docstring).split()
    return len(words) < FEWEST_WORDS or words[0].lower() in RIDDLES


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """What classes and functions say of themselves, and what stands below constants and fields."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}: {node.name}", text
        body = getattr(node, "body", [])
        for before, after in pairwise(body if isinstance(body, list) else []):
            said = after.value if isinstance(after, ast.Expr) else None
            if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(said, ast.Constant):
                yield f"{path.relative_to(ROOT)}:{said.lineno}", str(said.value)


def test_docstrings_begin_with_a_sentence() -> None:
    found = {place: text for path in MODULES for place, text in docstrings(path) if is_riddle(text)}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "None.",
        "By rows.",
        "See Writer.add_tensor, of a file.",
        "All do. They are bytes.",
        "Of both taken together.",
    ],
)
def test_telegrams_are_riddles(text: str) -> None:
    assert is_riddle(text)


def test_a_sentence_is_no_riddle() -> None:
    assert not is_riddle("Return the bytes of\nthe file. None.")


def test_every_decision_has_a_number_of_its_own_which_its_title_gives() -> None:
    files = sorted((ROOT / "spec" / "decisions").glob("*.md"))
    numbers = [path.name[:4] for path in files]
    assert len(set(numbers)) == len(numbers)
    assert [path.read_text()[:8] for path in files] == [f"# {number}: " for number in numbers]


def test_modules_have_names_that_a_type_checker_can_tell_apart() -> None:
    """Tools are no package: two of the same name, in whatever folders, would be one to it."""
    names = [path.stem for path in MODULES if ROOT / "tools" in path.parents and path.stem != "__init__"]
    assert len(set(names)) == len(names)
