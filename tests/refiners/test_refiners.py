"""The refiners against layer by layer least squares, ridge by ridge, on real small networks."""

import copy
import threading
from typing import Any

import pytest
import reference
import timm
import torch
from builders import timm_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coin_hf.coders import average
from coin_hf.refiners import LayerRefits, Unsuitable, find_maps, refit_head, refit_layers
from coin_hf.refiners import head as head_module
from coin_hf.refiners.lockstep import Pass, passes
from coin_hf.refiners.regression import moved

BETAS = [0.3, 0.7]


def images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64) - 0.5


def three(architecture: str = "test_resnet", **settings: Any) -> tuple[nn.Module, list[nn.Module]]:
    """Two experts in float64, and their plain average."""
    experts = [timm_model(seed, architecture, **settings).double() for seed in (1, 2)]
    thetas = [dict(expert.named_parameters()) for expert in experts]
    coded = copy.deepcopy(experts[0])
    coded.load_state_dict(average(thetas, betas=BETAS), strict=False)
    return coded, experts


@torch.no_grad()
def loss(model: nn.Module, experts: list[nn.Module], inputs: Tensor) -> float:
    exact = sum(b * e(inputs) for b, e in zip(BETAS, experts, strict=True))
    return float((model(inputs) - exact).square().sum(1).mean())


def with_parameters(model: nn.Module, found: dict[str, Tensor]) -> nn.Module:
    changed = copy.deepcopy(model)
    changed.load_state_dict(found, strict=False)
    return changed


class Small(nn.Module):
    """Convolutions with and without bias, stride, dilation and groups, tokens, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.wide = nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False)
        self.tokens = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.norm(self.first(x)).relu_())
        x = self.tokens(self.wide(x).flatten(2).mT).tanh()  # (B, places, 5)
        return self.head(x.mean(1))


def small(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small().double().eval()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.requires_grad_(False)


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_layers_are_the_slow_regressions(strength: float) -> None:
    experts, coded, x = [small(1), small(2)], small(3), images(6, 8)
    expected = reference.refitted(copy.deepcopy(coded), experts, x, betas=BETAS, strength=strength)
    found = refit_layers(coded, experts, x, x, betas=BETAS, strength=strength, rows=1e9)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9)
    before = dict(coded.named_parameters())
    moved = [name for name, value in found.items() if not torch.equal(value, before[name])]
    assert moved == [
        "first.weight", "first.bias", "wide.weight", "tokens.weight", "tokens.bias", "head.weight"
    ]  # fmt: skip


def test_three_experts_have_the_weights_that_are_asked_for() -> None:
    experts, coded, x = [small(1), small(2), small(4)], small(3), images(6, 8)
    betas = [0.2, 0.3, 0.5]
    expected = reference.refitted(copy.deepcopy(coded), experts, x, betas=betas, strength=0.1)
    found = refit_layers(coded, experts, x, x, betas=betas, strength=0.1, rows=1e9)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


def test_several_coded_models_share_the_experts_passes() -> None:
    experts, x = [small(1), small(2), small(4)], images(8, 8)
    betas = [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    ran = iter(experts)  # each expert is asked for once
    with LayerRefits(small(3), ran, x[:6], x[6:], betas=betas) as refits:
        found = [refits.refit(small(3), c, strength=0.1) for c in range(2)]
    for row, refitted in zip(betas, found, strict=True):
        alone = refit_layers(small(3), experts, x[:6], x[6:], betas=row, strength=0.1)
        for name, value in refitted.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-12)


def test_a_map_that_is_used_twice_is_refitted_where_it_comes_first() -> None:
    class Twice(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(-1))

    def build(seed: int) -> nn.Module:
        model = Twice().double().eval().requires_grad_(False)
        model.load_state_dict(small(seed).state_dict())
        return model

    experts, coded, x = [build(1), build(2)], build(3), images(6, 8)
    expected = reference.refitted(copy.deepcopy(coded), experts, x, betas=BETAS, strength=0.1)
    found = refit_layers(coded, experts, x, x, betas=BETAS, strength=0.1, rows=1e9)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9)


def test_rows_in_parts_are_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, coded, x = [small(1), small(2)], small(3), images(6, 8)
    whole = refit_layers(coded, experts, x, x[:2], betas=BETAS)
    monkeypatch.setattr("coin_hf.refiners.regression.ENTRIES", 100)
    parts = refit_layers(coded, experts, x, x[:2], betas=BETAS)
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]
)
def test_layers_answer_better_on_inputs_they_did_not_see(architecture: str) -> None:
    coded, experts = three(architecture)
    size = coded.pretrained_cfg["input_size"][-1] if architecture == "test_vit" else 32
    x = images(60, size)
    found = refit_layers(coded, experts, x[:32], x[32:40], betas=BETAS)
    changed = with_parameters(coded, found)
    before = loss(coded, experts, x[40:])
    assert 0 < loss(changed, experts, x[40:]) < before


def test_each_layer_takes_the_strength_that_the_held_out_samples_prefer() -> None:
    experts, coded, x = [small(1), small(2)], small(3), images(9, 8)
    fit, held_out = x[:3], x[3:]
    found = refit_layers(coded, experts, fit, held_out, betas=BETAS)
    tried = [
        refit_layers(coded, experts, fit, held_out, betas=BETAS, strength=s)
        for s in (1.0, 0.1, 0.01, 0.001)
    ]

    def error(parameters: dict[str, Tensor]) -> float:
        model = with_parameters(coded, parameters)
        _, answer = reference.seen(model, "first", held_out)
        wanted = sum(
            b * reference.seen(e, "first", held_out)[1] for b, e in zip(BETAS, experts, strict=True)
        )
        return float((answer - wanted).square().sum())

    errors = [error(each) for each in [*tried, dict(coded.named_parameters())]]
    assert error(found) == pytest.approx(min(errors))
    assert len(set(errors)) == 5


def test_a_layer_stays_where_every_strength_is_worse_on_the_held_out_samples() -> None:
    """Held-out samples on which the coded model is exact, and others on which it is not."""

    class Either(Linear):
        def __init__(self, seed: int, below: float) -> None:
            super().__init__(seed)
            self.below = below

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(x * torch.where(x[:, :1] < 0, self.below, 1.0))

    coded, experts = Either(1, 1.0), [Either(1, 3.0), Either(1, 2.0)]
    x = images(40, 2)
    x[:20, 0, 0, 0], x[20:, 0, 0, 0] = -0.5, 0.5
    found = refit_layers(coded, experts, x[:20], x[20:], betas=BETAS)
    assert all(torch.equal(found[name], value) for name, value in coded.named_parameters())
    free = refit_layers(coded, experts, x[:20], x[:20], betas=BETAS)
    assert not torch.equal(free["head.weight"], coded.get_parameter("head.weight"))


def test_a_layer_stays_where_all_networks_agree() -> None:
    coded, experts = small(3), [small(3), small(3)]
    found = refit_layers(coded, experts, images(4, 8), images(2, 8, 1), betas=BETAS)
    for name, value in coded.named_parameters():
        assert torch.equal(found[name], value)


class Linear(nn.Module):
    """A network that is linear in x and in its parameters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4).double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def averaged(experts: list[nn.Module]) -> nn.Module:
    thetas = [dict(expert.named_parameters()) for expert in experts]
    coded = copy.deepcopy(experts[0])
    coded.load_state_dict(average(thetas, betas=BETAS))
    return coded


def test_linear_experts_stay_exact() -> None:
    experts: list[nn.Module] = [Linear(1), Linear(2)]
    coded, x = averaged(experts), images(20, 2)
    exact = sum(b * e(x) for b, e in zip(BETAS, experts, strict=True))
    layers = refit_layers(coded, experts, x[:16], x[16:], betas=BETAS)
    head = refit_head(coded, x, exact)
    for found in (layers, head):
        assert loss(with_parameters(coded, found), experts, images(50, 2, 1)) < 1e-24


def test_enough_samples_make_a_linear_coded_model_exact() -> None:
    experts: list[nn.Module] = [Linear(1), Linear(2)]
    x = images(200, 2)
    exact = sum(b * e(x) for b, e in zip(BETAS, experts, strict=True))
    layers = refit_layers(Linear(3), experts, x, x, betas=BETAS, strength=1e-12)
    head = refit_head(Linear(3), x, exact, strength=1e-12)
    for found in (layers, head):
        assert loss(with_parameters(Linear(3), found), experts, images(50, 2, 1)) < 1e-12


@pytest.mark.parametrize("count", [7, 60])
@pytest.mark.parametrize("bias", [True, False])
def test_the_head_is_ridge_regression(count: int, bias: bool) -> None:
    """Fewer samples than features, and more: the dual and the primal form."""
    coded, _ = three()
    if not bias:
        coded.get_classifier().bias = None
    x = images(count)
    targets = torch.randn(count, 10, generator=torch.Generator().manual_seed(0)).double()
    features, logits = reference.seen(coded, "fc", x)
    residual = targets - logits
    scale = float(features.detach().square().sum(0).mean())
    z, ridge = features.detach(), torch.full((features.shape[1],), scale).double()
    if bias:
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        ridge = torch.cat([ridge, torch.tensor([float(count)]).double()])
    found = refit_head(coded, x, targets, strength=0.1, batch_size=5)
    assert list(found) == (["fc.weight", "fc.bias"] if bias else ["fc.weight"])
    rows = torch.cat([z, torch.diag((0.1 * ridge).sqrt())])
    wanted = torch.cat([residual, torch.zeros(z.shape[1], 10).double()])
    change = torch.linalg.lstsq(rows, wanted).solution.T
    fc = coded.get_classifier()
    torch.testing.assert_close(found["fc.weight"], fc.weight + change[:, : features.shape[1]])
    if bias:
        torch.testing.assert_close(found["fc.bias"], fc.bias + change[:, -1])

    scores = {s: reference.cross_validation(z, residual, s * ridge) for s in head_module.STRENGTHS}
    best = min(scores, key=lambda s: scores[s])
    chosen = refit_head(coded, x, targets)
    expected = refit_head(coded, x, targets, strength=best)
    assert all(torch.equal(chosen[name], expected[name]) for name in chosen)


def test_a_head_that_is_a_convolution_is_refitted_as_one() -> None:
    """As in timm's ResNetV2."""

    class Convolved(Linear):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            linear = self.head
            self.head = nn.Conv2d(12, 4, 1).double()
            self.head.weight.data = linear.weight.data[:, :, None, None]
            self.head.bias.data = linear.bias.data
            self.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1)[:, :, None, None]).flatten(1)

    x, targets = images(20, 2), torch.arange(80.0).view(20, 4).double()
    found, expected = (refit_head(kind(1), x, targets) for kind in (Convolved, Linear))
    assert found["head.weight"].shape == (4, 12, 1, 1)
    torch.testing.assert_close(found["head.weight"].flatten(1), expected["head.weight"])
    torch.testing.assert_close(found["head.bias"], expected["head.bias"])


def test_a_network_without_a_linear_end_is_refused() -> None:
    class Scaled(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Doubled(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mul_(2)

    for kind in (Scaled, Doubled):
        with pytest.raises(
            Unsuitable, match=f"{kind.__name__} does not end in a linear map: leave"
        ):
            refit_head(kind(1), images(4, 2), torch.zeros(4, 4))


def test_a_network_without_dense_maps_is_refused() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv2d(3, 3, 2, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.only(x).flatten(1)

    one = Depthwise().requires_grad_(False)
    with pytest.raises(Unsuitable, match="no dense convolution or linear map"):
        refit_layers(one, [one], images(4, 2), images(2, 2), betas=[1.0])


def test_networks_of_other_maps_are_refused() -> None:
    coded, _ = three()
    other = timm.create_model("test_efficientnet", num_classes=10).double().eval()
    with pytest.raises(ValueError, match="do not go through the same maps"):
        refit_layers(coded, [other], images(4), images(2), betas=[1.0])


def test_half_precision_stays_what_it_is() -> None:
    coded, experts = three()
    halves = [each.to(torch.bfloat16) for each in (coded, *experts)]
    found = refit_layers(halves[0], halves[1:], images(8), images(4, seed=1), betas=BETAS)
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    x = images(20, seed=2).to(torch.bfloat16)
    changed = with_parameters(halves[0], found)
    assert loss(changed, halves[1:], x) < loss(halves[0], halves[1:], x)
    parameter, change = torch.tensor([1.0]).bfloat16(), torch.tensor([2.0**-8 + 2.0**-20]).double()
    assert moved(parameter, change) == torch.tensor([1.0078125]).bfloat16()  # rounded but once


@pytest.mark.parametrize("step", ["layers", "head"])
def test_networks_and_random_state_stay_as_they_were(step: str) -> None:
    coded, experts = three()
    before = [copy.deepcopy(each.state_dict()) for each in (coded, *experts)]
    state = torch.random.get_rng_state()
    if step == "layers":
        refit_layers(coded, experts, images(8), images(4, seed=1), betas=BETAS)
    else:
        refit_head(coded, images(8), torch.zeros(8, 10))
    assert torch.equal(torch.random.get_rng_state(), state)
    for each, old in zip((coded, *experts), before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in each.state_dict().items())


def through(model: nn.Module, x: Tensor) -> tuple[list[str], Tensor]:
    """Go from stop to stop; return their weights' names, and the logits."""
    with passes([Pass(model, x)]) as [only]:
        stop, names = only.go(), []
        while stop is not None:
            names.append(stop.name)
            stop = only.go(stop())
    return names, only.logits


class TestPasses:
    def test_a_pass_gives_what_the_network_gives(self) -> None:
        coded, _ = three("test_vit")
        x = images(3, coded.pretrained_cfg["input_size"][-1])
        names, logits = through(coded, x)
        with torch.no_grad():
            assert torch.equal(logits, coded(x))
        maps = [name for name, m in coded.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert names == [f"{name}.weight" for name in maps]

    def test_an_error_in_the_network_comes_out(self) -> None:
        coded, _ = three()
        with pytest.raises(RuntimeError, match="channels"):
            through(coded, torch.zeros(2, 5, 8, 8).double())

    def test_no_thread_is_left_behind(self) -> None:
        coded, experts = three()
        before = threading.active_count()
        with passes([Pass(m, images(2)) for m in (coded, *experts)]) as every:
            assert all(each.go() is not None for each in every)
            assert threading.active_count() == before + 3
        with passes([Pass(coded, images(2))]):
            pass
        assert threading.active_count() == before

    def test_a_failure_between_maps_comes_out(self) -> None:
        class Broken(Small):
            def forward(self, x: Tensor) -> Tensor:
                self.first(x)
                raise ArithmeticError("broken")

        with pytest.raises(ArithmeticError, match="broken"):
            through(Broken().double(), images(2, 8))


def test_maps_on_what_is_no_sample_are_left_alone() -> None:
    """As in Swin V2: a small network makes position biases from a table of coordinates."""

    class Biased(Linear):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self.position = nn.Linear(2, 12, dtype=torch.float64).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            table = torch.ones(35, 2, dtype=torch.float64)
            return self.head(x.flatten(1) + self.position(table)[0])

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Biased(seed)

    coded, experts = build(3), [build(1), build(2)]
    for count in (4, 9):  # with four and one that is not counted, the table is as long as a batch
        found = refit_layers(coded, experts, images(30, 2), images(count, 2, 1), betas=BETAS)
        assert torch.equal(found["position.weight"], coded.get_parameter("position.weight"))
        assert not torch.equal(found["head.weight"], coded.get_parameter("head.weight"))


def test_maps_on_tokens_first_are_left_alone_and_windows_are_not() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.windows, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.double().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).mT  # (B, 4, 3)
            x = self.tokens(x.transpose(0, 1)).transpose(0, 1)
            x = self.windows(x.reshape(-1, 2, 3)).reshape(-1, 4, 3)
            return self.head(x.mean(1))

    found = find_maps(Turned(), images(1, 2))
    assert found == {"windows.weight": 2, "head.weight": 1}


class Tokens(nn.Module):
    """Maps of tokens by `nn.Linear` or by transformers' `Conv1D`; images or keyword arguments."""

    def __init__(self, seed: int, *, transposed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [(5, 5), (5, 4), (4, 3)]
        self.maps = nn.ModuleList(
            Conv1D(o, i) if transposed else nn.Linear(i, o) for i, o in sizes
        ).double()
        for (i, o), each in zip(sizes, self.maps, strict=True):
            weight = torch.randn(o, i, generator=generator, dtype=torch.float64)
            each.weight.data = weight.T.contiguous() if transposed else weight
            each.bias.data = torch.randn(o, generator=generator, dtype=torch.float64)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for each in self.maps[:-1]:
            x = each(x).tanh()
        return self.maps[-1](x.mean(1))


@pytest.mark.parametrize("mapping", [False, True])
def test_weights_stored_the_other_way_round_are_refitted_alike(mapping: bool) -> None:
    generator = torch.Generator().manual_seed(9)
    x, held_out = (torch.randn(n, 2, 5, generator=generator).double() for n in (40, 10))
    given = [{"x": x}, {"x": held_out}] if mapping else [x, held_out]
    found: dict[bool, dict[str, Tensor]] = {}
    for transposed in (False, True):
        experts = [Tokens(seed, transposed=transposed) for seed in (0, 1)]
        coded = copy.deepcopy(experts[0])
        thetas = [dict(expert.named_parameters()) for expert in experts]
        coded.load_state_dict(average(thetas, betas=BETAS))
        found[transposed] = refit_layers(coded, experts, *given, betas=BETAS)
        old = dict(coded.named_parameters())
        assert not any(torch.equal(old[name], value) for name, value in found[transposed].items())
        targets = sum(b * expert(x) for b, expert in zip(BETAS, experts, strict=True))
        head = refit_head(coded, given[0], targets, strength=0.1)
        found[transposed] |= {f"head {name}": value for name, value in head.items()}
    assert any(name.startswith("head") for name in found[True])
    for name, value in found[False].items():
        other = found[True][name]
        torch.testing.assert_close(value, other.T if value.dim() == 2 else other)
