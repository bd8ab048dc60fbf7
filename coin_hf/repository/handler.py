"""Serve one network of a coded repository on Inference Endpoints, without coin-hf.

An endpoint serves one network. The environment variable COIN_NETWORK of the endpoint says which:
`coded` (the default), `coded-1`, ..., or an expert's name in coin.json, whose own repository is
then loaded at its recorded revision. `coin-hf serve --backend remote` decodes from such endpoints.

A request is {"inputs": an image or a text, "parameters": {"top_k": int, "function_to_apply":
"softmax" | "sigmoid" | "none"}}; the answer is [{"label": str, "score": float}], the best first.
"""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image, ImageOps
from torch import nn

FILES = ["*.json", "model*.safetensors", "adapter_model.safetensors", "*.txt", "*.model"]
"""What a network and its preprocessing or tokenizer consist of."""
LONGEST = 100_000
"""Largest `model_max_length` that is one: tokenizers without a limit declare 10^30."""


class EndpointHandler:
    """One network, with its preprocessing and the names of its classes."""

    def __init__(self, path: str = "") -> None:
        """Load the network.

        Args:
            path: The folder of the coded repository.

        Raises:
            ValueError: If the repository has no network of the name in COIN_NETWORK.
        """
        root, name = Path(path), os.environ.get("COIN_NETWORK", "coded")
        coin = _json(root / "coin.json")
        self.task = coin.get("task") or "image-classification"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        rows = _rows(root)
        count = len(coin["betas"]) if isinstance(coin["betas"][0], list) else 1
        coded = {
            f"coded-{c}" if c else "coded": root / (f"coded-{c}" if c else "") for c in range(count)
        }
        experts = {each["name"]: each for each in coin["experts"]}
        if name in coded:
            self.labels, folder, base = rows, coded[name], None
        elif name in experts:
            record = experts[name]
            order = (record.get("class_order") or {}).get("rows", range(len(rows)))
            named = any(row != f"LABEL_{k}" for k, row in enumerate(rows))
            self.labels = record.get("labels") or [
                rows[row] if named else f"LABEL_{k}" for k, row in enumerate(order)
            ]
            folder = _fetched(root, record["model"], record["revision"])
            base = record.get("base")
            base = base and _fetched(root, base, record["base_revision"])
        else:
            known = ", ".join([*experts, *coded])
            raise ValueError(f"COIN_NETWORK is '{name}', but the networks are named {known}")
        if self.task == "text-classification":
            self.model, self._inputs = _text_network(folder, base, len(self.labels))
        else:
            self.model, self._inputs = _image_network(folder, base, len(self.labels))
        self.model.float().eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, data: dict[str, Any]) -> Any:
        """Answer a request.

        Args:
            data: `inputs`, an image (PIL, bytes or base64) or a text, or a list of these; perhaps
                `parameters`.

        Returns:
            The classes with their scores, the best first; for a list of inputs a list of these.

        Raises:
            ValueError: If the request is of another form.
        """
        inputs = data["inputs"]
        parameters = dict(data.get("parameters") or {})
        top_k = parameters.pop("top_k", None)
        function = parameters.pop("function_to_apply", None) or "softmax"
        if parameters:
            raise ValueError(f"unknown parameter '{min(parameters)}'")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError("`top_k` must be a whole number from 1 on")
        if function not in ("softmax", "sigmoid", "none"):
            raise ValueError("`function_to_apply` must be one of softmax, sigmoid, none")
        found = [
            self._answer(each, function, top_k)
            for each in (inputs if isinstance(inputs, list) else [inputs])
        ]
        return found if isinstance(inputs, list) else found[0]

    def _answer(self, x: Any, function: str, top_k: int | None) -> list[dict[str, Any]]:
        if self.task == "text-classification" and not isinstance(x, str):
            raise ValueError("this model classifies texts: send `inputs` as a string")
        inputs = self._inputs(_image(x) if self.task == "image-classification" else x)
        if isinstance(inputs, torch.Tensor):
            output = self.model(inputs[None].to(self.device))
        else:
            output = self.model(
                **{k: torch.as_tensor(v)[None].to(self.device) for k, v in inputs.items()}
            )
        scores = (output if isinstance(output, torch.Tensor) else output.logits)[0].double().cpu()
        if function == "softmax":
            scores = scores.softmax(0)
        if function == "sigmoid":
            scores = scores.sigmoid()
        best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        return [{"label": self.labels[k], "score": scores[k].item()} for k in best]


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _fetched(root: Path, place: str, revision: str) -> Path:
    """Return the folder of an expert: beside the repository, or downloaded from the Hub."""
    if (root / place).is_dir():
        return root / place
    return Path(snapshot_download(place, revision=revision, allow_patterns=FILES))


def _is_timm(folder: Path) -> bool:
    """Say whether timm loads a network; transformers' wrapper of it has its own processor."""
    config = _json(folder / "config.json")
    return "architecture" in config and not (folder / "preprocessor_config.json").is_file()


def _rows(folder: Path) -> list[str]:
    """Return the class names of a coded model's logits."""
    config = _json(folder / "config.json")
    if _is_timm(folder):
        count = int(config["num_classes"])
        named = config.get("label_names") or {}
        named = dict(enumerate(named)) if isinstance(named, list) else named
        return [str(named.get(k, named.get(str(k), f"LABEL_{k}"))) for k in range(count)]
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [str(named.get(str(k), f"LABEL_{k}")) for k in range(len(named))]


def _image_network(folder: Path, base: Path | None, count: int) -> tuple[nn.Module, Any]:
    """Load an image classifier, and what makes its input of an image."""
    model: Any
    if base is None and _is_timm(folder):
        import timm
        from timm.data import create_transform, resolve_data_config

        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        settings = resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
        transform = create_transform(**settings, is_training=False)
        arguments = _json(folder / "config.json").get("model_args") or {}
        channels = arguments.get("in_chans") or model.pretrained_cfg["input_size"][0]
        return model, lambda image: transform(_moded(image, channels))
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = _transformers(AutoModelForImageClassification, folder, base, count)
    own = base is None or (folder / "preprocessor_config.json").is_file()
    processor: Any = AutoImageProcessor.from_pretrained(
        folder if own else base, trust_remote_code=False
    )
    channels = int(getattr(model.config, "num_channels", 3))

    def inputs(image: Image.Image) -> torch.Tensor:
        pixels = processor(images=_moded(image, channels), return_tensors="pt")["pixel_values"]
        return torch.as_tensor(pixels)[0]

    return model, inputs


def _text_network(folder: Path, base: Path | None, count: int) -> tuple[nn.Module, Any]:
    """Load a text classifier, and what makes its input of a text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = _transformers(AutoModelForSequenceClassification, folder, base, count)
    own = base is None or (folder / "tokenizer_config.json").is_file()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder if own else base, trust_remote_code=False)
    limits = [tokenizer.model_max_length, _positions(model)]
    longest = min(int(n) for n in limits if n is not None and 0 < n <= LONGEST)
    return model, lambda text: dict(
        tokenizer(text, truncation=True, max_length=longest, return_attention_mask=True)
    )


def _transformers(auto: Any, folder: Path, base: Path | None, count: int) -> Any:
    """Load a network of transformers, or an adapter merged into its base."""
    if base is None:
        return auto.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    from peft import PeftModel

    model = auto.from_pretrained(
        base,
        use_safetensors=True,
        trust_remote_code=False,
        num_labels=count,
        ignore_mismatched_sizes=True,
    )
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def _positions(model: Any) -> int | None:
    """Return how many positions a network has; RoBERTa's begin behind that of padding."""
    count = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return None
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            behind = module.padding_idx
            return count if behind is None else count - behind - 1
    return count


def _image(x: Any) -> Image.Image:
    """Return the image that a request holds: decoded already, as bytes, or in base64."""
    if isinstance(x, Image.Image):
        return x
    try:
        return Image.open(
            io.BytesIO(base64.b64decode(x, validate=True) if isinstance(x, str) else x)
        )
    except (OSError, TypeError, ValueError) as error:
        raise ValueError("`inputs` is no image: send a JPEG or PNG file, or its base64") from error


def _moded(image: Image.Image, channels: int) -> Image.Image:
    """Turn an image upright, scale 16 bits to 8, and give it the channels of the network."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        deep = np.asarray(upright).astype(np.float64)  # 0 ... 65535
        upright = Image.fromarray(np.round(deep / 257).astype(np.uint8))
    return upright.convert("RGB" if channels == 3 else "L")
