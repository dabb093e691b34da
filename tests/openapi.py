"""Where do the references in a description of the API lead?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def resolved(description: Any) -> dict[str, Any]:
    """What each reference leads to. Raises `KeyError` for one that leads nowhere."""
    found = {}
    for reference in set(_references(description)):
        place = description
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        found[reference] = place
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _references(inner)
