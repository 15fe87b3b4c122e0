"""Masks of KerasHub's networks of text."""

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import FeatureExtractor

TOKENS = np.array([[3, 1, 2, 0, 0], [1, 0, 0, 0, 0], [4, 2, 1, 3, 5]])
MASK = (TOKENS > 0).astype("int32")
SIZES = dict(
    vocabulary_size=10,
    num_layers=2,
    num_heads=2,
    hidden_dim=4,
    intermediate_dim=6,
    max_sequence_length=5,
)


def bert():
    blocks = ["transformer_layer_0", "transformer_layer_1"]
    return keras_hub.models.BertBackbone(**SIZES), blocks


def distil_bert():
    blocks = ["transformer_layer_0", "transformer_layer_1"]
    return keras_hub.models.DistilBertBackbone(**SIZES), blocks


@pytest.mark.parametrize("make", [bert, distil_bert])
@pytest.mark.parametrize("compiled", [False, True])
def test_masks_of_blocks(make, compiled):
    model, blocks = make()
    inputs = {"token_ids": TOKENS, "padding_mask": MASK}
    inputs["segment_ids"] = np.zeros_like(MASK)
    inputs = {name: tf.constant(inputs[name], tf.int32) for name in model.input}
    extractor = FeatureExtractor(model, blocks)
    found = (tf.function(extractor) if compiled else extractor)(inputs)
    for maps, mask in zip(found.maps, found.masks, strict=True):
        assert maps.shape == (3, 5, 4)
        np.testing.assert_array_equal(mask, MASK)
    if isinstance(found.outputs, dict):
        masks = found.output_masks
        np.testing.assert_array_equal(masks["sequence_output"], MASK)
        assert masks["pooled_output"] is None
    else:
        np.testing.assert_array_equal(found.output_masks, MASK)
    for maps in found.without_padding().maps:
        assert not np.any(maps.numpy()[MASK == 0])


def test_a_classifier_has_masked_maps_and_whole_outputs():
    backbone, blocks = distil_bert()
    model = keras_hub.models.DistilBertTextClassifier(
        backbone, num_classes=3, activation="softmax"
    )
    points = [f"{backbone.name}/{block}" for block in blocks]
    extractor = FeatureExtractor(model, points, ["logits"])
    inputs = {"token_ids": TOKENS, "padding_mask": MASK}
    found = extractor(inputs)
    for mask in found.masks:
        np.testing.assert_array_equal(mask, MASK)
    assert found.output_masks is None
    assert extractor.ends == ("softmax", False)
    np.testing.assert_allclose(
        tf.nn.softmax(found.logits), model(inputs), rtol=1e-5
    )
