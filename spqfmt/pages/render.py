"""Templates -> one self-contained page: styles and scripts inside, nothing fetched, nothing else allowed to run."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spqfmt.pages.palette import DARK, LIGHT
from spqfmt.pages.text import integer, percent, size
from spqfmt.version import __version__

_HERE = files("spqfmt.pages")
_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def render(template: str, scripts: Sequence[str] = (), data: object = None, **context: object) -> str:
    """Return the page that `template` makes.

    `scripts` are files of static/, run after D3 with `data` in a JSON element. Everything that templates print is
    escaped, and the page's Content-Security-Policy admits its own style and script by their hashes alone: a name from a
    file can become neither markup nor code.
    """
    environment = _environment()
    style = environment.get_template("page.css").render(light=LIGHT, dark=DARK)
    script = "".join(_script(scripts)) if scripts else ""
    return environment.get_template(template).render(
        style=Markup(style),  # noqa: S704 - our own text
        style_hash=_hash(style),
        script=Markup(script),  # noqa: S704 - likewise
        script_hash=_hash(script),
        data=None if data is None else embed(data),
        version=__version__,
        **context,
    )


def embed(data: object) -> Markup:
    """JSON for inside a script element, which no string in it can end."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))  # noqa: S704 - escaped here


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spqfmt.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "percent": percent, "integer": integer}
    return environment


def _script(names: Sequence[str]) -> list[str]:
    vendored = _HERE / "vendored"
    manifest = json.loads((vendored / "manifest.json").read_text("utf-8"))
    d3 = [(vendored / f"{name}.min.js").read_text("utf-8") for name in manifest]
    own = [(_HERE / "static" / name).read_text("utf-8") for name in names]
    licence = (vendored / "LICENSE").read_text("utf-8")
    return [f"/* D3\n\n{licence}*/\n", *d3, '(() => {\n"use strict";\n', *own, "})();\n"]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
