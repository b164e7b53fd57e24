# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train I-JEPA and SparseJEPA at several λ with the same data, seed, masks and steps, and compare them.

    python examples/compare_sparsity.py examples/configs/cifar100-cpu.yaml --sparsity_weights 0.1 0.3 1.0 \
        --dataset path/to/cifar100 --jobs 2 --results results/cifar100_cpu.json
    python examples/compare_sparsity.py --render results/cifar100_cpu.json --into README.md

Every run is one `examples/pretrain.py`. The results file holds options, seed, versions, machine, commit, the
comparison of features and the history of every run; table and plot are rendered from it.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from sparsejepa_hf.evaluation import provenance


HISTORY = ("step", "prediction_loss", "kl_loss", "rankme", "target_std", "zero_columns", "groups_per_latent")
HISTORY += ("dead_latents", "dead_groups", "mean_column_norm", "sparsity_pull", "knn_accuracy", "images_per_second")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Own flags, and the rest, which goes to every run."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="YAML of the SparseJEPA run")
    parser.add_argument("--sparsity_weights", type=float, nargs="+", default=[0.1, 0.3, 1.0], help="λ of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--output_dir", default="runs/compare_sparsity", help="folder of the runs")
    parser.add_argument("--results", default="results/compare_sparsity.json", help="file to write")
    parser.add_argument("--add", action="store_true", help="add these λ to the results file, at the same commit")
    parser.add_argument("--render", help="only render table and plot of this results file")
    parser.add_argument("--into", help="Markdown file to put the table into, between the marks of the results file")
    own, rest = parser.parse_known_args()
    if not own.render and not own.config:
        parser.error("name a YAML file, or --render a results file")
    return own, rest


def run(name: str, config: str, options: list[str], output_dir: Path, threads: int) -> dict[str, Any]:
    """One pre-training run; returns what it wrote."""
    folder = output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("pretrain.py")), config, *options]
    command += ["--output_dir", str(folder), "--disable_tqdm", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
    print(f"finished {name}", flush=True)
    results = json.loads((folder / "pretraining_results.json").read_text())
    state = json.loads((folder / "trainer_state.json").read_text())
    resolved = yaml.safe_load((folder / "pretraining_options.yaml").read_text())
    keep = [{key: entry[key] for key in HISTORY if key in entry} for entry in state["log_history"]]
    # Folders of the machine that ran it say nothing about the result.
    dropped = ("output_dir", "logging_dir", "dataset")
    return {
        "name": name,
        "comparison": results["comparison"],
        "train_seconds": results["train_metrics"]["train_runtime"],
        "num_train_examples": results["num_train_examples"],
        "options": {key: value for key, value in resolved.items() if key not in dropped},
        "history": [entry for entry in keep if len(entry) > 1],
    }


def measure(own: argparse.Namespace, options: list[str]) -> None:
    """All runs, then the results file."""
    # At the start: what is committed meanwhile did not run.
    origin = provenance()
    baseline = {"I-JEPA": ["--use_grouping", "false", "--sparsity_weight", "0", "--kl_weight", "0"]}
    kinds = {} if own.add else baseline
    kinds |= {f"SparseJEPA, λ = {weight:g}": ["--sparsity_weight", str(weight)] for weight in own.sparsity_weights}
    with ThreadPoolExecutor(own.jobs) as pool:
        jobs = [
            pool.submit(run, name, own.config, [*options, *flags], Path(own.output_dir), own.threads)
            for name, flags in kinds.items()
        ]
        runs = [job.result() for job in jobs]
    record = {**origin, "jobs": own.jobs, "threads_per_run": own.threads, "config": Path(own.config).name}
    path = Path(own.results)
    if own.add:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["commit"] != record["commit"] or earlier["config"] != record["config"]:
            raise ValueError(
                f"{path} is from commit {earlier['commit']}; runs of {record['commit']} do not belong there."
            )
        record, runs = earlier, sorted(earlier["runs"] + runs, key=lambda entry: sparsity(entry))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**record, "runs": runs}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sparsity(entry: dict[str, Any]) -> float:
    """λ of a run; I-JEPA sorts first."""
    options = entry["options"]
    return options["sparsity_weight"] if options.get("use_grouping", True) else -1.0


def last(run_record: dict[str, Any], key: str) -> float | None:
    """The last logged value of a quantity."""
    return next((entry[key] for entry in reversed(run_record["history"]) if key in entry), None)


def render_table(record: dict[str, Any]) -> str:
    """Markdown: accuracies of every run beside the untrained encoder and raw pixels, and what became of W."""
    shown = "kNN linear loss RankMe λ·Ση zero-columns groups/latent dead-latents".split()
    lines = ["| features | " + " | ".join(shown).replace("-", " ") + " |", "|---" * (len(shown) + 1) + "|"]

    def row(name: str, result: dict[str, float], values: list[str]) -> str:
        accuracies = [f"{100 * result[key]:.1f}" for key in ("knn_accuracy", "linear_accuracy")]
        return f"| {name} | " + " | ".join([*accuracies, *values]) + " |"

    first = record["runs"][0]["comparison"]
    lines += [row(name, first[name], ["–"] * 6) for name in ("raw pixels", "untrained")]
    for entry in record["runs"]:
        numbers = [
            f"{last(entry, 'prediction_loss'):.3f}",
            f"{last(entry, 'rankme'):.1f}",
            *("–" if last(entry, key) is None else f"{last(entry, key):.3g}" for key in ("sparsity_pull",)),
            *("–" if last(entry, key) is None else f"{100 * last(entry, key):.1f} %" for key in ("zero_columns",)),
            *("–" if last(entry, key) is None else f"{last(entry, key):.2f}" for key in ("groups_per_latent",)),
            *("–" if last(entry, key) is None else f"{last(entry, key):.0f}" for key in ("dead_latents",)),
        ]
        lines.append(row(entry["name"], entry["comparison"]["trained"], numbers))
    return "\n".join(lines)


def render_plot(record: dict[str, Any], path: Path) -> None:
    """Loss, RankMe, sparsity of W and kNN accuracy against the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "prediction_loss": "prediction loss",
        "rankme": "RankMe",
        "zero_columns": "share of W's columns that are exactly zero",
        "knn_accuracy": "kNN top-1, held out",
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for axis, (key, title) in zip(axes.flat, panels.items(), strict=True):
        for index, entry in enumerate(record["runs"]):
            points = [(h["step"], h[key]) for h in entry["history"] if key in h and "step" in h]
            if points:
                axis.plot(*zip(*points, strict=True), label=entry["name"], color=f"C{index}", linewidth=1.5)
        axis.set(title=title, xlabel="optimizer step")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def render_into(text: str, results: Path, table: str) -> str:
    """`text` with the table between `<!-- results/NAME.json -->` and `<!-- end -->`.

    Raises:
        ValueError: if `text` has no such marks.
    """
    mark, end = f"<!-- results/{results.name} -->", "<!-- end -->"
    if mark not in text or end not in text.split(mark, 1)[1]:
        raise ValueError(f"There are no marks {mark} and {end}; put them where the table should stand.")
    before, rest = text.split(mark, 1)
    return f"{before}{mark}\n{table}\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    """Measures unless told to render only, then renders beside the results file."""
    own, options = parse()
    if not own.render:
        measure(own, options)
    path = Path(own.render or own.results)
    record = json.loads(path.read_text(encoding="utf-8"))
    table = render_table(record)
    path.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    render_plot(record, path.with_suffix(".png"))
    if own.into:
        target = Path(own.into)
        target.write_text(render_into(target.read_text(encoding="utf-8"), path, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
