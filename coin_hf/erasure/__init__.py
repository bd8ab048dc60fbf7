"""The erasure code: coding weights, what they amplify, how they are designed, and decoding."""
