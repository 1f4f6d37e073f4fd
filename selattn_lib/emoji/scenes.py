"""Compose training and test scenes: emoji on drawn backgrounds, each with its caption and exact masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from . import art

SIZE = 256


GRID = 8  # pixels, a cell of the latents: things lie on this grid, so that a small model has little to learn of each


UNIT = SIZE // 16  # pixels: what the sizes of things are given in


HELD_OUT = 1_000_003  # first seed of scenes that no training has seen


BENCHMARK = ["bear", "bird", "cat", "cow", "dog", "elephant", "sheep", "horse", "monkey", "zebra"]


NOUN = {  # concept -> what one calls a member of it in a caption
    "Animals": "an animal", "Plants": "a plant", "Fruits and Vegetables": "a food plant",
    "Food and Beverages": "a meal",
    "Vehicles": "a vehicle", "Buildings": "a building", "Furniture": "a piece of furniture",
    "Electronics": "an electronic device", "Clothing": "a piece of clothing", "Accessories": "an accessory",
    "Tools": "a tool", "Toys": "a toy", "Sports Equipment": "sports equipment",
    "Musical Instruments": "a musical instrument", "Facial Expressions": "a facial expression", "Shape": "a shape",
}  # fmt: skip


COLORS = {
    "red": (214, 48, 49), "blue": (52, 110, 219), "green": (64, 160, 72), "yellow": (248, 210, 60),
    "black": (28, 28, 32), "white": (244, 244, 244), "purple": (132, 74, 172), "gray": (140, 142, 146),
    "pink": (246, 150, 186), "brown": (128, 84, 52),
}  # fmt: skip


# place -> (sky top, sky bottom, ground top, ground bottom), with the phrase that a caption uses for it
PLACES = {
    "beach": ("on the beach", (96, 176, 240), (190, 228, 250), (240, 218, 160), (226, 196, 130)),
    "desert": ("in the desert", (240, 190, 120), (252, 226, 170), (222, 160, 90), (196, 130, 66)),
    "meadow": ("in a meadow", (120, 190, 246), (214, 238, 252), (120, 190, 84), (78, 150, 60)),
    "forest": ("in the forest", (96, 140, 96), (150, 190, 130), (88, 110, 60), (60, 82, 44)),
    "mountain": ("by a mountain", (140, 190, 236), (226, 238, 248), (140, 150, 130), (104, 120, 100)),
    "lake": ("by a lake", (150, 204, 240), (222, 240, 250), (70, 140, 196), (46, 104, 164)),
    "room": ("in a room", (236, 222, 200), (228, 210, 184), (170, 120, 80), (146, 100, 64)),
    "desk": ("on the desk", (206, 214, 224), (190, 200, 212), (190, 140, 92), (164, 116, 72)),
    "street": ("on the street", (176, 190, 206), (214, 220, 226), (110, 112, 118), (88, 90, 96)),
}


TIMES = {  # time of day -> (colour, strength) of its light
    "night": ((10, 16, 60), 0.50), "sunset": ((250, 110, 50), 0.40), "morning": ((255, 236, 190), 0.28),
    "dusk": ((90, 60, 140), 0.45), "noon": ((255, 255, 240), 0.30), "dawn": ((250, 170, 190), 0.40),
    "midnight": ((4, 6, 24), 0.62),
}  # fmt: skip


WEATHERS = ["rainy", "snowy", "cloudy", "foggy", "sunny", "windy", "stormy"]


# the longer side of an object in units, when the caption speaks of its size
SIZES = {"tiny": (4,), "small": (6,), "medium": (8,), "large": (12,), "huge": (16,)}


USUAL = {1: (10, 12), 2: (8,), 3: (6,)}  # number of objects -> the same, when it does not


@dataclass(frozen=True)
class Ambiguity:
    """A word planted with two meanings: its two `concepts`, a `caption` under which scenes show both of them and one
    of the `companions`, (concept, word), or one of them and two companions, and the place where these scenes happen."""

    concepts: tuple[str, str]
    caption: str
    place: str
    companions: tuple[tuple[str, str], ...]


AMBIGUOUS = {
    "mouse": Ambiguity(
        ("Animals", "Electronics"), "a mouse and other office objects are on the desk", "desk",
        tuple(("Electronics", w) for w in ("laptop", "printer", "computer", "keyboard", "smartphone", "camera")),
    ),
    "bat": Ambiguity(
        ("Animals", "Sports Equipment"), "a bat and other sports equipment are in the meadow", "meadow",
        tuple(("Sports Equipment", w) for w in ("baseball", "football", "boxing glove", "badminton", "tennis ball")),
    ),
    "chicken": Ambiguity(
        ("Animals", "Food and Beverages"), "a chicken and other food are on the desk", "desk",
        tuple(("Food and Beverages", w) for w in ("pizza", "salad", "burger", "pasta", "sandwich")),
    ),
    "glasses": Ambiguity(
        ("Accessories", "Food and Beverages"), "glasses and other drinks are in the room", "room",
        tuple(("Food and Beverages", w) for w in ("coffee", "tea", "juice")),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One composed picture: `image` (y, x, rgb) uint8, `masks` (object, y, x) bool of what is visible of each object,
    its `words` and their `concepts`, and the `caption` that names them."""

    image: np.ndarray
    caption: str
    words: tuple[str, ...]
    concepts: tuple[str, ...]
    masks: np.ndarray


@cache
def glyph_names() -> dict[tuple[str, str], str]:
    """(concept, word) -> the name of its glyph."""
    return {(concept, word): glyph for concept, words in art.glyphs().items() for word, glyph in words.items()}


def article(word: str, adjective: str = "") -> str:
    """`word` with its indefinite article, where it takes one."""
    phrase = f"{adjective} {word}".strip()
    return phrase if word in PLURAL else f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


PLURAL = {"grapes", "headphones", "jeans", "shorts", "socks", "sunglasses", "glasses", "gloves", "skis", "maracas",
          "dice", "broccoli", "lettuce", "pizza", "salad", "pasta", "coffee", "tea", "juice"}  # fmt: skip


def compose(rng: np.random.Generator, words: list[tuple[str, str]] | None = None, caption: str | None = None) -> Scene:
    """Draw one random scene; `words` = (concept, word) of each object and `caption` may be given. Where the caption is,
    no time of day or weather comes over the scene, since it speaks of none."""
    place = None
    if words is None:
        words, caption, place = _cast(rng)
    image, where = _background(rng, place)
    canvas = Image.fromarray(image)
    size = str(rng.choice(list(SIZES))) if len(words) == 1 and rng.random() < 0.15 else ""
    layers = []
    for slot, key in enumerate(words):
        picture, box = _place(rng, key, slot, len(words), SIZES.get(size, USUAL[len(words)]))
        layer = Image.new("L", (SIZE, SIZE))
        layer.paste(picture.getchannel("A"), box)
        layers.append(np.asarray(layer) > 127)
        canvas.paste(picture, box, picture)
    masks = np.stack(layers)
    for i in range(len(masks) - 1):  # later objects cover earlier ones
        masks[i] &= ~masks[i + 1 :].any(0)
    image = np.array(canvas)
    if caption is None:
        image, mood = _light(rng, image)
        caption = _describe(rng, words, where, mood, size)
    concepts, names = zip(*words, strict=True)
    return Scene(image, caption, names, concepts, masks)


def compose_many(count: int, *seed: int) -> Iterator[Scene]:
    """`count` scenes one by one, with a progress bar; scene i depends on (*seed, i) alone."""
    for i in tqdm(range(count), desc="composing scenes", mininterval=5):
        yield compose(np.random.default_rng([*seed, i]))


def _cast(rng: np.random.Generator) -> tuple[list[tuple[str, str]], str | None, str | None]:
    """Who is in the scene, its caption and place where these are given: any object is as likely as any other, but the
    benchmark's animals and the ambiguous words come oftener."""
    animal = ("Animals", str(rng.choice(BENCHMARK)))
    everything = list(glyph_names())
    anything = everything[rng.integers(len(everything))]
    roll = rng.random()
    if roll < 0.06:
        return [animal], None, None
    if roll < 0.40:
        return [anything], None, None
    if roll < 0.70:
        first = animal if rng.random() < 0.4 else everything[rng.integers(len(everything))]
        return [first, anything], None, None
    word = str(rng.choice(list(AMBIGUOUS), p=[0.4, 0.2, 0.2, 0.2]))
    planted = AMBIGUOUS[word]
    meanings = [(concept, word) for concept in planted.concepts]
    one = meanings[rng.integers(2)]
    if rng.random() < 0.15:
        return [one], None, None
    companions = [planted.companions[i] for i in rng.choice(len(planted.companions), 2, replace=False)]
    cast = [*meanings, companions[0]] if rng.random() < 0.85 else [one, *companions]
    return [cast[i] for i in rng.permutation(len(cast))], planted.caption, planted.place


def _place(rng: np.random.Generator, key: tuple[str, str], slot: int, count: int, sizes: tuple[int, ...]):
    """One object's picture and its top-left corner."""
    options = art.drawings(glyph_names()[key])
    picture = Image.fromarray(options[0 if rng.random() < 0.6 else rng.integers(len(options))])  # one style leads
    longer = UNIT * int(rng.choice(sizes))
    size = [round(side * longer / max(picture.size)) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
    gain = rng.uniform(0.88, 1.12)
    picture = picture.point([min(255, int(gain * value)) for value in range(256)] * 3 + list(range(256)))
    free = np.array([SIZE - picture.width, SIZE - picture.height])
    where = rng.uniform(0, 1, 2)
    corner = where * free
    if count > 1:  # one column an object; they may overlap a little
        corner[0] = SIZE / count * slot + where[0] * (SIZE / count - picture.width)
    x, y = (corner.clip(0, free) // GRID * GRID).astype(int)
    return picture, (int(x), int(y))


def _background(rng: np.random.Generator, place: str | None = None) -> tuple[np.ndarray, str]:
    """A background (y, x, rgb) uint8 and the words for it."""
    ramp = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    if place is None and rng.random() < 0.3:
        name = str(rng.choice(list(COLORS)))
        color = np.array(COLORS[name], np.float32) + rng.normal(0, 6, 3)
        column = (color * (1.06 - 0.12 * ramp)).clip(0, 255).astype(np.uint8)
        return np.broadcast_to(column, (SIZE, SIZE, 3)), f"on a {name} background"
    name = place or str(rng.choice(list(PLACES)))
    phrase, *stops = PLACES[name]
    sky0, sky1, ground0, ground1 = (np.array(s, np.float32) + rng.normal(0, 5, 3) for s in stops)
    horizon = GRID * int(rng.integers(14, 21))
    y = np.arange(SIZE, dtype=np.float32)[:, None, None]
    above = y / horizon
    below = (y - horizon) / (SIZE - horizon)
    column = np.where(y < horizon, sky0 + (sky1 - sky0) * above, ground0 + (ground1 - ground0) * below)
    canvas = Image.fromarray(np.broadcast_to(column.clip(0, 255).astype(np.uint8), (SIZE, SIZE, 3)))
    draw = ImageDraw.Draw(canvas)
    if name == "mountain":
        for _ in range(2):
            peak, half = rng.uniform(0, SIZE), rng.uniform(60, 112)
            top = horizon - rng.uniform(48, 88)
            draw.polygon([(peak - half, horizon), (peak, top), (peak + half, horizon)], fill=(120, 126, 140))
            draw.polygon([(peak - half / 4, top * 0.75 + horizon / 4), (peak, top),
                          (peak + half / 4, top * 0.75 + horizon / 4)], fill=(240, 244, 250))  # fmt: skip
    elif name == "forest":
        for x in range(-8, SIZE, 36):
            x += int(rng.integers(0, 20))
            draw.polygon([(x, horizon + 4), (x + 18, horizon - 72), (x + 36, horizon + 4)], fill=(46, 96, 52))
    elif name == "street":
        for x in range(0, SIZE, 64):
            top = horizon - int(rng.integers(36, 88))
            draw.rectangle([x, top, x + 54, horizon], fill=(150, 136, 128))
    return np.asarray(canvas), phrase


def _light(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, str]:
    """Now and then a time of day or a weather over the whole picture, with the words for it."""
    roll = rng.random()
    if roll > 0.24:
        return image, ""
    if roll < 0.12:
        name = str(rng.choice(list(TIMES)))
        color, strength = TIMES[name]
        image = image * (1 - strength) + np.array(color, np.float32) * strength
        return image.clip(0, 255).astype(np.uint8), f"at {name}" if name != "morning" else "in the morning"
    name = str(rng.choice(WEATHERS))
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    if name == "foggy":
        return (image * 0.5 + 110).clip(0, 255).astype(np.uint8), "on a foggy day"
    if name == "sunny":
        draw.ellipse([204, 4, 252, 52], fill=(255, 226, 90))
    elif name == "cloudy":
        cloud = Image.new("L", (SIZE, SIZE))
        for _ in range(7):
            x, y = rng.uniform(-20, SIZE), rng.uniform(0, 36)
            ImageDraw.Draw(cloud).ellipse([x - 36, y - 18, x + 36, y + 18], fill=200)
        canvas.paste((236, 238, 242), mask=cloud.filter(ImageFilter.GaussianBlur(4)))
    elif name == "windy":
        for _ in range(9):
            x, y, reach = rng.uniform(-40, SIZE), rng.uniform(0, SIZE), rng.uniform(40, 88)
            draw.arc([x, y, x + reach, y + 16], 200, 340, fill=(250, 250, 250), width=4)
    elif name == "stormy":
        canvas = Image.fromarray((image * 0.55).astype(np.uint8))
        x = rng.uniform(40, SIZE - 40)
        bolt = [(x, 0), (x - 14, 30), (x + 2, 30), (x - 12, 66), (x + 22, 22), (x + 6, 22), (x + 16, 0)]
        ImageDraw.Draw(canvas).polygon(bolt, fill=(255, 236, 110))
    else:
        for _ in range(46):
            x, y = rng.uniform(0, SIZE, 2)
            if name == "rainy":
                draw.line([x, y, x - 4, y + 16], fill=(120, 150, 210), width=2)
            else:
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=(255, 255, 255))
    return np.asarray(canvas), f"on a {name} day"


def _describe(rng: np.random.Generator, words, where: str, mood: str, size: str) -> str:
    """A caption that names every object and, sometimes, its category, size, place and light."""
    names = []
    for concept, word in words:
        name = article(f"{word} face" if concept == "Facial Expressions" else word, size)
        if rng.random() < 0.08:
            name += f", {NOUN[concept]}"
        names.append(name)
    phrase = " and ".join(names)
    roll = rng.random()
    if roll < 0.55:
        phrase = f"photo of {phrase}"
    elif roll < 0.65:
        phrase = f"a photo of {phrase}"
    if where and rng.random() < 0.35:
        phrase += f" {where}"
    if mood and rng.random() < 0.8:
        phrase += f" {mood}"
    return phrase
