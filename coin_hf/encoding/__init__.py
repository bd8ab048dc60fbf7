"""From a recipe to coded models: experts, samples, a fitted coder, refinement."""
