"""What a config builds before any array exists: shapes first.

`build(config)` reads every key of a config and returns a `Bench`: data, model,
task, optimizers, abstract state with shardings, facts (parameters, FLOPs) and
the step functions. `train.py` loops over it, `workdir.py` restores from it,
nothing here touches a workdir.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale import facts as facts_lib
from vitscale import held_out, models, plugin
from vitscale import step as step_lib
from vitscale.core import (
  axes,
  compiler,
  draws,
  guard,
  optim,
  placement,
  sharding,
  topology,
  watchdog,
)
from vitscale.core import config as config_lib
from vitscale.core import mesh as mesh_lib
from vitscale.core.errors import UserError
from vitscale.data import pack, pipeline, sources, transforms


@dataclasses.dataclass
class Bench:
  """Everything a config decides, without arrays."""

  config: Mapping[str, Any]
  model: nn.Module
  task: Any
  source: Any
  batches: Callable[[int], Iterator[dict[str, np.ndarray]]]  # from data step
  draws: tuple[draws.Draws, ...]
  mesh: jax.sharding.Mesh
  rules: Any
  init: Callable[[int], step_lib.State]  # seed -> state, sharded
  abstract: step_lib.State  # ShapeDtypeStructs with shardings
  names: Any  # Axes of the parameters
  step: Callable[
    ..., step_lib.State
  ]  # (state, batch, seed, lrs, draw) -> state
  trace: Callable[..., Any]  # the step traced: its jaxpr, and `.lower()`
  inputs: tuple[Any, ...]  # ShapeDtypeStructs of (state, batch, seed, lrs)
  evals: dict[str, held_out.Eval]
  batch_size: int
  total_steps: int
  log_steps: int
  checkpoint_steps: int
  facts: dict[str, Any]  # run.json: params, FLOPs, tokens, fingerprints
  flops: Mapping[draws.Drawn, float]  # of an example, by what a step draws
  parameters: str  # a table: shape, axes, placement; rate and decay


def build(
  config: Mapping[str, Any],
  *,
  devices: Sequence[jax.Device] | None = None,
  source: sources.Source | None = None,
) -> Bench:
  """Builds everything from a config; every key must be read by somebody.

  Args:
    config: a run's config.
    devices: default `jax.devices()`. Those of a topology that is not here
      (`topology.devices`) give a bench whose step can be compiled, not run.
    source: stands in for the config's data, held-out ones too, where only
      their shapes matter.

  Raises:
    UserError: unknown names, unread keys, shapes that don't fit.
  """
  read = config_lib.Reader(config)
  check_traced(config)
  mesh_lib.check_context()
  batch_size, _ = read["batch_size"], read["seed"]
  if type(batch_size) is not int or batch_size < 1:
    raise UserError(f"batch_size={batch_size!r}: should be 1 or more")
  asked = read.group("rules")
  rules = sharding.RULES.override(
    asked.get("params"), asked.get("activations"), asked.get("context")
  )
  make = sources.make if source is None else lambda *_, **__: source
  source, plan, stream, batch = _train_data(read, make, batch_size)
  views = [name for name in batch if name.startswith("image@")]
  epoch_examples = plan.rows if plan else len(source)

  # Model and task, as shapes; where they live.
  task_module = plugin.module("tasks", read["task"]["name"])
  task = task_module.make(read["task"], source)
  model, reference = models.make(read["model"], source)
  if plan:
    _check_packed(read, task, model)
  if views and not getattr(task, "all_views", False):
    raise UserError(
      f"train.transform has a view {views[0]!r} that task"
      f" {read['task']['name']!r} never sees: task.name='multiscale'"
    )
  chosen = draws.make(read.group("draws"))
  models.check_draw(model, (draw.name for draw in chosen), "draws")
  chosen += getattr(task, "draws", ())
  boxed = jax.eval_shape(
    lambda key: task.init(model, key, _zeros(batch)), jax.random.key(0)
  )
  names = axes.names_of(boxed)
  abstract = axes.unbox(boxed)
  mesh = topology.make_mesh(
    read.group("mesh").kwargs() or None,
    devices,
    sizes=placement.split_sizes(
      names["params"], abstract["params"], rules, "fsdp"
    ),
  )

  def batches(start: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    return stream(start, seed, *sharding.data_block(mesh, rules))

  # Facts: parameters, FLOPs, durations.
  facts, flops = facts_lib.facts(
    task, reference, source, batch, abstract, names, chosen
  )
  if plan:
    facts["rows"], facts["padding"] = plan.rows, plan.padding
  total_steps = config_lib.steps(
    read,
    "total",
    batch_size=batch_size,
    epoch_examples=epoch_examples,
    flops_per_example=facts["flops_per_example"],
  )
  chosen = draws.over(chosen, total_steps)
  every = functools.partial(
    _every,
    batch_size=batch_size,
    epoch_examples=epoch_examples,
    total_steps=total_steps,
  )
  log, checkpoint = read.group("log"), read.group("checkpoint")
  log_steps = every(log, "log", default=min(100, total_steps))
  checkpoint_steps = every(checkpoint, "checkpoint", default=total_steps)
  for group, keys in (
    (log, ("tensorboard", "wandb")),
    (checkpoint, ("keep", "keep_every")),
    (read.group("watchdog"), watchdog.DEFAULTS),
  ):
    for key in keys:  # train.py's, counted as read
      group.get(key)
  read.group("init").kwargs()  # warm_start.py's

  # Optimizers, one per player.
  players = {}
  for player, own, own_names in step_lib.owned(task, abstract, names):
    group = read[player.optim].kwargs()
    if player.frozen:
      group["freeze"] = (*group.get("freeze", ()), player.frozen)
    players[player.name] = optim.make(
      group, own, own_names, total_steps=total_steps
    )
  ema, accumulate = read.get("ema", 0.0), read.get("accumulate", 1)
  if not 0 <= ema < 1:
    raise UserError(f"ema={ema}: should be in [0, 1), 0 for none")
  if type(accumulate) is not int or accumulate < 1 or batch_size % accumulate:
    raise UserError(f"accumulate={accumulate} doesn't divide {batch_size=}")
  if accumulate > 1 and (plan or getattr(task, "weighted", False)):
    what = "packed rows" if plan else f"task {read['task']['name']!r}"
    raise UserError(
      f"accumulate={accumulate}: parts of a batch would count alike, and {what}"
      " weigh them; make batch_size smaller"
    )
  max_skips = guard.settings(read.group("guard"))["max_skips"]
  placement.check_batch("batch_size", batch_size, mesh, rules, accumulate)
  window, scope = step_lib.window(
    task, model, batch, abstract, chosen, mesh, rules
  )
  # Back end -> numbers of keys, or nothing where nobody attends.
  facts["attention"] = scope.chosen.get("attention", {})

  # Evaluations; after them every key has been read.
  evals = held_out.evals(
    read, make, task, model, abstract, source, mesh, rules, every, batch_size,
    ema,
  )  # fmt: skip
  read.get("name"), read.group("law_variables").kwargs()
  read.assert_all_read()

  init = step_lib.initializer(task, model, players, _zeros(batch), ema, window)
  step = step_lib.stepper(task, model, players, ema, accumulate)
  init, step = guard.arm(init, step, max_skips)
  shapes = jax.eval_shape(init, jnp.uint32(0))
  placed = sharding.follow(
    shapes,
    sharding.param_shardings(names["params"], shapes["params"], mesh, rules),
    mesh,
  )

  placement.check_used(scope, placed["params"])

  placed_as = lambda shapes, places: jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    places,
  )
  abstract = placed_as(shapes, placed)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  rows = sharding.batch_sharding(mesh, rules)
  inputs = (
    abstract,
    placed_as(batch, dict.fromkeys(batch, rows)),
    jax.ShapeDtypeStruct((), jnp.uint32, sharding=whole),
    {
      player.name: jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
      for player in task.players
    },
  )
  compiled = jax.jit(
    step,
    static_argnames="draw",
    donate_argnums=0,
    out_shardings=placed,
    compiler_options=compiler.options(mesh.devices.flat[0].platform),
  )

  def within(fn):  # every trace happens inside the mesh and its rules
    @functools.wraps(fn)
    def call(*args, **kwargs):
      with sharding.use(mesh, rules):
        return fn(*args, **kwargs)

    return call

  return Bench(
    config=config,
    model=model,
    task=task,
    source=source,
    batches=batches,
    draws=chosen,
    mesh=mesh,
    rules=rules,
    init=within(jax.jit(init, out_shardings=placed)),
    abstract=abstract,
    names=names["params"],
    step=within(compiled),
    trace=within(compiled.trace),
    inputs=inputs,
    evals=evals,
    batch_size=batch_size,
    total_steps=total_steps,
    log_steps=log_steps,
    checkpoint_steps=checkpoint_steps,
    facts=facts,
    flops=flops,
    parameters="\n\n".join(
      [
        placement.describe(names["params"], shapes["params"], placed["params"]),
        placement.describe_activations(scope),
        *(player.table() for player in players.values()),
      ]
    ),
  )


def check_traced(config: Mapping[str, Any]) -> None:
  """Checks what is an input of the compiled step: seed and learning rate.

  Raises:
    UserError: missing or out of range.
  """
  read = config_lib.Reader(config)
  seed, optimizer = read["seed"], read["optim"]
  if type(seed) is not int or not 0 <= seed < 2**32:
    raise UserError(f"seed={seed!r}: should be an integer in [0, 2^32)")
  optim.settings(optimizer.kwargs())


# -------------------------------------------------------------------- pieces


def _train_data(read, make, batch_size):
  """(source, plan, `(start, seed, block, blocks) -> batches`, their shapes).

  The plan is of a config with `pack`, whose batches are rows.
  """
  data, train = read["data"], read["train"]
  source = make(
    data["source"],
    split=train.get("split", "train"),
    **data.kwargs("source"),
  )
  transform = transforms.parse(train.get("transform", ""))
  workers, settings = read.get("workers", 0), read.group("pack").kwargs()
  plan = pack.plan(source, settings) if settings else None
  if plan and isinstance(transform, transforms.Views):
    raise UserError("train.transform has several views: rows are packed of one")

  def stream(start: int, seed: int, block: int, blocks: int):
    return pipeline.train_batches(
      source,
      batch_size=batch_size,
      seed=seed,
      transform=transform,
      start=start,
      workers=workers,
      process_index=block,
      process_count=blocks,
      plan=plan,
    )

  first = pipeline.train_batches(
    source, batch_size=min(batch_size, 2), seed=0, transform=transform,
    plan=plan,
  )  # fmt: skip
  sample = next(first)
  first.close()
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
    for name, x in sample.items()
  }
  return source, plan, stream, batch


def _every(group, name: str, **options) -> int:
  """Steps between two events of a group's `every_*`, at least one."""
  steps = config_lib.steps(group, "every", **options)
  if not steps:
    raise UserError(f"{name}.every_* is 0: should be 1 step or more")
  return steps


def _zeros(batch) -> dict[str, jax.Array]:
  """An example of the batch's shapes, for init."""
  return {k: jnp.zeros((1, *x.shape[1:]), x.dtype) for k, x in batch.items()}


def _check_packed(read, task, model) -> None:
  """Raises UserError for who takes whole images only."""
  family = sys.modules[type(model).__module__]
  if not getattr(family, "PACKS", False):
    raise UserError(f"pack: model {read['model']['family']!r} can't: use vit")
  if not hasattr(task, "inputs"):
    name = read["task"]["name"]
    raise UserError(f"pack: task {name!r} takes whole images: use classify")
