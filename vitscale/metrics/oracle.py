"""What a linear code of a stationary periodic field must lose, closed form.

The covariance of such a field is diagonal in the Fourier basis, with the power
spectrum as eigenvalues. The best linear code of E floats an image keeps the E
largest; a code that sees one patch at a time keeps the largest eigenvalues of
the covariance of a patch. For Gaussian fields the first is the best code of E
floats that any linear encoder and decoder can reach (Eckart and Young, 1936),
the second what is reachable without any exchange between patches: a tokenizer
with attention belongs between the two. Floats are taken as exact: with noise
or a rate limit on them, reverse water-filling applies instead.

Spectra are (h, w) in the order of `fft2`, in any unit, of one channel.
"""

import numpy as np

from vitscale.core.errors import UserError


def global_residual(spectrum: np.ndarray, floats: int) -> float:
  """Share of variance that PCA of whole images loses with `floats` each."""
  _check(spectrum)
  if not 1 <= floats <= spectrum.size:
    raise UserError(
      f"oracle: floats must be 1 to {spectrum.size} pixels, got {floats}"
    )
  return _residual(spectrum.ravel(), floats)


def patch_residual(spectrum: np.ndarray, patch: int, floats: int) -> float:
  """Share of variance that PCA of each patch loses.

  Args:
    spectrum: (h, w).
    patch: pixels a side; divides h and w.
    floats: of the whole image, `floats patch^2 / (h w)` to each patch; that
      must be a whole number.
  """
  eigenvalues = np.linalg.eigvalsh(patch_covariance(spectrum, patch))
  patches = spectrum.size // patch**2
  if floats < 1 or floats % patches or floats > spectrum.size:
    raise UserError(
      f"oracle: floats must be a multiple of the {patches} patches of {patch} "
      f"px and at most {spectrum.size}, got {floats}"
    )
  return _residual(eigenvalues, floats // patches)


def patch_covariance(spectrum: np.ndarray, patch: int) -> np.ndarray:
  """Covariance of the pixels of a patch, row by row: (patch^2, patch^2)."""
  _check(spectrum)
  if patch < 1 or any(s % patch for s in spectrum.shape):
    raise UserError(
      f"oracle: patch {patch} must divide both sides of {spectrum.shape}"
    )
  correlation = np.fft.ifft2(spectrum).real  # by shift, periodic
  row, column = np.divmod(np.arange(patch**2), patch)
  return correlation[row[:, None] - row, column[:, None] - column]


def _residual(eigenvalues: np.ndarray, kept: int) -> float:
  lost = np.sort(eigenvalues)[: len(eigenvalues) - kept]
  return float(max(lost.sum() / eigenvalues.sum(), 0.0))


def _check(spectrum: np.ndarray) -> None:
  if np.ndim(spectrum) != 2 or not (np.asarray(spectrum) >= 0).all():
    raise UserError(
      f"oracle: a spectrum is (h, w) and not negative, got shape "
      f"{np.shape(spectrum)}"
    )
  h, w = spectrum.shape
  mirror = spectrum[-np.arange(h)][:, -np.arange(w)]
  if not np.allclose(spectrum, mirror):
    raise UserError("oracle: the spectrum of a real field is equal at k and -k")
