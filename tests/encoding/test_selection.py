import pytest
import reference
import torch
from torch import Tensor

from coin_hf.data.samples import Samples
from coin_hf.encoding.selection import FEW, LAM_CANDIDATES, choose, finalists
from coin_hf.erasure.code import ErasureCode
from coin_hf.records.measurements import Choice

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
        "lam", list(logits), lambda value, at: [logits[value][at]], EXPERTS, samples(truth), CODE
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
        "lam", list(logits), lambda value, at: [logits[value][at]], EXPERTS, samples(None), CODE
    )
    assert (choice.value, choice.by) == (0.3, "agreement")
    assert all("nda" not in entry for entry in choice.scores)


def test_agreement_too_where_an_expert_is_never_right() -> None:
    logits = {0.1: coded([3, 3, 2, 0], EXPERTS), 0.2: coded(OWN, EXPERTS)}
    truth = [3, 3, 2, 0]  # expert 0 is wrong on all of its samples
    choice = choose(
        "lam", list(logits), lambda value, at: [logits[value][at]], EXPERTS, samples(truth), CODE
    )
    assert (choice.value, choice.by) == (0.2, "agreement")


def test_ties_go_to_the_smaller_coding_loss_and_then_to_the_first() -> None:
    logits = {
        0.1: coded(OWN, EXPERTS, noise=0.5),
        0.2: coded(OWN, EXPERTS, noise=0.1),
        0.3: coded(OWN, EXPERTS, noise=0.1),
        0.4: coded(OWN, EXPERTS, noise=0.9),
    }
    choice = choose(
        "lam", list(logits), lambda value, at: [logits[value][at]], EXPERTS, samples(OWN), CODE
    )
    assert choice.value == 0.2
    assert {entry["nda"] for entry in choice.scores} == {100}
    losses = [entry["coding_loss"] for entry in choice.scores]
    outputs = [expert.tolist() for expert in EXPERTS]
    expected = [reference.coding_loss(outputs, c.tolist(), CODE.betas) for c in logits.values()]
    assert losses == pytest.approx(expected, rel=1e-12)
    assert losses[1] == losses[2] < losses[0] < losses[3]


def test_each_candidate_is_run_once_and_in_order() -> None:
    seen = []

    def run(value: float, at: Tensor) -> list[Tensor]:
        seen.append(value)
        return [coded(OWN, EXPERTS)[at]]

    choice = choose("lam", LAM_CANDIDATES, run, EXPERTS, samples(OWN), CODE)
    assert seen == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert choice.value == 1e-5


def test_only_the_samples_given_count() -> None:
    """The part held out decides, by each expert's own samples in it."""
    drawn = samples([0, 2, 2, 3])
    _, held_out = drawn.split(0.5)
    experts = [expert[[1, 3]] for expert in EXPERTS]
    logits = {0.1: coded([0, 1, 1, 0], EXPERTS)[[1, 3]], 0.2: coded([1, 2, 1, 3], EXPERTS)[[1, 3]]}
    choice = choose(
        "lam", list(logits), lambda value, at: [logits[value][at]], experts, held_out, CODE
    )
    assert choice.samples == 2
    assert (choice.value, choice.by) == (0.1, "agreement")  # neither expert is right on them


def test_half_precision_logits() -> None:
    half = [expert.half() for expert in EXPERTS]
    choice = choose(
        "lam", [0.1], lambda _, at: [coded(OWN, EXPERTS).half()[at]], half, samples(OWN), CODE
    )
    assert choice.scores == [
        {"value": 0.1, "samples": 4, "nda": 100, "agreement": 1, "coding_loss": 0}
    ]


# --- Races

SIZE = 2 * FEW
"""Samples of each of two draws, the fewest that race."""
RACERS = (0.1, 0.2, 0.3, 0.4)


def raced(
    share: dict[float, tuple[float, float]], size: int = SIZE, **settings: bool
) -> tuple[Choice, list[tuple[float, list[int]]]]:
    """Choose among candidates that agree on a share of the first half of each draw, and of the
    rest; return what was run, too."""
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (2 * size,), generator=g)
    own = torch.nn.functional.one_hot(truth, 4).double()
    experts = [own, own]
    late = torch.arange(2 * size) % size >= FEW
    place = torch.arange(2 * size) % size % FEW / FEW  # 0 ... 1 within each part
    logits = {}
    for value, (first, rest) in share.items():
        kept = torch.where(late, place < rest, place < first)
        answer = torch.where(kept, truth, (truth + 1) % 4)
        logits[value] = 0.5 * (torch.nn.functional.one_hot(answer, 4) + own)
    seen = []

    def run(value: float, at: Tensor) -> list[Tensor]:
        seen.append((value, at.tolist()))
        return [logits[value][at]]

    drawn = samples(truth.tolist(), size)
    return choose("lam", list(share), run, experts, drawn, CODE, **settings), seen


LATE = {0.1: (0.5, 0.5), 0.2: (0.75, 0.5), 0.3: (0.65, 1.0), 0.4: (0.7, 0.9)}
"""0.2 leads on the few, 0.4 of the best two wins on all, 0.3 would win if it were not out."""


def test_a_race_runs_all_on_few_and_the_best_two_on_the_rest() -> None:
    choice, seen = raced(LATE)
    few = [*range(FEW), *range(SIZE, SIZE + FEW)]
    others = [*range(FEW, SIZE), *range(SIZE + FEW, 2 * SIZE)]
    assert seen == [*((value, few) for value in RACERS), (0.2, others), (0.4, others)]
    assert (choice.value, choice.by, choice.samples) == (0.4, "nda", 4 * FEW)
    assert [entry["samples"] for entry in choice.scores] == [40, 80, 40, 80]
    assert [entry["nda"] for entry in choice.scores] == pytest.approx([50, 62.5, 65, 80])
    assert choice.runs == 240


def test_the_scores_of_the_best_two_are_those_of_the_full_choice() -> None:
    choice, _ = raced(LATE)
    everything, seen = raced(LATE, race=False)
    assert [len(at) for _, at in seen] == [2 * SIZE] * 4
    assert everything.value == 0.3
    assert [everything.scores[i] for i in (1, 3)] == [choice.scores[i] for i in (1, 3)]
    assert {entry["samples"] for entry in everything.scores} == {2 * SIZE}


def test_a_loser_of_the_few_cannot_win_though_its_few_look_best() -> None:
    """A score on few samples is not compared with one on all."""
    choice, _ = raced({0.1: (0.9, 0.0), 0.2: (0.9, 0.1), 0.3: (0.85, 1.0)})
    assert max(entry["nda"] for entry in choice.scores) == pytest.approx(85)
    assert choice.scores[2]["samples"] == 2 * FEW
    assert choice.value == 0.2


@pytest.mark.parametrize(("size", "count"), [(SIZE - 1, 4), (SIZE, 2)])
def test_no_race_with_few_samples_or_candidates(size: int, count: int) -> None:
    share = dict(list(LATE.items())[:count])
    choice, seen = raced(share, size)
    assert [(value, len(at)) for value, at in seen] == [(value, 2 * size) for value in share]
    assert {entry["samples"] for entry in choice.scores} == {2 * size}


@pytest.mark.parametrize(("count", "places"), [(2, 2), (3, 2), (6, 2), (7, 3), (20, 7)])
def test_a_third_is_tried_on_all_by_coding_loss_alone(count: int, places: int) -> None:
    scores = [{"nda": k, "agreement": k, "coding_loss": float(k)} for k in range(count)]
    assert finalists(scores) == list(range(places))
    assert finalists(scores[::-1]) == list(range(count - places, count))


def test_a_race_without_labels_goes_by_agreement() -> None:
    drawn = samples(None, SIZE)
    own = one_hot([0, 1, 2, 3] * (SIZE // 2))
    other = one_hot([1, 2, 3, 0] * (SIZE // 2))
    right, wrong = 0.5 * (own + own), 0.5 * (other + own)
    logits = {0.1: wrong, 0.2: wrong, 0.3: right}
    choice = choose(
        "lam", list(logits), lambda value, at: [logits[value][at]], [own, own], drawn, CODE
    )
    assert (choice.value, choice.by) == (0.3, "agreement")
    assert [entry["samples"] for entry in choice.scores] == [80, 40, 80]


def test_a_choice_recorded_before_races_was_on_all_samples() -> None:
    scores = [{"value": v, "agreement": a, "coding_loss": 1.0} for v, a in ((0.1, 0.5), (0.2, 0.6))]
    old = Choice.of({"key": "lam", "by": "agreement", "samples": 200, "scores": scores})
    assert (old.value, old.finalists, old.runs) == (0.2, old.scores, 400)
