"""Ten uses of coin-hf from Python, each a few lines; only `coin_hf` is imported of it.

    python recipes/tour.py FOLDER --low me/low --high me/high --digits me/digits --namespace me

The experts are image classifiers of one architecture fine-tuned on halves of one dataset, by Hub id
or folder (`coin-hf demo` makes such ones in coin-hf-demo/experts). FOLDER takes what is written;
the first use and the ninth push to the Hub.
"""

import argparse
from pathlib import Path

import timm
import torch

from coin_hf import (
    CodedEnsemble,
    Expert,
    Recipe,
    average,
    build_coded,
    compare,
    comparison_table,
    diagonal_fisher,
    encode,
    evaluate,
    fisher_average,
    freeze_batch_norm,
    gram_matrices,
    load_expert,
    load_fisher,
    make_fisher,
    publish_fisher,
    recode,
    regmean,
    save_comparison,
    save_result,
    tune_betas,
)


def main() -> None:
    """Go through the ten uses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name in ("--low", "--high", "--digits", "--namespace"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    folder, me = given.folder, given.namespace
    halves = {"low": [0, 1, 2, 3, 4], "high": [5, 6, 7, 8, 9]}
    recipe = Recipe.from_dict(
        {
            "experts": [
                {"model": given.low, "dataset": "low"},
                {"model": given.high, "dataset": "high"},
            ],
            "datasets": {n: {"path": given.digits, "labels": ls} for n, ls in halves.items()},
            "samples": {"per_expert": 20},
            "fisher": {"save": True},
            "compare": {"coders": ["averaging", "coin"], "seeds": [0]},
            "output": str(folder / "compared"),
        }
    )

    print("1. encode and push")
    made = encode(recipe)
    made.save_pretrained(folder / "coded")
    print(made.result.table())
    print(made.push_to_hub(f"{me}/coded"))

    print("2. load, and answer with one expert missing, by name")
    ensemble = CodedEnsemble.from_pretrained(f"{me}/coded", experts=[given.low, given.high])
    x = torch.rand(2, 3, *ensemble.coded.preprocessing.settings["input_size"][1:])
    low, high = ensemble(x, missing=["high"])  # (2, K) each; the second was not run, but decoded

    print("3. decode answers that came from elsewhere")
    light = CodedEnsemble.from_pretrained(folder / "coded")  # no experts are loaded
    decoded = light.decode({"low": low}, light.coded_logits(x))
    print("   the same:", torch.equal(decoded[1], high))

    print("4. merge two networks in memory, and save the result")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [timm.create_model("test_resnet", num_classes=10) for _ in range(2)]
    experts = [Expert.from_module(net, name=n) for net, n in zip(networks, "ab", strict=True)]
    thetas = [expert.parameters for expert in experts]
    fishers = [diagonal_fisher(expert.model, torch.rand(4, 3, 160, 160)) for expert in experts]
    theta = fisher_average(thetas, fishers, betas=[0.5, 0.5], lam=1e-3)
    build_coded(experts, theta, betas=[0.5, 0.5]).save_pretrained(folder / "merged")
    timm.create_model(f"local-dir:{folder / 'merged'}", pretrained=True)

    print("5. evaluate again, on fewer images")
    result = evaluate(folder / "coded", overrides=["evaluation.limit=20"])
    save_result(folder / "coded", result)
    print("   NDA:", result.mean_nda["coin"])

    print("6. compare coders: a table, and files")
    compared = compare(recipe)
    print(comparison_table(compared, "markdown"))
    save_comparison(compared, folder / "compared")

    print("7. recode: other weights, without data")
    recode(folder / "coded", folder / "recoded", betas=[0.7, 0.3], lam=1e-2)

    print("8. tune the weights for experts that are not missing equally often")
    print("  ", tune_betas(str(folder / "coded"), [0.2, 0.05], rounds=1).best.betas)

    print("9. publish an expert's Fisher, and read it")
    file = make_fisher(given.low, folder / "fishers", datasets=[given.digits], per_expert=8)
    print(publish_fisher(file, f"{me}/fishers"))
    fisher = load_fisher(f"{me}/fishers")  # by parameter name, float32

    print("10. freeze BatchNorm before fine-tuning; use another coder on networks at hand")
    freeze_batch_norm(networks[0])
    pair = [load_expert(place) for place in (given.low, given.high)]
    thetas = [expert.parameters for expert in pair]
    grams = [gram_matrices(expert.model, x) for expert in pair]
    for coded in (average(thetas, betas=[0.5, 0.5]), regmean(thetas, grams, betas=[0.5, 0.5])):
        assert coded.keys() == thetas[0].keys() == fisher.keys()
    print("done")


if __name__ == "__main__":
    main()
