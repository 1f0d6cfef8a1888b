from __future__ import annotations

import json

import pytest
import torch

from saeuron.files import (
    claim_folder,
    load_state,
    resolve_folder,
    save_state,
    write_file,
    write_folder,
    write_tensors,
)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with write_folder(tmp_path / "a" / "b") as new:
        (new / "x").write_text("1")
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"

    def fail():
        with write_folder(tmp_path / "a" / "b") as new:
            (new / "x").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def fail():
        with write_file(tmp_path / "x") as new:
            new.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_state_round_trip(tmp_path):
    state: dict = {
        "a": {"b": torch.arange(3), "c": 5},
        "d": [1, "x", None],
        "e": torch.tensor(2.5, dtype=torch.float64),
    }
    save_state(tmp_path / "s", state)
    again = load_state(tmp_path / "s")
    assert torch.equal(again["a"]["b"], state["a"]["b"])
    assert again["e"].dtype == torch.float64
    assert (again["a"]["c"], again["d"]) == (5, [1, "x", None])
    (tmp_path / "s").write_bytes(b"x" * 50)
    with pytest.raises(ValueError, match="is damaged"):
        load_state(tmp_path / "s")


def test_claimed_folders(tmp_path):
    folder = tmp_path / "new"
    claim_folder(folder, "train", {"a": 1})
    claim_folder(folder, "train", {"a": 2})  # there is nothing in it yet
    assert json.loads((folder / "run.json").read_text())["a"] == 2
    (folder / "result").write_text("")
    claim_folder(folder, "train", {"a": 2})
    with pytest.raises(ValueError, match="with a 2, not 3; expected the same again, or another folder"):
        claim_folder(folder, "train", {"a": 3})
    with pytest.raises(ValueError, match="with stage 'train', not 'plan'"):
        claim_folder(folder, "plan", {"a": 3}, renew=True)
    claim_folder(folder, "train", {"a": 3}, renew=True)
    assert json.loads((folder / "run.json").read_text())["a"] == 3
    (tmp_path / "file").write_text("")
    for taken, sentence in (("file", "is a file"), (".", "holds other files")):
        with pytest.raises(ValueError, match=sentence):
            claim_folder(tmp_path / taken, "train", {})


def test_no_room_for_tensors_is_an_oserror(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        write_tensors(tmp_path / "nowhere" / "x", {"a": torch.zeros(1)})


def test_what_is_neither_folder_nor_hub_id(tmp_path):
    for name in ("nowhere", str(tmp_path / "nowhere"), "a/b/c", "./x"):
        with pytest.raises(ValueError, match="no folder"):
            resolve_folder(name)
