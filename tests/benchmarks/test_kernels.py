"""What a GPU would feel of capture: counted as the benchmarks count it, and held to their targets."""

import torch
from tiny_sd import build_pipeline

from benchmarks.run import LAYERS, count_call


def test_at_most_six_kernels_a_layer_and_no_waiting():
    pipe = build_pipeline().to(torch.bfloat16)  # which has to be converted: more kernels than float32
    plain, captured, both = (count_call(pipe, name) for name in ("plain", "capture", "capture+hrv"))
    for kernels, waits in (captured - plain, both - captured):
        assert LAYERS < kernels <= 6 * LAYERS
        assert waits == 0
