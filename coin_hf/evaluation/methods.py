"""The methods that an evaluation measures: the run's own coded models, and the controls."""

OUTPUT_AVERAGE = "output average"
"""Control: the exact sum_i beta_i f_i in place of a coded model; NDA 100 by construction."""
NO_CODED_MODEL = "no coded model"
"""Control: the beta-weighted answers that came, for the missing one; fhat_i = f_j for N = 2."""
AVERAGING = "averaging"
"""Control: coded models by plain averaging; also the coder of that name."""
UNREFINED = "averaging, not refined"
"""The same control beside the coder `averaging` with steps of `refine` behind it."""


def averaging_control(coder: str, *, refined: bool) -> str | None:
    """Name the control by plain averaging.

    The run's own coded models are measured under the coder's name.

    Args:
        coder: The coder.
        refined: Whether steps of `refine` come behind it.

    Returns:
        A name that the coder does not have; None where the coded models are plain averages
        themselves.
    """
    if coder != AVERAGING:
        return AVERAGING
    return UNREFINED if refined else None
