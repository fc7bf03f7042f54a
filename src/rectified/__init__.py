"""rectified: make neural networks lean, and see what that cost."""

__version__ = "0.1.0"
