"""The error for wrong input, with a message that says how to fix it."""


class InputError(ValueError):
    """A mistake in the user's input: recipe, expert, dataset or output folder.

    The message is one sentence or a short list: what was expected, what was given, how to fix it.
    The command line prints it without a traceback and exits with code 2; programs can catch it as
    a `ValueError`.
    """
