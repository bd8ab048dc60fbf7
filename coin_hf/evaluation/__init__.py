"""Decode every erasure and score it against controls."""
