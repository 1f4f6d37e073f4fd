"""The options of `selattn reproduce`: validated here, and turned into a command line by `selattn_lib.cli`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ReproduceOptions(BaseModel):
    """What to reproduce, on which model, and how. Each field is an option of the command; its description, the help.

    Raises ValueError, in one sentence, on anything out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="sd14, sd15, sd21, sdxl, a hub id, or a local folder")
    out: Path | None = Field(None, description="folder of the notebooks and the book; default: runs/reproduce-MODEL")
    device: str | None = Field(None, description="cuda, mps or cpu; default: the best there is")
    dtype: Literal["fp32", "fp16", "bf16"] | None = Field(None, description="default: the device's own")
    batch: int = Field(10, ge=1, description="images drawn together")
    offload: bool = Field(False, description="keep in main memory what the card is not at")
    words: int = Field(10, ge=1, le=10, description="how many of the ten animals")
    seeds: int = Field(10, ge=1, description="images of each prompt")
    steps: int = Field(50, ge=1, description="denoising steps")
    hrv: str = Field("", description="head relevance to use: an .npz file or a folder of published ones")
    hrv_images: int = Field(2100, ge=2, description="images to count it on otherwise")
    hrv_texts: str = Field("", description="text file of free prompts to count it on besides the class names")
    start_token: bool = Field(True, description="in the softmax, as the published count has it and the paper does not")
    segmenter: str = Field("", description="grounded-sam, sam3 or a local folder; default: the model's own")
    workers: str | None = Field(None, description="processes to compute with, or the address of a dask scheduler")
    dry_run: bool = Field(False, description="print what would be done, and stop")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            problems = [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
            lines = [f"--{name.replace('_', '-')}: {name}={fields.get(name)!r}: {text}" for name, text in problems]
            raise ValueError("; ".join(lines)) from None
