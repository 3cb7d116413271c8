"""Writes preprocessing.json: what torchvision's presets make of images that follow a formula.

python -m tests.references.make_preprocessing

Each case holds the arguments of the preset, a checksum of all bits of the result, and a few
pixels, which show how far off it is when the checksum differs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "preprocessing.json"

# The preset of a set of published weights, and the (height, width) of an image. None is more
# than twice as high as wide: those depend on Pillow's version.
PUBLISHED = [
    ("ResNet50_Weights.IMAGENET1K_V1", 375, 500),
    ("ResNet50_Weights.IMAGENET1K_V1", 640, 427),
    ("ResNet50_Weights.IMAGENET1K_V1", 97, 131),  # made larger
    ("ResNet50_Weights.IMAGENET1K_V1", 256, 300),  # is that size already
    ("ResNet50_Weights.IMAGENET1K_V2", 333, 499),
    ("Inception_V3_Weights.IMAGENET1K_V1", 401, 399),
    ("EfficientNet_B0_Weights.IMAGENET1K_V1", 375, 500),
    ("EfficientNet_B0_Weights.IMAGENET1K_V1", 120, 91),
    ("EfficientNet_B3_Weights.IMAGENET1K_V1", 700, 465),
    ("EfficientNet_V2_S_Weights.IMAGENET1K_V1", 433, 577),
    ("ConvNeXt_Tiny_Weights.IMAGENET1K_V1", 341, 256),
]
# Arguments that no published weights have, where rounding is at its trickiest.
MADE_UP = [
    # The crop is larger than one side or both, by an even and an odd number of pixels.
    ({"resize_size": 40, "crop_size": 57}, 60, 75),
    ({"resize_size": 40, "crop_size": 48}, 60, 75),
    # 1, 3, 5 and 7 pixels are left over: Python rounds 0.5, 1.5, 2.5, 3.5 to 0, 2, 2, 4.
    ({"resize_size": 33, "crop_size": 32}, 33, 35),
    ({"resize_size": 37, "crop_size": 32}, 39, 37),
    ({"resize_size": 33, "crop_size": 33, "mean": (0.1, 0.2, 0.3)}, 66, 33),
]


def formula_image(height: int, width: int) -> np.ndarray:
    """Returns uint8 [height, width, 3]: hard edges over waves of every length."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack(
        [x * x // 9 + 2 * y, (x + 3) * (y + 5) // 7, 5 * x - y * y // 5], -1
    )
    # Up and down again, so that only the edges are hard.
    slopes = 255 - np.abs(waves % 511 - 255)
    edges = ((x // 11 + y // 13) % 5 == 0)[..., None]
    return np.where(edges, 255 - slopes // 4, slopes).astype(np.uint8)


def case(name: str, preset: Any, height: int, width: int) -> dict[str, Any]:
    """Applies a preset to a Pillow image and describes both."""
    from PIL import Image

    image = Image.fromarray(formula_image(height, width))
    result = preset(image).numpy().transpose(1, 2, 0)
    size = len(result)
    places = [(0, 0), (0, size - 1), (size // 2, size // 3), (size - 1, 1)]
    return {
        "name": f"{name} of {height}x{width}",
        "shape": [height, width],
        "arguments": {
            "resize": preset.resize_size[0],
            "size": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
            "mean": preset.mean,
            "std": preset.std,
        },
        "sha256": hashlib.sha256(result.astype("<f4").tobytes()).hexdigest(),
        "pixels": [[*place, *map(float, result[place])] for place in places],
    }


def main() -> None:
    import PIL
    import torchvision
    from torchvision.transforms._presets import ImageClassification

    cases = []
    for name, *shape in PUBLISHED:
        preset = torchvision.models.get_weight(name).transforms()
        cases.append(case(name, preset, *shape))
    for arguments, *shape in MADE_UP:
        sizes = f"{arguments['resize_size']}/{arguments['crop_size']}"
        cases.append(case(sizes, ImageClassification(**arguments), *shape))
    made_with = {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    # A case a line.
    lines = ",\n".join(json.dumps(case) for case in cases)
    PATH.write_text(
        f'{{"made_with": {json.dumps(made_with)}, "cases": [\n{lines}\n]}}\n'
    )


if __name__ == "__main__":
    main()
