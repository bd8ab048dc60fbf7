"""Experts with labels of their own: which rows are shared, and how heads are widened."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import families, randomise, save_sliced, save_timm, save_transformers, timm_model
from reference import fisher
from torch import Tensor, nn

from coin_hf import InputError, diagonal_fisher, load_expert
from coin_hf.experts.alignment import check_alignment
from coin_hf.experts.classes import in_common_rows, with_labels
from coin_hf.experts.expert import Expert
from coin_hf.experts.heads import columns, head_tensors, place
from coin_hf.networks.logits import call
from coin_hf.records.coin import ClassOrder

SMALL_TIMM = [name for name in timm.list_models("test_*") if name != "test_maxvit"]
"""All but one that cannot take the size it declares."""


def named(folder: Path, *experts: Sequence[str] | None, size: int | None = None) -> list[Expert]:
    """Networks with heads of those classes."""
    found = []
    for i, names in enumerate(experts):
        classes = size or len(names or ())
        model = timm_model(i, num_classes=classes)
        place = save_timm(folder / f"e{i}", model, label_names=names)
        found.append(load_expert(str(place), name=f"e{i}"))
    return found


def rows(experts: Sequence[Expert], **settings: Any) -> list[list[int] | None]:
    placed = in_common_rows(experts, **settings)
    orders = [expert.class_order for expert in placed]
    return [None if order is None else order.rows for order in orders]


@torch.no_grad()
def check_widened(expert: Expert, inputs: Tensor) -> None:
    """Widen a head of 10 rows to 13 in another order; compare slices, the rest and the Fisher."""
    before = call(expert.model, inputs)
    close = {"rtol": 0, "atol": 1e-6 * float(before.abs().max())}
    own = [12, 0, 3, 1, 7, 5, 11, 9, 4, 2]
    tensors = head_tensors(expert, own, 13)
    wide = place(expert, ClassOrder(rows=own, tensors=tensors, width=13))
    after = call(wide.model, inputs)
    assert after.shape == (len(inputs), 13)
    torch.testing.assert_close(after[:, own], before, **close)
    absent = [6, 8, 10]
    assert torch.equal(after[:, absent], torch.zeros(len(inputs), 3))
    assert wide.num_classes == 13
    torch.testing.assert_close(columns(before, wide.class_order, "own"), after, **close)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL_TIMM)
def test_a_widened_timm_network_has_its_own_logits_and_zeros(name: str) -> None:
    model = randomise(timm.create_model(name, num_classes=10), 0, 0.05)
    expert = Expert.from_module(model, name=name)
    x = torch.stack([expert.preprocessing(image) for image in images(2)])
    check_widened(expert, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(families()))
def test_a_widened_transformers_network_has_its_own_logits_and_zeros(
    tmp_path: Path, family: str
) -> None:
    from transformers import AutoModelForImageClassification, ViTImageProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = families()[family]()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    expert = Expert.from_module(randomise(model, 0, 0.05), name="e", processor=processor)
    x = torch.stack([expert.preprocessing(image) for image in images(2)])
    check_widened(expert, x)
    expert.model.save_pretrained(tmp_path / "wide")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "wide").eval()
    assert again.config.num_labels == 13
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, expert.model(x).logits, rtol=0, atol=1e-6)


def images(count: int) -> list[Any]:
    from builders import digits

    return [row["image"].resize((48, 40)) for row in digits(slice(0, count))]


def features_of(model: Any, x: Tensor) -> Tensor:
    """The inputs of a head, in float64."""
    found: list[Tensor] = []
    handle = model.fc.register_forward_hook(lambda module, args, output: found.append(args[0]))
    call(model, x)
    handle.remove()
    return found[0]


def test_the_fisher_of_rows_of_zeros_is_that_of_the_features(tmp_path: Path) -> None:
    expert = load_expert(str(save_sliced(tmp_path / "e", [3, 4, 5])))
    wide = place(expert, ClassOrder(rows=[1, 4, 2], tensors=["fc.weight", "fc.bias"], width=6))
    model: nn.Module = wide.model.double()
    x = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    squares = features_of(model, x).detach().square().mean(0)  # E[h^2]
    for found in (diagonal_fisher(model, x), fisher(model, x)):
        for row in range(6):
            torch.testing.assert_close(found["fc.weight"][row], squares, rtol=1e-6, atol=0)
        assert torch.allclose(found["fc.bias"], torch.ones(6, dtype=torch.float64))
    exact, plain = diagonal_fisher(model, x), fisher(model, x)
    for name, value in plain.items():
        torch.testing.assert_close(exact[name], value, rtol=1e-5, atol=1e-12)


@pytest.mark.filterwarnings("ignore:the experts have labels")
def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    assert rows(named(tmp_path / "a", "abc", "cde")) == [[0, 1, 2], [2, 3, 4]]
    assert rows(named(tmp_path / "b", "abcd", "db")) == [None, [3, 1]]
    assert rows(named(tmp_path / "c", "db", "abcd")) == [[0, 1], [2, 1, 3, 0]]
    assert rows(named(tmp_path / "d", ["T-shirt", "bag"], ["hat", "t_shirt", "coat"])) == [
        [0, 1],
        [2, 0, 3],
    ]
    experts = in_common_rows(named(tmp_path / "e", "abc", "cd", "bde"))
    check_alignment(experts)
    assert [expert.label_names for expert in experts] == [tuple("abcde")] * 3
    assert [expert.own_names for expert in experts] == [tuple("abc"), tuple("cd"), tuple("bde")]


def test_positions_count_where_no_name_contradicts(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"different names \(a / d, b / e, c / f\), which share"):
        assert rows(named(tmp_path / "a", "abc", "def")) == [None, None]
    with pytest.warns(UserWarning, match=r"different names \(c / d\).*`classes: name` gives each"):
        assert rows(named(tmp_path / "b", "abc", "abd")) == [None, None]
    assert rows(named(tmp_path / "c", None, "abc", size=3)) == [None, None]
    assert rows(named(tmp_path / "d", None, None, size=3)) == [None, None]
    with pytest.warns(UserWarning, match=r"'e0' has 3 \(1 alone\), 'e1' has 3 \(1 alone\).* 4 of"):
        assert rows(named(tmp_path / "e", "abc", "bcd")) == [[0, 1, 2], [1, 2, 3]]
    assert rows(named(tmp_path / "f", "abc", "bcd"), classes="position") == [None, None]


@pytest.mark.filterwarnings("ignore:the experts have labels")
def test_a_recipe_may_say_which_classes_share_a_row(tmp_path: Path) -> None:
    assert rows(named(tmp_path / "a", "abc", "abd"), classes="name") == [[0, 1, 2], [0, 1, 3]]
    experts = in_common_rows(named(tmp_path / "b", "ab", "abc"), classes="separate")
    assert [e.class_order.rows for e in experts if e.class_order] == [[0, 1], [2, 3, 4]]
    assert experts[0].label_names == ("e0: a", "e0: b", "e1: a", "e1: b", "e1: c")
    assert experts[1].own_names == tuple("abc")


def test_what_cannot_be_matched_is_refused(tmp_path: Path) -> None:
    [a] = named(tmp_path / "a", None, size=3)
    [b] = named(tmp_path / "b", "abcd")
    with pytest.raises(InputError, match=r"'e0' has no class names .* its 3 names as `labels`"):
        in_common_rows([b, a])
    with pytest.raises(InputError, match="has 3 classes, but the recipe's `labels` name 2"):
        with_labels(a, ["x", "y"])
    with pytest.warns(UserWarning, match="labels of their own"):
        assert rows([b, with_labels(a, ["d", "x", "a"])]) == [[0, 1, 2, 3], [3, 4, 0]]
    with pytest.raises(InputError, match="'e1' gives several classes one name"):
        in_common_rows(named(tmp_path / "c", "abc", "xx"))


@pytest.mark.filterwarnings("ignore:the experts have labels")
def test_a_transformers_head_is_widened_and_saved(tmp_path: Path) -> None:
    experts = []
    for name, classes in (("a", 3), ("b", 4)):
        save_transformers(tmp_path / name, classes=classes)
        expert = load_expert(str(tmp_path / name))
        experts.append(with_labels(expert, [f"{name}{k}" for k in range(classes)]))
    _, b = in_common_rows(experts)
    b.save_pretrained(tmp_path / "wide")
    again = load_expert(str(tmp_path / "wide"))
    assert again.num_classes == 7
    assert again.label_names == ("a0", "a1", "a2", "b0", "b1", "b2", "b3")


def test_a_head_that_cannot_be_found_is_refused(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        """Logits that depend on each other."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)).softmax(1)

    expert = Expert.from_module(
        Mixed(), name="odd", num_classes=4, preprocessing=lambda image: torch.ones(3, 2, 2)
    )
    with pytest.raises(InputError, match="the head of expert 'odd' cannot be found"):
        head_tensors(expert, [0, 1, 2, 4], 5)
