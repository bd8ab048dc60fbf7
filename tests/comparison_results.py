"""Results of comparisons, made up."""

from typing import Any


def entry(name: str, coder: str, nda: float | None, **changes: Any) -> dict[str, Any]:
    def spread(mean: float | None, std: float | None = None) -> dict[str, Any]:
        return {"mean": mean, "std": std}

    return {
        "name": name,
        "coder": coder,
        "per_expert": 8,
        "samples": 16,
        "seeds": [0, 1],
        "nda": {"cats": spread(nda, 1.25), "dogs": spread(None)},
        "mean_nda": spread(nda),
        "agreement": spread(0.5, 0.0125),
        "coding_loss": spread(0.01234, 0.001),
        "seconds": spread(12.345, 1.0),
        "peak_memory": spread(300 * 2.0**20),
        "passes": {"forward": 32, "backward": 320},
        "key": "lam" if coder == "coin" else None,
        "values": [0.1, 0.01] if coder == "coin" else [None, None],
        **changes,
    }


def result(*entries: dict[str, Any]) -> dict[str, Any]:
    control = {"nda": {"cats": 20.0, "dogs": None}, "mean_nda": None}
    return {
        "experts": [{"name": "cats"}, {"name": "dogs"}],
        "summary": list(entries) or [entry("coin", "coin", 88.0), entry("R&D_1", "regmean", 70.0)],
        "controls": {"output average": control, "no coded model": control},
    }
