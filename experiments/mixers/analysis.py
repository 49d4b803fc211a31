"""What the runs and the clock of mixers show: laws, verdicts, tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale import arms, laws
from vitscale.laws.verdict import Answer, Verdict, all_of, decide
from vitscale.nn.mixers import ecoformer
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Section, Table

ACCURACY = "eval/test/accuracy"
REFERENCE, EXACT = "softmax", ("softmax", "softmax, chunked")
MARGIN = 0.01  # of accuracy, at the shortest sequence
FADES = 0.02  # of accuracy, from the shortest to the longest
MEMORY, TIME = 1.15, 1.2  # most, exponents of mixers that are linear
MEMORY_ALL, TIME_ALL = 1.6, 1.5  # least, of softmax over all pairs

Found = Mapping[str, Any]  # of clock.py


# ------------------------------------------------------------------ accuracy


def cells(done: arms.Results) -> dict[tuple[str, int, str], dict[int, float]]:
  """(data, tokens, mixer) -> seed -> test accuracy."""
  found: dict[tuple[str, int, str], dict[int, float]] = {}
  for run in done.values():
    v = run["law_variables"]
    if run["status"] == "finished" and v["arm"] != "pilot":
      cell = found.setdefault((v["data"], v["tokens"], v["mixer"]), {})
      cell[v["seed"]] = run["metrics"][ACCURACY]
  return found


def lead(found, data: str, tokens: int, mixer: str) -> dict[int, float]:
  """Accuracy of softmax minus the mixer's, by seed."""
  ours, its = (found.get((data, tokens, m), {}) for m in (REFERENCE, mixer))
  return {seed: ours[seed] - its[seed] for seed in sorted(set(ours) & set(its))}


def others(found, data: str) -> list[str]:
  """Mixers beside softmax, in the order of the runs."""
  names = dict.fromkeys(m for d, _, m in found if d == data)
  return [name for name in names if name != REFERENCE]


def short(done: arms.Results, data: str) -> Verdict | None:
  """Claim 1: at the shortest sequence nothing beats softmax by much."""
  found = cells(done)
  lengths = [n for d, n, _ in found if d == data]
  if not lengths:
    return None
  n = min(lengths)
  return arms.judged(
    f"{data}, {n} tokens: softmax is at least as accurate as every mixer",
    f"accuracy of softmax minus the mixer's, intervals above -{MARGIN:g}",
    {
      mixer: ([*lead(found, data, n, mixer).values()], -MARGIN)
      for mixer in others(found, data)
    },
    control="rates tuned for every mixer",
  )


def fades(done: arms.Results, data: str) -> Verdict | None:
  """Claim 2: longer sequences don't cost a linear mixer more accuracy."""
  found = cells(done)
  lengths = sorted({n for d, n, _ in found if d == data})
  if len(lengths) < 2:
    return None
  near, far = lengths[0], lengths[-1]
  parts = {
    mixer: (
      arms.difference(
        lead(found, data, far, mixer), lead(found, data, near, mixer)
      ),
      FADES,
    )
    for mixer in others(found, data)
  }
  return arms.judged(
    f"{data}: from {near} to {far} tokens no mixer falls behind softmax",
    f"growth of softmax's lead, intervals below {FADES:g}",
    parts,
    direction="below",
  )


# ---------------------------------------------------------------------- costs


def names(clock: Found) -> list[str]:
  return list(dict.fromkeys(cell["mixer"] for cell in clock["cells"]))


def law(clock: Found, mixer: str, what: str) -> laws.Fit:
  """`what` = c N^a over all lengths; one round of times is one run."""
  rows = []
  for cell in clock["cells"]:
    if cell["mixer"] == mixer:
      values = cell[what] if what == "seconds" else [cell[what]]
      rows += [
        {"N": cell["tokens"], "cost": float(value), "round": turn}
        for turn, value in enumerate(values)
      ]
  return laws.fit(
    laws.power("N", exponent=(0.0, 4.0)),
    rows,
    y="cost",
    groups="round" if what == "seconds" else None,
    bootstrap=0,
  )


def exponent(fit: laws.Fit) -> tuple[float, tuple[float, float]]:
  """a and its 95 % interval (Student's t): between rounds where there are
  several, else by the scatter of lengths about the line."""
  return fit.params["a"], fit.ci(kind="delta")["a"]


def grows(
  clock: Found, fits: Mapping[tuple[str, str], laws.Fit], what: str,
  most: float, least: float,
) -> list[Verdict]:  # fmt: skip
  """Claims 3 and 4: exponents of the mixers, and of softmax."""
  word = {"seconds": "time", "bytes": "memory"}[what]
  out = []
  linear = [name for name in names(clock) if name not in EXACT]
  for claim, which, bar, direction in (
    (f"{word} of every other mixer is linear", linear, most, "below"),
    (f"{word} of softmax over all pairs is not", [REFERENCE], least, "above"),
  ):
    answers: dict[str, Answer] = {}
    texts = []
    for name in which:
      a, ci = exponent(fits[name, what])
      answers[name] = decide(ci, bar, direction)
      texts.append(f"{name} {a:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]")
    a, ci = exponent(fits[which[0], what])
    alone = len(which) == 1
    out.append(
      Verdict(
        claim, all_of(answers)[0],
        f"exponents of N, intervals {direction} {bar:g}", "; ".join(texts),
        "the same block, lengths and machine", a if alone else None,
        ci if alone else None,
      )
    )  # fmt: skip
  return out


def quicker(clock: Found) -> Verdict:
  """Claim 5: at the longest sequence each takes less time than softmax."""
  longest = max(cell["tokens"] for cell in clock["cells"])
  seconds = {
    cell["mixer"]: np.log(cell["seconds"])
    for cell in clock["cells"]
    if cell["tokens"] == longest
  }
  best = min(EXACT, key=lambda name: seconds[name].mean())
  parts = {
    name: (list(each - seconds[best]), 0.0)
    for name, each in seconds.items()
    if name not in EXACT
  }
  return arms.judged(
    f"{longest} tokens: every other mixer is quicker than softmax",
    "ln of the ratio of times, intervals over rounds below 0",
    parts,
    direction="below",
    control=f"the quicker back end of softmax, {best}",
  )


# ----------------------------------------------------------------- everything


def accuracy_table(done: arms.Results) -> Table:
  first = {}  # a run of each cell
  for run in done.values():
    v = run["law_variables"]
    if run["status"] == "finished" and v["arm"] != "pilot":
      first.setdefault((v["data"], v["tokens"], v["mixer"]), run)
  rows = []
  for cell, by_seed in cells(done).items():
    values, v = list(by_seed.values()), first[cell]["law_variables"]
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    flops = first[cell]["metrics"].get("flops", 0)
    rows.append(
      {
        **dict(zip(("data", "tokens", "mixer"), cell)),
        "rate": f"{v['lr']:g}",
        "accuracy": round(float(np.mean(values)), 4),
        "sd": round(float(spread), 4),
        "seeds": len(values),
        "parameters": v.get("params", "-"),
        "TFLOP": float(f"{flops / 1e12:.3g}"),
      }
    )
  return Table(
    "Test accuracy",
    rows,
    caption="TFLOP of the whole training, element-wise work not counted.",
  )


def cost_table(clock: Found, fits: Mapping[tuple[str, str], Any]) -> Table:
  rows = []
  for name in names(clock):
    row: dict[str, Any] = {"mixer": name}
    for what in ("seconds", "bytes", "flops"):
      a, ci = exponent(fits[name, what])
      row[f"{what}: a"] = f"{a:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]"
    for cell in clock["cells"]:
      if cell["mixer"] == name:
        n = cell["tokens"]
        row[f"ms, {n}"] = round(1e3 * float(np.median(cell["seconds"])), 2)
        row[f"MB, {n}"] = round(cell["bytes"] / 1e6, 1)
    rows.append(row)
  return Table(
    "Cost of a block, forward and backward", rows,
    caption="cost = c N^a. Memory is what the compiler sets aside for"
    " intermediate arrays; FLOPs are counted, element-wise ones too.",
  )  # fmt: skip


def energy_table(clock: Found, width: int = 768, heads: int = 12) -> Table:
  """EcoFormer's own measure, of a ViT-B's attention, counted."""
  rows = []
  for n in (196, *sorted({cell["tokens"] for cell in clock["cells"]})):
    hashed = ecoformer.energy(n, heads, width // heads)
    exact = ecoformer.softmax_energy(n, heads, width // heads)
    rows.append(
      {
        "tokens": n,
        "softmax, uJ": round(exact.picojoules / 1e6, 1),
        "ecoformer, uJ": round(hashed.picojoules / 1e6, 1),
        "share": round(hashed.picojoules / exact.picojoules, 4),
      }
    )
  return Table(
    "Energy of one attention (counted)", rows,
    caption="Float operations at 45 nm, 3.7 pJ a multiplication and .9 pJ an"
    " addition (Horowitz 2014); without memory. Nothing here runs on hardware"
    " on which additions are cheaper.",
  )  # fmt: skip


def figures(done: arms.Results, clock: Found, fits) -> list[Figure]:
  panels = []
  for what, label in (("seconds", "seconds"), ("bytes", "bytes")):
    marks: list[Any] = []
    for name in names(clock):
      mine = [cell for cell in clock["cells"] if cell["mixer"] == name]
      x = np.array([cell["tokens"] for cell in mine], float)
      y = [float(np.median(cell[what])) for cell in mine]
      marks.append(Points(name, x, y))
      marks.append(Line(name, x, fits[name, what].predict(N=x)))
    panels.append(Panel(Axis("tokens N", "log2", ticks=x),
                        Axis(label, "log"), marks))  # fmt: skip
  made = [
    Figure("cost", "Cost of a block against its tokens", panels,
           "Medians over rounds, and c N^a.", palette="sequence")
  ]  # fmt: skip
  found, panels = cells(done), []
  for data in dict.fromkeys(d for d, _, _ in found):
    marks = []
    for mixer in (REFERENCE, *others(found, data)):
      lengths = sorted(n for d, n, m in found if (d, m) == (data, mixer))
      mean = [np.mean(list(found[data, n, mixer].values())) for n in lengths]
      marks.append(Points(mixer, lengths, mean))
    panels.append(
      Panel(Axis("tokens N", "log2"), Axis("test accuracy"), marks, data)
    )
  if panels:
    made.append(
      Figure("accuracy", "Test accuracy against tokens", panels,
             "Means over seeds.", palette="sequence")
    )  # fmt: skip
  return made


def analyse(done: arms.Results, clock: Found, scale: str) -> dict[str, Any]:
  """Everything of one scale."""
  fits = {
    (name, what): law(clock, name, what)
    for name in names(clock)
    for what in ("seconds", "bytes", "flops")
  }
  sets = list(dict.fromkeys(d for d, _, _ in cells(done)))
  verdicts = [short(done, data) for data in sets]
  verdicts += [fades(done, data) for data in sets]
  verdicts += grows(clock, fits, "bytes", MEMORY, MEMORY_ALL)
  verdicts += grows(clock, fits, "seconds", TIME, TIME_ALL)
  verdicts.append(quicker(clock))
  return {
    "title": f"Token mixers: accuracy and cost ({scale})",
    "text": "One ViT, one template, another token mixer: what it costs by the"
    f" number of tokens and how accurate it is. Costs on {clock['device']},"
    f" jax {clock['jax']}.",
    "laws": [
      {**fit.card(), "name": f"{name}: {what}"}
      for (name, what), fit in fits.items()
    ],
    "verdicts": [v for v in verdicts if v is not None],
    "tables": [accuracy_table(done), cost_table(clock, fits)],
    "figures": figures(done, clock, fits),
    "sections": [Section("Energy", tables=[energy_table(clock)])],
    "files": {"clock.json": clock},
  }  # fmt: skip


def pilots(
  done: arms.Results,
  rates: Mapping[str, float],
  tried: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
  """Rates by cell, as rates.json wants them; says which are at an end."""
  rows = [
    {
      "cell": key,
      "rate": lr,
      "at an end of the grid": lr in (min(tried[key]), max(tried[key])),
    }
    for key, lr in rates.items()
  ]
  losses = [
    {"run": name, "loss": round(run["metrics"].get("eval/val/nll", np.nan), 4)}
    for name, run in done.items()
  ]
  return {
    "title": "Learning rates of the mixers",
    "tables": [Table("Chosen", rows), Table("Pilots", losses)],
    "files": {"rates.json": {"quick": dict(rates)}},
  }
