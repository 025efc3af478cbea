"""Sweeps over model-merging methods on Ray."""

__version__ = "0.1.0"
