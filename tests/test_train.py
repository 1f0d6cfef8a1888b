from __future__ import annotations

import json

import pytest
import torch

from saeuron import ActivationStream, SaeConfig, Sampling, SparseAutoencoder, TrainConfig, Trainer, train
from saeuron.train import forget_run, last_fvu, trained
from tests.conftest import HOOKPOINT

CONFIG = TrainConfig(lr=3e-3, batch=64, epochs=1, dead_after=500)


def sparse_vectors(steps, seed=0, batch=64):
    """Sums of two of 24 fixed directions: what an SAE of 24 latents can explain."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(24, 12, generator=torch.Generator().manual_seed(9)), dim=1)
    for _ in range(steps):
        chosen = torch.rand(batch, 24, generator=generator).topk(2, dim=1).indices
        weight = torch.zeros(batch, 24).scatter(1, chosen, 1 + torch.rand(batch, 2, generator=generator))
        yield "here", weight @ directions + 0.5


def trainer_of(steps, config=CONFIG, k=2, seed=0):
    return Trainer(SparseAutoencoder(SaeConfig(12, num_latents=48, k=k), seed=seed), config, steps)


def test_training_explains_the_variance_and_learns_a_threshold():
    trainer = trainer_of(600)
    stats = list(train({"here": trainer}, sparse_vectors(600), log_every=100))
    assert [s.step for s in stats] == [100, 200, 300, 400, 500, 600]
    assert stats[-1].fvu < 0.25 < stats[0].fvu
    assert stats[-1].l0 == pytest.approx(2, abs=0.01)
    sae = trainer.sae
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))
    # the threshold keeps on average about as many as BatchTopK did
    x = torch.cat([x for _, x in sparse_vectors(20, seed=5)])
    assert len(sae.encode(x, "threshold").values) / len(x) == pytest.approx(2, rel=0.1)


def test_the_paper_is_the_default():
    config = TrainConfig()
    assert (config.lr, config.batch, config.auxk_alpha, config.dead_after, config.clip) == (
        4e-4,
        4096,
        1 / 32,
        10**7,
        1,
    )
    assert trainer_of(1, config).optimizer.defaults["eps"] == 6.25e-10


def test_the_learning_rate_falls_linearly_to_zero():
    trainer = trainer_of(10)
    rates = []
    for _, x in sparse_vectors(10):
        trainer.step(x)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([3e-3 * (1 - i / 10) for i in range(10)])


def test_b_dec_starts_at_the_geometric_median():
    trainer = trainer_of(10, TrainConfig(lr=1e-12, batch=64))
    x = torch.full((64, 12), 3.0) + torch.eye(64, 12)
    x[:16] = 100.0  # the mean would be near 27
    trainer.step(x)
    torch.testing.assert_close(trainer.sae.b_dec, torch.full((12,), 3.0), atol=0.5, rtol=0)


def test_a_latent_is_dead_when_it_was_silent_for_long():
    trainer = trainer_of(100)
    with torch.no_grad():
        trainer.sae.encoder.bias[7] = -100
    for _, x in sparse_vectors(8):
        stats = trainer.step(x)
    assert trainer.silent[7] == 8 * 64 > CONFIG.dead_after
    assert stats[4] == 0  # dead as of before the last batch: 448 vectors
    stats = trainer.step(x)
    assert stats[4] >= 1 / 48
    assert stats[2] > 0  # so AuxK now counts


def test_stats_and_saes_are_written(tmp_path):
    list(train({"here": trainer_of(20)}, sparse_vectors(20), out=tmp_path, log_every=10))
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert set(lines[0]) == {"hookpoint", "step", "loss", "fvu", "auxk", "l0", "dead", "vectors_per_second"}
    assert SparseAutoencoder.from_pretrained(tmp_path, "here").threshold > 0
    assert not (tmp_path / "checkpoint.safetensors").exists()


def run_on(pipe, out=None, stop=None):
    stream = ActivationStream(pipe, ["a", "b", "c", "d"], [HOOKPOINT], Sampling(3, 4.0, 2), batch=16, buffer=48, uses=3)
    trainer = Trainer(SparseAutoencoder(SaeConfig(32, num_latents=64, k=4)), TrainConfig(lr=1e-3, batch=16), 36)
    made = train({HOOKPOINT: trainer}, stream, out=out, log_every=1, checkpoint_every=5)
    for number, _ in enumerate(made, 1):
        if number == stop:
            return trainer
    return trainer


@pytest.mark.parametrize("stop", [7, 22, 34])
def test_a_killed_run_continues_to_the_same_weights(tiny_pipe, tmp_path, stop):
    whole = run_on(tiny_pipe, tmp_path / "whole")
    run_on(tiny_pipe, tmp_path / "killed", stop)
    again = run_on(tiny_pipe, tmp_path / "killed")
    assert again.step_count == whole.step_count
    for one, two in zip(whole.sae.state_dict().values(), again.sae.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors' is damaged"):
        list(train({"here": trainer_of(1)}, sparse_vectors(1), out=tmp_path))


def test_no_batch_at_all_is_an_error():
    with pytest.raises(ValueError, match="not one batch for here"):
        list(train({"here": trainer_of(1)}, []))


@pytest.mark.parametrize("changes", [{"lr": 0}, {"batch": -1}, {"epochs": 0}, {"lr": float("nan")}])
def test_impossible_configs(changes):
    with pytest.raises(ValueError, match="expected a number above 0"):
        TrainConfig(**changes)


def test_one_vector_has_no_variance():
    with pytest.raises(ValueError, match="batch is 1; expected at least 2"):
        TrainConfig(batch=1)


def test_a_training_that_diverges_is_told_and_not_saved(tmp_path):
    trainer = trainer_of(20, TrainConfig(lr=1e30, batch=64))
    with pytest.raises(ValueError, match=r"the loss at here is (nan|inf) in step \d+: the training diverged"):
        list(train({"here": trainer}, sparse_vectors(20), out=tmp_path, log_every=10))
    assert not (tmp_path / "here").exists()


def test_statistics_of_steps_taken_twice_are_there_once(tiny_pipe, tmp_path):
    run_on(tiny_pipe, tmp_path, stop=7)
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"hookpoint": "cut o')
    assert not trained(tmp_path, [HOOKPOINT])
    again = run_on(tiny_pipe, tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert steps == list(range(1, again.step_count + 1))
    assert trained(tmp_path, [HOOKPOINT])
    assert last_fvu(tmp_path)[HOOKPOINT] > 0
    forget_run(tmp_path, [HOOKPOINT])
    assert not list(tmp_path.iterdir())
