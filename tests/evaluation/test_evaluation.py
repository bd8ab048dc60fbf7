from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from builders import NORMALISATION, digits, save_digits
from torch import Tensor, nn

from coin_hf.data.images import LabelledImages
from coin_hf.erasure.code import ErasureCode
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.errors import InputError
from coin_hf.evaluation.alone import networks_run, own_rows
from coin_hf.evaluation.erasures import evaluate_erasures
from coin_hf.evaluation.methods import (
    CODED_ALONE,
    CODED_ALONE_OWN,
    CONTROLS,
    NO_CODED_MODEL,
    OUTPUT_AVERAGE,
)
from coin_hf.evaluation.scores import coding_errors, decode_missing, score
from coin_hf.experts.preprocessing import timm_preprocessing
from coin_hf.recipe.blocks import DatasetBlock, EvaluationBlock
from coin_hf.records.measurements import Erasure

PREPROCESSING = timm_preprocessing({"input_size": [3, 8, 8], "crop_pct": 1.0, **NORMALISATION}, 3)
BETAS = {2: [0.3, 0.7], 3: [0.2, 0.5, 0.3], 5: [0.1, 0.15, 0.2, 0.25, 0.3]}
LABELS = {2: [range(5), range(5, 10)], 3: [range(4), range(3, 8), range(10)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("data") / "digits")


def fitted(labels: Sequence[int], dtype: torch.dtype) -> nn.Module:
    """A linear expert for some of the digits, by least squares, and a random bias for the rest."""
    data = digits(slice(0, 200))
    x = torch.stack([PREPROCESSING(image) for image in data["image"]]).flatten(1).double()
    y = torch.tensor(data["label"][:])
    kept = torch.isin(y, torch.tensor(list(labels)))
    target = nn.functional.one_hot(y[kept], 10).double()
    gram = x[kept].T @ x[kept] + 20 * torch.eye(192, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10).double(), nn.Tanh())
    with torch.no_grad():
        model[1].weight.copy_(torch.linalg.solve(gram, x[kept].T @ target).T)
        generator = torch.Generator().manual_seed(labels[0])
        model[1].bias.copy_(0.1 * torch.randn(10, generator=generator))
    return model.to(dtype).eval()


def near(loss: float | None) -> Any:
    """Equal up to float64's rounding, also where the loss is 0 or none."""
    return None if loss is None else pytest.approx(loss, rel=1e-9, abs=1e-25)


class World:
    """N experts, and a coded model off their average enough for some decoded answers to change."""

    def __init__(self, folder: Path, n: int, dtype: torch.dtype = torch.float64) -> None:
        self.folder, self.code = folder, ErasureCode(BETAS[n])
        self.labels = LABELS[n]
        self.experts = {f"expert {i}": fitted(ls, dtype) for i, ls in enumerate(self.labels)}
        states = [model.state_dict() for model in self.experts.values()]
        self.coded = {"coin": fitted(self.labels[0], dtype)}
        generator = torch.Generator().manual_seed(n)
        mean = {
            name: sum(b * state[name] for b, state in zip(BETAS[n], states, strict=True))
            for name in states[0]
        }
        noise = {
            name: 0.01 * torch.randn(value.shape, generator=generator).to(value)
            for name, value in mean.items()
        }
        self.coded["coin"].load_state_dict({name: mean[name] + noise[name] for name in mean})

    def sets(self, **block: Any) -> list[LabelledImages]:
        return [
            LabelledImages("d", DatasetBlock(path=str(self.folder), labels=ls, **block), "test", 10)
            for ls in self.labels
        ]

    def evaluate(
        self, batch_size: int = 16, limit: int | None = None, **block: Any
    ) -> list[Erasure]:
        return evaluate_erasures(
            self.experts,
            {method: [model] for method, model in self.coded.items()},
            self.code,
            self.sets(**block),
            PREPROCESSING,
            settings=EvaluationBlock(batch_size=batch_size, limit=limit),
            seed=0,
        ).erasures


@pytest.mark.parametrize("n", [2, 3])
def test_every_number_against_loops(folder: Path, n: int) -> None:
    world = World(folder, n)
    found = world.evaluate()
    assert [erasure.missing for erasure in found] == list(world.experts)
    for i, erasure in enumerate(found):
        outputs: list[list[list[float]]] = [[] for _ in range(n)]
        coded, truths = [], []
        for image, label in zip(*digits(slice(200, 300))[:].values(), strict=True):
            if label in world.labels[i]:
                x = PREPROCESSING(image).double()[None]
                with torch.no_grad():
                    for j, model in enumerate(world.experts.values()):
                        outputs[j].append(model(x)[0].tolist())
                    coded.append(world.coded["coin"](x)[0].tolist())
                truths.append(label)
        own = [reference.predicted(logits) for logits in outputs[i]]
        rows = [[outputs[j][row] for j in range(n)] for row in range(len(truths))]
        betas = world.code.betas
        others = [j for j in range(n) if j != i]
        rest = sum(betas[j] for j in others)
        answers = {
            "coin": [
                reference.predicted(reference.decoded(i, row, c, betas))
                for row, c in zip(rows, coded, strict=True)
            ],
            OUTPUT_AVERAGE: own,
            NO_CODED_MODEL: [
                reference.predicted(
                    reference.encoded([row[j] for j in others], [betas[j] / rest for j in others])
                )
                for row in rows
            ],
            CODED_ALONE: [reference.predicted(c) for c in coded],
            CODED_ALONE_OWN: [max(world.labels[i], key=lambda k: c[k]) for c in coded],
        }
        losses = {"coin": reference.coding_loss(outputs, coded, betas), OUTPUT_AVERAGE: 0.0}
        runs = {"coin": n, NO_CODED_MODEL: n - 1, CODED_ALONE: 1, CODED_ALONE_OWN: 1}
        assert erasure.points == len(truths) > 30
        right = sum(a == b for a, b in zip(own, truths, strict=True))
        assert erasure.expert_accuracy == pytest.approx(right / len(truths))
        assert 0.3 < erasure.expert_accuracy < 1
        assert set(erasure.scores) == set(answers)
        for method, predicted in answers.items():
            got = erasure.scores[method]
            accuracy = sum(a == b for a, b in zip(predicted, truths, strict=True)) / len(truths)
            agreement = sum(a == b for a, b in zip(predicted, own, strict=True)) / len(truths)
            assert got.nda == pytest.approx(reference.nda(predicted, truths, own))
            assert got.decoded_accuracy == pytest.approx(accuracy)
            assert got.agreement == pytest.approx(agreement)
            assert got.coding_loss == near(losses.get(method))
            assert got.networks == runs.get(method)
        assert 0.3 < erasure.scores["coin"].agreement < 1, "a case that tests something"


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("n", [2, 3])
def test_the_output_average_loses_nothing_at_any_precision(
    folder: Path, n: int, dtype: torch.dtype
) -> None:
    for erasure in World(folder, n, dtype).evaluate():
        control = erasure.scores[OUTPUT_AVERAGE]
        assert control.nda == 100
        assert control.agreement == 1
        assert control.decoded_accuracy == erasure.expert_accuracy
        assert control.coding_loss == near(0.0)
        assert erasure.scores[NO_CODED_MODEL].coding_loss is None


@pytest.mark.slow
def test_batch_sizes_do_not_matter(folder: Path) -> None:
    world = World(folder, 3)
    alone, sevens, whole = (world.evaluate(size) for size in (1, 7, 1000))
    for a, b, c in zip(alone, sevens, whole, strict=True):
        assert (a.missing, a.points, a.expert_accuracy) == (b.missing, b.points, b.expert_accuracy)
        for method, first in a.scores.items():
            for other in (b.scores[method], c.scores[method]):
                assert (first.nda, first.agreement) == (other.nda, other.agreement)
                assert first.coding_loss == near(other.coding_loss)


def test_streaming_does_not_matter(folder: Path) -> None:
    world = World(folder, 2)
    assert world.evaluate(streaming=True) == world.evaluate()


def test_a_limit(folder: Path) -> None:
    world = World(folder, 2)
    first = world.evaluate(limit=20)
    assert [erasure.points for erasure in first] == [20, 20]
    assert world.evaluate(limit=20) == first
    assert world.evaluate(limit=10**6) == world.evaluate()


def test_modes_gradients_and_random_state_are_untouched(folder: Path) -> None:
    world = World(folder, 2)
    state = torch.get_rng_state()
    world.evaluate(limit=20)
    assert torch.equal(torch.get_rng_state(), state)
    for model in (*world.experts.values(), *world.coded.values()):
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())


def test_an_expert_that_is_never_right(folder: Path) -> None:
    world = World(folder, 2)
    with torch.no_grad():
        world.experts["expert 0"][1].weight.zero_()
        world.experts["expert 0"][1].bias.copy_(torch.arange(10.0))
    first, second = world.evaluate()
    assert first.expert_accuracy == 0
    assert [s.nda for s in first.scores.values()] == [None] * (1 + len(CONTROLS))
    assert all(s.decoded_accuracy is not None for s in first.scores.values())
    assert second.scores[OUTPUT_AVERAGE].nda == 100
    assert first.dump()["scores"]["coin"]["nda"] is None


def test_the_coded_model_alone_is_told_only_what_is_declared(folder: Path, tmp_path: Path) -> None:
    """Own labels come from filters and class names, never from the labels of test rows."""
    world = World(folder, 2)
    both = [erasure.scores for erasure in world.evaluate()]
    assert all(scores[CODED_ALONE] != scores[CODED_ALONE_OWN] for scores in both)
    data = digits(slice(200, 300)).filter(lambda row: row["label"] < 5)
    (tmp_path / "digits").mkdir()
    data.to_parquet(tmp_path / "digits" / "test.parquet")
    world = World(tmp_path / "digits", 2)
    world.labels = [None, None]  # type: ignore[list-item]
    for erasure in world.evaluate():  # ten classes are named, five are there
        assert CODED_ALONE in erasure.scores
        assert CODED_ALONE_OWN not in erasure.scores, "the same as the first: all labels"
    world.labels = [range(5), None]  # type: ignore[list-item]
    first, second = (erasure.scores for erasure in world.evaluate())
    assert CODED_ALONE_OWN in first
    assert second[CODED_ALONE] == second[CODED_ALONE_OWN]  # so that averages are over both


def test_label_sets_and_class_names_bound_the_own_labels(folder: Path) -> None:
    """Linear experts with label sets: what is own is in the filter, the names and the set."""
    world = World(folder, 2)
    few, every = world.sets()[0], world.sets()[1]
    sets = LabelSets(rows=((0, 1, 2, 7), tuple(range(10))), count=10)
    assert own_rows(few, None, 0) == (0, 1, 2, 3, 4)
    assert own_rows(few, sets, 0) == (0, 1, 2)
    assert own_rows(every, sets, 1) == (5, 6, 7, 8, 9)
    every.kept = None
    assert own_rows(every, sets, 0) == (0, 1, 2, 7)
    every.rows = {0: 4, 1: 7, 2: 10}  # by name; the last is no class of the expert
    assert own_rows(every, None, 0) == (4, 7)


def test_several_coded_models_answer_alone_by_the_largest_beta(folder: Path) -> None:
    world = World(folder, 3)
    code = ErasureCode.design(3, 2)
    coded = [world.coded["coin"], fitted(range(2, 9), torch.float64)]
    found = evaluate_erasures(
        world.experts, {"coin": coded}, code, world.sets(), PREPROCESSING,
        settings=EvaluationBlock(batch_size=16), seed=0,
    ).erasures  # fmt: skip
    assert [len(e.beside) for e in found] == [0] * 3 + [1] * 6
    for i, (erasure, test_set) in enumerate(zip(found, world.sets(), strict=False)):
        most = max(range(2), key=lambda c: code.rows[c][i])
        assert erasure.scores["coin"].networks == 4  # two experts, two coded models
        right = total = 0
        for _, rows in test_set.batches(16, limit=None, seed=(0,), shard=(0, 1)):
            for row in rows:
                x = PREPROCESSING(row.image).double()[None]
                with torch.no_grad():
                    right += int(coded[most](x).argmax()) == row.truth
                total += 1
        assert erasure.scores[CODED_ALONE].decoded_accuracy == pytest.approx(right / total)
    for erasure in found[3:]:  # no pattern of two: it would be the same number again
        assert CODED_ALONE not in erasure.scores
        assert erasure.scores["coin"].networks == 3


def test_networks_run_with_labels_of_their_own() -> None:
    sets = LabelSets(rows=((0, 1), (1, 2), (3,)), count=4)
    code = ErasureCode([0.2, 0.3, 0.5], labels=sets)
    assert networks_run("coin", 0, (0,), code) == 2  # expert 1 and the coded model
    assert networks_run("coin", 2, (2,), code) == 1
    assert networks_run(NO_CODED_MODEL, 2, (2,), code) == 0
    assert networks_run("coin", 0, (0, 2), code) == 2
    assert networks_run(OUTPUT_AVERAGE, 0, (0,), code) is None


def test_a_test_set_without_labels(folder: Path, tmp_path: Path) -> None:
    data = digits(slice(0, 10))
    (tmp_path / "hidden").mkdir()
    data.add_column("truth", [-1] * 10).to_parquet(tmp_path / "hidden" / "test.parquet")
    world = World(tmp_path / "hidden", 2)
    world.labels = [None, None]  # type: ignore[list-item]
    message = r"^row 0 of the split 'test' of dataset 'd' has no label to measure NDA with: choose"
    with pytest.raises(InputError, match=message):
        world.evaluate(label="truth")


class TestDecoding:
    def answers(self, missing: int, f: list[Tensor], c: Tensor, betas: list[float]) -> Any:
        found = decode_missing([missing], f, {"coded": [c]}, ErasureCode(betas))
        return {method: answers[missing] for method, answers in found.items()}

    def test_no_coded_model_is_the_other_expert_for_two(self) -> None:
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            f = list(torch.randn(2, 8, 10, generator=generator))
            beta = float(torch.rand(1, generator=generator))
            for missing in range(2):
                found = self.answers(missing, f, f[0], [beta, 1 - beta])
                assert torch.equal(found[NO_CODED_MODEL], f[1 - missing])

    def test_the_missing_experts_answer_serves_the_output_average_alone(self) -> None:
        f, c = list(torch.randn(3, 8, 10)), torch.randn(8, 10)
        before = self.answers(1, f, c, [0.2, 0.5, 0.3])
        f[1] = torch.randn(8, 10)
        after = self.answers(1, f, c, [0.2, 0.5, 0.3])
        assert torch.equal(before["coded"], after["coded"])
        assert torch.equal(before[NO_CODED_MODEL], after[NO_CODED_MODEL])
        assert torch.equal(after[OUTPUT_AVERAGE], f[1])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("n", [2, 3, 5])
    def test_even_ties_are_kept(self, n: int, dtype: torch.dtype) -> None:
        """Classes whose logits are equal, as half precision makes many: the first is the answer."""
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            f = list(torch.randn(n, 200, 10, generator=generator).to(dtype))
            for logits in f:
                logits[:, 7] = logits[:, 2] = logits.amax(1)
            for missing in range(n):
                found = self.answers(missing, f, f[0], BETAS[n])[OUTPUT_AVERAGE]
                assert torch.equal(found.argmax(1), f[missing].argmax(1))

    def test_half_precision_does_not_overflow_the_loss(self) -> None:
        f = [torch.full((1, 10), 900.0).half(), torch.zeros(1, 10).half()]
        errors = coding_errors(f, [torch.zeros(1, 10).half()], ErasureCode([0.5, 0.5]))
        assert errors.tolist() == [[10 * 450.0**2]]


class TestScore:
    def test_without_labels(self) -> None:
        answers, expert = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])
        found = score(answers, expert, None, torch.tensor([1.0, 3.0]))
        assert (found.nda, found.decoded_accuracy) == (None, None)
        assert (found.agreement, found.coding_loss) == (0.75, 2.0)

    def test_the_loss_is_the_mean_over_inputs_of_the_squared_distance(self) -> None:
        generator = torch.Generator().manual_seed(0)
        f = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
        c = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        errors = coding_errors(list(f), [c], ErasureCode(BETAS[3]))
        assert errors.shape == (1, 6)
        loss = score(torch.zeros(6), torch.zeros(6), None, errors).coding_loss
        expected = reference.coding_loss(f.tolist(), c.tolist(), BETAS[3])
        assert loss == pytest.approx(expected, rel=1e-12)
        assert np.isfinite(expected)
