"""The two-player toy as a family module: `model.family = "tests.toy_pair"`."""

from tests.toys import Pair as Model

__all__ = ["Model"]
