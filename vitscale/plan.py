"""What a config costs on hardware that isn't here.

    plan("vit_i1k:variant=L/16", topology="v5e:16x16")

TPUs: the real training step is compiled ahead of time by the TPU compiler
(libtpu, extra `[tpu]`), which needs no TPU; memory, fit and collectives are its
word. GPUs: their compiler needs a GPU, so the same figures come from
arithmetic, and say so. Times are lower bounds either way: what the step would
take if its binding resource worked at the published peak.
"""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from vitscale.core import topology as topology_lib
from vitscale.core.errors import UserError

TIMEOUT = 900.0  # seconds for one compilation
COMPILES = 4  # most that a search, or the advice after a misfit, compiles
GIB = 2**30

Say = Callable[[str], None]


def plan(
  config: str,
  overrides: Sequence[str] = (),
  *,
  topology: str,
  search: bool = False,
  classes: int = 0,
  examples: int = 0,
  timeout: float = TIMEOUT,
  say: Say = lambda text: None,
) -> dict[str, Any]:
  """Memory, collectives, bounds and chip-hours of a config on a topology.

  Args:
    config, overrides: as for `vitscale train`.
    topology: see `core.topology`.
    search: look for the mesh, batch and remat that fit and bound best.
    classes, examples: of the data, where they aren't here.
    timeout: seconds for each compilation.
    say: told what happens.

  Returns:
    see `plan_worker.summary`; with `search` also `candidates` and `change`. A
    step that doesn't fit has `fits` False and a `remedy`.

  Raises:
    UserError: unknown topology, no libtpu, a config that doesn't build there.
  """
  where = topology_lib.parse(topology)
  say(f"understood: {where.describe()}")
  if where.is_tpu and importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"planning for {where.name} needs the TPU compiler (libtpu, Linux on"
      " x86-64): pip install 'vitscale[tpu]'"
    )
  request = {
    "config": config, "overrides": list(overrides), "topology": where.name,
    "classes": classes, "examples": examples,
  }  # fmt: skip
  ask = _asker(request, where, timeout)
  if search:
    result = _search(ask, where, say)
  else:
    result = _one(ask, where, {})
    if not result["fits"]:
      say("does not fit; looking for the smallest change that does")
      result["remedy"] = remedy(ask, where, result)
  packages = ("vitscale", "jax") + ("libtpu",) * where.is_tpu
  return result | {
    "config": config,
    "overrides": list(overrides),
    "versions": {name: metadata.version(name) for name in packages},
  }


Ask = Callable[[str, Any], dict[str, Any]]


def _one(ask: Ask, where: topology_lib.Topology, change: Mapping) -> dict:
  """The plan of one change: compiled on TPUs, else by arithmetic."""
  if where.is_tpu:
    return {**ask("compile", dict(change)), "change": dict(change)}
  (answer,) = ask("estimate", [dict(change)])["answers"]
  if "error" in answer:
    raise UserError(answer["error"])
  return answer


def _search(ask: Ask, where: topology_lib.Topology, say: Say) -> dict[str, Any]:
  """The candidate with the most tokens a second that fits.

  Arithmetic ranks all of them; TPU candidates are compiled in that order,
  `COMPILES` at most, until one fits.
  """
  answers = ask("estimate", None)["answers"]
  good = [a for a in answers if "error" not in a]
  if not good:
    raise UserError(answers[0]["error"] if answers else "no mesh to try")
  good.sort(key=_rank)
  least = min(good, key=lambda a: a["hbm"]["total"])
  scale = 0.8 if where.is_tpu else 1.0  # the arithmetic may say too much
  tried: list[dict[str, Any]] = []
  for answer in good:
    guess, limit = answer["hbm"]["total"] * scale, answer["hbm"]["limit"]
    if guess > limit or len(tried) == COMPILES:
      continue
    result = _one(ask, where, answer["change"]) if where.is_tpu else answer
    tried.append(result)
    say(f"{_change_text(answer['change'])}: {fit_text(result)}")
    if result["fits"]:
      break
    scale = max(scale, result["hbm"]["total"] / answer["hbm"]["total"])
  best = tried[-1] if tried else least
  best |= {"candidates": len(answers), "compiled": len(tried) * where.is_tpu}
  if not best["fits"]:
    best["remedy"] = (
      f"none of {len(answers)} candidates is known to fit ({len(tried)} tried);"
      f" least memory by arithmetic: {_change_text(least['change'])},"
      f" {fit_text(least)}"
    )
  return best


def _rank(answer: Mapping[str, Any]) -> tuple:
  """Fast first; within 2 % the smaller batch, then less to keep."""
  speed = answer["tokens_per_s_bound"]
  return (
    -round(math.log(speed) / math.log(1.02)),
    answer["batch_size"],
    answer["hbm"]["total"],
  )


def remedy(
  ask: Ask, where: topology_lib.Topology, result: Mapping[str, Any]
) -> str:
  """The smallest change of a config that doesn't fit, in words.

  In order: recomputing more, parts of a batch one after another, both. The
  arithmetic, scaled to what was found, chooses; a TPU's compiler confirms, a
  few times at most.
  """
  ways = result["mesh"]["replica"] * result["mesh"]["fsdp"]
  parts = [
    k
    for k in (2, 4, 8, 16, 32, 64)
    if k > result["accumulate"] and result["batch_size"] % (k * ways) == 0
  ]
  remats = ["save_attention", "dots", "full"]
  if result["remat"] is not None:
    remats = ["full"] * (result["remat"] != "full")
  changes = [{"model.remat": r} for r in remats]
  changes += [{"accumulate": k} for k in parts]
  changes += [
    {"model.remat": "full", "accumulate": k} for k in parts * bool(remats)
  ]
  first, *answers = ask("estimate", [{}, *changes])["answers"]
  scale, tried = result["hbm"]["total"] / first["hbm"]["total"], 0
  for answer in answers:
    if "error" in answer:
      continue
    if answer["hbm"]["total"] * scale > result["hbm"]["limit"]:
      continue
    words = _change_text(answer["change"])
    if not where.is_tpu:
      return f"fits by arithmetic with {words}"
    if tried == COMPILES - 1:
      return f"may fit with {words} (arithmetic, not compiled)"
    after, tried = _one(ask, where, answer["change"]), tried + 1
    if after["fits"]:
      return f"fits with {words} ({fit_text(after)})"
    scale = max(scale, after["hbm"]["total"] / answer["hbm"]["total"])
  return _too_big(where, result)


def _too_big(where, result: Mapping[str, Any]) -> str:
  """What to do when no batch or remat helps: more devices."""
  state = sum(result["hbm"]["kinds"].values())
  return (
    f"no smaller batch part or remat fits; parameters and optimizer take"
    f" {state / GIB:.1f} GiB a device: split them over more devices"
    f" (mesh.fsdp, mesh.tensor) or take more than {where.devices}"
  )


# ----------------------------------------------------------------- subprocess


def _asker(request: Mapping, where, timeout: float) -> Ask:
  def ask(mode: str, changes: Any) -> dict[str, Any]:
    asked = {**request, "mode": mode, "changes": changes}
    fake = where.devices if mode == "estimate" else 1
    return run_worker(asked, fake_devices=fake, timeout=timeout)

  return ask


def environment(fake_devices: int) -> dict[str, str]:
  """Of the worker: CPU only, no waiting for cloud metadata, no caches.

  What else speaks to XLA is dropped: a plan is a function of its config.
  """
  env = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("JAX_", "XLA_", "TPU_"))
  }
  return env | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(fake_devices),
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at once
    "TPU_SKIP_MDS_QUERY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
  }


def run_worker(
  request: Mapping[str, Any], *, fake_devices: int, timeout: float
) -> dict[str, Any]:
  """One request to `vitscale.plan_worker`, ended after `timeout` seconds.

  Raises:
    UserError: what the worker complained of, its crash, or the time limit.
  """
  worker = subprocess.Popen(
    [sys.executable, "-P", "-m", "vitscale.plan_worker"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment(fake_devices),
    start_new_session=True,  # its helpers end with it
  )
  try:
    out, err = worker.communicate(json.dumps(request), timeout=timeout)
  except BaseException as error:
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    if isinstance(error, subprocess.TimeoutExpired):
      raise UserError(
        f"the plan took longer than {timeout:g} s and was stopped; scan the"
        " layers (model.scan=True), or give it more time with --timeout"
      ) from None
    raise
  try:
    answer = json.loads(out)
  except json.JSONDecodeError:
    lines = [line for line in err.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no message"
    raise UserError(
      f"the compiler's process ended with code {worker.returncode}: {last}"
    ) from None
  if "error" in answer:
    raise UserError(answer["error"])
  if "Involuntary full rematerialization" in err:
    answer["warnings"] = [
      "the partitioner replicates a tensor to reshard it (involuntary full"
      " rematerialization): mesh and shapes fit badly"
    ]
  return answer


# ---------------------------------------------------------------------- words


def _change_text(change: Mapping[str, Any]) -> str:
  words = []
  for key, value in change.items():
    if isinstance(value, Mapping):
      words += [
        f"{key}.{k}={v}"
        for k, v in value.items()
        if v > 1 or k in ("replica", "fsdp")
      ]
    else:
      words.append(f"{key}={value}")
  return " ".join(words) or "no change"


def size_text(count: float | None) -> str:
  """`1.62 GiB`, `12.3 MiB`."""
  if count is None:
    return "-"
  for unit in ("B", "KiB", "MiB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1024
  return f"{count:.2f} GiB"


def fit_text(result: Mapping[str, Any]) -> str:
  """`10.1 of 15.75 GiB a device`."""
  hbm = result["hbm"]
  return f"{hbm['total'] / GIB:.2f} of {hbm['limit'] / GIB:.2f} GiB a device"


def misfit_text(result: Mapping[str, Any]) -> str:
  """One line: by how much it doesn't fit, and the way out."""
  over = result["hbm"]["total"] - result["hbm"]["limit"]
  return (
    f"{result['topology']}: needs {fit_text(result)}, {over / GIB:.2f} GiB too"
    f" much; {result['remedy']}"
  )


def text(result: Mapping[str, Any]) -> str:
  """The plan as lines for a terminal."""
  r, hbm, bound = result, result["hbm"], result["bound"]
  mesh = " x ".join(f"{k} {v}" for k, v in r["mesh"].items() if v > 1)
  how = (
    f"compiled for TPU in {r['compile_seconds']:.0f} s"
    if r["method"] == "compiled"
    else "by analysis, nothing was compiled"
  )
  lines = [
    f"{r['topology']}: {r['chips']} chips, mesh {mesh or 'of one'}; {how}",
    f"  model       {r['params']:,} parameters, batch {r['batch_size']},"
    f" {r['tokens_per_example']:,} tokens an example, attention"
    f" {r['attention']}, remat {r['remat']}",
    f"  HBM         {fit_text(r)}: {'fits' if r['fits'] else 'DOES NOT FIT'}",
    *(
      f"    {name:<10}{size_text(hbm[name])}"
      for name in ("argument", "temp", "output")
    ),
    "    of argument: "
    + ", ".join(f"{k} {size_text(v)}" for k, v in hbm["kinds"].items() if v),
    f"  FLOPs       {r['flops_per_step']:.4g} a step,"
    f" {r['executed_flops_per_step']:.4g} executed",
  ]
  for kind, c in r["collectives"].items():
    far = (
      f", {size_text(c['far_bytes'])} between slices" if c["far_bytes"] else ""
    )
    lines.append(
      f"  {kind:<20}{c['count']:>6} a step, {size_text(c['bytes'])}{far}"
    )
  lines += [
    f"  step >=     {bound['step_s'] * 1e3:.4g} ms, bound by"
    f" {bound['binding']} (compute {bound['compute_s'] * 1e3:.4g}, memory"
    f" {bound['memory_s'] * 1e3:.4g}, network {bound['network_s'] * 1e3:.4g})",
    f"  speed <=    {r['tokens_per_s_bound']:.4g} tokens/s,"
    f" {r['examples_per_s_bound']:.4g} examples/s, MFU {r['mfu_bound']:.0%}",
    f"  whole run   {r['total_steps']:,} steps: >= {r['hours']:.3g} h,"
    f" {r['chip_hours']:.4g} chip-hours",
  ]
  if not r["data"]["here"]:
    lines.append(
      f"  data        not here: {r['data']['examples']:,} examples of"
      f" {r['data']['classes']:,} classes assumed"
    )
  if "candidates" in r:
    lines.append(
      f"  search      best of {r['candidates']} by analysis,"
      f" {r['compiled']} compiled: {_change_text(r['change'])}"
    )
  lines += [f"  warning     {line}" for line in r.get("warnings", [])]
  return "\n".join(lines)
