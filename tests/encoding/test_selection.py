import pytest
import reference
import torch
from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.encoding.selection import LAM_CANDIDATES, choose
from coin_hf.erasure.code import ErasureCode

CODE = ErasureCode([0.5, 0.5])


def one_hot(classes: list[int], scale: float = 1.0) -> Tensor:
    return scale * torch.nn.functional.one_hot(torch.tensor(classes), 4).double()


def samples(labels: list[int] | None, per_expert: int = 2) -> Samples:
    count = 2 * per_expert
    return Samples(
        inputs=torch.zeros(count, 1),
        labels=None if labels is None else torch.tensor(labels),
        sources=torch.arange(2).repeat_interleave(per_expert),
        rows=(tuple(range(per_expert)),) * 2,
    )


def coded(answers: list[int], experts: list[Tensor], noise: float = 0.0) -> Tensor:
    """Coded logits from which each sample's own expert decodes to `answers`, times 1 + noise."""
    own = [experts[0][:2], experts[1][2:]]
    other = torch.cat([experts[1][:2], experts[0][2:]])
    assert [len(part) for part in own] == [2, 2]
    return 0.5 * (one_hot(answers, 1 + noise) + other)


EXPERTS = [one_hot([0, 1, 3, 3]), one_hot([3, 3, 2, 0])]
OWN = [0, 1, 2, 0]
"""What each sample's own expert answers."""


def test_the_best_nda_wins_where_there_are_labels() -> None:
    truth = [0, 2, 2, 3]  # each expert is right once
    logits = {
        0.1: coded([1, 1, 2, 0], EXPERTS),  # right: 0 and 1 -> NDA 0 and 100
        0.2: coded([0, 2, 1, 3], EXPERTS),  # right: 2 and 1 -> NDA 200 and 100
        0.3: coded(OWN, EXPERTS),  # right: 1 and 1 -> NDA 100 and 100
    }
    choice = choose(
        "lam", list(logits), lambda value: [logits[value]], EXPERTS, samples(truth), CODE
    )
    assert (choice.value, choice.by, choice.samples) == (0.2, "nda", 4)
    assert [entry["nda"] for entry in choice.scores] == [50, 150, 100]
    assert [entry["agreement"] for entry in choice.scores] == [0.75, 0.25, 1]
    assert [entry["value"] for entry in choice.scores] == [0.1, 0.2, 0.3]


def test_the_best_agreement_where_there_are_none() -> None:
    logits = {
        0.1: coded([1, 1, 2, 0], EXPERTS),
        0.2: coded([0, 2, 1, 3], EXPERTS),
        0.3: coded(OWN, EXPERTS),
    }
    choice = choose(
        "lam", list(logits), lambda value: [logits[value]], EXPERTS, samples(None), CODE
    )
    assert (choice.value, choice.by) == (0.3, "agreement")
    assert all("nda" not in entry for entry in choice.scores)


def test_agreement_too_where_an_expert_is_never_right() -> None:
    logits = {0.1: coded([3, 3, 2, 0], EXPERTS), 0.2: coded(OWN, EXPERTS)}
    truth = [3, 3, 2, 0]  # expert 0 is wrong on all of its samples
    choice = choose(
        "lam", list(logits), lambda value: [logits[value]], EXPERTS, samples(truth), CODE
    )
    assert (choice.value, choice.by) == (0.2, "agreement")


def test_ties_go_to_the_smaller_coding_loss_and_then_to_the_first() -> None:
    logits = {
        0.1: coded(OWN, EXPERTS, noise=0.5),
        0.2: coded(OWN, EXPERTS, noise=0.1),
        0.3: coded(OWN, EXPERTS, noise=0.1),
        0.4: coded(OWN, EXPERTS, noise=0.9),
    }
    choice = choose("lam", list(logits), lambda value: [logits[value]], EXPERTS, samples(OWN), CODE)
    assert choice.value == 0.2
    assert {entry["nda"] for entry in choice.scores} == {100}
    losses = [entry["coding_loss"] for entry in choice.scores]
    outputs = [expert.tolist() for expert in EXPERTS]
    expected = [reference.coding_loss(outputs, c.tolist(), CODE.betas) for c in logits.values()]
    assert losses == pytest.approx(expected, rel=1e-12)
    assert losses[1] == losses[2] < losses[0] < losses[3]


def test_each_candidate_is_run_once_and_in_order() -> None:
    seen = []

    def run(value: float) -> list[Tensor]:
        seen.append(value)
        return [coded(OWN, EXPERTS)]

    choice = choose("lam", LAM_CANDIDATES, run, EXPERTS, samples(OWN), CODE)
    assert seen == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert choice.value == 1e-5


def test_only_the_samples_given_count() -> None:
    """The part held out decides, by each expert's own samples in it."""
    drawn = samples([0, 2, 2, 3])
    _, held_out = drawn.split(0.5)
    experts = [expert[[1, 3]] for expert in EXPERTS]
    logits = {0.1: coded([0, 1, 1, 0], EXPERTS)[[1, 3]], 0.2: coded([1, 2, 1, 3], EXPERTS)[[1, 3]]}
    choice = choose("lam", list(logits), lambda value: [logits[value]], experts, held_out, CODE)
    assert choice.samples == 2
    assert (choice.value, choice.by) == (0.1, "agreement")  # neither expert is right on them


def test_half_precision_logits() -> None:
    half = [expert.half() for expert in EXPERTS]
    choice = choose("lam", [0.1], lambda _: [coded(OWN, EXPERTS).half()], half, samples(OWN), CODE)
    assert choice.scores == [{"value": 0.1, "nda": 100, "agreement": 1, "coding_loss": 0}]
