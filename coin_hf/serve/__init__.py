"""Serve experts and coded models: answers within a deadline while a network is slow or down."""
