from __future__ import annotations

from contextlib import nullcontext

import pytest

from saeuron import ImageRequest, Sampling
from saeuron.evaluate.canvas import (
    CanvasScores,
    Prediction,
    accuracy,
    evaluate,
    grid,
    mean_scores,
    predict,
    read_predictions,
    score,
    write_predictions,
)
from saeuron.images import generate


def row(style, object, predicted_style, predicted_object):
    return Prediction("a.png", "a prompt", 188, style, object, predicted_style, predicted_object)


SIX = [
    row("Rust", "Cats", "Monet", "Cats"),  # style gone
    row("Rust", "Dogs", "Rust", "Dogs"),  # style still there
    row("Monet", "Cats", "Monet", "Cats"),
    row("Monet", "Dogs", "Rust", "Dogs"),
    row("Winter", "Cats", "Winter", "Dogs"),
    row(None, "Dogs", "Winter", "Dogs"),  # no style asked for: counts for objects only
]


def test_style_removal_of_six_rows_by_hand():
    # Rust: 1 of 2 gone; Monet and Winter: 2 of 3 kept; objects: 5 of 6 right
    assert score(SIX, "style", ["Rust"]) == CanvasScores(1 / 2, 2 / 3, 5 / 6)
    # Rust and Winter: asked for 3 times, recognised twice
    assert score(SIX, "style", ["Rust", "Winter"]) == CanvasScores(1 - 2 / 3, 1 / 2, 5 / 6)


def test_object_removal_of_six_rows_by_hand():
    # Cats: asked for 3 times, recognised twice; Dogs: 3 of 3; styles: 3 of the 5 that were asked for
    assert score(SIX, "object", ["Cats"]) == CanvasScores(1 - 2 / 3, 1, 3 / 5)
    assert score(SIX, "object", ["Cats"]).mean == pytest.approx((1 / 3 + 1 + 3 / 5) / 3)


def test_a_sample_with_many_removed_images_is_weighted():
    # objects: 2 of 2 right in Rust, 3 of 4 elsewhere; Rust is a tenth of the full grid
    assert score(SIX, "style", ["Rust"], share=0.1).cra == pytest.approx(0.1 * 1 + 0.9 * 3 / 4)


def test_accuracy_and_means():
    assert accuracy(SIX, "style") == 3 / 5
    assert accuracy(SIX, "object") == 5 / 6
    assert mean_scores([CanvasScores(1, 0.5, 0), CanvasScores(0, 0.5, 1)]) == CanvasScores(0.5, 0.5, 0.5)


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="no images of the removed styles among 6; removed: Sketch"):
        score(SIX, "style", ["Sketch"])
    with pytest.raises(ValueError, match="no images of other objects"):
        score(SIX, "object", ["Cats", "Dogs"])
    with pytest.raises(ValueError, match="no removed concepts"):
        score(SIX, "object", [])
    with pytest.raises(ValueError, match="no scores"):
        mean_scores([])


def test_predictions_round_trip(tmp_path):
    write_predictions(tmp_path / "p.csv", SIX)
    assert read_predictions(tmp_path / "p.csv") == SIX


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,prompt\na,b\n", "has no column seed, style"),
        (",".join(Prediction.__dataclass_fields__) + "\na,b,first,,,x,y\n", "line 2: seed is 'first'"),
        ("", "has no column path"),
    ],
)
def test_spoilt_predictions_are_named(tmp_path, text, sentence):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"p\.csv.*{sentence}"):
        read_predictions(tmp_path / "p.csv")


def test_the_grid_asks_for_every_object_in_every_style():
    requests = grid(["Cats", "Dogs"], [None, "On_Fire"], [1, 2])
    assert len(requests) == 8
    assert requests[0] == ImageRequest("An image of Cats.", 1, None, "Cats")
    assert requests[-1] == ImageRequest("An image of Dogs in On Fire style.", 2, "On_Fire", "Dogs")


def brightness(images):
    return ["bright" if sum(image.resize((1, 1)).getpixel((0, 0))) > 383 else "dark" for image in images]


def test_predict_keeps_the_order(tiny_pipe, tmp_path):
    records = generate(tiny_pipe, grid(["x", "y", "z"], [None, "s"], [0]), tmp_path, Sampling(1, 1.0, 4))
    found = predict(tmp_path, records, {"style": lambda i: ["s"] * len(i), "object": brightness}, batch=4)
    assert [p.path for p in found] == [r.path for r in records]
    assert {p.predicted_style for p in found} == {"s"}


def test_evaluate_scores_each_removal_once(tiny_pipe, tmp_path):
    entered = []

    class Forgetting(nullcontext):
        def __enter__(self):
            entered.append(1)

    requests = grid(["x", "y"], ["s", "t"], [0])
    readers: dict = {"style": lambda images: ["s"] * len(images), "object": lambda images: ["x"] * len(images)}

    def call():
        return evaluate(
            tiny_pipe, {"s": Forgetting, "t": Forgetting}, "style", requests, readers, tmp_path, Sampling(1, 1.0, 4)
        )

    scores = call()
    assert scores == {"s": CanvasScores(0, 0, 0.5), "t": CanvasScores(1, 1, 0.5)}
    assert (tmp_path / "scores.json").exists()
    assert read_predictions(tmp_path / "t" / "predictions.csv")[0].predicted_object == "x"
    images = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.png")}
    assert len(images) == 8
    assert call() == scores
    assert images == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.png")}
    assert len(entered) == 4
