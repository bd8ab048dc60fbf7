"""The card's metadata: what the Hub lists, links and filters a coded model by."""

from collections.abc import Iterable

from huggingface_hub import EvalResult, ModelCardData

from coin_hf.records.result import ResultRecord


def metadata(result: ResultRecord, repo_id: str) -> ModelCardData:
    """Build the metadata of a coded model's card.

    Args:
        result: The result.
        repo_id: The Hub id.

    Returns:
        The metadata.
    """
    return ModelCardData(
        base_model=unique(
            place for e in result.experts for place in (e.model, e.base) if place and on_hub(place)
        )
        or None,
        base_model_relation="merge",
        library_name=result.library,
        pipeline_tag=result.task or "image-classification",
        tags=["merge", result.coder.replace("_", "-"), "erasure-coding", "coin-hf"],
        datasets=unique(d.path for d in result.datasets.values() if on_hub(d.path)) or None,
        license=common_license(result),
        model_name=repo_id.rpartition("/")[2],
        eval_results=_eval_results(result) or None,
    )


def unique(values: Iterable[str]) -> list[str]:
    """Return texts, each of them once.

    Args:
        values: Any texts.

    Returns:
        The texts, in order of first occurrence.
    """
    return list(dict.fromkeys(values))


def on_hub(path: str) -> bool:
    """Return whether a recorded path is a Hub id: recorded folders start with a dot or slash.

    Args:
        path: The path.

    Returns:
        False for a folder.
    """
    return not path.startswith((".", "/", "~")) and path.count("/") <= 1


def common_license(result: ResultRecord) -> str | None:
    """Return the licence that all experts declare.

    Args:
        result: The result.

    Returns:
        The licence; None if they differ, or one declares none.
    """
    licenses = {expert.license for expert in result.experts}
    return licenses.pop() if len(licenses) == 1 else None


def _eval_results(result: ResultRecord) -> list[EvalResult]:
    datasets = {expert.name: expert.dataset for expert in result.experts}
    found = []
    for erasure in result.erasures:
        if erasure.beside:
            continue  # the card's table has them; the metadata hold one number per expert
        key = datasets[erasure.missing]
        dataset = result.datasets[key]
        name = dataset.path if on_hub(dataset.path) else key
        nda = erasure.scores[result.coder].nda
        if nda is None:
            continue
        found.append(
            EvalResult(
                task_type=result.task or "image-classification",
                dataset_type=name,
                dataset_name=name,  # not the key: two parts of one dataset share an entry
                dataset_config=dataset.config,
                dataset_split=result.evaluation.split,
                dataset_revision=dataset.revision,
                metric_type="nda",
                metric_name=f"NDA with '{erasure.missing}' missing",
                metric_value=round(nda, 2),
            )
        )
    return found
