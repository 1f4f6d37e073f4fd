"""Studies: settings that decide some numbers, and the stored results; see `base`, and `runner` for how they run."""

import lazy_loader  # type: ignore[import-untyped]

# Imported when first used: `runner` and `store` need no torch, which takes seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "annotations": ["read_masks"],
        "base": ["concepts_of", "runs_folder"],
        "checks": ["check_parameters", "check_selection", "object_concepts"],
        "experiment": ["Experiment", "run_benchmarks"],
        "generated": ["DiagnosisStudy", "Study", "WeakenedStudy", "WindowStudy", "generate"],
        "noised": ["KnownMeaningsStudy", "KnownTruthStudy", "MaskedStudy"],
        "parameters": ["read_list"],
        "relevance": ["RelevanceStudy", "relevance_for"],
        "results": ["load"],
    },
)
