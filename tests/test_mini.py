"""The bundled miniature: what it is, what it makes, and that it is small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from saeuron import Sampling, UnlearningPlan, mini, unlearned
from saeuron.canvas_run import CanvasRun
from saeuron.mini.build import VALIDATION_SEEDS
from saeuron.mini.canvas import SETS, drawings, render
from saeuron.prompts import evaluation_prompt


@pytest.fixture(scope="module")
def pipe():
    return mini.load()


@pytest.fixture(scope="module")
def run():
    return CanvasRun.load("mini")


def images(pipe, prompts, seed=188, output_type="pt"):
    seeds = [seed + i for i in range(len(prompts))]
    return Sampling(8, mini.GUIDANCE).call(pipe, prompts, seeds, output_type).images


def test_it_is_a_stock_pipeline(pipe):
    assert type(pipe) is StableDiffusionPipeline
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.scheduler)
    kinds = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer, DDIMScheduler)
    assert all(type(part) is kind for part, kind in zip(parts, kinds, strict=True))
    for block in (1, 2):
        assert pipe.unet.get_submodule(f"up_blocks.1.attentions.{block}")


def test_it_is_small():
    files = [path for path in mini.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6


def test_renderings_repeat_and_have_masks():
    one, two, other = render("Cats", "Rust", 5), render("Cats", "Rust", 5), render("Cats", "Rust", 6)
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (64, 64, 3)
    assert 0.1 < (one.mask > 0.5).mean() < 0.9
    assert len(drawings()) == len(mini.OBJECTS)
    assert all(len(row) == len(SETS) for row in drawings())


def test_the_classifiers_read_drawn_pictures():
    readers = mini.classifiers()
    pictures = [render(o, s, VALIDATION_SEEDS) for o in mini.OBJECTS for s in (*mini.STYLES, None)]
    shown = [Image.fromarray(picture.image) for picture in pictures]
    objects, styles = readers["object"].predict(shown), readers["style"].predict(shown)
    assert np.mean([a == p.object for a, p in zip(objects, pictures, strict=True)]) >= 0.95
    assert np.mean([a == (p.style or "plain") for a, p in zip(styles, pictures, strict=True)]) >= 0.98


def test_the_same_image_alone_and_in_a_batch_of_seven_before_and_after_the_edit(pipe, run):
    prompts = [evaluation_prompt(o, s) for o, s in zip(mini.OBJECTS, mini.STYLES[:7], strict=False)]
    made = run.plan("style", "Ink_Art") + run.plan("object", "Cats")
    for plan in (UnlearningPlan((), ()), made):
        with unlearned(pipe, run.saes, plan):
            together = images(pipe, prompts)
            for i, prompt in enumerate(prompts):
                torch.testing.assert_close(images(pipe, [prompt], 188 + i)[0], together[i], rtol=0, atol=2e-2)


def test_forgetting_is_over_when_the_context_is(pipe, run):
    prompts = [evaluation_prompt("Cats", "Rust")]
    before = images(pipe, prompts)
    with unlearned(pipe, run.saes, UnlearningPlan((), ())):
        assert torch.equal(images(pipe, prompts), before)
    with unlearned(pipe, run.saes, run.plan("style", "Rust")):
        assert not torch.allclose(images(pipe, prompts), before, atol=0.05)
    assert torch.equal(images(pipe, prompts), before)


def test_bundled_settings_name_every_concept(run):
    assert set(run.settings["style"]) == set(mini.STYLES)
    assert set(run.settings["object"]) == set(mini.OBJECTS)
    assert len(set(run.settings["style"].values())) == 1  # one setting for all styles
