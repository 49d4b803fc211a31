"""Heads: what reads `out["features"]` of a family."""
