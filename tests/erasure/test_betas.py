import math
import re

import pytest

from coin_hf.erasure.betas import check_betas


@pytest.mark.parametrize(
    "betas",
    [[0.5, 0.5], [0.1] * 10, [1 / 3, 1 / 3, 1 / 3], [1e-9, 1 - 1e-9], [0.3333333] * 3, [1.0]],
)
def test_valid_betas_pass(betas: list[float]) -> None:
    check_betas(betas, len(betas))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.5, 0.6], "betas must sum to 1, but 0.5, 0.6 sum to 1.1"),
        # What is shown must differ from 1 as the sum does.
        ([0.5, 0.500002], "betas must sum to 1, but 0.5, 0.500002 sum to 1.000002"),
        ([0.33, 0.33, 0.33], "betas must sum to 1, but 0.33, 0.33, 0.33 sum to 0.99"),
        ([1.5, -0.5], "betas must all be positive, got 1.5, -0.5"),
        ([1.0, 0.0], "betas must all be positive, got 1, 0"),
        ([math.nan, 0.5], "betas must all be positive, got nan, 0.5"),
        ([math.inf, 0.5], "betas must all be positive, got inf, 0.5"),
    ],
)
def test_bad_betas_are_named(betas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_betas(betas, len(betas))


def test_the_wrong_number_of_betas() -> None:
    message = r"^betas has 2 values \(0.25, 0.75\) for 3 experts: give one for each$"
    with pytest.raises(ValueError, match=message):
        check_betas([0.25, 0.75], 3)
