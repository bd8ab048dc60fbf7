"""One rule per torch function: its output, and the squared per-sample gradients of its parameters.

A rule is called in place of the function, with the same arguments. It returns None to decline (the
function then runs as usual and its parameters take the generic path), or the output computed from
detached parameters, after telling the tape how to turn the gradient g of that output into squares.
With l a sample, m a cotangent and t a position, each module gives the per-sample gradients of its
functions.

The leading axis of an activation holds R rows for each of the P samples, sample after sample; R > 1
in windowed attention. `batched_backward` checks this.
"""
