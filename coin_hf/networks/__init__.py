"""Run a network: inputs, logits, linear maps, and sharing the work among processes."""
