"""`selattn reproduce`: the paper's experiments (chapters 1 to 5) on a model of one's own, with a book of their own."""

import os
import re
import shutil
import time
from collections.abc import Sequence
from copy import deepcopy
from datetime import timedelta
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import nbformat
import psutil
import torch
import yaml
from accelerate.utils.memory import clear_device_cache
from nbformat.v4 import new_markdown_cell
from tqdm import tqdm

from ..concepts import benchmark_words
from ..models.families import check_scored, cross_attention_heads, find_family
from ..models.pipelines import DTYPES, check_draws_pictures, latent_side, model_source, network_layout, pick_device
from ..studies.base import StudyBase, concepts_of, is_lack_of_memory, runs_folder
from ..studies.generated import DiagnosisStudy, Study
from ..studies.relevance import RelevanceStudy, relevance_for
from ..studies.store import count_finished
from .build import build_book, stage
from .notebooks import parameters_of, run
from .options import ReproduceOptions

CHAPTERS = ("01_head_relevance", "02_segmentation", "03_most_vs_least", "04_mouse_diagnosis", "05_ablation")
NOTE = """```{{admonition}} Run on {model}
:class: warning
Every figure, table and printed number of this copy of the chapter was made with **{model}** by `selattn reproduce`. The
words around them, those below figures included, were written about `emoji-sd`.
```"""
ANSWER = "**Answer.** Yours to give: what stands above was measured on {model}."


class Reproduction(ReproduceOptions):
    """A run of `selattn reproduce`, given its options: which studies, notebooks and book they make."""

    def run(self, root: Path) -> None:
        """Say what will be done and, unless it is a dry run, do it with the notebooks and pages of repository `root`.

        All studies are computed here, under one progress bar; the notebooks find them done. Raises ValueError on
        anything out of range, OSError if the model cannot be loaded, MemoryError if it does not fit.
        """
        if not all((notebook := root / "notebooks" / f"{name}.ipynb").exists() for name in CHAPTERS):
            raise FileNotFoundError(f"{notebook} does not exist: run this in the folder of the book's repository")
        os.environ["SELATTN_DEVICE"] = pick_device(self.device)  # seen by the notebooks' kernels, as by this process
        os.environ["SELATTN_OFFLOAD"] = str(int(self.offload))
        studies = self.studies()
        plan = self.plan(studies)
        print(f"The paper's experiments on {self.model}\n")
        print("\n".join(f"  {name:10s} {text}" for name, text in plan.items()), flush=True)
        if self.dry_run:
            return
        there, images = sum(count_finished(study.folder) for study in studies), sum(study.size for study in studies)
        with tqdm(total=images, initial=there, unit="image", desc="all studies") as bar:
            while studies:
                studies.pop(0).load_or_compute(bar=bar)  # one model in memory at a time
        hrv = self.saved_relevance()
        for chapters, relevance in ((CHAPTERS[:1], self.hrv), (CHAPTERS[1:], hrv)):  # the first splits the votes
            notebooks = [root / "notebooks" / f"{name}.ipynb" for name in chapters]
            known = set().union(*map(parameters_of, notebooks))
            parameters = {**self.parameters(), "hrv": relevance}
            run(notebooks, self.folder / "notebooks", {name: parameters[name] for name in known & parameters.keys()})
        print(self.book(root, plan).resolve())

    @property
    def folder(self) -> Path:
        """Where everything goes but the studies."""
        name = Path(self.model).resolve().name if Path(self.model).is_dir() else self.model
        return self.out or runs_folder() / f"reproduce-{re.sub(r'[^0-9A-Za-z.-]+', '-', name)}"

    def parameters(self) -> dict[str, Any]:
        """name -> value, of which each notebook takes those that it has."""
        names = {"model", "dtype", "batch", "seeds", "steps", "hrv_images", "hrv_texts", "start_token", "segmenter"}
        settings = {name: "" if value is None else value for name, value in self.model_dump(include=names).items()}
        words = {"words": list(self.animals()), "examples": list(self.animals(3))}
        return {**settings, **words, "example_seeds": 1, "hrv_steps": self.steps}

    def relevance_study(self) -> RelevanceStudy:
        """How head relevance is counted, where it is."""
        settings: Any = self.model_dump(include={"model", "dtype", "batch", "steps", "start_token"})
        prompts: Any = {"classes": "imagenet", "texts": self.hrv_texts} if self.hrv_texts else {}
        return RelevanceStudy(images=self.hrv_images, **prompts, **settings)

    def saved_relevance(self) -> str:
        """Where head relevance is: in what was given, or in a file of what was counted, named by its study."""
        if self.hrv:
            return self.hrv
        study = self.relevance_study()
        path = self.folder.resolve() / f"{study.folder.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        study.run().save(path)
        return str(path)

    def studies(self) -> list[StudyBase]:
        """What the notebooks will ask for; raises ValueError on anything out of range."""
        check_draws_pictures(self.model)
        common = self.model_dump(include={"model", "dtype", "batch", "steps"})
        uses_segmenter = {**common, "segmenter": self.segmenter}
        if self.hrv:
            relevance_for(self.model, self.hrv)
        else:
            check_scored(find_family(network_layout(self.model))[0], self.model)
        studies = [
            *([] if self.hrv else [self.relevance_study()]),
            Study(words=self.animals(3), seeds=1, **uses_segmenter),  # the first chapter's examples
            Study(words=self.animals(), seeds=self.seeds, **uses_segmenter),
            DiagnosisStudy(seeds=self.seeds, **uses_segmenter),
        ]
        return list({study.folder: study for study in studies}.values())

    def animals(self, most: int = 10) -> tuple[str, ...]:
        """The words of the paper's benchmark that are wanted, or the first of them."""
        return tuple(benchmark_words("Animals", concepts_of(self.model))[: min(self.words, most)])

    def plan(self, studies: Sequence[StudyBase]) -> dict[str, str]:
        """What will be done and what it will take, in words."""
        network, device, dtype = network_layout(self.model), os.environ["SELATTN_DEVICE"], studies[-1].dtype
        heads, part, latent = cross_attention_heads(network), part_of(network), usual_latent(network)
        there, images = sum(count_finished(study.folder) for study in studies), sum(study.size for study in studies)
        drawn = sum(study.size for study in studies if not isinstance(study, RelevanceStudy))
        parameters = sum(weight.numel() for weight in network.parameters())
        together = 1 if device == "cpu" else self.batch
        calls = (images - there) * (self.steps + (part == "UNet"))  # the paper's scheduler makes one more
        time, memory = self.estimate(network, device, dtype, together, calls)
        maps = 2 * sum(layer.n_heads * prod(layer.grid(latent)) for layer in heads)
        size = [side * latent_side(self.model) for side in latent]  # an RGB picture and, a byte each, two masks of it
        runs = runs_folder().absolute()
        disk = shutil.disk_usage(next(folder for folder in (runs, *runs.parents) if folder.exists())).free
        return {
            "model": f"{model_source(self.model)}, {len(heads)} heads, "
            f"{parameters / 1e9:.2f} G parameters in the {part}",
            "device": f"{device}, {dtype}, {self.batch} images at a time" + ", offloaded" * self.offload,
            "relevance": f"of {len(concepts_of(self.model))} concepts, "
            + (f"from {self.hrv}" if self.hrv else counting(self.relevance_study())),
            "benchmark": f"{self.words} words x {self.seeds} seeds, {self.seeds} images of the mouse, "
            f"{len(self.animals(3))} to explore",
            "masks": f"by {studies[-1].model_dump()['segmenter']}",
            "images": f"{images:,}, each of {self.steps} steps; {there:,} are there already",
            "pictures": f"of {size[0]} x {size[1]} pixels",
            "time": time,
            "memory": f"{memory / 1e9:.1f} GB for the {part}, of {free_memory(device) / 1e9:.1f} GB free; autoencoder, "
            "text encoder and segmenter come on top",
            "disk": f"at most {drawn * (maps + 5 * prod(size)) / 1e9:.2f} GB in {runs}, of {disk / 1e9:.0f} GB free",
            "book": str(self.folder / "_build" / "html" / "index.html"),
        }

    def estimate(self, network: Any, device: str, dtype: str, together: int, calls: int) -> tuple[str, int]:
        """How long so many calls take, in words, and the bytes of one; a dry run may be of what does not fit."""
        needed = sum(weight.numel() for weight in network.parameters()) * DTYPES[dtype].itemsize
        try:
            seconds, memory = time_call(network, device, dtype, together)
        except MemoryError as error:
            if not self.dry_run:
                raise
            return f"not measured, and not to be run here: {error}", needed
        except NotImplementedError:  # Qwen-Image's positions, which are no weights
            return f"not measured: a {type(network).__name__} without its weights cannot be called", needed
        total = timedelta(seconds=round(calls * seconds / together))
        return (
            f"{total}, estimated: {calls:,} {part_of(network)} calls at {seconds / together:.3g} s an image, as just "
            "measured with zeros for weights; autoencoder, segmenter and figures come on top"
        ), memory

    def book(self, root: Path, plan: dict[str, str]) -> Path:
        """Build the book of this run: its own first page, its chapters, then the rest of the book as committed."""
        site = self.folder / "site"
        stage(root, self.folder / "notebooks", site)
        toc = yaml.safe_load((root / "_toc.yml").read_text())
        chapters = [{"file": toc["root"]}, *(chapter for part in toc["parts"] for chapter in part["chapters"])]
        own = [chapter for chapter in chapters if Path(chapter["file"]).name in CHAPTERS]
        for chapter in own:  # the title of the book's own copy is what was found on emoji-sd
            notebook = site / f"{chapter['file']}.ipynb"
            nb = nbformat.read(notebook, as_version=4)
            _, _, text = nb.cells[0].source.partition("\n")
            nb.cells[0].source = f"# {chapter['title']}, on {self.model}\n{text}"
            nb.cells.insert(1, new_markdown_cell(NOTE.format(model=self.model), id="reproduced"))
            for cell in nb.cells:
                if cell.cell_type == "markdown" and cell.source.startswith("**Answer.**"):
                    cell.source = ANSWER.format(model=self.model)
            nbformat.write(nb, notebook)
        for notebook in (root / "notebooks").glob("*.ipynb"):
            if notebook.stem not in CHAPTERS:
                shutil.copy2(notebook, site / "notebooks")
        config = yaml.safe_load((root / "_config.yml").read_text())
        config["title"] += f" On {self.model}"
        config["sphinx"]["config"]["measured_from"] = str((root / "notebooks").resolve())  # prose is about emoji-sd
        (site / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        parts = [
            {"caption": f"The paper's experiments on {self.model}", "chapters": own},
            {"caption": "The book, on emoji-sd", "chapters": [chapter for chapter in chapters if chapter not in own]},
        ]
        (site / "_toc.yml").write_text(yaml.safe_dump({**toc, "root": "book/reproduced", "parts": parts}))
        (site / "book" / "reproduced.md").write_text(self.first_page(plan))
        return build_book(site, site / "notebooks", self.folder)

    def first_page(self, plan: dict[str, str]) -> str:
        """The first page of the book of this run, in Markdown."""
        shown = ("model", "device", "relevance", "benchmark", "masks")
        rows = "\n".join(f"| {name} | {plan[name]} |" for name in shown)
        uses_segmenter = [study for study in self.studies() if isinstance(study, Study | DiagnosisStudy)]
        found = "\n".join(row for study in uses_segmenter for row in outcomes(study))
        return f"""# The paper's experiments on {self.model}

The chapters that follow were run on **{self.model}** by `selattn reproduce`. The book's own chapters, on the small
model `emoji-sd`, come after them and do not speak of this model.

| | |
| --- | --- |
{rows}

## What the segmenter found

Every image counts; one with a mask of nothing scores an IoU of 0, unless its heat map is empty too. Where several were
found, the mask is of them all.

| Study | Drawn on | Mask | Outcome | Images | Which |
| --- | --- | --- | --- | --- | --- |
{found}
"""


def counting(study: RelevanceStudy) -> str:
    """How a study counts head relevance, in words."""
    kinds = {"class names": study.classes, "free prompts": study.texts}
    prompts = " and ".join(f"{len(listed):,} {kind}" for kind, listed in kinds.items() if listed)
    again = ", repeated in place of free prompts" * (not study.texts and 0 < len(study.classes) < study.images)
    softmax = "inside the softmax, as published" if study.start_token else "outside the softmax, as the paper says"
    on = f"{study.images:,} images of {prompts or 'words of the concepts'}{again}"
    return f"counted on {on}; the start token, where a model has one, is {softmax}"


def outcomes(study: Study | DiagnosisStudy) -> list[str]:
    """Rows of a table: study, devices, mask, outcome, number of images, and which where the mask is of nothing."""
    results, rows = study.run(), []
    devices = " and ".join(sorted(set(results.dataset["device"].values.tolist())))
    for mask in study.phrases(study.units()[0]):
        said = results.dataset[f"{mask}_outcome"].values
        for outcome in sorted(set(said.tolist())):
            units = [unit for unit, text in zip(study.units(), said, strict=True) if text == outcome]
            which = ", ".join(f"{unit['subject']} {unit['seed']}" for unit in units)
            empty = outcome in ("not found", "empty mask")
            row = [study.folder.name, devices, mask, outcome, str(len(units)), which if empty else ""]
            rows.append(f"| {' | '.join(row)} |")
    return rows


def part_of(network: Any) -> str:
    """What people call this kind of network."""
    return "UNet" if find_family(network)[0].part == "unet" else "transformer"


def usual_latent(network: Any) -> tuple[int, int]:
    """(height, width) of the latents of a picture of a model's usual size."""
    family = find_family(network)[0]
    arguments = family.example(network, 1, torch.zeros)
    return family.latent(family.call(arguments), arguments)


def time_call(network: Any, device: str, dtype: str, images: int) -> tuple[float, int]:
    """(seconds, bytes) that one call takes of a network without weights (see `network_layout`), on so many images under
    guidance: on CUDA the peak, else the weights' bytes. MemoryError if it does not fit."""
    zeros, (family, _) = partial(torch.zeros, device=device, dtype=DTYPES[dtype]), find_family(network)
    what = f"a {part_of(network)} call on {images} images in {dtype} does not fit in the memory of {device}"
    way = f"{what}: try a smaller --batch, or --dtype fp16"
    if sum(weight.numel() for weight in network.parameters()) * DTYPES[dtype].itemsize > free_memory(device):
        raise MemoryError(way)
    try:
        network = torch.nn.Module.to(deepcopy(network), DTYPES[dtype])  # diffusers' own `to` warns
        network.to_empty(device=device)
        for weight in network.parameters():
            weight.data.zero_()
        arguments = family.example(network, family.rows * images, zeros)
        for _ in range(1 if device == "cpu" else 3):  # the first on a card prepares
            start = time.perf_counter()
            with torch.no_grad():
                made = network(**arguments, return_dict=False)[0]  # of Z-Image a list
                made[0].sum().item()
            seconds = time.perf_counter() - start
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        raise MemoryError(way) from error
    weights = sum(weight.nbytes for weight in network.parameters())
    memory = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else weights
    del network
    clear_device_cache(garbage_collection=True)
    return seconds, memory


def free_memory(device: str) -> int:
    """Free bytes of the memory that a model on this device is in."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
