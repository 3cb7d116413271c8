"""Writes state_dicts.json: digests of the names and shapes in torchvision's and timm's state dicts.

    python -m tests.references.make_state_dicts

Needs torch, torchvision and timm (see torch_models.py).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from tests.references.torch_models import torchvision

TORCHVISION = [
    "alexnet",
    *(f"vgg{n}{suffix}" for n in (11, 13, 16, 19) for suffix in ("", "_bn")),
    "googlenet",
    "inception_v3",
    *(f"resnet{n}" for n in (18, 34, 50, 101, 152)),
    "wide_resnet50_2",
    "resnext50_32x4d",
    *(f"efficientnet_b{n}" for n in range(8)),
    *(f"efficientnet_v2_{size}" for size in "sml"),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
]
# Our name -> timm's, where it differs. timm has no AlexNet and no GoogLeNet.
TIMM = {
    name: name.replace("efficientnet_v2_", "tf_efficientnetv2_")
    for name in [*TORCHVISION, "convnext_xlarge"]
    if name not in ("alexnet", "googlenet")
}


def digest(module: Any) -> dict[str, Any]:
    """Counts the tensors of a module and hashes their names and shapes."""
    lines = sorted(
        f"{key} {list(tensor.shape)}" for key, tensor in module.state_dict().items()
    )
    text = "\n".join(lines).encode()
    return {"tensors": len(lines), "sha256": hashlib.sha256(text).hexdigest()}


def main() -> None:
    """Writes the file beside this one."""
    import timm  # after torchvision, which it would import without the operators it lacks

    digests = {}
    with torch.device("meta"):  # no memory, no initial values
        for name in TORCHVISION:
            options = {}
            if name in ("googlenet", "inception_v3"):
                options = {"init_weights": False, "aux_logits": True}
            module = torchvision.models.get_model(name, **options)
            digests[f"torchvision/{name}"] = digest(module)
        for name, theirs in TIMM.items():
            digests[f"timm/{name}"] = digest(timm.create_model(theirs))
    path = Path(__file__).with_name("state_dicts.json")
    path.write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main()
