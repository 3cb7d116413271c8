"""Device side: pure transforms of whole batches, applied inside the jitted step."""

from jaxcls.augment.color import (
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomAutoContrast,
    RandomContrast,
    RandomEqualize,
    RandomGamma,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSharpness,
    RandomSolarize,
    around_normalize,
)
from jaxcls.augment.crop import RandomResizedCrop
from jaxcls.augment.erase import Cutout, RandomErasing
from jaxcls.augment.geometry import (
    AlternatingFlip,
    CenterCrop,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomPerspective,
    RandomRotation,
    RandomTranslation,
    RandomZoom,
    Resize,
    VerticalFlip,
)
from jaxcls.augment.kernels.one_operation import one_operation_per_image
from jaxcls.augment.kernels.operations import apply_op
from jaxcls.augment.mix import CutMix, MixUp, MixUpOrCutMix
from jaxcls.augment.pipeline import ImageTransform, RunPosition, Transform, apply
from jaxcls.augment.policies import (
    AugMix,
    AutoAugment,
    RandAugment,
    ThreeAugment,
    TimmRandAugment,
    TrivialAugmentWide,
)
from jaxcls.augment.schedule import Growing, Scheduled, Staged, stages_of_run
from jaxcls.augment.views import (
    AirbenchViews,
    FiveCrops,
    FlipViews,
    Scales,
    TenCrops,
    Views,
    averaged_logits,
)
