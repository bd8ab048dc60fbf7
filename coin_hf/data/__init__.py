"""Datasets as rows of inputs and labels, and the samples drawn from them."""
