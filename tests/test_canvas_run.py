"""Removals from settings, and the search for settings, on a tiny random pipeline."""

from __future__ import annotations

import json
import math

import pytest

from saeuron.activations import Sampling
from saeuron.canvas_run import (
    CanvasRun,
    Setting,
    best_settings,
    read_settings,
    validation_requests,
    write_settings,
)
from saeuron.concepts import profile
from saeuron.evaluate.canvas import CanvasScores, Kind
from saeuron.models import Vocabulary
from saeuron.prompts import evaluation_prompt
from tests.conftest import HOOKPOINT

WORDS = Vocabulary(("Cats", "Dogs", "Fishes"), ("Rust", "Winter"))
SAMPLING = Sampling(2, 4.0, 8)
ONE, TWO = Setting((HOOKPOINT,), 1, -1.0), Setting((HOOKPOINT,), 2, -2.0)


@pytest.fixture
def canvas(tiny_pipe, tiny_sae):
    texts = {"Rust": ["a cat in Rust style"], "Winter": ["a cat in Winter style"]}
    measured = profile(tiny_pipe, {HOOKPOINT: tiny_sae}, texts, SAMPLING)
    return CanvasRun("tiny", {HOOKPOINT: tiny_sae}, {"style": measured}, {"style": {"Rust": ONE}})


def readers():
    return {"style": lambda images: ["Rust"] * len(images), "object": lambda images: ["Cats"] * len(images)}


def test_validation_requests_hold_the_concept_and_its_kin_and_no_evaluation_prompt(tmp_path):
    kinds: list[tuple[Kind, str]] = [("style", "Rust"), ("object", "Cats")]
    for kind, concept in kinds:
        requests = validation_requests(kind, concept, WORDS)
        mine = [r for r in requests if getattr(r, kind) == concept]
        assert len(mine) == 3
        assert len(mine) < len(requests)
        assert not {r.prompt for r in requests} & {evaluation_prompt(r.object or "", r.style) for r in requests}
    for name in WORDS.objects:
        (tmp_path / f"{name}.txt").write_text(f"The only {name}.\n")
    assert validation_requests("object", "Cats", WORDS, tmp_path)[0].prompt == "The only Cats."


def test_a_sweep_tries_every_setting_and_adds_to_what_is_there(canvas, tiny_pipe, tmp_path):
    def sweep(candidates):
        return canvas.sweep(tiny_pipe, "style", ["Rust"], candidates, WORDS, readers(), tmp_path, SAMPLING)

    table = sweep([ONE])
    assert set(table["Rust"]) == {ONE}
    assert table["Rust"][ONE].ua == 0  # the reader always says Rust
    sweep([TWO])
    sweep([TWO])
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [(row["kind"], row["concept"], row["features"], row["multiplier"]) for row in rows] == [
        ("style", "Rust", 1, -1.0),
        ("style", "Rust", 2, -2.0),
    ]


def test_a_bad_candidate_is_found_before_anything_is_made(canvas, tiny_pipe, tmp_path):
    for bad in (Setting((HOOKPOINT,), 10**6, -1.0), Setting((HOOKPOINT,), 1, math.nan), Setting(("x",), 1, -1.0)):
        with pytest.raises(ValueError, match=r"features is|multiplier is|unknown hookpoint"):
            canvas.sweep(tiny_pipe, "style", ["Rust"], [ONE, bad], WORDS, readers(), tmp_path, SAMPLING)
    assert not list(tmp_path.iterdir())


def test_the_best_setting_is_each_concepts_own_or_shared():
    good, fair, bad = CanvasScores(1, 1, 1), CanvasScores(1, 1, 0.8), CanvasScores(0, 1, 1)
    table = {"Rust": {ONE: good, TWO: fair}, "Winter": {ONE: bad, TWO: fair}}
    assert best_settings(table) == {"Rust": ONE, "Winter": TWO}
    assert best_settings(table, shared=True) == {"Rust": TWO, "Winter": TWO}


def test_settings_are_merged_by_concept_and_foreign_files_refused(tmp_path):
    path = tmp_path / "settings.json"
    write_settings(path, {"style": {"Rust": ONE}, "object": {"Cats": TWO}})
    write_settings(path, {"style": {"Winter": TWO}})
    assert read_settings(path) == {"style": {"Rust": ONE, "Winter": TWO}, "object": {"Cats": TWO}}
    path.write_text('{"style": {"Rust": {"features": 1}}}')
    with pytest.raises(ValueError, match=r"settings\.json': not settings"):
        write_settings(path, {"style": {"Winter": TWO}})


def test_evaluating_one_concept_after_another_keeps_both(canvas, tiny_pipe, tmp_path):
    for seeds in ([1], [1, 2]):
        scores = canvas.evaluate(tiny_pipe, "style", ["Rust"], WORDS, readers(), tmp_path, SAMPLING, seeds)
        assert scores["Rust"].ua == 0
    facts = json.loads((tmp_path / "scores.json").read_text())
    assert set(facts["removed"]) == {"Rust"}
    assert json.loads((tmp_path / "Rust" / "run.json").read_text())["model"] == "tiny"
