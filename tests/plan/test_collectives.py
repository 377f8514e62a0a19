"""What chips exchange, read from programs as compilers write them."""

from __future__ import annotations

import pytest

from tcl_jax.plan.collectives import collectives

# As the TPU compiler writes it: layouts in shapes, groups as axes of a mesh, one operation's text
# in two fusions that hide it, and a loop whose bound stands in its condition.
GATHER = "all-gather(%p), channel_id=3, dimensions={0}, " + (
    "replica_groups=mesh['axis_0'=16] {'axis_0'}, metadata={op_name=\"texts\"}"
)
IN_LOOP = "channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add"
GRADIENTS = "(bf16[3,64]{1,0:T(8,128)(2,1)}, f32[]{:T(128)}, /*index=2*/f32[10]{0:T(128)})"
TPU = f"""
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

%first_half (p: f32[8,512]) -> f32[128,512] {{
  %p = f32[8,512]{{1,0:T(8,128)}} parameter(0)
  ROOT %gather.1 = f32[128,512]{{1,0:T(8,128)}} {GATHER}
}}

%second_half (p: f32[8,512]) -> f32[128,512] {{
  %p = f32[8,512]{{1,0:T(8,128)}} parameter(0)
  ROOT %gather.2 = f32[128,512]{{1,0:T(8,128)}} {GATHER}
}}

%condition (state: (s32[], f32[256])) -> pred[] {{
  %state = (s32[]{{:T(128)}}, f32[256]{{0:T(256)}}) parameter(0)
  %bound = s32[]{{:T(128)}} constant(5)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%i, %bound), direction=LT
}}

%body (state: (s32[], f32[256])) -> (s32[], f32[256]) {{
  %state = (s32[]{{:T(128)}}, f32[256]{{0:T(256)}}) parameter(0)
  %x = f32[256]{{0:T(256)}} get-tuple-element(%state), index=1
  %sum.1 = f32[256]{{0:T(256)S(1)}} all-reduce(%x), {IN_LOOP}
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  ROOT %next = (s32[]{{:T(128)}}, f32[256]{{0:T(256)}}) tuple(%i, %sum.1)
}}

ENTRY %main (p: f32[8,512], x: f32[256]) -> f32[128,512] {{
  %p = f32[8,512]{{1,0:T(8,128)}} parameter(0)
  %x = f32[256]{{0:T(256)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant(0)
  %start = (s32[]{{:T(128)}}, f32[256]{{0:T(256)}}) tuple(%zero, %x)
  %loop = (s32[]{{:T(128)}}, f32[256]{{0:T(256)}}) while(%start), condition=%condition, body=%body
  %grads = {GRADIENTS} all-reduce(%x, %zero, %x), channel_id=9, replica_groups=[1,16]<=[16]
  %f.1 = f32[128,512]{{1,0:T(8,128)}} fusion(%p), kind=kCustom, calls=%first_half
  ROOT %f.2 = f32[128,512]{{1,0:T(8,128)}} fusion(%p), kind=kCustom, calls=%second_half
}}
"""

# As the GPU compiler writes it: operations that are started hold their operands too.
STARTED = """
HloModule jit_f

ENTRY main {
  p = f32[4,8]{1,0} parameter(0)
  s = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(p), replica_groups=[1,4]<=[4], dimensions={0}
  d = f32[16,8]{1,0} all-gather-done(s)
  c = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(p), channel_id=2
  e = f32[4,8]{1,0} collective-permute-done(c)
  r = f32[1,8]{1,0} reduce-scatter(p), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
  alone = f32[4,8]{1,0} all-reduce(p), channel_id=4, replica_groups={{0},{1},{2},{3}}
}
"""


def test_operations_of_a_tpu_program() -> None:
    gathered, reduced = sorted(collectives(TPU, 16), key=lambda c: c.kind)
    assert (gathered.kind, gathered.count, gathered.bytes) == ("all-gather", 1, 128 * 512 * 4)
    assert gathered.sent == pytest.approx(15 / 16 * gathered.bytes)
    # The loop's four bytes times 256 five times over groups of four; gradients over all sixteen.
    gradients = 2 * 3 * 64 + 4 + 4 * 10
    assert (reduced.kind, reduced.count) == ("all-reduce", 6)
    assert reduced.bytes == 5 * 4 * 256 + gradients
    assert reduced.sent == pytest.approx(2 * 3 / 4 * 5 * 4 * 256 + 2 * 15 / 16 * gradients)


def test_operations_that_are_started_and_those_of_one_chip() -> None:
    found = {c.kind: c for c in collectives(STARTED, 4)}
    assert set(found) == {"all-gather", "collective-permute", "reduce-scatter"}
    assert found["all-gather"].bytes == 16 * 8 * 4
    assert found["collective-permute"].bytes == found["collective-permute"].sent == 4 * 8 * 4
    assert found["reduce-scatter"].bytes == 4 * 8 * 4
    assert found["reduce-scatter"].sent == 3 / 4 * 4 * 8 * 4


def test_known_trips_are_believed_and_no_program_exchanges_nothing() -> None:
    known = TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert {c.kind: c.count for c in collectives(known, 16)}["all-reduce"] == 8
    assert collectives("HloModule m\n\nENTRY e {\n  p = f32[] parameter(0)\n}\n", 4) == ()
