"""Trains a network without a teacher: a future teacher, or a student alone.

%s --dataset=glyphs --model=resnet_small --epochs=40
    --run=runs/alone
"""

import keras
from absl import flags

import keras_mhgd

from . import commands, options
from .messages import closing, opening
from .runs.interruption import Interruption
from .runs.run import Run

options.define_data()
options.define_training()
flags.DEFINE_string(
    "model",
    None,
    "Network, such as resnet_small. One of "
    f"{', '.join(keras_mhgd.models.names())}.",
)
flags.mark_flag_as_required("model")
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Trains the network that the flags name."""
    with Interruption() as interruption:
        _main(interruption)


def _main(interruption: Interruption) -> None:
    run = Run(FLAGS.run, options.configuration("model", program="train"))
    if not run.result:
        with options.strategy().scope():
            _train(run, interruption)
    print(closing.of_run(run.directory, run.result))


def _train(run: Run, interruption: Interruption) -> None:
    options.start()
    dataset = options.load_training_data()
    network = options.network(FLAGS.model, dataset)
    # Compiling the network itself would put an optimizer into its files, so a
    # shell around it is compiled.
    model = keras.Model(network.inputs, network.outputs)
    options.compile_model(model, dataset)
    print(opening.of_training(network, dataset, run.config, run.directory))
    run.fit(
        model,
        network,
        dataset,
        network.variables,
        interruption,
        save_freq=FLAGS.save_freq,
        profile=options.profile(),
    )


if __name__ == "__main__":
    commands.run(main)
