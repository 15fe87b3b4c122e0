"""Views by Keras's random layers: each depends on its image and seed alone."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import data
from keras_mhgd.data import Dataset, Mixing, RandomResizedCrop, random_layers

layers = keras.layers
COUNT = 10


def make(channels=3, **changes):
    """A set whose labels are the indices of its images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 16, 16, channels), np.uint8)
    labels = np.arange(COUNT, dtype=np.int32)
    parts = {"flip": True, "padding": 2, "classes": tuple("abcdefghij")}
    return Dataset(
        "toy", images, labels, images[:3], labels[:3], **{**parts, **changes}
    )


LAYERS = {
    "brightness": lambda: layers.RandomBrightness(0.2),
    "color degeneration": lambda: layers.RandomColorDegeneration(0.5),
    "color jitter": lambda: layers.RandomColorJitter(
        (0, 255), 0.2, 0.4, (0.3, 0.7), 0.1
    ),
    "contrast": lambda: layers.RandomContrast(0.3),
    "crop": lambda: layers.RandomCrop(9, 8),
    "elastic": lambda: layers.RandomElasticTransform(1.0),
    "erasing": lambda: layers.RandomErasing(1.0),
    "flip": lambda: layers.RandomFlip(),
    "blur": lambda: layers.RandomGaussianBlur(1.0),
    "grayscale": lambda: layers.RandomGrayscale(0.5),
    "hue": lambda: layers.RandomHue(0.3),
    "invert": lambda: layers.RandomInvert(0.5),
    "perspective": lambda: layers.RandomPerspective(1.0),
    "posterization": lambda: layers.RandomPosterization(4),
    "rotation": lambda: layers.RandomRotation(0.1),
    "saturation": lambda: layers.RandomSaturation((0.1, 0.9)),
    "sharpness": lambda: layers.RandomSharpness((0.0, 1.0)),
    "shear": lambda: layers.RandomShear(0.3, 0.3),
    "translation": lambda: layers.RandomTranslation(0.2, 0.2),
    "zoom": lambda: layers.RandomZoom(0.3),
    "resized crop": lambda: RandomResizedCrop(12, 10),
    "rand augment": lambda: layers.RandAugment(factor=0.5),
    "dropout": lambda: layers.Dropout(0.5),
    "several": lambda: keras.Sequential(
        [layers.RandomFlip(), keras.Sequential([layers.RandomRotation(0.1)])]
    ),
}


def seen(dataset, epoch, batch_size, **options):
    """Views of an epoch by position."""
    return seen_with_labels(dataset, epoch, batch_size, **options)[0]


def seen_with_labels(dataset, epoch, batch_size, **options):
    """Views and labels of an epoch by position."""
    found = {}
    steps = dataset.steps_per_epoch(batch_size)
    stream = dataset.train_with_places(
        batch_size, initial_epoch=epoch, **options
    )
    for batch, _, positions in itertools.islice(
        stream.as_numpy_iterator(), steps
    ):
        found |= zip(positions, zip(*batch, strict=True), strict=True)
    parts = zip(*(found[each] for each in sorted(found)), strict=True)
    return [np.stack(part) for part in parts]


@pytest.mark.parametrize("name", LAYERS)
def test_a_view_depends_on_its_seed(name):
    """Traced twice, it is the same; other seeds give other views."""
    image = make().x_train[0]
    seeds = tf.constant([[1, 2], [3, 4], [5, 6], [7, 8]])
    found = []
    for _ in range(2):
        layer = LAYERS[name]()
        compute = tf.function(
            lambda seed, layer=layer: random_layers.view(layer, image, seed)
        )
        found.append([compute(seed).numpy() for seed in seeds])
    np.testing.assert_array_equal(*found)
    views = found[0]
    assert any((each != views[0]).any() for each in views[1:])
    assert min(np.min(views), 0) == 0 and max(np.max(views), 255) == 255


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "crop",
        pytest.param("standard", marks=pytest.mark.slow),
        pytest.param("strong", marks=pytest.mark.slow),
    ],
)
def test_a_view_depends_on_seed_epoch_and_image_alone(name):
    """Not on batch, order, earlier epochs, or which images are there."""
    full = make().augmented(name)
    views = seen(full, 3, 4, seed=5)
    assert views.shape[1:] == full.view_shape
    np.testing.assert_array_equal(seen(full, 7, 7, seed=5, views=4), views)
    if not full.mixing:  # the other images are among those that are there
        np.testing.assert_array_equal(
            seen(full.take(4), 3, 3, seed=5), views[:4]
        )
    plain = full.normalise(full.x_train)
    if name == "none":
        np.testing.assert_array_equal(views, plain)
    else:
        other = seen(full, 4, 4, seed=6)
        assert (other != views).any() and (plain != views).any()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["standard", "strong"])
def test_named_layers_make_views_of_any_size(channels, name):
    dataset = make(channels).augmented(name, size=(12, 20))
    assert dataset.view_shape == (12, 20, channels)
    assert dataset.input_shape == (16, 16, channels)
    views = seen(dataset, 0, 10) * dataset.std + dataset.mean
    assert views.shape == (COUNT, 12, 20, channels)
    assert views.min() > -0.01 and views.max() < 255.01
    assert views.std() > 20


def test_an_unmirrored_set_is_not_mirrored():
    steps = [
        [
            type(each).__name__
            for each in random_layers.named(name, (8, 8), 3, flip).layers
        ]
        for flip in (True, False)
        for name in ("standard", "strong")
    ]
    assert ["RandomFlip" in each for each in steps] == [True] * 2 + [False] * 2


def test_layers_that_draw_elsewhere_are_refused():
    with pytest.raises(ValueError, match="generators of its layers.*AugMix"):
        make().augmented(layers.AugMix())
    with pytest.raises(ValueError, match="views of one size.*Resizing"):
        make().augmented(Flattened())
    with pytest.raises(ValueError, match="`size` must be left out.*'crop'"):
        make().augmented("crop", size=(8, 8))
    with pytest.raises(ValueError, match="augmentation.*strongest.*strong"):
        make().augmented("strongest")


class Flattened(layers.Layer):
    """Makes no image."""

    def call(self, x):
        return tf.reshape(x, [tf.shape(x)[0], -1])


def test_layers_are_left_as_they_were():
    """Their generators count on as Keras's do."""
    layer = layers.RandomFlip(seed=3)
    image = np.random.default_rng(0).uniform(size=(6, 8, 8, 3))
    twin = layers.RandomFlip(seed=3)
    seen(make().augmented(layer), 0, 4)
    for _ in range(3):
        np.testing.assert_array_equal(
            layer(image, training=True), twin(image, training=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "mixing",
    [
        Mixing(),
        Mixing(cutmix_alpha=None, mixup_alpha=1.0),
        Mixing(mixup_alpha=None),
        Mixing(rate=0.5),
    ],
)
def test_labels_are_mixed_by_the_shares_of_the_images(mixing):
    """Image `i` has the value `20 i` everywhere: a view tells its shares."""
    values = 20 * np.arange(COUNT, dtype=np.uint8)
    plain = make(channels=1, padding=0)
    images = np.broadcast_to(
        values[:, None, None, None], (COUNT, 16, 16, 1)
    ).copy()
    dataset = Dataset(
        "flat",
        images,
        plain.y_train,
        images[:3],
        plain.y_test,
        plain.classes,
    ).augmented("crop", mixing=mixing)
    means, alone = [], 0
    for epoch in range(4):
        views, labels = seen_with_labels(dataset, epoch, 4)
        views = views * dataset.std + dataset.mean
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(
            views.mean((1, 2, 3)), labels @ values, atol=0.01
        )
        means.append(labels[np.arange(COUNT), np.arange(COUNT)])
        alone += (labels.max(1) == 1).sum()
        if mixing.mixup_alpha is None:  # each pixel is of one of both
            assert np.isin(np.rint(views), values).all()
    assert 0.3 < np.mean(means) < 0.9
    assert (mixing.rate < 1) == (alone > 10)
    images, labels = next(iter(dataset.test(3)))
    np.testing.assert_array_equal(labels, np.eye(COUNT)[:3])


@pytest.mark.slow
def test_a_mixture_with_an_image_without_label_has_no_weight():
    dataset = make().take(5, "unlabeled").augmented("crop", mixing=Mixing())
    weights, shares = [], []
    for epoch in range(4):
        stream = dataset.train(COUNT, initial_epoch=epoch)
        _, labels, weight = next(iter(stream))
        weights.append(weight)
        shares.append(labels.numpy().sum(1))
    weights, shares = np.concatenate(weights), np.concatenate(shares)
    np.testing.assert_array_equal(weights == 1, shares > 0.999999)
    assert 2 < weights.sum() < 20


def test_a_resized_crop_is_a_part_of_the_image():
    """A crop of a ramp is a ramp, within the bounds of area and ratio."""
    crop = RandomResizedCrop(8, 8, scale=(0.2, 0.5), ratio=(0.5, 2.0), seed=1)
    rows, columns = np.meshgrid(np.arange(40.0), np.arange(60.0), indexing="ij")
    image = np.stack([rows, columns], -1).astype("float32")
    views = np.asarray(crop(np.stack([image] * 50), training=True))
    assert views.shape == (50, 8, 8, 2)
    steps = np.diff(views[:, :, 4, 0], axis=1), np.diff(views[:, 4, :, 1])
    heights, widths = (8 * each[:, 2:-2].mean(1) for each in steps)
    areas = heights * widths / 2400
    assert 0.15 < areas.min() < 0.3 and 0.4 < areas.max() < 0.55
    assert (widths / heights).min() < 0.8 and (widths / heights).max() > 1.3
    assert views[..., 0].max() < 40 and views[..., 1].max() < 60
    whole = np.asarray(crop(image, training=False))
    assert whole.shape == (8, 8, 2)
    np.testing.assert_allclose(whole[:, 4, 0], 5 * np.arange(8) + 2, atol=0.5)
    assert crop.compute_output_shape((None, 40, 60, 2)) == (None, 8, 8, 2)
    again = RandomResizedCrop.from_config(crop.get_config())
    assert again.get_config() == crop.get_config()
    with pytest.raises(ValueError, match="scale"):
        RandomResizedCrop(8, 8, scale=(0.5, 1.5))


@pytest.mark.slow
def test_files_are_cropped_in_their_own_size(tmp_path):
    for part, name in itertools.product(("train", "test"), "ab"):
        folder = tmp_path / part / name
        folder.mkdir(parents=True)
        for number, shape in enumerate([(40, 30, 3), (20, 50, 3)]):
            image = np.full(shape, 100, np.uint8)
            image[:, :, 1] = np.arange(shape[1])
            png = tf.io.encode_png(image).numpy()
            (folder / f"{number}.png").write_bytes(png)
    kept = data.load(tmp_path, image_size=(16, 16))
    labels = kept.y_train
    paths = sorted(tmp_path.glob("train/*/*.png"))
    lazy = Dataset(
        "files",
        data.Files(paths, (16, 16)),
        labels,
        kept.x_test,
        kept.y_test,
        kept.classes,
    )
    for dataset in (kept, lazy):
        views = seen(dataset.augmented(RandomResizedCrop(8, 8)), 0, 4)
        assert views.shape == (4, 8, 8, 3)
        plain = seen(dataset.augmented(layers.RandomInvert(0.0)), 0, 4)
        np.testing.assert_allclose(
            plain, dataset.normalise(kept.x_train), atol=1e-5
        )
