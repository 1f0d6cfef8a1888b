from __future__ import annotations

import pytest

from saeuron import prompts
from saeuron.prompts import anchor_prompts, evaluation_prompt, styled, training_prompts, validation_prompts


def test_unlearn_canvas_has_50_styles_and_20_objects():
    assert len(prompts.STYLES) == 50
    assert len(prompts.OBJECTS) == 20
    assert "Van_Gogh" in prompts.STYLES
    assert "Waterfalls" in prompts.OBJECTS


def test_80_anchor_prompts_an_object_all_different_none_an_evaluation_prompt():
    every = [text for object in prompts.OBJECTS for text in anchor_prompts(object)]
    assert len(every) == 1600 == len(set(every))
    asked = {evaluation_prompt(object, style) for object in prompts.OBJECTS for style in (None, *prompts.STYLES)}
    assert not asked & set(every)
    assert all(text.isascii() and text.endswith(".") and len(text.split()) <= 14 for text in every)


def test_styles_are_spoken():
    assert styled("A cat sits.", "Van_Gogh") == "A cat sits in Van Gogh style."
    assert styled("A cat sits.", None) == "A cat sits."
    assert evaluation_prompt("Cats", "On_Fire") == "An image of Cats in On Fire style."
    assert evaluation_prompt("Cats", None) == "An image of Cats."


def test_training_prompts_hold_everything_and_few_of_them_still_every_cell():
    every = training_prompts(["Cats", "Dogs"], ["Rust"])
    assert len(every) == 2 * 80 * 2 == len(set(every))
    few = training_prompts(["Cats", "Dogs"], ["Rust"], count=4)
    assert sum("Rust style" in text for text in few) == 2
    assert sum(text.split(" in Rust")[0].rstrip(".") + "." in anchor_prompts("Cats") for text in few) == 2
    assert few == every[:4]
    with pytest.raises(ValueError, match="999 prompts asked for; expected a number from 1 to 320"):
        training_prompts(["Cats", "Dogs"], ["Rust"], count=999)


def test_validation_prompts_as_in_the_paper():
    styles = validation_prompts("style", prompts.OBJECTS, prompts.STYLES)
    assert {len(texts) for texts in styles.values()} == {20}
    assert styles["Rust"][0] == styled(anchor_prompts("Architectures")[0], "Rust")
    objects = validation_prompts("object", prompts.OBJECTS, prompts.STYLES)
    assert objects["Cats"] == anchor_prompts("Cats")
    mixed = validation_prompts("object", ["Cats"], ["Rust", "Monet"], each=2)
    assert len(mixed["Cats"]) == 6
    with pytest.raises(ValueError, match="unknown kind 'colour'"):
        validation_prompts("colour", [], [])


def test_bad_folders_are_told(tmp_path):
    with pytest.raises(ValueError, match="no anchor prompts in"):
        anchor_prompts("Cats", tmp_path)
    (tmp_path / "Cats.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"Cats\.txt' is empty"):
        anchor_prompts("Cats", tmp_path)
    with pytest.raises(ValueError, match="unknown object 'Cat'; did you mean 'Cats'"):
        anchor_prompts("Cat", tmp_path)
