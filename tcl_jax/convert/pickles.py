"""Reading pickles without running them.

A pickle is a program for a small stack machine. Python's own machine calls whatever functions the
program names; this one makes plain values, and of functions knows only those that it is given.
Nothing is imported by a name from the file, and time and memory are bounded. Opcodes: PEP 3154 and
Python's `pickletools`, which parses their arguments.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from tcl_jax.convert.mapping import WeightError

MAX_BYTES = 16 << 20
MAX_OPCODES = 1_000_000
MAX_COPIED = 1 << 20
MAX_LONG = 1 << 256
MAX_NAME = 1000
SET_COST = 8  # an empty set takes as much memory as several other values

_PUSH_ARGUMENT = frozenset((
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
))  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = frozenset(("BINPUT", "LONG_BINPUT"))
_C = TypeVar("_C", list, dict, set)
_GET = frozenset(("BINGET", "LONG_BINGET"))


class Global:
    """A name that the pickle mentions and that is known here; stands for nothing but itself."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Record:
    """An object of a class that is known by name alone.

    Attributes:
        name: of the class.
        state: what the pickle gives as its state; None if nothing.
    """

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


def read_pickle(
    data: bytes,
    *,
    functions: Mapping[str, Callable[..., Any]],
    names: Collection[str] = (),
    record_prefix: str | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value that a pickle describes.

    Args:
        data: the pickle, of protocol 2 to 5.
        functions: what "module.name" with arguments makes; called with positional arguments that
            may be anything.
        names: further names that the pickle may mention, given back as `Global`.
        record_prefix: names that begin so are classes, whose objects become `Record`.
        persistent: what a persistent id stands for.

    Returns:
        None, bool, int, float, str, bytes, tuple, list, dict, set or frozenset, `Global`,
        `Record`, and what `functions` and `persistent` give. Containers may contain themselves.

    Raises:
        WeightError: if the pickle asks for another name.
        ValueError: if it is damaged, or needs more than the limits above.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"its pickle takes {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    return _Machine(functions, frozenset(names), record_prefix, persistent).run(data)


class _Machine:
    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        names: frozenset[str],
        record_prefix: str | None,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.functions, self.names, self.persistent = functions, names, persistent
        self.record_prefix = record_prefix
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count >= MAX_OPCODES:
                raise ValueError(f"its pickle has more than {MAX_OPCODES:,} steps")
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        result = self.pop()
        if self.stack or self.marks:
            raise ValueError("its pickle leaves values behind")
        return result

    def step(self, name: str, argument: Any) -> None:
        if name in _PUT:
            self.memo[argument] = self.top()
        elif name in _GET:
            if argument not in self.memo:
                raise ValueError("its pickle refers to a value that it has not made")
            self.stack.append(self.memo[argument])
        elif name in _PUSH_ARGUMENT:
            if isinstance(argument, int) and abs(argument) >= MAX_LONG:
                raise ValueError("its pickle has an integer of more than 256 bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
            if name == "EMPTY_SET":
                self.spend(SET_COST)
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(items[::-1]))
        else:
            self.rarer_step(name, argument)

    def rarer_step(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                self.stack.append(tuple(self.pop_to_mark()))
            case "FROZENSET":
                self.stack.append(frozenset(map(as_key, self.pop_to_mark())))
                self.spend(SET_COST)
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "APPEND":
                item = self.pop()
                self.container(list).append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                self.container(list).extend(items)
            case "ADDITEMS":
                items = self.pop_to_mark()
                self.container(set).update(map(as_key, items))
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "GLOBAL":
                self.stack.append(self.find(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise ValueError("its pickle names a function by something else than text")
                # Made anew at each step, from parts that the pickle may hold once.
                self.stack.append(self.find(f"{module[:MAX_NAME]}.{attribute[:MAX_NAME]}"))
            case "BINPERSID":
                if self.persistent is None:
                    raise ValueError("its pickle refers to data outside of it")
                self.stack.append(self.persistent(self.pop()))
            case "NEWOBJ":
                self.make_record(self.pop(), self.pop())
            case "REDUCE":
                self.call(self.pop(), self.pop())
            case "BUILD":
                self.build(self.pop())
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(f"its pickle has the step {name}, which weights do not need")

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("its pickle takes more values than it has made")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("its pickle ends a group that it has not begun")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def container(self, kind: type[_C]) -> _C:
        container = self.top()
        if type(container) is not kind:
            raise ValueError(f"its pickle adds to something that is no {kind.__name__}")
        return container

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("its pickle gives a dict a key without a value")
        self.container(dict).update(zip(map(as_key, items[::2]), items[1::2], strict=True))

    def find(self, name: str) -> Global:
        if len(name) > MAX_NAME:
            raise ValueError("its pickle asks for something of a name that is too long")
        known = name in self.functions or name in self.names
        if not known and not (self.record_prefix and name.startswith(self.record_prefix)):
            raise WeightError(
                f"it asks for {name[:100]!r}, which weights do not need and which is not looked "
                "up, because a file could run anything that way. If you trust it, save only the "
                'tensors again with PyTorch: torch.save(model.state_dict(), "weights.pt")'
            )
        return Global(name)

    def make_record(self, arguments: Any, kind: Any) -> None:
        prefix = self.record_prefix
        if arguments != () or not isinstance(kind, Global) or not prefix:
            raise ValueError("its pickle makes an object of something that is no class")
        if not kind.name.startswith(prefix):
            raise ValueError(f"its pickle makes an object of {kind.name!r}, which is no class")
        self.stack.append(Record(kind.name))

    def call(self, arguments: Any, function: Any) -> None:
        if not isinstance(function, Global) or function.name not in self.functions:
            raise ValueError("its pickle calls something that is no function")
        if not isinstance(arguments, tuple):
            raise ValueError("its pickle calls a function with something else than arguments")
        sized = (str, bytes, tuple, list, dict, set, frozenset)
        self.spend(sum(len(x) for x in arguments if isinstance(x, sized)) + len(arguments))
        self.stack.append(self.functions[function.name](*arguments))

    def spend(self, count: int) -> None:
        """Counts values that are made without a step of their own."""
        self.copied += count
        if self.copied > MAX_COPIED:
            raise ValueError("its pickle makes too many values")

    def build(self, state: Any) -> None:
        target = self.top()
        if isinstance(target, Record):
            target.state = state
        elif type(target) is not dict:  # of a dict these are attributes, such as _metadata
            raise ValueError("its pickle gives attributes to something that has none")


def as_key(value: Any) -> Any:
    """The value, if it takes little time to hash and few others have the same hash."""
    plain = value is None or isinstance(value, str | bytes | float)
    if not plain and not (isinstance(value, int) and abs(value) < 1 << 64):
        raise ValueError("its pickle has a key that is neither text nor a number")
    return value
