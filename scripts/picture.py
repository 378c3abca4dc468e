"""Draws texts with the entities that a model finds in them, as a PNG.

In: texts and a model, by default the package's own. Out: an image of 800 points' width, at twice as many pixels, in
which entities are rounded boxes with their labels, a colour a label.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from PIL import Image, ImageColor, ImageDraw, ImageFont
from transformers import pipeline
from transformers.utils import logging

from decodner_hf.default_model import default_model

TEXTS = (
    "Apple was founded by Steve Jobs in Cupertino.",
    "Marie Curie moved from Warsaw to Paris in 1891 to study physics.",
    "NASA launched the Parker Solar Probe from Florida in August 2018.",
    "Serena Williams won her last match at the US Open before she flew home to Florida.",
)
WIDTH, MARGIN = 800, 24  # points; so are all lengths below
TEXT_SIZE, LABEL_SIZE = 19, 11
LINE, PARAGRAPH = 42, 10  # height of a line, distance between texts
BOX, RADIUS, PADDING, GAP = 32, 7, 8, 7  # of an entity; GAP is between its words and its label
PIXELS, SAMPLES = 2, 2  # pixels a point; samples a pixel, in each direction, for smooth edges
INK, LABEL_INK, LABEL_GROUND, GROUND = "#1f2328", "#3d444d", "#ffffffb0", "#ffffff"
FIRST_HUE, NEXT_HUE = 210.0, 137.5  # the golden angle keeps any number of colours apart
COLOURS = 128

Entity = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """What is never broken across lines: a word, or an entity with its label; with a space before it or without."""

    text: str
    label: str | None
    space: bool


class Page:
    """An image that is filled from the top."""

    def __init__(self) -> None:
        """Loads the fonts that matplotlib brings along."""
        self.scale = PIXELS * SAMPLES
        self.text_font = self._font("normal", TEXT_SIZE)
        self.label_font = self._font("bold", LABEL_SIZE)
        self.places: list[tuple[float, float, Piece]] = []
        self.hues: dict[str, float] = {}  # label -> degrees
        self.bottom = float(MARGIN)

    def _font(self, weight: str, size: int) -> ImageFont.FreeTypeFont:
        found = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
        return ImageFont.truetype(found, size * self.scale)

    def _length(self, text: str, font: ImageFont.FreeTypeFont) -> float:
        return font.getlength(text) / self.scale

    def _width(self, piece: Piece) -> float:
        width = self._length(piece.text, self.text_font)
        if piece.label is None:
            return width
        return width + self._length(piece.label, self.label_font) + 2 * PADDING + GAP + 10

    def add(self, pieces: Sequence[Piece]) -> None:
        """Lays out a text below what is there; words follow one another in lines."""
        x, space = float(MARGIN), self._length(" ", self.text_font)
        for piece in pieces:
            before = space if piece.space and x > MARGIN else 0.0
            if x > MARGIN and x + before + self._width(piece) > WIDTH - MARGIN:
                x, before, self.bottom = float(MARGIN), 0.0, self.bottom + LINE
            self.places.append((x + before, self.bottom + LINE / 2, piece))
            x += before + self._width(piece)
        self.bottom += LINE + PARAGRAPH

    def draw(self) -> Image.Image:
        """Returns the image."""
        height = int(self.bottom - PARAGRAPH + MARGIN)
        image = Image.new("RGB", (WIDTH * self.scale, height * self.scale), GROUND)
        canvas = ImageDraw.Draw(image, "RGBA")
        for x, middle, piece in self.places:
            if piece.label is not None:
                self._draw_box(canvas, x, middle, piece)
                x += PADDING
            canvas.text((x * self.scale, middle * self.scale), piece.text, INK, self.text_font, "lm")
        return image.resize((WIDTH * PIXELS, height * PIXELS), Image.Resampling.LANCZOS)

    def _draw_box(self, canvas: ImageDraw.ImageDraw, x: float, middle: float, piece: Piece) -> None:
        label = str(piece.label)
        hue = self.hues.setdefault(label, (FIRST_HUE + NEXT_HUE * len(self.hues)) % 360)
        self._rounded(canvas, x, middle, self._width(piece), BOX, ImageColor.getrgb(f"hsl({hue},75%,84%)"))
        width = self._length(label, self.label_font) + 10
        left = x + self._width(piece) - PADDING - width + 3
        self._rounded(canvas, left, middle, width, BOX - 12, LABEL_GROUND)
        at = (left + width / 2) * self.scale, middle * self.scale
        canvas.text(at, label, LABEL_INK, self.label_font, "mm")

    def _rounded(
        self, canvas: ImageDraw.ImageDraw, x: float, middle: float, width: float, height: float, fill: Any
    ) -> None:
        bounds = [x, middle - height / 2, x + width, middle + height / 2]
        radius = RADIUS * self.scale * height / BOX
        canvas.rounded_rectangle([bound * self.scale for bound in bounds], radius, fill)


def pieces(text: str, entities: Sequence[Entity]) -> Iterator[Piece]:
    """Cuts a text into words and entities; of entities that overlap the first is taken."""
    position = 0
    for entity in [*sorted(entities, key=lambda entity: (entity["start"], -entity["end"])), None]:
        end = len(text) if entity is None else entity["start"]
        if end < position:
            continue
        between = text[position:end]
        for index, word in enumerate(between.split()):
            yield Piece(word, None, index > 0 or between[0].isspace())
        if entity is not None:
            space = text[: entity["start"]][-1:].isspace()
            yield Piece(text[entity["start"] : entity["end"]], str(entity["entity_group"]), space)
            position = entity["end"]


def main() -> int:
    """Parses the flags, finds entities, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", default=TEXTS, help="(default: four sentences)")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    parser.add_argument("--model", help="folder or Hub id (default: the package's own)")
    parser.add_argument("--labels", nargs="+", help="entity types (default: the model's)")
    options = parser.parse_args()
    logging.disable_progress_bar()
    model = options.model or str(default_model())
    ner = pipeline("decodner-ner", model=model, device="cpu", candidate_labels=options.labels)
    page = Page()
    for text in options.texts:
        page.add(list(pieces(text, ner(text))))
    page.draw().quantize(COLOURS).save(options.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
