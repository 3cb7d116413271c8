"""jaxcls: train convolutional image classifiers in JAX, from LeNet-5 to ConvNeXt."""

__version__ = "0.1.0"
