"""The methods, one file each; importing this package registers every file of it."""

import importlib
import pkgutil

from mmsada_hpc.methods.base import Factors, HeadSizes, Method, batch_layout, find_method, method_names, moment

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["Factors", "HeadSizes", "Method", "batch_layout", "find_method", "method_names", "moment"]
