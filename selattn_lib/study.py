"""Studies: everything that decides some numbers, as one validated object that computes, keeps and resumes them.

A study's hash names its folder under `runs/` (or `$SELATTN_RUNS`). Its units are computed in fixed batches, each
written and then marked done, so a run that was stopped goes on where it was, and every random choice derives from
the study's fields and the unit alone.
"""

import ast
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from tqdm import tqdm

from .capture import capture
from .concepts import benchmark_words, check_concept, load_concepts, read_lines
from .heads import cross_attention_heads
from .models import DEVICES, DTYPES, EMBEDDED, default_dtype, load_pipeline, model_source, pick_device, unet_layout
from .relevance import HeadRelevance, load_hrv, score_heads
from .segment import Detector, check_segmenter, load_segmenter
from .store import Store

GUIDANCE = {EMBEDDED: 3.0}  # where the paper's 7.5 oversaturates the pictures
PARTS = ("text_encoder", "unet", "vae")  # of a model, whose weights decide a study
FORMAT = 2  # of the stores; changes when old ones must not be read


def runs_folder() -> Path:
    """Where studies are kept: `$SELATTN_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("SELATTN_RUNS", "runs"))


def check_selection(heads: Any, thresholds: Any, model: str) -> tuple[Any, list[float]]:
    """(heads, thresholds) as they will be used; papermill's `-p thresholds "[0.3]"` arrives as text, which is read.

    Raises ValueError unless `heads`, one number or a list of them, are whole numbers from 1 to the number of heads of
    the model, and every threshold lies strictly between 0 and 1.
    """
    heads, thresholds = _literal(heads), _literal(thresholds)
    n_heads = len(cross_attention_heads(unet_layout(model)))
    for count in heads if isinstance(heads, list) and heads else [heads]:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= n_heads:
            raise ValueError(f"heads={heads!r}: expected whole numbers from 1 to {n_heads}, the heads of {model}")
    values = thresholds if isinstance(thresholds, list | tuple) else [thresholds]
    if not values or not all(isinstance(t, int | float) and 0 < t < 1 for t in values):
        raise ValueError(f"thresholds={thresholds!r}: expected numbers between 0 and 1, such as [0.3, 0.4, 0.5]")
    return heads, list(values)


def _literal(value: Any) -> Any:
    """A Python literal for the text of one, anything else as it is."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def concepts_of(model: str) -> dict[str, list[str]]:
    """The concept table that goes with a model: the embedded world's own, or the paper's."""
    return load_concepts(EMBEDDED if model == EMBEDDED else "paper")


class Stored(BaseModel):
    """What the kinds of studies share: validation that speaks in sentences, the folder, and the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judged: ClassVar[bool] = False  # whether a segmenter takes part

    model: str = EMBEDDED
    revision: str = ""
    batch: int = Field(default=10, ge=1, description="units computed together; part of the study, as it decides bits")
    dtype: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of the model; empty: the device's own")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
            lines = [f"{name}={fields.get(name)!r}: {text}" if name in fields else text for name, text in found]
            raise ValueError("; ".join(lines)) from None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        model = str(fields.get("model", EMBEDDED))
        source = model_source(model)
        if Path(source).is_dir():  # local weights may change under one name
            digest = hashlib.sha256()
            for path in sorted(Path(source).glob("*/*.safetensors")):
                if path.parent.name in PARTS or (cls.judged and path.parent.name == "segmenter"):
                    digest.update(path.read_bytes())
            revision = digest.hexdigest()[:12]
            if fields.get("revision", "") not in ("", revision):
                raise ValueError(f"revision {fields['revision']!r}: the weights in {source} are of revision {revision}")
            fields = {**fields, "revision": revision}
        if not fields.get("dtype"):
            fields = {**fields, "dtype": default_dtype(model, pick_device(), fields.get("revision") or None)}
        if "guidance" in cls.model_fields and fields.get("guidance") is None:
            fields = {**fields, "guidance": GUIDANCE.get(model, 7.5)}
        return fields

    @property
    def folder(self) -> Path:
        """`runs/<kind>-<hash>`."""
        content = json.dumps([FORMAT, self.model_dump(mode="json")], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return runs_folder().absolute() / f"{type(self).__name__.removesuffix('Study').lower() or 'study'}-{digest}"

    @cached_property
    def pipe(self) -> Any:
        offload = os.environ.get("SELATTN_OFFLOAD") == "1"
        return load_pipeline(self.model, dtype=DTYPES[self.dtype], revision=self.revision or None, offload=offload)

    @property
    def size(self) -> int:
        """Number of units."""
        raise NotImplementedError

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        """These units' variables, each with `image` as its first dimension."""
        raise NotImplementedError

    def results(self, stored: xr.Dataset) -> Any:
        """What `run` returns, made from all that is stored."""
        return stored

    def run(self, workers: Any = None, bar: tqdm | None = None) -> Any:
        """Compute what is not stored yet, with a progress bar, and return the results.

        `workers`: 0, to compute in this process; a number of processes to start here; or where a `dask.distributed`
        cluster is, as the address of its scheduler ("tcp://...") or as a cluster object, such as dask-jobqueue's.
        By default what `$SELATTN_WORKERS` says, else 0. Workers need this library, the model and as many threads as
        this process; they hand results to this process, which alone writes, and what a lost worker was at is done
        by another. A script that starts processes must do so under `if __name__ == "__main__":`.

        A run that is killed, or finds the disk full, goes on where it was when it is started again; units whose files
        were damaged are computed again; a second process on the same study waits for the first. The results are the
        same bits in all these cases, on one type of device: `$SELATTN_DEVICE` or the best there is. Which it was stands
        in the variable `device` (image) of the results. With `$SELATTN_OFFLOAD` at 1 the parts of a model wait in main
        memory until they are called. `bar`: to be moved on by one for each unit, in place of a bar of the study's own.

        Raises OSError if the disk is full or the model cannot be loaded, MemoryError if a single unit does not fit.
        """
        return self.results(self.stored(workers, bar))

    def stored(self, workers: Any = None, bar: tqdm | None = None) -> xr.Dataset:
        """`run`, up to the variables of all units, each read from the disk only where it is used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            try:
                return self._completed(workers_wanted(workers), bar)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                text = f"the disk of {self.folder} is full; what is computed is kept: free some space, then run again"
                raise OSError(errno.ENOSPC, text) from error

    def _completed(self, workers: Any, bar: tqdm | None) -> xr.Dataset:
        (self.folder / "study.json").write_text(self.model_dump_json(indent=1))
        store = Store(self.folder, self.size)
        batches = [range(i, min(i + self.batch, self.size)) for i in range(0, self.size, self.batch)]
        missing = [units for units in batches if not all(map(store.has, units))]
        if missing:
            there = self.size - sum(map(len, missing))
            own = tqdm(total=self.size, initial=there, desc=self.label) if bar is None else nullcontext(bar)
            with own as shown:
                for units, found in self._mapped(missing, workers):
                    store.keep(units, found)
                    shown.update(len(units))
        stored = store.open()
        return stored.assign(device=("image", np.array(DEVICES)[stored["device"].values]))

    def _mapped(self, batches: Sequence[range], workers: Any) -> Iterator[tuple[range, xr.Dataset]]:
        """`computed` of each batch of units, here and in order or on workers and as they come."""
        if not workers:
            yield from ((units, self.computed(units)) for units in batches)
            return
        try:
            import dask.config
            from distributed import Client, as_completed
        except ImportError as error:
            raise ImportError(f"workers={workers!r} needs dask: pip install 'selattn_lib[cluster]'") from error
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        # Two processes of threads that spin while they wait for each other would be ten times as slow as one.
        patient = {"distributed.nanny.pre-spawn-environ.OMP_WAIT_POLICY": "PASSIVE"}
        with dask.config.set(patient), Client(**local) if isinstance(workers, int) else Client(workers) as client:
            job = {"kind": type(self), "fields": self.model_dump_json(), "threads": torch.get_num_threads()}
            yield from (found for _, found in as_completed(client.map(_on_worker, batches, **job), with_results=True))

    def computed(self, units: Sequence[int]) -> xr.Dataset:
        """`compute`, in halves if memory runs out, and again in halves if need be.

        A picture's last bits depend on how many are computed together (rounding differs by the shape of a matrix
        product), which is why `batch` is part of a study. The variable `batch` (image) of the results says how many
        were: less than the study's own where memory ran out, and there the bits are those of a smaller batch.
        """
        try:
            found = self.compute(units)
            number = DEVICES.index(pick_device().partition(":")[0])
            return found.assign(
                batch=("image", np.full(len(units), len(units), np.uint16)),
                device=("image", np.full(len(units), number, np.uint8)),
            )
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            reason = str(error).splitlines()[0]
        if len(units) == 1:
            raise MemoryError(f"{self.label}: no memory for even one image at a time ({reason})")
        clear_device_cache(garbage_collection=True)
        half = len(units) // 2
        return xr.concat([self.computed(units[:half]), self.computed(units[half:])], "image")

    @property
    def label(self) -> str:
        return f"{type(self).__name__} on {self.model}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process, however it ends."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process, which computes {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def workers_wanted(workers: Any = None) -> Any:
    """`workers` of `Stored.run`: as given, else what `$SELATTN_WORKERS` says, as a number if it is one, else 0.

    Raises ValueError unless it is 0 or more, a scheduler's address such as tcp://host:8786, or a cluster object.
    """
    wanted = _literal(os.environ.get("SELATTN_WORKERS") or 0 if workers is None else workers)
    number = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 0
    address = isinstance(wanted, str) and "://" in wanted
    if not (number or address or hasattr(wanted, "scheduler_address")):
        raise ValueError(f"workers={wanted!r}: expected 0 or more, or a scheduler's address such as tcp://host:8786")
    return wanted


def _on_worker(units: range, kind: type[Stored], fields: str, threads: int) -> tuple[range, xr.Dataset]:
    torch.set_num_threads(threads)  # which decides bits on a CPU
    return units, _study(kind, fields).computed(units)


@lru_cache(maxsize=1)
def _study(kind: type[Stored], fields: str) -> Stored:
    """One study, and so one model, in a worker's memory at a time."""
    return kind(**json.loads(fields))


class _Maps(Stored):
    """Units are images, each with the head maps of one word and where it comes from."""

    def units(self) -> list[dict[str, Any]]:
        """`prompt`, `subject` (the word) and `seed` of every unit, in order."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.units())

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        units = self.units()
        stored = stored.assign_coords({key: ("image", [unit[key] for unit in units]) for key in units[0]})
        return stored.assign_attrs(model=self.model)


class _Generated(_Maps):
    """Units are images drawn by the model, with masks by a segmenter: the model's own by default, or Grounded-SAM.

    A segmenter that detects first adds `{mask}_box` (image, side: left, top, right, bottom) in pixels, `{mask}_score`
    and `{mask}_detections` (image), see `selattn_lib.segment.Detection`.
    """

    judged: ClassVar[bool] = True

    seeds: int = Field(default=10, ge=1)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="None: the model's own")
    segmenter: str = ""

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        """variable of the results -> what the segmenter is to look for."""
        raise NotImplementedError

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.units()
        chosen = [every[i] for i in units]
        with capture(self.pipe, words=[[u["subject"]] for u in chosen]) as maps:
            images = generate(
                self.pipe, [u["prompt"] for u in chosen], [u["seed"] for u in chosen],
                steps=self.steps, guidance=self.guidance,
            )  # fmt: skip
        found = halved(maps.dataset())
        found["image_rgb"] = (("image", "y", "x", "rgb"), np.stack([np.asarray(i) for i in images]))
        for name in self.phrases(chosen[0]):
            wanted = [self.phrases(u)[name] for u in chosen]
            if isinstance(self.judge, Detector):
                masks, boxes, scores, detections = zip(*self.judge.detect(images, wanted), strict=True)
                found[f"{name}_box"] = (("image", "side"), np.stack(boxes))
                found[f"{name}_score"] = ("image", np.array(scores, np.float32))
                found[f"{name}_detections"] = ("image", np.array(detections, np.uint16))
            else:
                masks = self.judge(images, wanted)
            found[name] = (("image", "y", "x"), np.stack(masks))
        return found

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        """Adds the coordinate `{mask}_outcome` (image) of each mask: "found", "several found" (the highest score
        counts), "empty mask" or "not found", the last two with a mask of nothing."""
        stored = super().results(stored)
        for name in self.phrases(self.units()[0]):
            number = stored.get(f"{name}_detections", xr.ones_like(stored["seed"])).values
            empty = np.array([not stored[name][i].values.any() for i in range(self.size)])
            outcome = np.select([number == 0, empty, number > 1], ["not found", "empty mask", "several found"], "found")
            stored = stored.assign_coords({f"{name}_outcome": ("image", outcome)})
        return stored

    @model_validator(mode="before")
    @classmethod
    def _fill_segmenter(cls, fields: dict[str, Any]) -> dict[str, Any]:
        default = EMBEDDED if fields.get("model", EMBEDDED) == EMBEDDED else "grounded-sam"
        return {**fields, "segmenter": check_segmenter(fields.get("segmenter") or default)}

    @cached_property
    def judge(self) -> Any:
        return load_segmenter(self.segmenter, device=pick_device())


class _Benchmark(_Maps):
    """The words of one concept: the paper's ten animals for *Animals*, the first ten of its list otherwise."""

    concept: str = "Animals"
    words: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_words(cls, fields: dict[str, Any]) -> dict[str, Any]:
        concept, concepts = fields.get("concept", "Animals"), concepts_of(fields.get("model", EMBEDDED))
        check_concept(concept, concepts)
        words = _literal(fields.get("words")) or benchmark_words(concept, concepts)
        return {**fields, "words": (words,) if isinstance(words, str) else tuple(words)}

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        """Head maps (see `Capture.dataset`), `image_rgb` (image, y, x, rgb) uint8 and `truth` (image, y, x) bool,
        with the coordinates `prompt`, `subject` and `seed` (image)."""
        return super().results(stored).assign_attrs(concept=self.concept)


class Study(_Generated, _Benchmark):
    """The paper's benchmark (section 3.1): `words` in `template`, `seeds` images each, masks by a segmenter.

    Seeds are 0, 1 ... seeds - 1, the same for each word. Raises ValueError on anything out of range.
    """

    template: str = "photo of a {word}"

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if "{word}" not in self.template:
            raise ValueError(f"template {self.template!r}: expected a prompt with {{word}} in it")
        return self

    def units(self) -> list[dict[str, Any]]:
        return [
            {"prompt": self.template.format(word=word), "subject": word, "seed": seed}
            for word in self.words
            for seed in range(self.seeds)
        ]

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        return {"truth": unit["subject"]}


class DiagnosisStudy(_Generated):
    """One prompt with an ambiguous `word`, `seeds` images, and a mask of each of the word's `meanings`.

    The results hold head maps of the word, `image_rgb`, and `truth_{meaning}` (image, y, x) bool for each.
    """

    prompt: str = "A mouse and other office objects are on the desk"
    word: str = "mouse"
    meanings: tuple[str, ...] = ("Animals", "Electronics")

    @model_validator(mode="after")
    def _check_meanings(self) -> Self:
        for meaning in self.meanings:
            check_concept(meaning, concepts_of(self.model))
        if self.word.lower() not in self.prompt.lower():
            raise ValueError(f"word {self.word!r} is not in the prompt {self.prompt!r}: expected one of its words")
        return self

    def units(self) -> list[dict[str, Any]]:
        return [{"prompt": self.prompt, "subject": self.word, "seed": seed} for seed in range(self.seeds)]

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        return {f"truth_{meaning}": meaning for meaning in self.meanings}


class KnownTruthStudy(_Benchmark):
    """Heads judged on composed scenes with exact masks, without sampling: each scene is noised to `timesteps`, the
    UNet sees it once at each with its caption, and the maps of the word are averaged. For the embedded world."""

    scenes: int = Field(default=100, ge=1)
    timesteps: tuple[int, ...] = (100, 300, 500, 700)
    seed: int = 0

    def units(self) -> list[dict[str, Any]]:
        chosen = [self.words[i % len(self.words)] for i in range(self.scenes)]
        return [{"prompt": f"photo of a {w}", "subject": w, "seed": i} for i, w in enumerate(chosen)]

    @torch.no_grad()
    def compute(self, units: Sequence[int]) -> xr.Dataset:
        from .emoji.scenes import HELD_OUT, compose

        pipe, every, times = self.pipe, self.units(), torch.tensor(self.timesteps)
        chosen = [every[i] for i in units]
        scenes = [
            compose(np.random.default_rng([HELD_OUT, self.seed, i]), [(self.concept, u["subject"])], u["prompt"])
            for i, u in zip(units, chosen, strict=True)
        ]
        pictures = np.stack([scene.image for scene in scenes])
        pixels = pipe.image_processor.preprocess(pictures.astype(np.float32) / 255).to(pipe.vae.device, pipe.vae.dtype)
        clean = pipe.vae.encode(pixels).latent_dist.mode()
        clean = (clean * pipe.vae.config.scaling_factor).repeat_interleave(len(times), 0)
        draws = [torch.Generator().manual_seed(int(i)) for i in units]
        noise = torch.cat([torch.randn((len(times), *clean.shape[1:]), generator=g) for g in draws])
        noised = pipe.scheduler.add_noise(clean, noise.to(clean.device, clean.dtype), times.repeat(len(units)))
        with capture(pipe, words=[[u["subject"]] for u in chosen]) as maps:
            text, _ = pipe.encode_prompt([u["prompt"] for u in chosen], clean.device, len(times), False)
            pipe.unet(noised, times.repeat(len(units)).to(clean.device), text)
        found = halved(maps.dataset().coarsen(image=len(times)).mean())
        found["image_rgb"] = (("image", "y", "x", "rgb"), pictures)
        found["truth"] = (("image", "y", "x"), np.stack([scene.masks[0] for scene in scenes]))
        return found


class RelevanceStudy(Stored):
    """Head relevance vectors (Eq. 3) of `concepts`, counted while `images` varied prompts are generated.

    The prompts are `classes`, to be put as "a photo of a {class}.", and `texts`, to be used as they are. Each is a
    list, or the path of a text file with one a line; "imagenet" names the 1,000 classes of ILSVRC 2012. The HRV paper's
    2,100 images are those and 1,100 texts. If neither is given, they are "imagenet", but for the embedded model "a
    photo of a {word}" over its concepts' words. They come in a seeded order, again and again if there are fewer than
    `images`.
    """

    images: int = Field(default=80, ge=2)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="None: the model's own")
    seed: int = 0
    start_token: bool = False
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_classes(cls, fields: dict[str, Any]) -> dict[str, Any]:
        given = fields.get("model", EMBEDDED) == EMBEDDED or fields.get("classes") or fields.get("texts")
        return fields if given else {**fields, "classes": "imagenet"}

    @field_validator("classes", "texts", mode="before")
    @classmethod
    def _read_lines(cls, given: Any) -> Any:
        return read_lines(given) if isinstance(given, str | Path) and given else given or ()

    @property
    def size(self) -> int:
        return self.images

    def prompts(self) -> list[str]:
        """The prompt of every image."""
        words = sorted({w.lower() for ws in concepts_of(self.model).values() for w in ws})
        every = [f"a photo of a {name}." for name in self.classes] + list(self.texts)
        every = every or [f"a photo of a {word}" for word in words]
        order = np.random.default_rng(self.seed).permutation(len(every))
        return [every[order[i % len(every)]] for i in range(self.images)]

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        prompts = self.prompts()
        with score_heads(self.pipe, concepts_of(self.model), seed=self.seed, units=units,
                         start_token=self.start_token) as votes:  # fmt: skip
            generate(self.pipe, [prompts[i] for i in units], list(units), steps=self.steps, guidance=self.guidance,
                     output_type="latent")  # fmt: skip
        counts = votes.counts().drop_vars("image").astype("uint16")
        return counts.to_dataset(name="counts")

    def results(self, stored: xr.Dataset) -> HeadRelevance:
        return HeadRelevance.from_counts(stored["counts"].astype(int))

    def counts(self) -> xr.DataArray:
        """Votes (image, concept, head) of every image, for split halves; runs what is missing."""
        return self.stored()["counts"].astype(int)


def relevance_for(model: str, hrv: str = "", **fields: Any) -> HeadRelevance:
    """The head relevance to use with a model: read from `hrv` if given, else measured by a `RelevanceStudy`.

    Raises ValueError if what is read is not about the model's heads.
    """
    if not hrv:
        return RelevanceStudy(model=model, **fields).run()
    relevance, heads = load_hrv(hrv), cross_attention_heads(unet_layout(model)).names
    if (found := relevance.scores["head"].values.tolist()) != heads:
        raise ValueError(
            f"hrv={hrv!r} is about {len(found)} heads, {found[0]!r} to {found[-1]!r}; {model} has {len(heads)}, "
            f"{heads[0]!r} to {heads[-1]!r}: expected head relevance of a model of the same layout"
        )
    return relevance


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Iterable[int],
    *,
    steps: int,
    guidance: float,
    output_type: str = "pil",
) -> Any:
    """Images (or latents) of one batch of prompts, each from its own seed; noise is drawn on the CPU."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type=output_type,
    ).images


def halved(maps: xr.Dataset) -> xr.Dataset:
    """Head maps in float16, as they are stored."""
    return maps.map(lambda values: values.astype(np.float16) if values.dtype == np.float32 else values)
