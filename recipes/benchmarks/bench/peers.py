"""Other packages' exact diagonals of J^T J on raw logits, in the configuration that means it.

That is the Gauss-Newton diagonal of a squared loss, or the Fisher of a Gaussian likelihood. Each
package is imported only when its way is prepared.
"""

# mypy: disable-error-code="import-not-found,import-untyped"

from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.ways import Run, Way


def backpack(model: nn.Module, case: Case) -> Run:
    """BackPACK's DiagGGNExact; the squared loss's Hessian is 2 I, hence the half."""
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact

    names = {id(value): name for name, value in model.named_parameters()}
    extended: Any = extend(model, use_converter=True).eval()
    loss = extend(nn.MSELoss(reduction="sum"))

    def chunk_sum(chunk: Tensor) -> dict[str, Tensor]:
        extended.zero_grad()
        logits = extended(chunk)
        with backpack(DiagGGNExact()):
            loss(logits, torch.zeros_like(logits)).backward()
        return {names[id(p)]: p.diag_ggn_exact / 2 for p in extended.parameters()}

    return _summed(chunk_sum, case.spec.peer_chunk)


def laplace_backpack(model: nn.Module, case: Case) -> Run:
    """laplace-torch on BackPACK, regression likelihood."""
    from backpack import extend
    from laplace.curvature import BackPackGGN

    names = {id(value): name for name, value in model.named_parameters()}
    extended: Any = extend(model, use_converter=True).eval()
    extended.output_size = case.classes
    backend = BackPackGGN(extended, "regression")
    order = {names[id(value)]: value for value in extended.parameters()}
    return _summed(_laplace_sum(backend, order, case, extended), case.spec.peer_chunk)


def laplace_curvlinops(model: nn.Module, case: Case) -> Run:
    """laplace-torch on curvlinops, which forms the dense Jacobian: one sample at a time."""
    from laplace.curvature import CurvlinopsGGN

    dense: Any = model
    dense.output_size = case.classes
    backend = CurvlinopsGGN(dense, "regression")
    return _summed(_laplace_sum(backend, dict(model.named_parameters()), case, model), 1)


def nngeometry(model: nn.Module, case: Case) -> Run:
    """PMatDiag of nngeometry, a mean over the loader's samples."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    layers = LayerCollection.from_model(model)
    modules, _ = layers.get_layerid_module_maps(model)
    order = dict(layers.named_parameters(modules))
    device = str(next(model.parameters()).device)

    def run(inputs: Tensor) -> dict[str, Tensor]:
        loader = DataLoader(TensorDataset(inputs), batch_size=case.spec.peer_chunk)
        matrix = FIM(
            model, loader, PMatDiag, variant="regression", layer_collection=layers, device=device
        )
        return _unflatten(matrix.get_diag(), order)

    return run


def asdfghjkl(model: nn.Module, case: Case) -> Run:
    """The exact Fisher of a squared loss by asdfghjkl, diagonal shape."""
    from asdl.fisher import FisherConfig, get_fisher_maker

    config = FisherConfig(
        fisher_type="fisher_exact", loss_type="mse", fisher_shapes=["diag"], data_size=1
    )
    maker = get_fisher_maker(model, config)

    def chunk_sum(chunk: Tensor) -> dict[str, Tensor]:
        maker.setup_model_call(model, chunk)
        maker.forward_and_backward()
        found = {
            f"{name}.{kind}": getattr(module.fisher.diag, kind, None)
            for name, module in model.named_modules()
            if getattr(module, "fisher", None) is not None
            for kind in ("weight", "bias")
        }
        return {name: value for name, value in found.items() if value is not None}

    return _summed(chunk_sum, case.spec.chunk)


def opacus(model: nn.Module, case: Case) -> Run:
    """Per-sample gradients of opacus, squared, a backward pass for each logit.

    Its hooks only work in training mode, which changes nothing in a network without BatchNorm
    whose dropout rates are 0; it refuses BatchNorm in either mode.
    """
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model.train(), loss_reduction="sum")

    def chunk_sum(chunk: Tensor) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        for k in range(case.classes):
            wrapped.zero_grad(set_to_none=True)
            wrapped(chunk)[:, k].sum().backward()
            for name, value in model.named_parameters():
                per_sample: Any = value
                sums[name] += per_sample.grad_sample.square().sum(0)
        return sums

    return _summed(chunk_sum, case.spec.peer_chunk)


def curvlinops(model: nn.Module, case: Case) -> Run:
    """What curvlinops by itself offers for a diagonal is random estimates."""
    import curvlinops

    offered = [name for name in curvlinops.__all__ if "diag" in name.lower()]
    raise NotImplementedError(f"no exact diagonal, only the estimates {', '.join(offered)}")


def _laplace_sum(backend: Any, order: dict[str, Any], case: Case, model: nn.Module) -> Any:
    """A backend's diagonal over a chunk, a sum over its samples, by parameter."""

    def chunk_sum(chunk: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        _, diagonal = backend.diag(chunk, chunk.new_zeros(len(chunk), case.classes))
        return _unflatten(diagonal, order)

    return chunk_sum


def _summed(chunk_sum: Any, size: int) -> Run:
    """Turn a sum over a chunk into the mean over all samples."""

    def run(inputs: Tensor) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for chunk in inputs.split(size):
            for name, value in chunk_sum(chunk).items():
                sums[name] = sums[name] + value if name in sums else value.detach().clone()
        return {name: total / len(inputs) for name, total in sums.items()}

    return run


def _unflatten(vector: Tensor, order: dict[str, Any]) -> dict[str, Tensor]:
    """Cut a vector into tensors of the parameters' shapes."""
    parts = vector.split([value.numel() for value in order.values()])
    return {
        name: part.view_as(value) for (name, value), part in zip(order.items(), parts, strict=True)
    }


PEERS = {
    "laplace-backpack": Way("laplace-torch (BackPACK)", laplace_backpack, "laplace-torch"),
    "backpack": Way("BackPACK DiagGGNExact", backpack, "backpack-for-pytorch"),
    "nngeometry": Way("nngeometry PMatDiag", nngeometry, "nngeometry"),
    "laplace-curvlinops": Way(
        "laplace-torch (curvlinops)", laplace_curvlinops, "laplace-torch", chunk=1
    ),
    "asdfghjkl": Way("asdfghjkl", asdfghjkl, "asdfghjkl", large=True),
    "opacus": Way("opacus per-sample gradients", opacus, "opacus"),
    "curvlinops": Way("curvlinops", curvlinops, "curvlinops-for-pytorch"),
}
