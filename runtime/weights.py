# SPDX-License-Identifier: Apache-2.0
"""Gives weights whose widths aren't aligned a storage in which they are; values, shapes and names stay as they are."""

import torch
from torch import nn

from .graph_passes import HALF, aligned


def align_rows(module: nn.Module) -> None:
    """Lay the weights of linear layers out in storages with room up to aligned widths, in place.

    The matrix (1280, 3420) becomes a view of zeros (1280, 3424), the matrix (3420, 1280) one of (3424, 1280), its bias
    likewise: the parameter stays the same object with the same values, and what changes it in place changes it there. Its
    state dict is the same; a product can read it with its zeros, where it would have to be copied otherwise, in every
    call. A parameter whose storage anybody else holds is left alone, since they would no longer see the same memory.

    Args:
        module: Its linear layers on a GPU in half precision are laid out; all others are left alone.
    """
    for each in module.modules():
        if type(each) is not nn.Linear:
            continue
        size = each.weight.element_size()
        widths = tuple(aligned(length, size) for length in each.weight.shape)
        if widths == tuple(each.weight.shape):
            continue
        _give_room(each.weight, widths)
        if each.bias is not None:
            _give_room(each.bias, widths[:1])


def _give_room(parameter: torch.Tensor, shape: tuple[int, ...]) -> None:
    if type(parameter) is not nn.Parameter or not parameter.is_cuda or parameter.dtype not in HALF:
        return
    if shape == tuple(parameter.shape) or not parameter.is_contiguous() or not _is_alone(parameter):
        return
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        room = parameter.new_zeros(shape)
        view = room[tuple(slice(length) for length in parameter.shape)]
        view.copy_(parameter)
        parameter.data = view


def _is_alone(parameter: torch.Tensor) -> bool:
    """Whether no other tensor is known to lie in the parameter's storage."""
    storage = parameter.untyped_storage()
    if storage.nbytes() != parameter.numel() * parameter.element_size():
        return False
    # One reference is the tensor's, one is of the Python object here.
    count: int = torch._C._storage_Use_Count(storage._cdata)
    return count <= 2
