"""The erasure code: coding weights, their design and error amplification, and decoding."""
