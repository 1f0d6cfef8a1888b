"""Training SAEs, and measuring what their features mean."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from saeuron.commands.options import (
    Anchors,
    Batch,
    Device,
    Dtype,
    Guidance,
    Half,
    Hookpoints,
    Kind,
    Model,
    Out,
    Quiet,
    SaeFolder,
    Steps,
    StylesFile,
    load_model,
    said,
    sampling_of,
)


def train(
    out: Out,
    model: Model = "mini",
    hookpoint: Hookpoints = None,
    prompts: Annotated[Path | None, Option(help="File with one prompt a line, instead of anchor prompts.")] = None,
    count: Annotated[int | None, Option(help="How many of the prompts.", show_default="all")] = None,
    expansion: Annotated[int, Option(help="Latents for each input dimension.")] = 16,
    k: Annotated[int, Option(help="Active latents for each vector.")] = 32,
    lr: Annotated[float, Option(help="Learning rate; falls linearly to 0.")] = 4e-4,
    vectors: Annotated[int, Option(help="Vectors in a training step.")] = 4096,
    epochs: Annotated[int, Option(help="How often each vector is used.")] = 5,
    buffer: Annotated[int, Option(help="Vectors in the shuffle buffer.")] = 262_144,
    seed: Annotated[int, Option(help="Seed of weights, order and noise.")] = 0,
    bfloat16: Annotated[bool, Option("--bfloat16", help="Compute the encoder's product in bfloat16.")] = False,
    half: Half = False,
    resume: Annotated[bool, Option(help="Continue from the checkpoint in the folder, or start over.")] = True,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Train one SAE for each hookpoint on activations that are made meanwhile; nothing is cached on disk."""
    import torch

    from saeuron.activations import ActivationStream, hookpoint_shapes
    from saeuron.files import claim_folder
    from saeuron.models import default_hookpoints, vocabulary
    from saeuron.prompts import ANCHORS, digest, read_lines, training_prompts
    from saeuron.sae import SaeConfig, SparseAutoencoder
    from saeuron.train import TrainConfig, Trainer, forget_run, trained
    from saeuron.train import train as run

    config, sampling = (
        TrainConfig(lr=lr, batch=vectors, epochs=epochs, bfloat16=bfloat16),
        sampling_of(model, steps, guidance, batch),
    )
    if prompts is not None:
        texts = read_lines(prompts)
        if count is not None and not 1 <= count <= len(texts):
            raise ValueError(f"count is {count}; expected a number from 1 to {len(texts)}, the prompts in '{prompts}'")
        texts = texts[:count]
    else:
        words = vocabulary(model, anchor_prompts, styles)
        texts = training_prompts(words.objects, words.styles, anchor_prompts or ANCHORS, count=count, seed=seed)
    names = hookpoint or default_hookpoints(model)
    pipe = load_model(model, device, dtype)
    shapes = hookpoint_shapes(pipe, names, sampling)
    stream = ActivationStream(pipe, texts, names, sampling, batch=vectors, buffer=buffer, uses=epochs, seed=seed)
    trainers = {}
    for name in names:
        sae = SparseAutoencoder(SaeConfig(shapes[name].d_in, expansion, k=k), device=pipe.device, seed=seed)
        trainers[name] = Trainer(sae, config, shapes[name].vectors * len(texts) * epochs // vectors)
    shape = {"hookpoints": names, "expansion": expansion, "k": k, "buffer": buffer, "seed": seed}
    used = {"model": model, "prompts": digest(texts), **shape, **vars(config), "sampling": vars(sampling), "half": half}
    claim_folder(out, "train", used, renew=not resume)
    if not resume:
        forget_run(out, names)
    if trained(out, names):
        typer.echo(f"{len(names)} SAE(s) in {out} already; --no-resume trains them anew")
        return
    with said(quiet):
        for stats in run(trainers, stream, out=out, save_dtype=torch.float16 if half else None):
            logging.getLogger("saeuron").info(
                "%s step %d/%d: loss %.4f, FVU %.4f, L0 %.1f, dead %.3f, %.0f vectors/s",
                stats.hookpoint, stats.step, trainers[stats.hookpoint].steps,
                stats.loss, stats.fvu, stats.l0, stats.dead, stats.vectors_per_second,
            )  # fmt: skip
    typer.echo(f"{len(names)} SAE(s) in {out}")


def profile(
    out: Out,
    sae: SaeFolder,
    model: Model = "mini",
    kind: Annotated[Kind, Option(help="What the concepts are.")] = Kind.style,
    hookpoint: Hookpoints = None,
    prompts: Annotated[Path | None, Option(help="Your own concepts: a folder with one <concept>.txt each.")] = None,
    each: Annotated[int | None, Option(help="Prompts for each object in each style, instead of the paper's.")] = None,
    seed: Annotated[int, Option(help="Seed of the noise.")] = 188,
    half: Half = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure each concept's mean feature activity at every step; a folder for each hookpoint."""
    import torch

    from saeuron.concepts import profile as run
    from saeuron.files import claim_folder
    from saeuron.models import check_widths, load_saes, vocabulary
    from saeuron.prompts import ANCHORS, digest, read_lines, validation_prompts

    sampling = sampling_of(model, steps, guidance, batch, default=100)
    if prompts is not None:
        files = sorted(prompts.glob("*.txt"))
        if not files:
            raise ValueError(f"no prompts in '{prompts}': expected one <concept>.txt for each concept")
        texts = {path.stem: read_lines(path) for path in files}
    else:
        words = vocabulary(model, anchor_prompts, styles)
        texts = validation_prompts(kind.value, words.objects, words.styles, anchor_prompts or ANCHORS, each=each)
    pipe = load_model(model, device, dtype)
    saes = load_saes(sae, hookpoint, device=pipe.device)
    check_widths(pipe, saes, sampling)
    used = {"concepts": {concept: digest(found) for concept, found in texts.items()}, "seed": seed, "half": half}
    weights = {name: found.fingerprint() for name, found in saes.items()}
    claim_folder(out, "profile", {"model": model, "saes": weights, **used, "sampling": vars(sampling)})
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists() or not all((out / name / "profile.json").exists() for name in saes):
        with said(quiet):
            measured = run(pipe, saes, texts, sampling, seed=seed, checkpoint=checkpoint)
        for name, found in measured.items():
            found.save_pretrained(out / name, dtype=torch.float16 if half else torch.float32)
        checkpoint.unlink(missing_ok=True)
    for name in saes:
        typer.echo(f"profile of {len(texts)} concepts in {out / name}")
