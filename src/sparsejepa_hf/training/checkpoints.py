# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or absent: written aside, sealed by a manifest, moved into place, checked at a resume.

A folder `checkpoint-N` is whole if every file has the size and the checksum that its manifest states, and if they are
all that a resume needs.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST_NAME = "manifest.json"
# What begins with a low line is left out of a push.
_STAGING = "_partial"
_SET_ASIDE = "_abandoned-"


# ---- writing ----


def staging_folder(run_dir: str) -> str:
    """Where the checkpoints of `run_dir` are written, until they are whole."""
    return os.path.join(run_dir, _STAGING)


def clear_staging(run_dir: str) -> None:
    """Removes what a save that was cut off left behind."""
    for folder in Path(run_dir).glob(f"{_STAGING}*"):
        shutil.rmtree(folder)


def seal(staged: str, final: str) -> None:
    """Writes the manifest of a folder that was written aside, once its files are on disk, and moves it to `final`.

    If there is a checkpoint in its place, one of the two is whole at any moment.

    Args:
        staged: a folder in [`staging_folder`], which is removed with all that is in it.
        final: the folder `checkpoint-N`.
    """
    source, target = Path(staged), Path(final)
    files: list[Path] = []
    folders = [source]
    for path in sorted(source.rglob("*")):
        (folders if path.is_dir() else files).append(path)
    entries = {
        path.relative_to(source).as_posix(): {"size": path.stat().st_size, "crc32": _checksum(path)} for path in files
    }
    for path in files:
        _sync(path)
    manifest = source / MANIFEST_NAME
    manifest.write_text(json.dumps({"files": entries}, indent=2) + "\n", encoding="utf-8")
    for path in (manifest, *folders):
        _sync(path)
    _put_in_place(source, target)


@contextmanager
def written_aside(folder: str) -> Iterator[str]:
    """A folder to write files into, which are moved into `folder` at the end: each is whole, or as it was before."""
    target = Path(folder)
    aside = target / f"{_STAGING}-files"
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    try:
        yield str(aside)
        for path in [path for path in aside.rglob("*") if path.is_file()]:
            place = target / path.relative_to(aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            _sync(path)
            os.replace(path, place)
        _sync(target)
    finally:
        shutil.rmtree(aside)


def delete_oldest(run_dir: str, limit: int | None, best: str | None) -> None:
    """As `rotate_checkpoints` of transformers, which goes by `save_total_limit`, but by steps, since a copy of a run
    has other times; and what is half deleted is no longer in its place."""
    if limit is None:
        return
    ordered = checkpoints_in(run_dir)[::-1]
    kept = {*ordered[-1:], *([] if best is None else [Path(best)])}
    excess = max(0, len(ordered) - max(limit, len(kept)))
    staging = Path(staging_folder(run_dir))
    for path in [path for path in ordered if path not in kept][:excess]:
        staging.mkdir(exist_ok=True)
        os.replace(path, staging / f"deleted-{path.name}")
    clear_staging(run_dir)


def _put_in_place(staged: Path, final: Path) -> None:
    if final.exists():
        # A process that ends here leaves the staged one, which the next resume puts in place.
        os.replace(final, staged.parent / f"replaced-{final.name}")
    os.replace(staged, final)
    _sync(final.parent)
    shutil.rmtree(staged.parent)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on disk."""
    if os.name == "nt":  # Windows has no such call for what is open to read.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> str:
    """CRC-32: several times as fast as SHA-256, and made to find damage. It is no protection from an attacker."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


# ---- looking ----


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The folders `checkpoint-N` of a run, whole or not, newest first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [path for path in Path(output_dir).glob(f"{prefix}*") if _number_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: _number_of(path) or 0, reverse=True)


def faults_of(folder: str | Path, is_resumed: bool = True) -> list[str]:
    """What is wrong with a checkpoint, one phrase a file; none if it is whole.

    Args:
        folder: of the checkpoint.
        is_resumed: whether a run is to go on from it, so that files which were never written are faults too.
    """
    path = Path(folder)
    if not path.is_dir():
        return ["there is no such folder"]
    if not (path / MANIFEST_NAME).exists():
        # Written before there were manifests, or by transformers alone.
        files = _files_in(path)
        faults = [f"{name} is empty" for name in sorted(files) if (path / name).stat().st_size == 0]
    else:
        try:
            entries = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
            expected = {name: (entry["size"], entry["crc32"]) for name, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"{MANIFEST_NAME} cannot be read ({type(error).__name__}: {error})"]
        files = set(expected)
        faults = [fault for name in expected if (fault := _fault_of(path / name, name, *expected[name]))]
    faults += [f"{what} is missing" for what in _lacking(files) if is_resumed]
    if not faults:
        try:
            step_of(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults = [f"{TRAINER_STATE_NAME} cannot be read ({type(error).__name__}: {error})"]
    return faults


def require_whole(folder: str | Path) -> None:
    """Warns of a checkpoint that has no manifest to check it by.

    Raises:
        ValueError: the checkpoint is not whole.
    """
    if faults := faults_of(folder):
        raise ValueError(
            f"The checkpoint {folder} is not whole, so a run cannot go on from it: {'; '.join(faults)}. Name another "
            "one, or let --resume_from_checkpoint true find the newest that is whole."
        )
    _warn_without_manifest(folder)


def _warn_without_manifest(folder: str | Path) -> None:
    if not (Path(folder) / MANIFEST_NAME).exists():
        logger.warning(
            f"{folder} has no {MANIFEST_NAME}, as older checkpoints have none. Its files are all there, but damage to "
            "them cannot be seen."
        )


def require_best(folder: str) -> None:
    """Checks the best checkpoint before its weights become the model.

    Raises:
        ValueError: it is damaged, or gone.
    """
    if faults := faults_of(folder, is_resumed=False):
        raise ValueError(
            f"The best checkpoint {folder} cannot be loaded at the run's end: {'; '.join(faults)}. Copy it back, and "
            "go on by --resume_from_checkpoint auto; or set load_best_model_at_end to false, to keep the last weights."
        )


def newest_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint of a run that is whole, if there is one; warns of newer ones, and says what is wrong."""
    for folder in checkpoints_in(output_dir):
        if faults := faults_of(folder):
            logger.warning(f"{folder} is not whole and is passed over: {'; '.join(faults)}.")
            continue
        _warn_without_manifest(folder)
        return str(folder)
    return None


def step_of(checkpoint: str | Path) -> int:
    """The step that a checkpoint was written after, as its state says."""
    return int(json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"])


def _number_of(folder: Path) -> int | None:
    number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isascii() and number.isdigit() else None


def _fault_of(path: Path, name: str, size: int, checksum: str) -> str | None:
    try:
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, and {size} were written"
        if _checksum(path) != checksum:
            return f"{name} is damaged: its checksum is not the one it was written with"
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None


def _files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _lacking(files: set[str]) -> list[str]:
    """What a resume needs beside these files. It would begin afresh, without a word, with all but the first two."""

    def any_begins(*starts: str) -> bool:
        return any(name.startswith(starts) for name in files)

    # DeepSpeed keeps all but the random numbers in a folder of its own, and FSDP model and optimizer.
    of_deepspeed = any_begins("global_step")
    has_weights = any_begins("pytorch_model_fsdp") or any(name.endswith(".safetensors") for name in files)
    stem = Path(OPTIMIZER_NAME).stem
    needs = {
        TRAINER_STATE_NAME: TRAINER_STATE_NAME in files,
        "model.safetensors": of_deepspeed or has_weights,
        f"{OPTIMIZER_NAME} (which save_only_model leaves out)": of_deepspeed or any_begins(f"{stem}.", f"{stem}_"),
        SCHEDULER_NAME: of_deepspeed or SCHEDULER_NAME in files,
        "rng_state.pth": any_begins("rng_state"),
    }
    return [what for what, is_there in needs.items() if not is_there]


# ---- choosing ----


def resume_wish(value: str | bool | None) -> str | bool | None:
    """What `resume_from_checkpoint` says, which flags and YAML files give as text: True, "auto", a folder, or None."""
    words: dict[str, str | bool | None] = {"true": True, "false": None, "none": None, "auto": "auto"}
    return words.get(str(value).lower(), value)


def choose_checkpoint(output_dir: str, wish: str | bool | None) -> str | None:
    """The checkpoint that a run goes on from; None: it begins.

    What a save that was cut off left behind is put in place if it is whole, and else removed.

    Args:
        output_dir: of the run.
        wish: as [`resume_wish`] gives it. "auto" takes the newest whole checkpoint, if there is one.

    Raises:
        ValueError: there is no such checkpoint, it is not whole, or it is another run's than those in `output_dir`.
    """
    _end_interrupted_save(output_dir)
    if wish is None:
        return None
    if wish is True or wish == "auto":
        chosen = newest_whole_checkpoint(output_dir)
        if chosen is None and wish is True:
            raise _nothing_whole(output_dir)
        return chosen
    require_whole(str(wish))
    others = checkpoints_in(output_dir)
    if others and Path(str(wish)).resolve().parent != Path(output_dir).resolve():
        raise ValueError(
            f"The run would go on from {wish}, but output_dir {output_dir!r} holds checkpoints of its own, such as "
            f"{others[0].name}. Go on with those by --resume_from_checkpoint auto, or choose another output_dir."
        )
    return str(wish)


def _nothing_whole(output_dir: str | Path) -> ValueError:
    passed = ", ".join(path.name for path in checkpoints_in(output_dir)) or "no folder checkpoint-N"
    return ValueError(
        f"There is no whole checkpoint in {output_dir}; it holds {passed}. Name one that lies elsewhere, or use "
        "--resume_from_checkpoint auto: it sets aside what is not whole, and begins the run anew."
    )


def set_newer_aside(output_dir: str, chosen: str | None) -> None:
    """Renames the checkpoints of steps after the chosen one, all of them if none is: a later resume must not take
    them, and they may be wanted."""
    step = -1 if chosen is None else step_of(chosen)
    for folder in checkpoints_in(output_dir):
        if (_number_of(folder) or 0) > step:
            aside, count = folder.with_name(f"{_SET_ASIDE}{folder.name}"), 1
            while aside.exists():
                count += 1
                aside = folder.with_name(f"{_SET_ASIDE}{folder.name}-{count}")
            folder.rename(aside)
            begin = "The run begins anew" if chosen is None else f"The run goes on from step {step}"
            logger.warning(f"{begin}, so {folder} is set aside as {aside.name}. Delete it if it is not wanted.")


def refuse_other_checkpoints(arguments: TrainingArguments) -> None:
    """Refuses to begin a run where another one lies: its results would be overwritten, and a later resume would take
    the newest checkpoint, whoever wrote it.

    Raises:
        ValueError: `output_dir` holds a run, which is not to be gone on with nor, by `overwrite_output_dir`, begun
            anew; or there is nothing of what is to be gone on with.
    """
    folder, wish = Path(arguments.output_dir), resume_wish(arguments.resume_from_checkpoint)
    if arguments.process_index != 0:
        return
    interrupted = [path.parent.name for path in folder.glob(f"{_STAGING}/*/{MANIFEST_NAME}")]
    checkpoints = [path.name for path in checkpoints_in(folder)] or interrupted
    resumable = [path for path in checkpoints_in(folder) if not _lacking(_files_in(path))] or interrupted
    # Whether what is there is damaged is seen later; that there is nothing need not wait for the images.
    if wish is True and not resumable:
        raise _nothing_whole(folder)
    if isinstance(wish, str) and wish != "auto" and not Path(wish).is_dir():
        require_whole(wish)
    if arguments.overwrite_output_dir or (wish is not None and (resumable or wish != "auto")):
        return
    # A requeued job that ended between weights and results, without a checkpoint, begins again.
    patterns = ("*_results.json",) if wish == "auto" else ("model*.safetensors", "*_results.json")
    written = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    if not written and (wish == "auto" or not checkpoints):
        return
    go_on = "Go on with it by --resume_from_checkpoint auto" if resumable else "It has no checkpoint to go on from"
    raise ValueError(
        f"output_dir {arguments.output_dir!r} holds an earlier run: {', '.join([*checkpoints[:1], *written])}. "
        f"{go_on}; choose another output_dir; or begin anew in this one by --overwrite_output_dir true."
    )


def finished_results(arguments: TrainingArguments, name: str) -> dict[str, Any] | None:
    """The results of the run that is to be gone on with, if it is finished: they stay, and nothing is left to train.

    None where a checkpoint is named, or changes are allowed, such as more steps.

    Args:
        arguments: of the run.
        name: of its results file, which is written last.
    """
    path = Path(arguments.output_dir, name)
    wishes_to_end = resume_wish(arguments.resume_from_checkpoint) in (True, "auto")
    if not wishes_to_end or arguments.overwrite_output_dir or arguments.resume_with_changes:
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    logger.warning(
        f"The run in {arguments.output_dir} is finished: {name} is there, and all stays as it is. To train it for "
        "longer, give another max_steps or num_train_epochs and name it in --resume_with_changes."
    )
    return results


def _end_interrupted_save(output_dir: str) -> None:
    for staged in list(Path(staging_folder(output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        if (staged / MANIFEST_NAME).exists() and not faults_of(staged):
            logger.warning(f"{staged} is whole: it was about to be put in place, and now is.")
            _put_in_place(staged, Path(output_dir) / staged.name)
        else:
            logger.warning(f"{staged} is what was written of a checkpoint when the run ended. It is removed.")
    clear_staging(output_dir)
