"""The import direction, the public names, and the file tree in the README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import saeuron

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "saeuron"

LAYERS = [
    ["files", "progress", "prompts", "sparse", "hooks"],
    ["sae", "activations", "images", "figures", "report"],
    ["train", "concepts", "unlearn"],
    ["evaluate", "mini"],
    ["models"],
    ["scan", "canvas_run"],
    ["demo"],
    ["commands"],
    ["cli"],
]
"""Imports go downward only; what is in one layer does not know the rest of it, but for these."""

ALLOWED = {("images", "activations"), ("unlearn", "concepts")}

HEAVY = {"gradio", "nudenet", "onnxruntime", "matplotlib", "timm", "resvg_py", "torchvision"}


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def modules():
    return sorted(SOURCE.rglob("*.py"))


def imports(path):
    """Top-level parts of `saeuron` that a file imports, at the top or inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if (parts[0] == "saeuron" and len(parts) > 1 and (SOURCE / parts[1]).with_suffix(".py").exists()) or (
                parts[0] == "saeuron" and len(parts) > 1 and (SOURCE / parts[1]).is_dir()
            ):
                yield parts[1]


def test_every_module_has_a_layer():
    found = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert found == {name for names in LAYERS for name in names}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downward(path):
    me = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if me == "__init__":
        return
    for other in set(imports(path)) - {me}:
        assert layer(other) < layer(me) or (me, other) in ALLOWED, f"{me} imports {other}"


def test_evaluate_knows_nothing_of_how_a_pipeline_forgets():
    for path in (SOURCE / "evaluate").glob("*.py"):
        assert not {"sae", "unlearn", "concepts", "train"} & set(imports(path))


def test_the_library_reaches_the_miniature_through_its_name_only():
    users = {p.stem for p in modules() if "mini" in set(imports(p)) and p.parent.name != "mini"}
    assert users <= {"models", "demo"}


def test_modules_and_functions_stay_short():
    for path in modules():
        assert len(path.read_text().splitlines()) <= 430, path.name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and path.parent.name != "commands":  # those are lists of options
                assert (node.end_lineno or 0) - node.lineno <= 70, f"{path.name}: {node.name}"


def test_importing_the_library_has_no_side_effects():
    code = f"import sys, saeuron; print(*[m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_names():
    assert sorted(saeuron.__all__) == saeuron.__all__
    assert len(saeuron.__all__) <= 30
    for name in saeuron.__all__:
        assert getattr(saeuron, name).__doc__, name


def test_the_readmes_tree_names_every_file():
    tree = (ROOT / "README.md").read_text().split("## Files")[1].split("```")[1]
    named = set(re.findall(r"^\s*([\w./-]+\.\w+|[\w-]+/)\s", tree, re.MULTILINE))
    for path in modules():
        if path.name != "__init__.py":
            assert path.name in named, f"{path.name} is not in the README's tree"
    for name in named:
        if name.endswith(".py"):
            assert list(SOURCE.rglob(name)) or list(ROOT.glob(f"*/{name}")), f"{name} is in the tree only"
