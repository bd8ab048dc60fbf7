"""The recipe: a YAML file, validated, frozen, with every default filled in."""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from coin_hf.erasure.betas import check_betas, rows_of, written
from coin_hf.errors import InputError

Library = Literal["auto", "timm", "transformers"]
Coder = Literal["coin", "averaging", "task_arithmetic", "regmean", "distillation"]
Step = Literal["layerwise", "head"]


def _number(value: Any) -> Any:
    """Refuse true and false, which Python counts as 1 and 0; YAML reads `1e-3` as text, fine."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "not a number")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Lam = Annotated[Number, Field(ge=0, allow_inf_nan=False)] | Literal["auto"]


def _shape(betas: Any) -> str:
    """Tell one row of betas from several, so that mistakes are reported for the one meant."""
    several = isinstance(betas, list | tuple) and betas and isinstance(betas[0], list | tuple)
    return "rows" if several else "row"


Row = tuple[Number, ...]
Weights = Annotated[
    Annotated[Row, Tag("row")] | Annotated[tuple[Row, ...], Tag("rows")], Discriminator(_shape)
]


class _Block(BaseModel):
    """A part of the recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ExpertBlock(_Block):
    """One expert: where its weights lie and which dataset it was made for."""

    model: str
    """Hub id, or path of a folder with `config.json` and `model.safetensors`."""
    dataset: str
    """Name of its dataset among `datasets`: its samples are drawn and its NDA is measured there."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository, or `sha256:...` of a folder; pinned when run."""
    name: str | None = None
    """Short name in tables and cards; by default the last part of `model`."""
    library: Library = "auto"
    """Which library builds the network; `auto` reads it from `config.json`."""

    @property
    def label(self) -> str:
        """The name by which tables and messages call this expert."""
        return self.name or Path(self.model).name


class DatasetBlock(_Block):
    """Images with labels, from the Hub or a folder."""

    path: str
    """Hub id, folder of parquet or image files, or folder written by `save_to_disk`."""
    config: str | None = None
    """Configuration of a Hub dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of the Hub dataset, or `sha256:...` of a folder; pinned when run."""
    split: str = "train"
    """Split from which samples are drawn."""
    image: str | None = None
    """Image column; by default the one column of type `Image`."""
    label: str | None = None
    """Label column; by default the one column of type `ClassLabel`."""
    labels: Annotated[tuple[StrictInt | StrictStr, ...], Field(min_length=1)] | None = None
    """Keep only rows with these labels (numbers or class names); by default all."""
    streaming: bool = False
    """Read rows as they come instead of downloading the split first."""


class SamplesBlock(_Block):
    """The P unlabeled inputs on which Fishers are taken and lambda is chosen."""

    per_expert: Annotated[StrictInt, Field(ge=1)] = 100
    """P', the number of samples from each expert's dataset: P = P' * number of experts."""
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    """Seed of the draw."""
    held_out: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each expert's samples kept from the Fisher and used only to choose lambda."""
    draws: dict[str, str] | None = Field(default=None, min_length=1)
    """What the samples are drawn from, `name: dataset`, P' rows each, in order; by default one draw
    for each expert, under its name and from its dataset. Re-coding keeps the draws as they are
    when experts join or leave."""


class FisherBlock(_Block):
    """How the Fisher is computed."""

    estimator: Literal["exact", "probe", "auto"] = "auto"
    """`exact`; `probe`, whose cost does not grow with the classes; `auto`: exact up to 64."""
    probes: Annotated[StrictInt, Field(ge=1)] = 4
    """Random directions of the logits for each sample; used by `probe` only."""
    batch_size: Annotated[StrictInt, Field(ge=1)] | None = None
    """Samples in one pass; by default what fits in memory."""
    save: StrictBool | Literal["half"] = False
    """Save the experts' Fishers with the coded model, so that `coin-hf recode` can change it
    without data; `half` saves them in 16 bits and also codes with what is saved."""


class TaskArithmeticBlock(_Block):
    """theta_0 + alpha sum_i (theta_i - theta_0)."""

    foundation: str
    """Hub id or folder of theta_0, from which the experts were fine-tuned; with their head."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository, or `sha256:...` of a folder; pinned when run."""
    alpha: Annotated[Number, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Scale of the task vectors; `auto` picks among 0.05 ... 1.0 by 0.05 on the samples."""


class RegMeanBlock(_Block):
    """Least squares, map by map, on the inputs that the experts see."""

    mode: Literal["linear", "conv"] = "linear"
    """Which maps: `linear`, fully connected layers; `conv`, dense convolutions as well."""
    scale: Annotated[Number, Field(ge=0, le=1)] = 0.9
    """What the off-diagonals of the Gram matrices are multiplied by."""


class DistillationBlock(_Block):
    """Training on the coding loss, from the averaged parameters, by AdamW."""

    epochs: Annotated[StrictInt, Field(ge=1)] = 20
    """Passes over the samples."""
    lr: Annotated[Number, Field(gt=0, allow_inf_nan=False)] = 1e-5
    """Learning rate."""
    batch_size: Annotated[StrictInt, Field(ge=1)] = 8
    """Samples of one step, over all processes."""
    weight_decay: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight decay."""


class AugmentBlock(_Block):
    """Changed copies of the samples, without labels: for all but the Fisher and choices."""

    copies: Annotated[StrictInt, Field(ge=1)] = 4
    """Copies of each sample beside itself."""
    transforms: Annotated[tuple[Literal["shift", "flip", "mixup"], ...], Field(min_length=1)] = (
        "shift",
        "mixup",
    )
    """What a copy goes through; leave `flip` out where left and right have a meaning."""


class RefineBlock(_Block):
    """A step by which the coded parameters are improved, without training."""

    step: Step
    """Which step."""
    strength: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    """How far the step holds to what it found: a ridge relative to the mean square of its inputs;
    `auto` chooses."""


def _named(key: str) -> Callable[[Any], Any]:
    """Take names in a list as blocks."""

    def read(data: Any) -> Any:
        if not isinstance(data, list | tuple):
            return data
        return [{key: each} if isinstance(each, str) else each for each in data]

    return read


Steps = Annotated[
    tuple[RefineBlock, ...],
    BeforeValidator(_named("step"), json_schema_input_type=tuple[Step | RefineBlock, ...]),
]


class Contender(_Block):
    """One row of a comparison: a coder, and what is set otherwise than in the recipe."""

    coder: Coder
    """Which coder."""
    name: str | None = None
    """What the row is called; by default as the coder."""
    lam: Lam | None = None
    """In place of the recipe's `lam`."""
    fisher: FisherBlock | None = None
    """In place of the recipe's block."""
    task_arithmetic: TaskArithmeticBlock | None = None
    """In place of the recipe's block."""
    regmean: RegMeanBlock | None = None
    """In place of the recipe's block."""
    distillation: DistillationBlock | None = None
    """In place of the recipe's block."""
    refine: Steps | None = None
    """In place of the recipe's steps; `[]` for none."""
    augment: AugmentBlock | None = None
    """In place of the recipe's block; `null` for none."""

    @property
    def label(self) -> str:
        """The name of its rows."""
        return self.name or self.coder


class CompareBlock(_Block):
    """The rows of a comparison: every coder, on every draw of the samples."""

    coders: (
        Annotated[
            tuple[Contender, ...],
            Field(min_length=1),
            BeforeValidator(_named("coder"), json_schema_input_type=tuple[Coder | Contender, ...]),
        ]
        | None
    ) = None
    """Names of coders, or blocks `{coder, name, ...}` with settings of their own; by default all
    coders, `task_arithmetic` where its foundation is given."""
    seeds: Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the samples' draw."""
    per_expert: (
        Annotated[tuple[Annotated[StrictInt, Field(ge=1)], ...], Field(min_length=1)] | None
    ) = None
    """Several P', for NDA against the number of samples; by default that of `samples`."""


class EvaluationBlock(_Block):
    """Where NDA is measured; never looked at for a choice."""

    split: str = "test"
    """Split of each expert's dataset."""
    batch_size: Annotated[StrictInt, Field(ge=1)] = 64
    """Images in one forward pass."""
    limit: Annotated[StrictInt, Field(ge=1)] | None = None
    """At most this many images of each dataset, drawn with the samples' seed; by default all."""


class HubBlock(_Block):
    """Where `encode --push` puts the coded model."""

    repo: str
    """Hub id of the coded model."""
    private: bool = False
    """Create the repository private."""
    revision: str | None = None
    """Branch to push to; by default the main one."""
    create_pr: bool = False
    """Open a pull request instead of committing."""
    commit_message: str = "Add coded model"
    """First line of the commit."""


class FisherRecipe(_Block):
    """What one expert's Fisher is computed from, where it is computed alone."""

    datasets: dict[str, DatasetBlock] = Field(min_length=1)
    """The datasets the samples are drawn from, by a name of your choice."""
    samples: SamplesBlock = SamplesBlock()
    """The unlabeled inputs."""
    fisher: FisherBlock = FisherBlock()
    """Exact or estimated, how many samples at once, and in which precision it is saved."""

    @property
    def draws(self) -> dict[str, str]:
        """The samples' draws: the dataset of each, by name."""
        return self.samples.draws or {key: key for key in self.datasets}

    @classmethod
    def make(cls, data: Mapping[str, Any], overrides: Sequence[str] = ()) -> "FisherRecipe":
        """Validate one held as plain data.

        Args:
            data: Its keys.
            overrides: `key.path=value` strings applied to it.

        Returns:
            The recipe, defaults filled in.

        Raises:
            InputError: If a key is unknown, missing or has a bad value; all are listed.
        """
        changed = copy.deepcopy(dict(data))
        for override in overrides:
            _apply(changed, override)
        try:
            return cls.model_validate(changed)
        except ValidationError as error:
            raise InputError("; ".join(_sentences(error, changed))) from error


class Recipe(_Block):
    """Everything that decides a coded model.

    Read one with `from_yaml`. A recipe is data: it opens no file and asks no server.
    """

    experts: tuple[ExpertBlock, ...] = Field(min_length=2)
    """The experts, in order; at least two."""
    datasets: dict[str, DatasetBlock] = Field(min_length=1)
    """The datasets of the experts, by a name of your choice."""
    betas: Weights | None = Field(default=None, validate_default=True)
    """Coding weights, one for each expert, positive, summing to 1; by default all equal. For
    several coded models one such list for each, all square parts of the matrix invertible."""
    coded: Annotated[StrictInt, Field(ge=1)] | None = None
    """How many coded models to make, instead of `betas`: their betas are designed so that errors
    are amplified little, as `coin-hf code` shows them."""
    coder: Coder = "coin"
    """How the coded parameters are found: `coin` is Fisher averaging, arXiv:2409.01420; the others
    are its rivals, each with a block of settings of its name."""
    lam: Lam = "auto"
    """Penalty lambda, one for all coded models; `auto` picks among 1e-5 ... 1 on the samples."""
    samples: SamplesBlock = SamplesBlock()
    """The unlabeled inputs."""
    fisher: FisherBlock = FisherBlock()
    """Exact or estimated, how many samples at once, and whether it is saved."""
    task_arithmetic: TaskArithmeticBlock | None = None
    """Settings of the coder `task_arithmetic`, which needs them."""
    regmean: RegMeanBlock = RegMeanBlock()
    """Settings of the coder `regmean`."""
    distillation: DistillationBlock = DistillationBlock()
    """Settings of the coder `distillation`."""
    refine: Steps = ()
    """Steps that improve what the coder gives, in order: `layerwise`, `head`, or blocks `{step,
    strength}`. Each is kept only if it lessens the coding loss of samples held out from it."""
    augment: AugmentBlock | None = None
    """Changed copies of the samples, for all but the Fisher; by default none."""
    compare: CompareBlock = CompareBlock()
    """What `coin-hf compare` compares."""
    evaluation: EvaluationBlock = EvaluationBlock()
    """Where NDA is measured."""
    output: str | None = None
    """Folder for the coded model; must not exist or be empty."""
    hub: HubBlock | None = None
    """Where `encode --push` puts it."""

    @model_validator(mode="before")
    @classmethod
    def _default_betas(cls, data: Any) -> Any:
        """Fill in betas; once they are there, `coded` has been said and is dropped."""
        if not isinstance(data, Mapping):
            return data
        experts, betas, coded = (data.get(key) for key in ("experts", "betas", "coded"))
        if not isinstance(experts, Sequence) or isinstance(experts, str) or not experts:
            return data
        coded = 1 if coded is None else coded
        if type(coded) is not int or coded < 1:
            return data
        rest = {key: value for key, value in data.items() if key not in ("betas", "coded")}
        if betas is None:
            if coded == 1 or len(experts) < 2:
                return {**rest, "betas": [1 / len(experts)] * len(experts)}
            from coin_hf.erasure.design import design  # plain recipes need no linear algebra

            return {**rest, "betas": written(design(len(experts), coded))}
        rows = len(betas) if _shape(betas) == "rows" else 1
        if "coded" in data and data["coded"] is not None and rows != coded:
            raise ValueError(
                f"'coded' asks for {coded} coded models, but 'betas' has {rows} rows: leave one out"
            )
        return {**rest, "betas": betas}

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        check_betas(self.coding_weights, len(self.experts))
        if _shape(self.coding_weights) == "rows":
            from coin_hf.erasure.amplification import (
                check_code,  # one coded model needs no linear algebra
            )

            check_code(rows_of(self.coding_weights))
        names = [expert.label for expert in self.experts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two experts are named '{name}': give each its own `name` under `experts`"
                )
        for expert in self.experts:
            if expert.dataset not in self.datasets:
                raise ValueError(
                    f"expert '{expert.label}' names the dataset '{expert.dataset}', but "
                    f"`datasets` holds {', '.join(self.datasets)}"
                    f"{_did_you_mean(expert.dataset, self.datasets)}"
                )
        for name, key in self.draws.items():
            if key not in self.datasets:
                raise ValueError(
                    f"the draw '{name}' names the dataset '{key}', but `datasets` holds "
                    f"{', '.join(self.datasets)}{_did_you_mean(key, self.datasets)}"
                )
        self._check_coders()
        for key, dataset in self.datasets.items():
            if dataset.split == self.evaluation.split:
                raise ValueError(
                    f"dataset '{key}' draws its samples from the split '{dataset.split}' on which "
                    "NDA is measured: choose another `split`, or another `evaluation.split`"
                )
        return self

    def _check_coders(self) -> None:
        if self.fisher.save and self.coder != "coin":
            raise ValueError(
                f"fisher.save: the coder '{self.coder}' computes no Fishers: leave `save` out, or "
                "take the coder 'coin'"
            )
        labels = [contender.label for contender in self.contenders]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"two entries of compare.coders are named '{label}': give each its own `name`"
                )
        for recipe in (self, *(self.with_coder(contender) for contender in self.contenders)):
            if recipe.coder == "task_arithmetic":
                recipe.foundation  # noqa: B018  # or it raises

    @property
    def foundation(self) -> TaskArithmeticBlock:
        """The settings of task arithmetic.

        Raises:
            InputError: If the recipe has none.
        """
        if self.task_arithmetic is None:
            raise InputError(
                "the coder 'task_arithmetic' needs the parameters from which the experts were "
                "fine-tuned: add `task_arithmetic: {foundation: HUB ID OR FOLDER}`"
            )
        return self.task_arithmetic

    @property
    def enlarges(self) -> bool:
        """Whether the coder or a step takes the copies that `augment` asks for."""
        takes = bool(self.refine) or self.coder in ("regmean", "distillation")
        return self.augment is not None and takes

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The coders that `compare` compares."""
        if self.compare.coders is not None:
            return self.compare.coders
        known = ("task_arithmetic",) if self.task_arithmetic else ()
        names = ("averaging", *known, "regmean", "distillation", "coin")
        return tuple(Contender(coder=name) for name in names)

    def with_coder(self, contender: Contender) -> "Recipe":
        """Return the recipe with one of its contenders as its coder, the settings its own."""
        changes = {
            key: value
            for key in Contender.model_fields
            if key != "name" and (value := getattr(contender, key)) is not None
        }
        if contender.augment is None and "augment" in contender.model_fields_set:
            changes["augment"] = None
        return self.model_copy(update=changes)

    @property
    def coding_weights(self) -> Row | tuple[Row, ...]:
        """The betas, shape (N,) for one coded model or (M, N)."""
        if self.betas is None:
            return (1 / len(self.experts),) * len(self.experts)
        return self.betas

    @property
    def draws(self) -> dict[str, str]:
        """The samples' draws: the dataset of each, by name."""
        return self.samples.draws or {expert.label: expert.dataset for expert in self.experts}

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe file.

        Args:
            path: The YAML file.
            overrides: `key.path=value` strings applied to it; a number in the path picks a list's
                item (`experts.0.revision=main`) and the value is read as YAML.

        Returns:
            The recipe, defaults filled in.

        Raises:
            InputError: If the file cannot be read, is not YAML, or is not a valid recipe.
        """
        try:
            data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        except OSError as error:
            raise InputError(
                f"cannot read the recipe {path}: {error.strerror}; give the path of a YAML file"
            ) from error
        except _GivenTwice as error:
            raise InputError(f"{path}: {error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise InputError(f"{path} holds no recipe: expected keys such as `experts: [...]`")
        for override in overrides:
            _apply(data, override)
        return cls.from_dict(data, source=str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "recipe") -> "Recipe":
        """Validate a recipe held as plain data.

        Args:
            data: The recipe's keys.
            source: What error messages call it.

        Returns:
            The recipe, defaults filled in.

        Raises:
            InputError: If a key is unknown, missing or has a bad value; all are listed.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{source}: {'; '.join(_sentences(error, data))}") from error

    def override(self, overrides: Sequence[str]) -> "Recipe":
        """Return the recipe with `key.path=value` changes, validated again.

        Args:
            overrides: As for `from_yaml`.

        Returns:
            The changed recipe.

        Raises:
            InputError: If a change is not of that form, or the recipe is no longer valid.
        """
        data = self.dump()
        for override in overrides:
            _apply(data, override)
        return Recipe.from_dict(data)

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain data, defaults included, absent values left out."""
        return self.model_dump(mode="json", exclude_none=True)


class _GivenTwice(yaml.YAMLError):
    """A key stands twice in one mapping."""


class _Loader(yaml.SafeLoader):
    """Plain data alone, and no key twice: YAML forbids it, the parser takes the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            first = lines.get((key.tag, key.value))
            if first is not None:
                where = f"line {line}" if first == line else f"lines {first} and {line}"
                raise _GivenTwice(f"the key '{key.value}' is given twice, in {where}: keep one")
            lines[key.tag, key.value] = line
        return node


def _did_you_mean(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else ""


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in nested plain data."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"override '{override}' is not of the form key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override '{override}': '{text}' is not a YAML value") from error
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _item(node, part, override)
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"override '{override}': '{parents[-1]}' holds a value, not keys")


def _item(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise InputError(
                f"override '{override}': '{part}' is not a position in a list of {len(node)}, "
                "counted from 0"
            )
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise InputError(f"override '{override}': '{part}' lies below a value, not below keys")


def _sentences(error: ValidationError, data: Any) -> Iterator[str]:
    """Turn pydantic's findings into sentences that name the key and the way out."""
    findings = error.errors()
    inner = {loc[:n] for loc in (finding["loc"] for finding in findings) for n in range(len(loc))}
    values: dict[str, tuple[list[str], Any]] = {}
    for finding in findings:
        loc, kind = finding["loc"], finding["type"]
        if kind == "extra_forbidden":
            place = _place(loc[:-1], data, last=str(loc[-1]))
            known = _keys_beside(loc)
            hint = _did_you_mean(str(loc[-1]), known) or f"; valid keys are {', '.join(known)}"
            yield f"unknown key '{place}'{hint}"
        elif kind == "missing":
            yield f"the key '{_place(loc[:-1], data, last=str(loc[-1]))}' is missing"
        elif kind == "value_error":
            yield str(finding["ctx"]["error"])
        elif not (kind == "too_short" and loc in inner):
            # A list counts as too short, too, when one of its items is wrong. A value that fits
            # no member of a union is reported once for each.
            expected, _ = values.setdefault(_place(loc, data), ([], finding["input"]))
            expected.append(_expected(finding))
    for place, (expected, got) in values.items():
        which = f"'{place}'" if place else "the whole"
        yield f"{which}: expected {' or '.join(expected)}, got {got!r}"


def _expected(finding: ErrorDetails) -> str:
    """Say what a value should have been, in the words of a YAML file's reader."""
    limits = finding.get("ctx", {})
    match finding["type"]:
        case "model_type" | "dict_type":
            return "keys with values"
        case "tuple_type":
            return "a list"
        case "string_type" | "invalid_key":
            return "text (put it in quotes)"
        case "int_type":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "too_short":
            return f"{limits['min_length']} or more entries"
        case "greater_than_equal":
            return f"at least {limits['ge']:g}"
        case "less_than":
            return f"less than {limits['lt']:g}"
        case "greater_than":
            return f"more than {limits['gt']:g}"
        case "less_than_equal":
            return f"at most {limits['le']:g}"
    return finding["msg"].removeprefix("Input should be ")


def _place(loc: tuple[int | str, ...], data: Any, last: str | None = None) -> str:
    """The path of a finding in the user's own keys, without pydantic's union tags."""
    parts: list[str] = []
    node = data
    for part in loc:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            continue
        parts.append(str(part))
    return ".".join(parts if last is None else [*parts, last])


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the block in which an unknown key stands."""
    blocks: dict[str, type[_Block]] = {
        "experts": ExpertBlock,
        "datasets": DatasetBlock,
        "samples": SamplesBlock,
        "fisher": FisherBlock,
        "task_arithmetic": TaskArithmeticBlock,
        "regmean": RegMeanBlock,
        "distillation": DistillationBlock,
        "refine": RefineBlock,
        "augment": AugmentBlock,
        "compare": CompareBlock,
        "coders": Contender,
        "evaluation": EvaluationBlock,
        "hub": HubBlock,
    }
    named = [blocks[str(part)] for part in loc[:-1] if part in blocks]
    return list((named[-1] if named else Recipe).model_fields)
