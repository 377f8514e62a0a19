"""Which kinds of operations the time of a program goes to, by JAX's profiler."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from tcl_jax.bench.timing import Runner
from tcl_jax.errors import RunError
from tcl_jax.plan.hlo import Instruction, read_computations

ATTENTION, PRODUCTS, CONVOLUTIONS = "attention", "matrix products", "convolutions"
REDUCTIONS, COPIES, ELEMENTWISE = "reductions", "copies and layout changes", "elementwise"
OTHER = "other"
KINDS = (PRODUCTS, CONVOLUTIONS, ATTENTION, REDUCTIONS, COPIES, ELEMENTWISE, OTHER)
CALLS = 3

_REDUCING = {"reduce", "reduce-window", "select-and-scatter", "scatter"}
_MOVING = {
    "bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "copy", "copy-done",
    "copy-start", "dynamic-slice", "dynamic-update-slice", "gather", "get-tuple-element", "iota",
    "pad", "parameter", "reshape", "reverse", "slice", "transpose", "tuple",
}  # fmt: skip
_NEITHER = re.compile(
    r"(all|collective|async|send|recv|rng|custom|partition|replica|triangular)\b"
    r"|while|call|conditional|sort|fft|cholesky|infeed|outfeed|reduce-scatter|after-all|domain"
)
# The scope that `models.layers.block` gives attention, forward and backward; without projections.
_ATTENTION = re.compile(r"\battention\b|dot_product_attention|fmha", re.IGNORECASE)
# TPUs compute products of matrices as convolutions, whose op_name still ends in dot_general.
_PRODUCT = re.compile(r"\bdot\b|dot_general|gemm|matmul", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv(?!ert)", re.IGNORECASE)


class Program:
    """The instructions of a compiled program.

    Args:
        hlo: its text, `jax.stages.Compiled.as_text()`.
    """

    def __init__(self, hlo: str) -> None:
        self._computations = read_computations(hlo)
        self._instructions = {
            one.name: one for found in self._computations.values() for one in found
        }

    def kind(self, event: str) -> str:
        """One of `KINDS` for an event of a trace, which names an instruction.

        Kernels of fusions are called `loop_fusion_5` where the instruction is `loop_fusion.5`.
        """
        name = event.removeprefix("%").partition(" = ")[0]
        dotted = re.sub(r"_(\d+)$", r".\1", name)
        found = self._instructions.get(name) or self._instructions.get(dotted)
        if found is None:
            return COPIES if re.match(r"(?i)mem(cpy|set)", name) else OTHER
        parts = [found, *self._parts(found)]
        heavy = [p for p in parts if p.opcode in ("dot", "convolution", "custom-call")]
        main = heavy[0] if heavy else found
        source, target = main.attribute("op_name"), main.attribute("custom_call_target")
        if _ATTENTION.search(f"{source or found.attribute('op_name')} {target}"):
            return ATTENTION
        if heavy:
            what = f"{main.opcode} {source.rpartition('/')[2]} {target}"
            if _PRODUCT.search(what):
                return PRODUCTS
            return CONVOLUTIONS if _CONVOLUTION.search(what) else OTHER
        computed = [p.opcode for p in parts if p.opcode != "fusion" and not p.is_scalar]
        if any(_NEITHER.match(opcode) for opcode in computed):
            return OTHER
        if not _REDUCING.isdisjoint(computed):
            return REDUCTIONS
        return COPIES if _MOVING.issuperset(computed) else ELEMENTWISE

    def _parts(self, instruction: Instruction) -> Iterator[Instruction]:
        """What a fusion computes."""
        for part in self._computations.get(instruction.attribute("calls"), ()):
            yield part
            yield from self._parts(part)


def time_by_kind(runner: Runner) -> list[dict[str, Any]]:
    """Calls a program a few times under the profiler.

    Returns:
        `kind`, `time_share` and `seconds` of a call, on all devices, for each of `KINDS`.

    Raises:
        RunError: if the trace has no operation.
    """
    if jax.default_backend() == "gpu":
        # Kernels that are launched together as a graph do not say of which operation they are.
        runner.recompile(xla_gpu_enable_command_buffer="")
    jax.block_until_ready(runner())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            runner.run(CALLS)
        times: Counter[str] = Counter()
        with warnings.catch_warnings():
            # jaxlib makes a type that Python 3.12 warns of, and aborts where that is an error.
            warnings.simplefilter("ignore", DeprecationWarning)
            for file in Path(folder).rglob("*.xplane.pb"):
                times += operation_times(jax.profiler.ProfileData.from_file(str(file)))
    if not times:
        raise RunError(
            "JAX's profiler saw no operation. On a GPU it needs CUPTI, which comes with jax[cuda], "
            "and the right to use it (NVIDIA's ERR_NVGPUCTRPERM)"
        )
    return summary(times, Program(runner.compiled.as_text() or ""))


def summary(times: Mapping[str, float], program: Program) -> list[dict[str, Any]]:
    """What `time_by_kind` returns, of nanoseconds by operation that `CALLS` calls took."""
    spent = dict.fromkeys(KINDS, 0.0)
    for name, nanoseconds in times.items():
        spent[program.kind(name)] += nanoseconds
    total = sum(times.values())
    return [
        {"kind": kind, "time_share": spent[kind] / total, "seconds": spent[kind] / 1e9 / CALLS}
        for kind in KINDS
    ]


def operation_times(profile: jax.profiler.ProfileData) -> Counter[str]:
    """Nanoseconds of each HLO operation in a trace, without those of operations inside of it.

    A GPU's plane has a line for every stream (and others that sum these up), a TPU's the line "XLA
    Ops"; on a CPU the threads' events name the operation.
    """
    times: Counter[str] = Counter()
    for plane in profile.planes:
        lines = list(plane.lines)
        on_device = plane.name.startswith("/device:")
        if on_device:
            streams = [line for line in lines if line.name.startswith("Stream")]
            lines = streams or [line for line in lines if line.name == "XLA Ops"]
        for line in lines:
            running: list[tuple[float, str]] = []  # ends and names of operations around an event
            for event in sorted(line.events, key=lambda e: (e.start_ns, -e.duration_ns)):
                name = dict(event.stats).get("hlo_op") or (event.name if on_device else None)
                if name is None:
                    continue
                while running and running[-1][0] <= event.start_ns:
                    running.pop()
                if running:
                    times[running[-1][1]] -= event.duration_ns
                times[str(name)] += event.duration_ns
                running.append((event.start_ns + event.duration_ns, str(name)))
    return +times
