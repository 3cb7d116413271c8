"""What the augmentation costs.

Prints one table: what RandAugment costs beside the straightforward way to write it and beside its
own operations, the lesson's CIFAR pipeline beside torchvision's on PIL images (where torchvision
is installed), and what compiling and memory cost. All in one run, in turns; medians.

PIL works in one thread, XLA in one for each core. So we compare the time that they keep cores
busy, of all threads together: other programs on the machine, and the number of its cores, then
matter little. This counts XLA's threads that wait for each other without sleeping, but not a core
left idle; the time by the clock, which does count it, stands beside it.
"""

import functools
import importlib.util
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxcls import augment
from jaxcls.augment.kernels.one_operation import Operation
from jaxcls.data.loader import available_cores

TURNS = 21
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


class Seconds(NamedTuple):
    """What a call takes.

    Attributes:
      clock: seconds until it is done.
      busy: seconds that this machine's cores compute, of all threads together.
    """

    clock: float
    busy: float


def medians(
    calls: dict[str, Callable[[], Any]], turns: int = TURNS
) -> dict[str, Seconds]:
    """Returns the medians of each call, taken in turns; the first turn is not counted."""
    taken = np.empty((turns + 1, len(calls), 2))
    for turn in range(turns + 1):
        for index, call in enumerate(calls.values()):
            start = np.array([time.perf_counter(), time.process_time()])
            jax.block_until_ready(call())
            taken[turn, index] = [time.perf_counter(), time.process_time()] - start
    middle = np.median(taken[1:], axis=0).tolist()
    return {name: Seconds(*pair) for name, pair in zip(calls, middle, strict=True)}


def photographs(batch: int, side: int, seed: int = 0) -> np.ndarray:
    """Returns uint8 [batch, side, side, 3]: smooth shapes with noise, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (batch, 8, 8, 3)).astype(np.float32)
    smooth = scipy.ndimage.zoom(coarse, (1, side / 8, side / 8, 1), order=1)
    noisy = smooth + random.normal(0, 8, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def every_branch(
    rng: jax.Array, images: jax.Array, operations: Sequence[Operation], num_ops: int
) -> jax.Array:
    """The straightforward policy, which vmap turns into every operation on every image."""

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        for index in range(num_ops):
            which, strength = jax.random.split(jax.random.fold_in(key, index))
            drawn = jax.random.randint(which, (), 0, len(operations))
            image = jax.lax.switch(drawn, operations, strength, image[None])[0]
        return image

    return jax.vmap(one)(jax.random.split(rng, len(images)), images)


def with_new_keys(
    function: Callable[..., Any], *arguments: jax.Array | np.ndarray
) -> Callable[[], Any]:
    """Returns a call with another key each time: policies draw operations that cost more or
    less."""
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    return lambda: function(next(keys), *arguments)


def rand_augment(batch: int, side: int) -> None:
    """Prints what RandAugment(2, 9) costs at one size of batch."""
    policy = augment.RandAugment(num_ops=2, magnitude=9)
    images = jnp.asarray(photographs(batch, side), jnp.float32)
    targets = jnp.zeros((batch, 10))
    operations = policy.operations(side, side)

    def twice(operation: Operation, rng: jax.Array, images: jax.Array) -> jax.Array:
        return operation(rng, operation(rng, images))

    ours = jax.jit(lambda rng, images: policy(rng, images, targets)[0])
    branches = tuple(operations.values())
    naive = jax.jit(lambda rng, x: every_branch(rng, x, branches, policy.num_ops))
    functions = {"RandAugment(2, 9)": ours, "the same by vmap(switch)": naive}
    for name, operation in operations.items():
        functions[f"{name} twice"] = jax.jit(functools.partial(twice, operation))
    calls = {name: with_new_keys(call, images) for name, call in functions.items()}
    taken = {name: median.clock for name, median in medians(calls).items()}
    base = taken["RandAugment(2, 9)"]
    print(f"\n{batch} x {side} x {side} x 3, float32")
    for name, seconds in taken.items():
        print(
            f"  {name:28} {seconds * 1e3:9.2f} ms {batch / seconds:12,.0f} img/s "
            f"{seconds / base:8.2f} of RandAugment"
        )
    dearest = max(seconds for name, seconds in taken.items() if name.endswith("twice"))
    print(
        f"  -> {taken['the same by vmap(switch)'] / base:.1f} times as fast as "
        f"vmap(switch); {base / dearest:.2f} of its dearest operation applied twice"
    )


def flops(batch: int = 256, side: int = 32) -> None:
    """Prints the arithmetic with 14 operations and with 2."""
    images = jnp.zeros((batch, side, side, 3))
    every = list(augment.RandAugment().operations(side, side).values())
    # The dearest two, so that their number alone differs.
    dearest = sorted(every, key=lambda operation: -_flops(operation, images))[:2]
    per_image = augment.one_operation_per_image
    two, all_of_them = (
        _flops(lambda rng, x, chosen=chosen: per_image(rng, x, chosen), images)
        for chosen in (dearest, every)
    )
    print(
        f"\nFLOPs of one round by cost_analysis, {batch} x {side} x {side}: "
        f"{two / 1e6:.1f} M with 2 operations, {all_of_them / 1e6:.1f} M with "
        f"{len(every)}: {all_of_them / two:.2f} times"
    )


def _flops(function: Callable[..., Any], images: jax.Array) -> float:
    compiled = jax.jit(function).lower(jax.random.key(0), images).compile()
    analysis: Any = compiled.cost_analysis()
    return float(analysis.get("flops", 0))


def lesson(side: int) -> tuple[augment.Transform, ...]:
    """Returns the CIFAR pipeline of the lesson that this project implements."""
    return (
        augment.RandomCrop(padding=side // 8),
        augment.HorizontalFlip(),
        augment.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
        augment.RandAugment(num_ops=2, magnitude=9),
        augment.Normalize(**CIFAR),
        augment.RandomErasing(p=0.25),
    )


def pipeline(batch: int, side: int) -> None:
    """Prints what the lesson's pipeline costs, beside torchvision's on PIL images."""
    images = photographs(batch, side)
    targets = np.eye(10, dtype=np.float32)[np.arange(batch) % 10]
    whole = jax.jit(functools.partial(augment.apply, lesson(side)))
    start = time.perf_counter()
    compiled = whole.lower(jax.random.key(0), images, targets).compile()
    compiling = time.perf_counter() - start
    calls = {"the lesson's pipeline": with_new_keys(compiled, images, targets)}
    if peer := _torchvision(images):
        calls["torchvision's on PIL images"] = peer
    taken = medians(calls, 11)
    print(f"\n{batch} x {side} x {side} x 3, uint8 to normalised float32")
    for name, found in taken.items():
        print(
            f"  {name:28} {found.clock * 1e3:9.1f} ms {batch / found.clock:12,.0f} img/s"
            f"   cores busy {found.busy * 1e3:9.1f} ms {batch / found.busy:12,.0f} img/s"
        )
    if peer:
        ours, theirs = taken.values()
        print(
            f"  -> {theirs.busy / ours.busy:.1f} times as fast a core, by the time that cores "
            f"are busy; {theirs.clock / ours.clock / _cores():.1f} times by the clock"
        )
    else:
        print("  (torchvision is not installed: nothing to compare with)")
    print(f"  compiled in {compiling:.1f} s")


def memory(batch: int = 256, side: int = 224) -> None:
    """Prints the pipeline's temporary memory."""
    whole = jax.jit(functools.partial(augment.apply, lesson(side)))
    compiled = whole.lower(
        jax.random.key(0),
        jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 10), jnp.float32),
    ).compile()
    analysis: Any = compiled.memory_analysis()
    temporary, one = analysis.temp_size_in_bytes, batch * side * side * 3 * 4
    print(
        f"\ntemporary memory of the pipeline at {batch} x {side} x {side}: "
        f"{temporary / 2**20:,.0f} MiB, {temporary / one:.2f} times the float32 batch"
    )


def _cores() -> int:
    return available_cores() if jax.default_backend() == "cpu" else 1


def _torchvision(images: np.ndarray) -> Callable[[], Any] | None:
    """Returns torchvision's transforms of the same pipeline, image by image; None if it is not
    installed."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    side = images.shape[1]
    chain = transforms.Compose(
        [
            transforms.RandomCrop(side, padding=side // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2, 0.1),
            transforms.RandAugment(2, 9),
            transforms.ToTensor(),
            transforms.Normalize(**CIFAR),
            transforms.RandomErasing(p=0.25),
        ]
    )
    pictures = [Image.fromarray(image) for image in images]
    return lambda: [chain(picture) for picture in pictures]


def measure() -> None:
    """Prints all measurements."""
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.device_kind} ({_cores()} cores), "
        f"Python {platform.python_version()}"
    )
    rand_augment(256, 32)
    rand_augment(32, 224)
    flops()
    pipeline(256, 32)
    pipeline(32, 224)
    memory()
