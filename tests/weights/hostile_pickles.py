"""Pickles made to do harm; in none of them is a tensor that can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.torch_files import pickled

CANARY = "touched-by-a-pickle"
TOUCH = f"touch {CANARY}"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


CODE = {
    "os.system": b"\x80\x02cos\nsystem\n" + text(TOUCH) + b"\x85R.",
    "builtins.exec": b"\x80\x04"
    + short("builtins")
    + short("exec")
    + b"\x93"
    + text(f"open({CANARY!r}, 'w')")
    + b"\x85R.",
    "os.mkdir": b"\x80\x02}" + text("a") + b"cos\nmkdir\n" + text(CANARY) + b"\x85Rs.",
}
INST = b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n."
OBJECT = b"\x80\x02(cos\nsystem\n" + text(TOUCH) + b"o."

NEST = 100_000
RECORD = b"c__torch__\nA\n)\x81}("
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
HALF_FULL = b"".join(text(f"k{i}") + b"N" for i in range(50_000))


def shared(start: bytes, twice: bytes, end: bytes = b"", times: int = 60) -> bytes:
    """A record that has a value that holds the last one twice, again and again: 2^times in all."""
    values = b"(" + start + b"q\x00" + (twice + b"q\x00") * times + end + b"t"
    root = b"\x80\x02c__torch__\nA\n)\x81}("
    return root + text("all") + values + text("last") + b"h\x00ub."


PICKLES = {
    **CODE,
    "dotted": b"\x80\x04" + short("torch") + short("os.system") + b"\x93.",
    "inst": INST,
    "obj": OBJECT,
    "state of a function": b"\x80\x02" + TENSOR + b"N}" + text("arguments") + b"Ns\x86b.",
    "arguments of arguments": (
        b"\x80\x02(" + b"N" * 300_000 + b"tq\x00ca\nb\nq\x01" + b"h\x01h\x00R" * 100_000 + b"."
    ),
    "a call with costly arguments in many places": b"".join((
        b"\x80\x02ctorch\n", b"._rebuild_" * 90, b"-\n)\x81q\x00(", b"h\x00" * 16,
        b"tq\x01ca\nb\n(", b"h\x01" * 16, b"tRq\x02](", b"h\x02" * 300_000, b"e.",
    )),
    "short frame": b"\x80\x04\x95\x02\0\0\0\0\0\0\0]B\x06\0\0\0.r\xff\xff\xff\xffa.",
    "frame of 8 EiB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f].",
    "codec": b"\x80\x02c_codecs\nencode\n" + text("x") + text("zip") + b"\x86R.",
    "ext1": b"\x80\x02\x82\x01.",
    "persistent text": b"Pabc\n.",
    "buffer": b"\x80\x05\x97.",
    "deep list": b"\x80\x02" + b"]" * NEST + b"a" * (NEST - 1) + b".",
    "deep dict": b"\x80\x02" + (b"}" + text("model")) * 50_000 + b"}" + b"s" * 50_000 + b".",
    "memo of 4 billion": b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\xffa.",
    "bytes of 8 EiB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "integer of 12 MB": (
        b"\x80\x02\x8b" + (12_000_000).to_bytes(4, "little") + b"\x7f" * 12_000_000 + b"."
    ),
    "shared tuples as key": shared(b")", b"h\x00h\x00\x86", b"}h\x00Ns"),
    "shared records": shared(b"N", RECORD + text("a") + b"h\x00" + text("b") + b"h\x00ub"),
    "long names": shared(b"N", RECORD + text("n" * 900) + b"h\x00ub"),
    "a long name in many records": shared(
        text("n" * 1_000_000) + b"q\x01",
        RECORD + b"h\x01N" + text("a") + b"h\x00" + text("b") + b"h\x00ub",
    ),
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "dict in itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
    "record in itself": b"\x80\x02c__torch__\nA\n)\x81q\x00}" + text("a") + b"h\x00sb.",
    "key that cannot be hashed": b"\x80\x02}]Ns.",
    "huge key": b"\x80\x02}\x8a\x09" + b"\x7f" * 9 + b"Ns.",
    "copies": (
        b"\x80\x02}(" + HALF_FULL + b"uq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
        + b"."
    ),
    "sets": b"\x80\x04(" + b"\x8f" * 900_000 + b"t.",
    "memo of a million": (
        b"\x80\x02N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(999_000)) + b"."
    ),
    "long class names": b"".join((
        b"\x80\x04(", short("__torch__"), b"\x94", text("n" * 1_000_000), b"\x94",
        b"h\x00h\x01\x93" * 1000, b"t.",
    )),
    "too many steps": b"\x80\x02" + b"N" * 1_000_001 + b".",
    "too big": b"\x80\x02" + b"N" * (17 << 20) + b".",
    "no end": b"\x80\x02}",
}  # fmt: skip

WHOLE = (0, (2, 2), (2, 1))  # place, sizes and strides of a tensor that is in order
TENSORS: dict[str, tuple[Any, ...]] = {
    "beyond": (1, (2, 2), (2, 1)),
    "before": (-1, (2, 2), (2, 1)),
    "backwards": (3, (4,), (-1,)),
    "wider steps": (0, (2,), (2**70,)),
    "negative size": (0, (-2, -2), (2, 1)),
    "overflow": (0, (2**32, 2**32), (0, 0)),
    "overflow beside nothing": (0, (0, 2**40, 2**40), (0, 0, 0)),
    "expanded a bit": (0, (2**23,), (0,)),
    "size that is a bool": (0, (True, 2), (2, 1)),
    "offset that is none": (None, (2, 2), (2, 1)),
    "strides of another rank": (0, (2, 2), (1,)),
    "shape that is none": (0, None, (1,)),
    "40 axes": (0, (1,) * 40, (1,) * 40),
    "negated": (0, (2, 2), (2, 1), False, {}, {"neg": True}),
}


def with_storage(key: str, kind: bytes, count: bytes) -> bytes:
    storage = b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"
    return b"\x80\x02}" + text("a") + TENSOR + b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89}tRs."


FLOAT, DOUBLE = b"ctorch\nFloatStorage\n", b"ctorch\nDoubleStorage\n"
STORAGES = {
    "absent": with_storage("7", FLOAT, b"K\x04"),
    "outside": with_storage("../../../../etc/passwd", FLOAT, b"K\x04"),
    "too long": with_storage("0", DOUBLE, b"K\x04").replace(b"K\x02\x85", b"K\x04\x85"),
    "of no type": with_storage("0", b"ctorch\nfloat32\n", b"K\x04"),
    "none": b"\x80\x02}" + text("a") + TENSOR + b"(NK\x00))\x89}tRs.",
}


def tensor_pickle(arguments: tuple[Any, ...]) -> bytes:
    """A state dict of a tensor of 4 float32 whose place is told by `arguments`."""
    flat = b"".join(pickled(x)[0][2:-1] for x in arguments)
    rest = b"\x89}" if len(arguments) == 3 else b""
    return b"\x80\x02}" + text("a") + TENSOR + b"(" + STORAGE + flat + rest + b"tRs."


def hostile_pickles() -> Iterator[tuple[str, bytes]]:
    yield from PICKLES.items()
    yield from ((f"storage {name}", data) for name, data in STORAGES.items())
    yield from ((f"tensor {name}", tensor_pickle(where)) for name, where in TENSORS.items())
