"""`vitscale cut` on the command line: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "cut out/nested --budget macs:0.6 --out out/small"

# Keys of elastic/select.py, which imports jax.
SELECTORS = (
  "least_slope", "increasing", "decreasing", "increasing_decreasing",
  "decreasing_increasing", "sensitivity", "evolutionary", "router",
  "exhaustive",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a nested run, or a step"
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--spec", help="'ffn=1/2', 'ffn=1/4x6,1/2x6', ...")
  what.add_argument(
    "--budget", metavar="0.6|macs:0.6|params:3e6|latency:5ms",
    help="the most it may cost; up to 1 a fraction of the whole model",
  )  # fmt: skip
  parser.add_argument(
    "--select", default="least_slope", metavar="NAME",
    help=f"how to choose for a budget: {', '.join(SELECTORS)}"
    " (default least_slope)",
  )  # fmt: skip
  parser.add_argument(
    "--score-on", metavar="NAME",
    help="choose on the images of the config's evals.NAME (default: the val"
    " split of its data)",
  )  # fmt: skip
  parser.add_argument(
    "--seed", type=int, default=0, help="of evolutionary and router"
  )
  parser.add_argument(
    "--latency-batch", type=int, default=8, metavar="N",
    help="images in one pass, for a budget of latency (default 8)",
  )  # fmt: skip
  parser.add_argument(
    "--by", default="prefix", metavar="prefix|importance",
    help="importance: cuts a run that was not trained nested too",
  )  # fmt: skip
  parser.add_argument("--out", required=True, help="workdir of the cut model")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Cuts a nested run to a standalone model of the plain family.

  What comes out is a workdir like any other; no elastic code is needed to
  run the model. A budget takes a model that the run trained, or a mix of its
  levels over the layers.
  """
  from vitscale.elastic import cut as cut_lib

  result = cut_lib.cut(
    args.checkpoint, args.out, spec=args.spec, budget=args.budget,
    how=args.select, score_on=args.score_on, by=args.by, seed=args.seed,
    latency_batch=args.latency_batch,
  )  # fmt: skip
  if not args.json:
    print(text(result))
  return result, 0


def text(result: dict[str, Any]) -> str:
  """The result for a terminal."""
  lines = [
    f"{result['spec']}: {result['params']} parameters,"
    f" {result['gmacs_per_image']:.4g} GMACs an image",
  ]
  if result["by"] == "importance":
    lines.append("  cut by importance: this model was never trained as such")
  spent = result["budget"] or {}
  seen = spent.get("selected_on") or {}
  if spent:
    lines += _spent(spent, seen)
  cut = result["metrics"]["cut"]
  for name, whole in result["metrics"]["full"].items():
    if not name.endswith(("_se", "examples", "gallery")):
      line = f"  {name}: {whole:.4f} whole, {cut[name]:.4f} cut"
      flatters = name.partition("/")[0] in seen.get("evals", ())
      lines.append(line + (" (selected on these images)" if flatters else ""))
  return "\n".join([*lines, f"in {result['out']}"])


def _spent(spent: dict[str, Any], seen: dict[str, Any]) -> list[str]:
  """What a budget allowed and what the choice looked at."""
  lines = [
    f"  {spent['kind']}: {spent['used']:.6g} of {spent['limit']:.6g},"
    f" {spent['share']:.3f} of the whole model"
  ]
  if spent["kind"] == "latency":
    lines.append(
      f"  ms a pass of {spent['batch']} images on {spent['device']},"
      f" {spent['dtype']}: {spent['used']:.4g} by the table,"
      f" {spent['measured']:.4g} measured; whole {spent['whole']:.4g}"
    )
  if seen:
    lines.append(
      f"  {spent['select']} scored {spent['scored']} models on"
      f" {seen['images']} images of {seen['source']} {seen['split']}"
    )
  return lines
