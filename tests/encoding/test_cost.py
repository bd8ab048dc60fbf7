"""Peak memory of a step: what the step took, not what was taken before."""

import sys

import torch

from coin_hf.encoding.cost import watch

MIB = 2**20


def test_a_step_is_charged_for_what_it_holds_at_once() -> None:
    def peak(mib: int) -> int | None:
        with watch(torch.device("cpu")) as found:
            torch.ones(mib * MIB // 4).sum()
        return found.bytes

    small, large, again = peak(1), peak(400), peak(1)
    if small is None or large is None or again is None:  # other systems do not tell
        assert sys.platform != "linux"
        return
    assert 380 * MIB < large - small < 480 * MIB
    assert again < large - 300 * MIB  # an earlier peak is forgotten
