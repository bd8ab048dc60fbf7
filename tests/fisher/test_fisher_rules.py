"""Single layers and small compositions: the engine equals loops over samples and logits."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import randomise
from fisher_plans import generic, tried
from reference import fisher, fisher_by_differences, fisher_error
from torch import Tensor, nn

from coin_hf.fisher import diagonal_fisher

K, P = 3, 3


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int, high: int = 7) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(2))


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(make(), 0).double()


def assert_exact(model: nn.Module, inputs: Any, *, by_rule: bool = True, **options: Any) -> None:
    """The engine equals the loops, every parameter has an entry, and no rule was missed."""
    expected = fisher(model, inputs)
    assert max(float(value.max()) for value in expected.values()) > 0
    for batch_size in (None, 1, 2):
        found = diagonal_fisher(model, inputs, batch_size=batch_size, **options)
        assert fisher_error(found, expected) <= 1e-10, batch_size
    if by_rule:
        plan = tried(model, inputs)
        assert list(plan.generic) == []
        assert plan.batched


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Weighted(nn.Module):
    """A function of an input and of parameters w0, w1, ... of the given shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


class Residual(nn.Module):
    """Conv + BatchNorm with a ReLU and a sum that both work in place."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(channels, channels, 1, stride), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.down is None else self.down(x)
        x = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        x += shortcut
        return self.act(x)


def head(*layers: nn.Module, width: int = 4) -> nn.Sequential:
    """Layers, then the mean over all positions of the channels, then a classifier."""
    pool = Lambda(lambda x: x.flatten(2).mean(2) if x.dim() > 2 else x)
    return nn.Sequential(*layers, pool, nn.Linear(width, K))


def last(*layers: nn.Module, width: int = 4) -> nn.Sequential:
    """The same with the channels on the last axis."""
    return nn.Sequential(*layers, Lambda(lambda x: x.flatten(1, -2).mean(1)), nn.Linear(width, K))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.GELU(), head(width=6)
        ),
        (5,),
    ),
    "no bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), head()), (5,)),
    "linear on 2 positions": (lambda: last(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), (2, 5)),
    "linear on 7 positions": (lambda: last(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), (7, 5)),
    "linear on 90 positions": (lambda: last(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), (90, 5)),
    "a wide linear on 10 positions": (  # more entries of J than a cache holds
        lambda: last(nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 4)),
        (10, 300),
    ),
    "a very wide linear on 10 positions": (  # more for one cotangent alone
        lambda: last(nn.Linear(300, 700), nn.Tanh(), nn.Linear(700, 4)),
        (10, 300),
    ),
    "a wide grouped convolution": (
        lambda: head(nn.Conv2d(128, 128, 3, groups=2), nn.Tanh(), width=128),
        (128, 4, 5),
    ),
    "linear on a map": (lambda: last(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), (2, 3, 5)),
    "linear, one position counts": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Lambda(lambda x: x[:, 2]), head()),
        (6, 5),
    ),
    "residual": (
        lambda: head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Residual(4), Residual(4, 2)),
        (3, 8, 8),
    ),
    "conv1d": (lambda: head(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Conv1d(4, 4, 3)), (3, 9)),
    "conv2d": (lambda: head(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3)), (3, 7, 7)),
    "conv3d": (
        lambda: head(nn.Conv3d(3, 4, (1, 2, 3)), nn.Tanh(), nn.Conv3d(4, 4, 2)),
        (3, 4, 5, 6),
    ),
    "1x1 conv": (lambda: head(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1, 2)), (3, 5, 5)),
    "large map": (lambda: head(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3)), (3, 20, 21)),
    "strided": (lambda: head(nn.Conv2d(3, 4, 3, (2, 3), (1, 0)), nn.Tanh()), (3, 9, 8)),
    "dilated": (lambda: head(nn.Conv2d(3, 4, 3, 1, 2, dilation=(2, 1)), nn.Tanh()), (3, 7, 6)),
    "strided and dilated": (lambda: head(nn.Conv1d(3, 4, 3, 2, 1, 3), nn.Tanh()), (3, 11)),
    "same": (lambda: head(nn.Conv2d(3, 4, (4, 3), padding="same", dilation=2)), (3, 7, 6)),
    "same 3d": (lambda: head(nn.Conv3d(3, 4, 2, padding="same")), (3, 3, 4, 3)),
    "valid": (lambda: head(nn.Conv2d(3, 4, 3, padding="valid")), (3, 7, 6)),
    "circular": (lambda: head(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), (3, 5, 4)),
    "reflected": (lambda: head(nn.Conv1d(3, 4, 3, padding=2, padding_mode="reflect")), (3, 5)),
    "grouped": (lambda: head(nn.Conv2d(6, 4, 3, groups=2), nn.Tanh()), (6, 6, 5)),
    "depthwise": (
        lambda: head(
            nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.Tanh(), nn.Conv2d(4, 8, 3, groups=4), width=8
        ),
        (4, 8, 8),
    ),
    "depthwise 1d": (lambda: head(nn.Conv1d(4, 4, 5, padding="same", groups=4), nn.Tanh()), (4, 9)),
    "grouped 3d": (lambda: head(nn.Conv3d(4, 4, 2, 2, 1, 2, groups=2), nn.Tanh()), (4, 4, 3, 5)),
    "large depthwise": (lambda: head(nn.Conv2d(4, 4, 5, groups=4), nn.Tanh()), (4, 25, 25)),
    "activations": (
        lambda: head(
            nn.Conv2d(3, 4, 2),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 4, 1),
            nn.GELU("tanh"),
            nn.Conv2d(4, 4, 1),
            nn.Hardswish(inplace=True),
            nn.GELU(),
            nn.SiLU(),
        ),
        (3, 5, 4),
    ),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), head()), (5,)),
    "batch norm of a sequence": (lambda: head(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), (3, 6)),
    "batch norm 3d": (lambda: head(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), nn.Tanh()), (3, 3, 3, 3)),
    "batch norm first": (lambda: head(nn.BatchNorm2d(4), nn.Tanh()), (4, 3, 3)),
    "batch norm, no affine": (
        lambda: head(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, affine=False), nn.Tanh()),
        (3, 4, 4),
    ),
    "layer norm": (lambda: last(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh()), (6, 5)),
    "layer norm of one position": (lambda: nn.Sequential(nn.LayerNorm(4), head()), (4,)),
    "layer norm of two axes": (lambda: last(nn.LayerNorm((3, 4)), nn.Tanh()), (2, 3, 4)),
    "layer norm, no bias": (lambda: last(nn.LayerNorm(4, bias=False), nn.Tanh()), (6, 4)),
    "group norm": (lambda: head(nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()), (3, 5, 4)),
    "group norm of one position": (lambda: nn.Sequential(nn.GroupNorm(2, 4), head()), (4,)),
    "instance norm": (
        lambda: head(nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4, affine=True), nn.Tanh()),
        (3, 5, 4),
    ),
    "rms norm": (lambda: last(nn.Linear(5, 4), nn.RMSNorm(4), nn.Tanh()), (6, 5)),
    "rms norm, eps": (lambda: last(nn.Linear(5, 4), nn.RMSNorm(4, eps=0.1), nn.Tanh()), (6, 5)),
    "prelu": (lambda: head(nn.Conv2d(3, 4, 2), nn.PReLU()), (3, 5, 4)),
    "prelu of channels": (
        lambda: head(nn.Conv2d(3, 4, 2), nn.PReLU(4), nn.Conv2d(4, 4, 1)),
        (3, 5, 4),
    ),
    "prelu of features": (lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), head()), (5,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, shape = LAYERS[name]
    assert_exact(built(make), normal(P, *shape))


TINY = [
    (size, kernel, stride, padding, dilation)
    for size, kernel, stride, padding, dilation in itertools.product(
        ((1, 1), (2, 2), (1, 3)), (1, 2, 3), (1, 2), (0, 1, 2, "same"), (1, 2)
    )
    if (padding != "same" or stride == 1)
    and (padding == "same" or dilation * (kernel - 1) + 1 <= min(size) + 2 * padding)  # type: ignore
]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 3)])
def test_convolutions_of_maps_of_a_few_positions(size: tuple[int, int]) -> None:
    cases = [case[1:] for case in TINY if case[0] == size]
    assert len(cases) >= 15
    for kernel, stride, padding, dilation in cases:
        conv = nn.Conv2d(3, 4, kernel, stride, padding, dilation)  # type: ignore[arg-type]
        model = built(lambda conv=conv: head(conv, nn.Tanh()))  # type: ignore[misc]
        inputs = normal(P, 3, *size)
        found = diagonal_fisher(model, inputs)
        assert fisher_error(found, fisher(model, inputs)) <= 1e-10, conv


def test_convolutions_of_a_few_positions_along_one_and_three_axes() -> None:
    for conv, shape in (
        (nn.Conv1d(3, 4, 3, 1, 1), (3, 1)),
        (nn.Conv1d(3, 4, 4, 2, 2, 2), (3, 4)),
        (nn.Conv3d(3, 4, 3, 2, 1), (3, 2, 1, 2)),
        (nn.Conv3d(3, 4, (1, 2, 3), padding="same"), (3, 1, 2, 2)),
        (nn.Conv2d(4, 4, 3, 1, 1, groups=4), (4, 1, 1)),
    ):
        model = built(lambda conv=conv: head(nn.Sequential(conv, nn.Tanh())))  # type: ignore[misc]
        assert_exact(model, normal(P, *shape))


class Tokens(nn.Module):
    """Token and position embeddings, summed, and a classifier."""

    def __init__(self, positions: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4, **options)
        self.places = nn.Embedding(6, 4)
        self.positions = positions
        self.head = last(nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x) + self.places(self.positions(x)))


POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "of each sample": lambda x: torch.arange(x.shape[1]).expand(x.shape),
    "of a batch of one": lambda x: torch.arange(x.shape[1])[None],
    "without an axis of samples": lambda x: torch.arange(x.shape[1]),
}


CHANGED = {
    "a map of two positions": (nn.Conv2d(3, 5, 3, padding=1, bias=False), (3, 1, 2)),
    "a kernel of one tap": (nn.Conv2d(3, 5, 1, bias=False), (3, 3, 4)),
    "one axis": (nn.Conv1d(3, 5, 3), (3, 6)),
    "one tap along one axis": (nn.Conv1d(3, 5, 1), (3, 6)),
    "three axes": (nn.Conv3d(3, 5, 2), (3, 2, 3, 3)),
    "a linear map": (nn.Linear(3, 5), (4, 3)),
    "a linear map without a bias": (nn.Linear(3, 5, bias=False), (4, 3)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_output_that_is_changed_in_place(name: str) -> None:
    """Where it is a view, a hook on it would be lost."""
    layer, shape = CHANGED[name]
    first = nn.Linear(shape[-1], shape[-1])

    def make() -> nn.Module:
        width = layer(first(torch.zeros(1, *shape))).numel()
        return nn.Sequential(first, layer, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width, K))

    assert_exact(built(make), normal(P, *shape))


@pytest.mark.parametrize("length", [3, 4, 6])
@pytest.mark.parametrize("positions", POSITIONS)
def test_embeddings(positions: str, length: int) -> None:
    inputs = tokens(P, length)
    inputs[0] = 5  # one token, many times in one sample
    assert_exact(built(lambda: Tokens(POSITIONS[positions])), inputs)


@pytest.mark.parametrize("index", [2, -5])
def test_the_padding_token_of_an_embedding_has_no_gradient(index: int) -> None:
    model, inputs = built(lambda: Tokens(lambda x: x[:, :] * 0, padding_idx=index)), tokens(P, 5)
    inputs[1] = 2
    assert_exact(model, inputs)
    assert diagonal_fisher(model, inputs)["tokens.weight"][2].eq(0).all()


@pytest.mark.parametrize(
    "options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str
)
def test_embeddings_with_options_go_the_generic_way(options: dict[str, Any]) -> None:
    model = built(lambda: Tokens(lambda x: torch.arange(x.shape[1])[None], **options))
    inputs = tokens(P, 5)
    model(inputs)  # max_norm changes the weights it meets
    assert_exact(model, inputs, by_rule=False)


RAW: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "scale": (lambda: last(Weighted(lambda x, w: x * w, (4,)), nn.Tanh()), (6, 4)),
    "scale, swapped": (lambda: last(Weighted(lambda x, w: w * x, (4,)), nn.Tanh()), (6, 4)),
    "one number": (lambda: last(Weighted(lambda x, w: torch.mul(x, w), (1,)), nn.Tanh()), (6, 4)),
    "a number without axes": (lambda: last(Weighted(lambda x, w: x * w, ()), nn.Tanh()), (6, 4)),
    "exponential of a number": (
        lambda: last(nn.Linear(4, 4), nn.Tanh(), Weighted(lambda x, w: x * w.exp(), ()), nn.Tanh()),
        (6, 4),
    ),
    "layer scale, channels first": (
        lambda: head(
            nn.Conv2d(3, 4, 1), Weighted(lambda x, w: x + w.view(1, -1, 1, 1) * x.tanh(), (4,))
        ),
        (3, 4, 5),
    ),
    "shift": (lambda: last(Weighted(lambda x, w: x + w, (1, 6, 4)), nn.Tanh()), (6, 4)),
    "shift, two axes": (lambda: last(Weighted(lambda x, w: w + x, (6, 4)), nn.Tanh()), (6, 4)),
    "difference": (lambda: last(Weighted(lambda x, w: x - w, (6, 1)), nn.Tanh()), (6, 4)),
    "every position of one row": (
        lambda: last(Weighted(lambda x, w: x[:, :1] + w, (1, 6, 4)), nn.Tanh()),
        (2, 4),
    ),
    "every position scales one row": (
        lambda: last(Weighted(lambda x, w: x[:, :1] * w, (6, 4)), nn.Tanh()),
        (2, 4),
    ),
    "addcmul": (
        lambda: last(Weighted(lambda x, w, b: torch.addcmul(b, w, x), (4,), (4,)), nn.Tanh()),
        (6, 4),
    ),
    "matrix on the right": (
        lambda: last(Weighted(lambda x, w, v: (x @ w).tanh() @ v, (4, 5), (5, 4)), nn.Tanh()),
        (2, 4),
    ),
    "matrix on the right, many positions": (
        lambda: last(Weighted(lambda x, w, v: (x @ w).tanh() @ v, (4, 5), (5, 4)), nn.Tanh()),
        (30, 4),
    ),
    "matrix with a bias": (
        lambda: last(
            Weighted(
                lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w).unflatten(0, x.shape[:2]),
                (4, 4),
                (4,),
            ),
            nn.Tanh(),
        ),
        (9, 4),
    ),
    "matrix with one bias for all": (
        lambda: head(Weighted(lambda x, w, b: torch.addmm(b, x, w), (4, 4), (1,))),
        (4,),
    ),
    "a bias without its weight": (
        lambda: last(
            Weighted(lambda x, w, b: F.linear(F.linear(x, w, b).tanh(), w), (4, 4), (4,)),
            nn.Tanh(),
        ),
        (30, 4),
    ),
    "a norm's bias without its weight": (
        lambda: last(
            Weighted(
                lambda x, w, b: F.layer_norm(F.layer_norm(x, (4,), w, b).tanh(), (4,), w),
                (4,),
                (4,),
            ),
            nn.Linear(4, 4),
            nn.Tanh(),
        ),
        (9, 4),
    ),
    "a norm's bias that is its weight": (
        lambda: last(
            Weighted(lambda x, w: F.layer_norm(x, (4,), w, w), (4,)), nn.Linear(4, 4), nn.Tanh()
        ),
        (9, 4),
    ),
    "a scaled matrix product": (
        lambda: head(Weighted(lambda x, w, b: torch.addmm(b, x, w, alpha=2.0), (4, 4), (4,))),
        (4,),
    ),
    "class token": (
        lambda: last(
            Weighted(lambda x, w: torch.cat([w.expand(len(x), -1, -1), x], 1), (1, 2, 4)),
            nn.Linear(4, 4),
            nn.Tanh(),
        ),
        (3, 4),
    ),
    "class token, repeated": (
        lambda: last(
            Weighted(lambda x, w: torch.cat([w.repeat(len(x), 1, 1), x], 1), (1, 2, 4)),
            nn.Tanh(),
        ),
        (3, 4),
    ),
    "positions resampled": (
        lambda: head(
            Weighted(lambda x, w: x + F.interpolate(w, size=(4, 6), mode="bicubic"), (1, 4, 2, 3)),
            nn.Tanh(),
        ),
        (4, 4, 6),
    ),
    "position table of an attention": (
        lambda: last(
            Weighted(
                lambda x, w: (
                    (x @ x.mT + w[torch.arange(6)[:, None] - torch.arange(6) + 5]).softmax(-1) @ x
                ),
                (11,),
            ),
            nn.Tanh(),
        ),
        (6, 4),
    ),
    "attention mask of two axes": (
        lambda: last(
            Weighted(
                lambda x, w: attend(x, w[torch.arange(6)[:, None] - torch.arange(6) + 5]), (11,)
            ),
            nn.Tanh(),
        ),
        (6, 4),
    ),
    "attention mask of heads": (
        lambda: last(Weighted(lambda x, w: attend(x, w * 2), (2, 6, 6)), nn.Tanh()),
        (6, 4),
    ),
    "attention mask of four axes": (
        lambda: last(Weighted(lambda x, w: attend(x, w), (1, 2, 6, 1)), nn.Tanh()),
        (6, 4),
    ),
    "a parameter repeated along the channels": (
        lambda: head(Weighted(lambda x, w: x * w.expand(3, 5), (1, 5)), nn.Tanh(), width=3),
        (3, 5),
    ),
    "network of constants": (
        lambda: last(
            Weighted(
                lambda x, w, v: (
                    x
                    + F.linear(
                        F.linear(torch.linspace(-1, 1, 9, dtype=x.dtype)[:, None], w).tanh(), v
                    )
                ),
                (5, 1),
                (4, 5),
            ),
            nn.Tanh(),
        ),
        (9, 4),
    ),
    "windows of constants added to a table": (
        lambda: last(
            Weighted(
                lambda x, w: x + (w + torch.linspace(-1, 1, 18, dtype=x.dtype).view(9, 2, 1)),
                (1, 2, 4),
            ),
            nn.Tanh(),
        ),
        (9, 2, 4),
    ),
}


def attend(x: Tensor, mask: Tensor) -> Tensor:
    """Attention of two heads with a learned mask."""
    x = x.unflatten(-1, (2, 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(x, 2 * x, x, mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", RAW)
def test_parameters_without_a_layer(name: str) -> None:
    make, shape = RAW[name]
    by_rule = name != "a scaled matrix product" and "its weight" not in name
    assert_exact(built(make), normal(P, *shape), by_rule=by_rule)


@pytest.mark.parametrize("samples", [9, 6])
@pytest.mark.parametrize("name", ["network of constants", "windows of constants added to a table"])
def test_an_axis_as_long_as_the_samples_is_not_taken_for_them(name: str, samples: int) -> None:
    make, shape = RAW[name]
    model, inputs = built(make), normal(samples, *shape)
    expected = fisher(model, inputs)
    for batch_size in (2, 3, samples):
        found = diagonal_fisher(model, inputs, batch_size=batch_size)
        assert fisher_error(found, expected) <= 1e-10, batch_size


class Flip(torch.autograd.Function):
    """A function that vmap cannot batch."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if gradient.abs().sum().item() < 0:  # reading a number: no batching
            return gradient
        return gradient * x.cos()


class Custom(nn.Module):
    """A scaled sine whose parameter is seen by a custom function only."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return Flip.apply(x) * Flip.apply(self.w)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


class Twice(nn.Module):
    """One layer that is called twice, with a normalisation in between that is too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.norm(self.layer(x)).tanh())))


class Both(nn.Module):
    """A weight used by a layer and by a penalty-like term."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x).tanh()
        return self.head(x @ self.layer.weight.tril() + self.layer.bias.sum())


class Overwritten(nn.Module):
    """An activation that two layers have read is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = self.layer(x)
        x.mul_(3)
        return self.head((y.tanh() + x).sin())


class Functional(nn.Module):
    """Parameters used by functions that have no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(K, 5))
        self.divide = nn.Parameter(torch.rand(5) + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("pi,io->po", x, self.w).tanh() / self.divide
        return x @ self.v.t()


class FunctionalNorm(nn.Module):
    """BatchNorm without its module, by given statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.head = head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.batch_norm(x, self.mean, self.var, self.w, self.b, eps=0.1).sin())


class Windows(nn.Module):
    """Attention in windows: R rows for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.shift, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:  # (P, 12, 4)
        windows = self.norm(x).reshape(-1, 4, 4)  # (P * 3, 4, 4)
        q, k, v = self.qkv(windows + self.shift).chunk(3, -1)
        windows = self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(windows.view(x.shape).mean(1))


class TimeMajor(nn.Module):
    """The sequence first, the samples second, as recurrent networks like it."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.norm, self.read = nn.Linear(4, 4), nn.LayerNorm(4), read
        self.place, self.head = nn.Parameter(torch.randn(6, 1, 4)), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:  # (P, T, 4)
        x = x.transpose(0, 1)
        x = self.norm(self.layer(x).tanh() + self.place[: len(x)])
        return self.head(self.read(x))


class Recurrent(nn.Module):
    """An LSTM, of which torch has one function."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True, **options), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    """Torch's own transformer, which puts the sequence first inside."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=batch_first)
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x if self.batch_first else x.transpose(0, 1))
        return self.head(x.mean(1 if self.batch_first else 0))


COMPOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "custom function": (lambda: last(nn.Linear(4, 4), Custom(), nn.Tanh()), (5, 4), {"1.w"}),
    "tied": (Tied, (4,), {"first.weight"}),
    "twice": (Twice, (4, 4, 4), {"layer.weight", "layer.bias", "norm.weight", "norm.bias"}),
    "rule and otherwise": (Both, (4,), {"layer.weight", "layer.bias"}),
    "functional": (Functional, (4,), {"w", "v", "divide"}),  # v is transposed first
    "functional norm": (FunctionalNorm, (4, 3, 3), set()),
    "windows": (Windows, (12, 4), set()),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), head()),
        (4,),
        {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    ),
    "transposed convolution": (
        lambda: head(nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(4, 4, 3, 2), nn.Tanh()),
        (3, 3, 3),
        {"1.weight", "1.bias"},
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_compositions(name: str) -> None:
    make, shape, left = COMPOSED[name]
    model, inputs = built(make), normal(P, *shape)
    assert_exact(model, inputs, by_rule=False)
    plan = tried(model, inputs)
    assert set(plan.generic) == left
    assert plan.batched == (name != "custom function")


@pytest.mark.parametrize("length", [2, 3, 4, 6])
@pytest.mark.parametrize(
    "read", [lambda x: x[-1], lambda x: x[0], lambda x: x.mean(0)], ids=["last", "first", "mean"]
)
def test_the_sequence_first(read: Callable[[Tensor], Tensor], length: int) -> None:
    assert_exact(built(lambda: TimeMajor(read)), normal(P, length, 4), by_rule=False)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 0, "num_layers": 2}])
def test_recurrent_networks(options: dict[str, Any]) -> None:
    class Net(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1, :5])

    assert_exact(built(lambda: Net(**options)), normal(P, 4, 4), by_rule=False)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_transformer_of_torch(batch_first: bool) -> None:
    assert_exact(built(lambda: Encoder(batch_first)), normal(P, 4, 4), by_rule=False)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "all see the mean": lambda x: x + x.mean(0),
    "the mean is detached": lambda x: x + x.mean(0).detach(),
    "the next sees the one before": lambda x: x.cumsum(0),
    "the one before sees the next": lambda x: x.flip(0).cumsum(0).flip(0),
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True) if len(x) > 1 else x,
}


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_samples_that_influence_each_other_are_taken_one_by_one(name: str, twins: bool) -> None:
    model = built(
        lambda: nn.Sequential(
            nn.Linear(4, 4), nn.Tanh(), Lambda(MIXING[name]), nn.Linear(4, 4), nn.Tanh(), head()
        )
    )
    inputs = normal(4, 4)
    if twins:
        inputs[1] = inputs[0]
    assert_exact(model, inputs, by_rule=False)


class TokensOfAMap(nn.Module):
    """BatchNorm before the map becomes a sequence: its gradient comes in another memory order."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)
        self.tokens, self.layer, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, K)
        self.tied = tied
        if tied:  # a weight with no rule: one sample at a time, by autograd
            self.factor = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        if self.tied:
            weight = torch.einsum("oihw,op->pihw", weight, self.factor)
        x = self.norm(F.conv2d(x, weight, self.conv.bias))
        x = self.layer(self.tokens(x.flatten(2).transpose(1, 2)))
        x = Flip.apply(x) if self.tied else x.sin()  # ... and one cotangent at a time
        return self.head(x.mean(1))


@pytest.mark.parametrize("tied", [False, True])
def test_batch_norm_where_torchs_own_is_wrong(tied: bool) -> None:
    # Torch 2.14 on a CPU: a batch of one in the order of channels first, a gradient in the order
    # of channels last, and the stock backward in eval mode mixes up its entries.
    model, inputs = built(lambda: TokensOfAMap(tied)), normal(P, 3, 5, 5)
    expected = fisher_by_differences(model, inputs, 1e-5)
    assert fisher_error(fisher(model, inputs, copies=2), expected) <= 1e-6
    for batch_size in (None, 1):
        found = diagonal_fisher(model, inputs, batch_size=batch_size)
        assert fisher_error(found, expected) <= 1e-6
        assert fisher_error(found, fisher(model, inputs, copies=2)) <= 1e-10
    assert generic(model, inputs) == (["factor", "conv.weight"] if tied else [])


class Idle(nn.Module):
    """A layer that nobody calls, one that is called in vain, and parameters that are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = head(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Tanh())
        self.unused, self.vain = nn.Linear(2, 2), nn.Linear(4, 4)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.body[0].requires_grad_(False)
        self.body[1].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.vain(x)
        return self.body(x)


def test_frozen_parameters_are_covered_and_unused_ones_are_zero() -> None:
    model, inputs = built(Idle), normal(P, 3, 4, 4)
    for batch_size in (None, 1):
        found = diagonal_fisher(model, inputs, batch_size=batch_size)
        assert found.pop("empty").shape == (0, 3)
        expected = {name: value for name, value in fisher(model, inputs).items() if name in found}
        assert fisher_error(found, expected) <= 1e-10
        for name, value in found.items():
            assert value.eq(0).all() == (not name.startswith("body")), name
    flags = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert flags == ["body.0.weight", "body.0.bias", "body.1.weight"]


def test_an_input_changed_after_a_layer_read_it_is_refused_as_autograd_refuses_it() -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        diagonal_fisher(built(Overwritten), normal(P, 4))


def test_a_graph_behind_the_inputs_does_not_matter() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, K)))
    inputs = normal(P, 4).requires_grad_()
    expected = diagonal_fisher(model, inputs.detach())
    for given in (inputs, inputs * 1):
        assert fisher_error(diagonal_fisher(model, given), expected) == 0
    assert inputs.grad is None


def test_a_tensor_with_a_gradient_that_is_no_parameter() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, K)))
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    doubled = nn.Sequential(Lambda(lambda x: x * factor), model)
    found = diagonal_fisher(doubled, normal(P, 4))
    expected = fisher(model, 2 * normal(P, 4))
    assert fisher_error({name[2:]: value for name, value in found.items()}, expected) <= 1e-10
    assert factor.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(mode: Any) -> None:
    model, inputs = built(lambda: head(nn.Conv2d(3, 4, 2), Residual(4))), normal(P, 3, 5, 5)
    expected = fisher(model, inputs)
    with mode():
        assert fisher_error(diagonal_fisher(model, inputs), expected) <= 1e-10
        assert fisher_error(diagonal_fisher(model, inputs * 1), expected) <= 1e-10
