# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The page to try: what it computes, what it says to bad uploads and checkpoints, and that it works in a browser."""

import ast
import contextlib
import io
import itertools
import os
import re
import runpy
import shutil
import struct
import sys
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sparsejepa_hf.interpret.app as app
from sparsejepa_hf import SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.data import build_scenes, resize_to_square
from sparsejepa_hf.data.images import PixelFormat
from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import NotMeasurable
from sparsejepa_hf.interpret.app import GroupExplorer, UnusableUploadError, explorer, read_upload


FOLDER = Path(app.__file__).parent
ROOT = Path(__file__).parents[2]
NUM_IMAGES = 40


@pytest.fixture(scope="module")
def scenes() -> datasets.Dataset:
    return build_scenes(NUM_IMAGES, split="test").select_columns(["image", "label"])


@pytest.fixture(scope="module")
def make_explorer(make_model, scenes):
    """An explorer of a tiny random model; `change` is called on the grouping's W first."""

    def build(images=scenes, change=None, **overrides) -> GroupExplorer:
        model = make_model(SparseJEPAForPreTraining, **overrides)
        if change is not None:
            with torch.no_grad():
                change(model.group_weight)
        return GroupExplorer(load_encoder(model), images, progress=False)

    return build


@pytest.fixture(scope="module")
def tiny(make_explorer) -> GroupExplorer:
    """Group 3 of 4 is dead, and half of the columns of the others are zero."""

    def sparsify(weight):
        weight[3] = 0
        weight[:, :, ::2] = 0

    return make_explorer(change=sparsify)


@pytest.fixture(scope="module")
def checkpoint(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(SparseJEPAForPreTraining).save_pretrained(folder)
    return folder


# ---- nearest images ----


@pytest.mark.parametrize("groups", [[0], [1, 2], [0, 1, 2, 3]])
def test_the_nearest_of_an_indexed_image_is_itself(tiny, groups):
    for place in (0, 7, NUM_IMAGES - 1):
        found, similarity = tiny.nearest(tiny.readings[place], groups, 1)[0]
        assert found == place and similarity == pytest.approx(1, abs=1e-6)


def test_an_indexed_image_read_anew_is_read_as_in_the_index(tiny):
    old = tiny.readings[5]
    new = tiny.read(old.pixel_values, "again")
    np.testing.assert_allclose(new.maps, old.maps, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new.mean_input, old.mean_input, rtol=1e-4, atol=1e-5)
    assert tiny.nearest(new, [0, 1, 2], 1)[0][0] == 5
    np.testing.assert_allclose(tiny.rank(new), tiny.rank(old))


def test_similarity_is_the_cosine_between_what_the_groups_get_beyond_the_average(tiny):
    """By the definition, from W and latents: u_g = W⁽ᵍ⁾μ of each patch."""
    pixels = torch.from_numpy(np.stack([reading.pixel_values for reading in tiny.readings]))
    with torch.no_grad():
        _, inputs = tiny._model.encode_latents(tiny._encoder.preprocess(pixels))
    chosen = inputs.mean(dim=1)[:, [0, 2]].double().flatten(1)
    chosen = chosen - chosen.mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(chosen[3], chosen)
    found = dict(tiny.nearest(tiny.readings[3], [0, 2], NUM_IMAGES))
    assert len(found) == NUM_IMAGES
    np.testing.assert_allclose([found[i] for i in range(NUM_IMAGES)], expected, atol=1e-4)


def test_nearest_images_come_in_order_and_do_not_depend_on_the_order_of_groups(tiny):
    reading = tiny.readings[0]
    found = tiny.nearest(reading, [0, 1, 2], NUM_IMAGES)
    values = [similarity for _, similarity in found]
    assert values == sorted(values, reverse=True) and -1 - 1e-9 <= min(values) and max(values) <= 1 + 1e-9
    assert dict(found) == pytest.approx(dict(tiny.nearest(reading, [2, 0, 1], NUM_IMAGES)))
    # A group that says the same of every image changes nothing.
    assert dict(found) == pytest.approx(dict(tiny.nearest(reading, [0, 1, 2, 3], NUM_IMAGES)))


def test_no_group_and_dead_groups_alone_have_no_nearest_images(tiny):
    assert tiny.nearest(tiny.readings[0], [], 5) == []
    assert tiny.nearest(tiny.readings[0], [3], 5) == []


def test_cosines_of_known_angles():
    index = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    found = explorer.cosine_to_all(np.array([5.0, 0.0]), index)
    np.testing.assert_allclose(found, [1, 0, -1, np.sqrt(0.5), np.nan])
    assert np.isnan(explorer.cosine_to_all(np.zeros(2), index)).all()


# ---- maps as colours ----


def test_the_overlay_of_a_zero_map_and_of_no_group_is_the_image(rng_image):
    levels = np.zeros((4, 8, 8))
    for groups in ([], [1], [0, 1, 2, 3]):
        np.testing.assert_array_equal(explorer.overlay(rng_image, levels, groups), rng_image.transpose(1, 2, 0))
    np.testing.assert_array_equal(explorer.overlay(rng_image, levels + 1, []), rng_image.transpose(1, 2, 0))


def test_one_group_is_mixed_into_the_image_in_proportion_to_its_level(rng_image):
    level = np.linspace(0, 1, 64).reshape(1, 8, 8)
    mixed = explorer.overlay(rng_image, np.concatenate([np.ones((2, 8, 8)), level]), [2])
    weight = explorer.OPACITY * level[0][..., None]
    expected = (1 - weight) * rng_image.transpose(1, 2, 0) + weight * np.array(explorer.color_of(2))
    assert np.abs(mixed - expected).max() <= 0.5


def test_a_pixel_takes_the_colour_of_the_highest_group_alone(rng_image):
    levels = np.random.default_rng(1).random((3, 8, 8))
    together = explorer.overlay(rng_image, levels, [0, 2])
    first = (levels[0] > levels[2])[..., None]
    alone = [explorer.overlay(rng_image, levels, [group]) for group in (0, 2)]
    np.testing.assert_array_equal(together, np.where(first, *alone))


def test_colours_are_told_apart_and_repeat():
    colors = [explorer.color_of(group) for group in range(len(explorer.COLORS))]
    assert min(np.abs(np.subtract(*pair)).sum() for pair in itertools.combinations(colors, 2)) > 80
    assert explorer.color_of(len(colors)) == colors[0]


@pytest.mark.parametrize("by_place", [True, False])
def test_levels_begin_at_the_median_and_are_full_at_the_99th_percentile(tiny, by_place):
    maps = np.stack([reading.maps for reading in tiny.readings])
    axis = (0,) if by_place else (0, 2, 3)
    low, high = (np.quantile(maps, q, axis=axis, keepdims=True)[0] for q in (0.5, 0.99))
    for reading in tiny.readings[:5]:
        levels = tiny.levels(reading, by_place)
        assert levels.shape == (4, 32, 32) and levels.min() >= 0 and levels.max() <= 1
        # Bilinear enlargement keeps the average, except for what the border cuts off: compare at patches' centres.
        by_patch = levels.reshape(4, 8, 4, 8, 4)[:, :, 1:3, :, 1:3].mean(axis=(2, 4))[:3, 1:-1, 1:-1]
        wanted = ((reading.maps[:3] - low[:3]) / (high[:3] - low[:3])).clip(0, 1)
        kernel = np.array([0.125 / 2, 1 - 0.125, 0.125 / 2])
        smooth = sum(
            kernel[i] * kernel[j] * wanted[:, i : i + 6, j : j + 6] for i, j in itertools.product(range(3), range(3))
        )
        np.testing.assert_allclose(by_patch, smooth, atol=1e-6)
    if not by_place:
        coloured = np.mean([(tiny.levels(reading, False)[0] > 0).mean() for reading in tiny.readings])
        assert coloured == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("by_place", [True, False])
def test_a_dead_group_colours_nothing(tiny, by_place):
    for reading in tiny.readings[:3]:
        assert not tiny.levels(reading, by_place)[3].any()
        np.testing.assert_array_equal(tiny.overlay(reading, [3], by_place), reading.pixel_values.transpose(1, 2, 0))


def test_what_is_the_same_at_a_place_in_all_images_shows_only_against_other_places(tiny):
    """A pattern added to every image's map: taken off again by place, and seen otherwise."""
    pattern = np.zeros((1, 8, 8), dtype=np.float32)
    pattern[0, 2, 2] = 100
    shifted = GroupExplorer.__new__(GroupExplorer)
    maps = np.stack([reading.maps[:1] for reading in tiny.readings]) + pattern
    shifted._range_by_place = np.quantile(maps, explorer.LEVEL_RANGE, axis=0)
    shifted._range = np.quantile(maps, explorer.LEVEL_RANGE, axis=(0, 2, 3), keepdims=True)[:, 0]
    old = tiny.readings[0]
    new = explorer.Reading("", old.pixel_values, old.maps[:1] + pattern, old.mean_input)
    np.testing.assert_allclose(shifted.levels(new), tiny.levels(old)[:1], atol=1e-3)
    everywhere = shifted.levels(new, by_place=False)[0]
    assert everywhere[8:12, 8:12].min() > everywhere[20:].max()


def test_ranks_of_the_index_are_its_order(tiny):
    ranks = np.array([tiny.rank(reading) for reading in tiny.readings])
    for group in range(3):
        np.testing.assert_allclose(np.sort(ranks[:, group]), np.arange(NUM_IMAGES) / NUM_IMAGES)
    np.testing.assert_array_equal(ranks[:, 3], 0)


# ---- what a group is ----


def test_the_important_latents_hold_the_group(tiny):
    assert tiny.important_latents(3) == []
    for group in range(3):
        latents = tiny.important_latents(group)
        assert set(latents) <= {1, 3, 5}
        assert (np.diff(tiny.structure.importance[group, latents]) <= 0).all()


# ---- uploads ----


@pytest.fixture
def rng_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)


@pytest.fixture
def photo() -> Image.Image:
    """Smooth, so that JPEG changes it little."""
    ramp = np.linspace(0, 255, 48)
    red, green = np.meshgrid(ramp, ramp[:36])
    return Image.fromarray(np.stack([red, green, 255 - red], axis=2).astype(np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(("name", "error"), [("a.png", 0), ("a.jpg", 12), ("a.webp", 12), ("a.bmp", 0), ("a.tif", 0)])
def test_formats_that_are_read(photo, tmp_path, name, error):
    found = read_upload(save(photo, tmp_path / name), PixelFormat(16))
    assert np.abs(found.astype(int) - resize_to_square(photo, 16)).max() <= error


def test_a_rotated_photo_is_turned_upright(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(photo.transpose(Image.Transpose.ROTATE_90), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_upload(path, PixelFormat(16)), resize_to_square(photo, 16))


def test_transparency_16_bits_and_grey(photo, tmp_path):
    clear = photo.copy()
    clear.putalpha(0)
    assert (read_upload(save(clear, tmp_path / "clear.png"), PixelFormat(16)) == 255).all()
    grey = read_upload(save(photo.convert("L"), tmp_path / "grey.png"), PixelFormat(16))
    np.testing.assert_array_equal(grey[0], grey[1])
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_upload(save(deep, tmp_path / "deep.png"), PixelFormat(16)), grey)
    thin = save(photo.resize((1, 500)), tmp_path / "thin.png")
    assert read_upload(thin, PixelFormat(16)).shape == (3, 16, 16)
    assert read_upload(thin, PixelFormat((8, 24), 1)).shape == (1, 8, 24)
    with pytest.raises(UnusableUploadError, match="13 channels, which an uploaded image has not"):
        read_upload(thin, PixelFormat(16, 13))


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header promises this many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {
    "text": (b"This is no image.\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    "empty": (b"", "0 bytes"),
    "cut-off": (png(NOISE)[:6000], "cut off"),
    "cut-off-header": (png(NOISE)[:20], "image"),
    "large": (bomb(10_000, 6_000), "60 million pixels"),
    "huge": (bomb(100_000, 100_000), "more pixels"),
    "heavy": (png(NOISE) + bytes(explorer.MAX_UPLOAD_BYTES), "at most 10 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_gets_a_sentence(tmp_path, name):
    content, said = BAD[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(content)
    with pytest.raises(UnusableUploadError, match=said) as raised:
        read_upload(path, PixelFormat(16))
    message = str(raised.value)
    assert message.endswith(".") and "Error" not in message and " at 0x" not in message


def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", refuse)
    path = tmp_path / "a.png"
    path.write_bytes(bomb(8_000, 7_000))
    with pytest.raises(UnusableUploadError, match="56 million"):
        read_upload(path, PixelFormat(16))


# ---- checkpoints and data sets of all kinds ----


def test_a_matrix_of_zeros_gives_plain_images_and_no_neighbours(make_explorer):
    empty = make_explorer(change=lambda weight: weight.zero_())
    reading = empty.readings[0]
    np.testing.assert_array_equal(empty.overlay(reading, [0, 1, 2, 3]), reading.pixel_values.transpose(1, 2, 0))
    assert empty.nearest(reading, [0, 1, 2, 3], 5) == [] and not empty.rank(reading).any()
    view = page_module()._View(empty)
    assert "All columns of W are zero" in view.introduction()
    assert "say the same of every image" in view.nearest(reading, [0, 1], True)
    assert "Dead" in view.maps(reading, [0], True)


def test_a_dense_matrix_in_front_of_the_predictor(make_explorer):
    dense = make_explorer(latent_position="encoder")
    assert dense.nearest(dense.readings[2], [1], 1)[0][0] == 2
    assert "every latent belongs to every group" in page_module()._View(dense).introduction()


def test_images_without_labels(make_explorer, scenes):
    unlabelled = make_explorer(scenes.select(range(8)).select_columns(["image"]))
    assert unlabelled.classes(0) is None and unlabelled.readings[3].name == "image 3"
    assert "class stands out" not in page_module()._View(unlabelled).maps(unlabelled.readings[0], [0], True)


def test_a_single_image_has_no_neighbours(make_explorer, scenes):
    with pytest.raises(NotMeasurable, match="at least two"):
        make_explorer(scenes.select([0]))


def test_a_diverged_checkpoint(make_explorer):
    with pytest.raises(NotMeasurable, match="NaN"):
        make_explorer(change=lambda weight: weight.fill_(float("nan")))


def test_bad_checkpoints_end_the_command_with_a_sentence(make_model, checkpoint, tmp_path, monkeypatch, capfd):
    make_model(SparseJEPAForPreTraining, use_grouping=False).save_pretrained(tmp_path / "ijepa")
    make_model(SparseJEPAVisionModel).save_pretrained(tmp_path / "target")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("bare", "broken"):
        shutil.copy(checkpoint / "config.json", tmp_path / name)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    monkeypatch.setattr(page_module(), "launch", lambda *_, **__: pytest.fail("the page started"))
    for name, said in {
        "ijepa": "I-JEPA",
        "target": "no predictor",
        "empty": "no config.json",
        "bare": "model.safetensors",
        "broken": "safetensors|header",
        "nowhere": "no folder",
    }.items():
        with pytest.raises(SystemExit) as raised:
            app.main([str(tmp_path / name), "--max_examples", "4"])
        # A sentence as the code is printed, and makes the exit status 1.
        assert re.search(said, str(raised.value.code), re.I), raised.value.code
        assert str(raised.value.code).startswith("The page cannot be shown.")
    with pytest.raises(SystemExit, match="no data set|nothing|not found|no folder|No file"):
        app.main([str(checkpoint), "--dataset", str(tmp_path / "nothing")])
    assert "Traceback" not in capfd.readouterr().err


def test_without_gradio_the_command_says_what_to_install(checkpoint, monkeypatch):
    monkeypatch.delitem(sys.modules, "sparsejepa_hf.interpret.app.page", raising=False)
    monkeypatch.delattr(app, "page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="Gradio"):
        app.main([str(checkpoint)])


def test_flags_reach_the_page(checkpoint, monkeypatch):
    started = []
    monkeypatch.setattr(page_module(), "launch", lambda found, **options: started.append((len(found), options)))
    app.main([str(checkpoint), "--max_examples", "5", "--share", "false", "--server_port", "7999"])
    assert started == [(5, {"server_name": None, "server_port": 7999, "share": False})]


# ---- as a Space ----


def test_the_space_says_what_the_hub_asks_for():
    head = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and (FOLDER / head["app_file"]).is_file()
    assert head["license"] == "apache-2.0" and len(head["short_description"]) <= 60
    # Written 3.1, YAML would read a number.
    assert isinstance(head["python_version"], str)
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("INSTALL_REQUIRES", "APP")
    }
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and line[0] != "#"] == found["INSTALL_REQUIRES"] + found["APP"]
    assert head["sdk_version"].startswith(found["APP"][0].split(">=")[1])


def test_the_space_starts_from_a_folder_of_its_own(checkpoint, tmp_path, monkeypatch):
    for name in ("README.md", "requirements.txt", "app.py"):
        shutil.copy(FOLDER / name, tmp_path)
    started = []
    monkeypatch.setattr(app, "main", started.append)
    monkeypatch.chdir(tmp_path)
    for name in ("CHECKPOINT", "DATASET", "SPLIT"):
        monkeypatch.delenv(f"SPARSEJEPA_{name}", raising=False)

    def start():
        runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")

    with pytest.raises(SystemExit, match="No checkpoint is given. Set the variable SPARSEJEPA_CHECKPOINT"):
        start()
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    start()
    monkeypatch.setenv("SPARSEJEPA_CHECKPOINT", "someone/a-model")
    monkeypatch.setenv("SPARSEJEPA_DATASET", "someone/images")
    start()
    assert started == [[str(tmp_path / "checkpoint")], ["someone/a-model", "--dataset", "someone/images"]]


# ---- in a browser ----


def page_module():
    pytest.importorskip("gradio", reason="the page needs Gradio: the extra `app`")
    from sparsejepa_hf.interpret.app import page

    return page


def test_names_cannot_write_into_the_page(tiny):
    view = page_module()._View(tiny)
    nasty = "<img src=x onerror=alert(1)>${1+1}{{2+2}}"
    reading = tiny.read(tiny.readings[0].pixel_values, nasty)
    for text in (view.showing(reading), view._failed(nasty, reading), *view.show(reading, [0], True)):
        assert "<img src=x" not in text and "${" not in text and "{{" not in text


def test_percentages_are_0_and_100_only_where_they_are():
    percent = page_module()._percent
    assert [percent(share) for share in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == ["0 %", "1 %", "50 %", "99 %", "100 %"]


@pytest.fixture(scope="module")
def address(tiny, tmp_path_factory):
    """Where the page of the tiny model is served."""
    page = page_module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        with contextlib.redirect_stdout(io.StringIO()):
            served, found = page.launch(tiny, prevent_thread_lock=True, quiet=True)
        yield found
        served.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page at a width; every request has to stay on this machine, and nothing may fail in the console."""
    context, requests, problems = browser.new_context(), [], []

    def open_at(width: int = 1280):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.set_default_timeout(10_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#maps .card")
        return page

    yield open_at
    context.close()
    assert requests and not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not problems


def upload(page, path: Path) -> str:
    """Uploads a file and returns what the page then says."""
    before = page.inner_text("#message")
    page.set_input_files("#upload input[type=file]", path)
    page.wait_for_function("before => document.querySelector('#message').innerText !== before", arg=before)
    return page.inner_text("#message")


def pictures(page, part: str) -> list[str]:
    return page.eval_on_selector_all(f"#{part} img", "all => all.map(image => image.src)")


def test_groups_can_be_switched_off_and_on(open_page):
    page = open_page()
    plain, colored = pictures(page, "pictures")
    assert plain != colored and page.locator("#maps .card").count() == 4
    page.click("text=All off")
    page.wait_for_selector("#nearest >> text=All groups are switched off")
    assert pictures(page, "pictures") == [plain, plain]
    assert page.locator("#maps .card.off").count() == 4
    # By keyboard.
    page.focus("#groups input >> nth=1")
    page.keyboard.press("Space")
    page.wait_for_selector("#nearest >> text=By group 1.")
    assert page.locator("#maps .card.off").count() == 3
    of_one = pictures(page, "pictures")[1]
    assert of_one == pictures(page, "maps")[1]
    page.click("text=All on")
    page.wait_for_selector("#nearest >> text=By all 4 groups together")
    assert pictures(page, "pictures") == [plain, colored]


def test_an_example_can_be_picked_and_is_its_own_nearest_image(open_page, tiny):
    page = open_page()
    page.click("#examples button >> nth=3")
    name = tiny.readings[3].name
    page.wait_for_function("name => document.querySelector('#message').innerText.includes(name)", arg=name)
    page.wait_for_selector("#nearest figure:first-of-type >> text=the image itself")
    assert pictures(page, "nearest")[0] == pictures(page, "pictures")[0]


def test_an_upload_is_shown_and_not_kept(open_page, tiny, tmp_path):
    page = open_page()
    pixels = tiny.readings[6].pixel_values.transpose(1, 2, 0)
    before = pictures(page, "pictures")
    said = upload(page, save(Image.fromarray(pixels), tmp_path / "my picture.png"))
    assert "Showing: my picture.png" in said
    page.wait_for_selector("#nearest figure:first-of-type >> text=the image itself")
    assert pictures(page, "pictures")[0] != before[0]
    kept = [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.name == "my picture.png"]
    assert not kept


def test_bad_uploads_get_a_message_and_the_page_goes_on(open_page, tmp_path):
    page = open_page()
    before = pictures(page, "pictures")
    for name in ("text", "cut-off", "large"):
        path = tmp_path / f"{name}.png"
        path.write_bytes(BAD[name][0])
        said = upload(page, path)
        assert f"{name}.png: " in said and BAD[name][1] in said and "Traceback" not in page.content()
    assert page.get_attribute("#message .problem", "role") == "alert"
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(BAD["heavy"][0])
    page.set_input_files("#upload input[type=file]", heavy)
    page.wait_for_selector(".toast-body >> text=exceed the maximum allowed size")
    assert pictures(page, "pictures") == before
    upload(page, save(NOISE, tmp_path / "good.png"))
    assert page.locator("#message .problem").count() == 0
    assert pictures(page, "pictures") != before


def test_a_phone_shows_the_page_without_scrolling_sideways(open_page):
    page = open_page(390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = page.eval_on_selector_all(
        ".card p, figcaption, .note", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    assert all(text for text in page.eval_on_selector_all("#maps img, #nearest img", "all => all.map(i => i.alt)"))
