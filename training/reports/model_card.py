"""Makes the model card of exported files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import markdown

_LOADING = {
    "saved_model": """**SavedModel**, with TensorFlow alone:

```python
import tensorflow as tf

module = tf.saved_model.load("saved_model")
{serving}
""",
    "tflite": """**TFLite**, all files except full int8, with `ai-edge-litert`:

```python
import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("{file}")
(source,) = interpreter.get_input_details()
(output,) = interpreter.get_output_details()
batch = {batch}
interpreter.resize_tensor_input(source["index"], batch.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(source["index"], batch)
interpreter.invoke()
print(interpreter.get_tensor(output["index"]).argmax(-1))
```
""",
    "tflite_int8": """**TFLite, full int8**: integers go in and come out.

```python
import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter("{file}")
(source,) = interpreter.get_input_details()
(output,) = interpreter.get_output_details()
batch = {batch}
scale, zero_point = source["quantization"]
limits = np.iinfo(source["dtype"])
batch = np.round(batch / scale) + zero_point
batch = batch.clip(limits.min, limits.max).astype(source["dtype"])
interpreter.resize_tensor_input(source["index"], batch.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(source["index"], batch)
interpreter.invoke()
# For floats: (values - zero point) * scale of `output["quantization"]`.
print(interpreter.get_tensor(output["index"]).argmax(-1))
```
""",
    "onnx": """**ONNX**, with `onnxruntime`:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
batch = {batch}
(outputs,) = session.run(None, {{"images": batch}})
print(outputs.argmax(-1))
```
""",
}
_SERVE_IMAGES = """# Of any size:
images = tf.zeros((2, 100, 80, {channels}), "uint8")
answer = module.signatures["serve_images"](images=images)
print(answer["class_name"], answer["probabilities"])
```

`module.signatures["serve"]` takes images that are prepared already, and gives
the plain outputs."""
_SERVE_TOKENS = """tokens = tf.ones((2, {shape}), "int32")
(outputs,) = module.signatures["serve"](tokens).values()
print(outputs)
```"""


def card(facts: Mapping[str, Any]) -> str:
    """Makes the model card.

    Args:
        facts: Content of `export.json`.

    Returns:
        Markdown.
    """
    sections = {
        "Figures": _figures(facts),
        "Use": _loading(facts),
        "Preprocessing": _preprocessing(facts),
        "Classes": (
            f"{len(facts['classes'])}, in the order of the outputs:\n\n"
            f"```json\n{json.dumps(facts['classes'], ensure_ascii=False)}\n```"
        ),
        "Limits": _LIMITS.format(
            dataset=facts["dataset"], sample=_sample(facts)
        ),
    }
    body = "\n\n".join(
        f"## {heading}\n\n{text.strip()}" for heading, text in sections.items()
    )
    title = f"# {facts['network']} on {facts['dataset']}"
    return f"{title}\n\n{_origin(facts)}\n\n{body}\n"


def _sample(facts: Mapping[str, Any]) -> str:
    return "sequence" if facts["tokens"] else "image"


def _preprocessing(facts: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, facts["input_shape"]))
    text = f"Input: `(batch, {shape})`, any batch size. "
    if facts["tokens"]:
        tokens = json.dumps(facts["tokens"], ensure_ascii=False)
        return (
            f"{text}A row holds the numbers of a sequence's tokens, with zeros "
            "after its end. The tokens, from number 0, which is padding:\n\n"
            f"```json\n{tokens}\n```"
        )
    return (
        f"{text}Prepared images are `(pixels - mean) / std`, with pixels "
        "0 to 255 and, for each channel,\n\n"
        f"- mean: {_list(facts['mean'])}\n- std: {_list(facts['std'])}\n\n"
        "Images of another size are resized first (bilinear, "
        "antialiased). The signature `serve_images` of the SavedModel "
        "does all this itself."
    )


_LIMITS = """
- Accuracy is that on the test {sample}s of {dataset}. On others it is not
  known, and each {sample} gets one of the classes above, whatever it holds.
- Probabilities are the softmax of the outputs as trained; whether they match
  frequencies was not measured.
- Latency holds for the machine above; compare files, not machines.
- Scales of full int8 come from training {sample}s: inputs far from these are
  clipped.
"""


def _origin(facts: Mapping[str, Any]) -> str:
    article = "A" if facts["tokens"] else "An"
    text = (
        f"{article} {_sample(facts)} classifier of {facts['parameters']:,} "
        f"parameters and {len(facts['classes'])} classes"
    )
    run = facts["run"]
    if run is None:
        return f"{text}. How it was trained is not recorded."
    config = run["configuration"]
    count = f"{config['subset']:,} training" if config["subset"] else "all"
    text += (
        f", trained on {count} {_sample(facts)}s of {facts['dataset']} for "
        f"{run['epochs']} epochs (seed {config['seed']})"
    )
    if "teacher" not in config:
        return f"{text}, without a teacher."
    arguments = ", ".join(config["set"]) or "default arguments"
    return (
        f"{text}, as the student of `{config['teacher']}` by the method "
        f"`{config['method']}` ({arguments}). No part of the teacher or of "
        "what the method trained is in these files: each holds the student's "
        "weights and no more, by count and by name."
    )


def _figures(facts: Mapping[str, Any]) -> str:
    head = [
        "format", "file", "size, kB", "numbers", "accuracy, %",
        "agreement, %", "largest difference", "p50, ms", "p95, ms",
    ]  # fmt: skip
    rows = [_row(f"`{file['format']}`", file) for file in facts["files"]]
    rows += [
        _row(name, file | {"path": "not here"})
        for name, file in facts["compared"].items()
    ]
    sample = _sample(facts)
    return (
        markdown([head, *rows])
        + f"""
On the {facts["test_images"]:,} test {sample}s, each file run by its own runtime
in a process without Keras. Agreement: {sample}s with the same class as in the
Keras model. Difference: of an output from the Keras model's. Numbers: weights
and constants stored. Latency: one {sample}, one thread, median and 95th
percentile of 200 calls. What is not here was measured as a float32 TFLite file.

{facts["machine"]}

![Accuracy against size and latency](accuracy.png)"""
    )


def _row(name: str, file: Mapping[str, Any]) -> list[str]:
    return [
        name,
        file["path"],
        f"{file['size'] / 1000:.0f}",
        f"{file['numbers']:,}",
        f"{100 * file['accuracy']:.2f}",
        f"{100 * file['agreement']:.2f}",
        f"{file['max_difference']:.1e}",
        f"{file['latency_p50']:.3f}",
        f"{file['latency_p95']:.3f}",
    ]


def _loading(facts: Mapping[str, Any]) -> str:
    *_, channels = shape = facts["input_shape"]
    shape = ", ".join(map(str, shape))
    batch = f'np.zeros((2, {shape}), "float32")  # prepared images'
    serving = _SERVE_IMAGES.format(channels=channels)
    if facts["tokens"]:
        batch = f'np.ones((2, {shape}), "int32")'
        serving = _SERVE_TOKENS.format(shape=shape)
    parts = {}
    for file in facts["files"]:
        name = file["format"]
        name = name if name in _LOADING else "tflite"  # loaded the same way
        parts.setdefault(
            name,
            _LOADING[name].format(
                batch=batch,
                serving=serving,
                file=file["path"],
            ),
        )
    return "\n".join(parts.values())


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values)
