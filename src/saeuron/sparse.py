"""Sparse codes: which latents of each vector are active and how strongly; how they are chosen and decoded.

The forms here are the obvious ones. They run on any device and every gradient is autograd's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


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


def batch_topk(pre_acts: Float[Tensor, "row latent"], k: int) -> SparseCode:
    """The `k * rows` largest activations of the whole batch, each if it is positive (Bussmann et al. 2024).

    Exactly that many are kept when so many are positive; which of several equal values is kept is not defined.
    """
    count = min(k * pre_acts.shape[0], pre_acts.numel())
    values, position = pre_acts.flatten().topk(count, sorted=False)
    position = position[values > 0].sort().values
    return _gather(pre_acts, position)


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
