"""A nested run cut to a standalone one of the plain family.

A run that was not trained nested can be cut too, by importance; that such a
model was never trained is said in its run.json.

What comes out is a workdir like that of any run: `vs.load`, `vitscale runs`
and `doctor` read it, and no elastic code is needed to run the model. Its
optimizer state is cut too.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vitscale import record, workdir
from vitscale.bench import Bench, build
from vitscale.core import config as config_lib
from vitscale.core.ceiling import dtype_of
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError, nearest
from vitscale.core.log import (
  jsonable,
  read_json,
  read_rows,
  write_json,
  write_text,
)
from vitscale.elastic import (
  apart,
  importance,
  latency,
  score,
  select,
  slice,
)
from vitscale.elastic import space as space_lib
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.space import Space
from vitscale.elastic.spec import ElasticSpec


@dataclasses.dataclass(frozen=True)
class Nested:
  """A run to cut, opened: its facts, bench and state."""

  folder: Path
  run: Mapping[str, Any]
  bench: Bench
  state: Mapping[str, Any]

  @property
  def image(self) -> tuple[int, int, int]:
    """(h, w, c) of an image that the model sees."""
    return tuple(self.bench.inputs[1]["image"].shape[1:])


def cut(
  path: str | Path,
  out: str | Path,
  *,
  spec: str | None = None,
  budget: str | None = None,
  how: str = "least_slope",
  score_on: str | None = None,
  by: str = "prefix",
  seed: int = 0,
  latency_batch: int = latency.BATCH,
  measure: Callable[..., list[float]] = latency.measure,
) -> dict[str, Any]:
  """Cuts a checkpoint of a nested run; one of `spec` and `budget` says where.

  Args:
    path: a workdir, its checkpoints/ or a step folder.
    out: workdir of the cut model, new or empty.
    spec: text of an ElasticSpec.
    budget: see `space.budget`.
    how: selector for the budget, a key of `select.SELECTORS`.
    score_on: the entry of the config's `evals` whose images selectors look
      at; by default the `val` split of the training data, see apart.py.
    by: what a part is: "prefix", of a nested run, or "importance", the heads
      and hidden units that matter most for the loss, of any run.
    seed: of selectors that draw at random.
    latency_batch: images in one pass, for a budget of latency.
    measure: milliseconds of models, see `latency.measure`.

  Returns:
    `spec`, `by`, `params`, `gmacs_per_image`, `budget` (None, or see
    `within`), `metrics` (`full` and `cut`: every held-out evaluation of the
    config), `out`.

  Raises:
    UserError: no nested run, a spec or budget that doesn't fit, `out` in use.
  """
  if (spec is None) == (budget is None):
    raise UserError("give either a spec or a budget")
  out = Path(out).absolute()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"{out} exists and is not an empty folder: choose another")
  if by not in ("prefix", "importance"):
    raise UserError(f"by {by!r}{nearest(by, ('prefix', 'importance'))}")
  if by == "importance" and spec is None:
    raise UserError("importance has no trained levels to mix: give a spec")
  if score_on is not None and (budget is None or how == "least_slope"):
    raise UserError("--score-on: nothing is scored here, leave it out")
  parsed = spec_lib.parse(spec) if spec is not None else None
  if budget is not None:
    select.check(how)
    space_lib.budget(budget, lambda _: 1.0)  # can it be read at all?
    if latency_batch < 1:
      raise UserError(f"latency batch {latency_batch}: should be 1 or more")
  big = open_run(Path(path), nested=by == "prefix")
  if by == "importance":
    chosen, spent, big = parsed, None, by_importance(big, parsed)
  elif parsed is not None:
    chosen, spent = parsed, None
    check_trained(big, chosen)
  else:
    chosen, spent = within(
      big, budget, how, score_on=score_on, seed=seed, batch=latency_batch,
      measure=measure,
    )  # fmt: skip
  config, bench = plain(big, chosen)
  state = cut_state(big, chosen, bench)
  metrics = {"full": scores(big.bench, big.state), "cut": scores(bench, state)}
  write(big, chosen, config, bench, state, metrics["cut"], out, by)
  return {
    "spec": str(chosen),
    "by": by,
    "params": bench.facts["params"],
    "gmacs_per_image": space_lib.cost("macs", bench.model, big.image) / 1e9,
    "budget": spent,
    "metrics": metrics,
    "out": str(out),
  }


# --------------------------------------------------------------------- parts


def open_run(path: str | Path, *, nested: bool) -> Nested:
  """Restores a run on one device; with `nested` its parts must be trained.

  Raises:
    UserError: no run there, or one whose parts were not trained.
  """
  folder, step = workdir.root(Path(path))
  run = read_json(folder / "run.json")
  config = workdir.untaught(run["config"])
  config = {k: v for k, v in config.items() if k != "mesh"}
  if nested and "granularities" not in config["task"]:
    raise UserError(
      f"{folder} was not trained nested: a prefix of its layers means nothing."
      " Train with task.name=nested, or cut --by importance"
    )
  bench = build(config, devices=jax.local_devices()[:1])
  store = CheckpointStore(folder / "checkpoints")
  # All but a teacher, and what was logged of it.
  parts = {key: bench.abstract[key] for key in ("mutable", "window")}
  names = {key: key for key in bench.abstract if key not in parts}
  names |= {f"{key}/{k}": f"{key}/{k}" for key in parts for k in parts[key]}
  state = store.part(bench.abstract, names, step)
  if merged := getattr(bench.task, "merged", None):  # a plain run from here on
    bench = build(
      {**config, "task": config["task"]["of"]}, devices=jax.local_devices()[:1]
    )
    for key in ("params", "ema"):
      if state[key]:
        state[key] = merged({"params": state[key]})["params"]
    state["opt"] = bench.init(jnp.uint32(0))["opt"]
  return Nested(folder, run, bench, state)


def by_importance(big: Nested, spec: ElasticSpec) -> Nested:
  """The same run with important heads and hidden units first.

  Raises:
    UserError: the spec cuts something that has no such order.
  """
  if hasattr(big.bench.task, "stages"):
    raise UserError("a run that thinks in rounds has no plain model to cut")
  order = {"ffn": "mlp", "heads": "heads"}
  for key in sorted(spec.touched() - {*order, "depth", "layers"}):
    raise UserError(f"importance orders {' and '.join(order)}, not {key}")
  over = [axis for key, axis in order.items() if key in spec.touched()]
  if not over:
    return big
  state = importance.rewired(big.bench, big.state, over)
  return dataclasses.replace(big, state=state)


def check_trained(big: Nested, spec: ElasticSpec) -> None:
  """Raises UserError where a spec cuts what the run never trained cut."""
  texts = big.bench.task.granularities
  trained = set().union(*(spec_lib.parse(t).touched() for t in texts))
  for key in sorted(spec.touched() - trained):
    raise UserError(
      f"spec '{spec}' cuts {key}, the run nests {', '.join(sorted(trained))}"
      f" only (it trained {', '.join(texts)})"
    )


def within(
  big: Nested,
  text: str,
  how: str,
  *,
  score_on: str | None = None,
  seed: int = 0,
  batch: int = latency.BATCH,
  measure: Callable[..., list[float]] = latency.measure,
) -> tuple[ElasticSpec, dict[str, Any]]:
  """The spec chosen for a budget, and what it spends.

  Args:
    big, text, how, score_on, seed: of `cut`.
    batch, measure: `latency_batch` and `measure` of it.

  Returns:
    The spec, and `kind`, `limit`, `used` and `share` (of the whole model) of
    the budget, `select`, `scored` (models), `selected_on` (images, or None)
    and what the selector says. Of a latency, in milliseconds, `used` is the
    table's, `measured` the chosen model's and `whole` the whole one's, with
    `batch`, `dtype`, `platform` and `device`.
  """
  model, image = big.bench.model, big.image
  texts, kind = big.bench.task.granularities, space_lib.kind_of(text)
  timed = functools.partial(measure, image=image, batch=batch)
  price = lambda little: space_lib.cost(kind, little, image)
  space = Space(model, texts, price)
  if kind == "latency":
    table = latency.Table(model, space.levels, image, timed)
    space = Space(model, texts, table.price, table.saved)
  asked = space_lib.budget(text, lambda _: space.whole())
  space.check(asked)
  seen = None if how == "least_slope" else apart.images(
    big.run["config"], score_on
  )  # fmt: skip
  judge = (
    None if seen is None else score.judge(nested(big), space, seen.batches)
  )
  choice = select.choose(space, asked, how, judge, seed)
  used = space.cost(choice.spec)
  spent = {
    "kind": kind, "limit": asked.limit, "used": used,
    "share": used / space.whole(), "select": how, "scored": choice.scored,
    "selected_on": seen and seen.facts(), **choice.detail,
  }  # fmt: skip
  if kind == "latency":
    little, _ = spec_lib.small(model, choice.spec)
    whole, own = timed([model, little])
    share, said = own / whole, used / space.whole()
    if share > latency.NOISE * said:
      print(
        f"warning: measured, the chosen model takes {share:.3f} of the whole"
        f" one's time, by the table {said:.3f}: the machine is busy, or times"
        " do not add up over layers here",
        file=sys.stderr,
      )
    spent |= {
      "measured": own, "whole": whole, **latency.here(), "batch": batch,
      "dtype": dtype_of(model),
    }  # fmt: skip
  return choice.spec, spent


def nested(big: Nested) -> score.Nest:
  """A run's model as scorers see it, with averaged weights if it kept them."""
  kept = big.state["ema"] or big.state["params"]
  task = plain_task(big.bench.task)
  return score.Nest(task, big.bench.model, kept, big.bench.names)


def plain_task(task: Any) -> Any:
  """What a nested or taught task asks of a plain model."""
  while hasattr(task, "task"):
    task = task.task
  return task


def plain(big: Nested, spec: ElasticSpec) -> tuple[dict[str, Any], Bench]:
  """Config and bench of the small model alone, on one device."""
  changes, _ = spec_lib.resolve(spec, spec_lib.options_of(big.bench.model))
  config = config_lib.to_dict(big.run["config"])
  for key in ("mesh", "init"):
    config.pop(key, None)
  config["model"] = {**config["model"], **changes}
  while "of" in config["task"]:  # neither nested nor taught
    config["task"] = config["task"]["of"]
  for group in config.get("evals", {}).values():
    if group.get("name") == "nested":
      group["name"] = "classify"
  config = config_lib.to_dict(config)  # tuples as lists, as stored
  return config, build(config, devices=jax.local_devices()[:1])


def cut_state(big: Nested, spec: ElasticSpec, bench: Bench) -> dict[str, Any]:
  """The state of a run of the small model, sliced from the nested one's."""
  _, layers = spec_lib.small(big.bench.model, spec)
  part = lambda name: slice.nest(
    big.state[name], big.bench.names, bench.abstract[name], layers
  )
  state = {name: big.state[name] for name in bench.abstract}
  state |= {name: part(name) for name in ("params", "ema")}
  try:
    state["opt"] = part("opt")
  except UserError as error:
    print(f"warning: {error}; the optimizer starts anew", file=sys.stderr)
    state["opt"] = bench.init(jnp.uint32(0))["opt"]
  zero = lambda x: jnp.zeros(x.shape, x.dtype)
  state["window"] = jax.tree.map(zero, bench.abstract["window"])
  return state


def scores(bench: Bench, state: Mapping[str, Any]) -> dict[str, float]:
  """Every held-out evaluation of a config, `val/accuracy` and so on."""
  return {
    f"{label}/{name}": value
    for label, one in bench.evals.items()
    for name, value in one.run(dict(state)).items()
    if "/" not in name  # parts of a nested run
  }


def write(
  big: Nested,
  spec: ElasticSpec,
  config: Mapping[str, Any],
  bench: Bench,
  state: Mapping[str, Any],
  found: Mapping[str, float],
  out: Path,
  by: str,
) -> None:
  """The workdir of the cut model; run.json comes last and says it is whole."""
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"can't make {out}: {error.strerror}") from error
  run, step = record.describe(config, bench), int(state["step"])
  store = CheckpointStore(out / "checkpoints")
  store.save(step, state, {"config_digest": run["config_digest"]})
  store.close()
  rows = read_rows(big.folder / "metrics.jsonl")
  spent = {k: v for k, v in (rows[-1] if rows else {}).items() if "/" not in k}
  row = {**spent, "step": step} | {f"eval/{k}": v for k, v in found.items()}
  write_text(out / "metrics.jsonl", json.dumps(jsonable(row)) + "\n")
  # It cost what the nested run cost, and is no run of its size.
  paid = big.run["law_variables"]["flops"]
  run["law_variables"] = {**run["law_variables"], "flops": paid}
  write_json(
    out / "run.json",
    {
      **run, "status": "finished", "step": step, "metrics": row,
      "cut": {"from": str(big.folder.absolute()), "spec": str(spec), "by": by},
    },
  )  # fmt: skip
