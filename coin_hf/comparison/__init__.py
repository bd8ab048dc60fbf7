"""Compare coders on the same experts, samples and test sets."""
