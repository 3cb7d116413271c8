"""The lesson's CIFAR-10 program in Keras: the independent reference of our recipe for it.

    python -m tests.references.lesson_keras --data cifar10

A small residual network on pixels / 255, batches of 128, AdamW with decay 0.05 of every variable,
5 epochs of linear warm-up from 0 to 1e-3 and a cosine to a millionth of it, at each step, label
smoothing 0.1.

Needs Keras (written for 3.15.1), on JAX unless KERAS_BACKEND says otherwise, and nothing of jaxcls.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported

import keras
import numpy as np
from keras import layers
from PIL import Image

CLASSES = 10
SIDE = 32
BATCH = 128
RATE, LAST_FACTOR = 1e-3, 1e-6
EPOCHS, WARMUP_EPOCHS = 100, 5

FIELDS = {
    "kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}
"""Keras's names for a layer's variables, and those of `first_losses`."""


def block(x: Any, features: int, stride: int, name: str) -> Any:
    """Adds two 3x3 convolutions with batch norm to their input, which a 1x1 convolution with
    batch norm adapts where the shape changes.

    Args:
      x: symbolic [batch, height, width, channels].
      features: channels of the result.
      stride: of the first convolution and the shortcut.
      name: of the layers, before an underscore.
    """
    shape = {"padding": "same"}
    y = layers.Conv2D(features, 3, stride, name=f"{name}_conv1", **shape)(x)
    y = layers.ReLU()(layers.BatchNormalization(name=f"{name}_bn1")(y))
    y = layers.Conv2D(features, 3, name=f"{name}_conv2", **shape)(y)
    y = layers.BatchNormalization(name=f"{name}_bn2")(y)
    if x.shape != y.shape:
        x = layers.Conv2D(features, 1, stride, name=f"{name}_shortcut_conv", **shape)(x)
        x = layers.BatchNormalization(name=f"{name}_shortcut_bn")(x)
    return layers.ReLU()(layers.Add()([x, y]))


def augmentation() -> list[Any]:
    """Returns the layers that change training images, of pixels 0..255."""
    return [
        layers.RandomFlip("horizontal"),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomZoom(0.1),
        layers.RandomContrast(0.2),
    ]


def network(augment: Sequence[Any] = ()) -> Any:
    """Returns the network from pixels 0..255 to logits, newly initialised.

    Args:
      augment: layers between the pixels and their division by 255.
    """
    pixels = x = layers.Input((SIDE, SIDE, 3))
    for layer in augment:
        x = layer(x)
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Conv2D(64, 3, padding="same", name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    for stage, features in enumerate((64, 128, 256), start=1):
        for index in range(3):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(x, features, stride, f"stage{stage}_{index}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, layers.Dense(CLASSES, name="fc")(x))


def schedule_of(steps_per_epoch: int, epochs: int) -> Any:
    """Returns the rate as a function of the step, 0 at the first.

    Args:
      steps_per_epoch: steps of an epoch.
      epochs: of the whole run, more than those of the warm-up.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=(epochs - WARMUP_EPOCHS) * steps_per_epoch,
        alpha=LAST_FACTOR,
        warmup_target=RATE,
        warmup_steps=WARMUP_EPOCHS * steps_per_epoch,
    )


def compiled(model: Any, steps_per_epoch: int, epochs: int) -> Any:
    """Returns the network, ready to be trained on labels that are one-hot rows."""
    model.compile(
        optimizer=keras.optimizers.AdamW(
            schedule_of(steps_per_epoch, epochs), weight_decay=0.05
        ),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        metrics=["accuracy"],
    )
    return model


def load(model: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Gives every variable of a network its value, by names like "stage1_0/conv1/kernel"."""
    left = set(weights)
    for layer in model.layers:
        for variable in layer.weights:
            name = f"{layer.name}_{FIELDS[variable.name]}"
            [found] = [key for key in left if key.replace("/", "_") == name]
            variable.assign(weights[found])
            left.remove(found)
    assert not left, left


def first_losses(
    weights: Mapping[str, np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    steps_per_epoch: int,
    epochs: int = EPOCHS,
) -> list[float]:
    """Trains on batches as they are, without augmentation.

    Args:
      weights: of all variables, by names like "stage1_0/conv1/kernel" and "bn/mean".
      batches: (images uint8 [batch, 32, 32, 3], labels int [batch]), one for each step.
      steps_per_epoch: on which the rate depends.
      epochs: of the whole run, on which the rate depends.

    Returns:
      The loss of each step, before the step.
    """
    model = compiled(network(), steps_per_epoch, epochs)
    load(model, weights)
    losses = []
    for images, labels in batches:
        targets = np.eye(CLASSES, dtype=np.float32)[labels]
        logs = model.train_on_batch(
            images.astype(np.float32), targets, return_dict=True
        )
        losses.append(float(logs["loss"]))
    return losses


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of a folder with a folder for each class, uint8 [n, 32, 32, 3], and
    their labels as one-hot rows, float32 [n, classes]."""
    images, labels = [], []
    for label, class_folder in enumerate(sorted(folder.iterdir())):
        for file in sorted(class_folder.iterdir()):
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(label)
    return np.stack(images), np.eye(CLASSES, dtype=np.float32)[labels]


def run(data: Path, epochs: int) -> float:
    """Trains and evaluates epoch by epoch; returns the last accuracy, 0..1.

    Args:
      data: a folder with the folders "train" and "test", each with a folder for each class.
      epochs: of the whole run.
    """
    images, labels = read(data / "train")
    steps_per_epoch = max(len(images) // BATCH, 1)
    model = compiled(network(augmentation()), steps_per_epoch, epochs)
    history = model.fit(
        images,
        labels,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=read(data / "test"),
        verbose=2,
    )
    return history.history["val_accuracy"][-1]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.references.lesson_keras",
        description="The lesson's CIFAR-10 program in Keras.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train/CLASS/* and test/CLASS/*",
    )
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="of the whole run; its schedule fits"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.epochs <= WARMUP_EPOCHS:
        parser.error(
            f"--epochs must be more than the {WARMUP_EPOCHS} of warm-up, not "
            f"{arguments.epochs}"
        )
    keras.utils.set_random_seed(arguments.seed)
    print(f"keras {keras.__version__} on {keras.backend.backend()}")
    run(arguments.data, arguments.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
