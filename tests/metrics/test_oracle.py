"""Residual variance of linear codes of Gaussian fields."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import fields
from vitscale.metrics import oracle

# (power, floats, global, patch 16, 8, 4, 2), 32 x 32; computed independently,
# printed to four decimals. None: less than one float a patch.
TABLE = [
  (3, 64, 0.1073, 0.1251, 0.1481, 0.2006, None),
  (3, 128, 0.0652, 0.0728, 0.0822, 0.1350, None),
  (3, 256, 0.0354, 0.0384, 0.0426, 0.0528, 0.0763),
  (3, 512, 0.0143, 0.0152, 0.0164, 0.0189, 0.0426),
  (4, 64, 0.0206, 0.0287, 0.0431, 0.0925, None),
  (4, 256, 0.0041, 0.0047, 0.0058, 0.0091, 0.0246),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda r: f"{r[0]}-{r[1]}")
def test_table(row):
  power, floats, *printed = row
  p = fields.spectrum(32, power)
  found = [oracle.global_residual(p, floats)] + [
    None if value is None else oracle.patch_residual(p, patch, floats)
    for patch, value in zip((16, 8, 4, 2), printed[1:])
  ]
  for ours, theirs in zip(found, printed):
    assert (ours is None) == (theirs is None)
    if theirs is not None:
      assert abs(ours - theirs) <= 0.5e-4 + 1e-9


@pytest.mark.parametrize("power, slope", [(3, -0.710), (4, -1.119)])
def test_slope_over_floats(power, slope):
  p = fields.spectrum(32, power)
  floats = 2 ** np.arange(4, 9)
  loss = [oracle.global_residual(p, int(e)) for e in floats]
  assert abs(np.polyfit(np.log(floats), np.log(loss), 1)[0] - slope) < 6e-4


def test_limits():
  p = fields.spectrum(16, 3.0)
  assert oracle.patch_residual(p, 16, 40) == pytest.approx(
    oracle.global_residual(p, 40), rel=1e-9
  )  # one patch is the image
  assert oracle.global_residual(p, 256) == 0
  assert oracle.patch_residual(p, 4, 256) == 0
  white = fields.spectrum(16, 0.0)
  assert oracle.global_residual(white, 64) == pytest.approx(0.75)
  assert oracle.patch_residual(white, 4, 64) == pytest.approx(0.75)


def test_sampled_fields_lose_what_is_said():
  x = fields.values(np.arange(3000), size=8, power=3.0)[..., 0]
  p = fields.spectrum(8, 3.0)
  patches = x.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
  for rows, floats, kept, says in (
    (x.reshape(-1, 64), 16, 16, oracle.global_residual(p, 16)),
    (patches, 16, 4, oracle.patch_residual(p, 4, 16)),
  ):
    assert len(rows) * kept == len(x) * floats
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows)
    lost = eigenvalues[:-kept].sum() / eigenvalues.sum()
    assert lost == pytest.approx(says, rel=0.05)


@pytest.mark.parametrize(
  "call, says",
  [
    (lambda p: oracle.global_residual(p, 0), "1 to 64 pixels, got 0"),
    (lambda p: oracle.global_residual(p, 65), "got 65"),
    (lambda p: oracle.patch_residual(p, 3, 16), "patch 3 must divide"),
    (lambda p: oracle.patch_residual(p, 2, 24), "multiple of the 16 patches"),
    (lambda p: oracle.global_residual(p[0], 1), "got shape (8,)"),
    (lambda p: oracle.global_residual(-p, 1), "not negative"),
    (lambda p: oracle.global_residual(np.triu(p), 1), "equal at k and -k"),
  ],
)
def test_refusals(call, says):
  with pytest.raises(UserError) as e:
    call(fields.spectrum(8, 3.0))
  assert says in str(e.value) and "\n" not in str(e.value)
