"""Tasks of KerasHub bring preprocessors, with text and vocabularies."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Views, text_as_tensors

models = keras_hub.models

# The tasks are compiled when they are made, and load without.
pytestmark = pytest.mark.filterwarnings("ignore:`compile..` was not called")

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
TEXT = ["good film", "bad", "film film good", "bad good"]


def distil_bert(words=("good", "bad", "film"), length=8):
    tokenizer = models.DistilBertTokenizer(vocabulary=[*SPECIAL, *words])
    return models.DistilBertTextClassifier(
        models.DistilBertBackbone(
            len(SPECIAL) + len(words), 1, 2, 8, 8, max_sequence_length=length
        ),
        num_classes=3,
        preprocessor=models.DistilBertTextClassifierPreprocessor(
            tokenizer, sequence_length=length
        ),
    )


def bert(words=("film", "other", "bad", "good"), length=12):
    tokenizer = models.BertTokenizer(vocabulary=[*SPECIAL, *words])
    return models.BertTextClassifier(
        models.BertBackbone(
            len(SPECIAL) + len(words), 1, 2, 8, 8, max_sequence_length=length
        ),
        num_classes=3,
        preprocessor=models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=length
        ),
    )


def resnet(size):
    return models.ResNetImageClassifier(
        models.ResNetBackbone(
            [64],
            [3],
            [64],
            [1],
            [1],
            "basic_block",
            image_shape=(size, size, 3),
        ),
        num_classes=3,
        preprocessor=models.ResNetImageClassifierPreprocessor(
            keras_hub.layers.ResNetImageConverter(
                image_size=(size, size), scale=1 / 255
            )
        ),
    )


def outputs(network, x):
    """What a task gives; its preprocessor runs outside of TensorFlow."""
    return network(network.preprocessor(x), training=False).numpy()


def cross_entropies(logits, labels):
    logits, labels = np.asarray(logits), np.asarray(labels)[..., np.newaxis]
    sums = np.log(np.exp(logits).sum(-1))
    return sums - np.take_along_axis(logits, labels, -1)[..., 0]


def trained_on(student, teacher, x, y=None, **preprocessors):
    """Predictions and losses as a step and a test of a distiller have them."""
    views = Views(student, teacher, **preprocessors)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(x, y):
        view = views(x, y)
        mine = student(view.student, training=False)
        its = teacher(view.teacher, training=False)
        return mine, its, loss(view.y, mine, view.sample_weight)

    return step(text_as_tensors(x), y)


def test_text_of_two_tokenizers():
    student, teacher = distil_bert(), bert()
    y = np.array([0, 1, 2, 0])
    mine, its, value = trained_on(student, teacher, TEXT, y)
    for network, found in ((student, mine), (teacher, its)):
        np.testing.assert_allclose(found, outputs(network, TEXT), atol=1e-6)
    expected = cross_entropies(outputs(student, TEXT), y).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not Views(student, teacher).supports_jit


def test_raw_images_of_two_sizes():
    student, teacher = resnet(8), resnet(12)
    views = Views(student, teacher)
    assert views.student_shapes == [(None, 8, 8, 3)]
    assert views.teacher_shapes == [(None, 12, 12, 3)]
    assert views.supports_jit
    x = np.random.default_rng(0).integers(0, 256, (3, 10, 10, 3), "uint8")
    mine, its, _ = trained_on(student, teacher, x, np.array([0, 1, 2]))
    for network, found in ((student, mine), (teacher, its)):
        # Outside of TensorFlow, integers are rounded when resized.
        expected = outputs(network, x.astype("float32"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def language_model(width):
    words = ["<|endoftext|>", "a", "b", "c", "Ġ", "Ġa", "Ġb", "ab"]
    return models.GPT2CausalLM(
        models.GPT2Backbone(8, 1, 2, width, 8, max_sequence_length=8),
        preprocessor=models.GPT2CausalLMPreprocessor(
            models.GPT2Tokenizer(
                vocabulary={word: i for i, word in enumerate(words)},
                merges=["Ġ a", "Ġ b", "a b"],
            ),
            sequence_length=6,
        ),
    )


def test_labels_of_a_language_model():
    """They and their weights are made of the text."""
    student, teacher = language_model(4), language_model(8)
    x = ["a b c", "ab a", "c", "b b"]
    tokens, labels, weights = student.preprocessor(x)
    # The words, an end, and what fills up the rows.
    np.testing.assert_array_equal(np.sum(weights, 1), [5, 3, 2, 3])
    losses = cross_entropies(student(tokens, training=False), labels)
    expected = np.mean(losses * np.asarray(weights))
    mine, its, value = trained_on(student, teacher, x)
    assert mine.shape == its.shape == (4, 6, 8)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_one_tokenizer_for_both():
    student, teacher = distil_bert(), distil_bert()
    own = student.preprocessor
    teacher.preprocessor = None
    # A network of numbers gets text.
    with pytest.raises(ValueError, match="must get numbers. Received: text"):
        trained_on(student, teacher, TEXT, np.zeros(4))
    for given in ("student", own):
        views = Views(student, teacher, teacher_preprocessor=given)
        assert views.is_one
        assert views.given["teacher_preprocessor"] == "student"
        view = views(tf.constant(TEXT))
        assert view.teacher["token_ids"] is view.student["token_ids"]
        expected = [[1, 5, 7, 2, 3, 3, 3, 3], [1, 6, 2, 3, 3, 3, 3, 3]]
        np.testing.assert_array_equal(view.student["token_ids"][:2], expected)
    tokens = own(TEXT)
    off = {
        "student_preprocessor": keras.layers.Identity(),
        "teacher_preprocessor": keras.layers.Identity(),
    }
    view = Views(student, teacher, **off)(tokens)
    assert view.teacher["token_ids"] is tokens["token_ids"]
    teacher.preprocessor = own
    with pytest.raises(ValueError, match=r"not share .*tokenizer"):
        Views(student, teacher).get_config()


@keras.saving.register_keras_serializable(package="tests")
class Pair(keras.Model):
    """Saves what a distiller saves of its networks and their views."""

    def __init__(self, student, teacher, **preprocessors):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.views = Views(student, teacher, **preprocessors)
        self.student_preprocessor = self.views.given["student_preprocessor"]
        self.teacher_preprocessor = self.views.given["teacher_preprocessor"]
        self.built = True

    def call(self, inputs):
        view = self.views(inputs)
        return self.student(view.student), self.teacher(view.teacher)

    def get_config(self):
        networks = {"student": self.student, "teacher": self.teacher}
        return {
            name: keras.saving.serialize_keras_object(each)
            for name, each in networks.items()
        } | self.views.get_config()

    @classmethod
    def from_config(cls, config):
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(each)
                for name, each in config.items()
            }
        )


def of_student(student, teacher):
    teacher.preprocessor = None
    return {"teacher_preprocessor": student.preprocessor}


def of_teacher(student, teacher):
    return {"student_preprocessor": teacher.preprocessor}


def explicit(student, teacher):
    both = distil_bert(words=("film", "bad", "good")).preprocessor
    return {"student_preprocessor": both, "teacher_preprocessor": both}


@pytest.mark.parametrize(
    "given", [lambda *networks: {}, of_student, of_teacher, explicit]
)
def test_saved_with_vocabularies(given, tmp_path):
    student, teacher = distil_bert(), distil_bert(words=("bad", "film", "good"))
    pair = Pair(student, teacher, **given(student, teacher))
    x = tf.constant(TEXT)
    expected = pair(x)
    pair.save(tmp_path / "pair.keras")
    loaded = keras.saving.load_model(tmp_path / "pair.keras")
    assert loaded.views.is_one == pair.views.is_one
    for found, right in zip(loaded(x), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)
