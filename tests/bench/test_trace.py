"""Which kind of operation a program's time goes to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tcl_jax.bench.timing import Runner
from tcl_jax.bench.trace import KINDS, Program, summary, time_by_kind

HLO = """HloModule jit_step

%added (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%product (p: f32[8,8]) -> f32[8] {
  %p = f32[8,8]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %inner = f32[8,8]{1,0} fusion(%p), kind=kLoop, calls=%inner_product
  ROOT %r = f32[8]{0} reduce(%inner, %zero), dimensions={1}, to_apply=%added
}

%inner_product (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%q, %q), metadata={op_name="jit(step)/mlp/dot_general"}
}

%moved (a: f32[8,8], i: s32[]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %next = s32[] add(%i, %i)
  ROOT %t = f32[8,8]{0,1} transpose(%a), dimensions={1,0}
}

%summed (b: f32[8,8]) -> f32[8] {
  %b = f32[8,8]{1,0} parameter(0)
  %e = f32[8,8]{1,0} exponential(%b)
  ROOT %s = f32[8]{0} reduce(%e, %b), dimensions={1}, to_apply=%added
}

ENTRY %main (input: f32[8,8]) -> f32[8,8] {
  %input = f32[8,8]{1,0} parameter(0)
  %loop_fusion.5 = f32[8]{0} fusion(%input), kind=kInput, calls=%product
  %copied = f32[8,8]{0,1} fusion(%input), kind=kLoop, calls=%moved
  %rows = f32[8]{0} fusion(%input), kind=kInput, calls=%summed
  %softmax = f32[8]{0} fusion(%input), calls=%summed, metadata={op_name="block/attention/exp"}
  %scores = f32[8,8]{1,0} dot(%input, %input), metadata={op_name="jvp(attention)/dot_general"}
  %project = f32[8,8]{1,0} dot(%input, %input), metadata={op_name="block/in_proj/dot_general"}
  %gemm = (f32[8,8]{1,0}, s8[99]{0}) custom-call(%input), custom_call_target="__cublas$lt$matmul"
  %conv = (f32[8,8]{1,0}, u8[9]{0}) custom-call(%input), custom_call_target="__cudnn$convForward"
  %fmha = (f32[8,8]{1,0}, u8[9]{0}) custom-call(%input), custom_call_target="__cudnn$fmhaSoftmax"
  %solve = f32[8,8]{1,0} custom-call(%input), custom_call_target="cusolver_getrf"
  %window = f32[8,8]{1,0} convolution(%input, %input), metadata={op_name="jit(step)/conv"}
  %on_tpu = f32[8,8]{1,0} convolution(%input, %input), metadata={op_name="jit(step)/dot_general"}
  %gelu = f32[8,8]{1,0} tanh(%input)
  %sum = f32[8,8]{1,0} all-reduce(%input), to_apply=%added
  ROOT %loop = f32[8,8]{1,0} while(%input), condition=%added, body=%added
}
"""


@pytest.mark.parametrize(
    ("operations", "kind"),
    [
        (["loop_fusion_5", "%loop_fusion.5 = f32[8] fusion(x)", "project"], "matrix products"),
        (["gemm", "on_tpu"], "matrix products"),
        (["conv", "window"], "convolutions"),
        (["fmha", "scores", "softmax"], "attention"),
        (["rows"], "reductions"),
        (["copied", "MemcpyD2D", "Memset"], "copies and layout changes"),
        (["gelu"], "elementwise"),
        (["solve", "sum", "loop", "not_of_the_program"], "other"),
    ],
)
def test_operations_are_of_the_kind_of_their_instruction(operations: list[str], kind: str) -> None:
    program = Program(HLO)
    assert {program.kind(operation) for operation in operations} == {kind}
    shares = {
        row["kind"]: row["time_share"] for row in summary(dict.fromkeys(operations, 1e9), program)
    }
    assert shares == {**dict.fromkeys(KINDS, 0), kind: 1}


def test_a_program_that_is_one_product_spends_its_time_there() -> None:
    x = jnp.eye(1024)
    found = time_by_kind(Runner(jax.jit(lambda x: (x @ x,)).trace(x), (x,), carried=1))
    rows = {row["kind"]: row for row in found}
    assert list(rows) == list(KINDS)
    assert sum(row["time_share"] for row in found) == pytest.approx(1)
    assert rows["matrix products"]["time_share"] > 0.9 and rows["matrix products"]["seconds"] > 0
