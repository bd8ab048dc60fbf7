"""Encode a recipe into coded models: experts, samples, a fitted coder, refinement."""
