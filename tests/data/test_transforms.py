import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cinemae_jax.data import catalog, loader
from cinemae_jax.data.augment import Augment, recompress, rescale, resize_short
from cinemae_jax.data.decode import MAX_PIXELS, decode, encode_png
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import (
    Crop,
    MultiCrop,
    RandomResizedCrop,
    crop,
    multi_crop,
    resize_crop,
)
from tests.helpers.pictures import encoded, gradient, noise, saved


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- policies -----------------------------------------------------------------------------------

SIDES = st.integers(16, 90)
SEEDS = st.integers(0, 2**32)


def test_the_standard_crop_is_resize_then_centre() -> None:
    data = encoded(gradient(100, 160))
    array = Crop(28, resize=32)(data, rng())
    resized = np.asarray(
        Image.fromarray(gradient(100, 160)).resize((51, 32), Image.Resampling.BICUBIC)
    )
    np.testing.assert_array_equal(array, resized[2:30, 12:40])


@given(SIDES, SIDES)
def test_resize_crop_is_plain_pillow(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width))
    short = min(height, width)
    resized = image.resize((32 * width // short, 32 * height // short), Image.Resampling.BICUBIC)
    top, left = round((resized.height - 28) / 2), round((resized.width - 28) / 2)
    expected = np.asarray(resized)[top : top + 28, left : left + 28]
    np.testing.assert_array_equal(resize_crop(image, 28, resize=32), expected)


def test_native_crops_keep_pixels_and_reflect_small_images() -> None:
    array = Crop(20, resize=0)(encoded(gradient()), rng())
    np.testing.assert_array_equal(array, gradient()[10:30, 20:40])
    padded = Crop(48, resize=0)(encoded(gradient()), rng())
    np.testing.assert_array_equal(padded[4:44], gradient()[:, 6:54])
    np.testing.assert_array_equal(padded[:4], gradient()[3::-1, 6:54])


@given(SIDES, SIDES, st.integers(1, 200), st.none() | SEEDS)
def test_native_crops_hold_only_pixels_of_the_image(
    height: int, width: int, size: int, seed: int | None
) -> None:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    image = Image.fromarray(np.dstack([rows, columns, 0 * rows]))
    array = crop(image, size, rng=None if seed is None else rng(seed)).astype(int)
    assert array.shape == (size, size, 3)
    for channel, side, axis in ((0, height, 0), (1, width, 1)):
        line = np.take(array[..., channel], 0, axis=1 - axis)  # source row or column of each pixel
        assert (array[..., channel] == np.expand_dims(line, 1 - axis)).all()
        steps = np.diff(line)
        if size <= side:
            assert (steps == 1).all()  # inside, and in order
        else:
            assert set(line) == set(range(side))  # the whole side
            assert set(np.abs(steps)) <= {0, 1}  # mirrored, not wrapped


@given(SIDES, SIDES, st.sampled_from([0, 32, 50]), SEEDS)
def test_transforms_give_the_requested_size_and_follow_their_seed(
    height: int, width: int, resize: int, seed: int
) -> None:
    data = encoded(noise(height, width))
    augment = Augment(0.5, (30, 95), 0.5, (0.3, 1.5))
    for transform, shape in (
        (Crop(28, resize=resize, random=True, flip=True), (28, 28, 3)),
        (Crop(28, resize=resize, random=True, flip=True, augment=augment), (28, 28, 3)),
        (RandomResizedCrop(28), (28, 28, 3)),
        (MultiCrop(28, num_crops=3, resize=resize, random=True), (3, 28, 28, 3)),
        (MultiCrop(28, num_crops=9, resize=resize), (9, 28, 28, 3)),
    ):
        one, two = (transform(data, rng(seed)) for _ in range(2))
        assert one.shape == shape
        assert one.dtype == np.uint8
        assert one.flags.c_contiguous
        np.testing.assert_array_equal(one, two)


def test_random_crops_cover_the_image() -> None:
    rows, columns = np.mgrid[0:36, 0:40].astype(np.uint8)
    image, source = Image.fromarray(np.dstack([rows, columns, rows])), rng()
    for crops in (
        [crop(image, 30, rng=source) for _ in range(300)],
        multi_crop(image, 30, num_crops=300, rng=source),
    ):
        assert {int(part[0, 0, 0]) for part in crops} == set(range(7))
        assert {int(part[0, 0, 1]) for part in crops} == set(range(11))


def test_a_grid_reaches_from_corner_to_corner_row_by_row() -> None:
    image = Image.fromarray(noise(41, 60))
    array = np.asarray(image)
    crops = multi_crop(image, 20, num_crops=9)
    places = [(top, left) for top in (0, 10, 21) for left in (0, 20, 40)]  # 10.5 rounds to even
    for part, (top, left) in zip(crops, places, strict=True):
        np.testing.assert_array_equal(part, array[top : top + 20, left : left + 20])
    np.testing.assert_array_equal(multi_crop(image, 20, num_crops=1)[0], crop(image, 20))


@given(SIDES, SIDES, st.integers(1, 6), SEEDS)
def test_multi_crops_are_crops(height: int, width: int, num_crops: int, seed: int) -> None:
    image, source = Image.fromarray(noise(height, width)), rng(seed)
    one_by_one = [crop(image, 24, rng=source) for _ in range(num_crops)]
    np.testing.assert_array_equal(
        multi_crop(image, 24, num_crops=num_crops, rng=rng(seed)), one_by_one
    )


def test_flips_mirror_half_of_the_images() -> None:
    data = encoded(noise(28, 28))
    mirrored = Crop(28, resize=0, flip=True)
    flips = [(mirrored(data, rng(seed)) == noise(28, 28)[:, ::-1]).all() for seed in range(400)]
    assert abs(np.mean(flips) - 0.5) < 4 * np.sqrt(0.25 / 400)  # four standard errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(224, resize=200), "resize 200 is below the crop size 224"),
        (lambda: MultiCrop(224, resize=-1), "resize -1 is below"),
        (lambda: MultiCrop(224, num_crops=5), "5 crops .*square number"),
        (lambda: MultiCrop(224, num_crops=0, random=True), "num_crops must be 1 or more"),
        (lambda: Augment(jpeg_probability=1.5), "jpeg_probability must be between 0 and 1"),
        (lambda: Augment(resize_probability=float("nan")), "resize_probability must be"),
        (lambda: Augment(jpeg_quality=(90, 50)), "jpeg_quality .*minimum, maximum"),
        (lambda: Augment(jpeg_quality=(50, 101)), "jpeg_quality .*between 1 and 100"),
        (lambda: Augment(resize_scale=(0, 1)), "resize_scale .*above 0"),
        (lambda: Augment(short_side=(0, 9)), "short_side .*1 or more"),
        (lambda: Augment(noise_probability=-0.1), "noise_probability must be between"),
        (lambda: Augment(brightness=(1.5, 0.5)), "brightness .*minimum, maximum"),
        (lambda: Augment(noise=(-1, 5)), "noise .*0 or more"),
    ],
)
def test_impossible_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- augmentation -------------------------------------------------------------------------------

BOTH = Augment(jpeg_probability=0.3, jpeg_quality=(40, 60), resize_probability=0.6)


def test_the_default_augmentation_draws_and_changes_nothing() -> None:
    image, source = Image.fromarray(noise()), rng()
    assert Augment()(image, source) is image
    assert source.bit_generator.state == rng().bit_generator.state


def test_the_number_of_draws_does_not_depend_on_their_outcome() -> None:
    image = Image.fromarray(noise())
    states = []
    for jpeg, resize, noisy in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1e-9, 1e-9, 0)):
        source = rng(5)
        chances = {"jpeg": jpeg, "resize": resize, "noise": noisy, "brightness": noisy}
        Augment(**{f"{change}_probability": p for change, p in chances.items()})(image, source)
        states.append(source.bit_generator.state)
    assert all(state == states[0] for state in states)


def test_each_augmentation_happens_with_its_probability() -> None:
    image, count = Image.fromarray(noise(24, 24)), 2000
    resize_only = dataclasses.replace(BOTH, jpeg_probability=0)
    jpeg, resized = np.zeros(count, bool), np.zeros(count, bool)
    for seed in range(count):
        before = resize_only(image, rng(seed))
        resized[seed] = before is not image
        jpeg[seed] = (np.asarray(BOTH(image, rng(seed))) != np.asarray(before)).any()
    for happened, probability in ((jpeg, 0.3), (resized, 0.6), (jpeg & resized, 0.18)):
        error = np.sqrt(probability * (1 - probability) / count)
        assert abs(happened.mean() - probability) < 4 * error


def test_brightness_and_noise_have_the_strength_stated() -> None:
    """48² · 3 values of grey 100: scaled by a factor, plus noise with a deviation in the range."""
    grey = Image.new("RGB", (48, 48), (100, 100, 100))
    augment = Augment(
        brightness_probability=0.5,
        brightness=(0.5, 1.5),
        noise_probability=0.5,
        noise=(2.0, 6.0),
    )
    kinds = set()
    for seed in range(200):
        values = np.asarray(augment(grey, rng(seed)), np.float64)
        mean, spread = values.mean(), values.std()
        noisy, brightened = spread > 0, abs(mean - 100) > 1
        kinds.add((noisy, brightened))
        assert 49 < mean < 151
        if noisy:
            error = 4 / np.sqrt(2 * values.size)  # four relative standard errors of a deviation
            assert 2 * (1 - error) - 0.1 < spread < 6 * (1 + error) + 0.1  # 0.1 for rounding
            neighbours = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
            assert abs(neighbours) < 4 / np.sqrt(values.size)  # independent pixels
    assert len(kinds) == 4


@given(st.integers(1, 100), st.integers(16, 64), st.integers(16, 64))
def test_recompression_is_jpeg_at_the_quality_and_subsampling_stated(
    quality: int, height: int, width: int
) -> None:
    image = Image.fromarray(noise(height, width))
    data = saved(image, "JPEG", quality=quality, subsampling="4:2:0")
    array = np.asarray(recompress(image, quality))
    np.testing.assert_array_equal(array, np.asarray(Image.open(io.BytesIO(data))))
    assert (array != np.asarray(image)).any()


def test_qualities_and_scales_cover_their_ranges() -> None:
    image = Image.fromarray(noise(16, 100))
    augment = Augment(1, (70, 73), 1, (0.5, 1.5))
    outcomes: list[Any] = [augment(image, rng(seed)) for seed in range(300)]
    tables = {tuple(np.ravel(list(out.quantization.values()))) for out in outcomes}
    assert len(tables) == 4  # one per quality
    widths = np.array([out.width for out in outcomes])
    assert 50 <= widths.min() < 55
    assert 145 < widths.max() <= 150
    assert all(abs(out.height - 0.16 * out.width) <= 0.6 for out in outcomes)  # aspect ratio


def test_rescaling_stays_between_one_pixel_and_the_decoder_s_limit() -> None:
    giant = rescale(Image.new("1", (9000, 8000)), 2.0)
    assert 0.999 < giant.width * giant.height / MAX_PIXELS < 1.001  # sides are rounded
    assert rescale(Image.fromarray(noise(16, 16)), 0.001).size == (1, 1)


def test_tiny_augmented_images_are_padded_by_reflection() -> None:
    augment = Augment(1, (50, 50), 1, (0.1, 0.1))
    array = Crop(64, resize=0, random=True, augment=augment)(encoded(noise(16, 20)), rng())
    assert array.shape == (64, 64, 3)


def test_a_long_comment_in_the_source_does_not_break_recompression() -> None:
    data = encoded(gradient(), "GIF", comment=b"x" * 100_000)
    assert Crop(28, resize=0, augment=Augment(1))(data, rng()).shape == (28, 28, 3)


@given(SEEDS)
def test_augmentation_depends_on_pixels_and_seed_not_on_the_file(seed: int) -> None:
    jpeg = encoded(noise(), "JPEG", quality=80, exif=Image.Exif())
    png = encode_png(np.asarray(decode(jpeg)))
    transform = Crop(28, resize=0, random=True, flip=True, augment=BOTH)
    np.testing.assert_array_equal(transform(jpeg, rng(seed)), transform(png, rng(seed)))


def test_augmentation_is_blind_to_labels(data_set: Path) -> None:
    images = loader.from_catalog(catalog.scan(data_set).select(split="train"))
    swapped = dataclasses.replace(images, labels=1 - images.labels)
    transform = Crop(32, resize=0, random=True, flip=True, augment=BOTH)
    plain = dataclasses.replace(transform, augment=Augment())

    def stream(source: loader.Images, how: Crop) -> list[loader.Batch]:
        order = Order(len(source), 16, epochs=1, seed=3)
        return list(loader.Loader(source, how, seed=3).train_batches(order))

    changed = 0
    batches = (stream(images, transform), stream(swapped, transform), stream(images, plain))
    for one, two, three in zip(*batches, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        assert (one["label"] != two["label"]).all()
        changed += (one["image"] != three["image"]).any(axis=(1, 2, 3)).sum()
    assert changed > 20  # of 48


def picture(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode_png(pixels)


def test_all_crops_of_an_image_are_mirrored_alike() -> None:
    plain = MultiCrop(16, 4, random=True)
    mirrored = dataclasses.replace(plain, flip=True)
    seen = set()
    for seed in range(8):
        one, two = (t(picture(60, 40), np.random.default_rng(seed)) for t in (plain, mirrored))
        same, flipped = (one == two).all(), (one == two[:, :, ::-1]).all()
        assert same != flipped
        seen.add(bool(flipped))
    assert seen == {True, False}


def test_the_shorter_side_is_drawn_from_its_range() -> None:
    augment = Augment(short_probability=1.0, short_side=(20, 24))
    sizes = {
        min(augment(decode(picture(90, 40)), np.random.default_rng(seed)).size)
        for seed in range(40)
    }
    assert sizes == {20, 21, 22, 23, 24}


@pytest.mark.parametrize("together", [False, True])
def test_steps_are_drawn_separately_or_together(together: bool) -> None:
    augment = Augment(
        jpeg_probability=0.5,
        jpeg_quality=(5, 5),
        short_probability=0.5,
        short_side=(20, 20),
        together=together,
    )
    image = decode(picture(90, 40))
    kinds = set()
    for seed in range(40):
        result = augment(image, np.random.default_rng(seed))
        shortened = result.size != image.size
        clean = resize_short(image, 20) if shortened else image
        kinds.add((shortened, np.asarray(result).tobytes() != np.asarray(clean).tobytes()))
    both = {(False, False), (True, True)}
    assert kinds == both if together else kinds > both


@pytest.mark.parametrize("native", [0.0, 0.5, 1.0])
def test_a_share_of_pretraining_samples_is_not_resampled(native: float) -> None:
    """A native crop holds only values of the image; here there are two."""
    pixels = np.random.default_rng(0).choice(np.array([10, 240], np.uint8), (64, 64, 1))
    data = encode_png(np.repeat(pixels, 3, axis=2))
    transform = RandomResizedCrop(16, native=native)
    untouched = [
        set(np.unique(transform(data, np.random.default_rng(seed)))) <= {10, 240}
        for seed in range(60)
    ]
    assert abs(np.mean(untouched) - native) < 0.25
    assert (np.mean(untouched) == native) or native == 0.5
