"""Models by name: ready pipelines, where their heads are, and segmenters."""

import lazy_loader  # type: ignore[import-untyped]

# Imported when first used: diffusers and transformers take seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "families": ["cross_attention_heads"],
        "heads": ["head_table"],
        "pipelines": [
            "at_dose",
            "dose_of",
            "in_embedded_world",
            "load_pipeline",
            "model_source",
            "pick_device",
            "network_layout",
        ],
        "segmenters": ["load_segmenter"],
    },
)
