"""The table of rules: torch function -> rule."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coin_hf.fisher.rules.convolution import convolution
from coin_hf.fisher.rules.elementwise import activation, addcmul, max_pool, prelu, scale, shift
from coin_hf.fisher.rules.linear import linear
from coin_hf.fisher.rules.norms import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from coin_hf.fisher.rules.sequence import attention, embedding, expand
from coin_hf.fisher.tape import Rule
from coin_hf.networks.linear_maps import READERS

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)

RULES: dict[Any, Rule] = {
    **{
        function: partial(convolution if function in CONVOLUTIONS else linear, function)
        for function in READERS
    },
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.rms_norm: rms_norm,
    torch.prelu: prelu,
    F.embedding: embedding,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), scale),
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), partial(shift, torch.add)
    ),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), partial(shift, torch.sub)),
    F.max_pool2d: max_pool,
    F.gelu: partial(activation, F.gelu),
    F.silu: partial(activation, F.silu),
    torch.addcmul: addcmul,
    **{
        function: partial(expand, function)
        for function in (Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.broadcast_to)
    },
    F.scaled_dot_product_attention: attention,
}
