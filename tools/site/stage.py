"""Lay out the pages of the site as they lie in the repository, so that a link works in both.

    python tools/site/stage.py OUT      OUT/site-source has the pages, OUT/site.yml is the configuration for mkdocs

Files that pages link to go along. docs/api.md gets the signatures and docstrings of the names that it lists.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("*.md", "docs/**/*.md", "fuzz/README.md", "spec/decisions/*.md")
DECISIONS = Path("spec/decisions")
SECTIONS = {
    "Begin": ("install", "tutorial", "use", "api", "core"),
    "Models": ("checkpoints", "sources", "families", "experts", "methods", "adapters"),
    "Use": ("talking", "serving", "tasks", "hub", "remote"),
    "Machines": ("gpu", "gpu-kernels", "tensor-parallel", "many-machines", "scale"),
    "Measured": ("measured", "reliability"),
}
"""Pages of docs/ by what a reader wants; those that nobody put here come last."""
_LINK = re.compile(r"(\]\()([^)#\s]+)")
_BRACKETS = re.compile(r"(`[^`]*`)|\[([^\[\]`]*)\](?!\()")
"""Code in a line, or words in brackets that are no link: mkdocstrings would take these for names."""
_CODE = re.compile(r"(^```.*?^```$|^(?: {4}[^\n]*\n)+)", re.M | re.S)


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    source = out / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    pages = sorted({path.relative_to(ROOT) for pattern in PAGES for path in ROOT.glob(pattern)})
    for page in pages:
        text = (ROOT / page).read_text("utf-8")
        if page == Path("docs/api.md"):
            text += reference(text)
        target = source / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(for_site(text, page, source), "utf-8")
    decisions = [page for page in pages if page.parent == DECISIONS]
    lines = [f"- [{title(page)}]({page.name})" for page in decisions]
    (source / DECISIONS / "index.md").write_text("# Decisions\n\n" + "\n".join(lines) + "\n", "utf-8")
    shutil.copyfile(Path(__file__).with_name("wide.css"), source / "wide.css")
    (out / "site.yml").write_text(configuration(pages), "utf-8")


def for_site(text: str, page: Path, source: Path) -> str:
    """The text of a page, and the files that it links to: folders by their index, a list after an empty line."""
    pieces = _CODE.split(text)
    for number in range(0, len(pieces), 2):

        def linked(found: re.Match[str]) -> str:
            target = found[2]
            path = ROOT / page.parent / target
            if "://" in target or not path.exists():
                return found[0]
            if path.is_dir():
                return f"{found[1]}{target}/index.md"
            if path.suffix != ".md":
                copy = source / path.resolve().relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            return found[0]

        piece = _LINK.sub(
            linked, _BRACKETS.sub(lambda found: found[1] or f"\\[{found[2]}\\]", pieces[number])
        )
        pieces[number] = re.sub(r"^((?![-*|] |\d+\. |#|  ).+\n)(?=(?:- |1\. ))", r"\1\n", piece, flags=re.M)
    return "".join(pieces)


def reference(text: str) -> str:
    """Directives of mkdocstrings for the names that docs/api.md lists, by where the package has them."""
    places = lazy_names()
    names = re.findall(r"^- `spqfmt\.(\w+)", text, re.M)
    text = "\n## Signatures\n"
    for name in names:
        place = ".".join(places.get(name, ("spqfmt.errors", name)))
        text += f"\n::: {place}\n    options:\n      heading: spqfmt.{name}\n      toc_label: {name}\n"
    return text


def lazy_names() -> dict[str, tuple[str, str]]:
    """Module and attribute of the package's names, read from its source: mkdocs runs where it is not installed."""
    for node in ast.parse((ROOT / "spqfmt" / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LAZY":
            found: dict[str, tuple[str, str]] = ast.literal_eval(node.value)
            return found
    raise SystemExit("spqfmt/__init__.py has no _LAZY")


def title(page: Path) -> str:
    """A page's first heading."""
    found = re.search(r"^# (.+)$", (ROOT / page).read_text("utf-8"), re.M)
    return found[1].replace("`", "") if found else page.stem


def configuration(pages: list[Path]) -> str:
    """The navigation; all else is in mkdocs.yml."""

    def entry(page: Path) -> str:
        return f"    - {str(page)!r}"

    lines = ["INHERIT: ../mkdocs.yml", "docs_dir: site-source", "site_dir: site", "nav:", "  - README.md"]
    top = [page for page in pages if page.parent == Path("docs")]
    named = {Path("docs") / f"{name}.md" for names in SECTIONS.values() for name in names}
    sections = {name: [Path("docs") / f"{page}.md" for page in chosen] for name, chosen in SECTIONS.items()}
    sections["More"] = [page for page in top if page not in named]
    sections["Commands"] = [page for page in pages if page.parent == Path("docs/commands")]
    sections["Inside"] = [page for page in pages if page.parent == Path() and page.name != "README.md"]
    sections["Inside"] += [Path("fuzz/README.md")]
    sections["Decisions"] = [
        DECISIONS / "index.md",
        *(page for page in pages if page.parent == DECISIONS),
    ]
    for name, chosen in sections.items():
        if chosen:
            lines += [f"  - {name}:", *map(entry, chosen)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
