# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Two nodes on one machine: trains across two network namespaces, kills a node, resumes, and compares with no kill.

    sudo python tests/reliability/two_nodes.py

It needs Linux and the right to make namespaces. A node is a namespace with an address of its own on a virtual cable; a
launcher in each starts one process. The folder is shared, as between machines of a cluster.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch


ROOT = Path(__file__).parents[2]
NODES = {"sparsejepa-a": "10.77.0.1", "sparsejepa-b": "10.77.0.2"}
RUN = ["-m", "sparsejepa_hf", "pretrain", "demo", "--max_train_examples", "64", "--max_eval_examples", "32"]
RUN += ["--max_steps", "40", "--per_device_train_batch_size", "8", "--knn_steps", "0", "--probe", "false"]
RUN += ["--save_strategy", "steps", "--save_steps", "10", "--report_to", "none", "--ddp_timeout", "60"]
SECONDS = 240


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """The namespaces of [`NODES`], with a cable between them.

    Raises:
        OSError, subprocess.CalledProcessError: there is no `ip` here, or no right to make namespaces.
    """
    try:
        for name in NODES:
            _ip(f"netns add {name}")
        first, second = NODES
        _ip(f"link add cable netns {first} type veth peer name cable netns {second}")
        for name, address in NODES.items():
            _ip(f"-n {name} address add {address}/24 dev cable")
            for device in ("lo", "cable"):
                _ip(f"-n {name} link set {device} up")
        yield
    finally:
        for name in NODES:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip(f"netns del {name}")


def start(rank: int, output_dir: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The launcher of one node, which leads a process group."""
    name = list(NODES)[rank]
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "1"]
    launch += ["--master_addr", next(iter(NODES.values())), "--master_port", "29511"]
    words = [sys.executable, *launch, *RUN, "--output_dir", str(output_dir), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # Gloo would take the address that the host's name has.
    environment |= {"GLOO_SOCKET_IFNAME": "cable", "CUDA_VISIBLE_DEVICES": ""}
    with (output_dir.parent / f"{output_dir.name}-{rank}.log").open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def kill(node: subprocess.Popen[bytes]) -> None:
    """Ends all processes of a node at once, as a power cut would. Workers lead sessions of their own."""
    tree, found = [node.pid], 0
    while found < len(tree):
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{tree[found]}/task/{tree[found]}/children").read_text(encoding="ascii")
            tree += map(int, children.split())
        found += 1
    for process in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    node.wait()


def train(output_dir: Path, *flags: str, kill_after: str | None = None) -> list[int]:
    """The exit status of both nodes; the second is killed once the file `kill_after` is there."""
    nodes = [start(rank, output_dir, *flags) for rank in range(2)]
    try:
        end = time.monotonic() + SECONDS
        while kill_after is not None and not (output_dir / kill_after).exists() and time.monotonic() < end:
            time.sleep(0.01)
        if kill_after is not None:
            kill(nodes[1])
        return [node.wait(timeout=SECONDS) for node in nodes]
    finally:
        for node in nodes:
            kill(node)


def compare(folder: Path) -> dict[str, object]:
    """Trains whole, and killed and resumed; `statuses` of the three launches, and whether the weights are `equal`."""
    with network():
        statuses = [train(folder / "whole")]
        statuses.append(train(folder / "killed", kill_after="checkpoint-20/trainer_state.json"))
        lost_results = not (folder / "killed" / "pretraining_results.json").exists()
        statuses.append(train(folder / "killed", "--resume_from_checkpoint", "true"))
    whole, resumed = (safetensors.torch.load_file(folder / n / "model.safetensors") for n in ("whole", "killed"))
    equal = whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    return {"statuses": statuses, "no_results_when_killed": lost_results, "equal": equal}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(compare(Path(name)))
