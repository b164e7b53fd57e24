# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The page about groups: whole, self-contained, escaped, small, and usable in a browser by keyboard."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import Measure, Null, PatchRecord, Section, group_activations, group_structure
from sparsejepa_hf.interpret.report import MAX_BYTES, format_number, write_figures, write_report


HOSTILE = "<script>alert('x')</script>\"&`"
SECTIONS = (
    Section("objects", "Do groups follow objects?", (), "The data set has no column `mask`.", is_measured=False),
    Section(
        "classes",
        "Do groups follow classes?",
        (
            Measure(
                "information",
                0.5,
                (Null("shuffled labels", (0.1, 0.2)), Null("untrained", (0.9,))),
                (0.4, 0.6),
                "nats",
            ),
            Measure("with no comparison", -12.3),
        ),
        f"Groups tell {HOSTILE} no more than an untrained encoder.",
        details={"by_group": {"Score of its own": [0.25, None, 0.5, 0.75]}},
    ),
)


class Page(HTMLParser):
    """Elements, ids, text and every address that a browser might ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def ids(self) -> list[str | None]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    @property
    def addresses(self) -> list[str]:
        names = {"src", "href", "srcset", "action", "poster", "data", "xlink:href"}
        found = [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]
        return (
            found + re.findall(r"""url\(\s*["']?([^)"']*)""", self.source) + re.findall(r"@import\s+\S+", self.source)
        )


def make_explanation(folder: Path, model, images: int = 15, sections=SECTIONS, **parts) -> SimpleNamespace:
    """What the page needs, from a real checkpoint on noise."""
    model.save_pretrained(folder)
    encoder = load_encoder(str(folder))
    config, rng = model.config, np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 3, config.image_size, config.image_size), dtype=np.uint8)
    arrays = {
        "pixel_values": pixels,
        "features": rng.normal(size=(images, config.num_patches, 16)).astype(np.float32),
        "latents": None,
        "maps": None,
        "labels": np.arange(images) % 3,
        "label_names": ("plain", HOSTILE, "$ & <b>"),
        "masks": None,
        "table": None,
    }
    structure = None
    if config.use_grouping:
        arrays["maps"] = group_activations(model, torch.from_numpy(pixels) / 128 - 1).numpy()
        arrays["latents"] = np.zeros((images, config.num_patches, config.num_latents), np.float32)
        structure = group_structure(model)
    record = PatchRecord(**{**arrays, **parts})
    return SimpleNamespace(encoder=encoder, record=record, structure=structure, sections=sections)


@pytest.fixture(scope="module")
def explanation(make_model, tmp_path_factory) -> SimpleNamespace:
    model = make_model(SparseJEPAForPreTraining)
    with torch.no_grad():
        model.group_weight[:, :, 2] = 0
        model.group_weight[3] = 0
    folder = tmp_path_factory.mktemp("checkpoint")
    log = [{"step": step, "zero_columns": 0.1, "groups_per_living_latent": 2, "dead_latents": 1} for step in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (folder / "pretraining_options.yaml").write_text(f"dataset: /data/{HOSTILE.replace('/', '')}\nmax_steps: 30\n")
    return make_explanation(folder, model)


@pytest.fixture(scope="module")
def path(explanation, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("page") / "new" / "groups.html", explanation, data_name=HOSTILE)


@pytest.fixture(scope="module")
def page(path) -> Page:
    return Page(path)


def test_nothing_is_asked_of_the_network(page):
    assert page.addresses
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert all(attributes["href"].startswith("data:") for attributes in page.all("link"))


def test_every_group_and_every_section_is_there_and_can_be_reached(page, explanation):
    wanted = [f"group-{group}" for group in range(4)] + [f"section-{section.key}" for section in SECTIONS]
    links = [attributes["href"] for attributes in page.all("a")]
    assert set(wanted) <= set(page.ids)
    assert {f"#{target}" for target in wanted} <= set(links)
    assert all(link[1:] in page.ids for link in links), "a link leads nowhere"
    assert len(page.ids) == len(set(page.ids))
    for section in SECTIONS:
        assert section.title in page.text
    assert "Not measured" in page.text and "The data set has no column mask." in page.text
    assert "shuffled labels 0.150 (0.103 to 0.198)" in " ".join(page.text.split())
    assert "no more than untrained" in page.text and "−12.3" in page.text
    assert page.text.count("Score of its own") == 3


def test_what_comes_from_data_is_escaped(page):
    assert HOSTILE not in page.source
    assert page.text.count(HOSTILE.rstrip("`")) > 3
    assert "<b>" not in page.source


def test_every_picture_says_what_it_shows(page):
    images = page.all("img")
    assert len(images) > 40 and all(image["alt"] for image in images)
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    assert any("with a box at the" in image["alt"] for image in images)


def test_headings_skip_no_level(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    main = levels[levels.index(1) :]
    assert main.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(main, main[1:], strict=False))


def test_boxes_stand_on_the_patches_that_excite_a_group_most(page, explanation):
    maps = explanation.record.maps
    image = maps[:, 0].max(axis=(1, 2)).argmax()
    row, column = np.unravel_index(maps[image, 0].argmax(), maps.shape[2:])
    left, top = 100 * column / maps.shape[3], 100 * row / maps.shape[2]
    boxes = [tag["style"] for tag in page.all("span") if tag.get("class") == "box"]
    assert boxes[0].startswith(f"left: {left}%; top: {top}%;")


def test_a_dead_group_is_called_dead_and_dead_latents_are_counted(page, explanation):
    assert "Group 3 (dead)" in page.text
    assert explanation.structure.dead_latents.tolist() == [2]
    assert "dead latents of 6; no group holds them1" in " ".join(page.text.split())


def test_many_groups_and_large_images_stay_within_the_limit(make_model, tmp_path):
    # A picture of noise takes the most room there is.
    model = make_model(
        SparseJEPAForPreTraining, num_groups=70, num_latents=80, hidden_size=140, image_size=96, patch_size=16
    )
    explanation = make_explanation(tmp_path / "model", model, images=40, sections=SECTIONS[:1])
    path = write_report(tmp_path / "page.html", explanation)
    assert path.stat().st_size <= MAX_BYTES
    page = Page(path)
    assert "The first 64 of 70 groups are shown." in page.text
    assert "group-63" in page.ids and "group-64" not in page.ids


def test_an_encoder_without_groups_gets_a_page_that_says_so(make_model, tmp_path):
    model = make_model(SparseJEPAForPreTraining, use_grouping=False)
    page = Page(write_report(tmp_path / "page.html", make_explanation(tmp_path / "model", model)))
    assert "has no groups" in page.text
    assert "section-objects" in page.ids


@pytest.mark.parametrize("missing", ["one image", "no labels", "W of zeros", "one group", "no sections"])
def test_the_page_appears_whatever_is_missing(make_model, tmp_path, missing):
    model = make_model(SparseJEPAForPreTraining, num_groups=1 if missing == "one group" else 4)
    if missing == "W of zeros":
        torch.nn.init.zeros_(model.group_weight)
    sections = SECTIONS[:1] if missing != "no sections" else ()
    parts = {"labels": None, "label_names": ()} if missing == "no labels" else {}
    count = 1 if missing == "one image" else 12
    explanation = make_explanation(tmp_path / "model", model, images=count, sections=sections, **parts)
    page = Page(write_report(tmp_path / "page.html", explanation))
    assert sum(name.startswith("group-") and name.count("-") == 1 for name in page.ids) == model.config.num_groups
    assert "trainer_state.json" in page.text
    expected = {"one image": "of one class", "no labels": "no labels", "no sections": "Nothing was measured"}
    assert expected.get(missing, "") in page.text
    assert not re.search(r"\bnan\b", page.source, re.IGNORECASE)


def test_figures_are_written_as_png_and_svg(explanation, tmp_path):
    written = write_figures(tmp_path / "figures", explanation)
    names = {"importance", "maps", "top_patches", "top_images", "classes", "training", "pca"}
    assert {file.name for file in written} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(file.stat().st_size > 1000 for file in written)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (-1.5, "−1.50"), (1234.5, "1,230"), (0.0000123, "0.0000123"), (1.2e-9, "1.20e−09")],
)
def test_numbers_have_three_digits_and_a_true_minus(value, text):
    assert format_number(value) == text


def test_numbers_that_are_none_are_a_dash():
    assert format_number(float("nan")) == "–"


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["light", "dark"])
def tab(browser, path, request):
    """The page, opened offline; what it asked for and complained of beside it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=request.param, offline=True)
    opened = context.new_page()
    opened.requests, opened.complaints = [], []
    opened.on("request", lambda sent: opened.requests.append(sent.url))
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(path.as_uri())
    yield opened
    context.close()


def test_it_opens_offline_and_every_picture_loads(tab, path):
    assert [url for url in tab.requests if not url.startswith("data:")] == [path.as_uri()]
    assert not tab.complaints
    # A folded picture loads as well, since none is lazy.
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_keyboard_reaches_the_groups_and_what_has_the_focus_is_visible(tab):
    reached = []
    while tab.keyboard.press("Tab") is None and not tab.evaluate("document.activeElement === document.body"):
        reached.append(tab.evaluate("document.activeElement.getAttribute('href')"))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[0] == "#main"
    assert {f"#group-{group}" for group in range(4)} <= set(reached)
    tab.focus("a[href='#group-2']")
    tab.keyboard.press("Enter")
    tab.wait_for_function("Math.abs(document.querySelector('#group-2').getBoundingClientRect().top) < 300")


def test_maps_can_be_switched_by_keyboard_without_a_script(tab):
    shown = "element => getComputedStyle(element).display !== 'none'"
    raw, above = tab.locator(".map.raw").first, tab.locator(".map.above").first
    assert raw.evaluate(shown) and not above.evaluate(shown)
    tab.focus("#view-raw")
    tab.keyboard.press("ArrowRight")
    assert above.evaluate(shown) and not raw.evaluate(shown)
    tab.keyboard.press("ArrowRight")
    assert not above.evaluate(shown) and not raw.evaluate(shown)


def test_text_stands_out_from_its_ground(tab):
    """WCAG's contrast of 4.5 for every word of the page's own."""
    worst = tab.evaluate(
        """() => {
          const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
          const light = rgb => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const ground = node => { for (; node; node = node.parentElement) {
            const color = getComputedStyle(node).backgroundColor;
            if (!/, 0\\)$/.test(color)) return color; } return 'rgb(255, 255, 255)'; };
          let worst = [21, ''];
          for (const node of document.querySelectorAll('main *, nav *, header *, footer')) {
            if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
            if (node.closest('svg')) continue;
            const pair = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
            const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
            if (contrast < worst[0]) worst = [contrast, node.outerHTML.slice(0, 200)];
          }
          return worst;
        }"""
    )
    assert worst[0] >= 4.5, worst
