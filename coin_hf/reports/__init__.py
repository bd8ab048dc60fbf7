"""Render results as tables, figures and cards."""
