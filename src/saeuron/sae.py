"""The sparse autoencoder: its equations, its loss, and its files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saeuron.files import read_json, resolve_folder, write_folder, write_tensors
from saeuron.sparse import SparseCode, above, decode, decode_sparse, encode_sparse, topk

Selection = Literal["topk", "threshold"]
"""How latents are chosen at inference: the k largest of each vector, or all above the stored threshold."""


def as_selection(name: str) -> Selection:
    """The selection of that name. Raises ValueError for an unknown one."""
    if name not in ("topk", "threshold"):
        raise ValueError(f"unknown selection {name!r}; expected 'topk' or 'threshold'")
    return "topk" if name == "topk" else "threshold"


CHUNK_BYTES = 64 * 2**20
"""Largest matrix of all latents that an edit makes at once."""


@dataclass(frozen=True)
class SaeConfig:
    """What shapes an SAE. The names are those of the released `cfg.json`."""

    d_in: int
    """Width of the activations."""
    expansion_factor: int = 16
    """Latents for each input dimension, when `num_latents` is 0."""
    num_latents: int = 0
    """Number of latents; 0 means `expansion_factor * d_in`."""
    k: int = 32
    """Active latents for each vector; in training, on average over the batch."""
    batch_topk: bool = True
    """Train with BatchTopK rather than with TopK. Says nothing about inference."""

    def __post_init__(self) -> None:
        for name in ("d_in", "expansion_factor", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1 on")
        if self.num_latents < 0:
            raise ValueError(f"num_latents is {self.num_latents}; expected a whole number from 0 on")
        if self.k > self.latents:
            raise ValueError(f"k is {self.k}; expected at most the number of latents, {self.latents}")

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.num_latents or self.expansion_factor * self.d_in


class Loss(NamedTuple):
    """What `SparseAutoencoder.loss` returns: scalars, except `code`."""

    total: Float[Tensor, ""]
    """`fvu + auxk_alpha * auxk`; the only one to differentiate."""
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained."""
    auxk: Float[Tensor, ""]
    """Error of the dead latents' prediction of the residual, over the total variance; 0 when none is dead."""
    code: SparseCode
    """What was kept."""


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder (METHOD: section 2 of the paper).

        pre_acts = ReLU(W_enc (x - b_dec) + b_enc)      W_enc: [num_latents, d_in]
        z        = the selected entries of pre_acts     BatchTopK in training; TopK or a threshold at inference
        x_hat    = z W_dec + b_dec                      W_dec: [num_latents, d_in], unit rows

    `threshold` is the inference threshold, a running mean of the smallest value that BatchTopK kept (Bussmann et al.
    2024). It stays a float32 buffer whatever the dtype of the weights, and is 0 in an SAE that never learned one.
    """

    threshold: Float[Tensor, ""]

    def __init__(
        self,
        config: SaeConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        bound = 1 / math.sqrt(config.d_in)
        weight = torch.empty(config.latents, config.d_in)
        weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        self.encoder = nn.utils.skip_init(nn.Linear, config.d_in, config.latents, device=device, dtype=dtype)
        self.encoder.weight = nn.Parameter(weight.to(device, dtype))
        self.encoder.bias = nn.Parameter(torch.zeros(config.latents, device=device, dtype=dtype))
        self.W_dec = nn.Parameter(self.encoder.weight.detach().clone())
        self.b_dec = nn.Parameter(torch.zeros(config.d_in, device=device, dtype=dtype))
        self.register_buffer("threshold", torch.zeros((), device=device, dtype=torch.float32))
        self._fingerprint: str | None = None
        self.normalize_decoder()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def selection(self) -> Selection:
        """The selection that suits this SAE: its threshold if it has learned one, TopK otherwise."""
        return "threshold" if self.threshold > 0 else "topk"

    # ------------------------------------------------------------------------------------------------------ inference

    def pre_acts(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """`ReLU(W_enc (x - b_dec) + b_enc)`, in the dtype of the weights."""
        return self.encoder(x.to(self.W_dec.dtype) - self.b_dec).relu()

    def encode(self, x: Float[Tensor, "row d_in"], selection: Selection = "topk") -> SparseCode:
        """The active latents of each vector, selected row by row whatever the config says of training.

        Raises ValueError for "threshold" when this SAE has none.
        """
        pre_acts = self.pre_acts(x)
        if as_selection(selection) == "topk":
            return topk(pre_acts, self.config.k)
        self._require_threshold()
        return above(pre_acts, self.threshold)

    def activations_of(
        self,
        x: Float[Tensor, "*batch d_in"],
        features: Int[Tensor, " feature"],
        selection: Selection = "topk",
        above: Float[Tensor, " feature"] | None = None,
    ) -> Float[Tensor, "*batch feature"]:
        """Activations of some latents, 0 where they are not selected; equal to those columns of the dense code.

        With `above`, also 0 where they do not exceed it. Only these latents are computed; whether TopK would select
        them is looked up for the vectors in which one of them counts, so that a vector without any costs nothing more.
        Among equal values at the k-th place, TopK keeps some and this keeps all. Differentiable in `x`.
        """
        rows = x.flatten(0, -2).to(self.W_dec.dtype) - self.b_dec
        weight, bias = self.encoder.weight[features], self.encoder.bias[features]
        chosen = nn.functional.linear(rows, weight, bias).relu()
        kept = chosen > (0 if above is None else above.clamp(min=0))
        if as_selection(selection) == "threshold":
            self._require_threshold()
            kept &= chosen > self.threshold
        else:
            self._keep_topk(kept, rows.detach(), features)
        return torch.where(kept, chosen, 0).unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def _keep_topk(
        self, kept: Bool[Tensor, "row feature"], rows: Float[Tensor, "row d_in"], features: Int[Tensor, " feature"]
    ) -> None:
        """Clear, in place, what is not among the k largest of its row; `rows` are without b_dec."""
        asked = kept.any(1).nonzero().squeeze(1)
        for part in asked.split(max(1, CHUNK_BYTES // (self.config.latents * rows.element_size()))):
            pre_acts = self.encoder(rows[part])
            kept[part] &= pre_acts[:, features] >= pre_acts.topk(self.config.k, dim=1).values[:, -1:]

    def decode(self, code: SparseCode) -> Float[Tensor, "row d_in"]:
        """`z W_dec + b_dec`."""
        return decode(code, self.W_dec) + self.b_dec

    def _require_threshold(self) -> None:
        if not self.threshold > 0:
            raise ValueError("selection 'threshold' needs an SAE that has learned a threshold; this one takes 'topk'")

    # ------------------------------------------------------------------------------------------------------- training

    def loss(
        self,
        x: Float[Tensor, "row d_in"],
        dead: Int[Tensor, " dead"] | None = None,
        auxk_alpha: float = 1 / 32,
        *,
        bound: Float[Tensor, ""] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Loss:
        """FVU + auxk_alpha AuxK, both float32 (float64 for a float64 SAE).

            FVU  = sum |x_hat - x|^2 / sum |x - mean(x)|^2
            AuxK = min(n_dead / (d_in / 2), 1) sum |e_hat - (x - x_hat)|^2 / sum |x - mean(x)|^2    (Gao et al. 2024)

        e_hat is decoded, without b_dec, from the min(d_in / 2, n_dead) largest dead latents of each vector; the
        residual that it predicts is detached. `dead` lists the latents that have not fired for long. `bound` is what
        most kept values are expected to exceed (see `batch_topk`), `dtype` that of the encoder's product.
        """
        config = self.config
        centred = x.to(self.W_dec.dtype) - self.b_dec
        weight, bias = self.encoder.weight, self.encoder.bias
        code, aux = encode_sparse(
            centred, weight, bias, config.k, batch=config.batch_topk, bound=bound, dead=dead, dtype=dtype
        )
        x = _at_least_float32(x)
        x_hat = _at_least_float32(decode_sparse(code, self.W_dec) + self.b_dec)
        residual = x - x_hat
        variance = (x - x.mean(0)).square().sum()
        fvu = residual.square().sum() / variance
        auxk = fvu.new_zeros(())
        if dead is not None and len(dead):
            half = config.d_in // 2
            if len(dead) > half:
                values, place = aux.topk(half, dim=1)
                aux = torch.zeros_like(aux).scatter(1, place, values)
            e_hat = _at_least_float32(aux @ self.W_dec[dead])
            auxk = min(len(dead) / half, 1) * (e_hat - residual.detach()).square().sum() / variance
        return Loss(fvu + auxk_alpha * auxk, fvu, auxk, code)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Scale the rows of W_dec to unit length."""
        norm = torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True)
        self.W_dec.div_(norm.clamp(min=torch.finfo(norm.dtype).tiny))
        self.changed()

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Remove from W_dec's gradient its component along each (unit) row, which normalising would undo."""
        gradient = self.W_dec.grad
        if gradient is not None:
            along = torch.linalg.vecdot(gradient, self.W_dec)
            gradient.addcmul_(along[:, None], self.W_dec, value=-1)

    # ---------------------------------------------------------------------------------------------------------- files

    def changed(self) -> None:
        """To be called by whoever writes to the weights: the fingerprint is computed anew."""
        self._fingerprint = None

    def fingerprint(self) -> str:
        """16 hex digits that tell this SAE from others, the same in every dtype and on every device it is loaded to."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{self.config.d_in} {self.config.latents} {self.config.k}".encode())
            for tensor in (self.encoder.weight, self.encoder.bias, self.W_dec, self.b_dec):
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def save_pretrained(
        self, folder: Path | str, hookpoint: str | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        """Write `cfg.json` and `sae.safetensors` to `folder`, or to `folder/hookpoint`, in the released layout.

        With `dtype` the weights are rounded; what is read back then is another SAE, by its fingerprint.
        """
        folder = Path(folder) / hookpoint if hookpoint else Path(folder)
        config = dataclasses.asdict(self.config) | {
            "num_latents": self.config.latents,
            "normalize_decoder": True,
            "sample_topk": False,
            "input_unit_norm": False,
            "multi_topk": False,
            "threshold": self.threshold.item(),
        }
        weights = {name: value.detach().to("cpu", dtype or value.dtype) for name, value in self.named_parameters()}
        with write_folder(folder) as new:
            write_tensors(new / "sae.safetensors", weights)
            (new / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        hookpoint: str | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> SparseAutoencoder:
        """Read an SAE from a folder or from the hub: `name` itself, or its folder for `hookpoint`.

        Raises ValueError, naming the file, for one that is missing, damaged, no SAE of this layout, or in a folder
        named for another hookpoint.
        """
        patterns = None if hookpoint is None else [f"{hookpoint}/*", f"{hookpoint.partition('.')[2]}/*"]
        folder = _sae_folder(resolve_folder(name, revision=revision, allow_patterns=patterns), hookpoint)
        config, threshold = _read_config(folder / "cfg.json")
        weights = _read_weights(folder / "sae.safetensors", config)
        # everything was checked against the file's header, so the memory that this takes is the file's own size
        sae = cls(config, dtype=weights["W_dec"].dtype)
        sae.load_state_dict(weights, strict=False)
        sae.threshold.fill_(threshold)
        sae.fingerprint()  # of the weights as they are in the file, kept when they are cast
        sae.to(device, dtype)
        return sae.eval().requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseAutoencoder:
        threshold = self.threshold
        super()._apply(fn, recurse)
        self.threshold = threshold.to(self.W_dec.device)
        return self


def geometric_median(
    points: Float[Tensor, "point d"], *, steps: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d"]:
    """The point with the least total distance to `points`, in float32 or wider, by Weiszfeld's iteration.

    Safe where the guess meets a point (Vardi and Zhang 2000): that point's infinite weight is replaced by the pull
    that it can at most exert.
    """
    points = _at_least_float32(points)
    guess = points.mean(0)
    scale = (points - guess).norm(dim=1).mean()
    for _ in range(steps):
        difference = points - guess
        distance = difference.norm(dim=1, keepdim=True)
        apart = distance > 1e-7 * scale
        weight = torch.where(apart, 1 / distance.clamp(min=torch.finfo(points.dtype).tiny), 0)
        if not weight.any():
            return guess
        pull = (weight * difference).sum(0)
        strength, here = pull.norm(), (~apart).sum()
        if strength <= here:
            return guess
        move = (1 - here / strength) * pull / weight.sum()
        guess = guess + move
        if move.norm() <= tolerance * scale:
            break
    return guess


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _sae_folder(folder: Path, hookpoint: str | None) -> Path:
    """The folder that holds `cfg.json`: this one, or the one for `hookpoint`, with or without its component's name."""
    here = (folder / "cfg.json").is_file()
    found = sorted(path.parent.name for path in folder.glob("*/cfg.json"))
    if hookpoint is not None:
        names = [name for name in (hookpoint, hookpoint.partition(".")[2]) if name]
        for name in names:
            if (folder / name / "cfg.json").is_file():
                return folder / name
        own = folder.resolve().name
        if not here or ("_block" in own and own not in names):
            listed = ", ".join(found) or (f"one for {own}" if here else "none")
            raise ValueError(f"no SAE for hookpoint {hookpoint!r} in '{folder}'; it has: {listed}")
    if here:
        return folder
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise ValueError(f"'{folder}' has several SAEs; name one of the hookpoints: {', '.join(found)}")
    raise ValueError(f"no SAE in '{folder}': expected cfg.json and sae.safetensors there or in a folder per hookpoint")


def _read_config(path: Path) -> tuple[SaeConfig, float]:
    """The config and the threshold; unknown keys are the business of other versions and are passed over."""
    values = read_json(path)
    known = {field.name: field.type for field in dataclasses.fields(SaeConfig)}
    given = {name: value for name, value in values.items() if name in known}
    for name, value in given.items():
        wanted = bool if known[name] == "bool" else int
        if type(value) is not wanted:
            raise ValueError(f"'{path}': {name} is {value!r}; expected a {wanted.__name__}")
    if "d_in" not in given:
        raise ValueError(f"'{path}': no d_in; expected the config of an SAE")
    if values.get("input_unit_norm") or values.get("sample_topk"):
        raise ValueError(f"'{path}': input_unit_norm and sample_topk are not supported; expected both to be false")
    threshold = values.get("threshold", 0.0)
    if not isinstance(threshold, int | float) or not math.isfinite(threshold) or threshold < 0:
        raise ValueError(f"'{path}': threshold is {threshold!r}; expected a number from 0 on")
    try:
        return SaeConfig(**given), float(threshold)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None


def _read_weights(path: Path, config: SaeConfig) -> dict[str, Tensor]:
    """The four tensors, after their names and shapes were checked in the header."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (config.latents, config.d_in),
        "encoder.bias": (config.latents,),
        "W_dec": (config.latents, config.d_in),
        "b_dec": (config.d_in,),
    }
    if not path.is_file():
        raise ValueError(f"no file '{path}'")
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if missing := sorted(set(shapes) - names):
                raise ValueError(f"'{path}' has no {', '.join(missing)}; expected the weights of an SAE")
            for name, shape in shapes.items():
                if (found := tuple(file.get_slice(name).get_shape())) != shape:
                    raise ValueError(f"'{path}': {name} has shape {found}; cfg.json makes it {shape}")
            weights = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise ValueError(f"'{path}' is not a safetensors file or is damaged: {error}") from None
    for name, value in weights.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"'{path}': {name} holds values that are not finite numbers")
    return weights
