"""MiniCanvas: UnlearnCanvas in miniature, a genuine StableDiffusionPipeline that runs on a laptop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from saeuron.mini.canvas import OBJECTS, STYLES
from saeuron.mini.classifier import Classifier
from saeuron.progress import quiet_loading

WEIGHTS = Path(__file__).parent / "weights"

SAES = WEIGHTS / "sae"
"""Bundled SAEs: a folder for each hookpoint."""

PROFILES = WEIGHTS / "profiles"
"""Bundled profiles: `styles` and `objects`, each with a folder for each hookpoint."""

SETTINGS = WEIGHTS / "settings.json"
"""Hookpoint, features and multiplier for styles and for each object."""

STEPS, GUIDANCE = 25, 4.0
"""The sampling that MiniCanvas is measured with."""

__all__ = [
    "GUIDANCE",
    "OBJECTS",
    "PROFILES",
    "SAES",
    "SETTINGS",
    "STEPS",
    "STYLES",
    "classifiers",
    "hookpoints",
    "load",
]


def load(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The bundled pipeline: a stock `StableDiffusionPipeline` that makes 64 x 64 pictures."""
    with quiet_loading():
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def classifiers(device: torch.device | str = "cpu") -> dict[Literal["style", "object"], Classifier]:
    """The bundled classifiers: "style" (one of its labels is "plain") and "object"."""

    def read(kind: str) -> Classifier:
        return Classifier.load(WEIGHTS / f"{kind}_classifier.safetensors").to(device)

    return {"style": read("style"), "object": read("object")}


def hookpoints() -> list[str]:
    """Where styles and objects are edited best, by the scan (docs/log.md)."""
    settings = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return sorted(
        {name for choices in settings.values() for choice in choices.values() for name in choice["hookpoints"]}
    )
