"""What Python runs at its start under `spqfmt exec`: the import that lets transformers load folders of packed models.

It stands before any `sitecustomize` of the system, so it runs that one first.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def _run_others() -> None:
    """Import the module of this name that would have been found without this one."""
    own = sys.modules.pop("sitecustomize", None)
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if not entry or Path(entry) != _HERE]
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.path[:] = path
        if own is not None:
            sys.modules.setdefault("sitecustomize", own)


_run_others()
if importlib.util.find_spec("spqfmt") is not None:
    importlib.import_module("spqfmt")
elif importlib.util.find_spec("transformers") is not None:
    sys.stderr.write(
        f"spqfmt exec: {sys.executable} has transformers and no spqfmt, so packed models are not loaded there: "
        "install spqfmt beside it\n"
    )
