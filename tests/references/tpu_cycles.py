"""What augmentation costs in a train step on a TPU, by the compiler's own estimate; needs no TPU.

    pip install -e ".[test,tpu]"
    python -m tests.references.tpu_cycles          # ten minutes on two cores

Compiles the train step of ResNet-50 for four chips of a TPU v5e, 128 images of 224 pixels a chip, with
one transform after the other and with all of them, and adds up the cycles that XLA expects.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from configs import resnet50
from jaxcls.augment import (
    HorizontalFlip,
    MixUpOrCutMix,
    Normalize,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Transform,
)
from jaxcls.config import plan
from jaxcls.models import Model
from jaxcls.training.program import Program

CHIPS, IMAGES_A_CHIP, DECODED, SIDE = 4, 128, 256, 224

NORMALIZE = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

PIPELINES: dict[str, tuple[Transform, ...]] = {
    "Normalize alone": (NORMALIZE,),
    "RandomResizedCrop": (RandomResizedCrop(size=SIDE), NORMALIZE),
    "HorizontalFlip": (HorizontalFlip(), NORMALIZE),
    "RandAugment(2, 9)": (RandAugment(num_ops=2, magnitude=9), NORMALIZE),
    "RandomErasing": (NORMALIZE, RandomErasing(p=0.25)),
    "MixUpOrCutMix": (NORMALIZE, MixUpOrCutMix()),
    "all of them": (
        RandomResizedCrop(size=SIDE),
        HorizontalFlip(),
        RandAugment(num_ops=2, magnitude=9),
        NORMALIZE,
        RandomErasing(p=0.25),
        MixUpOrCutMix(),
    ),
}


def v5e_mesh() -> Mesh:
    """Returns a mesh of chips that need not exist: programs can be compiled for it, not run."""
    # Else libtpu asks Google's cloud which machine this is, for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    described: Any = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2"
    )
    return Mesh(np.array(described.devices), ("data",), axis_types=(AxisType.Auto,))


def train_step_hlo(mesh: Mesh, transforms: tuple[Transform, ...]) -> str:
    """Returns the optimised program of ResNet-50's train step in bfloat16."""
    config = dataclasses.replace(
        resnet50.get_config(),
        model=Model(name="resnet50", dtype="bfloat16"),
        augment=transforms,
        eval_transform=(NORMALIZE,),
        batch_size=CHIPS * IMAGES_A_CHIP,
        clip=None,
        ema=None,
    )
    crops = any(isinstance(part, RandomResizedCrop) for part in transforms)
    side = DECODED if crops else SIDE
    program = Program(
        config,
        plan(config, 1_281_167),
        mesh=mesh,
        num_classes=1000,
        image_shape=(side, side, 3),
    )
    return program.trace_train_step().lowered.compile().as_text()


def estimated_cycles(hlo: str) -> int:
    """Adds up the cycles that XLA for TPUs writes into an optimised program.

    The body of a loop counts as often as it runs, of a choice the mean of its branches.
    """
    bodies: dict[str, list[str]] = {}
    entry = ""
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            body = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif bodies:
            body.append(line)

    known: dict[str, float] = {}

    def of_computation(name: str) -> float:
        if name not in known:
            known[name] = sum(map(of_instruction, bodies[name]))
        return known[name]

    def of_instruction(line: str) -> float:
        if " while(" in line:
            parts = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", line))
            # The counter is compared with how often the loop runs.
            (times,) = re.findall(
                r" constant\((\d+)\)", "\n".join(bodies[parts["condition"]])
            )
            return int(times) * of_computation(parts["body"])
        if " conditional(" in line:
            listed = re.search(r"branch_computations=\{([^}]*)\}", line)
            names = (
                listed[1].replace("%", "").split(", ")
                if listed
                else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            )
            return sum(map(of_computation, names)) / len(names)
        called = re.search(r" call\(.*to_apply=%?([\w.\-]+)", line)
        if called:
            return of_computation(called[1])
        own = re.search(r'"estimated_cycles":"(\d+)"', line)
        return int(own[1]) if own else 0

    return round(of_computation(entry))


def pixel_gathers(hlo: str) -> list[str]:
    """Returns the gathers of a program that fetch more than 100,000 values."""
    found = []
    for line in hlo.splitlines():
        gather = re.search(r"= \w+\[([\d,]+)\]\S* gather\(", line)
        if gather and np.prod([int(n) for n in gather[1].split(",")]) > 100_000:
            found.append(line.strip())
    return found


def main(argv: Sequence[str]) -> None:
    """Prints a table; the arguments are the rows wanted, all by default."""
    mesh = v5e_mesh()
    base = None
    print(
        f"ResNet-50 train step, bfloat16, TPU v5e:2x2, {IMAGES_A_CHIP} images of {SIDE} px a chip, "
        f"jax {jax.__version__}: million cycles of a chip, estimated by XLA"
    )
    for name, transforms in PIPELINES.items():
        if argv and name not in argv:
            continue
        hlo = train_step_hlo(mesh, transforms)
        cycles = estimated_cycles(hlo)
        base = base or cycles
        print(
            f"  {name:20} {cycles / 1e6:8.2f}  {100 * (cycles / base - 1):+6.2f} %  "
            f"{len(pixel_gathers(hlo))} gathers of pixels",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
