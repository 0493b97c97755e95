"""The page of `spqfmt eval --html`."""

from collections.abc import Mapping, Sequence

from spqfmt.pages.render import render


def eval_page(result: Mapping[str, object], name: str, facts: Sequence[tuple[str, str]]) -> str:
    """What `spqfmt eval --json` says of the file `name`; `facts` name the text, the reference and the options."""
    return render("eval.html", result=result, name=name, facts=facts)
