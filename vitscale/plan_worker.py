"""The process behind `vitscale plan`: one JSON request in, one answer out.

Compiling for hardware that isn't there may abort or hang inside somebody
else's library, so it happens in a process of its own; `vitscale.plan` starts
it with the right environment and a time limit.

    compile    the real training step, by the TPU compiler
    estimate   the same figures by arithmetic, for each of some `changes`
"""

import functools
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core as jex

from vitscale import bench as bench_lib
from vitscale import plan_data
from vitscale.core import accounting, estimate, hlo, topology
from vitscale.core import config as config_lib
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError
from vitscale.core.log import jsonable
from vitscale.nn import attention
from vitscale.nn.block import REMAT


def compile_step(request: Mapping[str, Any]) -> dict[str, Any]:
  """The training step of a config, compiled for a TPU topology."""
  where = topology.parse(request["topology"])
  config = changed(_config(request), request.get("changes") or {})
  devices = topology.devices(where)
  bench, data = built(config, devices, request)
  draw, flops = costliest(bench)
  traced = bench.trace(*bench.inputs, draw=draw)
  lowered = traced.lower()
  began = time.perf_counter()
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    hbm = out_of_memory(str(error))
    if hbm is None:
      raise
    found = {}
  else:
    hbm = _hbm(program.memory_analysis(), where)
    found = hlo.collectives(
      program.as_text(), devices=where.devices, island=where.island
    )
  seconds = time.perf_counter() - began
  mesh = dict(bench.mesh.shape)
  hbm["kinds"] = estimate.state_bytes(bench, mesh, bench.batch_size)
  return {
    **summary(bench, where, flops, hbm, found, draw),
    "data": data,
    "method": "compiled",
    "compile_seconds": round(seconds, 1),
  }


def estimate_step(request: Mapping[str, Any]) -> dict[str, Any]:
  """The figures of `compile_step` by arithmetic, for each of `changes`.

  A change may set mesh, batch_size, accumulate and model.remat; without
  `changes`, those of a search are made here.
  """
  where = topology.parse(request["topology"])
  config, todo = _config(request), request.get("changes")
  if todo is None:
    config = changed(config, {"mesh": {"replica": -1}, "evals": {}})
  elif where.slices > 1 and not config.get("mesh"):  # as make_mesh does
    slices = {"replica": where.slices, "fsdp": -1}
    config = changed(config, {"mesh": slices})
  bench, data = built(config, jax.devices(), request)  # as many fake ones
  backend = _attention(bench, where)
  if backend:
    config = changed(config, backend)
    bench, data = built(config, jax.devices(), request)
  kept = functools.cache(lambda remat: _kept(bench, remat))
  executed = functools.cache(
    lambda remat: _executed(config, remat, bench, request)
  )
  answers = []
  for change in candidates(bench, where) if todo is None else todo:
    mesh = change.get("mesh") or dict(bench.mesh.shape)
    batch_size = change.get("batch_size", bench.batch_size)
    accumulate = change.get("accumulate", config.get("accumulate", 1))
    remat = change.get("model.remat", getattr(bench.model, "remat", None))
    try:
      draw, each = executed(remat)
    except UserError as error:  # a family without remat
      answers.append({"change": change, "error": str(error)})
      continue
    hbm = estimate.memory(
      bench, mesh, batch_size=batch_size, accumulate=accumulate,
      kept=kept(remat), whole=kept(None),
    )  # fmt: skip
    hbm |= {
      "limit": where.spec.hbm,
      "kinds": estimate.state_bytes(bench, mesh, batch_size),
    }
    found = estimate.traffic(bench, mesh, where, accumulate=accumulate)
    answers.append({
      **summary(
        bench, where, each * batch_size, hbm, found, draw, mesh=mesh,
        batch_size=batch_size, accumulate=accumulate, remat=remat,
      ),
      "change": change, "data": data, "method": "analysis",
      "compile_seconds": None, "warnings": _uncounted(mesh),
    })  # fmt: skip
  return {"answers": answers}


def _uncounted(mesh: Mapping[str, int]) -> list[str]:
  axes = [axis for axis in ("tensor", "sequence") if mesh[axis] > 1]
  text = f"the analysis does not count what {' and '.join(axes)} exchange"
  return [f"{text}: the network's bound is too low"] * bool(axes)


def _kept(bench: bench_lib.Bench, remat: str | None) -> float:
  clone = {"remat": remat} if hasattr(bench.model, "remat") else {}
  return estimate.residual_bytes(bench, bench.model.clone(**clone))


def _executed(config, remat, bench, request) -> tuple[tuple, float]:
  """The costliest draw and its executed FLOPs an example, under a remat."""
  if remat != getattr(bench.model, "remat", None):
    mesh = {"mesh": {"replica": -1}}
    config = changed(config, {"model.remat": remat, **mesh})
    bench, _ = built(config, jax.devices(), request)
  draw, flops = costliest(bench)
  return draw, flops / bench.batch_size


# -------------------------------------------------------------------- configs


def _config(request: Mapping[str, Any]) -> config_lib.ConfigDict:
  return config_lib.load(request["config"], request.get("overrides") or ())


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
  """A copy of a config with dotted keys set; values may change type."""
  config = config.copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    for key, value in changes.items():
      *parents, leaf = key.split(".")
      node = config
      for name in parents:
        node = node[name]
      node[leaf] = (
        config_lib.ConfigDict(value) if isinstance(value, dict) else value
      )
  return config.lock()


def candidates(
  bench: bench_lib.Bench, where: topology.Topology
) -> list[dict[str, Any]]:
  """Changes that `--search` looks at: mesh x remat x batch."""
  remats = list(REMAT) if hasattr(bench.model, "remat") else [None]
  return [
    {"mesh": mesh, "batch_size": bench.batch_size * k}
    | ({"model.remat": remat} if len(remats) > 1 else {})
    for mesh in estimate.meshes(bench, where.devices, where.slices)
    for k in (1, 2, 4)
    for remat in remats
  ]


def built(
  config: Any, devices: Any, request: Mapping[str, Any]
) -> tuple[bench_lib.Bench, dict[str, Any]]:
  """The bench of a config, with its data or what stands in for them."""
  source, data = plan_data.source(config, request)
  try:
    bench = bench_lib.build(config, devices=devices, source=source)
  except AxisError as error:
    raise UserError(f"{error}{_way_out(config, devices, source)}") from error
  return bench, data


def _way_out(config: Any, devices: Any, source: Any) -> str:
  """A mesh in which the config's dimensions divide, as a hint."""
  size = len(devices) * config.get("accumulate", 1)
  plain = {"rules": {}, "evals": {}, "batch_size": size}
  config = changed(config, {"mesh": {"replica": -1}, **plain})
  try:
    bench = bench_lib.build(config, devices=devices, source=source)
  except UserError:
    return ""
  slices = len({getattr(d, "slice_index", 0) or 0 for d in devices})
  most = estimate.meshes(bench, len(devices), slices)[-1]["fsdp"]
  return (
    f"; of {len(devices)} devices this model can be split over {most}:"
    f" mesh.replica=-1 mesh.fsdp={most}, or let --search choose"
  )


def _attention(
  bench: bench_lib.Bench, where: topology.Topology
) -> dict[str, str]:
  """A back end that can be traced here, of the real platform's arithmetic.

  Kernels keep what `chunked` keeps for the backward pass.
  """
  if getattr(bench.model, "attention", None) != "auto":
    return {}
  tokens = bench.facts["tokens_per_example"]
  short = where.is_tpu and tokens < attention.LONG
  return {"model.attention": "xla" if short else "chunked"}


# -------------------------------------------------------------------- figures


def costliest(bench: Any) -> tuple[tuple, float]:
  """The draw whose step executes most FLOPs, and these."""
  found = []
  for values in itertools.product(*(d.values for d in bench.draws)):
    draw = tuple(sorted((d.name, v) for d, v in zip(bench.draws, values)))
    jaxpr = bench.trace(*bench.inputs, draw=draw).jaxpr
    counted = accounting.count_flops(
      jex.jaxpr_as_fun(jaxpr), *[v.aval for v in jaxpr.jaxpr.invars]
    )
    found.append((counted.matmul, draw))
  flops, draw = max(found)
  return draw, flops


def _hbm(memory: Any, where: topology.Topology) -> dict[str, float]:
  """What the compiler says of one device, bytes."""
  argument, output = memory.argument_size_in_bytes, memory.output_size_in_bytes
  new = max(output - memory.alias_size_in_bytes, 0)  # the rest is donated
  code = memory.generated_code_size_in_bytes
  return {
    "argument": argument,
    "temp": memory.temp_size_in_bytes,
    "output": new,
    "code": code,
    "total": argument + memory.temp_size_in_bytes + new + code,
    "limit": where.spec.hbm,
  }


def out_of_memory(text: str) -> dict[str, float] | None:
  """`total` and `limit` of the compiler's refusal; None for another error."""
  size = r"([\d.]+)([KMGT])"
  found = re.search(f"Used {size} of {size} hbm", text) or re.search(
    rf"required for HLO temporaries \({size}\) exceeds available HBM"
    rf" \({size}\)",
    text,
  )
  if not found:
    return None
  unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return {
    "argument": None, "temp": None, "output": None, "code": None,
    "total": float(found[1]) * unit[found[2]],
    "limit": float(found[3]) * unit[found[4]],
  }  # fmt: skip


def summary(
  bench, where, flops, hbm, found, draw, **change: Any
) -> dict[str, Any]:
  """Everything that `vitscale plan --json` says of one bench.

  Args:
    bench: of the config.
    where: the topology.
    flops: executed by a step.
    hbm: bytes of a device.
    found: collectives of a device.
    draw: what was drawn.
    **change: mesh, batch_size, accumulate and remat, where not the bench's
      own; the run then sees as many examples.
  """
  own = {
    "mesh": dict(bench.mesh.shape),
    "batch_size": bench.batch_size,
    "accumulate": bench.config.get("accumulate", 1),
    "remat": getattr(bench.model, "remat", None),
  } | change
  batch_size = own["batch_size"]
  steps = -(-bench.total_steps * bench.batch_size // batch_size)
  facts, tokens = bench.facts, bench.facts["tokens_per_example"]
  touched = sum(hbm[k] or 0 for k in ("argument", "output"))
  touched += 2 * (hbm["temp"] or 0)
  bound = estimate.roofline(
    where, flops=flops, hbm_bytes=touched, collectives=found
  )
  seconds = bound.step_s * steps
  model_flops = facts["flops_per_example"] * batch_size
  peak = accounting.peak_flops(where.spec.kind)
  return {
    "topology": where.name,
    "chip": where.chip,
    "chips": where.chips,
    "devices": where.devices,
    "slices": where.slices,
    **own,
    "params": facts["params"],
    "tokens_per_example": tokens,
    "attention": ", ".join(bench.facts["attention"]) or None,
    "draw": dict(draw),
    "hbm": hbm,
    "fits": hbm["total"] <= hbm["limit"],
    "flops_per_step": model_flops,
    "executed_flops_per_step": flops,
    "collectives": {
      kind: {
        "count": total.count,
        "bytes": total.bytes,
        "wire_bytes": round(total.wire_bytes),
        "far_bytes": round(total.far_bytes),
      }
      for kind, total in sorted(found.items())
    },
    "bound": {
      "compute_s": bound.compute_s,
      "memory_s": bound.memory_s,
      "network_s": bound.network_s,
      "step_s": bound.step_s,
      "binding": bound.binding,
    },
    "tokens_per_s_bound": batch_size * tokens / bound.step_s,
    "examples_per_s_bound": batch_size / bound.step_s,
    "mfu_bound": model_flops / bound.step_s / where.devices / peak,
    "total_steps": steps,
    "hours": seconds / 3600,
    "chip_hours": seconds / 3600 * where.chips,
  }


MODES = {"compile": compile_step, "estimate": estimate_step}


def main() -> None:
  """Reads a request from stdin, writes the answer to stdout."""
  request = json.load(sys.stdin)
  real = os.dup(1)
  os.dup2(2, 1)  # libraries print; only the answer goes to stdout
  try:
    answer = MODES[request["mode"]](request)
  except UserError as error:
    answer = {"error": str(error)}
  with os.fdopen(real, "w") as out:
    json.dump(jsonable(answer), out)


if __name__ == "__main__":
  main()
