"""Which cross-attention heads of a text-to-image model draw which visual concept, and maps from only those.

The public names, listed in `__init__.pyi`, are imported when they are first used, since torch, diffusers and
transformers take seconds to import.
"""

import gc
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_imported, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name. Python does not look for garbage meanwhile, of which importing makes none: a fifth faster."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return _imported(name)
    finally:
        if collects:
            gc.enable()
