"""The cost of reading a pickle and the names that it calls, checked before unpickling."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

GROW = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
MOST_PARTS = 1000  # of a tuple, or of an item used twice; a tensor or an array has some twenty


@dataclass(slots=True)
class _Item:
    """An item on the unpickler's stack, reduced to its number of parts; each part counts once per use."""

    parts: int = 1
    is_shared: bool = False


def check_cost(content: bytes) -> list[object]:
    """The names that a pickle calls (None for a name taken from the stack), if its cost is in proportion to its length.

    Tuples that contain the previous one twice take twice as long to hash per level; deep nesting overflows the C stack.
    Neither raises an exception that could be caught. Raises ValueError for both, and for a damaged pickle.
    """
    stack: list[_Item | None] = []  # None is a mark
    memo: dict[int, _Item | None] = {}
    names: list[object] = []
    try:
        for operation, argument, _ in pickletools.genops(content):
            if "GLOBAL" in operation.name:
                names.append(argument)
            _follow(operation, argument, stack, memo, len(content))
    except (IndexError, KeyError):
        raise ValueError("it takes what it never put there") from None
    return names


def _follow(
    operation: pickletools.OpcodeInfo, argument: Any, stack: list[_Item | None], memo: dict[int, _Item | None], length: int
) -> None:
    """Apply an operation to the stack and the memo, of which only numbers of parts are tracked."""
    name, before, after = operation.name, operation.stack_before, operation.stack_after
    if name.endswith("PUT") or name == "MEMOIZE":
        index = len(memo) if name == "MEMOIZE" else argument
        if index > length:  # an unpickler allocates a table of that length
            raise ValueError("it has a memo larger than the file")
        memo[index] = stack[-1]
    elif name.endswith("GET") or name == "DUP":
        item = stack[-1] if name == "DUP" else memo[argument]
        if item is not None:
            item.is_shared = True
            _check_parts(item)
        stack.append(item)
    elif name == "MARK":
        stack.append(None)
    else:
        parts, single_pops = 0, len(before)
        if pickletools.markobject in before:
            single_pops = before.index(pickletools.markobject)
            while (item := stack.pop()) is not None:
                parts += item.parts
        popped = [stack.pop() for _ in range(single_pops)]
        parts += sum(item.parts for item in popped if item is not None)
        # A list, a dictionary or an object that grows keeps its identity, also in the memo.
        container = popped[-1] if name in GROW else None
        if container is not None:
            if container.is_shared:
                raise ValueError("it changes what it used before")
            container.parts = parts
            stack.append(container)
        else:
            stack.extend(_Item(1 + parts) for _ in after)
            if name.startswith("TUPLE"):
                _check_parts(stack[-1])


def _check_parts(item: _Item | None) -> None:
    if item is not None and item.parts > MOST_PARTS:
        raise ValueError("it nests more than a file of numbers needs")
