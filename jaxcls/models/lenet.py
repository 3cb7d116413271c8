"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document
recognition", Proc. IEEE 86(11), figure 2, https://doi.org/10.1109/5.726791)."""

from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.errors import UserError
from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.network import Layers, Network, singly


class LeNet5(Network):
    """LeNet-5 for 32 x 32 images, with every feature map of C3 seeing all of S2's.

    C1 5x5 x6 - S2 average 2x2 - C3 5x5 x16 - S4 average 2x2 - C5 5x5 x120 - F6 84 - output,
    with tanh after C1, C3, C5 and F6. Where the paper is of its time, this follows common
    practice since: C3 is fully connected (its table I leaves maps out), the averages have no
    trainable coefficient, and the output is linear instead of radial basis functions.
    61,706 parameters for 1 x 32 x 32 images and 10 classes.

    Kernels start truncated normal with variance 1/fan-in, biases at 0 (LeCun et al. 1998,
    "Efficient BackProp", equation 16; linen's default).

    The attributes are those of Network.
    """

    STEM: ClassVar = "c1"
    HEADS: ClassVar = ("output",)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, 32, 32, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for images of another size.
        """
        del train  # nothing differs between training and evaluation
        height, width = images.shape[1:3]
        if (height, width) != (32, 32):
            raise UserError(
                f"lenet5 takes images of 32x32, not {height}x{width}: put Resize(size=32) "
                "into augment and eval_transform."
            )
        x = images.astype(self.dtype)
        for name, features in (("c1", 6), ("c3", 16)):
            x = Conv(features, (5, 5), padding="VALID", dtype=self.dtype, name=name)(x)
            x = nn.avg_pool(nn.tanh(x), (2, 2), strides=(2, 2))
        x = nn.tanh(Conv(120, (5, 5), padding="VALID", dtype=self.dtype, name="c5")(x))
        x = x.reshape(len(x), 120)
        x = nn.tanh(nn.Dense(84, dtype=self.dtype, name="f6")(x))
        return self.logits(x, kernel_init=nn.initializers.lecun_normal())

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: every layer is one."""
        return singly(("c1", "c3", "c5", "f6", *self.heads()))


VARIANTS = {"lenet5": LeNet5}
