"""How many samples and cotangents go through the network at once."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from coin_hf.fisher.batched_backward import Plan
from coin_hf.fisher.chunks import CPU_SAMPLES, chunk_sizes

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


PASSES = """
import resource, torch
from torch import nn
from coin_hf.fisher import diagonal_fisher

def block():
    return nn.Sequential(nn.Linear(384, 768), nn.GELU(), nn.Linear(768, 384))

blocks = [block() for _ in range(4)]
model = nn.Sequential(*blocks, nn.Flatten(2, 3), nn.AdaptiveAvgPool2d((1, 10)), nn.Flatten())
x = torch.randn(8, 65, 1, 384)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    diagonal_fisher(model, x, batch_size=8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what another heap keeps is its own")
def test_a_later_pass_finds_the_memory_of_the_earlier_ones() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PASSES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 5000  # new pages; some 30,000 where the heap gives back what is freed
