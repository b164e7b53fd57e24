# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`examples/pretrain.py` with a clock: writes the curve of kNN accuracy over the time that training took.

    python benchmarks/clocked_pretrain.py RECIPE [--flag value …] --output_dir FOLDER

`benchmarks.time_to_accuracy` starts it as a process for each run.
"""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import transformers.trainer
from torch.utils.benchmark import timer
from transformers import TrainerCallback


SCRIPT = Path(__file__).parents[1] / "examples" / "pretrain.py"
CURVE = "knn_curve.json"


class Clock(TrainerCallback):
    """Notes at each kNN accuracy in the log how long training took until then, without the kNN measurements.

    It has to come before the callback that measures, so that its step ends first.
    """

    def __init__(self) -> None:
        self._points: list[dict[str, float]] = []
        self._trained = {"seconds": 0.0, "cpu_seconds": 0.0}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            raise ValueError(
                f"The run goes on from step {state.global_step}, but how long its first steps took is not known. "
                "Delete its folder, and it begins anew."
            )
        self._since = self._paused = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._paused = self._now()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "knn_accuracy" not in (logs or {}):
            return
        for name in self._trained:
            self._trained[name] += self._paused[name] - self._since[name]
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        place = {"step": state.global_step, "images": state.global_step * batch}
        self._points.append({**place, **self._trained, "knn_accuracy": logs["knn_accuracy"]})
        path = Path(args.output_dir) / CURVE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._points), encoding="utf-8")
        self._since = self._paused = self._now()

    @staticmethod
    def _now() -> dict[str, float]:
        # The timer waits for a GPU: steps that are still under way belong to training, not to the measurement.
        return {"seconds": timer(), "cpu_seconds": time.process_time()}


if __name__ == "__main__":
    # These come before all other callbacks of a Trainer.
    transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
    sys.argv[0] = str(SCRIPT)
    runpy.run_path(str(SCRIPT), run_name="__main__")
