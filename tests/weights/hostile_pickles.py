"""Pickles made to do harm: each with what the error has to say."""

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
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
HALF_FULL = b"".join(text(f"k{i}") + b"N" for i in range(50_000))


def shared(start: bytes, twice: bytes, end: bytes = b"", times: int = 60) -> bytes:
    """A record that has a value that holds the last one twice, again and again: 2^times in all."""
    values = b"(" + start + b"q\x00" + (twice + b"q\x00") * times + end + b"t"
    root = b"\x80\x02c__torch__\nA\n)\x81}("
    return root + text("all") + values + text("last") + b"h\x00ub."


PICKLES: dict[str, tuple[bytes, str]] = {
    **{name: (data, f"asks for '{name}'") for name, data in CODE.items()},
    "dotted": (
        b"\x80\x04" + short("torch") + short("os.system") + b"\x93.",
        "asks for 'torch.os.sy",
    ),
    "inst": (INST, "the step STRING"),
    "obj": (OBJECT, "the step OBJ"),
    "state of a function of ours": (
        b"\x80\x02" + TENSOR + b"N}" + text("arguments") + b"Ns\x86b.",
        "missing",
    ),
    "arguments of arguments": (
        b"\x80\x02(" + b"N" * 300_000 + b"tq\x00ca\nb\nq\x01" + b"h\x01h\x00R" * 100_000 + b".",
        "too many arguments",
    ),
    "a call with costly arguments in many places": (
        b"\x80\x02ctorch\n"
        + b"._rebuild_" * 90
        + b"-\n)\x81q\x00("
        + b"h\x00" * 16
        + b"tq\x01"
        + b"ca\nb\n("
        + b"h\x01" * 16
        + b"tRq\x02]("
        + b"h\x02" * 300_000
        + b"e.",
        "no tensors by name",
    ),
    "short frame": (
        b"\x80\x04\x95\x02\0\0\0\0\0\0\0]B\x06\0\0\0.r\xff\xff\xff\xffa.",
        "no tensors by name",
    ),
    "frame of 8 EiB": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f].", "no tensors by name"),
    "codec": (
        b"\x80\x02c_codecs\nencode\n" + text("x") + text("zip") + b"\x86R.",
        "asks for '_codecs.encode'",
    ),
    "ext1": (b"\x80\x02\x82\x01.", "EXT1"),
    "persistent text": (b"Pabc\n.", "PERSID"),
    "buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "deep list": (b"\x80\x02" + b"]" * NEST + b"a" * (NEST - 1) + b".", "no tensors by name"),
    "deep dict": (
        b"\x80\x02" + (b"}" + text("model")) * 50_000 + b"}" + b"s" * 50_000 + b".",
        "no tensors by name",
    ),
    "memo of 4 billion": (
        b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\xffa.",
        "remembers more values",
    ),
    "bytes of 8 EiB": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.", "expected .* bytes"),
    "integer of 12 MB": (
        b"\x80\x02\x8b" + (12_000_000).to_bytes(4, "little") + b"\x7f" * 12_000_000 + b".",
        "more than 4096 bits",
    ),
    "shared tuples as key": (shared(b")", b"h\x00h\x00\x86", b"}h\x00Ns"), "no tensors by name"),
    "shared records": (
        shared(b"N", b"c__torch__\nA\n)\x81}(" + text("a") + b"h\x00" + text("b") + b"h\x00ub"),
        "too many",
    ),
    "long names": (
        shared(b"N", b"c__torch__\nA\n)\x81}(" + text("n" * 900) + b"h\x00ub"),
        "no tensors by name",
    ),
    "a long name in many records": (
        shared(
            text("n" * 1_000_000) + b"q\x01",
            b"c__torch__\nA\n)\x81}(h\x01N" + text("a") + b"h\x00" + text("b") + b"h\x00ub",
        ),
        "names too long",
    ),
    "list in itself": (b"\x80\x02]q\x00h\x00a.", "no tensors by name"),
    "dict in itself": (b"\x80\x02}q\x00" + text("model") + b"h\x00s.", "no tensors by name"),
    "record in itself": (
        b"\x80\x02c__torch__\nA\n)\x81q\x00}" + text("a") + b"h\x00sb.",
        "no tensors by name",
    ),
    "key that cannot be hashed": (b"\x80\x02}]Ns.", "no tensors by name"),
    "huge key": (b"\x80\x02}\x8a\x09" + b"\x7f" * 9 + b"Ns.", "no tensors by name"),
    "copies": (
        b"\x80\x02}("
        + HALF_FULL
        + b"uq\x00"
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
        + b".",
        "no tensors by name",
    ),
    "sets": (b"\x80\x04(" + b"\x8f" * 900_000 + b"t.", "too many objects"),
    "memo of a million": (
        b"\x80\x02N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(999_000)) + b".",
        "no tensors by name",
    ),
    "long class names": (
        b"\x80\x04("
        + short("__torch__")
        + b"\x94"
        + text("n" * 1_000_000)
        + b"\x94"
        + b"h\x00h\x01\x93" * 1000
        + b"t.",
        "a name that is too long",
    ),
    "too many steps": (b"\x80\x02" + b"N" * 1_000_001 + b".", "more than 1,000,000 steps"),
    "too big": (b"\x80\x02" + b"N" * (17 << 20) + b".", "more than 1,000,000 steps"),
    "no end": (b"\x80\x02}", "exhausted before seeing STOP"),
}

WHOLE = (0, (2, 2), (2, 1))  # place, sizes and strides of a tensor that is in order
TENSORS: dict[str, tuple[tuple[Any, ...], str]] = {
    "beyond": ((1, (2, 2), (2, 1)), "beyond its storage"),
    "before": ((-1, (2, 2), (2, 1)), "impossible place"),
    "backwards": ((3, (4,), (-1,)), "impossible place"),
    "wider steps": ((0, (2,), (2**70,)), "impossible place"),
    "negative size": ((0, (-2, -2), (2, 1)), "impossible shape"),
    "overflow": ((0, (2**32, 2**32), (0, 0)), "would unpack to"),
    "overflow beside nothing": ((0, (0, 2**40, 2**40), (0, 0, 0)), "array is too big"),
    "expanded a bit": ((0, (2**23,), (0,)), "would unpack to"),
    "size that is a bool": ((0, (True, 2), (2, 1)), "impossible shape"),
    "offset that is none": ((None, (2, 2), (2, 1)), "impossible place"),
    "strides of another rank": ((0, (2, 2), (1,)), "do not fit"),
    "shape that is none": ((0, None, (1,)), "shape or strides are none"),
    "40 axes": ((0, (1,) * 40, (1,) * 40), "too many axes"),
    "negated": ((0, (2, 2), (2, 1), False, {}, {"neg": True}), "negative of another"),
}


def with_storage(key: str, kind: bytes, count: bytes) -> bytes:
    storage = b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"
    return b"\x80\x02}" + text("a") + TENSOR + b"(" + storage + b"K\x00K\x02\x85K\x01\x85\x89}tRs."


STORAGES: dict[str, tuple[bytes, str]] = {
    "absent": (with_storage("7", b"ctorch\nFloatStorage\n", b"K\x04"), "storage '7' are missing"),
    "outside": (
        with_storage("../../../../etc/passwd", b"ctorch\nFloatStorage\n", b"K\x04"),
        "are missing",
    ),
    "longer than its bytes": (
        with_storage("0", b"ctorch\nDoubleStorage\n", b"K\x04").replace(b"K\x02\x85", b"K\x04\x85"),
        "are missing",
    ),
    "of no type": (with_storage("0", b"ctorch\nfloat32\n", b"K\x04"), "storage in a way"),
    "of negative size": (
        with_storage("0", b"ctorch\nFloatStorage\n", b"J\xff\xff\xff\xff"),
        "beyond",
    ),
    "none": (b"\x80\x02}" + text("a") + TENSOR + b"(NK\x00))\x89}tRs.", "storage in a way"),
}


def tensor_pickle(arguments: tuple[Any, ...]) -> bytes:
    """A state dict of a tensor of 4 float32 whose place is told by `arguments`."""
    flat = b"".join(pickled(x)[0][2:-1] for x in arguments)
    rest = b"\x89}" if len(arguments) == 3 else b""
    return b"\x80\x02}" + text("a") + TENSOR + b"(" + STORAGE + flat + rest + b"tRs."


def hostile_pickles() -> Iterator[tuple[str, bytes, str]]:
    yield from ((name, *case) for name, case in PICKLES.items())
    yield from ((f"storage {name}", *case) for name, case in STORAGES.items())
    for name, (arguments, message) in TENSORS.items():
        yield f"tensor {name}", tensor_pickle(arguments), message
