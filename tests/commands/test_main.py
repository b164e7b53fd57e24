# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `sparsejepa`: what it lists, what it refuses, and whose errors it says in a sentence."""

import json
import subprocess
import sys

import pytest

import sparsejepa_hf
from sparsejepa_hf import commands


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_it_lists_its_commands(words, capsys):
    commands.main(words)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert {name: about for name, about in filter(None, lines) if name in commands.COMMANDS} == commands.COMMANDS


def test_it_says_its_version(capsys):
    commands.main(["--version"])
    assert capsys.readouterr().out == f"sparsejepa_hf {sparsejepa_hf.__version__}\n"


@pytest.mark.parametrize(("word", "said"), [("pretran", "Did you mean 'pretrain'?"), ("xyz", "one of pretrain, fine")])
def test_an_unknown_command_is_refused(word, said):
    with pytest.raises(SystemExit, match=f"no command '{word}'.*{said}"):
        commands.main([word])


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_command_has_a_page_of_help_under_its_name(name, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main([name, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: sparsejepa {name} ")


def test_a_sentence_of_this_package_needs_no_traceback_and_another_s_error_keeps_its(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="^sparsejepa pretrain: There is no file nothing;"):
        commands.main(["pretrain", "nothing"])
    (tmp_path / "cut.yaml").write_bytes(b"\xff")
    with pytest.raises(SystemExit, match="^sparsejepa pretrain: .*cut.yaml is not UTF-8: byte 0 is 0xff"):
        commands.main(["pretrain", str(tmp_path / "cut.yaml")])
    monkeypatch.setattr("sparsejepa_hf.commands.pretrain.main", lambda words: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        commands.main(["pretrain"])


def test_a_command_s_module_is_imported_only_when_it_is_asked_for():
    code = "import sys; from sparsejepa_hf.commands import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"datasets", "sklearn", "timm", *(f"sparsejepa_hf.commands.{n}" for n in commands.COMMANDS)}
