"""The pages and the picture of the demo's model, beside its files in .demo.

    make pages
    python tools/demo_pages.py --readme     # also the picture of README.md, docs/images/inspect.png

Uses the file that `make demo` packed, or packs it.
"""

import argparse
from pathlib import Path

from demo import FOLDER, PACKS, ROOT, gguf_file, run
from rich.console import Console

README_PICTURE = ROOT / "docs" / "images" / "inspect.png"


def make(console: Console, name: str, picture: Path) -> None:
    """Pack `name` if it is not there; its pages, and its charts as `picture`."""
    model = FOLDER / f"smollm2-{name}.spq"
    if not model.exists():
        run(console, "pack", gguf_file(), model, *PACKS[name])
    run(console, "inspect", model, "--measure", "--html", model.with_suffix(".html"), "--png", picture)
    run(console, "plan", model, "--memory", "60MiB", "--html", FOLDER / f"plan-{name}.html")


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", action="store_true", help="write the picture of README.md")
    readme = parser.parse_args().readme
    console = Console(stderr=True)
    FOLDER.mkdir(exist_ok=True)
    for name in PACKS:
        picture = README_PICTURE if readme and name == "int8" else FOLDER / f"smollm2-{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        make(console, name, picture)


if __name__ == "__main__":
    main()
