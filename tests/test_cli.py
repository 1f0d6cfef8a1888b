"""The commands, run as a user runs them: exit code, files, output."""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import partial

import pytest
import torch

from saeuron import ConceptProfile, SaeConfig, SparseAutoencoder, Trainer, UnlearningPlan, cli, mini, train
from saeuron.images import read_images
from tests.cli_docs import PATH, cli_docs

FAST = ["--steps", "2", "--batch", "4", "--quiet"]


@pytest.fixture
def run(capsys):
    """Run `saeuron` with arguments; returns exit code, output and errors."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An SAE and a style profile, as the commands leave them."""
    root = tmp_path_factory.mktemp("trained")
    for arguments in (
        ["train", "--out", root / "sae", "--count", 6, "--expansion", 4, "--k", 8, "--vectors", 64, "--epochs", 2,
         "--buffer", 512, "--hookpoint", "unet.up_blocks.1.attentions.2"],
        ["profile", "--sae", root / "sae", "--out", root / "styles", "--half"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in [*arguments, *FAST]])
        assert stopped.value.code == 0
    return root


def test_docs_are_those_of_the_commands():
    assert PATH.read_text() == cli_docs(), "run `make docs`"


def test_help_is_a_tour(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "hookpoints", "train", "profile", "sweep", "plan", "generate", "evaluate canvas"):
        assert f"saeuron {command}" in out or f"  {command}" in out


def test_the_tours_commands_run_one_after_the_other(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {
        "train": ["--count", "13", "--vectors", "64", "--buffer", "2048", "--epochs", "1", "--expansion", "2", *FAST],
        "sweep": ["--concept", "Cats", "--features", "1", "--multiplier", "-1", *FAST],
        "evaluate": ["--concept", "Rust", *FAST],
    }
    lines = re.findall(r"^  saeuron (\w+.*)", cli.TOUR, re.MULTILINE)
    commands = [shlex.split(re.split(r" {2,}", line)[0]) for line in lines]
    assert [command[0] for command in commands] == [
        "hookpoints", "train", "profile", "sweep", "plan", "generate", "evaluate"
    ]  # fmt: skip
    for command in commands:
        extra = short.get(command[0], FAST if command[0] in ("profile", "generate") else [])
        code, _, err = run(*command, *extra)
        assert code == 0, (command, err)
    assert len(read_images("images")) == 1


def test_hookpoints_lists_width_and_map(run):
    code, out, _ = run("hookpoints")
    assert code == 0
    assert re.search(r"unet\.up_blocks\.1\.attentions\.1 +96 +8x8", out)
    assert re.search(r"unet\.mid_block\.attentions\.0 +128 +4x4", out)


def test_train_profile_plan_generate(run, trained, tmp_path):
    sae = SparseAutoencoder.from_pretrained(trained / "sae")
    assert (sae.config.d_in, sae.config.latents, sae.config.k) == (96, 384, 8)
    assert sae.threshold > 0
    assert (trained / "sae" / "stats.jsonl").exists()
    profile = ConceptProfile.from_pretrained(trained / "styles" / "unet.up_blocks.1.attentions.2")
    assert profile.concepts == mini.STYLES
    assert profile.sae == sae.fingerprint()

    code, out, _ = run(
        "plan", "Rust", "Winter", "--profile", trained / "styles", "--features", 3, "--out", tmp_path / "p"
    )
    assert code == 0
    assert "plan without Rust, Winter" in out
    assert UnlearningPlan.from_pretrained(tmp_path / "p").concepts == ("Rust", "Winter")

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("An image of Cats in Rust style.\n\nAn image of Dogs.\n")
    arguments = ["generate", prompts, "A frog.", "--seed", 1, "--seed", 2, *FAST]
    code, out, _ = run(*arguments, "--out", tmp_path / "before")
    assert (code, out) == (0, f"6 image(s) in {tmp_path / 'before'}\n")
    code, _, _ = run(*arguments, "--sae", trained / "sae", "--plan", tmp_path / "p", "--out", tmp_path / "after")
    assert code == 0
    assert len(read_images(tmp_path / "after")) == 6


def test_joined_plans_and_released_error(run, trained, tmp_path):
    common = ["--profile", trained / "styles"]
    assert run("plan", "Rust", *common, "--out", tmp_path / "a")[0] == 0
    code, out, _ = run("plan", "Winter", *common, "--join", tmp_path / "a", "--out", tmp_path / "b")
    assert (code, out.splitlines()[-1]) == (0, f"plan without Winter, Rust in {tmp_path / 'b'}")
    assert run("plan", "Rust", *common, "--error", "released", "--out", tmp_path / "c")[0] == 0
    assert UnlearningPlan.from_pretrained(tmp_path / "c").error == "released"


def test_training_is_continued_and_not_mixed(run, trained):
    arguments = ["train", "--out", trained / "sae", "--count", 6, "--expansion", 4, "--vectors", 64, "--epochs", 2,
                 "--buffer", 512, "--hookpoint", "unet.up_blocks.1.attentions.2", *FAST]  # fmt: skip
    code, _, err = run(*arguments, "--k", 9)
    assert code == 2
    assert "holds results with k 8, not 9" in err
    code, out, _ = run(*arguments, "--k", 8)
    assert (code, out) == (0, f"1 SAE(s) in {trained / 'sae'} already; --no-resume trains them anew\n")


def test_a_killed_training_continues(run, trained, tmp_path, monkeypatch):
    arguments = ["train", "--out", tmp_path / "sae", "--count", 6, "--expansion", 4, "--k", 8, "--vectors", 64,
                 "--epochs", 2, "--buffer", 512, "--hookpoint", "unet.up_blocks.1.attentions.2", *FAST]  # fmt: skip
    step = Trainer.step

    def killed(self, x):
        if self.step_count == 13:
            raise KeyboardInterrupt
        return step(self, x)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", killed)
        patched.setattr(sys.modules["saeuron.train"], "train", partial(train, checkpoint_every=5))
        run(*arguments)
    assert (tmp_path / "sae" / "checkpoint.safetensors").exists()
    assert run(*arguments)[0] == 0
    one, two = (SparseAutoencoder.from_pretrained(folder / "sae") for folder in (trained, tmp_path))
    assert one.fingerprint() == two.fingerprint()
    assert run(*arguments, "--no-resume", "--lr", "1e-3")[0] == 0
    assert SparseAutoencoder.from_pretrained(tmp_path / "sae").fingerprint() != one.fingerprint()


def test_evaluate_canvas_on_one_concept(run, tmp_path):
    code, out, _ = run("evaluate", "canvas", "--kind", "style", "--concept", "Rust", "--out", tmp_path, *FAST)
    assert code == 0
    assert re.search(r"Rust +\d+\.\d +\d+\.\d +\d+\.\d", out)
    scores = json.loads((tmp_path / "styles" / "scores.json").read_text())
    assert set(scores["removed"]["Rust"]) == {"ua", "ira", "cra"}
    assert len(read_images(tmp_path / "styles" / "Rust")) == 13 * 17


def foreign_plan(tmp_path, trained):
    sae = SparseAutoencoder(SaeConfig(96, num_latents=384, k=8), seed=9)
    sae.save_pretrained(tmp_path / "other", "unet.up_blocks.1.attentions.2")
    with pytest.raises(SystemExit):
        cli.main(["plan", "Rust", "--profile", str(trained / "styles"), "--out", str(tmp_path / "plan")])
    return ["generate", "a", "--sae", tmp_path / "other", "--plan", tmp_path / "plan", "--out", tmp_path / "out"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--style", "Winer", "--out", "OUT"], "unknown style 'Winer'; did you mean 'Winter'?"),
        (["demo", "--object", "Cat", "--out", "OUT"], "unknown object 'Cat'; did you mean 'Cats'"),
        (["hookpoints", "--model", "nowhere"], "no folder 'nowhere'; expected a folder or a hub id"),
        (["hookpoints", "--model", "EMPTY"], "is no diffusers pipeline: it has no model_index.json"),
        (["hookpoints", "--device", "abacus"], "unknown device 'abacus'; expected auto, cpu"),
        (["hookpoints", "--dtype", "int3"], "unknown dtype 'int3'; expected auto, float32"),
        (["hookpoints", "--scan", "--concept", "Cat", "--out", "OUT"], "unknown object 'Cat'; did you mean 'Cats'"),
        (["train", "--hookpoint", "unet.up_blocks.9", "--out", "OUT", "--count", "1"], "unknown hookpoint"),
        (["train", "--out", "OUT", "--count", "0"], "0 prompts asked for; expected a number from 1"),
        (["train", "--out", "OUT", "--k", "-1", "--count", "1"], "k is -1; expected a whole number from 1 on"),
        (["train", "--out", "OUT", "--lr", "0"], "lr is 0.0; expected a number above 0"),
        (["train", "--out", "OUT", "--epochs", "-2"], "epochs is -2; expected a number above 0"),
        (["train", "--out", "OUT", "--steps", "0"], "steps is 0; expected a whole number from 1 on"),
        (["train", "--out", "OUT", "--prompts", "nope.txt"], "no file 'nope.txt'"),
        (["train", "--out", "OUT", "--anchor-prompts", "EMPTY"], "no anchor prompts in"),
        (["train", "--out", "FULL", "--count", "4", "--vectors", "64"], "holds other files; expected an empty folder"),
        (["train", "--out", "OUT", "--styles", "nope.txt"], "no file 'nope.txt'; expected a text file"),
        (["train", "--out", "OUT", "--vectors", "1", "--count", "1"], "batch is 1; expected at least 2"),
        (["train", "--out", "OUT", "--prompts", "PROMPTS", "--count", "-1"], "count is -1; expected a number"),
        (["train", "--out", "OUT", "--hookpoint", "unet.time_embedding"], "gives shape (2, 192); expected a hookpoint"),
        (["train", "--out", "OUT", "--expansion", str(10**9), "--count", "1"], "not enough memory"),
        (["train", "--out", "OUT", "--lr", "1e30", "--count", "2", "--vectors", "64", *FAST], "the training diverged"),
        (["profile", "--sae", "EMPTY", "--out", "OUT"], "no SAE in"),
        (["profile", "--sae", "WIDE", "--out", "OUT"], "takes vectors of 32; this model's are of 96"),
        (["profile", "--sae", "SAE", "--each", "0", "--out", "OUT"], "each is 0; expected a whole number from 1 on"),
        (["profile", "--sae", "SAE", "--out", "FULL"], "holds other files"),
        (["plan", "Rust", "--profile", "STYLES", "--out", "FULL"], "holds other files"),
        (["plan", "Rust", "--profile", "STYLES", "--features", "2", "--percentile", "99", "--out", "OUT"], "two ways"),
        (["profile", "--sae", "SAE", "--prompts", "EMPTY", "--out", "OUT"], "no prompts in"),
        (["plan", "Rusty", "--profile", "STYLES", "--out", "OUT"], "unknown concept 'Rusty'; did you mean 'Rust'?"),
        (["plan", "Rust", "--profile", "EMPTY", "--out", "OUT"], "no file"),
        (["plan", "Rust", "--profile", "STYLES", "--multiplier", "nan", "--out", "OUT"], "multiplier is nan; expected"),
        (["plan", "Rust", "--profile", "STYLES", "--features", "0", "--out", "OUT"], "features is 0; expected"),
        (["plan", "Rust", "--profile", "STYLES", "--features", "-3", "--out", "OUT"], "features is -3; expected"),
        (["generate", "a", "--plan", "EMPTY", "--out", "OUT"], "--plan and --sae, the folder of the SAEs"),
        (["generate", "a", "--sae", "SAE", "--out", "OUT"], "go together; expected both"),
        (["generate", "a", "--seed", str(2**64), "--out", "OUT"], "seed is 18446744073709551616; expected a"),
        (["generate", "a", "--device", "meta", "--out", "OUT"], "unknown device 'meta'"),
        (["generate", "a", "--plan", "EMPTY", "--sae", "SAE", "--out", "OUT"], "no file"),
        (["generate", "a", "--out", "FULL"], "holds other files"),
        (["generate", "missing.txt", "--out", "OUT"], "no file 'missing.txt'"),
        (["generate", "a", "--guidance", "nan", "--out", "OUT"], "guidance is nan; expected a number from 0 on"),
        (["evaluate", "canvas", "--concept", "Rusty", "--out", "OUT"], "unknown style or object 'Rusty'; did you mean"),
        (["evaluate", "canvas", "--style-classifier", "CLASSIFIER", "--out", "OUT"], "damaged or no classifier"),
        (["evaluate", "canvas", "--settings", "EMPTY", "--out", "OUT"], "no file"),
        (["sweep", "--features", "0", "--concept", "Cats", "--out", "OUT"], "features is 0; expected"),
        (["evaluate", "canvas", "--model", "some/model", "--out", "OUT"], "--sae and --profiles"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(run, trained, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    places = {
        "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty", "FULL": tmp_path / "full", "SAE": trained / "sae",
        "STYLES": trained / "styles", "PROMPTS": tmp_path / "prompts.txt", "WIDE": tmp_path / "wide",
        "CLASSIFIER": tmp_path / "prompts.txt",
    }  # fmt: skip
    places["PROMPTS"].write_text("a\nb\n")
    SparseAutoencoder(SaeConfig(32, 2, k=2)).save_pretrained(tmp_path / "wide", "unet.up_blocks.1.attentions.2")
    code, out, err = run(*[places.get(a, a) for a in arguments])
    assert code == 2, (out, err)
    lines = [line for line in err.splitlines() if line.startswith("saeuron: ")]
    assert len(lines) == 1, err
    assert sentence in lines[0]
    assert "Traceback" not in err
    left = tmp_path / "out"
    assert not left.exists() or {path.name for path in left.iterdir()} <= {"run.json", "stats.jsonl"}
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_plan_for_another_sae_is_refused(run, trained, tmp_path):
    code, _, err = run(*foreign_plan(tmp_path, trained))
    assert code == 2
    assert "is for SAE" in err
    assert not (tmp_path / "out").exists()


def test_no_room_on_the_disk_is_one_sentence(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "a.png"))

    monkeypatch.setattr("PIL.Image.Image.save", full)
    code, _, err = run("generate", "a", "--out", tmp_path / "out", *FAST)
    assert code == 2
    assert err.strip() == f"saeuron: No space left on device '{tmp_path / 'out' / 'a.png'}'"
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_wrong_option_is_typers_business(run):
    code, _, err = run("demo", "--stile", "Rust")
    assert code == 2
    assert "No such option" in err


def test_dtype_and_device_reach_the_pipeline():
    pipe = mini.load(dtype=torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
