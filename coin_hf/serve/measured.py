"""The measured NDA of answers that are not an expert's own."""

from coin_hf.erasure.betas import rows_of
from coin_hf.evaluation.methods import CODED_ALONE
from coin_hf.records.coin import CoinRecord
from coin_hf.records.result import ResultRecord
from coin_hf.serve.events import How


def measured_ndas(coin: CoinRecord, result: ResultRecord) -> dict[tuple[str, How], float]:
    """Look up the NDA of each expert's replacements, where just such answers were measured.

    Args:
        coin: The content of `coin.json`.
        result: The content of `result.json`.

    Returns:
        Percent by expert and kind of answer. Without `alone` where the one served may be another
        than the one measured: of several coded models the one that is there answers, and an
        expert's own label set bounds its answer, while all K labels are measured.
    """
    methods: dict[How, str] = {"decoded": coin.coder}
    if coin.label_sets is None and len(rows_of(coin.betas)) == 1:
        methods["alone"] = CODED_ALONE
    return {
        (erasure.missing, how): score.nda
        for erasure in result.singles
        for how, method in methods.items()
        if (score := erasure.scores.get(method)) is not None and score.nda is not None
    }
