"""Decode every erasure and score it beside its controls."""
