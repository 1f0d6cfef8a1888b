from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from saeuron import ConceptProfile, Sampling, activations, profile, scores, top_features
from saeuron.activations import seed_of
from tests.conftest import HOOKPOINT


def profile_of(means, counts=None, timesteps=None, **kwargs):
    means = torch.as_tensor(means).float()
    return ConceptProfile(
        kwargs.pop("concepts", tuple("ABCDEFG"[: len(means)])),
        means,
        torch.as_tensor(counts or [1] * len(means)),
        torch.as_tensor(timesteps or list(range(means.shape[1], 0, -1))).float(),
        **{"hookpoint": "unet.here", "sae": "0" * 16, "selection": "topk"} | kwargs,
    )


def test_scores_by_eye():
    # A: 3 of 4 on latent 0. The others, B twice as many prompts as C: (2 * (0, 2, 2) + (3, 0, 3)) / 3 = (1, 4/3, 7/3)
    found = profile_of([[[3, 0, 1]], [[0, 2, 2]], [[3, 0, 3]]], counts=[5, 2, 1])
    total = 1 + 4 / 3 + 7 / 3
    expected = [3 / 4 - 1 / total, -4 / 3 / total, 1 / 4 - 7 / 3 / total]
    torch.testing.assert_close(scores(found, "A"), torch.tensor([expected]))


def test_scores_against_the_formula_in_float64():
    torch.manual_seed(0)
    means, counts = torch.rand(5, 4, 30, dtype=torch.float64), [3, 1, 4, 1, 5]
    found = profile_of(means, counts)
    for row, concept in enumerate(found.concepts):
        prompts = [torch.stack([means[c]] * counts[c]) for c in range(5) if c != row]
        others = torch.cat(prompts).mean(0)
        mine = means[row]
        formula = mine / (mine.sum(1, keepdim=True) + 1e-8) - others / (others.sum(1, keepdim=True) + 1e-8)
        torch.testing.assert_close(scores(found, concept).double(), formula, rtol=1e-5, atol=1e-7)


def test_a_concept_that_never_fires_has_no_division_by_zero():
    assert scores(profile_of([[[0, 0]], [[0, 0]]]), "A").tolist() == [[0, 0]]


def test_top_features_are_chosen_at_each_step():
    found = profile_of([[[9, 1, 0], [0, 1, 9]], [[1, 1, 1], [1, 1, 1]]])
    assert [row.tolist() for row in top_features(found, "A")] == [[0], [2]]
    assert [row.tolist() for row in top_features(found, "A", 2)] == [[0, 1], [2, 1]]


def test_percentiles_of_the_released_code():
    torch.manual_seed(0)
    found = profile_of(torch.rand(2, 3, 20_480))
    for percentile, count in ((99.999, 1), (99.995, 2), (99.99, 3)):
        chosen = top_features(found, "A", percentile=percentile)
        assert [len(row) for row in chosen] == [count] * 3
        for row, same in zip(chosen, top_features(found, "A", count), strict=True):
            assert row.tolist() == same.tolist()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda p: scores(p, "Vangogh"),
            r"unknown concept 'Vangogh'; did you mean 'Van_Gogh'\? there are 2: Van_Gogh, Rust",
        ),
        (lambda p: top_features(p, "Rust", 0), "features is 0; expected a whole number from 1 to 3"),
        (lambda p: top_features(p, "Rust", 4), "features is 4"),
        (lambda p: top_features(p, "Rust", percentile=101.0), "percentile is 101"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(profile_of([[[1, 2, 3]], [[1, 2, 3]]], concepts=("Van_Gogh", "Rust")))


def test_a_score_needs_another_concept():
    with pytest.raises(ValueError, match="at least one other concept"):
        scores(profile_of([[[1, 2, 3]]]), "A")


@pytest.mark.parametrize("selection", ["topk", "threshold"])
def test_means_are_those_of_the_dense_codes(tiny_pipe, tiny_sae, selection):
    prompts = {"one": ["a cat", "a dog", "a bird"], "two": ["a fish", "a frog"]}
    sampling = Sampling(steps=3, guidance=4.0, batch=2)
    found = profile(tiny_pipe, {HOOKPOINT: tiny_sae}, prompts, sampling, selection=selection)[HOOKPOINT]
    assert found.means.shape == (2, 3, 128)
    assert found.counts.tolist() == [3, 2]
    assert found.timesteps.tolist() == tiny_pipe.scheduler.timesteps.tolist()
    assert (found.sae, found.selection) == (tiny_sae.fingerprint(), selection)
    for row, texts in enumerate(prompts.values()):
        seeds = [seed_of(text, 188) for text in texts]
        every = Sampling(steps=3, guidance=4.0, batch=3)
        tokens = next(activations(tiny_pipe, texts, [HOOKPOINT], every, seeds))[HOOKPOINT].tokens
        for step in range(3):
            dense = tiny_sae.encode(tokens[step].flatten(0, 1), selection).dense(128).double()
            torch.testing.assert_close(found.means[row, step].double(), dense.mean(0), rtol=1e-3, atol=1e-4)


def test_the_selection_is_the_saes_own(tiny_pipe, tiny_sae):
    sampling = Sampling(steps=1, guidance=1.0)
    assert profile(tiny_pipe, {HOOKPOINT: tiny_sae}, {"a": ["b"]}, sampling)[HOOKPOINT].selection == "threshold"
    with pytest.raises(ValueError, match="'empty' has no prompts"):
        profile(tiny_pipe, {HOOKPOINT: tiny_sae}, {"empty": []}, sampling)


def test_round_trip(tmp_path):
    found = profile_of(torch.rand(2, 3, 4), counts=[7, 8])
    found.save_pretrained(tmp_path)
    again = ConceptProfile.from_pretrained(tmp_path)
    assert (again.concepts, again.hookpoint, again.sae, again.selection) == (
        found.concepts, found.hookpoint, found.sae, found.selection,
    )  # fmt: skip
    for name in ("means", "counts", "timesteps"):
        assert torch.equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "profile.json").write_text("no json"),
        lambda folder: (folder / "profile.json").unlink(),
        lambda folder: (folder / "profile.safetensors").write_bytes(b"1234"),
        lambda folder: (folder / "profile.json").write_text(json.dumps({"concepts": ["A"]})),
        lambda folder: save_file({"means": torch.zeros(2, 3, 4)}, folder / "profile.safetensors"),
    ],
)
def test_spoilt_files_are_named(tmp_path, spoil):
    profile_of(torch.rand(2, 3, 4)).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=r"profile\.(json|safetensors)"):
        ConceptProfile.from_pretrained(tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that the pipeline is called with; a call with "stop" is interrupted."""
    texts, call = [], Sampling.call

    def noted(self, pipe, prompts, *args, **kwargs):
        if "stop" in prompts:
            raise KeyboardInterrupt
        texts.extend(prompts)
        return call(self, pipe, prompts, *args, **kwargs)

    monkeypatch.setattr(Sampling, "call", noted)
    return texts


def test_a_prompt_of_two_concepts_is_generated_once_and_counts_for_both(tiny_pipe, tiny_sae, asked):
    sampling = Sampling(steps=2, guidance=4.0, batch=3)
    prompts = {"one": ["a cat", "a dog"], "two": ["a dog", "a fish"], "three": ["a fish"]}
    found = profile(tiny_pipe, {HOOKPOINT: tiny_sae}, prompts, sampling)[HOOKPOINT]
    assert sorted(asked) == ["a cat", "a dog", "a fish"]
    for concept, texts in prompts.items():
        alone = profile(tiny_pipe, {HOOKPOINT: tiny_sae}, {concept: texts}, sampling)[HOOKPOINT]
        torch.testing.assert_close(found.means[found.index(concept)], alone.means[0], rtol=1e-4, atol=1e-5)
    kept = found.of(["three", "one"])
    assert (kept.concepts, kept.counts.tolist()) == (("three", "one"), [1, 2])
    assert torch.equal(kept.means[1], found.means[0])


def test_a_killed_profile_continues(tiny_pipe, tiny_sae, tmp_path, monkeypatch, asked):
    monkeypatch.setattr("saeuron.concepts.CHECKPOINT_SECONDS", 0)
    path = tmp_path / "checkpoint.safetensors"

    def measure(last, checkpoint):
        prompts = {"one": ["a", "b"], "two": ["c", last]}
        sampling = Sampling(steps=2, guidance=4.0, batch=1)
        return profile(tiny_pipe, {HOOKPOINT: tiny_sae}, prompts, sampling, checkpoint=checkpoint)[HOOKPOINT]

    whole = measure("d", None)
    with pytest.raises(KeyboardInterrupt):
        measure("stop", path)
    again = measure("d", path)
    assert asked == 2 * ["a", "b", "c", "d"]
    assert torch.equal(again.means, whole.means)


def test_a_folder_of_several_profiles_wants_a_hookpoint(tiny_pipe, tiny_sae, tmp_path):
    found = profile(tiny_pipe, {HOOKPOINT: tiny_sae}, {"a": ["b"]}, Sampling(steps=1, batch=1))[HOOKPOINT]
    found.save_pretrained(tmp_path / HOOKPOINT)
    assert ConceptProfile.from_pretrained(tmp_path).hookpoint == HOOKPOINT
    found.save_pretrained(tmp_path / "other")
    assert ConceptProfile.from_pretrained(tmp_path, HOOKPOINT).hookpoint == HOOKPOINT
    for asked in (None, "nowhere"):
        with pytest.raises(ValueError, match=f"name one of the hookpoints: other, {HOOKPOINT}"):
            ConceptProfile.from_pretrained(tmp_path, asked)
