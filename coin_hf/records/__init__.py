"""Typed records of a run: what coin.json and result.json hold."""
