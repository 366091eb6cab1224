"""Sums of products of densities that are given by their logarithms: a backend of opt_einsum that `torch.func.vmap` can map."""

from __future__ import annotations

import torch
from pyro.ops.einsum.util import Tensordot
from torch import Tensor

__all__ = ["einsum", "tensordot", "transpose"]


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """log Σ exp over the indices that the output does not have. Each operand is shifted by its maximum over them."""
    inputs, output = equation.split("->")
    if inputs == output:
        return operands[0].clone()
    shifts, scaled = [], []
    for indices, operand in zip(inputs.split(","), operands, strict=True):
        summed = [i for i, index in enumerate(indices) if index not in output]
        shift = operand.amax(summed, keepdim=True) if summed else operand
        shift = shift.clamp(min=torch.finfo(shift.dtype).min)  # −inf − (−inf) would be NaN
        scaled.append((operand - shift).exp())
        kept = [index for index in indices if index in output]
        shift = shift.reshape([operand.shape[i] for i, index in enumerate(indices) if index in output])
        shifts.append(_along(shift, kept, output))
    result = torch.einsum(equation, *scaled).log()
    for shift in shifts:
        result = result + shift
    return result


def transpose(operand: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The operand with its axes in another order."""
    return operand.permute(axes)


def _along(value: Tensor, indices: list[str], output: str) -> Tensor:
    """`value` with its axes in the order of the output, and axes of length 1 for the indices that it lacks."""
    value = value.permute([indices.index(index) for index in output if index in indices])
    shape = iter(value.shape)
    return value.reshape([next(shape) if index in indices else 1 for index in output])


tensordot = Tensordot(einsum)
