from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, HeunDiscreteScheduler

from saeuron.activations import ActivationStream, Sampling, ShuffleBuffer, activations, hookpoint_shapes
from tests.conftest import HOOKPOINT

OTHER = "unet.mid_block.attentions.0"
SAMPLING = Sampling(steps=3, guidance=4.0, batch=2)


def test_activations_of_prompts(tiny_pipe):
    made = list(activations(tiny_pipe, ["a", "b", "c"], [HOOKPOINT, OTHER], SAMPLING))
    assert [list(batch[HOOKPOINT].prompts) for batch in made] == [[0, 1], [2]]
    assert made[0][HOOKPOINT].tokens.shape == (3, 2, 16, 32)
    assert made[0][OTHER].tokens.shape == (3, 2, 4, 32)
    assert made[1][OTHER].timesteps.tolist() == tiny_pipe.scheduler.timesteps.tolist()


def test_a_prompt_has_the_same_activations_in_any_batch(tiny_pipe):
    texts = [f"word {i}" for i in range(7)]
    together = next(activations(tiny_pipe, texts, [HOOKPOINT], Sampling(3, 4.0, 7)))[HOOKPOINT].tokens
    for i, text in enumerate(texts):
        alone = next(activations(tiny_pipe, [text], [HOOKPOINT], Sampling(3, 4.0, 1)))[HOOKPOINT].tokens
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_any_scheduler(tiny_pipe, scheduler):
    before = tiny_pipe.scheduler
    tiny_pipe.scheduler = scheduler.from_config(before.config)
    try:
        found = next(activations(tiny_pipe, ["a"], [HOOKPOINT], SAMPLING))[HOOKPOINT]
        shape = hookpoint_shapes(tiny_pipe, [HOOKPOINT], SAMPLING)[HOOKPOINT]
    finally:
        tiny_pipe.scheduler = before
    calls = 5 if scheduler is HeunDiscreteScheduler else 3
    assert len(found.timesteps) == shape.steps == calls


def test_shapes(tiny_pipe):
    shapes = hookpoint_shapes(tiny_pipe, [HOOKPOINT, OTHER], SAMPLING)
    assert shapes[HOOKPOINT][:2] == (32, (4, 4))
    assert shapes[OTHER][:2] == (32, (2, 2))
    assert shapes[OTHER].vectors == 12


@pytest.mark.parametrize(("capacity", "batch", "uses"), [(10, 4, 1), (7, 7, 3), (100, 8, 2)])
def test_every_vector_leaves_the_buffer_exactly_as_often_as_asked(capacity, batch, uses):
    buffer = ShuffleBuffer(capacity, batch, uses=uses)
    drawn = []
    for start in range(0, 60, 6):
        drawn += list(buffer.push(torch.arange(start, start + 6.0)[:, None]))
    drawn += list(buffer.drain())
    assert all(len(rows) == batch for rows in drawn)
    counts = torch.bincount(torch.cat(drawn).flatten().long(), minlength=60)
    assert counts.max() == uses
    assert counts.sum() > 60 * uses - batch * uses  # fewer than a batch are dropped, each at most `uses` times
    assert buffer.accepted == 60


def test_the_buffer_shuffles_and_repeats_itself():
    def order(seed):
        buffer = ShuffleBuffer(32, 8, seed=seed)
        rows = [*buffer.push(torch.arange(64.0)[:, None]), *buffer.drain()]
        return torch.cat(rows).flatten().tolist()

    assert order(0) == order(0) != order(1)
    assert order(0) != sorted(order(0))
    assert sorted(order(0)) == list(range(64))


def stream_of(pipe):
    texts = ["a", "b", "c", "d", "e"]
    return ActivationStream(pipe, texts, [HOOKPOINT, OTHER], SAMPLING, batch=16, buffer=40, uses=2, seed=3)


def test_the_stream_yields_every_hookpoints_vectors(tiny_pipe):
    batches = list(stream_of(tiny_pipe))
    count = {name: sum(len(x) for h, x in batches if h == name) for name in (HOOKPOINT, OTHER)}
    assert 2 * 5 * 3 * 16 - 32 < count[HOOKPOINT] <= 2 * 5 * 3 * 16
    assert 2 * 5 * 3 * 4 - 32 < count[OTHER] <= 2 * 5 * 3 * 4
    assert all(x.shape == (16, 32) for _, x in batches)


@pytest.mark.parametrize("stop", [1, 7, 20])
def test_the_stream_continues_where_it_was(tiny_pipe, stop):
    whole = list(stream_of(tiny_pipe))
    first = stream_of(tiny_pipe)
    assert len(list(itertools.islice(first, stop))) == stop
    second = stream_of(tiny_pipe)
    second.load_state_dict(first.state_dict())
    for (h1, x1), (h2, x2) in zip(whole[stop:], second, strict=True):
        assert h1 == h2
        assert torch.equal(x1, x2)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": -1}, {"guidance": float("nan")}])
def test_impossible_sampling(changes):
    with pytest.raises(ValueError, match="expected"):
        Sampling(**changes)


def test_impossible_buffers():
    with pytest.raises(ValueError, match="does not fit"):
        ShuffleBuffer(4, 5)
    with pytest.raises(ValueError, match="uses is 0"):
        ShuffleBuffer(4, 2, uses=0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_impossible_seeds(tiny_pipe, seed):
    with pytest.raises(ValueError, match=f"seed is {seed}; expected a whole number from 0"):
        SAMPLING.call(tiny_pipe, ["a"], [seed], "latent")


def test_hookpoints_that_give_no_image_tokens_are_refused(tiny_pipe):
    with pytest.raises(ValueError, match=r"gives shape \(2, 64\); expected a hookpoint that gives image tokens"):
        hookpoint_shapes(tiny_pipe, ["unet.time_embedding"], SAMPLING)
    tiny_pipe.unet.spare = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"nothing passes the hookpoint 'unet\.spare'"):
        hookpoint_shapes(tiny_pipe, ["unet.spare"], SAMPLING)
    del tiny_pipe.unet.spare
