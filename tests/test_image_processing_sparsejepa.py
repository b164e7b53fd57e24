# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The image processor makes the pixels that training makes, in the package, without it, and in pipelines."""

import ast
import base64
import io
import json
import sys

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from sparsejepa_hf import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAImageProcessor,
    SparseJEPAVisionModel,
)
from sparsejepa_hf.data import ImageDataset, UndecodableImageError, normalize_images, resize_to_square, to_rgb
from sparsejepa_hf.image_processing_sparsejepa import image_processor


MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
HALF = {number: ([0.5] * number, [0.5] * number) for number in (1, 2, 4, 5)}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I;16", "I", "F", "CMYK", "YCbCr", "LAB", "HSV")
CODE_FILES = {"image_decoding_sparsejepa.py", "image_processing_sparsejepa.py"}


def draw_image(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of random pixels over the whole range of `mode`."""
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 2**16, (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(generator.integers(0, 2**8, (height, width)).astype(np.int32))
    if mode == "F":
        return Image.fromarray(generator.random((height, width)).astype(np.float32))
    rgba = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "RGBA":
        return Image.fromarray(rgba)
    rgb = Image.fromarray(rgba[..., :3])
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(rgb, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    if mode == "LA":
        image = rgb.convert("LA")
        image.putalpha(Image.fromarray(rgba[..., 3]))
        return image
    return rgb.convert("P").convert("PA") if mode == "PA" else rgb.convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def rotated(orientation: int, format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(draw_image("RGB", 21, 13), format, exif=exif)


def trained(image, size: int = 16) -> torch.Tensor:
    """What a run makes of a held-out image."""
    return normalize_images(torch.from_numpy(resize_to_square(to_rgb(image), size)), MEAN, STD)


@pytest.fixture(scope="module")
def processor() -> SparseJEPAImageProcessor:
    return image_processor((16, 16), MEAN, STD)


def processed(processor, images, **options) -> torch.Tensor:
    return processor(images, return_tensors="pt", **options).pixel_values


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


class TestPixelsOfTraining:
    @pytest.mark.parametrize("mode", MODES)
    @given(width=st.integers(1, 70), height=st.integers(1, 70), seed=st.integers(0, 9))
    @settings(max_examples=12, deadline=None)
    def test_of_every_mode_and_size(self, processor, mode, width, height, seed):
        image = draw_image(mode, width, height, seed)
        assert_same(processed(processor, image)[0], trained(image))

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_of_turned_photographs(self, processor, orientation, format):
        content = rotated(orientation, format)
        expected = trained(content)
        for image in (content, Image.open(io.BytesIO(content))):
            assert_same(processed(processor, image)[0], expected)
        if format == "PNG":
            turned = torch.equal(expected, trained(rotated(1)))
            assert turned == (orientation == 1)

    def test_of_transparent_palettes_and_colours(self, processor):
        image = draw_image("P", 20, 30)
        for content in (encode(image, transparency=3), encode(draw_image("RGB", 20, 30), transparency=(1, 2, 3))):
            assert_same(processed(processor, content)[0], trained(content))

    @given(shape=st.tuples(*[st.integers(1, 40)] * 2), channels=st.integers(0, 4), seed=st.integers(0, 9))
    @settings(max_examples=30, deadline=None)
    def test_of_arrays(self, processor, shape, channels, seed):
        """0 channels: an array of two dimensions."""
        values = np.random.default_rng(seed).random((*shape, *([channels] if channels else [])))
        for array in (values, (255 * values).astype(np.uint8), (65535 * values).astype(np.uint16), values > 0.5):
            assert_same(processed(processor, array)[0], trained(array))

    def test_in_every_way_to_give_an_image(self, processor, tmp_path):
        image = draw_image("I;16", 30, 20)
        content = encode(image)
        path = tmp_path / "a.png"
        path.write_bytes(content)
        sources = [image, content, bytearray(content), path, str(path), np.asarray(image)]
        sources += [{"bytes": content, "path": None}, {"bytes": None, "path": str(path)}]
        expected = trained(image)
        for source in sources:
            assert_same(processed(processor, source)[0], expected)
        assert_same(processed(processor, sources), expected.expand(len(sources), -1, -1, -1))
        text = base64.b64encode(encode(draw_image("RGB", 30, 20))).decode()
        assert_same(processed(processor, text)[0], trained(draw_image("RGB", 30, 20)))

    def test_of_tensors_with_channels_in_either_place(self, processor):
        values = np.asarray(draw_image("RGB", 30, 20))
        expected, tensor = trained(values), torch.from_numpy(values.copy())
        for source in (
            tensor,
            tensor.permute(2, 0, 1),
            tensor.permute(2, 0, 1).long(),
            tensor.permute(2, 0, 1) / 255.0,
            tensor.permute(2, 0, 1).double() / 255,
            values.transpose(2, 0, 1),
            values.astype(np.int64),
        ):
            assert_same(processed(processor, source)[0], expected)
        half = (tensor.permute(2, 0, 1) / 255).to(torch.bfloat16)
        assert_same(processed(processor, half)[0], trained(half.float().permute(1, 2, 0).numpy()))

    def test_ambiguous_shapes_follow_the_library_unless_told(self, processor):
        values = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
        assert_same(processed(processor, values)[0], trained(values))
        first = trained(values.transpose(1, 2, 0))
        assert_same(processed(processor, torch.from_numpy(values))[0], first)
        assert_same(processed(processor, values, input_data_format="channels_first")[0], first)

    def test_batches_of_different_sizes_and_modes(self, processor):
        images = [draw_image(mode, 8 + 5 * index, 40 - index) for index, mode in enumerate(MODES)]
        assert_same(processed(processor, images), torch.stack([trained(image) for image in images]))
        batch = torch.randint(0, 256, (4, 3, 20, 30), dtype=torch.uint8)
        expected = torch.stack([trained(image.permute(1, 2, 0).numpy()) for image in batch])
        assert_same(processed(processor, batch), expected)

    def test_images_that_training_skips_are_refused_by_name(self, processor, tmp_path):
        path = tmp_path / "notes.png"
        path.write_bytes(rotated(6)[:100])
        with pytest.raises(UndecodableImageError, match=r"notes\.png"):
            processor(path)
        with pytest.raises(UndecodableImageError, match="not finite"):
            processor(np.full((4, 4), np.nan))
        with pytest.raises(TypeError):
            processor(3)


class TestOtherChannels:
    @pytest.mark.parametrize("mode", MODES)
    def test_one_channel_is_the_grey_of_the_rgb(self, mode):
        image = draw_image(mode, 16, 16)
        grey = np.asarray(to_rgb(image).convert("L"))
        got = processed(image_processor((16, 16), *HALF[1]), image)
        assert_same(got, torch.from_numpy(grey / np.float32(127.5) - 1)[None, None])

    def test_four_channels_are_rgba_and_opaque_without_transparency(self):
        processor = image_processor((16, 16), *HALF[4])
        clear = draw_image("RGBA", 16, 16)
        for image, rgba in (
            (clear, np.asarray(clear)),
            (draw_image("RGB", 16, 16), np.asarray(draw_image("RGB", 16, 16).convert("RGBA"))),
            (draw_image("CMYK", 16, 16), np.asarray(draw_image("CMYK", 16, 16).convert("RGB").convert("RGBA"))),
        ):
            expected = torch.from_numpy(rgba.transpose(2, 0, 1) / np.float32(127.5) - 1)
            assert_same(processed(processor, image)[0], expected)

    @pytest.mark.parametrize("num_channels", [1, 2, 4, 5])
    @pytest.mark.parametrize("sides", [(16, 16), (8, 16)])
    def test_channels_of_a_tensor_do_not_touch_each_other(self, num_channels, sides):
        """A fourth channel of zeros is no transparency that would take the colours away."""
        processor = image_processor(sides, *HALF[num_channels])
        tensor = torch.randint(0, 256, (num_channels, 20, 30), dtype=torch.uint8)
        tensor[-1] = 0
        got = processed(processor, tensor)[0]
        assert got.shape == (num_channels, *sides) and (got[-1] == -1).all()
        alone = image_processor(sides, *HALF[1])
        for index in range(num_channels):
            assert_same(got[index], processed(alone, tensor[index])[0, 0])

    def test_what_has_no_such_channels_is_refused(self):
        processor = image_processor((16, 16), *HALF[5])
        for image in (draw_image("RGB", 20, 20), torch.zeros(3, 20, 20)):
            with pytest.raises(UndecodableImageError, match="it has 3 channels.* but 5 are expected"):
                processor(image)

    def test_the_model_of_one_channel_is_fed(self, make_model, tmp_path):
        model = make_model(SparseJEPAVisionModel, num_channels=1)
        image_processor(model.config.image_sides, *HALF[1]).save_pretrained(tmp_path)
        inputs = AutoImageProcessor.from_pretrained(tmp_path)(draw_image("L", 32, 32), return_tensors="pt")
        assert model(**inputs).pooler_output.isfinite().all()


def draw_bands(num_channels: int, height: int, width: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    """An array of random values (H, W, C); 12 bits where there is room."""
    high = min(2**12, np.iinfo(dtype).max + 1)
    return np.random.default_rng(seed).integers(0, high, (height, width, num_channels)).astype(dtype)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class TestChannelsAndRectangles:
    @pytest.mark.parametrize("num_channels", [1, 3, 4, 13])
    @pytest.mark.parametrize("sides", [(16, 16), (16, 32), (24, 8)])
    @pytest.mark.parametrize("value_range", [None, (100.0, 3000.0)])
    def test_the_pixels_are_those_of_training_after_a_round_trip(self, num_channels, sides, value_range, tmp_path):
        dtype = np.uint8 if value_range is None else np.uint16
        arrays = [draw_bands(num_channels, *shape, dtype) for shape in ((40, 30), (21, 50), sides)]
        mean, std = [0.4] * num_channels, [0.3] * num_channels
        image_processor(sides, mean, std, value_range).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert saved["num_channels"] == num_channels
        assert saved.get("value_range") == (value_range and list(value_range))
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        files = [{"bytes": npy(array), "path": None} for array in arrays]
        table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image(decode=False))
        kept = ImageDataset(table, sides, num_channels=num_channels, value_range=value_range).pixel_values
        expected = normalize_images(kept, mean, std)
        assert expected.shape == (3, num_channels, *sides)
        (tmp_path / "image.npy").write_bytes(files[0]["bytes"])
        for images in (arrays, files, [np.moveaxis(array, -1, 0) for array in arrays], [npy(a) for a in arrays]):
            assert_same(processed(processor, images), expected)
        assert_same(processed(processor, tmp_path / "image.npy"), expected[:1])
        tensors = [torch.from_numpy(array.astype(np.int32)).permute(2, 0, 1) for array in arrays]
        assert_same(processed(processor, tensors), expected)

    @pytest.mark.parametrize("width, height", [(70, 20), (20, 70), (40, 41)])
    def test_the_centre_of_the_aspect_ratio_is_cut_out_before_anything_is_resized(self, width, height):
        """Each row and column of the result is that of the largest rectangle of its shape in the image."""
        image = draw_image("RGB", width, height)
        got = processed(image_processor((16, 32), MEAN, STD), image)[0]
        across, down = min(width, 2 * height), min(height, width / 2)
        left, top = (width - across) / 2, (height - down) / 2
        box = (left, top, left + across, top + down)
        cut = np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
        assert_same(got, normalize_images(torch.from_numpy(cut.copy()), MEAN, STD))

    def test_channels_are_found_by_their_number_unless_told(self):
        processor = image_processor((16, 16), [0.5] * 13, [0.5] * 13)
        values = draw_bands(13, 20, 3)
        first = np.moveaxis(values, -1, 0)
        # Without their number, 3 could be the channels too.
        assert_same(processed(processor, values), processed(processor, first))
        cube = draw_bands(13, 13, 13)
        as_last = processed(processor, cube)
        assert_same(processed(processor, np.moveaxis(cube, -1, 0), input_data_format="channels_first"), as_last)
        assert_same(processed(processor, torch.from_numpy(cube).permute(2, 0, 1)), as_last)

    def test_a_number_of_channels_alone_is_a_processor(self):
        processor = SparseJEPAImageProcessor(size=16, num_channels=13)
        assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 13
        assert SparseJEPAImageProcessor(image_mean=[0.5], image_std=[0.5]).num_channels == 1
        with pytest.raises(ValueError, match=r"image_mean is \[0.5\], and num_channels 13"):
            SparseJEPAImageProcessor(num_channels=13, image_mean=[0.5])

    def test_rectangles_of_older_checkpoints_stay_stretched(self):
        older = SparseJEPAImageProcessor(
            size={"height": 16, "width": 32}, do_center_crop=False, image_mean=MEAN, image_std=STD
        )
        image = draw_image("RGB", 40, 30)
        stretched = np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert_same(processed(older, image)[0], normalize_images(torch.from_numpy(stretched.copy()), MEAN, STD))


class TestOptions:
    def test_each_step_can_be_left_out(self, processor):
        image = draw_image("RGB", 16, 20)
        values = np.asarray(image).transpose(2, 0, 1)
        raw = {"do_rescale": False, "do_normalize": False}
        got = processed(processor, image, **raw)[0]
        assert got.dtype == torch.uint8
        np.testing.assert_array_equal(got.numpy(), resize_to_square(image, 16))
        np.testing.assert_array_equal(processed(processor, image, do_resize=False, **raw)[0], values[:, 2:-2])
        whole = processed(processor, image, do_resize=False, do_center_crop=False, **raw)[0]
        np.testing.assert_array_equal(whole, values)
        grey = draw_image("L", 16, 16)
        np.testing.assert_array_equal(
            processed(processor, grey, do_convert_rgb=False, **raw)[0, 0].numpy(), np.asarray(grey)
        )

    def test_other_sizes_and_filters_are_those_of_transformers(self, processor):
        """To the rounding of a level, of the crop and of the two libraries' filters."""
        image = Image.fromarray(np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)).convert("RGB")
        options = {"size": {"shortest_edge": 24}, "crop_size": 16, "image_mean": MEAN, "image_std": STD}
        theirs = ViTImageProcessor(do_center_crop=True, resample=3, **options)
        got = processed(processor, image, **options)
        assert (got - processed(theirs, image)).abs().max() <= 1.01 / 255 / min(STD)
        larger = processed(processor, image, size=24, crop_size=24)[0]
        assert_same(larger, trained(image, 24))
        assert processed(processor, image, resample=0).shape == (1, 3, 16, 16)

    def test_return_types(self, processor):
        image = draw_image("RGB", 16, 16)
        assert isinstance(processor(image).pixel_values[0], np.ndarray)
        got = processor(image, return_tensors="np").pixel_values
        assert_same(torch.from_numpy(got), processed(processor, image))

    def test_a_size_alone_says_what_is_cut_out(self):
        image = draw_image("RGB", 40, 30)
        plain = SparseJEPAImageProcessor(size=24, image_mean=MEAN, image_std=STD)
        assert_same(processed(plain, image)[0], trained(image, 24))
        assert processed(SparseJEPAImageProcessor(size={"height": 8, "width": 20}), image).shape == (1, 3, 8, 20)


# Runs in a process of its own, where every import of the package fails.
STRANGER = """
import json, sys
sys.modules["sparsejepa_hf"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

folder, work = sys.argv[1:]
try:
    AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    refusal = "loaded"
except ValueError as error:
    refusal = str(error)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
paths = [f"{work}/{name}.png" for name in ("turned", "deep", "clear")]
tensors = {"pixels": processor(paths, return_tensors="pt").pixel_values}
processor.save_pretrained(f"{work}/again")
again = AutoImageProcessor.from_pretrained(f"{work}/again", trust_remote_code=True)
tensors["again"] = again(paths, return_tensors="pt").pixel_values
extractor = pipeline("image-feature-extraction", model=folder, trust_remote_code=True, pool=True)
tensors["features"] = torch.tensor(extractor(paths[0]))
torch.save(tensors, f"{work}/tensors.pt")
report = {"refusal": refusal, "size": dict(ViTImageProcessor.from_pretrained(folder).size)}
report["module"], report["pipeline"] = (type(each).__module__ for each in (processor, extractor.image_processor))
with open(f"{work}/report.json", "w") as file:
    json.dump(report, file)
"""


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(SparseJEPAForPreTraining, num_labels=3)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model.save_pretrained(folder)
    image_processor((32, 32), MEAN, STD).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stranger(folder, run_stranger, tmp_path_factory):
    work = tmp_path_factory.mktemp("stranger")
    (work / "turned.png").write_bytes(rotated(6))
    draw_image("I;16", 50, 40).save(work / "deep.png")
    draw_image("RGBA", 40, 50).save(work / "clear.png")
    run_stranger(STRANGER, folder, work, work=work)
    return work, json.loads((work / "report.json").read_text()), torch.load(work / "tensors.pt")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_floats_between_0_and_1_need_no_rescaling(kind):
    """The usual idiom after `ToTensor`; for 8-bit pixels the flag means what it means in transformers."""
    processor = image_processor((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    floats = kind((pixels / 255).astype(np.float32))
    expected = processor(pixels, return_tensors="pt").pixel_values
    for options in ({}, {"do_rescale": False}):
        got = processor(floats, return_tensors="pt", input_data_format="channels_first", **options).pixel_values
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    raw = processor(pixels, return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values
    assert torch.equal(raw[0].long(), torch.from_numpy(pixels).long())


class TestWithoutThePackage:
    def test_the_pixels_are_those_of_training(self, stranger):
        work, report, tensors = stranger
        assert report["module"].startswith("transformers_modules")
        expected = torch.stack([trained(work / f"{name}.png", 32) for name in ("turned", "deep", "clear")])
        assert_same(tensors["pixels"], expected)

    def test_nothing_loads_without_trust_but_the_file_serves_vit_too(self, stranger):
        report = stranger[1]
        assert "trust_remote_code=True" in report["refusal"]
        assert report["size"]["shortest_edge"] == 32

    def test_saving_again_keeps_the_code_and_its_map(self, stranger, folder):
        work, _, tensors = stranger
        assert torch.equal(tensors["again"], tensors["pixels"])
        names = {*CODE_FILES, "preprocessor_config.json"}
        assert {path.name for path in (work / "again").glob("*.*")} == names
        for name in names:
            assert (work / "again" / name).read_text() == (folder / name).read_text()

    def test_a_pipeline_takes_it(self, stranger, model):
        work, report, tensors = stranger
        assert report["pipeline"].startswith("transformers_modules")
        expected = model(trained(work / "turned.png", 32)[None], return_loss=False).pooler_output
        torch.testing.assert_close(tensors["features"], expected, rtol=1e-4, atol=1e-4)

    def test_the_code_imports_only_its_siblings_and_what_transformers_needs(self, folder):
        """Files are flattened on the Hub: no sub-packages, no absolute import of the package itself."""
        for file in CODE_FILES:
            for node in ast.walk(ast.parse((folder / file).read_text())):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert node.level == 1 and f"{node.module}.py" in CODE_FILES
                elif isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                    roots = {name.split(".")[0] for name in names}
                    assert roots <= {"torch", "transformers", "numpy", "PIL"} | sys.stdlib_module_names


class TestSaving:
    def test_the_round_trip_keeps_every_option(self, tmp_path):
        processor = image_processor((16, 32), [0.1], [0.2], (0, 4095))
        processor.save_pretrained(tmp_path)
        for kind in (AutoImageProcessor, SparseJEPAImageProcessor):
            for options in ({}, {"trust_remote_code": True}) if kind is AutoImageProcessor else ({},):
                again = kind.from_pretrained(tmp_path, **options)
                assert type(again) is SparseJEPAImageProcessor and again.to_dict() == processor.to_dict()
        assert AutoImageProcessor.from_pretrained(tmp_path, do_normalize=False).do_normalize is False

    @pytest.mark.parametrize("backend", ["torchvision", "pil"])
    def test_either_back_end_is_this_class(self, processor, tmp_path, backend):
        processor.save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path, backend=backend)) is SparseJEPAImageProcessor

    def test_older_checkpoints_keep_the_processor_they_name(self, make_model, tmp_path):
        make_model(SparseJEPAForPreTraining).save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ViTImageProcessor


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "turned.png"
    path.write_bytes(rotated(6))
    return [Image.open(path), str(path)]


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    model, folder = make_model(SparseJEPAForImageClassification, num_labels=3), tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    image_processor((32, 32), MEAN, STD).save_pretrained(folder)
    return model, str(folder)


class TestPipelines:
    def test_feature_extraction(self, saved, sources):
        model, folder = saved
        extractor = pipeline("image-feature-extraction", model=folder, pool=True, device="cpu")
        expected = model.sparsejepa(trained(sources[1], 32)[None]).pooler_output
        for source in sources:
            torch.testing.assert_close(torch.tensor(extractor(source)), expected, rtol=1e-4, atol=1e-4)
            assert np.shape(extractor([source] * 3)) == (3, *expected.shape)

    def test_classification(self, saved, sources):
        model, folder = saved
        classifier = pipeline("image-classification", model=folder, device="cpu")
        expected = model(trained(sources[1], 32)[None]).logits.softmax(-1)[0]
        for source in sources:
            scores = {answer["label"]: answer["score"] for answer in classifier(source)}
            got = torch.tensor([scores[model.config.id2label[index]] for index in range(3)])
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_column_of_a_data_set_is_as_good_as_a_list():
    images = [draw_image("RGB", 20, 20, seed) for seed in range(3)]
    column = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())["image"]
    assert not isinstance(column, list)
    processor = image_processor((16, 16), MEAN, STD)
    expected = processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(column, return_tensors="pt")["pixel_values"], expected)
