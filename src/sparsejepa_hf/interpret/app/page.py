# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The page: a Gradio layout around a `GroupExplorer`."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ..patches import shown_colors
from .explorer import (
    MAX_UPLOAD_BYTES,
    MAX_UPLOAD_PIXELS,
    GroupExplorer,
    Reading,
    UnusableUploadError,
    color_of,
    overlay,
    read_upload,
)


NUM_EXAMPLES = 12
NUM_NEAREST = 12
# Images up to so many pixels a side are shown with their pixels as squares; larger ones smoothly.
_MAX_SQUARE_PIXELS = 96
# Fonts that are on the reader's machine: nothing is fetched.
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
_MONOSPACE = ("ui-monospace", "Menlo", "Consolas", "monospace")
# An upload that the page no longer needs is deleted at once; what Gradio keeps beside it, after an hour.
_CACHE_SECONDS = 3600
_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def build_page(explorer: GroupExplorer) -> gr.Blocks:
    """Lays the page out; [`launch`] does so and starts it."""
    view = _View(explorer)
    first, everything = explorer.readings[0], list(range(explorer.num_groups))
    examples = explorer.readings[:NUM_EXAMPLES]
    choices = [(f"Group {group}", group) for group in everything]
    with gr.Blocks(
        title="What the groups see", analytics_enabled=False, delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS)
    ) as page:
        reading = gr.State(first)
        gr.HTML(view.introduction())
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                gr.HTML(
                    "<h2>1. Choose an image</h2>"
                    f"<p>Upload one (at most {MAX_UPLOAD_BYTES // 1024**2} MB), or pick one below.</p>"
                )
                upload = gr.File(
                    show_label=False,
                    file_types=["image"],
                    height=130,
                    elem_id="upload",
                )
                message = gr.HTML(view.showing(first), elem_id="message")
                gallery = gr.Gallery(
                    [(_enlarged(example.pixel_values), example.name) for example in examples],
                    show_label=False,
                    format="png",
                    columns=6,
                    allow_preview=False,
                    interactive=False,
                    object_fit="cover",
                    buttons=[],
                    elem_id="examples",
                )
            with gr.Column(scale=3, min_width=300):
                gr.HTML("<h2>2. Switch groups on and off</h2>")
                chosen = gr.CheckboxGroup(choices, value=everything, show_label=False, elem_id="groups")
                with gr.Row(elem_id="switches"):
                    all_on = gr.Button("All on", size="sm", min_width=80)
                    all_off = gr.Button("All off", size="sm", min_width=80)
                by_place = gr.Checkbox(
                    True,
                    label="Compare each patch with the same place in other images",
                    info="A group is often active at one place, whatever the image shows. Off: compare with all.",
                    elem_id="by-place",
                )
                pictures = gr.HTML(view.pictures(first, everything, True), elem_id="pictures")
        gr.HTML("<h2>3. The map of every group</h2>")
        maps = gr.HTML(view.maps(first, everything, True), elem_id="maps")
        gr.HTML("<h2>4. The nearest images, by the chosen groups</h2>")
        nearest = gr.HTML(view.nearest(first, everything, True), elem_id="nearest")
        gr.HTML(view.explanation())

        settings = [chosen, by_place]
        shown = [pictures, maps, nearest]
        # The endpoints serve this page alone.
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": pictures}
        upload.upload(view.take_upload, [upload, reading, *settings], [upload, reading, message, *shown], **quiet)
        gallery.select(view.pick_example, settings, [reading, message, *shown], **quiet)
        gr.on(
            [chosen.change, by_place.change],
            view.show,
            [reading, *settings],
            shown,
            trigger_mode="always_last",
            **quiet,
        )
        all_on.click(lambda: everything, None, chosen, **quiet)
        all_off.click(lambda: [], None, chosen, **quiet)
    return page


def launch(explorer: GroupExplorer, **options: Any) -> tuple[gr.Blocks, str]:
    """Starts the page and returns it with its address; `options` are those of Gradio's `launch`."""
    page = build_page(explorer)
    _, address, _ = page.launch(
        theme=gr.themes.Default(primary_hue="slate", font=_FONTS, font_mono=_MONOSPACE),
        css=_CSS + _group_colors(explorer.num_groups),
        max_file_size=MAX_UPLOAD_BYTES,
        footer_links=["gradio"],
        run_history=False,
        ssr_mode=False,
        show_error=True,
        **options,
    )
    return page, address


class _View:
    """What the page says and draws, as HTML, and what its controls call."""

    def __init__(self, explorer: GroupExplorer) -> None:
        self.explorer = explorer
        self._square = max(explorer.pixel_format.shape[1:]) <= _MAX_SQUARE_PIXELS
        self._about = [self._about_group(group) for group in range(explorer.num_groups)]

    # ---- what controls call ----

    def take_upload(self, path: str | None, reading: Reading, groups: list[int], by_place: bool) -> tuple:
        """A new image, or the old one with a message; the field is empty again afterwards."""
        if path is None:
            return None, *[gr.skip()] * 5
        try:
            pixel_values = read_upload(path, self.explorer.pixel_format)
        except UnusableUploadError as error:
            return None, gr.skip(), self._failed(f"{Path(path).name}: {error}", reading), *[gr.skip()] * 3
        finally:
            # Nobody's picture is kept.
            Path(path).unlink(missing_ok=True)
        reading = self.explorer.read(pixel_values, Path(path).name)
        return None, reading, self.showing(reading), *self.show(reading, groups, by_place)

    def pick_example(self, groups: list[int], by_place: bool, event: gr.SelectData) -> tuple:
        """One of the index's first images."""
        reading = self.explorer.readings[event.index]
        return reading, self.showing(reading), *self.show(reading, groups, by_place)

    def show(self, reading: Reading, groups: list[int], by_place: bool) -> tuple[str, str, str]:
        """Pictures, maps and nearest images."""
        groups = sorted(groups)
        return (
            self.pictures(reading, groups, by_place),
            self.maps(reading, groups, by_place),
            self.nearest(reading, groups, by_place),
        )

    # ---- what it says ----

    def introduction(self) -> str:
        """What the checkpoint is, and how sparse."""
        structure = self.explorer.structure
        latents = structure.column_norms.shape[1]
        zero, dead = structure.zero_columns, len(structure.dead_groups)
        if zero == 1:
            sparsity = "All columns of W are zero, so no latent belongs to any group and all maps are empty."
        elif zero == 0:
            sparsity = (
                "No column of W is exactly zero, so every latent belongs to every group. Groups differ only by how "
                "much a latent counts in them."
            )
        else:
            per_latent = structure.groups_per_latent.mean()
            sparsity = (
                f"{_percent(zero)} of the columns of W are exactly zero; a latent is in {per_latent:.1f} groups."
            )
        if 0 < dead < self.explorer.num_groups:
            sparsity += f" {dead} of the groups {'is' if dead == 1 else 'are'} dead: no latent belongs to them."
        return (
            "<h1>What the groups see</h1>"
            f"<p class='lead'><strong>{_text(_short(self.explorer.name))}</strong> is a SparseJEPA with "
            f"{self.explorer.num_groups} groups over {latents} latents. {sparsity} See where in an image each group "
            f"is active, and which of {len(self.explorer):,} images it finds alike.</p>"
        )

    def showing(self, reading: Reading) -> str:
        """The line below the choice of images."""
        return f"<p role='status'>Showing: <strong>{_text(reading.name)}</strong></p>"

    def _failed(self, problem: str, reading: Reading) -> str:
        return f"<p role='alert' class='problem'>{_text(problem)}</p>" + self.showing(reading)

    def pictures(self, reading: Reading, groups: Sequence[int], by_place: bool) -> str:
        """The image, and the image coloured by the chosen groups."""
        _, height, width = self.explorer.pixel_format.shape
        part = "the central square" if height == width else "the centre"
        plain = self._picture(shown_colors(reading.pixel_values), f"The image: {reading.name}")
        colored = self._picture(
            self.explorer.overlay(reading, groups, by_place), f"The image coloured by {self._list(groups)}"
        )
        if groups:
            caption = "".join(_chip(group) for group in groups)
        else:
            caption = "All groups are switched off, so the image keeps its colours."
        return (
            f"<div class='pair'><figure>{plain}<figcaption>What the model gets: {part}, {width} × {height} "
            f"pixels</figcaption></figure><figure>{colored}<figcaption>{caption}</figcaption></figure></div>"
        )

    def maps(self, reading: Reading, groups: Sequence[int], by_place: bool) -> str:
        """A card for each group: its map over the image, how active it is here, and what it is."""
        rank = self.explorer.rank(reading)
        levels = self.explorer.levels(reading, by_place)
        cards = []
        for group in range(self.explorer.num_groups):
            picture = self._picture(overlay(reading.pixel_values, levels, [group]), f"Where group {group} is active")
            state = "" if group in groups else " off"
            switch = "" if group in groups else " <span class='state'>switched off</span>"
            cards.append(
                f"<article class='card{state}'><h3>{_chip(group)}{switch}</h3>{picture}"
                f"<p>More active than in <strong>{_percent(rank[group])}</strong> of the images.</p>"
                f"{self._about[group]}</article>"
            )
        return f"<div class='cards'>{''.join(cards)}</div>"

    def nearest(self, reading: Reading, groups: Sequence[int], by_place: bool) -> str:
        """The nearest images with their similarity, plain and coloured."""
        if not groups:
            return (
                "<p class='note'>All groups are switched off. Switch at least one on to find the nearest images.</p>"
            )
        found = self.explorer.nearest(reading, groups, NUM_NEAREST)
        if not found:
            return (
                f"<p class='note'>No nearest images: {self._list(groups)} "
                f"{'says' if len(groups) == 1 else 'say'} the same of every image.</p>"
            )
        cards = []
        for image, similarity in found:
            other = self.explorer.readings[image]
            plain = self._picture(shown_colors(other.pixel_values), f"A near image: {other.name}")
            colored = self._picture(
                self.explorer.overlay(other, groups, by_place), f"The same image coloured by {self._list(groups)}"
            )
            is_same = np.array_equal(other.pixel_values, reading.pixel_values)
            note = "the image itself" if is_same else f"similarity {similarity:.2f}"
            cards.append(f"<figure>{plain}{colored}<figcaption>{_text(other.name)}<br>{note}</figcaption></figure>")
        together = " together" if len(groups) > 1 else ""
        return (
            f"<p class='note'>By {self._list(groups)}{together}. Similarity: 1 is the same, about 0 is unrelated.</p>"
            f"<div class='near'>{''.join(cards)}</div>"
        )

    def explanation(self) -> str:
        """How to read the page."""
        return (
            "<details class='how'><summary>How to read this page</summary>"
            "<p><strong>Activation.</strong> A latent of a patch is one number. A group takes the latents that belong "
            "to it through its matrix W⁽ᵍ⁾. Its activation is the length of what comes out, ‖W⁽ᵍ⁾μ‖.</p>"
            "<p><strong>Colour.</strong> It begins where a group is more active than in half of the images, and is "
            "full from the most active 1 % on. The scale is the same for all images of a group. With several groups, "
            "a pixel takes the colour of the group that is highest on its own scale.</p>"
            "<p><strong>Nearest images.</strong> What the chosen groups get from an image, averaged over its patches, "
            "less the average over all images, compared by the cosine.</p>"
            "<p><strong>Classes.</strong> Named where a group is more active in the images of a class than shuffled "
            "labels would make it in one case of forty.</p>"
            f"<p><strong>Uploads.</strong> At most {MAX_UPLOAD_BYTES // 1024**2} MB and {MAX_UPLOAD_PIXELS // 10**6} "
            "million pixels. An upload is deleted once it was read.</p></details>"
        )

    def _about_group(self, group: int) -> str:
        structure = self.explorer.structure
        count, latents = int(structure.latents_per_group[group]), structure.column_norms.shape[1]
        if not count:
            return "<p>Dead: no latent belongs to it.</p>"
        most = ", ".join(map(str, self.explorer.important_latents(group)))
        lines = [
            f"Holds {count} of {latents} latents ({_percent(1 - count / latents)} of its columns are zero). The most "
            f"important: {most}."
        ]
        classes = self.explorer.classes(group)
        if classes:
            lines.append(f"Most active in: {_text(', '.join(classes))}.")
        elif classes is not None:
            lines.append("No class stands out.")
        return "".join(f"<p>{line}</p>" for line in lines)

    def _list(self, groups: Sequence[int]) -> str:
        return _list_groups(groups, self.explorer.num_groups)

    def _picture(self, pixels: np.ndarray, description: str) -> str:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        code = base64.b64encode(buffer.getvalue()).decode()
        kind = " class='square'" if self._square else ""
        return f"<img{kind} src='data:image/png;base64,{code}' alt='{_text(description)}'>"


def _text(words: str) -> str:
    """Safe inside HTML. Gradio's templates also read braces and dollars."""
    return html.escape(words).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def _short(name: str) -> str:
    """The last part of a path, unless it says nothing; a name on the Hub stays whole."""
    if not os.path.isdir(name):
        return name
    last = Path(name).resolve().name
    return "This checkpoint" if last == "checkpoint" else last


def _percent(share: float) -> str:
    """Whole per cent; 0 and 100 only where that is exact."""
    return f"{min(max(round(100 * share), int(share > 0)), 100 - int(share < 1))} %"


def _list_groups(groups: Sequence[int], total: int) -> str:
    if not groups:
        return "no group"
    if 1 < len(groups) == total:
        return f"all {total} groups"
    if len(groups) == 1:
        return f"group {groups[0]}"
    return f"groups {', '.join(map(str, groups[:-1]))} and {groups[-1]}"


def _group_colors(num_groups: int) -> str:
    """Style rules that mark each group's switch with its colour."""
    rules = []
    for group in range(num_groups):
        red, green, blue = color_of(group)
        rules.append(f"#groups label:nth-of-type({group + 1}) {{ border-left: 6px solid rgb({red} {green} {blue}); }}")
    return "\n".join(rules)


def _chip(group: int) -> str:
    red, green, blue = color_of(group)
    return f"<span class='chip'><i style='background: rgb({red} {green} {blue})'></i>Group {group}</span>"


def _enlarged(pixel_values: np.ndarray) -> np.ndarray:
    """A thumbnail for the gallery, which would smooth a smaller one: uint8 (H, W, 3)."""
    times = max(1, 128 // pixel_values.shape[1])
    return shown_colors(pixel_values).repeat(times, axis=0).repeat(times, axis=1)
