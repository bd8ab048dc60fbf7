"""Layerwise refitting within a limit of memory: the same numbers, and no more than allowed."""

import copy
import io
import tempfile
from typing import Any

import pytest
import torch
from builders import timm_model
from torch import Tensor, nn

from coin_hf.coders import average
from coin_hf.encoding.scratch_file import ScratchFile
from coin_hf.errors import InputError
from coin_hf.networks.linear_maps import Intercept, LinearMap
from coin_hf.networks.processes import ALONE
from coin_hf.refiners import refit_layers
from coin_hf.refiners.lockstep import Pass, passes
from coin_hf.refiners.parking import Parking, waiting_bytes
from coin_hf.refiners.regression import FewRows, NormalEquations, Regression
from coin_hf.refiners.row_choice import choose, starts
from coin_hf.refiners.shelf import Shelf

BETAS = [0.3, 0.7]


def images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64) - 0.5


def three(architecture: str) -> tuple[nn.Module, list[nn.Module]]:
    experts = [timm_model(seed, architecture).double() for seed in (1, 2)]
    thetas = [dict(expert.named_parameters()) for expert in experts]
    coded = copy.deepcopy(experts[0])
    coded.load_state_dict(average(thetas, betas=BETAS), strict=False)
    return coded, experts


def size_of(model: nn.Module) -> int:
    return int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index]


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 1}, {"batch_size": 5}, {"memory": 0}, {"memory": 2**19, "batch_size": 3}],
    ids=str,
)
def test_memory_and_chunks_change_no_number(architecture: str, settings: Any) -> None:
    coded, experts = three(architecture)
    fit, held_out = images(11, size_of(coded)), images(4, size_of(coded), 1)
    whole = refit_layers(coded, experts, fit, held_out, betas=BETAS, memory=2**32, batch_size=99)
    found = refit_layers(
        coded, experts, fit, held_out, betas=BETAS, scratch=ScratchFile, **settings
    )
    assert any(not torch.equal(v, dict(coded.named_parameters())[n]) for n, v in whole.items())
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-7, atol=1e-9)


class Remembering(nn.Module):
    """Makes a table in its first pass and uses it in every other, as rotary positions are."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.table is None or self.table.device != x.device:
            self.table = torch.linspace(0, 1, 8, dtype=x.dtype).cos()
        return self.head(self.second(x * self.table).relu() * self.table)


def test_what_a_network_keeps_between_passes_is_there_again() -> None:
    experts = [Remembering(seed).double().eval().requires_grad_(False) for seed in (1, 2)]
    coded = Remembering(3).double().eval().requires_grad_(False)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = refit_layers(coded, experts, x[:16], x[16:], betas=BETAS)
    coded.table = None
    found = refit_layers(
        coded, experts, x[:16], x[16:], betas=BETAS, memory=0, scratch=ScratchFile, batch_size=3
    )
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-7, atol=1e-9)


def test_waiting_passes_hold_no_more_than_their_room() -> None:
    model = timm_model(0, "test_resnet").double()
    batches = images(12, size_of(model)).split(2)
    each = 2 * waiting_bytes(model, batches[0])
    room = int(2.5 * each)
    with Shelf(0, ScratchFile) as shelf:
        parking = Parking(model, shelf, room)
        every = [Pass(model, batch, parking.tracker()) for batch in batches]
        expected = [model(batch) for batch in batches]
        with passes(every):
            most = 0
            while True:
                for one in every:
                    parking.fetch(one)
                    if one.go(None if one.stop is None else one.stop()) is not None:
                        parking.park(one)
                if every[0].stop is None:
                    break
                held = [s.nbytes() for one in every for s in one.tracker.alive()]  # type: ignore[union-attr]
                most = max(most, sum(held))
        assert 0 < most <= room
        for one, logits in zip(every, expected, strict=True):
            assert one.logits is not None
            assert torch.equal(one.logits, logits)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    coded, experts = three("test_resnet")
    side = size_of(coded)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: io.FileIO("/dev/full", "w"))
    with pytest.raises(InputError, match=r"has no room for .* set TMPDIR .* or raise `memory`"):
        refit_layers(
            coded,
            experts,
            images(8, side),
            images(2, side),
            betas=BETAS,
            memory=0,
            scratch=ScratchFile,
        )


class TestShelf:
    def test_it_gives_back_what_was_laid_down(self) -> None:
        values = [
            torch.randn(3, n).to(dtype)
            for n in (2, 5, 5)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        with Shelf(70, ScratchFile) as shelf:
            tickets = [shelf.put(value) for value in values]
            assert 0 < sum(ticket.kept is not None for ticket in tickets) < len(tickets)
            for value, ticket in zip(values, tickets, strict=True):
                assert torch.equal(shelf.read(ticket), value)
                assert torch.equal(shelf.take(ticket), value)
            end = shelf._end
            for value in values:  # the places of before are used again
                assert torch.equal(shelf.take(shelf.put(value)), value)
            assert shelf._end == end


class TestChosenRows:
    """Rows that are gathered one by one are those of the whole matrix."""

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(3, 5, 3, stride=2, padding=1),
            nn.Conv2d(3, 5, (3, 2), padding=2, dilation=(2, 1), bias=False),
            nn.Conv2d(3, 5, 1, stride=2),
            nn.Conv2d(3, 5, 3, padding="same"),
        ],
        ids=str,
    )
    def test_of_convolutions(self, layer: nn.Conv2d) -> None:
        self.check(layer, torch.randn(4, 3, 9, 7))

    def test_of_convolutions_on_other_axes(self) -> None:
        self.check(nn.Conv1d(3, 5, 3, stride=2, padding=1), torch.randn(4, 3, 9))
        self.check(nn.Conv3d(3, 5, (1, 3, 2), padding=1), torch.randn(4, 3, 4, 5, 6))

    def test_of_linear_maps(self) -> None:
        self.check(nn.Linear(3, 5), torch.randn(4, 6, 3))
        self.check(nn.Linear(3, 5), torch.randn(4, 2, 6, 3))

    def check(self, layer: nn.Module, x: Tensor) -> None:
        stops: list[LinearMap] = []
        with torch.no_grad(), Intercept(layer, stops.append):  # type: ignore[arg-type]
            layer(x)
            stop, output = stops[0], stops[0]()
            count = stop.count_rows(output)
            assert count == len(stop.flat(output)) == len(stop.rows(stop.input))
            chosen = torch.tensor(sorted({0, 1, 5, count // 2, count - 1}))
            assert torch.equal(stop.chosen_rows(chosen), stop.rows(stop.input)[chosen])
            assert torch.equal(stop.chosen_outputs(output, chosen), stop.flat(output)[chosen])


class TestRowChoice:
    def test_evenly_spaced_from_each_samples_start(self) -> None:
        start = torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64)
        found = choose(30, start, 4)
        expected = [[0, 2, 5, 7], [11, 13, 16, 18], [22, 24, 27, 29]]
        assert found is not None
        assert found.view(3, 4).tolist() == expected

    def test_all_where_there_are_no_more(self) -> None:
        assert choose(30, starts(3, 0), 10) is None

    def test_padding_is_never_chosen_and_short_texts_give_all(self) -> None:
        real = torch.zeros(3, 10, dtype=torch.bool)
        real[0, :7], real[1, :2], real[2, 3:9] = True, True, True
        found = choose(30, starts(3, 0), 3, real.flatten())
        assert found is not None
        assert real.flatten()[found].all()
        assert [(found // 10 == k).sum().item() for k in range(3)] == [3, 2, 3]
        assert len(found.unique()) == len(found)

    def test_every_place_is_chosen_as_often(self) -> None:
        count, rows = 4000, 7
        found = choose(rows * count, starts(count, 1), 3)
        assert found is not None
        share = torch.bincount(found % rows, minlength=rows) / count
        torch.testing.assert_close(share, torch.full((rows,), 3 / rows), rtol=0.1, atol=0)

    def test_the_fit_is_the_regression_on_the_chosen_rows(self) -> None:
        """The first map of a network whose images have more positions than are asked for."""
        coded, experts = three("test_resnet")
        fit, held_out = images(6, size_of(coded)), images(3, size_of(coded), 1)
        found = refit_layers(coded, experts, fit, held_out, betas=BETAS, strength=0.5, rows=2)
        seen: dict[int, LinearMap] = {}
        for key, model in enumerate([*experts, coded]):
            first: list[LinearMap] = []
            with torch.no_grad(), Intercept(model, first.append):  # type: ignore[arg-type]
                model(fit)
            seen[key] = first[0]
        stop = seen[2]
        x, target = stop.rows(fit), sum(b * seen[i].flat(seen[i]()) for i, b in enumerate(BETAS))
        inputs = x.shape[1]
        chosen = choose(len(x), starts(6, 0), -(-2 * inputs // 6))
        assert chosen is not None
        assert len(chosen) < len(x)
        x, missing = x[chosen], (target - stop.flat(stop()))[chosen]  # type: ignore[index]
        ridge = 0.5 * x.square().sum(0).mean() * torch.eye(inputs).to(x)
        change = torch.linalg.solve(x.T @ x + ridge, x.T @ missing).T
        expected = stop.weight + change.view_as(stop.weight)
        torch.testing.assert_close(found[stop.name], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_both_forms_of_the_minimum_are_the_ridge_regression(bias: bool, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 9, generator=generator, dtype=torch.float64)
    x[:, 4] = 0  # an input that is always zero
    y = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    forms: list[Regression] = [
        kind(9, 3, bias=bias, device=torch.device("cpu"), dtype=torch.float64)
        for kind in (FewRows, NormalEquations)
    ]
    wide = torch.cat([x, torch.ones(rows, 1).to(x)], 1) if bias else x
    ridge = torch.full((9,), x.square().sum(0).mean().item(), dtype=torch.float64)
    ridge = torch.cat([ridge, torch.tensor([float(rows)])]) if bias else ridge
    expected = torch.linalg.solve(wide.T @ wide + 0.1 * torch.diag(ridge), wide.T @ y)
    for form in forms:
        for part in zip(x.split(3), y.split(3), strict=True):
            form.add(*part)
        form.close(ALONE)
        found = form.solve(0.1)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(found[4], torch.zeros(3, dtype=torch.float64))
        error = (y - wide @ expected).square().sum().item()
        assert form.error_of(found) == pytest.approx(error, rel=1e-9)


def test_a_network_that_is_one_map_is_refitted() -> None:
    """Nothing waits at its only map but the inputs themselves."""
    models = [nn.Linear(6, 3).double().eval().requires_grad_(False) for _ in range(3)]
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = refit_layers(models[0], models[1:], x, x, betas=BETAS, strength=1e-12)
    exact = sum(b * m.weight for b, m in zip(BETAS, models[1:], strict=True))
    torch.testing.assert_close(found["weight"], exact, rtol=1e-6, atol=1e-8)


def test_a_process_without_rows_computes_in_the_others_precision() -> None:
    none = FewRows(9, 3, bias=True, device=torch.device("cpu"), dtype=torch.float64)
    none.close(ALONE)
    assert (none.rows.dtype, none.residuals.dtype) == (torch.float64, torch.float64)
    assert (none.rows.shape, none.residuals.shape) == ((0, 10), (0, 3))


def test_where_all_inputs_are_zero_the_bias_alone_is_fitted() -> None:
    y = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in (FewRows, NormalEquations):
        form = kind(9, 2, bias=True, device=torch.device("cpu"), dtype=torch.float64)
        form.add(torch.zeros(3, 9, dtype=torch.float64), y)
        form.close(ALONE)
        change = form.solve(1.0)
        assert not change[:9].any()
        torch.testing.assert_close(change[9], y.sum(0) / 6)
