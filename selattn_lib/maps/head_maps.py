"""Head maps as data: what a capture, a study or a file of results gives."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
import torch
import xarray as xr
from PIL import Image

from .aggregation import bicubic_weights, normalise_, stretched, upsample
from .head_sets import HeadSelection, head_numbers, head_weights
from .overlay import overlay

GIF_FRAME = 250  # milliseconds: four pictures of 16 a second
PIXELS_AT_ONCE = 2**19  # upsampled pixels held at a time: 2 MB in float32, which a processor's cache holds


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """The attention maps of every head, for some words in some pictures.

    A thin layer over one xarray dataset, which is what studies store. Its variables are

    - ``maps_{h}x{w}`` (image, word, head_{h}x{w}, y_{h}x{w}, x_{h}x{w}): attention in [0, 1], one variable for each
      native grid, as the mean over the network's calls (Eq. 2 before its mean over heads). The coordinate
      ``head_{h}x{w}`` holds global head numbers, ``place_{h}x{w}`` the block of each. Maps that are kept call by call
      or in windows have the dimension ``call`` or ``window`` after ``word``.
    - ``image_rgb`` (image, y, x, rgb) uint8, where there are pictures.
    - ``truth`` or ``truth_{name}`` (image, y, x) bool, where there are true masks.

    Coordinates along ``image``, such as ``subject`` and ``seed``, say what a picture is of. The attributes ``height``
    and ``width`` are the pictures' size in pixels, ``n_heads`` the number of heads of the ``model``.

    Maps of clips have the dimension ``frame`` before ``y_{h}x{w}``, as has their ``image_rgb`` before ``y``. A frame of
    maps is a latent frame, and the coordinate ``covers`` (frame) says how many pictures of the clip it stands for:
    1, then 4 each, in Wan. `heatmap`, `overlay` and `save` take clips; whatever else is for pictures takes one frame
    of them, ``maps.select(frame=0)``.

    Parameters
    ----------
    dataset : xarray.Dataset
        Variables and attributes as above.

    Raises
    ------
    ValueError
        If the dataset holds no maps.

    Examples
    --------
    >>> from selattn_lib.maps.head_maps import HeadMaps
    >>> rng = np.random.default_rng(0)
    >>> values = ("image", "word", "head_2x2", "y_2x2", "x_2x2"), rng.random((1, 1, 3, 2, 2))
    >>> coords = {"word": ["bear"], "head_2x2": [0, 1, 2]}
    >>> maps = HeadMaps(xr.Dataset({"maps_2x2": values}, coords, {"height": 16, "width": 16}))
    >>> maps
    HeadMaps: 1 image of 16 x 16 pixels, words bear, 3 heads (2x2: 3)
    >>> maps.heatmap("bear", heads=[0, 2]).shape
    (16, 16)
    """

    dataset: xr.Dataset

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError(f"no maps_HxW in a dataset of {list(self.dataset.data_vars)}: expected head maps")

    def __getitem__(self, name: str) -> xr.DataArray:
        """A variable or coordinate of the dataset, by name: ``maps["image_rgb"]``."""
        return self.dataset[name]

    def __repr__(self) -> str:
        height, width = self.size
        images = f"{self.n_images} image{'s' * (self.n_images > 1)} of {height} x {width} pixels"
        if self.n_frames:
            images = images.replace("image", "clip", 1) + f" and {self.n_frames} frames"
        grids = ", ".join(f"{h}x{w}: {len(numbers)}" for (h, w), numbers in self.grids.items())
        return f"HeadMaps: {images}, words {', '.join(self.words)}, {self.n_heads} heads ({grids})"

    @classmethod
    def from_grids(
        cls, grids: Sequence[tuple[Sequence[int], np.ndarray]], words: Sequence[str], size: tuple[int, int],
        covers: Sequence[int] = (),
    ) -> Self:  # fmt: skip
        """Maps from their arrays.

        Parameters
        ----------
        grids : sequence of (head numbers, array (image, word, head, y, x))
            The heads of each native grid, and their attention in [0, 1]; of clips (image, word, head, frame, y, x).
        words : sequence of str
            The words.
        size : (int, int)
            (height, width) of the pictures in pixels.
        covers : sequence of int, optional
            Of clips: how many pictures each frame stands for.

        Examples
        --------
        >>> HeadMaps.from_grids([([0, 1], np.ones((1, 1, 2, 4, 4)))], ["bear"], (32, 32))
        HeadMaps: 1 image of 32 x 32 pixels, words bear, 2 heads (4x4: 2)
        """
        maps: dict[str, Any] = {}
        coords: dict[str, Any] = {"word": list(words)} | ({"covers": ("frame", list(covers))} if covers else {})
        for numbers, values in grids:
            name, frame = f"{values.shape[-2]}x{values.shape[-1]}", ["frame"] * bool(covers)
            maps[f"maps_{name}"] = (("image", "word", f"head_{name}", *frame, f"y_{name}", f"x_{name}"), values)
            coords[f"head_{name}"] = list(numbers)
        return cls(xr.Dataset(maps, coords, {"height": size[0], "width": size[1]}))

    @property
    def grids(self) -> dict[tuple[int, int], np.ndarray]:
        """(height, width) of each native grid -> the numbers of its heads."""
        names = [str(name) for name in self.dataset.data_vars]
        matches = [match for name in names if (match := re.fullmatch(r"maps_(\d+)x(\d+)", name))]
        return {(int(m[1]), int(m[2])): self.dataset[f"head_{m[1]}x{m[2]}"].values for m in matches}

    @property
    def heads(self) -> np.ndarray:
        """(head) the numbers of the heads that are held, ascending."""
        return np.sort(np.concatenate(list(self.grids.values())))

    @property
    def n_heads(self) -> int:
        """How many heads are held."""
        return len(self.heads)

    @property
    def grid_of_head(self) -> np.ndarray:
        """(head) the grid of each head that is held, such as "16x16"."""
        numbers = np.concatenate(list(self.grids.values()))
        names = np.repeat([f"{h}x{w}" for h, w in self.grids], [len(heads) for heads in self.grids.values()])
        return names[np.argsort(numbers)]

    @property
    def words(self) -> list[str]:
        """The words; "subject" where every picture has a word of its own."""
        return [str(word) for word in self.dataset["word"].values]

    @property
    def n_images(self) -> int:
        """How many pictures."""
        return self.dataset.sizes["image"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures in pixels."""
        return int(self.dataset.attrs["height"]), int(self.dataset.attrs["width"])

    @property
    def n_frames(self) -> int:
        """How many frames the maps of a clip have; 0 of pictures."""
        return self.dataset.sizes.get("frame", 0)

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.dataset.attrs.get("model", "unnamed"))

    @property
    def pictures(self) -> np.ndarray:
        """(image, y, x, rgb), of clips (image, frame, y, x, rgb), uint8; ValueError if there are none."""
        if "image_rgb" not in self.dataset:
            raise ValueError("these maps have no pictures: add them by maps.with_pictures(images)")
        return self.dataset["image_rgb"].values

    @property
    def truths(self) -> dict[str, xr.DataArray]:
        """name -> true masks (image, y, x) bool, read where used, named "truth" or by the {name} of truth_{name}."""
        variables = {str(name): self.dataset[name] for name in sorted(self.dataset.data_vars, key=str)}
        masks = {
            name: mask
            for name, mask in variables.items()
            if re.match("truth(_|$)", name) and mask.dims[1:] == ("y", "x")
        }
        return {name.removeprefix("truth_"): mask for name, mask in masks.items()}

    def truth(self, image: int, name: str = "truth") -> np.ndarray:
        """(y, x) bool, one true mask; ValueError if there is none of this name."""
        if name not in self.truths:
            raise ValueError(f"no true masks {name!r} in these results: they hold {list(self.truths) or 'none'}")
        return self.truths[name].isel(image=image).values.astype(bool)

    @property
    def subjects(self) -> np.ndarray:
        """(image) the word that each picture is of, by which intervals and tests group them."""
        return self.dataset["subject"].values

    @property
    def image_coords(self) -> dict[str, Any]:
        """Name -> coordinate along `image`, such as subject, seed and prompt."""
        return {str(name): coord for name, coord in self.dataset.coords.items() if coord.dims == ("image",)}

    def weights(self, heads: Any) -> xr.DataArray:
        """(..., head) any choice of these heads as weights: see `selattn_lib.maps.head_sets.head_weights`."""
        return head_weights(heads, self.heads)

    def select(self, **indexers: Any) -> "HeadMaps":
        """Some of the pictures, words, frames or windows, by position: ``maps.select(image=[0, 3], window=1)``.

        One frame of a clip, ``maps.select(frame=2)``, is a picture, whose map goes from 0 to 1 by itself.
        """
        held = {
            dim: [i] if dim in ("image", "word") and np.ndim(i) == 0 and not isinstance(i, slice) else i
            for dim, i in indexers.items()
        }
        return HeadMaps(self.dataset.isel(held))

    def with_pictures(self, images: Sequence[Any], **truths: Any) -> "HeadMaps":
        """These maps with pictures, and with true masks, for figures and explorers.

        Parameters
        ----------
        images : sequence of PIL.Image.Image or of arrays (y, x, rgb), uint8 or floats in [0, 1]
            As many as there are images in the maps. Of clips, all pictures of each, as the pipeline gives them: floats
            in [0, 1] (image, picture, y, x, rgb), or a list of a clip's pictures for each. Of those that a frame
            covers, the one in the middle is kept.
        **truths : array (image, y, x) bool
            True masks, named ``truth`` or ``truth_{name}``; where a name is one of the words, each word has the mask
            of its name alone.

        Raises
        ------
        ValueError
            On pictures of another number, size or range, on masks of other names or values, and on masks of clips.
        """
        if self.n_frames:
            return self._with_clips(images, truths)
        pictures = np.stack([np.asarray(image) for image in images])
        if pictures.shape != (self.n_images, *self.size, 3):
            expected = (self.n_images, *self.size, 3)
            raise ValueError(f"pictures (image, y, x, rgb) of shape {pictures.shape}: expected {expected}")
        if wrong := [name for name in truths if not re.match("truth(_|$)", name)]:
            raise ValueError(f"true masks named {wrong}: expected 'truth' or 'truth_NAME'")
        if soft := [name for name, mask in truths.items() if not np.isin(np.asarray(mask), (0, 1)).all()]:
            raise ValueError(f"true masks {soft} hold more than 0 and 1: expected bool, as by mask > 0.5")
        masks = {name: (("image", "y", "x"), np.asarray(mask)) for name, mask in truths.items()}
        return HeadMaps(self.dataset.assign({"image_rgb": (("image", "y", "x", "rgb"), _as_bytes(pictures))} | masks))

    def _with_clips(self, clips: Sequence[Any], truths: dict[str, Any]) -> "HeadMaps":
        if truths:
            self.of_pictures()
        pictures = np.stack([np.stack([np.asarray(picture) for picture in clip]) for clip in clips])
        covers = self.dataset["covers"].values
        if pictures.shape != (expected := (self.n_images, int(covers.sum()), *self.size, 3)):
            raise ValueError(f"clips (image, picture, y, x, rgb) of shape {pictures.shape}: expected {expected}")
        kept = pictures[:, np.cumsum(covers) - covers + covers // 2]
        return HeadMaps(self.dataset.assign(image_rgb=(("image", "frame", "y", "x", "rgb"), _as_bytes(kept))))

    def of_pictures(self) -> Self:
        """These maps, if they are of pictures; ValueError if they are of clips, which most evaluations do not take."""
        if self.n_frames:
            raise ValueError(
                f"these are maps of clips of {self.n_frames} frames, and maps of pictures are expected: choose a frame "
                "by maps.select(frame=0)"
            )
        return self

    def native(self, image: int = 0, word: int | str = 0) -> list[tuple[np.ndarray, torch.Tensor]]:
        """[(head numbers, maps (head, y, x) float32)] of one picture and word, for each native grid.

        Maps kept call by call are averaged. Raises ValueError on a word that is not held and on clips, IndexError on a
        number that is not held.
        """
        return self.of_pictures()._native(image, word)

    def _native(self, image: int, word: int | str) -> list[tuple[np.ndarray, torch.Tensor]]:
        """`native`, of clips (head, frame, y, x)."""
        if "window" in self.dataset.dims:
            windows = self.dataset.sizes["window"]
            raise ValueError(f"these maps have {windows} windows of timesteps: choose one by maps.select(window=0)")
        if not -self.n_images <= image < self.n_images:
            raise IndexError(f"image {image} was asked for, of {self.n_images} in these maps")
        word = self._word_number(image, word)
        if not -len(self.words) <= word < len(self.words):
            raise IndexError(f"word {word} was asked for, of {len(self.words)} in these maps")
        native = []
        for (height, width), numbers in self.grids.items():
            values = self.dataset[f"maps_{height}x{width}"].isel(image=image, word=word)
            values = values.mean("call") if "call" in values.dims else values
            native.append((numbers, torch.from_numpy(values.values.astype(np.float32))))
        return native

    def heatmap(
        self,
        word: int | str = 0,
        heads: HeadSelection = "all",
        *,
        image: int = 0,
        weights: Sequence[float] | np.ndarray | None = None,
        size: tuple[int, int] | None = None,
        normalise: str = "minmax",
    ) -> xr.DataArray:
        """The mean map of some heads, upsampled to the picture's size and normalised to [0, 1] (Eq. 2, Eq. 4).

        A clip's map is normalised over all of its frames together, so that a threshold is the same in each: a frame
        without the word stays dark. For a frame by itself: ``maps.select(frame=2).heatmap(...)``.

        Parameters
        ----------
        word : int or str
            A word, as it was asked for, or its number.
        heads : str or sequence of int
            "all" (DAAM, Eq. 2); head numbers (Eq. 4); or "daam", the variant of the `daam` package 0.2.0: without the
            mid block, each map upsampled to the largest grid and clamped at 0 before the mean. That is the package's
            arithmetic at the model's own size, for words of one token.
        image : int
            Which picture.
        weights : sequence of float, optional
            One a head, 0 or more, for a weighted mean.
        size : (int, int), optional
            (height, width) in pixels; the picture's own by default.
        normalise : str
            How a map becomes one in [0, 1], which the paper does not say and which decides what a threshold means.
            "minmax": the mean map's minimum to 0, its maximum to 1, as the `daam` package does. "max": divided by its
            maximum, so that a threshold is a share of it, as in DAAM's paper. "per-head": like "minmax", but of a
            mean of maps each of which goes from 0 to 1 itself.

        Returns
        -------
        xarray.DataArray (y, x), of a clip (frame, y, x)
            Values in [0, 1]. Of a constant mean map, zeros by "minmax", ones by "max".

        Raises
        ------
        ValueError
            On words and heads that are not held, on weights that do not fit, on "daam" where heads are missing or
            normalised on their own and of clips, and on any other `normalise`.
        """
        size = size or self.size
        if isinstance(heads, str) and heads == "daam":
            if weights is not None:
                raise ValueError("heads='daam' is an unweighted mean: expected head numbers with weights")
            if normalise == "per-head":
                raise ValueError("heads='daam' has its mean normalised: expected normalise='minmax' or 'max'")
            heat = normalise_(self._daam(self.native(image, word), size), normalise)  # of pictures only
        else:
            numbers = head_numbers(heads, self.heads)
            share = np.ones(len(numbers)) if weights is None else np.asarray(weights, dtype=float)
            if share.shape != numbers.shape:
                raise ValueError(f"weights has shape {share.shape} for {len(numbers)} heads: expected one a head")
            if not (np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0):
                raise ValueError(f"weights={weights!r}: expected numbers of 0 or more with a positive sum")
            row = np.zeros((1, self.n_heads), np.float32)
            row[0, np.searchsorted(self.heads, numbers)] = share / share.sum()
            [[heat]] = self._heatmaps(row, self._native(image, word), size, normalise)
        return xr.DataArray(heat.numpy(), dims=("frame", "y", "x")[-heat.ndim :])

    def heatmaps(
        self, weights: Any, *, image: int = 0, word: int | str = 0, size: tuple[int, int] | None = None,
        normalise: str = "minmax",
    ) -> Iterator[torch.Tensor]:  # fmt: skip
        """Yield the heat maps of many sets of heads, some at a time.

        Bicubic upsampling is linear, so the maps of one grid are summed first and only the sums are upsampled; it is
        also separable, so that two small matrix products do it.

        Parameters
        ----------
        weights : array (set, head)
            A row a set: ones and zeros select heads (Eq. 4), other numbers weight them. Heads as in `self.heads`.
        image, word, size, normalise
            As for `heatmap`.

        Yields
        ------
        torch.Tensor (some sets, y, x)
            Values in [0, 1], in the order of the sets.
        """
        yield from self._heatmaps(weights, self.native(image, word), size or self.size, normalise)

    def _heatmaps(
        self, weights: Any, native: list[tuple[np.ndarray, torch.Tensor]], size: tuple[int, int], normalise: str
    ) -> Iterator[torch.Tensor]:
        """`heatmaps` of native maps, of clips (some sets, frame, y, x), each normalised over all frames."""
        height, width = size
        rows = torch.as_tensor(np.asarray(weights, dtype=np.float32))
        placed = [(np.searchsorted(self.heads, heads).tolist(), maps) for heads, maps in native]
        if normalise == "per-head":
            placed = [(heads, stretched(maps, size)) for heads, maps in placed]
        down = torch.cat([bicubic_weights(maps.shape[-2], height) for _, maps in placed], dim=1)  # (height, all rows)
        for block in rows.split(max(1, PIXELS_AT_ONCE // (height * width * max(1, self.n_frames)))):
            across = [
                torch.einsum("sh,h...yx->s...yx", block[:, heads], maps) @ bicubic_weights(maps.shape[-1], width).T
                for heads, maps in placed
            ]
            drawn = down @ torch.cat(across, dim=-2)
            yield normalise_(drawn.flatten(1, -2), normalise).view_as(drawn)

    def overlay(
        self, word: int | str = 0, heads: HeadSelection = "all", *, image: int = 0, threshold: float | None = 0.4,
        normalise: str = "minmax",
    ) -> Image.Image:  # fmt: skip
        """The picture under the heat map of some heads, with a line round what is above `threshold`.

        Parameters are those of `heatmap`; a true mask of the name ``truth`` is outlined by dashes. Of a clip, all
        frames side by side; ``maps.overlays`` has each of them. Raises ValueError if there are no pictures.
        """
        frames = self.overlays(word, heads, image=image, threshold=threshold, normalise=normalise)
        return Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1))

    def overlays(
        self, word: int | str = 0, heads: HeadSelection = "all", *, image: int = 0, threshold: float | None = 0.4,
        normalise: str = "minmax",
    ) -> list[Image.Image]:  # fmt: skip
        """The `overlay` of each frame of a clip; of a picture, one.

        Examples
        --------
        >>> maps = HeadMaps.from_grids([([0], np.ones((1, 1, 1, 2, 4, 4)))], ["bear"], (32, 32), covers=[1, 4])
        >>> maps
        HeadMaps: 1 clip of 32 x 32 pixels and 2 frames, words bear, 1 heads (4x4: 1)
        >>> first, second = maps.with_pictures(np.zeros((1, 5, 32, 32, 3))).overlays("bear")
        """
        pictures = self.select(image=image).pictures[0]
        heat = self.heatmap(word, heads, image=image, normalise=normalise).values
        truth = self.truth(image) if "truth" in self.truths else None
        frames = zip(pictures, heat, strict=True) if self.n_frames else [(pictures, heat)]
        return [Image.fromarray(overlay(*frame, threshold=threshold, truth=truth)) for frame in frames]

    def save(
        self, folder: str | Path, heads: HeadSelection = "all", *, threshold: float = 0.4, name: str = "",
        normalise: str = "minmax",
    ) -> list[Path]:  # fmt: skip
        """Write the overlay, the map and the mask of every picture and word as PNG files.

        Of clips, those of every frame, and the overlays in a row as a GIF.

        Parameters
        ----------
        folder : path
            Made if it is not there.
        heads : str or sequence of int
            As for `heatmap`.
        threshold : float
            In (0, 1): the mask is what lies strictly above it (Eq. 5).
        name : str, optional
            Names the heads in the files' names; by default "all" or "daam", "heads-3-17" for up to eight heads, and for
            more their number with a checksum, "30-heads-1a2b3c4d", so that no two sets share a name; then "-max" or
            "-per-head" where maps are so normalised.
        normalise : str
            As for `heatmap`.

        Returns
        -------
        list of pathlib.Path
            ``{image}-{word}-{name}-overlay.png`` where there are pictures, ``...-map.png`` (grey, 0 to 255) and
            ``...-mask.png`` (0 or 255); of clips ``...-overlay-000.png`` and so on, and ``...-overlay.gif``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = name or _file_name(heads) + f"-{normalise}" * (normalise != "minmax")
        written = []
        for image in range(self.n_images):
            words = [re.sub(r"[^\w-]+", "-", self.word(image, number)) for number in range(len(self.words))]
            for number in range(len(self.words)):
                heat = self.heatmap(number, heads, image=image, normalise=normalise).values.reshape(-1, *self.size)
                files = {
                    "map": [Image.fromarray(frame) for frame in (heat * 255).round().astype(np.uint8)],
                    "mask": [Image.fromarray(frame) for frame in (heat > threshold).astype(np.uint8) * 255],
                }
                if "image_rgb" in self.dataset:
                    options: Any = {"image": image, "threshold": threshold, "normalise": normalise}
                    files["overlay"] = self.overlays(number, heads, **options)
                word = words[number] + f"-{number}" * (words.count(words[number]) > 1)
                for kind, frames in files.items():
                    path = folder / f"{image:03d}-{word}-{name}-{kind}"
                    for i, frame in enumerate(frames):
                        written.append(path.with_name(path.name + f"-{i:03d}" * bool(self.n_frames) + ".png"))
                        frame.save(written[-1])
                    if self.n_frames and kind == "overlay":
                        written.append(path.with_name(path.name + ".gif"))
                        frames[0].save(written[-1], save_all=True, append_images=frames[1:], duration=GIF_FRAME, loop=0)
        return written

    def word(self, image: int, number: int = 0) -> str:
        """A word of one picture, by its number."""
        coords = [name for name in ("own_words", "subject") if name in self.dataset.coords]
        if not coords or not self.words[number].startswith("subject"):
            return self.words[number]
        return str(np.atleast_1d(self.dataset[coords[0]].values[image])[number])

    def _word_number(self, image: int, word: int | str) -> int:
        if not isinstance(word, str):
            return int(word)
        known = [self.words, [self.word(image, number) for number in range(len(self.words))]]
        for labels in known:
            if word in labels:
                return labels.index(word)
        raise ValueError(f"the word {word!r} is not in these maps: they hold {known[1]}")

    def _daam(self, native: list[tuple[np.ndarray, torch.Tensor]], size: tuple[int, int]) -> torch.Tensor:
        total = self.dataset.attrs.get("n_heads")
        if total and self.n_heads < total:
            raise ValueError(f"heads='daam' needs all {total} heads of the model: these maps hold {self.n_heads}")
        height, width = max((maps.shape[1:] for _, maps in native), key=lambda grid: grid[0] * grid[1])
        upsampled = []
        for _, maps in native:
            block = f"place_{maps.shape[1]}x{maps.shape[2]}"
            if block not in self.dataset.coords:
                raise ValueError(f"heads='daam' leaves out the mid block, but the maps lack the coordinate {block!r}")
            chosen = maps[self.dataset[block].values != "mid"]
            if len(chosen):
                upsampled.append(upsample(chosen, (height, width)).clamp(min=0))
        return upsample(torch.cat(upsampled).mean(dim=0, keepdim=True), size)[0]


def _as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures of bytes, or of floats in [0, 1], as bytes; ValueError if they are neither."""
    if pictures.dtype == np.uint8:
        return pictures
    if pictures.dtype.kind != "f" or not pictures.max() <= 1.01:
        raise ValueError(f"pictures of {pictures.dtype}, up to {pictures.max()}: expected uint8, or floats in [0, 1]")
    return (pictures.clip(0, 1) * 255).round().astype(np.uint8)


def _file_name(heads: HeadSelection) -> str:
    if isinstance(heads, str):
        return heads
    numbers = "-".join(str(number) for number in sorted(int(head) for head in heads))
    return f"heads-{numbers}" if len(heads) <= 8 else f"{len(heads)}-heads-{crc32(numbers.encode()):08x}"


def heatmap(
    maps: HeadMaps | xr.Dataset, heads: HeadSelection = "all", *, image: int = 0, word: int | str = 0, **options: Any
) -> xr.DataArray:
    """The mean map of some heads in one line: `HeadMaps.heatmap` of maps, or of the dataset of maps.

    Parameters
    ----------
    maps : HeadMaps or xarray.Dataset
        Of some words in some pictures.
    heads, image, word, **options
        As for `HeadMaps.heatmap`.

    Returns
    -------
    xarray.DataArray (y, x)
        Values in [0, 1].

    Raises
    ------
    ValueError, IndexError
        On words, heads and pictures that are not held.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0], np.eye(2)[None, None, None])], ["bear"], (2, 2))
    >>> heatmap(maps, word="bear").values.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    maps = maps if isinstance(maps, HeadMaps) else HeadMaps(maps)
    return maps.heatmap(word, heads, image=image, **options)
