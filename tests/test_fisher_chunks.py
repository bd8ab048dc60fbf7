"""How many samples and cotangents go through the network at once."""

import pytest
import torch

from coin_hf.fisher.chunks import CPU_SAMPLES, chunk_sizes
from coin_hf.fisher.engine import Plan

CPU = torch.device("cpu")


def plan(*, widest: int, usual: int, activations: int = 2**20) -> Plan:
    return Plan({}, torch.zeros(1, 10), activations=activations, widest=widest, usual=usual)


def test_samples_are_spread_evenly_over_the_chunks() -> None:
    narrow = plan(widest=64, usual=64)
    assert chunk_sizes(narrow, 200, 10, batch_size=None, device=CPU) == (29, 10)  # seven chunks
    assert chunk_sizes(narrow, 20, 10, batch_size=None, device=CPU) == (20, 10)
    assert chunk_sizes(narrow, 2 * CPU_SAMPLES, 10, batch_size=None, device=CPU)[0] == CPU_SAMPLES


def test_what_is_chosen_is_kept() -> None:
    assert chunk_sizes(plan(widest=64, usual=64), 200, 10, batch_size=7, device=CPU) == (7, 10)


@pytest.mark.parametrize(("usual", "samples"), [(2**18, 4), (2**14, 16)])
def test_a_single_wide_activation_counts_for_less_than_wide_ones(usual: int, samples: int) -> None:
    found = chunk_sizes(plan(widest=2**18, usual=usual), 64, 10, batch_size=None, device=CPU)
    assert found == (samples, 10)


def test_no_more_than_memory_holds() -> None:
    everything = 2**50
    found = chunk_sizes(
        plan(widest=everything, usual=64, activations=everything),
        200,
        10,
        batch_size=None,
        device=CPU,
    )
    assert found == (1, 1)
