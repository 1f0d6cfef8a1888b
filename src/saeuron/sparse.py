"""Sparse codes: which latents of each vector are active and how strongly; how they are chosen and decoded.

First the obvious forms, whose every gradient is autograd's, then the ones that training uses: `encode_sparse` and
`decode_sparse` give the same values and gradients and do dense work in one place only, the encoder's product. What is
sparse stays so: a gradient of a weight is a sum over bags of rows, with the code's entries sorted by latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

SAMPLED_FROM = 2**20
"""Entries from which on a matrix is sampled before its largest ones are looked for."""


class SparseCode(NamedTuple):
    """The active latents of a batch of vectors, row after row, as in compressed sparse rows.

    Row `r` holds the entries `offsets[r]` to `offsets[r + 1]`; rows may have different lengths, and none at all.
    """

    values: Float[Tensor, " kept"]
    """Activations."""
    latent: Int[Tensor, " kept"]
    """Index of the latent of each value."""
    offsets: Int[Tensor, " row_and_one"]
    """Where each row starts, and the number of entries at the end."""

    def rows(self) -> Int[Tensor, " kept"]:
        """Row of each value."""
        lengths = self.offsets.diff()
        rows = torch.arange(len(lengths), device=lengths.device)
        return rows.repeat_interleave(lengths, output_size=len(self.values))

    def dense(self, num_latents: int) -> Float[Tensor, "row latent"]:
        """The same code with its zeros; differentiable in `values`."""
        dense = self.values.new_zeros(len(self.offsets) - 1, num_latents)
        return dense.index_put((self.rows(), self.latent), self.values)


def topk(pre_acts: Float[Tensor, "row latent"], k: int) -> SparseCode:
    """The `k` largest activations of every row, each if it is positive."""
    values, latent = pre_acts.topk(min(k, pre_acts.shape[1]), dim=1)
    kept = values > 0
    return SparseCode(values[kept], latent[kept], _offsets(kept.sum(1)))


def batch_topk(
    pre_acts: Float[Tensor, "row latent"], k: int, bound: Float[Tensor, ""] | float | None = None
) -> SparseCode:
    """The `k * rows` largest activations of the whole batch, each if it is positive (Bussmann et al. 2024).

    Exactly that many are kept when so many are positive; which of several equal values is kept is not defined. A
    `bound` that most of them exceed makes it faster and changes nothing: the search is among the values above it. When
    those are too few, or without one, a large matrix on the CPU is searched above a bound that a sample of it suggests.
    """
    count = min(k * pre_acts.shape[0], pre_acts.numel())
    flat = pre_acts.flatten()
    for lower in _lower_bounds(flat, count, bound):
        survivors = (flat > lower).nonzero().squeeze(1)
        if len(survivors) >= count:
            values, place = flat[survivors].topk(count, sorted=False)
            return _gather(pre_acts, survivors[place[values > 0]].sort().values)
    values, position = flat.topk(count, sorted=False)
    return _gather(pre_acts, position[values > 0].sort().values)


def _lower_bounds(
    flat: Float[Tensor, " entry"], count: int, bound: Float[Tensor, ""] | float | None
) -> Iterator[Float[Tensor, ""] | float]:
    """What the `count` largest entries may all exceed: the given bound, then one that twice as many should exceed."""
    if bound is not None:
        yield bound
    if flat.device.type == "cpu" and len(flat) >= SAMPLED_FROM:
        sample = flat[::64]
        yield sample.topk(min(count // 32 + 1, len(sample))).values[-1]


def above(pre_acts: Float[Tensor, "row latent"], threshold: Float[Tensor, ""] | float) -> SparseCode:
    """Every activation that is positive and above `threshold`."""
    mask: Bool[Tensor, "row latent"] = (pre_acts > threshold) & (pre_acts > 0)
    return _gather(pre_acts, mask.flatten().nonzero().squeeze(1))


def decode(code: SparseCode, weight: Float[Tensor, "latent d_in"]) -> Float[Tensor, "row d_in"]:
    """Sum of the rows of `weight` that each row's latents point at, times their values; zeros where a row is empty.

    Differentiable in `code.values` and in `weight`.
    """
    values = code.values.to(weight.dtype)
    return F.embedding_bag(
        code.latent, weight, code.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _gather(pre_acts: Float[Tensor, "row latent"], position: Int[Tensor, " kept"]) -> SparseCode:
    """The entries at ascending positions of the flattened matrix."""
    rows, latents = pre_acts.shape
    lengths = torch.bincount(position // latents, minlength=rows)
    return SparseCode(pre_acts.flatten()[position], position % latents, _offsets(lengths))


def _offsets(lengths: Int[Tensor, " row"]) -> Int[Tensor, " row_and_one"]:
    return F.pad(lengths.cumsum(0), (1, 0))


# --------------------------------------------------------------------------------------------------------- in training


def encode_sparse(
    x: Float[Tensor, "row d_in"],
    weight: Float[Tensor, "latent d_in"],
    bias: Float[Tensor, " latent"],
    k: int,
    *,
    batch: bool = True,
    bound: Float[Tensor, ""] | None = None,
    dead: Int[Tensor, " dead"] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[SparseCode, Float[Tensor, "row dead"]]:
    """`batch_topk(relu(x W^T + b), k)` (or `topk`), and the activations of the `dead` latents, dense.

    Differentiable in `x`, `weight` and `bias`. `dtype` is that of the product, the weights' own unless given.
    """
    none = torch.empty(0, dtype=torch.long, device=x.device)
    values, latent, offsets, aux = _Encode.apply(
        x, weight, bias, k, batch, bound, none if dead is None else dead, dtype
    )
    return SparseCode(values, latent, offsets), aux


def decode_sparse(code: SparseCode, weight: Float[Tensor, "latent d_in"]) -> Float[Tensor, "row d_in"]:
    """`decode(code, weight)`. Differentiable in `code.values` and in `weight`."""
    return _Decode.apply(code.values, weight, code.latent, code.offsets)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        k: int,
        batch: bool,
        bound: Tensor | None,
        dead: Tensor,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pre_acts = F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))  # not one more pass for the ReLU
        code = batch_topk(pre_acts, k, bound) if batch else topk(pre_acts, k)
        aux = pre_acts[:, dead].relu().to(x.dtype)
        values = code.values.to(x.dtype)
        ctx.save_for_backward(x, weight, code.latent, code.offsets, dead, aux)
        ctx.mark_non_differentiable(code.latent, code.offsets)
        return values, code.latent, code.offsets, aux

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _latent: Any, _offsets: Any, grad_aux: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, latent, offsets, dead, aux = ctx.saved_tensors
        code = SparseCode(grad, latent, offsets)
        grad_weight = _sum_by_latent(code, x, len(weight))
        grad_bias = grad.new_zeros(len(weight)).index_add_(0, latent, grad)
        grad_x = decode(code, weight) if ctx.needs_input_grad[0] else None
        if len(dead):
            grad_aux = torch.where(aux > 0, grad_aux, 0)
            grad_weight.index_add_(0, dead, grad_aux.T @ x)
            grad_bias.index_add_(0, dead, grad_aux.sum(0))
            if grad_x is not None:
                grad_x = grad_x + grad_aux @ weight[dead]
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, latent: Tensor, offsets: Tensor) -> Tensor:
        with torch.enable_grad():  # the gradient of a bag's sample weights is PyTorch's own: one dot product each
            values = values.detach().requires_grad_()
            decoded = decode(SparseCode(values, latent, offsets), weight.detach())
        ctx.values, ctx.decoded, ctx.latents = values, decoded, len(weight)
        ctx.save_for_backward(latent, offsets)
        return decoded.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        latent, offsets = ctx.saved_tensors
        (grad_values,) = torch.autograd.grad(ctx.decoded, ctx.values, grad, retain_graph=True)
        code = SparseCode(ctx.values.detach(), latent, offsets)
        return grad_values, _sum_by_latent(code, grad, ctx.latents), None, None


def _sum_by_latent(code: SparseCode, rows: Float[Tensor, "row d_in"], latents: int) -> Float[Tensor, "latent d_in"]:
    """`code.dense(latents).T @ rows`: for each latent, the sum of the rows that it is active in, times its values."""
    order = code.latent.argsort()
    lengths = torch.bincount(code.latent, minlength=latents)
    transposed = SparseCode(code.values[order], code.rows()[order], _offsets(lengths))
    return decode(transposed, rows)
