"""Reading pickles without running them.

A pickle is a program for a small stack machine. Python's own machine runs it here, and yet nothing
that it names is imported or called: every name stands for an inert placeholder. Before that, each
step is looked at, so that time and memory are bounded. Opcodes: PEP 3154 and `pickletools`.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterable
from typing import Any, ClassVar

from tcl_jax.weights.tensor_file import MAX_NAME

MAX_STEPS = 1_000_000
MAX_GLOBALS = 10_000
MAX_VALUES = 1_000_000  # in all placeholders, of which each counts as four more
MAX_BITS = 4096

PERSISTENT = "pickle.persistent_load"
"""Name of the placeholder for what a persistent id, its one argument, stands for."""

# The steps of the protocols 2 to 5; what refers to other data, or only older protocols have, is
# left out.
_STEPS = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "BINPERSID", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD",
))  # fmt: skip
# Python would hash whatever a file gives as a key: tuples that hold each other without end, or a
# great many that have the same hash. So dicts and sets become placeholders, which take few keys.
# Frames say how much to read at once; Python would pass over what is left of one that ends early.
_INSTEAD = {
    "FRAME": b"",
    "EMPTY_DICT": b"cbuiltins\ndict\n)\x81",
    "EMPTY_SET": b"cbuiltins\nset\n)\x81",
    "FROZENSET": b"t",
}


class Foreign(dict[Any, Any]):
    """An inert placeholder for an object of any class, or for what any function would give.

    It holds what the pickle gives as its items, where their keys are text or integers of 64 bits.

    Attributes:
        name: "module.name" of the class or function.
        arguments: with which it was made, and what was appended or added to it.
        state: what the pickle gives as its state; None if nothing.
    """

    __slots__ = ("arguments", "state")
    name: ClassVar[str]
    room: ClassVar[list[int]]  # for how many values there is, in all objects of a pickle
    arguments: tuple[Any, ...] | list[Any]
    state: Any

    def __new__(cls, /, *arguments: Any, **named: Any) -> Foreign:
        """One with these arguments."""
        arguments = (*arguments, *named.values())
        cls.room[0] -= 4 + len(arguments)
        if cls.room[0] < 0:
            raise ValueError("it makes too many objects, or of too many arguments")
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *_: Any) -> None:
        """Takes what `dict` would make items of."""

    def __call__(self, *arguments: Any) -> Foreign:
        """Another one, which stands for what a call would give."""
        return type(self)(self, *arguments)

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is str or (type(key) is int and abs(key) < 1 << 63):
            super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def extend(self, items: Iterable[Any]) -> None:
        """What the pickle appends to it."""
        if isinstance(self.arguments, tuple):
            self.arguments = list(self.arguments)
        self.arguments.extend(items)

    def add(self, item: Any) -> None:
        """What the pickle adds to it, as to a set."""
        self.extend([item])


def read_pickle(data: bytes) -> Any:
    """The value that a pickle of protocol 2 to 5 describes.

    Returns:
        None, bool, int, float, str, bytes, bytearray, tuple, list, `Foreign` (also for dicts and
        sets, and by the name of PERSISTENT for data outside of the pickle) or a subclass of it.
        Containers may contain themselves.

    Raises:
        ValueError: if it is damaged, or needs more than the limits above.
    """
    try:
        return _Unpickler(io.BytesIO(_checked(data))).load()
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError,
        OverflowError,
    ) as error:  # fmt: skip
        raise ValueError(f"its pickle is wrong: {error}") from error


def _checked(data: bytes) -> bytes:
    """The pickle without the steps that are replaced, if it has none but those that are known."""
    checked, last, start = bytearray(), "", 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if count >= MAX_STEPS:
            raise ValueError(f"its pickle has more than {MAX_STEPS:,} steps")
        if opcode.name not in _STEPS:
            raise ValueError(f"its pickle has the step {opcode.name}, which weights do not need")
        number = argument if isinstance(argument, int) else 0
        if opcode.name == "LONG_BINPUT" and number >= MAX_STEPS:
            raise ValueError("its pickle remembers more values than it makes")
        if number.bit_length() > MAX_BITS:
            raise ValueError(f"its pickle has an integer of more than {MAX_BITS} bits")
        checked += _INSTEAD.get(last, data[start:position])
        last, start = opcode.name, position or 0
    return bytes(checked + b".")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: io.BytesIO) -> None:
        super().__init__(data)
        self.foreign: dict[str, type[Foreign]] = {}
        self.room = [MAX_VALUES]

    def find_class(self, module: str, name: str) -> type[Foreign]:
        if len(module) + len(name) >= MAX_NAME:
            raise ValueError("it asks for something of a name that is too long")
        full = f"{module}.{name}"
        if full not in self.foreign:
            if len(self.foreign) >= MAX_GLOBALS:
                raise ValueError(f"it asks for more than {MAX_GLOBALS:,} classes and functions")
            attributes = {"__slots__": (), "name": full, "room": self.room}
            self.foreign[full] = type("Foreign", (Foreign,), attributes)
        return self.foreign[full]

    def persistent_load(self, pid: Any) -> Foreign:
        return self.find_class(*PERSISTENT.split("."))(pid)
