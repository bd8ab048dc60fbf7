"""Read datasets as rows of inputs and labels, and draw samples from them."""
