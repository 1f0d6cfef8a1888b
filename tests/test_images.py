from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import pytest

from saeuron import ImageRequest, Sampling, generate
from saeuron.images import open_images, read_images

SAMPLING = Sampling(steps=2, guidance=4.0, batch=2)
REQUESTS = [ImageRequest(f"word {i}", seed=i, style="Rust" if i % 2 else None, object="Cats") for i in range(5)]


def test_images_land_with_a_manifest_and_are_read_back(tiny_pipe, tmp_path):
    records = generate(tiny_pipe, REQUESTS, tmp_path, SAMPLING, {"model": "tiny"})
    assert [(r.prompt, r.seed, r.style, r.object) for r in records] == [
        (r.prompt, r.seed, r.style, r.object) for r in REQUESTS
    ]
    assert read_images(tmp_path) == records
    assert all(image.size == (32, 32) for image in open_images(tmp_path, records))
    run = json.loads((tmp_path / "run.json").read_text())
    assert run.pop("command")
    assert run == {"stage": "images", "steps": 2, "guidance": 4.0, "model": "tiny", "version": version("saeuron")}
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".jsonl"] + [".png"] * 5


def test_an_interrupted_folder_is_continued_and_nothing_is_made_twice(tiny_pipe, tmp_path):
    whole = generate(tiny_pipe, REQUESTS, tmp_path / "whole", SAMPLING)
    generate(tiny_pipe, REQUESTS[:3], tmp_path / "cut", SAMPLING)
    manifest = tmp_path / "cut" / "manifest.jsonl"
    manifest.write_text(manifest.read_text()[:-20])  # killed while the third line was written
    first = tmp_path / "cut" / whole[0].path
    before = first.stat().st_mtime_ns
    assert generate(tiny_pipe, [*REQUESTS, REQUESTS[0]], tmp_path / "cut", SAMPLING) == [*whole, whole[0]]
    assert first.stat().st_mtime_ns == before
    assert len(read_images(tmp_path / "cut")) == 5
    for a, b in zip(open_images(tmp_path / "cut", whole), open_images(tmp_path / "whole", whole), strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1  # batches of other sizes


def test_a_folder_with_something_else_is_refused_and_left_alone(tiny_pipe, tmp_path):
    generate(tiny_pipe, REQUESTS[:1], tmp_path / "ours", SAMPLING, {"plan": "a"})
    with pytest.raises(ValueError, match="holds results with plan 'a', not 'b'"):
        generate(tiny_pipe, REQUESTS[:1], tmp_path / "ours", SAMPLING, {"plan": "b"})
    with pytest.raises(ValueError, match="holds results with steps 2, not 3"):
        generate(tiny_pipe, REQUESTS[:1], tmp_path / "ours", Sampling(3, 4.0), {"plan": "a"})
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        generate(tiny_pipe, REQUESTS[:1], tmp_path / "theirs", SAMPLING)
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]


def test_spoilt_folders_are_told(tiny_pipe, tmp_path):
    with pytest.raises(ValueError, match="no images in"):
        read_images(tmp_path)
    records = generate(tiny_pipe, REQUESTS[:2], tmp_path, SAMPLING)
    (tmp_path / records[0].path).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=f"cannot read the image .*{records[0].path}"):
        list(open_images(tmp_path, records))
    (tmp_path / records[0].path).unlink()
    with pytest.raises(ValueError, match="is in the manifest but not in the folder"):
        read_images(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"prompt": "a", "seed": 0, "path": "../../etc/passwd"}\n')
    with pytest.raises(ValueError, match=r"line 1: path .* is not a plain file name"):
        read_images(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"colour": 3}\n')
    with pytest.raises(ValueError, match="line 1: not a record of an image"):
        read_images(tmp_path)
