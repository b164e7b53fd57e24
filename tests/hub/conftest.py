# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub for each file of tests, and processes that use it as anybody's would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import HubServer, running_hub

import sparsejepa_hf


ALICE, BOB = "hf_aliceWritesHereAndNobodyReadsIt", "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"
# The package, and the checkout's examples.
ROOTS = (Path(sparsejepa_hf.__file__).parents[1], Path(__file__).parents[2])

# Before each script: `folder` for its files, and `report`, which comes back. A wait between two tries takes no time.
BEGIN = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
if {stranger}:
    # An editable installation could put the package on any path: None makes every import of it fail.
    sys.modules["sparsejepa_hf"] = None
folder, report, trust = Path({folder!r}), {{}}, {{"trust_remote_code": {stranger}}}
def refusal(function, *args, **kwargs):
    try:
        return f"accepted: {{function(*args, **kwargs)}}"
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
"""
END = """
(folder / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with running_hub({ALICE: "alice", BOB: "bob"}) as hub:
        yield hub
        assert hub.unknown == []


@pytest.fixture(scope="module")
def tokens() -> SimpleNamespace:
    return SimpleNamespace(alice=ALICE, bob=BOB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a file's scripts keep what they write."""
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def run_client(hub: HubServer, folder: Path) -> Callable[..., dict[str, Any]]:
    """Runs a script in a process of its own and returns its report, with what it printed under "printed".

    `token` is who it is on the Hub, and `stranger` that it cannot import the package.
    """

    def run(script: str, token: str | None = None, stranger: bool = False) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf_home")}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, ROOTS)), "OMP_NUM_THREADS": "1"}
        # What a log may say, it says.
        environment |= {"TRANSFORMERS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug"}
        if token is not None:
            environment["HF_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, "-c", BEGIN.format(folder=str(folder), stranger=stranger) + script + END],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        report = json.loads((folder / "report.json").read_text())
        return {**report, "printed": done.stdout + done.stderr}

    return run
