"""The two classifiers that read style and object off a MiniCanvas picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from saeuron.files import read_tensors, write_tensors
from saeuron.mini.canvas import SIZE

WIDTHS = (32, 64, 96, 128)


class Classifier(nn.Module):
    """A small convolutional network: four halvings of the map, a mean over the last one, one linear layer."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        blocks: list[nn.Module] = []
        for inner, outer in zip((3, *WIDTHS), WIDTHS, strict=False):
            blocks += [nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(8, outer), nn.SiLU()]
            blocks += [nn.Conv2d(outer, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.SiLU()]
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], len(self.labels))

    def forward(self, pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image label"]:
        """Logits of pixels in -1..1."""
        return self.head(self.features(pixels).mean((2, 3)))

    @torch.no_grad()
    def predict(self, images: Sequence[Image.Image]) -> list[str]:
        """The label of each picture; a picture of another size is resized to MiniCanvas's."""
        pixels = torch.stack([to_pixels(image) for image in images])
        weight = self.head.weight
        return [self.labels[i] for i in self(pixels.to(weight.device, weight.dtype)).argmax(1).tolist()]

    def save(self, path: Path) -> None:
        """Write weights (float16) and labels to one safetensors file."""
        weights = {name: value.half() for name, value in self.state_dict().items()}
        write_tensors(path, weights, {"labels": " ".join(self.labels)})

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """What `save` wrote, as float32, ready to predict. Raises ValueError, naming the file, for anything else."""
        weights = read_tensors(path, "classifier")
        try:
            with safe_open(path, "pt") as file:
                model = cls(file.metadata()["labels"].split())
            model.load_state_dict({name: value.float() for name, value in weights.items()})
        except (KeyError, TypeError, RuntimeError):
            raise ValueError(f"'{path}' is no classifier of MiniCanvas's kind") from None
        return model.eval().requires_grad_(False)


def to_pixels(image: Image.Image) -> Float[Tensor, "3 64 64"]:
    """A picture as the networks take it: RGB, MiniCanvas's size, -1..1."""
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
