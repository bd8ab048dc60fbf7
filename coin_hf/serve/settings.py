"""Settings of serving: deadlines, hedging, breakers, limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from coin_hf.errors import InputError
from coin_hf.recipe.blocks import Block, Count, Number
from coin_hf.recipe.messages import sentences
from coin_hf.recipe.yaml_file import apply_override, read_yaml

Seconds = Annotated[Number, Field(gt=0, le=3600)]
Backend = Literal["local", "remote", "ray"]


class DeadlineBlock(Block):
    """When an expert counts as late: a quantile of its recent direct answers, within bounds."""

    quantile: Annotated[Number, Field(gt=0, lt=1)] = 0.95
    """Share of recent answers that came sooner."""
    least: Seconds = 0.01
    """Never sooner than this, in seconds."""
    most: Seconds = 2.0
    """Never later, and the deadline before there are enough answers."""


class HedgeBlock(Block):
    """When a late answer may be computed from others: helpers idle, and a token left."""

    tokens: Annotated[Number, Field(ge=0, le=1e6)] = 10.0
    """Size of the bucket; each hedge takes one. 0 for no hedging at all."""
    refill: Annotated[Number, Field(ge=0, le=1)] = 0.05
    """Part of a token that each direct answer in time gives back: at most so many hedges each."""


class BreakerBlock(Block):
    """When an expert counts as down, and is answered for at once."""

    misses: Count = 5
    """Errors or unanswered requests in a row until then."""
    probe: Seconds = 1.0
    """Seconds between requests that try it again."""
    shed: Annotated[Number, Field(gt=0, le=1)] = 0.5
    """Share of the helpers' time in use above which its requests are refused: each takes all."""
    memory: Seconds = 5.0
    """Seconds over which that share is a mean: what was before counts for 1/e."""


class BatchBlock(Block):
    """Dynamic batching of the `local` backend: what waits while a network runs goes together."""

    most: Count = 16
    """Most inputs of a batch."""


class RayBlock(Block):
    """The backend `ray`."""

    address: str | None = None
    """A cluster, such as `auto` or `ray://HOST:10001`; by default a Ray of this machine alone."""
    cpus: Annotated[Number, Field(gt=0, le=1024)] = 0.5
    """Cores that each replica reserves."""
    gpus: Annotated[Number, Field(ge=0, le=64)] = 0.0
    """Accelerators that each replica of a network reserves."""
    replicas: Count = 1
    """Most replicas of each network; Ray starts more as requests wait."""
    health: Seconds = 2.0
    """Seconds between checks of a replica, and until one without an answer is replaced."""


class LimitBlock(Block):
    """What a request may take."""

    body: Count = 10 * 2**20
    """Most bytes of a request's body."""
    pixels: Count = 64 * 10**6
    """Most pixels of an image."""
    waiting: Count = 256
    """Most requests in work at once; more are refused with 429."""
    seconds: Seconds = 30.0
    """A request without any answer by then fails with 504."""


class ServeSettings(Block):
    """How a coded repository is served."""

    backend: Backend = "local"
    """`local`: all networks in this process; `remote`: other servers; `ray`: Ray Serve."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port; 0 for a free one."""
    device: str = "cpu"
    """Device of the networks (`local`; `ray` gives each replica what it reserves)."""
    urls: dict[str, str] | None = None
    """For `remote`: each expert's address by name, and each coded model's as `coded`, `coded-1`."""
    token_variable: str | None = None
    """For `remote`: the environment variable that holds the bearer token which is sent to `urls`,
    such as HF_TOKEN; by default none is sent."""
    routers: Count = 1
    """How many routers share the networks: `ray` starts as many; for `remote`, the number of
    `coin-hf serve` with these `urls`. Each sees its own requests alone, and infers the rest."""
    deadline: DeadlineBlock = DeadlineBlock()
    hedge: HedgeBlock = HedgeBlock()
    breaker: BreakerBlock = BreakerBlock()
    batch: BatchBlock = BatchBlock()
    limits: LimitBlock = LimitBlock()
    alone: Seconds | None = None
    """Seconds of a query after which a coded model answers alone for an expert that has neither
    answered nor can be decoded from what came; at once where nothing that decoding lacks can come
    any more, and for an expert that is down where the others have no time for decoding. By default
    never: such a query fails. Read the NDA of the `coded model alone` first."""
    ray: RayBlock = RayBlock()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.deadline.least > self.deadline.most:
            raise ValueError(
                f"deadline.least ({self.deadline.least:g} s) is above deadline.most "
                f"({self.deadline.most:g} s)"
            )
        if self.alone is not None and self.alone >= self.limits.seconds:
            raise ValueError(
                f"alone ({self.alone:g} s) must be below limits.seconds "
                f"({self.limits.seconds:g} s), when a query fails"
            )
        if self.backend == "local" and self.routers > 1:
            raise ValueError(
                f"`routers` is {self.routers}, but with the backend `local` each process has its "
                "own networks, which nothing shares: serve with `remote` or `ray`"
            )
        if self.backend == "ray" and self.port == 0:
            raise ValueError("`port` 0, a free one, is not for the backend `ray`: give a number")
        if self.backend != "remote" and self.token_variable is not None:
            raise ValueError("`token_variable` is for the backend `remote` alone")
        if (self.backend == "remote") != (self.urls is not None):
            raise ValueError(
                "`urls` says where the networks answer, for the backend `remote` alone"
            )
        return self


AnyBlock = TypeVar("AnyBlock", bound=Block)


def read_block(
    kind: type[AnyBlock], name: str, file: Path | None, overrides: Sequence[str] = ()
) -> AnyBlock:
    """Read settings from a file and `key.path=value` changes.

    Args:
        kind: What they are.
        name: What they are called in messages where there is no file.
        file: A YAML file; None for the defaults.
        overrides: The changes.

    Returns:
        The settings.

    Raises:
        InputError: If the file cannot be read, or a key is unknown or has a bad value.
    """
    data = {} if file is None else read_yaml(file)
    for override in overrides:
        apply_override(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        source = name if file is None else str(file)
        raise InputError(f"{source}: {'; '.join(sentences(error, data, kind))}") from error
