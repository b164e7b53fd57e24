# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks' main ratios in one table, each beside the goal that was set for it.

python -m benchmarks.summary
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsejepa_hf.records import NONE, render_into, table

from .end_to_end import costs
from .harness import records
from .harness.records import ROOT, device_name, origin_line
from .inference import import_ratio
from .input import BESIDE, FOLDER, MEMORY, ROWS, SAMPLER
from .step import EAGER, LIGHTLY, OURS, PRECISIONS, STRAIGHTFORWARD, memory_ratio


Row = tuple[str, str, str]
NAMES = ("step", "input", "end_to_end", "inference")


def read(results_dir: Path, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """The full runs' records by benchmark.

    Raises:
        FileNotFoundError: if one is missing.
    """
    paths = {name: results_dir / f"benchmark_{name}_{device}.json" for name in NAMES}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        commands = ", ".join(f"`python -m benchmarks.{name} --results_dir {results_dir}`" for name in missing)
        raise FileNotFoundError(
            f"{results_dir} has no full record of {', '.join(missing)} (short and smoke runs do not count); run "
            f"{commands} first."
        )
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def render(found: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown, and a line on where the numbers come from, for each record if they differ."""
    rows = [*_step_rows(found["step"]), *_input_rows(found["input"]), *_run_rows(found["end_to_end"])]
    reference, ratio = import_ratio(found["inference"])
    rows.append((f"`import sparsejepa_hf` against `{reference}`", f"{ratio:.2f}×", "below 1.3×"))
    # Ratios are a machine's own.
    measured = "measured on " + " and ".join(sorted({device_name(record) for record in found.values()}))
    lines = {name: origin_line(record) for name, record in found.items()}
    origin = "\n\n".join(f"{name}: {line}" for name, line in lines.items())
    if len(set(lines.values())) == 1:
        origin = lines["step"]
    return f"{table(['what', measured, 'goal'], rows)}\n\n{origin}"


def _step_rows(record: dict[str, Any]) -> Iterator[Row]:
    case = record["cases"][0]
    rows = {(row["candidate"], row["precision"], row["mode"]): row for row in case["rows"]}
    ours = rows[OURS, "fp32", EAGER]
    best = max((row for key, row in rows.items() if key[0] == OURS), key=lambda row: row["speedup_over_fp32"])
    where = f"{case['name']}, batch {case['batch']}"
    yield (
        f"step against a straightforward I-JEPA loop, both in fp32 ({where})",
        f"{ours['speedup_over_fp32']:.2f}×",
        "1.15×",
    )
    setting = f"our best setting ({best['precision']}, {best['mode']})"
    yield f"{setting} against that loop in fp32", f"{best['speedup_over_fp32']:.2f}×", "1.8×"
    yield f"{setting} against that loop in {best['precision']}", f"{best['speedup_same_precision']:.2f}×", ""
    for precision in PRECISIONS:
        loops = [row for key, row in rows.items() if key[:2] == (STRAIGHTFORWARD, precision)]
        fastest = max(loops, key=lambda row: row["speedup_same_precision"])
        mine = max(row["speedup_same_precision"] for key, row in rows.items() if key[:2] == (OURS, precision))
        yield (
            f"step against the loop at its best ({fastest['mode']}), both in {precision}",
            f"{mine / fastest['speedup_same_precision']:.2f}×",
            "",
        )
    if (LIGHTLY, "fp32", EAGER) in rows:
        ratio = ours["speedup_same_precision"] / rows[LIGHTLY, "fp32", EAGER]["speedup_same_precision"]
        yield "step against lightly's I-JEPA modules, both in fp32", f"{ratio:.2f}×", ""
    added = ", ".join(f"{100 * cost:+.1f} % in {precision}" for precision, cost in case["grouping_cost"].items())
    yield "what the grouping adds to a step of I-JEPA", added, "at most 8 %"
    yield "share of the measured peak of a matrix product, fp32", f"{100 * ours['share_of_peak']:.0f} %", "60 %"
    for case in record["cases"]:
        rows = {(row["candidate"], row["precision"], row["mode"]): row for row in case["rows"]}
        ratios = []
        for precision in PRECISIONS:
            loop, ours = (rows[name, precision, EAGER] for name in (STRAIGHTFORWARD, OURS))
            found = (memory_ratio(ours, loop, kind) for kind in ("peak_tensor_bytes", "peak_resident_bytes"))
            tensors, resident = (NONE if ratio is None else f"{ratio:.3f}×" for ratio in found)
            ratios.append(f"{precision} {tensors} ({resident})")
        where = f"{case['name']}, batch {case['batch']}"
        what = f"peak memory of a step against the straightforward loop's: tensors (process), {where}"
        yield what, ", ".join(ratios), "0.8×"


def _input_rows(record: dict[str, Any]) -> Iterator[Row]:
    for grid in sorted({row["grid"] for row in record["masks"]}):
        wanted = (SAMPLER, grid, 1)
        masks = [row for row in record["masks"] if (row["candidate"], row["grid"], row["threads"]) == wanted]
        batches = ", ".join(f"{row['batch']:,}" for row in masks)
        yield (
            f"masks against a collator image by image, {grid} × {grid}, batch {batches}, one core",
            ", ".join(f"{row['speedup']:.0f}×" for row in masks),
            "50×",
        )
    for size in sorted({row["image_size"] for row in record["pipeline"]}):
        for name in (MEMORY, ROWS, FOLDER):
            rows = [r for r in record["pipeline"] if (r["candidate"], r["image_size"]) == (name, size)]
            found = {(row["workers"], row["threads"]): f"{row['speedup']:.2f}×" for row in rows}
            most = max(found)
            where = f"{size} px: one core; {most[0]} workers each"
            yield (
                f"input, {name.removeprefix('ours, ')}, against the {BESIDE[name]}, {where}",
                f"{found[0, 1]}; {found[most]}",
                "5×" if size == 32 else "",
            )
    for size in sorted({row["image_size"] for row in record["step"]}):
        ours = [r for r in record["step"] if r["image_size"] == size and r["candidate"].startswith("ours")]
        slowest = max(ours, key=lambda row: row["share"])
        yield (
            f"our slowest input's share of input, forward and backward pass, in series: width {slowest['width']} × "
            f"{slowest['layers']} layers, {size} px",
            f"{100 * slowest['share']:.1f} %",
            "no bottleneck",
        )


def _run_rows(record: dict[str, Any]) -> Iterator[Row]:
    for case in record["cases"]:
        cost = costs(case)
        yield (
            f"a whole run with its logs and kNN beyond its bare steps (its own parts summed), {case['name']}, batch "
            f"{case['batch']}",
            f"{100 * cost['whole']:+.1f} % ({100 * cost['added']:+.1f} %)",
            # Set for a batch of 256, the larger model's.
            "at most 5 %" if case["batch"] == 256 else "",
        )


def write(results_dir: Path, device: str = "cpu") -> None:
    """Renders the records of full runs on `device` between their marks in the documentation."""
    tables = {}
    for path in sorted(results_dir.glob(f"benchmark_*_{device}.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["options"]["effort"] == "full":
            tables[path.name] = records.render(record)
            path.with_suffix(".md").write_text(tables[path.name] + "\n", encoding="utf-8")
    # A GPU's summary stands beside the CPU's, never in its place.
    name = "benchmarks" if device == "cpu" else f"benchmarks_{device}"
    summary = {name: render(read(results_dir, device))}
    for path, contents in ((ROOT / "benchmarks" / "README.md", tables), (ROOT / "docs" / "benchmarks.md", summary)):
        text = path.read_text(encoding="utf-8")
        for name, content in contents.items():
            text = render_into(text, name, content)
        path.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Prints the table, and writes it on demand."""
    flags = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    flags.add_argument("--results_dir", type=Path, default=ROOT / "results", help="where the records lie")
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument("--write", action="store_true", help="render all records into the documentation too")
    options = flags.parse_args(argv)
    print(render(read(options.results_dir, options.device)))
    if options.write:
        write(options.results_dir, options.device)


if __name__ == "__main__":
    main()
