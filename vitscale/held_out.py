"""The evaluations of a config: passes over held-out data during training."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from vitscale import models, plugin
from vitscale.core import placement, sharding
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.data import pack, pipeline, transforms
from vitscale.evals import At


@dataclasses.dataclass
class Eval:
  """One held-out evaluation of a config: `evals.NAME`.

  Attributes:
    every: steps between passes; the last step always runs it.
    run: state -> scores.
    batches: one pass over its data, as `pipeline.eval_batches`.
  """

  every: int
  run: Callable[[dict[str, Any]], dict[str, float]]
  batches: Callable[..., Iterable[dict[str, Any]]]


def evals(
  read,
  make,
  task,
  model,
  variables,
  source,
  mesh,
  rules,
  every,
  batch_size,
  ema,
) -> dict[str, Eval]:
  """`evals.NAME = {name, split, every_*, batch_size, transform, data, draw}`.

  Packed like training where the config has `pack`; batches are rows then.
  `draw` fixes what training draws: `{"patch_size": 8}`.

  A module's `OPTIONS` are further keys, passed on to it; `DATA` names groups
  of a split of their own, whose batches `evaluate` gets (see retrieval); where
  ALONE, it does without as well. What `make` gives is compiled, unless the
  module says EAGER; with TOKENIZER it is told the data's.
  """
  made, settings = {}, read.group("pack").kwargs()
  merged = getattr(task, "merged", None)
  if merged:
    task, variables = task.task, jax.eval_shape(merged, variables)
  for label, group in read.group("evals").items():
    module = plugin.module("evals", group.get("name", "classify"))
    draw = group.group("draw").kwargs()
    if (settings or draw) and not getattr(module, "PLAIN", False):
      what = "packed images" if settings else "draws"
      raise UserError(
        f"evals.{label}: {group.get('name')!r} takes no {what}: use"
        " name='classify'"
      )
    if draw and not getattr(task, "any_draw", False):
      raise UserError(
        f"evals.{label}.draw: task {read['task']['name']!r} is scored as it"
        " stands; leave it out"
      )
    models.check_draw(model, draw, f"evals.{label}.draw")
    keys = getattr(module, "OPTIONS", ())
    options = {key: _plain(group[key]) for key in keys if key in group}
    size = group.get("batch_size", batch_size)
    placement.check_batch(f"evals.{label}.batch_size", size, mesh, rules)
    stream = functools.partial(
      _batches, read["data"], make=make, source=source, size=size,
      settings=settings,
    )  # fmt: skip
    batches, more = stream(group, f"evals.{label}"), {}
    for key in getattr(module, "DATA", ()):
      where = f"evals.{label}.{key}"
      other = _other(module, group, key, where)
      if other is not None:
        more[key] = stream(other, where)
    asked = At(model, draw) if draw else model
    if getattr(module, "TOKENIZER", False):
      options["tokenizer"] = source.tokenizer
    sums = module.make(task, asked, **options)
    if not getattr(module, "EAGER", False):
      sums = jax.jit(sums)
    if draw or getattr(module, "TRACED", False):  # what won't do fails now
      where = f"evals.{label}.draw" if draw else f"evals.{label}"
      _check(sums, variables, batches, where)
    one_pass = functools.partial(module.evaluate, sums)
    run = functools.partial(
      _run, one_pass, batches, more, options, mesh, rules, ema, merged
    )
    interval = every(group, f"evals.{label}", default=1 << 60)
    made[label] = Eval(interval, run, batches)
  return made


def _other(module, group, key: str, where: str) -> Reader | None:
  """The group of a further split, its default where it isn't given, or None.

  A default is of a module whose `DATA` is a mapping: name -> split.
  """
  wanted, own = module.DATA, group["split"]
  if key in group:
    if group[key]["split"] != own:
      return group[key]
    raise UserError(
      f"{where}: the same split as its evaluation's: {_instead(module, own)}"
    )
  if not isinstance(wanted, Mapping):
    return None
  if wanted[key] != own:
    alike = {k: group[k] for k in ("transform",) if k in group}
    return Reader({"split": wanted[key], **alike})
  if getattr(module, "ALONE", False):
    return None
  raise UserError(f"{where}: {own!r} by default: {_instead(module, own)}")


def _instead(module, own: str) -> str:
  if getattr(module, "ALONE", False):
    return "leave it out, and each example is compared with the others"
  return f"name a split other than {own!r}"


def _check(sums, variables, batches, where: str) -> None:
  """Traces an evaluation on the shapes of an example."""
  stream = batches(batch_size=1)
  batch = next(iter(stream))
  stream.close()
  try:
    jax.eval_shape(sums, variables, batch)
  except UserError as error:
    raise UserError(f"{where}: {error}") from None


def _run(
  one_pass, batches, more, options, mesh, rules, ema, merged, state
) -> dict[str, float]:
  """One evaluation of a state."""
  params = state["ema"] if ema else state["params"]
  variables = {"params": params, **state["mutable"]}
  if merged:
    variables = merged(variables)
  block, blocks = sharding.data_block(mesh, rules)

  def placed(batches):
    mine = batches(process_index=block, process_count=blocks)
    return (sharding.shard_batch(b, mesh, rules) for b in mine)

  with sharding.use(mesh, rules):
    others = {key: placed(stream) for key, stream in more.items()}
    return one_pass(variables, placed(batches), **others, **options)


def _batches(data, group, where: str, *, make, source, size: int, settings):
  """What makes the batches of a group's split."""
  held_out = make(
    data["source"],
    split=group["split"],
    **{**data.kwargs("source"), **group.group("data").kwargs()},
  )
  if held_out.classes != source.classes:
    raise UserError(
      f"{where}: {held_out.classes} classes, training has {source.classes}"
    )
  return functools.partial(
    pipeline.eval_batches,
    held_out,
    batch_size=size,
    transform=transforms.parse(group.get("transform", "")),
    plan=pack.plan(held_out, settings) if settings else None,
  )


def _plain(value: Any) -> Any:
  """A run.json has lists where a config has tuples."""
  return tuple(value) if isinstance(value, list) else value
