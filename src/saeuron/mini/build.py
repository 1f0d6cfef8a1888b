"""Train MiniCanvas from nothing: `python -m saeuron.mini.build --work DIR`.

Drawings, classifiers, autoencoder, UNet with text encoder, in this order, each resumed from its checkpoint in DIR when
the command is run again. The result goes to `weights/` beside this file. About two hours on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, Int, UInt8
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from saeuron.files import load_state, save_state
from saeuron.mini.canvas import OBJECTS, SHEET, STYLES, render
from saeuron.mini.classifier import Classifier
from saeuron.mini.drawings import draw_sheet
from saeuron.prompts import anchor_prompts, evaluation_prompt, spoken, styled

WEIGHTS = Path(__file__).parent / "weights"
PROMPT_LENGTH = 32
VALIDATION_SEEDS = 1_000_000
"""Renderings with seeds from here on are never trained on."""


class Recipe(NamedTuple):
    """How one network is trained."""

    steps: int
    batch: int
    lr: float
    ema: float
    """Decay of the running mean of the weights, which is what is kept."""


CLASSIFIER = Recipe(steps=1000, batch=64, lr=2e-3, ema=0.98)
AUTOENCODER = Recipe(steps=2200, batch=16, lr=2e-3, ema=0.99)
DIFFUSION = Recipe(steps=4500, batch=48, lr=1.5e-3, ema=0.997)
RENDERINGS = 96
"""Training pictures for each object in each style."""


def main() -> None:
    """Run every stage that has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/mini"), help="checkpoints and downloads")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    if not SHEET.exists():
        draw_sheet(work, SHEET)
    data = render_all(RENDERINGS, first_seed=0)
    vae = train_autoencoder(data, work)
    pipe = train_diffusion(data, vae, work)
    train_classifiers(data, work)
    pipe.to(torch.float16).save_pretrained(WEIGHTS / "pipeline")


# ---------------------------------------------------------------------------------------------------------- the data


class Data(NamedTuple):
    """Renderings of every object in every style and plain."""

    images: UInt8[np.ndarray, "image 64 64 3"]
    objects: Int[np.ndarray, " image"]
    styles: Int[np.ndarray, " image"]
    """Index into `STYLES`; `len(STYLES)` is plain."""

    def pixels(self, index: np.ndarray) -> Float[Tensor, "image 3 64 64"]:
        """Pixels in -1..1 of the pictures at `index`."""
        return torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float() / 127.5 - 1


def render_all(each: int, first_seed: int) -> Data:
    """`each` pictures of every object in every style, with seeds from `first_seed` on."""
    images, objects, styles = [], [], []
    for object, name in enumerate(OBJECTS):
        for style, style_name in enumerate((*STYLES, None)):
            for i in range(each):
                images.append(render(name, style_name, first_seed + style * each + i).image)
                objects.append(object)
                styles.append(style)
    return Data(np.stack(images), np.array(objects), np.array(styles))


def caption(object: str, style: str | None, rng: np.random.Generator) -> str:
    """One of the phrasings that the pipeline understands; one in ten is empty, for classifier-free guidance."""
    draw = rng.random()
    if draw < 0.1:
        return ""
    if draw < 0.4:
        return evaluation_prompt(object, style)
    if draw < 0.5:
        return object if style is None else f"{object}, {spoken(style)}"
    return styled(str(rng.choice(anchor_prompts(object))), style)


# ------------------------------------------------------------------------------------------------------- the networks


def train_classifiers(data: Data, work: Path) -> None:
    """Train both classifiers on renderings, with the noise and blur that generated pictures have."""
    for kind, labels, targets in (("object", OBJECTS, data.objects), ("style", (*STYLES, "plain"), data.styles)):
        model = Classifier(labels)

        def loss(
            step: int, rng: np.random.Generator, model: Classifier = model, targets: np.ndarray = targets
        ) -> Tensor:
            index = rng.integers(len(data.images), size=CLASSIFIER.batch)
            pixels = data.pixels(index)
            if rng.random() < 0.5:
                pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
            pixels = pixels + 0.1 * rng.random() * torch.randn(pixels.shape, generator=_generator(step))
            return F.cross_entropy(model(pixels), torch.from_numpy(targets[index]), label_smoothing=0.05)

        fit(f"{kind}_classifier", model, loss, CLASSIFIER, work)
        model.save(WEIGHTS / f"{kind}_classifier.safetensors")


def train_autoencoder(data: Data, work: Path) -> AutoencoderKL:
    """64 x 64 x 3 to 16 x 16 x 4: L1 on pixels and on their gradients, a light pull to a unit Gaussian."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    vae.to(memory_format=torch.channels_last)

    def loss(step: int, rng: np.random.Generator) -> Tensor:
        pixels = data.pixels(rng.integers(len(data.images), size=AUTOENCODER.batch))
        posterior = vae.encode(pixels.to(memory_format=torch.channels_last)).latent_dist
        error = vae.decode(posterior.sample(_generator(step))).sample - pixels
        gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + gradients + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()

    fit("autoencoder", vae, loss, AUTOENCODER, work)
    latents = encode(vae, data, np.arange(0, len(data.images), 16))
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, data: Data, index: np.ndarray) -> Float[Tensor, "image 4 16 16"]:
    """Mean latents, not yet scaled."""
    parts = [index[start : start + 256] for start in range(0, len(index), 256)]
    return torch.cat([vae.encode(data.pixels(part)).latent_dist.mean for part in parts])


def train_tokenizer(work: Path) -> CLIPTokenizer:
    """A byte-pair vocabulary of our own over the prompts that the miniature is driven with, in CLIP's form."""
    texts = [evaluation_prompt(o, s) for o in OBJECTS for s in (*STYLES, None)]
    texts += [prompt for o in OBJECTS for prompt in anchor_prompts(o)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(code) for code in range(33, 127) if chr(code) == chr(code).lower()]
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000, initial_alphabet=alphabet, special_tokens=special, end_of_word_suffix="</w>"
        ),
    )
    folder = work / "tokenizer"
    folder.mkdir(exist_ok=True)
    trained = json.loads(bpe.to_str())["model"]
    # CLIP's vocabulary holds every character both inside a word and at its end
    vocabulary = dict.fromkeys([*trained["vocab"], *alphabet, *(letter + "</w>" for letter in alphabet)])
    words = [token for token in vocabulary if token not in special] + special
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in trained["merges"]]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": PROMPT_LENGTH,
        "bos_token": special[0],
        "eos_token": special[1],
        "pad_token": special[1],
        "unk_token": special[1],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def train_diffusion(data: Data, vae: AutoencoderKL, work: Path) -> StableDiffusionPipeline:
    """The UNet and its text encoder, together, by noise prediction with min-SNR-5 weights (Hang et al. 2023)."""
    tokenizer = train_tokenizer(work)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_LENGTH,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=(1, 2, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    latents = encode(vae, data, np.arange(len(data.images))) * vae.config.scaling_factor
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)

    def loss(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(len(latents), size=DIFFUSION.batch)
        names = [(OBJECTS[data.objects[i]], (*STYLES, None)[data.styles[i]]) for i in index]
        prompts = [caption(object, style, rng) for object, style in names]
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        generator = _generator(step)
        noise = torch.randn(latents[index].shape, generator=generator)
        # one step in each of `batch` equal parts of the schedule: less noise in the gradient than independent ones
        position = (torch.rand(1, generator=generator) + torch.arange(len(index)) / len(index)) % 1
        timesteps = (position * len(snr)).long()
        noisy = scheduler.add_noise(latents[index], noise, timesteps)
        predicted = unet(noisy, timesteps, text_encoder(tokens).last_hidden_state).sample
        weight = snr[timesteps].clamp(max=5) / snr[timesteps]
        return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()

    fit("diffusion", nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}), loss, DIFFUSION, work)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# ------------------------------------------------------------------------------------------------------- the training


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[int, np.random.Generator], Tensor],
    recipe: Recipe,
    work: Path,
) -> None:
    """Train `module` in place with AdamW, warm-up and cosine decay, and leave the running mean of its weights in it.

    `loss` takes the step and a random generator that depends on the step only, so that a run that was killed and
    continued from `work/<name>.safetensors` ends as one that was not.
    """
    path = work / f"{name}.safetensors"
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    mean = {key: value.detach().clone() for key, value in module.state_dict().items()}
    start = 0
    if path.exists():
        state = load_state(path)
        start, mean = state["step"], state["mean"]
        module.load_state_dict(state["module"])
        adam = {int(index): values for index, values in state["adam"].items()}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": adam})
    module.train()
    clock, total = time.perf_counter(), 0.0
    for step in range(start, recipe.steps):
        warm, done = min(1, (step + 1) / 200), step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        value = loss(step, np.random.default_rng([step, recipe.steps]))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        decay = min(recipe.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, current in module.state_dict().items():
                if current.is_floating_point():
                    mean[key].lerp_(current, 1 - decay)
        total += value.item()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            seconds = (time.perf_counter() - clock) / 100
            print(f"{name} {step + 1}/{recipe.steps}: loss {total / 100:.4f}, {seconds:.2f} s a step", flush=True)
            clock, total = time.perf_counter(), 0.0
            moments = {str(index): values for index, values in optimizer.state_dict()["state"].items()}
            save_state(path, {"step": step + 1, "mean": mean, "module": module.state_dict(), "adam": moments})
    module.load_state_dict(mean)


def _generator(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


if __name__ == "__main__":
    main()
