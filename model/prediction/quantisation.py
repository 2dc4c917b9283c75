"""Dynamic int8 quantisation of an encoder's Linear layers: a quarter of the memory, and faster on most CPUs.

Weights are quantised once with one scale a row (per channel), activations on the fly with one scale a tensor.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn


def quantise_linear(module: nn.Module) -> nn.Module:
    """Return a copy of the module, in eval mode, whose Linear layers compute in int8.

    Raises:
        ValueError: The module is on a GPU, or this build of torch has no dynamic quantisation.
    """
    devices = {parameter.device.type for parameter in module.parameters()}
    if devices - {"cpu"}:
        raise ValueError(f"int8 layers compute on the CPU, and the encoder is on {devices.pop()}; set device to cpu")
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise ValueError(
            f"torch {torch.__version__} has no dynamic quantisation any more; predict without it, or use torch 2.13"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, whose int8 is slower without a compiler
        quantised: nn.Module = quantize_dynamic(  # type: ignore[no-untyped-call]  # torch annotates it only in part
            module.eval(), {nn.Linear: per_channel_dynamic_qconfig}
        )
    return quantised
