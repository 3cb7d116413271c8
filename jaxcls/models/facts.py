"""Size and cost of each network, as `python -m jaxcls.models` prints them.

Written down because counting takes a quarter of a minute; a test counts them again.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a network is built for and what it costs there.

    Attributes:
      parameters: with auxiliary heads, for `num_classes` classes.
      gmacs: multiply-adds of convolutions and dense layers for one image in evaluation, in
        billions (torchvision calls the number GFLOPS).
      size: height and width of the images.
      channels: of the images.
      num_classes: length of the logits.
    """

    parameters: int
    gmacs: float
    size: int = 224
    channels: int = 3
    num_classes: int = 1000


FACTS = {
    "lenet5": Facts(61_706, 0.0004, 32, channels=1, num_classes=10),
    "alexnet": Facts(61_100_840, 0.7142),
    "alexnet_2012": Facts(60_965_224, 0.7244),
    "vgg11": Facts(132_863_336, 7.6091),
    "vgg11_bn": Facts(132_868_840, 7.6091),
    "vgg13": Facts(133_047_848, 11.3085),
    "vgg13_bn": Facts(133_053_736, 11.3085),
    "vgg16": Facts(138_357_544, 15.4703),
    "vgg16_bn": Facts(138_365_992, 15.4703),
    "vgg19": Facts(143_667_240, 19.6321),
    "vgg19_bn": Facts(143_678_248, 19.6321),
    "googlenet": Facts(13_004_888, 1.4984),
    "inception_v3": Facts(27_161_264, 5.7132, 299),
    "resnet18": Facts(11_689_512, 1.8141),
    "resnet34": Facts(21_797_672, 3.6638),
    "resnet50": Facts(25_557_032, 4.0892),
    "resnet101": Facts(44_549_160, 7.8014),
    "resnet152": Facts(60_192_808, 11.5136),
    "wide_resnet50_2": Facts(68_883_240, 11.3980),
    "resnext50_32x4d": Facts(25_028_904, 4.2305),
    "resnet20": Facts(269_722, 0.0406, 32, num_classes=10),
    "resnet32": Facts(464_154, 0.0689, 32, num_classes=10),
    "resnet44": Facts(658_586, 0.0972, 32, num_classes=10),
    "resnet56": Facts(853_018, 0.1255, 32, num_classes=10),
    "resnet110": Facts(1_727_962, 0.2529, 32, num_classes=10),
    "keras_resnet": Facts(4_330_890, 0.6477, 32, num_classes=10),
    "efficientnet_b0": Facts(5_288_548, 0.3858),
    "efficientnet_b1": Facts(7_794_184, 0.6868, 240),
    "efficientnet_b2": Facts(9_109_994, 1.0875, 288),
    "efficientnet_b3": Facts(12_233_232, 1.8271, 300),
    "efficientnet_b4": Facts(19_341_616, 4.3938, 380),
    "efficientnet_b5": Facts(30_389_784, 10.2664, 456),
    "efficientnet_b6": Facts(43_040_704, 19.0676, 528),
    "efficientnet_b7": Facts(66_347_960, 37.7459, 600),
    "efficientnet_v2_s": Facts(21_458_488, 8.3656, 384),
    "efficientnet_v2_m": Facts(54_139_356, 24.5825, 480),
    "efficientnet_v2_l": Facts(118_515_272, 56.0797, 480),
    "convnext_tiny": Facts(28_589_128, 4.4555),
    "convnext_small": Facts(50_223_688, 8.6837),
    "convnext_base": Facts(88_591_464, 15.3547),
    "convnext_large": Facts(197_767_336, 34.3614),
    "convnext_xlarge": Facts(350_196_968, 60.9210),
}
