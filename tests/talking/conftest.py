"""A small model with a chat template, packed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import spqfmt
from spqfmt.loaders import load_model

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'][0] }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<s>a{% endif %}"
)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .spq file."""
    root = tmp_path_factory.mktemp("talker")
    with tiny.quiet():
        tiny.build("llama", root / "source")
        settings = root / "source" / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
        spqfmt.pack(root / "source", root / "talker.spq", method="rtn", bits=8)
    return root / "talker.spq"


@pytest.fixture(scope="session")
def loaded_talker(talker: Path) -> tuple[Any, Any]:
    """Model and tokenizer, as the commands load them."""
    with tiny.quiet():
        return load_model(talker, dtype="fast", packed="auto")
