"""Reading and editing the tokens at a hookpoint of an unmodified diffusers pipeline.

A hookpoint is the name of a module inside the pipeline's denoiser, such as `unet.up_blocks.1.attentions.2`. The one
primitive is an edit, `edit(tokens, timestep) -> tokens`; recording is an edit that changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Edit = Callable[[Float[Tensor, "image token d_in"], Float[Tensor, ""]], Float[Tensor, "image token d_in"]]
"""Takes the tokens at a hookpoint and the timestep; returns the tokens to go on with, the same tensor for no change."""

IMAGE_STREAM = {"JointTransformerBlock": 1, "FluxTransformerBlock": 1, "FluxSingleTransformerBlock": 1}
"""Place of the image tokens in the output of blocks that return text and image tokens, by class name."""

CANDIDATES = ("Transformer2DModel", "BasicTransformerBlock", *IMAGE_STREAM)
"""Class names of the modules that are offered as hookpoints."""


class Record(NamedTuple):
    """What passed a hookpoint at one denoising step."""

    timestep: Float[Tensor, ""]
    """As the denoiser was called with it."""
    tokens: Float[Tensor, "image token d_in"]
    """A map of height x width is read row by row."""


@contextmanager
def edited(pipe: Any, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Within the context, `pipe` runs with the tokens at each hookpoint replaced by what its edit makes of them.

    The edit sees every row that the denoiser is called with, both halves of the guidance batch included. Nothing of the
    pipeline is changed and everything is removed on leaving, however that happens.

    Raises ValueError for a hookpoint that the pipeline does not have.
    """
    modules = {hookpoint: find_module(pipe, hookpoint) for hookpoint in edits}
    with ExitStack() as stack:
        for hookpoint, edit in edits.items():
            clock = _Clock()
            denoiser = getattr(pipe, hookpoint.partition(".")[0])
            stack.callback(denoiser.register_forward_pre_hook(clock.read, with_kwargs=True).remove)
            stack.callback(modules[hookpoint].register_forward_hook(_forward_hook(edit, clock)).remove)
        yield


@contextmanager
def recorded(pipe: Any, *hookpoints: str, prompt_half: bool = True) -> Iterator[dict[str, list[Record]]]:
    """Within the context, what passes the hookpoints is appended to the lists that it yields, detached, not copied.

    With `prompt_half`, a guidance batch is recorded without its unconditional half.
    """
    records: dict[str, list[Record]] = {hookpoint: [] for hookpoint in hookpoints}

    def recorder(hookpoint: str) -> Edit:
        def record(tokens: Tensor, timestep: Tensor) -> Tensor:
            half = prompt_half and getattr(pipe, "do_classifier_free_guidance", False)
            kept = tokens.chunk(2)[1] if half else tokens
            records[hookpoint].append(Record(timestep, kept.detach()))
            return tokens

        return record

    with edited(pipe, {hookpoint: recorder(hookpoint) for hookpoint in hookpoints}):
        yield records


def find_module(pipe: Any, hookpoint: str) -> nn.Module:
    """The module at `hookpoint`. Raises ValueError, with near matches, when there is none."""
    component, _, path = hookpoint.partition(".")
    denoiser = getattr(pipe, component, None)
    if component in ("unet", "transformer") and isinstance(denoiser, nn.Module):
        try:
            return denoiser.get_submodule(path)
        except AttributeError:
            pass
    known = candidate_hookpoints(pipe)
    near = difflib.get_close_matches(hookpoint, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has: {', '.join(known[:20]) or 'none'}"
    raise ValueError(f"unknown hookpoint {hookpoint!r} of {type(pipe).__name__}; {hint}")


def candidate_hookpoints(pipe: Any) -> list[str]:
    """Names of the pipeline's attention blocks and of their text attentions, in the order of the forward pass.

    A text attention (`attn2` in Stable Diffusion) adds what the prompt says to the image's tokens; its output is that
    alone, where a block's output is all that is known of the image so far.
    """
    names = []
    for component in ("unet", "transformer"):
        denoiser = getattr(pipe, component, None)
        if isinstance(denoiser, nn.Module):
            modules = dict(denoiser.named_modules())
            blocks = [name for name, module in modules.items() if type(module).__name__ in CANDIDATES]
            inner = {name for name in blocks if any(name.startswith(f"{other}.") for other in blocks)}
            text = {name for name, module in modules.items() if getattr(module, "is_cross_attention", False)}
            names += [
                f"{component}.{name}" for name in modules if name in text or (name in blocks and name not in inner)
            ]
    stages = ("down_blocks", "mid_block", "up_blocks")

    def stage(name: str) -> int:
        part = name.split(".")[1]
        return stages.index(part) if part in stages else 0

    return sorted(names, key=stage)


class _Clock:
    """The timestep of the denoiser's current call."""

    timestep: Tensor

    def read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        # every row of a batch is at the same step; no value is read here, so that no device waits
        self.timestep = torch.as_tensor(timestep).reshape(-1)[0]


def hidden_states(module: nn.Module, output: Any) -> Tensor:
    """The image's hidden state in what a block returned: a tensor, a tuple or a ModelOutput.

    Raises ValueError when it is neither a map (B, C, H, W) nor tokens (B, N, C).
    """
    hidden = output if isinstance(output, Tensor) else output[_place(module, output)]
    if not isinstance(hidden, Tensor) or hidden.dim() not in (3, 4):
        what = f"shape {tuple(hidden.shape)}" if isinstance(hidden, Tensor) else f"a {type(hidden).__name__}"
        raise ValueError(f"a {type(module).__name__} gives {what}; expected a hookpoint that gives image tokens")
    return hidden


def _place(module: nn.Module, output: Any) -> int | str:
    if isinstance(output, tuple):
        return IMAGE_STREAM.get(type(module).__name__, 0)
    if not isinstance(output, Mapping):
        raise ValueError(f"a {type(module).__name__} gives a {type(output).__name__}; expected image tokens")
    return next(iter(output.keys()))


def _forward_hook(edit: Edit, clock: _Clock) -> Callable[[nn.Module, tuple, Any], Any]:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        old = hidden_states(module, output)
        new = _edit_tensor(old, edit, clock.timestep)
        if new is old or isinstance(output, Tensor):
            return new if isinstance(output, Tensor) else output
        place = _place(module, output)
        if isinstance(output, tuple):
            return tuple(new if i == place else part for i, part in enumerate(output))
        output[place] = new
        return output

    return hook


def _edit_tensor(hidden: Tensor, edit: Edit, timestep: Tensor) -> Tensor:
    """Edit (B, C, H, W) or (B, N, C); what is not changed comes back as the same tensor."""
    tokens = hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden
    new = edit(tokens, timestep)
    if new is tokens:
        return hidden
    new = new.to(hidden.dtype)
    return new.transpose(1, 2).reshape(hidden.shape) if hidden.dim() == 4 else new
