"""The site's pages: what links between them, and that docs/api.md lists all that is public."""

import re
import subprocess
import sys
from pathlib import Path

import spqfmt

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_api_lists_all_public_names() -> None:
    names = re.findall(r"^- `spqfmt\.(\w+)`: ", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(names) == sorted(set(spqfmt.__all__) - {"__version__"})


def test_the_readme_leads_to_every_page() -> None:
    """By way of other pages too."""
    reached: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = {
            (page.parent / link).resolve()
            for link in re.findall(r"\]\(([\w./-]+[.]md)[)#]", page.read_text())
        }
        ahead += sorted(link for link in links - reached if link.is_file())
    assert set((ROOT / "docs").rglob("*.md")) - reached == set()


def test_every_page_is_on_the_site_and_every_link_leads_to_a_file(tmp_path: Path) -> None:
    """`make site` checks anchors too, and wants mkdocs for it."""
    subprocess.run([sys.executable, str(ROOT / "tools/site/stage.py"), str(tmp_path)], check=True)
    staged = tmp_path / "site-source"
    pages = {str(path.relative_to(staged)) for path in staged.rglob("*.md")}
    shown = re.findall(r"^ +- '?([\w./-]+\.md)'?$", (tmp_path / "site.yml").read_text(), re.M)
    assert sorted(shown) == sorted(pages)
    n_links = 0
    for page in pages:
        text = re.sub(
            r"^```.*?^```$|^ {4}[^\n]*$|`[^`\n]*`", "", (staged / page).read_text(), flags=re.M | re.S
        )
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in link:
                n_links += 1
                assert (staged / page).parent.joinpath(link).is_file(), f"{page}: {link}"
    assert n_links > 100
    assert "::: spqfmt.packing.pack.pack\n" in (staged / "docs/api.md").read_text()
