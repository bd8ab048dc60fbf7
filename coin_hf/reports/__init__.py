"""Results as tables, figures and cards."""
