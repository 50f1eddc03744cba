"""What a pickle costs to read, found out before an unpickler sees it."""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

GROW = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
MOST_PARTS = 1000  # of a tuple, and of what is used twice; a tensor or an array has some twenty


@dataclass(slots=True)
class _Item:
    """What lies on the unpickler's stack: the number of its parts, each counted as often as it is used."""

    parts: int = 1
    is_shared: bool = False


def check_cost(content: bytes) -> list[object]:
    """The names of what a pickle calls (None for one that is known later), if it is read in time and memory that fit its length.

    A tuple that is used twice in a tuple, and this twice in the next, takes twice as long to hash at each level; a deep one
    overflows the stack of C. Neither raises anything that could be caught. Raises ValueError for these and for damage.
    """
    stack: list[_Item | None] = []  # None is a mark
    memo: dict[int, _Item | None] = {}
    called: list[object] = []
    try:
        for operation, argument, _ in pickletools.genops(content):
            if "GLOBAL" in operation.name:
                called.append(argument)
            _follow(operation, argument, stack, memo, len(content))
    except (IndexError, KeyError):
        raise ValueError("it takes what it never put there") from None
    return called


def _follow(
    operation: pickletools.OpcodeInfo, argument: Any, stack: list[_Item | None], memo: dict[int, _Item | None], length: int
) -> None:
    """Do to the stack and the memo what an operation does, with the numbers of parts only."""
    name, before, after = operation.name, operation.stack_before, operation.stack_after
    if name.endswith("PUT") or name == "MEMOIZE":
        place = len(memo) if name == "MEMOIZE" else argument
        if place > length:  # an unpickler clears a table of that many places
            raise ValueError("it has a memo larger than the file")
        memo[place] = stack[-1]
    elif name.endswith("GET") or name == "DUP":
        item = stack[-1] if name == "DUP" else memo[argument]
        if item is not None:
            item.is_shared = True
            _check_parts(item)
        stack.append(item)
    elif name == "MARK":
        stack.append(None)
    else:
        parts, alone = 0, len(before)
        if pickletools.markobject in before:
            alone = before.index(pickletools.markobject)
            while (item := stack.pop()) is not None:
                parts += item.parts
        taken = [stack.pop() for _ in range(alone)]
        parts += sum(item.parts for item in taken if item is not None)
        # A list, a dictionary or an object that grows stays itself, also where it lies in the memo.
        same = taken[-1] if name in GROW else None
        if same is not None:
            if same.is_shared:
                raise ValueError("it changes what it used before")
            same.parts = parts
            stack.append(same)
        else:
            stack.extend(_Item(1 + parts) for _ in after)
            if name.startswith("TUPLE"):
                _check_parts(stack[-1])


def _check_parts(item: _Item | None) -> None:
    if item is not None and item.parts > MOST_PARTS:
        raise ValueError("it nests more than a file of numbers needs")
