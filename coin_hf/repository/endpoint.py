"""The files by which Inference Endpoints serve a network of a coded repository."""

from importlib.metadata import requires
from pathlib import Path

from coin_hf.hub.layout import HANDLER, REQUIREMENTS
from coin_hf.records.coin import CoinRecord


def endpoint_files(coin: CoinRecord) -> dict[str, bytes]:
    """Return `handler.py`, the same for every repository, and what it needs installed.

    Args:
        coin: The content of `coin.json`.

    Returns:
        The content by file name. `requirements.txt` has the bounds that coin-hf itself declares;
        torch is left out, which the endpoint's image brings for its device.
    """
    needed = {"numpy", "pillow", coin.library, *(each.library for each in coin.experts)}
    if any(each.base is not None for each in coin.experts):
        needed |= {"peft", "transformers"}
    declared = [each.partition(";")[0].strip() for each in requires("coin-hf") or ()]
    bounds = {each.partition(">")[0]: each for each in declared}
    return {
        HANDLER: Path(__file__).with_name("handler.py").read_bytes(),
        REQUIREMENTS: "".join(f"{bounds.get(name, name)}\n" for name in sorted(needed)).encode(),
    }
