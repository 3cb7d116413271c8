"""Times train step and forward pass beside PyTorch's, in turns, on the CPU.

    python -m tests.references.compare_speed

Needs torch and torchvision beside jaxcls. Float32, batch 32, 64 x 64 pixels, SGD with momentum;
torchvision's networks in both memory layouts. Turns alternate in one process, so that whatever
else the machine does meets all alike; the medians are printed, milliseconds.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxcls.models import create_model
from jaxcls.parallel import enable_compilation_cache, keep_freed_memory
from tests.references.torch_models import torchvision

NETWORKS = ("resnet18", "efficientnet_b0", "convnext_tiny", "vgg11")
BATCH, SIDE, CLASSES, TURNS = 32, 64, 1000, 9
Timed = Callable[[], None]


def ours(name: str, images: np.ndarray, labels: np.ndarray) -> tuple[Timed, Timed]:
    """Returns train step and forward pass in JAX, compiled."""
    module = create_model(name, num_classes=CLASSES)
    targets = jax.nn.one_hot(labels, CLASSES)
    variables = jax.jit(module.init)(jax.random.key(0), images[:1])
    params, stats = variables["params"], variables.get("batch_stats", {})
    optimizer = optax.sgd(0.01, momentum=0.9)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: jax.Array) -> Any:
        params, stats, opt_state = state

        def loss(params: Any) -> Any:
            logits, updated = module.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            losses = optax.softmax_cross_entropy(logits, targets)
            return losses.mean(), updated.get("batch_stats", {})

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    state = params, stats, jax.jit(optimizer.init)(params)
    forward = jax.jit(lambda v, x: module.apply(v, x))
    x = jnp.asarray(images)
    copied = jax.tree.map(jnp.copy, variables)

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, x))

    return train, lambda: jax.block_until_ready(forward(copied, x))


def theirs(
    name: str, images: np.ndarray, labels: np.ndarray, layout: Any
) -> tuple[Timed, Timed]:
    """Returns train step and forward pass in PyTorch."""
    model = torchvision.models.get_model(name).to(memory_format=layout)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    y = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(x)

    return train, forward


def main() -> None:
    """Prints a line for each network."""
    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)
    labels = random.integers(0, CLASSES, BATCH)
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name in sys.argv[1:] or NETWORKS:
        sides = {
            "jaxcls": ours(name, images, labels),
            "torch": theirs(name, images, labels, torch.contiguous_format),
            "torch channels_last": theirs(name, images, labels, torch.channels_last),
        }
        for index, what in enumerate(("train step", "forward")):
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(TURNS + 1):
                for side, calls in sides.items():
                    start = time.perf_counter()
                    calls[index]()
                    if turn:  # the first compiles
                        seconds[side].append(time.perf_counter() - start)
            medians = {k: statistics.median(v) * 1e3 for k, v in seconds.items()}
            best = min(value for side, value in medians.items() if side != "jaxcls")
            text = ", ".join(f"{side} {value:.0f}" for side, value in medians.items())
            print(
                f"{name} {what}: {text}; jaxcls / best torch "
                f"{medians['jaxcls'] / best:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    keep_freed_memory()
    enable_compilation_cache()
    main()
