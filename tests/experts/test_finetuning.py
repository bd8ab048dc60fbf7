"""Training and writing experts: against plain torch, and read back by timm."""

from pathlib import Path

import pytest
import timm
import torch
from builders import SIZED, timm_model
from torch import Tensor, nn

from coin_hf.experts.finetuning import fit, freeze_batch_norm, write_timm_expert

X = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 10


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.arange(12).roll(epoch)
    return [(X[rows], Y[rows]) for rows in order.split(4)]


def test_fit_is_adamw_on_cross_entropy() -> None:
    model, plain = timm_model(0), timm_model(0)
    told, losses = list[tuple[int, float]](), list[float]()
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    fit(
        model, batches, epochs=2, batches=3, title="test",
        on_epoch=lambda epoch, loss: told.append((epoch, loss)), **settings,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(plain.parameters(), **settings)
    for epoch in range(2):
        for x, y in batches(epoch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(x), y)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
    assert [epoch for epoch, _ in told] == [1, 2]
    expected = [sum(losses[:3]) / 3, sum(losses[3:]) / 3]
    assert [loss for _, loss in told] == pytest.approx(expected, rel=1e-5)
    for (name, value), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


def test_frozen_batch_norm_stays_while_all_else_is_trained() -> None:
    model = timm_model(0)
    kinds = [type(module) for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    freeze_batch_norm(model)
    assert model.training
    fit(model, batches, epochs=1, batches=3, lr=1e-2, weight_decay=0.1, title="test")
    assert [type(module) for module in model.modules()] == kinds  # nothing was swapped
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in module.state_dict()
    }
    assert norms
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in norms), name


def test_what_is_written_timm_reads(tmp_path: Path) -> None:
    model = timm_model(3)
    names = [f"class {i}" for i in range(10)]
    write_timm_expert(
        tmp_path / "expert",
        model,
        "test_resnet",
        label_names=names,
        pretrained_cfg=SIZED,
        card="# card\n",
    )
    read = timm.create_model(f"local-dir:{tmp_path / 'expert'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(read(X), model(X))
    assert list(read.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5]
    assert read.pretrained_cfg["label_names"] == names
    assert (tmp_path / "expert" / "README.md").read_text() == "# card\n"
