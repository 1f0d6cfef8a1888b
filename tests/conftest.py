"""What several test files need: shapes checked at run time, and a tiny random Stable Diffusion pipeline."""

from __future__ import annotations

import warnings
from typing import ClassVar

import jaxtyping

from tests import typecheck

# every annotation of a shape in the library is checked while the tests run
hook = jaxtyping.install_import_hook("saeuron", f"{typecheck.__name__}.check")
hook.__enter__()

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from saeuron import SaeConfig, SparseAutoencoder

HOOKPOINT = "unet.up_blocks.1.attentions.1"


class WordTokenizer:
    """As much of a tokenizer as a pipeline asks for: a number for each word, by its letters."""

    model_max_length = 8
    added_tokens_encoder: ClassVar[dict] = {}

    def tokenize(self, prompt):
        return prompt.split()

    def __call__(self, prompts, **kwargs):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        rows = [[sum(map(ord, word)) % 50 + 1 for word in prompt.split()][:8] for prompt in prompts]
        ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
        return type("Encoding", (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})()

    def batch_decode(self, ids):
        return [""] * len(ids)


@pytest.fixture(scope="session")
def tiny_pipe():
    """A random Stable Diffusion pipeline with MiniCanvas's hookpoints: 32 x 32 pixels, maps of 4 x 4, 32 wide."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        layers_per_block=(1, 2, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    text = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        eos_token_id=2,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.tokenizer = WordTokenizer()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_sae():
    """A random SAE that fits `tiny_pipe`, with a threshold."""
    sae = SparseAutoencoder(SaeConfig(d_in=32, num_latents=128, k=8), seed=1)
    sae.threshold.fill_(0.1)
    return sae.eval().requires_grad_(False)


warnings.filterwarnings("ignore", message=".*torchvision.*")
