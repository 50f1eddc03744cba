"""What YAML 1.1 silently reads otherwise than it is written: 24:00:00, 0600, on, a date, a name that comes twice."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml


def find_trap(content: bytes) -> str | None:
    """The first such place in a file's content, in words; None without any. Raises YAMLError for what is not YAML."""
    node = yaml.compose(content, Loader=yaml.SafeLoader)
    return next(_traps(node, "", set()), None) if node else None


PLAIN = {  # what YAML 1.1 takes for something else than it looks like is none of these; by the type that it takes it for
    "int": (re.compile(r"[-+]?(0|[1-9][0-9]*)"), "another number"),
    "float": (re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"), "another number"),
    "bool": (re.compile(r"true|false", re.IGNORECASE), "true or false"),
    "null": (re.compile(r"(null|~)?", re.IGNORECASE), "nothing"),
    "timestamp": (re.compile(r"(?!)"), "a date"),
}


def _traps(node: yaml.Node, place: str, seen: set[int]) -> Iterator[str]:
    """All of them under a node."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, value in node.value:
            yield from _traps(key, place, seen)
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            inner = f"{place}.{name}".removeprefix(".")
            if name in names:
                yield f"{inner} is given twice, and only the last would count"
            names.add(name)
            yield from _traps(value, inner, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _traps(value, place, seen)
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        pattern, kind = PLAIN.get(node.tag.rpartition(":")[2], (None, ""))
        home = node.value == "~" and place.startswith(("shared_folder", "environment"))  # where a folder may be meant
        if pattern and (home or not pattern.fullmatch(node.value)):
            if place.endswith("minutes"):
                yield f"{place}: {in_minutes(node.value)}"
            else:
                yield f"{place or 'a name'}: YAML reads {node.value} as {kind}: write that out, or put it in quotes"


def in_minutes(given: str) -> str:
    """What a time limit is to be written as."""
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", given)
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0, 0)
    number = 1440 * days + 60 * hours + minutes + (seconds > 0)
    return f"it is {given}, and must be a whole number of minutes" + (f": write {number}" if number else ", such as 480")
