"""Times each part of a training step of MHGD, all in one process."""

import keras
import tensorflow as tf

from benchmarks.speed.contest import Run, looped
from benchmarks.speed.pairs import PAIRS, distiller, mhgd
from keras_mhgd.features import FeatureExtractor
from keras_mhgd.features.compression import student_vectors, teacher_vectors
from keras_mhgd.methods import graph_divergence


def make(pair: str, clipping: str, batch_size: int) -> dict[str, Run]:
    """Makes a run for each part, and runs whose differences are parts.

    Args:
        pair: A name in `PAIRS`.
        clipping: Argument of MHGD.
        batch_size: Images in a batch.

    Returns:
        Runs by name. `"forward"` computes the student's loss, `"backward"`
        adds a backward pass, and `"two backwards"` adds two.
    """
    described = PAIRS[pair]
    model = distiller(described, mhgd(described, clipping=clipping))
    student, teacher, mhan = model.student, model.teacher, model.methods[0].mhan
    x, y = described.batch(batch_size)
    batches = iter(described.dataset().train(batch_size))
    points = list(described.points)
    maps = FeatureExtractor(student, points)(x, training=True).maps
    of_teacher = FeatureExtractor(teacher, points)(x)
    targets = teacher_vectors(of_teacher)
    vectors = student_vectors(maps, targets)
    edges = mhan.edges(targets)
    variables = student.trainable_variables
    task = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    nothing = [tf.zeros_like(each) for each in variables]

    def loss():
        return task(y, student(x, training=True))

    def backward(count):
        with tf.GradientTape(persistent=count > 1) as tape:
            outputs = student(x, training=True)
            # The losses differ: TensorFlow would compute equal ones once.
            values = task(y, outputs), tf.reduce_mean(outputs**2)
        return [tape.gradient(each, variables) for each in values[:count]]

    def svd():
        with tf.GradientTape() as tape:
            tape.watch(maps)
            found = student_vectors(maps, targets)
        return tape.gradient(found, maps)

    def graph():
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            value = graph_divergence(mhan.edges(vectors), edges)
        return tape.gradient(value, vectors)

    parts = {
        "step": lambda: model.train_step((x, y)),
        "teacher": lambda: teacher(x, training=False),
        "forward": loss,
        "backward": lambda: backward(1),
        "two backwards": lambda: backward(2),
        "SVD, teacher": lambda: teacher_vectors(of_teacher),
        "SVD, student": svd,
        "graph": graph,
        "update": lambda: model.optimizer.apply(nothing, variables),
    }
    model.optimizer.build(model.trainable_variables)
    runs = {
        name: looped(tf.function(part, autograph=False))
        for name, part in parts.items()
    }
    runs["input"] = looped(lambda: next(batches))
    return runs
