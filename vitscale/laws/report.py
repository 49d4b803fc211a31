"""The card of a fit to files: hypothesis, training, data, conventions, fit.

The sections follow the checklist of Li et al. 2025 (arXiv 2502.18969): what
was assumed, what was trained, which points were used, how size and compute are
counted, how the numbers were found. What files don't say is "not stated".
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.log import read_json
from vitscale.laws.expression import HIDDEN
from vitscale.laws.fit import Fit
from vitscale.laws.prepare import Prepared
from vitscale.laws.table import CONVENTIONS, Table

UNKNOWN = "not stated"
COUNTS = ("total", "non-embedding")
RULE = "C = 6 N D"  # 2 FLOPs forward, 4 backward, a parameter and token
_OWN = {"params": "total", "params_non_embedding": "non-embedding"}
_DATA = ("data", "dataset", "data set", "corpus", "domain", "task")
_SETTINGS = (
  "lr", "learning_rate", "learning rate", "batch_size", "batch size", "batch",
  "weight_decay", "weight decay", "optimizer", "optimiser", "schedule",
  "warmup", "steps", "total_steps", "epochs", "seed", "model",
)  # fmt: skip
_MANY = 8  # values that are listed one by one


def card(fitted: Fit, points: Prepared, count: str | None) -> dict[str, Any]:
  """Everything to judge or repeat a fit, in plain JSON types.

  Args:
    fitted: the fit of `points`.
    count: "total" or "non-embedding" where the user says what N counts.

  Returns:
    `fitted.card()` with the objective as a number, an absent interval as None,
    and the sections `hypothesis, training, data, conventions, method`.
  """
  flat = fitted.card()
  shown = lambda d: {k: v for k, v in d.items() if k not in HIDDEN}
  known = lambda pair: pair if None not in pair else None
  flat |= {k: shown(flat[k]) for k in ("params", "pinned", "se", "bounds")}
  flat["ci95"] = {k: known(v) for k, v in shown(flat["ci95"]).items()}
  said, warned = conventions(points, count)
  return {
    **flat,
    "objective_name": fitted.objective_name,
    "objective": fitted.objective,
    "notes": list(points.table.notes),
    "warnings": [*flat["warnings"], *warned],
    "sha256": points.table.provenance.sha256,
    "hypothesis": hypothesis(fitted, points),
    "training": training(points),
    "data": {
      "files": points.table.provenance.sha256,
      "rows_read": points.rows_read,
      "rows_used": fitted.n,
      "dropped": list(points.dropped),
      "digest": fitted.points.digest,
    },
    "conventions": said,
    "method": method(fitted),
  }


def hypothesis(fitted: Fit, points: Prepared) -> dict[str, Any]:
  """The form that is taken for granted, and where it comes from."""
  law = fitted.law
  return {
    "form": law.formula,
    "variables": {v: points.origin[v] for v in law.variables},
    "loss": points.origin["loss"],
    "parameters": {
      p.name: p.meaning for p in law.parameters if p.name not in HIDDEN
    },
    "rationale": law.source,
  }


def conventions(
  points: Prepared, count: str | None
) -> tuple[dict[str, Any], list[str]]:
  """How N and C are counted, and what contradicts what the user says."""
  table, origin = points.table, points.origin
  sizes = origin.get("N", "").strip("`")
  own = _OWN.get(sizes) if _is_own(table) else None
  warned = []
  if own and count and own != count:
    warned.append(f"N is {sizes!r}, the {own} count, not {count} as stated")
  derived = {CONVENTIONS[v] for v in "NDC"} & set(origin.values())
  used = {"C", "D", "M"} & set(points.law.variables)
  rule = RULE if derived or "C" not in table else "C as the files give it"
  out = {
    "N_counts": own or count or UNKNOWN,
    "N_counts_from": (
      "the runs' own accounting" if own else "the user" if count else None
    ),
    "variables": {v: origin[v] for v in points.law.variables},
    "flops": rule if used else "not used",
  }
  if {"N", "D", "C"} <= set(table) and not derived:
    x = {v: table.numbers(v) for v in "NDC"}
    out["flops_per_6ND"] = float(np.median(x["C"] / (6 * x["N"] * x["D"])))
  return out, warned


def _is_own(table: Table) -> bool:
  """Whether all rows come from this package's runs."""
  source = set(table.provenance.source.tolist())
  return {"params_non_embedding", "run"} <= set(table) and all(
    Path(s).name == "metrics.jsonl" for s in source
  )


def training(points: Prepared) -> dict[str, Any]:
  """The set-up of the runs as far as their files tell."""
  table = points.table
  size = next((k for k in ("N", "params") if k in table), None)
  configs = [c for s in _sources(table) if (c := _config(Path(s)))]
  columns = {k: v.tolist() for k, v in table.items()}
  data = _named(columns, _DATA) | _configured(configs, ("data",))
  settings = _named(columns, _SETTINGS) | _configured(
    configs, ("optim", "batch_size", "total_steps", "model")
  )
  return {
    "runs": len(set(columns["run"])) if "run" in table else UNKNOWN,
    "sizes": _summary(columns[size]) if size else UNKNOWN,
    "data": data or UNKNOWN,
    "hyper_parameters": settings or UNKNOWN,
  }


def _sources(table: Table) -> list[str]:
  return list(dict.fromkeys(table.provenance.source.tolist()))


def _config(source: Path) -> dict[str, Any]:
  """The config of one of this package's runs, else nothing."""
  run = source.parent / "run.json"
  if source.name != "metrics.jsonl" or not run.is_file():
    return {}
  return _flat(read_json(run).get("config", {}))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      out |= _flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def _configured(
  configs: Sequence[Mapping[str, Any]], parts: Sequence[str]
) -> dict[str, Any]:
  """Values over all runs of the config's keys below `parts`."""
  keys = dict.fromkeys(k for c in configs for k in c)
  return {
    k: _summary([c.get(k) for c in configs])
    for k in keys
    if k.split(".")[0] in parts
  }


def _named(columns: Mapping[str, list], names: Sequence[str]) -> dict[str, Any]:
  return {k: _summary(v) for k, v in columns.items() if k.lower() in names}


def _summary(values: Sequence[Any]) -> Any:
  """The one value, the few, or the range."""
  distinct = list(dict.fromkeys(map(_plain, values)))
  known = [v for v in distinct if isinstance(v, int | float)]
  if len(known) == len(distinct):
    distinct.sort()
  if len(distinct) <= _MANY:
    return distinct if len(distinct) > 1 else distinct[0]
  if len(known) < len(distinct) - 1:
    return {"distinct": len(distinct), "first": distinct[0]}
  return {"from": min(known), "to": max(known), "distinct": len(distinct)}


def _plain(value: Any) -> int | float | str | None:
  """A value that can be compared: NaN becomes None, lists become text."""
  if value is None or value != value:
    return None
  return value if isinstance(value, int | float | str) else str(value)


def method(fitted: Fit) -> dict[str, Any]:
  """How the numbers were found."""
  return {
    "objective": f"sum of {fitted.objective_name}",
    "optimiser": (
      "variable projection of the linear parameters at Sobol starts, then"
      " Gauss-Newton and Newton steps on all, float64"
    ),
    "starts": fitted.search["starts"],
    "points": fitted.n,
    "bootstrap": len(next(iter(fitted.draws.values()), ())),
    "interval": fitted.interval or None,
    "seed": fitted.seed,
    "data_sha256": fitted.points.digest,
    "versions": versions(),
  }


def versions() -> dict[str, str]:
  """Of Python and the packages that numbers depend on."""
  names = ("vitscale", "numpy", "scipy", "jax", "jaxlib")
  return {"python": platform.python_version()} | {
    name: metadata.version(name) for name in names
  }


# ---------------------------------------------------------------------- text


def text(result: Mapping[str, Any]) -> str:
  """What a terminal shows of a card."""
  lines = [result["formula"], result["source"], ""]
  lines.append(
    f"{result['n']} points, {result['objective_name']}"
    f" = {result['objective']:.12g} (sum)"
  )
  for name, value in result["params"].items():
    ci = interval(result["ci95"][name], "   95 % ")
    if name in result["pinned"]:
      ci = "   (fixed)"
    lines.append(f"  {name:>8} = {value:.8g}{ci}")
  for name, value in result["derived"].items():
    lines.append(f"  {name:>8} = {value:.6g}   (derived)")
  if "allocation" in result:
    a = result["allocation"]
    lines.append(
      f"best at C = {a['compute']:.3g}: N = {a['n']:.4g}"
      f"{interval(a['ci']['n'], ' ', '.3g')}, D = {a['d']:.4g},"
      f" N* ~ C^{a['exponent']:.3f}"
    )
  if "forecast" in result:
    f = result["forecast"]
    lines.append(f"forecast: {f['value']:.6g}{interval(f['ci95'], ' ')}")
  lines += _asked(result)
  said = result["conventions"]
  lines.append(f"N counts: {said['N_counts']}; FLOPs: {said['flops']}")
  lines += [f"note: {note}" for note in result["notes"]]
  lines += [f"warning: {warning}" for warning in result["warnings"]]
  if "report" in result:
    lines.append(f"report: {result['report']}")
  return "\n".join(lines)


def _asked(result: Mapping[str, Any]) -> list[str]:
  """Tables of what `extras` added."""
  from vitscale.report.plain import table

  lines = []
  if result.get("next_runs"):
    plan, rows = result["next_plan"], result["next_runs"]
    lines.append(
      f"next runs: the forecast's interval from {plan['before']:.4g} to"
      f" {plan['after']:.4g} wide for {plan['spent']:.3g} of"
      f" {plan['budget']:.3g}"
    )
    lines.append(table(rows, [k for k in rows[0] if k not in ("C", "left")]))
  if "approaches" in result:
    found = result["approaches"]
    rows = [
      {
        "approach": row["name"],
        **{k: row[k] for k in ("a", "n", "d")},
        "a 95 %": interval(row["a_ci"], digits=".3f") or row["reason"],
        "N* 95 %": interval(row["n_ci"], digits=".3g"),
      }
      for row in found["approaches"]
    ]
    lines.append(
      f"N* ~ C^a by three approaches, n and d at C = {found['compute']:.3g}:"
      f" within {found['margin']} of each other? {found['agree']}"
      f" ({found['why']})"
    )
    lines.append(table(rows, ["approach", "a", "a 95 %", "n", "N* 95 %", "d"]))
  if result.get("validation"):
    rows = [
      {
        "check": name,
        "by": check["by"],
        **{k: check[k] for k in ("cut", "distance", "n_fit", "n_test")},
        **{k: check[k] for k in ("rmse_log", "bias_log", "inside")},
      }
      for name, found in result["validation"].items()
      for check in found.get("checks", [found])
    ]
    lines.append("predictions of runs that a fit did not see")
    lines.append(table(rows, list(rows[0])))
  return lines


def interval(
  ends: Sequence[float] | None, before: str = "", digits: str = ".6g"
) -> str:
  """`before [low, high]`, nothing where there is none."""
  if ends is None:
    return ""
  return f"{before}[{ends[0]:{digits}}, {ends[1]:{digits}}]"
