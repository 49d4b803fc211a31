"""Collectives read off XLA's text: by hand, and of a program compiled here."""

import json
import os
import subprocess
import sys

import pytest

from vitscale.core import hlo

LOOP = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%body (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %p = (s32[]{:T(128)}, bf16[64]{0:T(256)(128)(2,1)}) parameter(0)
  %x = bf16[64]{0} get-tuple-element(%p), index=1
  %gather = bf16[512]{0:T(1024)(128)(2,1)S(1)} all-gather(%x), channel_id=1, GROUPS, dimensions={0}
  %slice = bf16[64]{0} slice(%gather), slice={[0:64]}
  ROOT %t = (s32[]{:T(128)}, bf16[64]{0}) tuple(%i, %slice)
}

%condition (p: (s32[], bf16[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, bf16[64]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: bf16[64]) -> f32[8,4] {
  %x = bf16[64]{0} parameter(0)
  %loop = (s32[]{:T(128)}, bf16[64]{0}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  ROOT %all = f32[8,4]{1,0} all-reduce(%y), channel_id=2, GROUPS, to_apply=%add
}
"""  # noqa: E501


def read(groups, *, devices=8, island=None, text=LOOP):
  text = text.replace("GROUPS", groups)
  return hlo.collectives(text, devices=devices, island=island)


@pytest.mark.parametrize(
  "groups",
  [
    "replica_groups={{0,1,2,3,4,5,6,7}}",
    "replica_groups={}",
    "replica_groups=[1,8]<=[8]",
    "replica_groups=mesh['a'=2,'b'=4] {'a','b'}",
  ],
)
def test_loops_weigh_and_groups_are_read(groups):
  found = read(groups)
  gather, reduce = found["all-gather"], found["all-reduce"]
  assert (gather.count, gather.bytes) == (12, 12 * 1024)
  assert gather.wire_bytes == 12 * 1024 * 7 / 8 and gather.far_bytes == 0
  assert (reduce.count, reduce.bytes) == (1, 128)
  assert reduce.wire_bytes == 2 * 128 * 7 / 8


@pytest.mark.parametrize(
  ("groups", "size", "far"),
  [
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2, 0.5),  # between slices
    ("replica_groups=[4,2]<=[2,4]T(1,0)", 2, 0.5),
    ("replica_groups=mesh['r'=2,'f'=4] {'r'}", 2, 0.5),
    (
      "replica_groups=mesh['f'=4,'r'=2], device_ids=([2,4]T(1,0)) {'r'}",
      2,
      0.5,
    ),
    ("replica_groups=[2,4]<=[8]", 4, 0.0),  # within
    ("replica_groups=mesh['r'=2,'f'=4] {'f'}", 4, 0.0),
    ("replica_groups=[1,8]<=[8]", 8, 0.5 / 4),  # both: one shard crosses
  ],
)
def test_what_leaves_a_slice(groups, size, far):
  gather = read(groups, island=4)["all-gather"]
  assert gather.wire_bytes == pytest.approx(12 * 1024 * (size - 1) / size)
  assert gather.far_bytes == pytest.approx(12 * 1024 * far)


def test_groups_of_one_cost_nothing():
  assert read("replica_groups=[8,1]<=[8]") == {}


def test_loop_of_unknown_length_is_an_error():
  text = LOOP.replace("constant(12)", "parameter(1)")
  with pytest.raises(ValueError, match="unknown length"):
    read("replica_groups={}", text=text)


FUSED = """HloModule step

%all-reduce-scatter.1 (x: bf16[64,8]) -> bf16[8,8] {
  %x = bf16[64,8]{1,0} parameter(0)
  %sum = bf16[64,8]{1,0} all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %mine = bf16[8,8]{1,0} dynamic-slice(%sum, %i, %zero), dynamic_slice_sizes={8,8}
}

%piece.1 (x: bf16[8]) -> bf16[64] {
  ROOT %g = bf16[64]{0} all-gather(%x), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

%piece.2 (x: bf16[8]) -> bf16[64] {
  ROOT %g = bf16[64]{0} all-gather(%x), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

ENTRY %main (x: bf16[64,8]) -> bf16[8,8] {
  %x = bf16[64,8]{1,0} parameter(0)
  %one = bf16[64]{0} fusion(%y), kind=kLoop, calls=%piece.1
  %two = bf16[64]{0} fusion(%y), kind=kLoop, calls=%piece.2
  %start = (bf16[16,6]{1,0}, bf16[16,6]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%z), channel_id=9, source_target_pairs={{0,1},{1,2}}
  %done = bf16[16,6]{1,0} collective-permute-done(%start)
  %ag = (f32[2]{0}, f32[16]{0}) all-gather-start(%w), channel_id=4, replica_groups=[1,8]<=[8], dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ag)
  %rs = f32[4]{0} reduce-scatter(%v), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  ROOT %f = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_what_the_tpu_compiler_makes_of_them():
  found = hlo.collectives(FUSED, devices=8)
  scatter, gather = found["reduce-scatter"], found["all-gather"]
  # One fused out of an all-reduce (64 x 8 x 2 bytes), one plain (4 x 8 x 4).
  assert (scatter.count, scatter.bytes) == (2, 1024 + 128)
  # Two pieces of one chain (64 x 2), and one started and done (16 x 4).
  assert (gather.count, gather.bytes) == (2, 128 + 64)
  permute = found["collective-permute"]
  assert (permute.count, permute.bytes) == (1, 16 * 6 * 2)
  assert "all-reduce" not in found


SLICES = """HloModule step

ENTRY %main (x: f32[256]) -> f32[256] {
  %send.1 = (f32[16,8]{1,0:T(8,128)}, u32[], token[]) send(%x, %after), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.7_0",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=4, is_host_transfer=true
  %plain = (f32[16,8]{1,0:T(8,128)}, u32[], token[]) send(%x, %after), channel_id=5, is_host_transfer=true
}
"""  # noqa: E501


def test_transfers_between_slices():
  found = hlo.collectives(SLICES, devices=8, island=4)
  assert list(found) == ["dcn-all-reduce"]
  total = found["dcn-all-reduce"]
  assert (total.count, total.bytes) == (1, 512)
  assert total.wire_bytes == total.far_bytes == 512
  three = hlo.collectives(SLICES, devices=12, island=4)["dcn-all-reduce"]
  assert three.far_bytes == pytest.approx(512 * 4 / 3)


PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from vitscale.core import hlo

mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
split = lambda *spec: NamedSharding(mesh, P(*spec))

def step(weights, x):
  def layer(x, w):
    w = jax.lax.with_sharding_constraint(w, split())  # gather
    return jnp.tanh(x @ w), None
  return jax.lax.scan(layer, x, weights)[0].sum()

def shape(s, *spec):
  return jax.ShapeDtypeStruct(s, "float32", sharding=split(*spec))

weights = shape((5, 64, 64), None, "x")
x = shape((16, 64), "x")
text = jax.jit(step).lower(weights, x).compile().as_text()
found = hlo.collectives(text, devices=8)
print(json.dumps({k: [t.count, t.bytes] for k, t in found.items()}))
"""


def test_a_compiled_loop():
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
    capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["all-gather"] == [5, 5 * 64 * 64 * 4]
  assert found["all-reduce"] == [1, 4]
