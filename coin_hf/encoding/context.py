"""Hold the state of one run: processes, device, recipe, experts and samples."""

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from coin_hf.data.opening import Datasets
from coin_hf.data.samples import Samples
from coin_hf.erasure.betas import Rows, rows_of
from coin_hf.erasure.label_sets import LabelSets
from coin_hf.experts.expert import Expert
from coin_hf.networks.inputs import take
from coin_hf.networks.logits import logits_of
from coin_hf.networks.processes import Processes
from coin_hf.recipe import Recipe
from coin_hf.records.coin import label_sets


def unused_settings(accelerator: Accelerator) -> list[str]:
    """List what a launcher's settings ask for and coding does not do.

    Args:
        accelerator: The run's.

    Returns:
        A phrase for each: mixed precision, a compiler, sharded networks, and processes that were
        not started (`accelerate launch --cpu --num_processes 2` starts one unless by MPI).
    """
    asked = []
    if accelerator.mixed_precision != "no":
        asked.append(f"mixed precision in {accelerator.mixed_precision}")
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if compiler.upper() != "NO":
        asked.append(f"compiling by {compiler.lower()}")
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            asked.append(f"networks sharded by {name}")
    alone = accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ
    if alone and "MASTER_ADDR" in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        asked.append("several processes, but started one (start them by `torchrun`)")
    return asked


Theta = dict[str, Tensor]
"""Parameters of a network, or tensors of the same shapes, by name."""


@dataclass(frozen=True, eq=False)
class RunContext:
    """The processes and device of a run, and its open datasets."""

    accelerator: Accelerator = field(default_factory=Accelerator)
    progress: bool = False
    """Show bars on stderr, in the main process."""
    datasets: Datasets = field(default_factory=Datasets)

    def __post_init__(self) -> None:
        """Warn, in the main process, of what the launcher asks for and a run does not do."""
        unused = unused_settings(self.accelerator)
        if unused and self.processes.rank == 0:
            warnings.warn(
                f"the launcher asks for {', '.join(unused)}: not used, as coding computes in the "
                "experts' own dtype, each network whole on its device; the result records what ran",
                stacklevel=4,
            )

    @property
    def processes(self) -> Processes:
        """The processes that share the work."""
        return Processes.of(self.accelerator)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    def main_first(self) -> AbstractContextManager[None]:
        """Let the main process go first through a block that downloads."""
        return self.accelerator.main_process_first()


@dataclass(frozen=True, eq=False)
class EncodingContext:
    """The inputs of one encoding: recipe, experts, samples, and the run."""

    run: RunContext
    recipe: Recipe
    """With every revision pinned."""
    experts: Sequence[Expert]
    samples: Samples
    """All samples; the recipe's `samples.held_out` reserves a part for choices."""
    checkpoints: Path | None = None
    """Folder for partial Fishers."""
    fishers: list[Theta] | None = None
    """The experts' Fishers on these samples, if already computed."""

    @cached_property
    def parts(self) -> tuple[Samples, Samples]:
        """The samples to fit on, and those to choose on: the same ones, or held out."""
        return self.samples.split(self.recipe.samples.held_out)

    @cached_property
    def rows(self) -> Rows:
        """The betas of each coded model, shape (M, N)."""
        return rows_of(self.recipe.coding_weights)

    @cached_property
    def label_sets(self) -> LabelSets | None:
        """The logits that each expert has; None if all have all."""
        return label_sets([expert.class_order for expert in self.experts])

    @property
    def thetas(self) -> list[Theta]:
        """The experts' parameters."""
        return [expert.parameters for expert in self.experts]

    def logits(self, model: nn.Module, samples: Samples, at: Tensor | None = None) -> Tensor:
        """Run a network over samples, with batches split among the processes.

        Args:
            model: The network.
            samples: The samples.
            at: Positions of those to run, shape (n,); by default all P.

        Returns:
            Shape (n, K), on the CPU, the same in every process.
        """
        inputs = samples.inputs if at is None else take(samples.inputs, at)
        batch_size = self.recipe.evaluation.batch_size
        return logits_of(model, inputs, batch_size=batch_size, processes=self.run.processes)

    @cached_property
    def expert_logits(self) -> list[Tensor]:
        """The experts' logits on the samples to choose on, each (P, K)."""
        return [self.logits(expert.model, self.parts[1]) for expert in self.experts]

    def own(self, samples: Samples) -> list[Tensor]:
        """Mark each expert's own samples: those of its draw, else of its dataset, else all.

        Args:
            samples: The samples.

        Returns:
            A boolean mask of shape (P,) for each expert.
        """
        names, keys = list(self.recipe.draws), list(self.recipe.draws.values())
        marks = []
        for block in self.recipe.experts:
            draws = [k for k, name in enumerate(names) if name == block.label]
            draws = draws or [k for k, key in enumerate(keys) if key == block.dataset]
            marks.append(torch.isin(samples.sources, torch.tensor(draws or range(len(names)))))
        return marks
