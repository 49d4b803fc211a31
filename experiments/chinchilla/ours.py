"""Contestant `vitscale`: the whole call of `laws.fit`, checks included."""

import race

from vitscale import laws


def build(points):
  law = laws.chinchilla()

  def fit(size):
    found = laws.fit(law, points, objective="huber:1e-3", bootstrap=0)
    return {"params": found.params, "inside": found.seconds}

  def draws(size):
    found = laws.fit(
      law, points, objective="huber:1e-3", resample="case", bootstrap=size,
      seed=42,
    )  # fmt: skip
    kept = {k: v[:400].tolist() for k, v in found.draws.items()}
    return {"params": found.params, "draws": kept, "inside": found.seconds}

  return {"fit": fit, "draws": draws}


if __name__ == "__main__":
  race.serve(build)
