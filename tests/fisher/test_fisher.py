"""Properties of `diagonal_fisher`: what the result does, and does not, depend on."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from builders import randomise
from reference import fisher as one_copy
from reference import fisher_error
from torch import Tensor, nn

from coin_hf.fisher import Partial, chunks, diagonal_fisher, elementwise, generic, squares
from coin_hf.fisher.probe import cotangents as probes_of
from coin_hf.fisher.rules.linear import linear
from coin_hf.fisher.rules.table import RULES
from coin_hf.fisher.self_check import check_engine

K = 4


class Net(nn.Module):
    """Of every way to take a parameter one: by rules, derived, twice, and by no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, 1, 1, groups=4)
        self.scale = nn.Parameter(torch.randn(4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.twice, self.last = nn.Linear(4, 4), nn.LayerNorm(4)
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.stem(x)))
        x = x + self.scale.view(1, -1, 1, 1) * self.depthwise(x)
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self.twice(self.twice(x).tanh()).mean(1, keepdim=True) @ self.mix
        return self.head(self.dropout(self.last(x).sin().mean(1)))


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(Net(), 0).to(dtype)


# Two copies of each sample, for torch's own BatchNorm: see test_fisher_rules.py.
fisher = partial(one_copy, copies=2)


def samples(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 5, generator=generator, dtype=torch.float64).to(dtype)


# --- The value


@pytest.mark.parametrize("batch_size", [1, 2, 7, 10, 100, None])
def test_it_is_the_loop_at_every_batch_size(batch_size: int | None) -> None:
    model, inputs = net(), samples(10)
    found = diagonal_fisher(model, inputs, batch_size=batch_size)
    assert fisher_error(found, fisher(model, inputs)) <= 1e-10


@pytest.mark.parametrize("size", [1, 3])
def test_it_does_not_depend_on_how_work_is_cut(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = net(), samples(5)
    expected = diagonal_fisher(model, inputs)
    monkeypatch.setattr(chunks, "WIDE", size)  # cotangents of a backward pass
    monkeypatch.setattr(generic, "BLOCK", size * 40)
    monkeypatch.setattr(elementwise, "PULLED", size * 4)
    monkeypatch.setattr(squares, "CACHE", size * 8)
    assert fisher_error(diagonal_fisher(model, inputs), expected) <= 1e-12


def test_a_linear_model_by_hand() -> None:
    model, inputs = nn.Linear(2, 3), torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    found = diagonal_fisher(model, inputs)
    assert found["weight"].tolist() == [[5.0, 10.0]] * 3  # means of 1, 9 and of 4, 16
    assert found["bias"].tolist() == [1.0] * 3


def test_the_order_of_the_samples_does_not_matter() -> None:
    model, inputs = net(), samples(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    found = diagonal_fisher(model, inputs[order], batch_size=4)
    assert fisher_error(found, diagonal_fisher(model, inputs, batch_size=4)) <= 1e-12


def test_it_is_a_mean_over_the_samples() -> None:
    model, inputs = net(), samples(5)
    parts = [diagonal_fisher(model, inputs[:2]), diagonal_fisher(model, inputs[2:])]
    mean = {name: 0.4 * parts[0][name] + 0.6 * parts[1][name] for name in parts[0]}
    assert fisher_error(diagonal_fisher(model, inputs), mean) <= 1e-12


def test_squaring_a_gradient_summed_over_a_batch_depends_on_the_batch_and_ours_does_not() -> None:
    # What some published mergers call a Fisher.
    model, inputs = net(), samples(8)
    parameters = dict(model.named_parameters())

    def summed(batch_size: int) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for batch in inputs.split(batch_size):
            gradients = torch.autograd.grad(model(batch).sum(), list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient**2 / len(inputs)
        return total

    assert fisher_error(summed(8), summed(1)) > 1
    # One sample at a time it still sums over the classes: then they cancel.
    assert fisher_error(summed(1), fisher(model, inputs)) > 0.1
    ours = diagonal_fisher(model, inputs, batch_size=1)
    assert fisher_error(diagonal_fisher(model, inputs, batch_size=8), ours) <= 1e-12


def test_without_gradients_a_published_merger_finds_zeros_and_ours_does_not() -> None:
    model, inputs = net(), samples(2)
    with torch.no_grad():
        assert not model(inputs).requires_grad
        found = diagonal_fisher(model, inputs)
    assert all(value.max() > 0 for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    model, inputs = net(dtype), samples(6, dtype)
    found = diagonal_fisher(model, inputs)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert {value.dtype for value in model.parameters()} == {dtype}
    expected = fisher(model.double(), inputs.double())  # the same weights and samples, exactly
    error = fisher_error({name: value.double() for name, value in found.items()}, expected)
    assert error <= 300 * torch.finfo(dtype).eps ** (1.0 if dtype == torch.float32 else 0.9)


def test_many_small_squares_are_not_lost() -> None:
    # In bfloat16 a sum of ones stops at 256.
    model = nn.Linear(2, 3).bfloat16()
    found = diagonal_fisher(model, torch.ones(1000, 2, dtype=torch.bfloat16), batch_size=3)
    assert found["weight"].tolist() == [[1.0, 1.0]] * 3


def test_float64_stays_float64() -> None:
    found = diagonal_fisher(net(), samples(2))
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert {value.device.type for value in found.values()} == {"cpu"}
    assert list(found) == [name for name, _ in net().named_parameters()]


def test_offloaded_sums_are_equal() -> None:
    model, inputs = net(), samples(5)
    expected = diagonal_fisher(model, inputs, batch_size=2)
    found = diagonal_fisher(model, inputs, batch_size=2, offload=True)
    assert fisher_error(found, expected) == 0


# --- The caller's things


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: value.requires_grad for name, value in model.named_parameters()},
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: value.grad for name, value in model.named_parameters()},
        torch.get_rng_state(),
    )


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[:2] == after[:2]
    assert before[2].keys() == after[2].keys()
    assert all(torch.equal(value, after[2][name]) for name, value in before[2].items())
    for name, grad in before[3].items():
        assert after[3][name] is grad, name
    assert torch.equal(before[4], after[4])


class Failing(nn.Module):
    """Works for a while."""

    def __init__(self, model: nn.Module, calls: int) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)  # uses the global generator
        self.calls -= 1
        if self.calls == 0:
            raise ArithmeticError("as planned")
        return self.model(x)


@pytest.mark.parametrize("calls", [0, 1, 3, 6, 9])
@pytest.mark.parametrize("estimator", ["exact", "probe"])
def test_the_callers_state_is_left_as_it_was(calls: int, estimator: Any) -> None:
    model = Failing(net(), calls)
    model.train()
    model.model.norm.eval()
    model.model.stem.requires_grad_(False)
    model.model.mix.grad = torch.ones(4, 4, dtype=torch.float64)
    before, gradient = state(model), model.model.mix.grad.clone()
    call = partial(diagonal_fisher, model, samples(9), batch_size=2, estimator=estimator)
    if calls:
        with pytest.raises(ArithmeticError, match="as planned"):
            call()
    else:
        call()
    assert_same(before, state(model))
    assert torch.equal(model.model.mix.grad, gradient)
    assert torch.is_grad_enabled()


# --- Probes


def test_as_many_probes_as_classes_are_exact() -> None:
    model, inputs = net(), samples(5)
    expected = diagonal_fisher(model, inputs)
    for probes in (K, K + 1):
        found = diagonal_fisher(model, inputs, estimator="probe", probes=probes)
        assert fisher_error(found, expected) <= 1e-12


@pytest.mark.parametrize("probes", [1, 3, K])
def test_probes_are_orthogonal_and_of_one_length(probes: int) -> None:
    drawn = probes_of(
        [0, 7], K, probes=probes, seed=3, dtype=torch.float64, device=torch.device("cpu")
    )
    for vectors in drawn.unbind(1):
        gram = vectors @ vectors.T
        assert torch.allclose(gram, K / probes * torch.eye(probes, dtype=gram.dtype))
    assert not torch.allclose(drawn[:, 0], drawn[:, 1])


@pytest.mark.slow
@pytest.mark.parametrize("probes", [1, 2])
def test_probes_are_right_on_average(probes: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, K)).double()
    inputs = samples(2).flatten(1)[:, :3]
    expected = diagonal_fisher(model, inputs)
    seeds = 400
    call = partial(diagonal_fisher, model, inputs, estimator="probe", probes=probes)
    total = {name: torch.zeros_like(value) for name, value in expected.items()}
    squared = copy.deepcopy(total)
    for seed in range(seeds):
        for name, value in call(seed=seed).items():
            total[name] += value / seeds
            squared[name] += value**2 / seeds
    assert fisher_error(call(seed=0), expected) > 0.05
    for name, value in expected.items():
        spread = (squared[name] - total[name] ** 2).clamp(min=0).sqrt() / seeds**0.5
        off = (total[name] - value).abs()
        assert (off <= 5 * spread + 1e-9 * value.max()).all(), name


def test_probes_depend_on_the_seed_and_on_the_samples_position_alone() -> None:
    model, inputs = net(), samples(7)
    call = partial(diagonal_fisher, model, estimator="probe", probes=2)
    expected = call(inputs)
    for batch_size in (1, 3, 7):
        assert fisher_error(call(inputs, batch_size=batch_size), expected) <= 1e-12
    assert fisher_error(call(inputs, seed=0), expected) == 0
    assert fisher_error(call(inputs, seed=1), expected) > 0.01
    # What the first sample adds is the same whoever comes after it.
    one, three = call(inputs[:1]), call(inputs[[0, 2, 1]])
    rest = call(inputs[[0, 2, 1]])
    assert fisher_error(three, rest) == 0
    for name, value in call(inputs[:1].expand(2, -1, -1, -1)).items():
        assert (2 * value - one[name] >= -1e-12 * one[name].max()).all()
        assert not torch.allclose(2 * value - one[name], one[name])  # the second has its own


def test_auto_takes_probes_from_ten_classes() -> None:
    inputs = samples(2).flatten(1)[:, :4]
    for classes, same_as in ((9, "exact"), (10, "probe")):
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, classes)).double()
        found = diagonal_fisher(model, inputs, estimator="auto", probes=2)
        for estimator in ("exact", "probe"):
            other = diagonal_fisher(model, inputs, estimator=estimator, probes=2)
            assert (fisher_error(found, other) <= 1e-12) == (estimator == same_as)


# --- Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"estimator": "empirical"}, "estimator='empirical': expected 'exact', 'probe' or 'auto'"),
    ],
    ids=["batch_size", "probes", "estimator"],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(net(), samples(2), **options)


def test_inputs_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one sample, got inputs of length 0"):
        diagonal_fisher(net(), samples(2)[:0])
    uneven = {"input_ids": torch.ones(3, 2), "attention_mask": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"'input_ids': 3, 'attention_mask': 2"):
        diagonal_fisher(net(), uneven)
    with pytest.raises(ValueError, match="no parameters"):
        diagonal_fisher(nn.Flatten(), samples(2))


def test_quantised_and_infinite_parameters() -> None:
    model = net()
    model.mix = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="'mix' holds int8 values, which cannot be differentiated"):
        diagonal_fisher(model, samples(2))
    with pytest.raises(ValueError, match=r"the Fisher of '.*' is not finite"):
        diagonal_fisher(net(), samples(2) * float("inf"))


def test_a_gradient_that_is_no_number_is_not_taken_for_an_unused_position() -> None:
    # The root's slope at 0 is infinite, times 0: the conv's gradient has NaN at all positions.
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) * 0).abs().sqrt().flatten(2).mean(2)

    with pytest.raises(ValueError, match=r"the Fisher of 'conv.weight' is not finite"):
        diagonal_fisher(Root().double(), samples(2))


# --- The self-check


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_self_check_passes(dtype: torch.dtype) -> None:
    model, inputs = net(dtype), samples(3, dtype)
    expected = diagonal_fisher(model, inputs)
    assert fisher_error(diagonal_fisher(model, inputs, self_check=True), expected) == 0


def test_the_self_check_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_factor(tape: Any, input: Tensor, shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
        output = F.layer_norm(input, shape, weight.detach(), bias.detach(), eps)
        square = elementwise.Elementwise(tape.samples)
        return tape.watch(output, [input], {weight: square, bias: square})

    def no_bias(tape: Any, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
        output = linear(F.linear, tape, input, weight)
        return None if output is None else output + bias.detach()

    monkeypatch.setitem(RULES, F.linear, no_bias)
    with pytest.raises(RuntimeError, match=r"Fisher of head.bias differs .* on 2 samples"):
        diagonal_fisher(net(), samples(3), self_check=True)
    diagonal_fisher(net(), samples(3))  # silent where it is not asked for
    monkeypatch.undo()
    monkeypatch.setitem(RULES, F.layer_norm, no_factor)
    with pytest.raises(RuntimeError, match=r"Fisher of last\.weight differs"):
        check_engine(net(), samples(2))


# --- Going on


@dataclass
class Memory:
    """Keeps partial sums in memory, and stops the run after some chunks."""

    kept: Partial | None = None
    stop_after: int = -1
    finals: int = 0

    def load(self) -> Partial | None:
        return copy.deepcopy(self.kept)

    def save(self, partial: Partial, *, final: bool) -> None:
        self.kept = copy.deepcopy(partial)
        self.finals += final
        self.stop_after -= 1
        if self.stop_after == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "probe"])
@pytest.mark.parametrize("stops", [[1], [2, 1], [4], [5]])
def test_a_stopped_run_goes_on_to_the_same_bits(
    stops: list[int], estimator: Any, offload: bool
) -> None:
    model, inputs = net(torch.float32), samples(9, torch.float32)
    call = partial(diagonal_fisher, model, inputs, estimator=estimator, offload=offload)
    expected = call(batch_size=2)
    memory = Memory()
    for done in stops:
        memory.stop_after = done
        with pytest.raises(KeyboardInterrupt):
            call(batch_size=2, checkpoint=memory)
    assert memory.kept is not None
    assert memory.kept.done == min(2 * sum(stops), 9)
    found = call(batch_size=5, checkpoint=memory)  # the size is that of the run's beginning
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert memory.finals == 1
    again = call(checkpoint=memory)  # nothing left to do
    assert all(torch.equal(again[name], value) for name, value in expected.items())


# --- Processes


def of_processes(folder: str) -> None:
    """What each of two processes does."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    torch.set_num_threads(1)
    for name, call in calls(accelerator).items():
        torch.save(call(), Path(folder, f"{name}.{accelerator.process_index}"))
    accelerator.end_training()  # or the interpreter may end before the group's threads do


def calls(accelerator: Any = None) -> dict[str, Callable[[], dict[str, Tensor]]]:
    found: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for count in (1, 2, 5, 8):
        for estimator in ("exact", "probe"):
            found[f"{estimator} {count}"] = partial(
                diagonal_fisher,
                net(),
                samples(count),
                estimator=estimator,
                probes=2,
                batch_size=2,
                accelerator=accelerator,
            )
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {places}\n"
    program += f"from test_fisher import of_processes; of_processes({str(tmp_path)!r})\n"
    script = tmp_path / "program.py"
    script.write_text(program)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            script,
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, call in calls().items():
        expected = call()
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{name}.{rank}")
            assert fisher_error(found, expected) <= 1e-12, name


# --- Memory


MEMORY = """
import resource, torch
from torch import nn
from coin_hf.fisher import diagonal_fisher

torch.set_num_threads(1)
wide = 2800
model = nn.Sequential(nn.Linear(64, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), {last})
inputs = torch.randn({samples}, {positions} 64)
diagonal_fisher(nn.Linear(2, 2), torch.ones(1, 2))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
before = peak()
found = diagonal_fisher(model, inputs)
print(sum(value.numel() for value in found.values()), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positions", "last"),
    [
        ("", "nn.Linear(wide, 32)"),
        ("2,", "nn.Flatten(), nn.Linear(2 * wide, 9)"),
        ("6,", "nn.Flatten(), nn.Linear(6 * wide, 2)"),
    ],
    ids=["by positions", "by pairs of positions", "by gradients"],
)
def test_memory_holds_no_gradients_of_samples_or_classes(positions: str, last: str) -> None:
    # d = 8 M parameters: one copy is 30 MiB, K = 32 of them are 1 GiB, P = 64 of them 1.9 GiB.
    program = MEMORY.format(samples=64, positions=positions, last=last)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    numbers, peak = done.stdout.split()
    assert int(numbers) > 7.8e6
    assert float(peak) < 0.4


def test_the_positions_of_a_gradient_are_not_dropped_for_being_no_number() -> None:
    gradient = torch.zeros(1, 1, 3, 2)
    gradient[0, 0, 1] = float("nan")
    total = torch.zeros(2, 2)
    squares.add_products(total, gradient, torch.ones(1, 3, 2))
    assert total.isnan().all()
