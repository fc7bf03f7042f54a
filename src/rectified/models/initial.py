"""Initial weights for networks of rectifiers.

A layer that draws its weights with variance `2 / fan_in` before a ReLU keeps the second moment of
its input: half of the signal is cut off, the factor 2 makes up for it.
"""

from torch import nn


def he_normal_(model: nn.Module) -> nn.Module:
    """Draw the weights of all linear and convolutional layers anew; biases become 0.

    Args:
        model: changed in place; layers of other kinds are left alone.

    Returns:
        The model.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers: Surpassing Human-Level
        Performance on ImageNet Classification", 2015, arXiv:1502.01852, equation 10.

    Example:
        >>> layer = he_normal_(nn.Linear(1000, 1000))
        >>> round(layer.weight.var().item() * 1000, 1), layer.bias.abs().max().item()
        (2.0, 0.0)
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
