from __future__ import annotations

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from saeuron.hooks import candidate_hookpoints, edited, recorded
from tests.conftest import HOOKPOINT


def run(pipe, prompts="a cat", steps=3, guidance=4.0, seed=0, **kwargs):
    prompts = [prompts] if isinstance(prompts, str) else prompts
    generator = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generator,
        output_type="latent",
        **kwargs,
    ).images


def hooks_of(pipe):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def test_records_every_step_with_its_timestep(tiny_pipe):
    with recorded(tiny_pipe, HOOKPOINT) as records:
        run(tiny_pipe, ["a cat", "a dog"])
    assert [r.timestep.item() for r in records[HOOKPOINT]] == tiny_pipe.scheduler.timesteps.tolist()
    assert all(r.tokens.shape == (2, 16, 32) for r in records[HOOKPOINT])
    assert not any(r.tokens.requires_grad for r in records[HOOKPOINT])


def test_records_the_prompt_half(tiny_pipe):
    with recorded(tiny_pipe, HOOKPOINT) as half, recorded(tiny_pipe, HOOKPOINT, prompt_half=False) as whole:
        run(tiny_pipe)
    for one, two in zip(half[HOOKPOINT], whole[HOOKPOINT], strict=True):
        assert len(two.tokens) == 2
        assert torch.equal(one.tokens, two.tokens[1:])
        assert not torch.equal(two.tokens[0], two.tokens[1])
    with recorded(tiny_pipe, HOOKPOINT) as records:
        run(tiny_pipe, guidance=1.0)
    assert all(len(r.tokens) == 1 for r in records[HOOKPOINT])


def test_tokens_are_the_map_row_by_row(tiny_pipe):
    seen = []
    module = tiny_pipe.unet.get_submodule("up_blocks.1.attentions.1")
    handle = module.register_forward_hook(lambda m, a, output: seen.append(output[0]))
    with recorded(tiny_pipe, HOOKPOINT, prompt_half=False) as records:
        run(tiny_pipe, steps=1, height=32, width=64)
    handle.remove()
    hidden, tokens = seen[0], records[HOOKPOINT][0].tokens
    height, width = hidden.shape[2:]
    assert width == 2 * height
    assert torch.equal(tokens[0, width + 3], hidden[0, :, 1, 3])


def test_an_edit_that_changes_nothing_changes_nothing(tiny_pipe):
    plain = run(tiny_pipe)
    with edited(tiny_pipe, {HOOKPOINT: lambda tokens, timestep: tokens}):
        assert torch.equal(run(tiny_pipe), plain)
    with edited(tiny_pipe, {HOOKPOINT: lambda tokens, timestep: tokens.clone()}):
        assert torch.equal(run(tiny_pipe), plain)


def test_an_edit_changes_the_image_while_it_lasts(tiny_pipe):
    plain = run(tiny_pipe)
    with edited(tiny_pipe, {HOOKPOINT: lambda tokens, timestep: tokens + 1}):
        assert not torch.allclose(run(tiny_pipe), plain)
    assert torch.equal(run(tiny_pipe), plain)


def test_an_edit_sees_both_halves_and_the_dtype_is_kept(tiny_pipe):
    rows = []

    def edit(tokens, timestep):
        rows.append(len(tokens))
        return tokens.double()

    with edited(tiny_pipe, {HOOKPOINT: edit}):
        run(tiny_pipe, ["a", "b", "c"], steps=2)
    assert rows == [6, 6]


def test_hooks_are_gone_after_an_error(tiny_pipe):
    def edit(tokens, timestep):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), edited(tiny_pipe, {HOOKPOINT: edit}):
        run(tiny_pipe)
    with pytest.raises(ValueError, match="unknown hookpoint"), edited(tiny_pipe, {HOOKPOINT: edit, "unet.nope": edit}):
        pass
    assert hooks_of(tiny_pipe) == 0


def test_candidates_in_the_order_of_the_forward_pass(tiny_pipe):
    names = candidate_hookpoints(tiny_pipe)
    assert names[:2] == [
        "unet.down_blocks.1.attentions.0",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2",
    ]
    assert names.index("unet.mid_block.attentions.0") == 6
    assert names[-2] == "unet.up_blocks.1.attentions.2"
    assert HOOKPOINT in names
    assert not any("attn1" in name for name in names)


def test_unknown_hookpoints_are_told_with_near_matches(tiny_pipe):
    with pytest.raises(ValueError, match=r"did you mean unet\.up_blocks\.1\.attentions\.\d"):
        edited(tiny_pipe, {"unet.up_blocks.1.attention.2": lambda t, s: t}).__enter__()
    with pytest.raises(ValueError, match=r"unknown hookpoint 'vae\.encoder'"):
        edited(tiny_pipe, {"vae.encoder": lambda t, s: t}).__enter__()


class Block(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, hidden):
        return self.give(hidden)


class JointTransformerBlock(Block):
    pass


class Denoiser(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, timestep):
        return self.block(hidden)


class Pipe:
    def __init__(self, block):
        self.unet = Denoiser(block)


def double(tokens, timestep):
    return tokens * timestep


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 20, 3)])
@pytest.mark.parametrize("timestep", [2, 2.0, torch.tensor(2), torch.tensor([2, 2])])
def test_every_kind_of_output_comes_back_as_it_was(shape, timestep):
    x = torch.randn(shape)
    text = torch.randn(2, 7, 3)

    def check(block, pick):
        pipe = Pipe(block)
        with edited(pipe, {"unet.block": double}):
            out = pipe.unet(x, timestep=timestep)
        assert torch.equal(pick(out), 2 * x)
        return out

    check(Block(lambda h: h), lambda out: out)
    assert check(Block(lambda h: (h, "more")), lambda out: out[0])[1] == "more"
    out = check(Block(lambda h: Transformer2DModelOutput(sample=h)), lambda out: out.sample)
    assert isinstance(out, Transformer2DModelOutput)
    out = check(JointTransformerBlock(lambda h: (text, h)), lambda out: out[1])
    assert out[0] is text
