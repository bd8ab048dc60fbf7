import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import reference
import torch

import coin_hf
from coin_hf.evaluation.erasures import score
from coin_hf.metrics.nda import NDA, nda

FOLDER = Path(coin_hf.__file__).parent / "metrics" / "nda"

# Six images: the expert is right on the first five, the decoded answer on four (0, 1, 2 and 5).
TRUTH = [0, 1, 2, 3, 4, 5]
EXPERT = [0, 1, 2, 3, 4, 0]
DECODED = [0, 1, 2, 0, 0, 5]
BY_HAND = {
    "nda": 80.0,  # 100 * 4 / 5
    "decoded_accuracy": 4 / 6,
    "expert_accuracy": 5 / 6,
    "agreement": 3 / 6,
}


def test_six_images_by_hand() -> None:
    assert nda(DECODED, TRUTH, EXPERT) == BY_HAND


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor])
def test_lists_arrays_and_tensors(kind: type) -> None:
    assert nda(kind(DECODED), kind(TRUTH), kind(EXPERT)) == BY_HAND


def test_it_may_lie_above_100() -> None:
    assert nda([0, 1, 2], [0, 1, 2], [0, 1, 0])["nda"] == 150


def test_an_expert_that_is_never_right() -> None:
    found = nda([0, 1], [0, 0], [1, 1])
    assert math.isnan(found.pop("nda"))
    assert found == {"decoded_accuracy": 0.5, "expert_accuracy": 0.0, "agreement": 0.5}


@pytest.mark.parametrize(
    ("predictions", "references", "expert"),
    [([], [], []), ([0, 1], [0], [0, 1]), ([0], [0], [0, 1]), ([[0, 1]], [[0, 1]], [[0, 1]])],
)
def test_unequal_or_empty(predictions: list, references: list, expert: list) -> None:
    message = r"must be equally long, and not empty; got shapes \("
    with pytest.raises(ValueError, match=message):
        nda(predictions, references, expert)


def test_the_class() -> None:
    metric = NDA()
    found = metric.compute(predictions=DECODED, references=TRUTH, expert_predictions=EXPERT)
    assert found == BY_HAND
    assert set(metric.features) == {"predictions", "references", "expert_predictions"}


def test_the_class_in_batches() -> None:
    metric = NDA()
    for part in (slice(0, 2), slice(2, 6)):
        metric.add_batch(
            predictions=DECODED[part], references=TRUTH[part], expert_predictions=EXPERT[part]
        )
    assert metric.compute() == BY_HAND


def test_loaded_from_its_folder() -> None:
    metric = evaluate.load(str(FOLDER))
    found = metric.compute(predictions=DECODED, references=TRUTH, expert_predictions=EXPERT)
    assert found == BY_HAND


CLOSED = """
import sys
def closed(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print("NETWORK", event, arguments)
        raise OSError("the network is closed")
sys.addaudithook(closed)
import evaluate
nda = evaluate.load(sys.argv[1])
truth = [0, 1, 2, 3]
print(nda.compute(predictions=[0, 1, 2, 2], references=truth, expert_predictions=truth))
"""


@pytest.mark.slow
def test_a_fresh_process_loads_it_without_network(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(FOLDER)],
        check=False,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "{'nda': 75.0, 'decoded_accuracy': 0.75, 'expert_accuracy': 1.0, 'agreement': 0.75}\n"
    )


def test_it_agrees_with_the_formula_and_the_pipelines_score() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        decoded, truth, expert = torch.randint(0, 3, (3, 50), generator=generator)
        found = nda(decoded, truth, expert)
        expected = reference.nda(decoded.tolist(), truth.tolist(), expert.tolist())
        assert found["nda"] == pytest.approx(expected, rel=1e-12)
        own = score(decoded, expert, truth, None)
        assert (own.nda, own.decoded_accuracy, own.agreement) == (
            found["nda"],
            found["decoded_accuracy"],
            found["agreement"],
        )
