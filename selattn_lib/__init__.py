"""Which cross-attention heads of a text-to-image model draw which visual concept, and maps from only those.

The public names, listed in `__init__.pyi`, are imported when they are first used, since torch, diffusers and
transformers take seconds to import.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
