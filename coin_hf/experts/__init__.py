"""Experts and coded models: networks with their origin, preprocessing and class names."""
