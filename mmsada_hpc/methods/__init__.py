"""The methods, one file each; importing this package registers them all."""

from mmsada_hpc.methods import mmsada, source_only
from mmsada_hpc.methods.base import Method, batch_layout, find_method

__all__ = ["Method", "batch_layout", "find_method", "mmsada", "source_only"]
