"""Finding what a name means: a pipeline, its device and dtype, its concepts, and the SAEs in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError

from saeuron import prompts
from saeuron.activations import Sampling, hookpoint_shapes
from saeuron.files import resolve_folder
from saeuron.progress import quiet_loading
from saeuron.sae import SparseAutoencoder

MINI = "mini"
"""The name that stands for the bundled pipeline."""


class Vocabulary(NamedTuple):
    """The concepts that a model is asked for."""

    objects: tuple[str, ...]
    styles: tuple[str, ...]

    def of(self, kind: str) -> tuple[str, ...]:
        """Concepts of one kind, "style" or "object"."""
        return self.styles if kind == "style" else self.objects


def load_pipeline(model: str, device: str = "auto", dtype: str = "auto") -> Any:
    """The bundled pipeline for "mini", otherwise one from a diffusers folder or the hub.

    Raises ValueError, in one sentence, when there is none or it does not load.
    """
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    if model == MINI:
        from saeuron import mini

        return mini.load(place, number)
    from diffusers import DiffusionPipeline

    folder = resolve_folder(model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"'{model}' is no diffusers pipeline: it has no model_index.json")
    try:
        with quiet_loading():
            pipe = DiffusionPipeline.from_pretrained(folder, dtype=number, local_files_only=True)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        SafetensorError,
        RuntimeError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the pipeline '{model}' does not load: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


_LOADING = OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, SafetensorError
"""What a damaged or foreign pipeline makes diffusers raise."""


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first accelerator, or the CPU. Raises ValueError for one not there."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        device = torch.device("meta")
    if device.type == "meta":
        raise ValueError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:N or mps, where there is one")
    return device


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is float32 on the CPU and float16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def vocabulary(model: str, anchors: Path | None = None, styles: Path | None = None) -> Vocabulary:
    """MiniCanvas's concepts for the bundled pipeline, UnlearnCanvas's for any other.

    A folder of anchor prompts brings its own objects, a file of styles, one a line, its own styles. Raises ValueError
    for one that is missing or empty.
    """
    words = Vocabulary(prompts.OBJECTS, prompts.STYLES)
    if model == MINI:
        from saeuron import mini

        words = Vocabulary(mini.OBJECTS, mini.STYLES)
    if anchors is not None:
        words = words._replace(objects=tuple(prompts.anchor_files(anchors)))
    if styles is not None:
        words = words._replace(styles=tuple(prompts.read_lines(styles)))
    return words


def default_hookpoints(model: str) -> list[str]:
    """Where concepts are edited unless told otherwise: the paper's blocks, or MiniCanvas's best ones."""
    if model == MINI:
        from saeuron import mini

        return mini.hookpoints()
    return ["unet.up_blocks.1.attentions.1", "unet.up_blocks.1.attentions.2"]  # objects, styles


def usual_sampling(model: str, steps: int) -> tuple[int, float]:
    """Steps and guidance that a model is measured with: MiniCanvas's own, or `steps` and the paper's guidance."""
    if model == MINI:
        from saeuron import mini

        return mini.STEPS, mini.GUIDANCE
    return steps, 9.0


class Bundle(NamedTuple):
    """Folders and files that come with a model."""

    saes: Path
    profiles: Path
    settings: Path


def bundle(model: str) -> Bundle | None:
    """What comes with the bundled pipeline; None for any other."""
    if model != MINI:
        return None
    from saeuron import mini

    return Bundle(mini.SAES, mini.PROFILES, mini.SETTINGS)


def load_classifiers(
    model: str, style: Path | None = None, object: Path | None = None
) -> dict[Literal["style", "object"], Callable[[Sequence[Image.Image]], list[str]]]:
    """Both classifiers: those given, or the bundled ones for the bundled pipeline.

    Raises ValueError when one is missing.
    """
    from saeuron import mini

    if (style is None or object is None) and model != MINI:
        raise ValueError(f"no classifiers for the model '{model}'; expected --style-classifier and --object-classifier")
    bundled = mini.classifiers() if model == MINI else {}
    return {
        "style": (mini.Classifier.load(style) if style else bundled["style"]).predict,
        "object": (mini.Classifier.load(object) if object else bundled["object"]).predict,
    }


def check_widths(pipe: Any, saes: Mapping[str, SparseAutoencoder], sampling: Sampling) -> None:
    """Raise ValueError when an SAE does not take what passes its hookpoint; one image's first step is generated."""
    for hookpoint, shape in hookpoint_shapes(pipe, list(saes), replace(sampling, steps=1)).items():
        if (d_in := saes[hookpoint].config.d_in) != shape.d_in:
            raise ValueError(f"the SAE for {hookpoint} takes vectors of {d_in}; this model's are of {shape.d_in}")


def load_saes(folder: Path | str, hookpoints: list[str] | None = None, **kwargs: Any) -> dict[str, SparseAutoencoder]:
    """The SAEs in a folder that has one folder for each hookpoint; all of them, or those for `hookpoints`.

    Raises ValueError when there is none.
    """
    root = resolve_folder(folder)
    found = hookpoints or sorted(path.parent.name for path in root.glob("*/cfg.json"))
    if not found:
        raise ValueError(
            f"no SAE in '{folder}': expected a folder for each hookpoint with cfg.json and sae.safetensors"
        )
    return {hookpoint: SparseAutoencoder.from_pretrained(root, hookpoint, **kwargs) for hookpoint in found}
