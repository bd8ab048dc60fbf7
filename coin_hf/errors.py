"""The one error that means: the input is wrong, and this sentence says what to do."""


class InputError(ValueError):
    """A mistake in what the user gave: recipe, expert, dataset, output folder.

    Its text is one sentence or a short list that names what was expected, what came, and the way
    out. The command line prints it without a traceback and exits with code 2; a program catches it
    as the `ValueError` it is.
    """
