"""What a newcomer does: the quick demo, a very short full one, the examples."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from saeuron import ConceptProfile, SparseAutoencoder, UnlearningPlan
from saeuron.demo import DemoConfig, demo

ROOT = Path(__file__).parent.parent


def test_the_quick_demo_forgets_what_it_was_told_and_keeps_the_rest(tmp_path):
    scores = demo(tmp_path, DemoConfig(quick=True))
    assert set(scores) == {"Rust", "Cats"}
    for found in scores.values():
        assert min(found) >= 0.85
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    facts = json.loads((tmp_path / "scores.json").read_text())
    assert facts["scores"]["Rust"]["ua"] == scores["Rust"].ua
    assert facts["accuracy_before"]["style"] > 0.95
    with Image.open(tmp_path / "grid_Rust.png") as sheet:
        assert sheet.width > 500
    assert UnlearningPlan.from_pretrained(tmp_path / "plans" / "Rust+Cats").concepts == ("Rust", "Cats")


def test_the_full_demo_leaves_sae_profile_and_plans(tmp_path):
    config = DemoConfig("Winter", "Flame", training_prompts=26, expansion_factor=4, epochs=2, steps=3)
    scores = demo(tmp_path, config)
    assert set(scores) == {"Winter", "Flame"}
    for folder in (tmp_path / "sae").glob("unet.*"):
        sae = SparseAutoencoder.from_pretrained(folder)
        assert sae.config.latents == 4 * sae.config.d_in
        assert sae.threshold > 0
    profile = next((tmp_path / "profiles" / "styles").iterdir())
    assert "Winter" in ConceptProfile.from_pretrained(profile).concepts
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run_and_are_short(path, tmp_path, monkeypatch):
    assert len(path.read_text().splitlines()) <= 40
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "out")])
    runpy.run_path(str(path), run_name="__main__")
    assert list((tmp_path / "out").rglob("*.png"))
