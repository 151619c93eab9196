"""The Python blocks of the README and of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
#: Pages whose blocks go on from those of the README, in this order.
PAGES = [
    DOCS / f"{name}.md" for name in ("query", "columns", "fields", "oncall", "deploy", "security")
]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path):
    """Return each Python block of a page without a title, with the number of its line."""
    text = path.read_text()
    return [(text.count("\n", 0, m.start()) + 2, m.group(1)) for m in _BLOCK.finditer(text)]
