"""Means and standard deviations over the seeds, by hand."""

from typing import Any

from coin_hf.comparison.statistics import controls, summary


def row(name: str, seed: int, ndas: list[float | None], **changes: Any) -> dict[str, Any]:
    known = [nda for nda in ndas if nda is not None]
    erasures = [
        {
            "missing": missing,
            "beside": [],
            "scores": {
                name: {"nda": nda},
                "output average": {"nda": 100.0},
                "no coded model": {"nda": None if nda is None else 10.0 * i},
            },
        }
        for i, (missing, nda) in enumerate(zip(("cats", "dogs"), ndas, strict=True))
    ]
    return {
        "name": name,
        "coder": "coin",
        "per_expert": 5,
        "samples": 10,
        "seed": seed,
        "value": 0.1 * seed,
        "choice": {"key": "lam"},
        "erasures": erasures,
        "mean_nda": sum(known) / 2 if len(known) == 2 else None,
        "agreement": 0.5,
        "coding_loss": 2.0 + seed,
        "seconds": 1.0,
        "peak_memory": 1024,
        "passes": {"forward": 20, "backward": 200},
        **changes,
    }


def test_each_contender_and_size_is_one_entry() -> None:
    rows = [row("a", 0, [80.0, 90.0]), row("b", 0, [1.0, 1.0]), row("a", 2, [84.0, 96.0])]
    rows.append(row("a", 0, [50.0, 60.0], per_expert=50, samples=100, choice=None))
    first, second, third = summary(rows)
    assert (first["name"], first["seeds"], first["values"]) == ("a", [0, 2], [0.0, 0.2])
    assert first["nda"] == {
        "cats": {"mean": 82.0, "std": 8**0.5},
        "dogs": {"mean": 93.0, "std": 18**0.5},
    }
    assert first["mean_nda"] == {"mean": 87.5, "std": 12.5**0.5}
    assert first["coding_loss"] == {"mean": 3.0, "std": 2**0.5}
    assert first["agreement"] == {"mean": 0.5, "std": 0.0}
    assert first["peak_memory"]["mean"] == 1024
    assert first["passes"] == {"forward": 20, "backward": 200}
    assert first["key"] == "lam"
    assert (second["name"], second["mean_nda"]) == ("b", {"mean": 1.0, "std": None})
    assert (third["samples"], third["key"], third["mean_nda"]["mean"]) == (100, None, 55.0)


def test_an_expert_that_is_never_right_has_no_nda() -> None:
    (entry,) = summary([row("a", 0, [80.0, None]), row("a", 1, [70.0, None], peak_memory=None)])
    assert entry["nda"]["cats"]["mean"] == 75.0
    assert entry["nda"]["dogs"] == {"mean": None, "std": None}
    assert entry["mean_nda"]["mean"] is None
    assert entry["peak_memory"]["mean"] is None


def test_the_coded_model_alone_is_summarised_where_it_was_measured() -> None:
    rows = [row("a", seed, [80.0, 90.0]) for seed in (0, 1)]
    for each, first in zip(rows, (40.0, 60.0), strict=True):
        for erasure, nda in zip(each["erasures"], (first, 20.0), strict=True):
            erasure["scores"]["coded model alone"] = {"nda": nda}
    (entry,) = summary(rows)
    assert entry["alone"] == {"mean": 35.0, "std": 50**0.5}
    assert "alone_own" not in entry
    (mixed,) = summary([rows[0], row("a", 1, [80.0, 90.0])])  # the second is of an older version
    assert mixed["alone"] == {"mean": None, "std": None}
    (old,) = summary([row("a", 1, [80.0, 90.0])])
    assert "alone" not in old


def test_controls() -> None:
    assert controls(row("a", 0, [80.0, 90.0])) == {
        "output average": {"nda": {"cats": 100.0, "dogs": 100.0}, "mean_nda": 100.0},
        "no coded model": {"nda": {"cats": 0.0, "dogs": 10.0}, "mean_nda": 5.0},
    }
    assert controls(row("a", 0, [80.0, None]))["no coded model"]["mean_nda"] is None
