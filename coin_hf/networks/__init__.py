"""How a network is run: its inputs, its logits, its linear maps, by how many processes."""
