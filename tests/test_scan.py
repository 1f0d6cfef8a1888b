"""The scan for hookpoints on a tiny random pipeline."""

from __future__ import annotations

import json

import pytest

from saeuron.activations import Sampling
from saeuron.models import Vocabulary
from saeuron.scan import ScanConfig, scan, scan_prompts
from tests.conftest import HOOKPOINT

OTHER = "unet.mid_block.attentions.0"
WORDS = Vocabulary(("Cats", "Dogs", "Fishes"), ("Rust", "Winter"))
CONFIG = ScanConfig(expansion_factor=2, k=4, batch=32, epochs=1, buffer=64)


def fixed_readers():
    return {"style": lambda images: ["Rust"] * len(images), "object": lambda images: ["Cats"] * len(images)}


def test_prompts_of_a_scan():
    prompts = scan_prompts("object", ["Cats"], WORDS, 9)
    assert (len(prompts.training), prompts.targets, set(prompts.concepts)) == (9, ["Cats"], set(WORDS.objects))
    assert {r.object for r in prompts.trials["Cats"]} == set(WORDS.objects)
    for request, other in prompts.swaps:
        assert request.object == "Cats"
        assert other != request.prompt
    styles = scan_prompts("style", [], WORDS, 9)
    assert styles.targets == ["Rust", "Winter"]
    assert all("Rust" not in other and "Winter" not in other for _, other in styles.swaps)
    with pytest.raises(ValueError, match="unknown style 'Rusty'"):
        scan_prompts("style", ["Rusty"], WORDS, 9)
    with pytest.raises(ValueError, match="there is one style only, Rust; a scan compares at least two"):
        scan_prompts("style", [], WORDS._replace(styles=("Rust",)), 9)


def test_a_scan_ranks_and_continues(tiny_pipe, tmp_path):
    prompts = scan_prompts("style", ["Rust"], WORDS, 9)

    def call(**changes):
        return scan(
            tiny_pipe, [HOOKPOINT, OTHER], prompts, changes.pop("sampling", Sampling(2, 4.0, 8)), CONFIG,
            classifiers=fixed_readers(), out=tmp_path, **changes,
        )  # fmt: skip

    reports = call()
    assert {report.hookpoint for report in reports} == {HOOKPOINT, OTHER}
    for report in reports:
        assert report.reach == 0  # the reader always says Rust
        assert report.edit is not None
        assert report.edit.ua == 0
        assert 0 <= report.knn <= 1
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert call() == reports
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert json.loads((tmp_path / "run.json").read_text())["stage"] == "scan"
    with pytest.raises(ValueError, match="holds results with sampling"):
        call(sampling=Sampling(3, 4.0, 8))


def test_a_scan_without_classifiers_goes_by_the_score(tiny_pipe):
    prompts = scan_prompts("style", ["Rust"], WORDS, 9)
    reports = scan(tiny_pipe, [HOOKPOINT, OTHER], prompts, Sampling(2, 4.0, 8), CONFIG)
    assert [report.edit for report in reports] == [None, None]
    assert reports[0].best_score >= reports[1].best_score
