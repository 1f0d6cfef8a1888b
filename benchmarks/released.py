"""The released algorithm, written anew from its description: everything dense, every gradient autograd's.

The slow side of the benchmarks, with the same numbers out (AuxK and the error term as published, so that they are).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saeuron.sae import SparseAutoencoder


def loss(sae: SparseAutoencoder, x: Tensor, dead: Tensor, auxk_alpha: float = 1 / 32) -> Tensor:
    """The training loss: one flat top-k over the batch, a dense code, dense decodes."""
    config = sae.config
    pre_acts = F.linear(x - sae.b_dec, sae.encoder.weight, sae.encoder.bias).relu()
    values, place = pre_acts.flatten().topk(config.k * len(x), sorted=False)
    code = torch.zeros_like(pre_acts).flatten().scatter(0, place, values).view_as(pre_acts)
    x_hat = code @ sae.W_dec + sae.b_dec
    variance = (x - x.mean(0)).square().sum()
    total = (x - x_hat).square().sum() / variance
    n_dead, half = int(dead.sum()), config.d_in // 2
    if n_dead:
        values, place = torch.where(dead, pre_acts, -torch.inf).topk(min(half, n_dead), dim=1)
        aux_code = torch.zeros_like(pre_acts).scatter(1, place, values)
        residual = (x - x_hat).detach()
        auxk = (aux_code @ sae.W_dec - residual).square().sum() / variance
        total = total + auxk_alpha * min(n_dead / half, 1) * auxk
    return total


class Trainer:
    """The training step around it."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae.train().requires_grad_(True)
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=4e-4, eps=6.25e-10)
        self.silent = torch.zeros(sae.config.latents, dtype=torch.long)

    def step(self, x: Tensor, dead: Tensor) -> Tensor:
        """Forward, backward, clipping, projection, Adam, normalisation; returns the loss."""
        self.optimizer.zero_grad()
        total = loss(self.sae, x, dead)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        weight = self.sae.W_dec
        assert weight.grad is not None
        weight.grad -= (weight.grad * weight.data).sum(1, keepdim=True) * weight.data
        self.optimizer.step()
        weight.data /= weight.data.norm(dim=1, keepdim=True)
        return total.detach()


def hook(sae: SparseAutoencoder, tokens: Tensor, features: Tensor, gain: Tensor, threshold: Tensor) -> Tensor:
    """The edit: encode all latents, TopK into a dense code, change it, decode both codes, keep the error."""
    rows = tokens.flatten(0, -2)
    pre_acts = F.linear(rows - sae.b_dec, sae.encoder.weight, sae.encoder.bias).relu()
    values, place = pre_acts.topk(sae.config.k, dim=1)
    code = torch.zeros_like(pre_acts).scatter(1, place, values)
    x_hat = code @ sae.W_dec + sae.b_dec
    chosen = code[:, features]
    code[:, features] = torch.where(chosen > threshold, chosen * gain, chosen)
    return (code @ sae.W_dec + sae.b_dec + (rows - x_hat)).view_as(tokens)
