"""Name the methods that an evaluation measures: the run's coded models and the controls."""

OUTPUT_AVERAGE = "output average"
"""Control: the exact sum_i beta_i f_i in place of a coded model; NDA 100 by construction."""
NO_CODED_MODEL = "no coded model"
"""Control: the beta-weighted mean of the other experts' answers; fhat_i = f_j for N = 2."""
CODED_ALONE = "coded model alone"
"""What a coded model answers by itself: argmax f_c(x) over all K labels. One network runs."""
CODED_ALONE_OWN = "coded alone, own labels"
"""The same among the labels of the missing expert's own data, which it must then be told."""
ALONE_CONTROLS = (CODED_ALONE, CODED_ALONE_OWN)
CONTROLS = (OUTPUT_AVERAGE, NO_CODED_MODEL, *ALONE_CONTROLS)
AVERAGING = "averaging"
"""Control: coded models by plain averaging; also the coder of that name."""
UNREFINED = "averaging, not refined"
"""The same control where the coder is `averaging` followed by steps of `refine`."""


def averaging_control(coder: str, *, refined: bool) -> str | None:
    """Return the name of the plain-averaging control.

    The run's own coded models are measured under the coder's name.

    Args:
        coder: The coder.
        refined: Whether steps of `refine` follow it.

    Returns:
        A name other than the coder's; None if the coded models are plain averages themselves.
    """
    if coder != AVERAGING:
        return AVERAGING
    return UNREFINED if refined else None
