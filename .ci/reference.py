"""Show docstrings of the package in the reference: its comments on fields, roles and examples.

mkdocstrings reads docstrings in Google's style.  The package follows Dramatiq's, which has
``:class:`` roles, ``Example:`` before a doctest, and ``#:`` comments above fields.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`[~.]?([^`]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class PackageDocstrings(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of *obj*, or give an attribute the comment above it."""
        if obj.is_attribute and not obj.docstring and obj.lineno:
            text = _comment_above(obj)
            if text:
                obj.docstring = griffe.Docstring(text, parent=obj)
        if obj.docstring:
            text = _ROLE.sub(r"``\1``", obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub("Examples:", text)


def _comment_above(obj: griffe.Object) -> str:
    """Return the ``#:`` comment that ends on the line above *obj*."""
    found: list[str] = []
    for line in reversed(obj.lines_collection[obj.filepath][: (obj.lineno or 1) - 1]):
        if not line.lstrip().startswith("#:"):
            break
        found.insert(0, line.lstrip().removeprefix("#:").strip())
    return " ".join(found)
