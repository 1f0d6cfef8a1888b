from __future__ import annotations

import json
import math
from contextlib import nullcontext

import pytest
import torch

from saeuron import SaeConfig, Sampling, SparseAutoencoder, UnlearningPlan, erase, plan, profile, unlearned
from saeuron.hooks import edited, recorded
from tests.conftest import HOOKPOINT
from tests.test_concepts import profile_of
from tests.test_hooks import hooks_of, run


def eye_sae(k=3):
    """Latents are coordinates: pre_acts = ReLU(x), x_hat = z."""
    sae = SparseAutoencoder(SaeConfig(3, num_latents=3, k=k), dtype=torch.float64)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(3))
        sae.W_dec.copy_(torch.eye(3))
    return sae.requires_grad_(False)


def table(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_erase_by_eye():
    tokens = table([5.0, 2, -3], [1, 2, 9])
    # latent 0 is above 4 in the first row only: 5 -> 5 * -1
    assert erase(tokens, eye_sae(), torch.tensor([0]), table(-1), table(4)).tolist() == [[-5, 2, -3], [1, 2, 9]]
    # both latents; the gate is strict
    changed = erase(tokens, eye_sae(), torch.tensor([0, 1]), table(-1, 0.5), table(0, 2))
    assert changed.tolist() == [[-5, 2, -3], [-1, 2, 9]]


def test_erase_sees_only_what_topk_selects():
    tokens = table([5.0, 2, 3])
    assert erase(tokens, eye_sae(k=2), torch.tensor([1]), table(-1), table(0)) is tokens
    assert erase(tokens, eye_sae(k=3), torch.tensor([1]), table(-1), table(0)).tolist() == [[5, -2, 3]]


def test_nothing_to_do_gives_the_very_same_tensor():
    tokens = table([5.0, 2, 3])
    none = torch.empty(0, dtype=torch.long)
    assert erase(tokens, eye_sae(), none, table(), table()) is tokens
    assert erase(tokens, eye_sae(), torch.tensor([0]), table(-1), table(math.inf)) is tokens


def random_sae(dtype=torch.float64):
    torch.manual_seed(0)
    sae = SparseAutoencoder(SaeConfig(8, num_latents=40, k=6), dtype=dtype)
    with torch.no_grad():
        sae.encoder.bias.normal_(std=0.1)
        sae.b_dec.normal_()
    sae.threshold.fill_(0.3)
    return sae.requires_grad_(False)


@pytest.mark.parametrize("selection", ["topk", "threshold"])
@pytest.mark.parametrize("error", ["kept", "released"])
def test_erase_equals_reconstructing_densely(selection, error):
    sae = random_sae()
    x = torch.randn(2, 15, 8, dtype=torch.float64)
    features, gain, bound = torch.tensor([1, 7, 30]), table(-2, 0, 3.5), table(0.1, 0.4, 0)
    z = sae.encode(x.flatten(0, 1), selection).dense(40).reshape(2, 15, 40)
    x_hat = z @ sae.W_dec + sae.b_dec
    z_new = z.clone()
    for i, feature in enumerate(features):
        fires = z[..., feature] > bound[i]
        z_new[..., feature] = torch.where(fires, z[..., feature] * gain[i], z[..., feature])
    new_hat = z_new @ sae.W_dec + sae.b_dec
    expected = new_hat + (x - x_hat) if error == "kept" else new_hat + (x_hat - x)
    assert not torch.equal(z, z_new)
    torch.testing.assert_close(erase(x, sae, features, gain, bound, selection=selection, error=error), expected)


def test_the_released_error_term_without_features_is_x_minus_2_e():
    sae = random_sae()
    x = torch.randn(5, 8, dtype=torch.float64)
    e = x - sae.decode(sae.encode(x))
    none = torch.empty(0, dtype=torch.long)
    torch.testing.assert_close(erase(x, sae, none, table(), table(), error="released"), x - 2 * e)


def test_a_released_plan_that_selects_nothing_changes_the_block_all_the_same(tiny_pipe, tiny_sae):
    found = profile(tiny_pipe, {HOOKPOINT: tiny_sae}, {"a": ["b"], "c": ["d"]}, Sampling(2, 4.0, 1))
    made = plan(found[HOOKPOINT], ["a"], percentile=100, error="released")
    assert [block.features.shape for block in made.blocks] == [(2, 0)]
    assert plan(found[HOOKPOINT], ["a"], percentile=100).blocks == ()
    sampling = Sampling(1, 4.0, 1)
    seen = {}
    for name, context in (("before", nullcontext()), ("after", unlearned(tiny_pipe, tiny_sae, made))):
        with context, recorded(tiny_pipe, HOOKPOINT) as records, torch.no_grad():
            sampling.call(tiny_pipe, ["a b"], [0], "latent")
        seen[name] = records[HOOKPOINT][0].tokens
    x = seen["before"]
    selection = made.blocks[0].selection
    e = x - tiny_sae.decode(tiny_sae.encode(x.flatten(0, 1), selection)).view(x.shape)
    torch.testing.assert_close(seen["after"], x - 2 * e, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("selection", ["topk", "threshold"])
@pytest.mark.parametrize("error", ["kept", "released"])
def test_gradients_pass_the_edit(selection, error):
    sae = random_sae()
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    features = sae.encode(x.detach(), selection).dense(40).sum(0).topk(3).indices
    gain, bound = table(-2, 0, 3.5), table(0.1, 0.4, 0)

    def edit(x):
        return erase(x, sae, features, gain, bound, selection=selection, error=error)

    assert torch.autograd.gradcheck(edit, (x,))
    assert not torch.equal(edit(x), x)


# -------------------------------------------------------------------------------------------------------------- plans


MEANS = [[[9, 1, 0], [0, 4, 8]], [[1, 3, 1], [2, 2, 2]]]


def test_a_plan_by_eye():
    made = plan(profile_of(MEANS), ["A"], features=1, multiplier=-2.0)
    (block,) = made.blocks
    assert made.concepts == ("A",)
    assert block.features.tolist() == [[0], [2]]
    assert block.gain.tolist() == [[-18], [-16]]  # multiplier * mu(i, t, A)
    assert block.threshold.tolist() == [[5], [5]]  # mean over concepts of mu(i, t, .)
    assert block.timesteps.tolist() == [2, 1]


def test_several_concepts_are_joined_and_a_shared_latent_keeps_the_stronger_edit():
    found = profile_of(MEANS)
    both = plan(found, ["A", "B"], features=2, multiplier=-1.0)
    (block,) = both.blocks
    rows = [
        {f: g for f, g, b in zip(*row, strict=True) if b < math.inf}
        for row in zip(block.features.tolist(), block.gain.tolist(), block.threshold.tolist(), strict=True)
    ]
    # step 0: A takes 0 (9) and 2 (0), B takes 1 (3) and 2 (1); step 1: A takes 2 (8), 1 (4), B takes 0 (2), 1 (2)
    assert rows == [{0: -9, 2: -1, 1: -3}, {2: -8, 1: -4, 0: -2}]
    assert both.concepts == ("A", "B")


def test_joined_plans_at_one_hookpoint_equal_a_plan_for_all():
    found = profile_of(torch.rand(5, 4, 30))
    one = plan(found, ["A", "C", "D"], features=3)
    two = plan(found, ["A"], features=3) + plan(found, ["C", "D"], features=3)
    for name in ("features", "gain", "threshold"):
        assert torch.equal(getattr(one.blocks[0], name), getattr(two.blocks[0], name))


def test_the_best_features_of_several_hookpoints_together():
    # shares of A at step 0: here 0.9 0.1 0.0, there 0.5 0.5 0.0; of B: here 0.2 0.6 0.2, there 0 0 1
    here = profile_of(MEANS)
    there = profile_of([[[5, 5, 0], [0, 0, 1]], [[0, 0, 9], [0, 0, 1]]], hookpoint="unet.there")
    made = plan([here, there], ["A"], features=3, multiplier=-1.0)
    blocks = {block.hookpoint: block for block in made.blocks}
    # scores: here 0.7, -0.5, -0.2; there 0.5, 0.5, -1: one from here, two from there
    assert blocks["unet.here"].features[0, :1].tolist() == [0]
    assert blocks["unet.here"].gain[0, :1].tolist() == [-9]
    assert blocks["unet.here"].threshold[0, 1:].tolist() == [math.inf] * (blocks["unet.here"].features.shape[1] - 1)
    assert sorted(blocks["unet.there"].features[0].tolist()) == [0, 1]
    assert plan([here], ["A"], 2).fingerprint() == plan(here, ["A"], 2).fingerprint()
    with pytest.raises(ValueError, match="at the same timesteps"):
        plan([here, profile_of(MEANS, timesteps=[9, 8])], ["A"])


def test_plans_for_several_hookpoints():
    one, two = profile_of(MEANS), profile_of(MEANS, hookpoint="unet.there", sae="1" * 16)
    made = plan(one, ["A"]) + plan(two, ["B"])
    assert [block.hookpoint for block in made.blocks] == ["unet.here", "unet.there"]
    assert made.concepts == ("A", "B")
    with pytest.raises(ValueError, match="of different SAEs"):
        plan(one, ["A"]) + plan(profile_of(MEANS, sae="2" * 16), ["A"])
    with pytest.raises(ValueError, match="cannot be joined"):
        plan(one, ["A"]) + plan(one, ["B"], error="released")


def test_percentile_plans_are_padded_with_what_never_fires():
    means = torch.zeros(2, 2, 4)
    means[0] = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]])
    means[1] = 1
    (block,) = plan(profile_of(means), ["A"], percentile=50).blocks
    assert (block.threshold[0] < math.inf).all()
    assert block.threshold[1].tolist() == [math.inf, math.inf]
    assert block.gain[1].tolist() == [1, 1]


def test_round_trip(tmp_path):
    made = plan(profile_of(MEANS), ["A"]) + plan(profile_of(MEANS, hookpoint="unet.there"), ["B"], 2)
    made.save_pretrained(tmp_path)
    again = UnlearningPlan.from_pretrained(tmp_path)
    assert (again.concepts, again.error, again.fingerprint()) == (made.concepts, made.error, made.fingerprint())
    for one, two in zip(made.blocks, again.blocks, strict=True):
        assert one.hookpoint == two.hookpoint
        assert torch.equal(one.gain, two.gain)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "plan.json").write_text("{]"),
        lambda folder: (folder / "plan.safetensors").unlink(),
        lambda folder: (folder / "plan.safetensors").write_bytes(b"123456789"),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"blocks": 3, "concepts": [], "error": "kept"})),
        lambda folder: (folder / "plan.json").write_text(json.dumps({"blocks": [], "concepts": [], "error": "lost"})),
    ],
)
def test_spoilt_plans_are_named(tmp_path, spoil):
    plan(profile_of(MEANS), ["A"]).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=r"plan\.(json|safetensors)"):
        UnlearningPlan.from_pretrained(tmp_path)


def test_a_multiplier_must_be_a_number():
    for multiplier in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite number"):
            plan(profile_of(MEANS), ["A"], multiplier=multiplier)


# ---------------------------------------------------------------------------------------------------------- pipelines


def plan_for(sae, steps=4, latents=128, hookpoint=HOOKPOINT, **kwargs):
    torch.manual_seed(0)
    timesteps = torch.linspace(999, 0, steps)
    found = profile_of(
        torch.rand(2, steps, latents), timesteps=timesteps.tolist(), hookpoint=hookpoint, sae=sae.fingerprint()
    )
    return plan(found, ["A"], **{"features": 40, "multiplier": -1.0} | kwargs)


def test_an_empty_plan_is_bit_identical_and_so_is_the_pipeline_afterwards(tiny_pipe, tiny_sae):
    plain = run(tiny_pipe)
    with unlearned(tiny_pipe, tiny_sae, UnlearningPlan((), ())):
        assert torch.equal(run(tiny_pipe), plain)
    with unlearned(tiny_pipe, tiny_sae, plan_for(tiny_sae)):
        edited_once = run(tiny_pipe)
        assert torch.equal(run(tiny_pipe), edited_once)  # nothing is counted between two calls
    assert not torch.allclose(edited_once, plain, atol=1e-3)
    assert torch.equal(run(tiny_pipe), plain)
    assert hooks_of(tiny_pipe) == 0


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_the_row_is_the_one_with_the_nearest_timestep(tiny_pipe, tiny_sae, steps):
    made = plan_for(tiny_sae, steps=4)
    block = made.blocks[0]

    def slow(tokens, timestep):
        distances = [abs(float(t) - float(timestep)) for t in block.timesteps]
        row = distances.index(min(distances))
        return erase(tokens, tiny_sae, block.features[row], block.gain[row], block.threshold[row])

    with edited(tiny_pipe, {HOOKPOINT: slow}):
        expected = run(tiny_pipe, steps=steps)
    with unlearned(tiny_pipe, tiny_sae, made):
        assert torch.equal(run(tiny_pipe, steps=steps), expected)


def test_the_same_image_alone_and_in_a_batch_of_seven(tiny_pipe, tiny_sae):
    texts = [f"word {i}" for i in range(7)]
    with unlearned(tiny_pipe, tiny_sae, plan_for(tiny_sae)):
        together = run(tiny_pipe, texts)
        for i, text in enumerate(texts):
            torch.testing.assert_close(run(tiny_pipe, text, seed=i)[0], together[i], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_guidance_on_and_off(tiny_pipe, tiny_sae, guidance):
    plain = run(tiny_pipe, guidance=guidance)
    with unlearned(tiny_pipe, tiny_sae, plan_for(tiny_sae)):
        assert not torch.allclose(run(tiny_pipe, guidance=guidance), plain, atol=1e-3)


def test_a_gain_of_one_changes_next_to_nothing(tiny_pipe, tiny_sae):
    made = plan_for(tiny_sae)
    block = made.blocks[0]
    same = UnlearningPlan((type(block)(**vars(block) | {"gain": torch.ones_like(block.gain)}),), ("A",))
    with unlearned(tiny_pipe, tiny_sae, same):
        assert torch.equal(run(tiny_pipe), run(tiny_pipe))
        edited_image = run(tiny_pipe)
    torch.testing.assert_close(edited_image, run(tiny_pipe))


def test_a_plan_for_another_sae_or_hookpoint_is_refused(tiny_pipe, tiny_sae):
    other = SparseAutoencoder(SaeConfig(32, num_latents=128, k=8), seed=2)
    made = plan_for(tiny_sae)
    with pytest.raises(ValueError, match=f"is for SAE {tiny_sae.fingerprint()}, this one is"):
        unlearned(tiny_pipe, other, made).__enter__()
    with pytest.raises(ValueError, match="no SAE for the plan's hookpoint"):
        unlearned(tiny_pipe, {"unet.there": tiny_sae}, made).__enter__()
    with pytest.raises(ValueError, match="unknown hookpoint"):
        unlearned(tiny_pipe, tiny_sae, plan_for(tiny_sae, hookpoint="unet.nowhere")).__enter__()
    assert hooks_of(tiny_pipe) == 0


def test_gradients_reach_the_prompt_through_the_edited_denoiser(tiny_pipe, tiny_sae):
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 8, 8)
    text = torch.randn(1, 8, 16, requires_grad=True)

    def gradient():
        return torch.autograd.grad(tiny_pipe.unet(latents, 500, text).sample.square().sum(), text)[0]

    plain = gradient()
    with unlearned(tiny_pipe, tiny_sae, plan_for(tiny_sae)):
        through = gradient()
    assert through.isfinite().all()
    assert not torch.allclose(through, plain)
