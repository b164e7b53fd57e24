# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The code in the README and in docs/ runs, or is marked `<!-- not run: why -->`.

Python runs here. Shell commands install, train or measure, so they are marked, and what they name is checked instead.
"""

import ast
import contextlib
import io
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsejepa_hf.commands import COMMANDS
from sparsejepa_hf.commands import main as commands_of_the_package
from sparsejepa_hf.training.options import RECIPES


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
# Written by runs, so no checkout has them.
_WRITTEN = ("pretraining_options.yaml", "finetuning_options.yaml")
_LAUNCHERS = ("accelerate launch", "python -m torch.distributed.run")


@dataclass
class Block:
    """A fenced block: its page and line, its language, its text, and why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page, text.count("\n", 0, found.start("language")) + 1, found["language"], found["code"], found["reason"]
        )
        for found in _BLOCK.finditer(text)
    ]


# What the extra of this name installs, which `make pytest` adds.
ECOSYSTEM = ("peft", "torchao")
ALL = [block for page in PAGES if page.is_file() for block in blocks(page)]
SHELL = [block for block in ALL if block.language == "sh"]
PYTHON_PAGES = [page for page in PAGES if any(b.language == "python" and b.page == page for b in ALL)]


def test_the_pages_are_read():
    assert {"README.md", "method.md"} <= {page.name for page in PYTHON_PAGES} and SHELL
    assert all(block.code.strip() for block in ALL)
    # Another name for a language would pass by the tests below.
    assert {block.language for block in ALL} <= {"", "bibtex", "python", "sh", "yaml"}


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_a_page_s_python_runs_from_its_first_block_to_its_last(page, tmp_path, monkeypatch, capsys):
    """As a reader would type it: in one namespace, with the checkout's models at hand. Errors name the page's line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python" or block.reason is not None:
            continue
        for tool in ECOSYSTEM:
            if f"from {tool}" in block.code:
                pytest.importorskip(tool)
        tree = ast.increment_lineno(ast.parse(block.code), block.line)
        exec(compile(tree, str(page), "exec"), namespace)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_block_says_why_it_is_not_run(block):
    if block.page.parent.name == "benchmarks":
        pytest.skip("all of that page are measurements")
    assert block.reason


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_block_names_what_there_is(block):
    """Scripts, modules, flags, configurations, targets of make, extras; each command is checked by itself."""
    for command in commands(block.code):
        problem = what_is_wrong(command)
        assert problem is None, f"{block}: {' '.join(command)}: {problem}"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "yaml"], ids=str)
def test_a_yaml_block_is_yaml(block):
    assert yaml.safe_load(block.code) is not None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python examples/nothing.py", "no file"),
        ("python -m benchmarks.nothing", "no module"),
        ("python examples/pretrain.py examples/configs/nothing.yaml", "no file"),
        ("python examples/pretrain.py examples/configs/demo.yaml --nothing 1", "no flag --nothing"),
        ("accelerate launch examples/pretrain.py examples/configs/demo.yaml --nothing 1", "no flag --nothing"),
        ("sparsejepa nothing", "no command nothing"),
        ("sparsejepa pretrain nothing --output_dir runs/mine", "no recipe nothing"),
        ("sparsejepa probe runs/demo --nothing", "no flag --nothing"),
        ("accelerate launch -m sparsejepa_hf pretrain demo --nothing 1", "no flag --nothing"),
        ("make nothing", "no target"),
        ('pip install -e ".[nothing]"', "no extra"),
        ("frobnicate", "unknown command"),
    ],
)
def test_the_check_of_shell_blocks_sees_what_is_wrong(command, said):
    assert said in what_is_wrong(shlex.split(command))


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments, variables set before them and continued lines."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in re.split(r" && | \| ", line)]
    words = [[*filter(None, command)] for command in words]
    return [
        [w for i, w in enumerate(c) if not (re.match(r"\w+=", w) and all("=" in v for v in c[:i]))] for c in words if c
    ]


def what_is_wrong(command: list[str]) -> str | None:
    """What a command names that is not there, or None."""
    text = " ".join(command)
    if launcher := next((name for name in _LAUNCHERS if text.startswith(name)), None):
        if "sparsejepa_hf" in command:
            return _of_sparsejepa(command[command.index("sparsejepa_hf") + 1 :])
        script = next((place for place, word in enumerate(command) if word.endswith(".py")), None)
        return what_is_wrong(["python", *command[script:]]) if script else f"{launcher} starts no script"
    if command[0] == "sparsejepa":
        return _of_sparsejepa(command[1:])
    if command[0] == "python":
        return _of_python(command[1:])
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        wrong = [word for word in command[1:] if "=" not in word and word not in targets]
        return f"no target {wrong[0]}" if wrong else None
    if command[:2] == ["pip", "install"]:
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        extras = re.findall(r"\[([\w,]+)\]", text)
        wrong = [extra for names in extras for extra in names.split(",") if f'"{extra}":' not in setup]
        return f"no extra {wrong[0]}" if wrong else None
    return (
        None
        if command[0] in ("git", "cd", "source", "pre-commit", "ruff", "mypy", "pytest", "tensorboard", "trap", "wait")
        else "unknown command"
    )


def _of_sparsejepa(words: list[str]) -> str | None:
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        return f"no command {name}"
    if name in ("pretrain", "finetune") and not rest[0].startswith("-"):
        if rest[0] not in RECIPES and not (ROOT / rest[0]).is_file() and Path(rest[0]).name not in _WRITTEN:
            return f"no recipe {rest[0]}"
    wrong = [word for word in rest if word.startswith("--") and word not in flags(f"sparsejepa {name}")]
    return f"no flag {wrong[0]}" if wrong else None


def _of_python(words: list[str]) -> str | None:
    if words[0] == "-m":
        name, rest = words[1], words[2:]
        if name.split(".")[0] not in ("benchmarks", "examples"):
            return None
        path = ROOT / (name.replace(".", "/") + ".py")
        if not path.is_file():
            return f"no module {name}"
    else:
        name, rest = words[0], words[1:]
        if not (ROOT / name).is_file():
            return f"no file {name}"
    for word in rest:
        is_here = (ROOT / word).is_file() or Path(word).name in _WRITTEN
        if word.endswith((".yaml", ".py")) and not word.startswith("/") and not is_here:
            return f"no file {word}"
    known = flags(name) | (flags("examples/pretrain.py") if name.startswith("examples.reproduce") else set())
    wrong = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"no flag {wrong[0]}" if wrong else None


@cache
def flags(name: str) -> set[str]:
    """The flags of a command, a script or a module, as its own --help lists them."""
    printed, arguments = io.StringIO(), sys.argv
    try:
        sys.argv = [name, "--help"]
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            if name.startswith("sparsejepa "):
                commands_of_the_package([name.removeprefix("sparsejepa "), "--help"])
            elif name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__")
    finally:
        sys.argv = arguments
    return set(re.findall(r"(?<![\w-])--\w[\w-]*", printed.getvalue()))
