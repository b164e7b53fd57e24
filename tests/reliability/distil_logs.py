# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Distils the logs of finished runs into what the alarms are tested on.

    python tests/reliability/distil_logs.py runs > tests/reliability/data/reference_logs.json

Of each run below the folder: its λ and β, and the logs where a quantity that an alarm looks at is nearest to it, with
three digits. Each alarm looks at one quantity, so a run that raises none there raises none anywhere.
"""

import json
import sys
from pathlib import Path
from typing import Any


OPTIONS = ("use_grouping", "variational", "num_latents", "sparsity_weight", "kl_weight", "sparsity_mode")
WEIGHTS = ("sparsity_weight", "kl_weight")
QUANTITIES = ("step", "target_std", "rankme", "prediction_loss", "kl_loss", "sparsity_loss", "dead_latents", *WEIGHTS)


def extremes(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    """The logs nearest to each alarm, in their order."""
    rows = [{name: log[name] for name in QUANTITIES if name in log} for log in logs if "rankme" in log]
    chosen = {min(rows, key=lambda row: row[name])["step"] for name in ("target_std", "rankme")}
    chosen.add(max(rows, key=lambda row: row["prediction_loss"])["step"])
    # The other alarms wait for the end of the warm-ups of λ and β.
    full = [row for row in rows if all(row.get(name) == rows[-1].get(name) for name in WEIGHTS)]
    chosen.add(min(full, key=lambda row: row["kl_loss"])["step"])
    chosen.add(max(full, key=lambda row: row.get("dead_latents", 0.0))["step"])
    for name in WEIGHTS:
        part = name.replace("weight", "loss")
        chosen.add(max(full, key=lambda row: row.get(name, 0.0) * row[part] / row["prediction_loss"])["step"])
    return [{name: float(f"{value:.3g}") for name, value in row.items()} for row in rows if row["step"] in chosen]


def distil(root: Path) -> dict[str, Any]:
    """Extremes and configuration of every run below `root`, by its name; of checkpoints of one run, the last."""
    runs: dict[str, Any] = {}
    for path in sorted(root.rglob("trainer_state.json"), key=lambda path: path.stat().st_mtime):
        folder = path.parent
        name = (folder.parent if folder.name.startswith("checkpoint-") else folder).name
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = json.loads(path.read_text(encoding="utf-8"))
        runs[name] = {
            "options": {option: config[option] for option in OPTIONS if option in config},
            "logs": extremes(state["log_history"]),
        }
    return dict(sorted(runs.items()))


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(run)}" for name, run in distil(Path(sys.argv[1])).items()]
    print("{\n" + ",\n".join(lines) + "\n}")
