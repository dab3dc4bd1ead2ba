"""Draw network.svg and tree.svg: `python docs/img/draw.py`. They follow the reader's light or dark colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
STYLE = """
text { font-family: Helvetica, Arial, sans-serif; fill: #1f2933; font-size: 16px }
.bold { font-weight: bold } .small { font-size: 14px } .code { font-family: monospace } .soft { fill: #52606d }
.card { fill: #ffffff; stroke: #d9e2ec } .box { fill: #f0f4f8; stroke: #627d98 }
.trunk { fill: #d7eafc; stroke: #3b7dbd } .speech { fill: #fdebd0; stroke: #c9822b }
.text { fill: #dff3e4; stroke: #3a8f55 } .mark { fill: #ece2f8; stroke: #8661b5 }
.end { fill: #e4e7eb; stroke: #9aa5b1 } .none { fill: none; stroke: #cbd2d9 }
.arrow { stroke: #52606d; stroke-width: 1.8; fill: none } .tip { fill: #52606d }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb } .soft { fill: #b8c4ce }
  .card { fill: #1c2128; stroke: #3e4c59 } .box { fill: #2b333d; stroke: #7b8794 }
  .trunk { fill: #1d3b58; stroke: #5fa3e0 } .speech { fill: #4d3719; stroke: #d9a05b }
  .text { fill: #1f4029; stroke: #63b57c } .mark { fill: #3a2c50; stroke: #a98ad4 }
  .end { fill: #353d47; stroke: #7b8794 } .none { stroke: #46525e }
  .arrow { stroke: #b8c4ce } .tip { fill: #b8c4ce }
}
"""


@dataclass
class Sheet:
    """A picture that is drawn from the top left, in pixels."""

    title: str
    width: int
    height: int
    shapes: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box", radius: int = 8) -> None:
        """Draw a rectangle in the colours of its kind, a class of `STYLE`."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.shapes.append(f'<rect {place} rx="{radius}" class="{kind}"/>')

    def write(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Write words whose line stands at `y`."""
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>')

    def label(self, x: float, y: float, width: float, lines: list[tuple[str, str]], height: float, kind: str) -> None:
        """Draw a box with centred lines, each of words and their kind."""
        self.box(x, y, width, height, kind)
        top = y + height / 2 - 10 * (len(lines) - 1) + 5
        for i, (words, style) in enumerate(lines):
            self.write(x + width / 2, top + 20 * i, words, style, "middle")

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw a line from point to point, with a tip at its end."""
        line = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        self.shapes.append(f'<path d="{line}" class="arrow" marker-end="url(#tip)"/>')

    def svg(self) -> str:
        """Return the picture as a file's text."""
        tip = (
            '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L10 5 L0 10 z" class="tip"/></marker>'
        )
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(self.title)}</title>'
        card = f'<rect x="1" y="1" width="{self.width - 2}" height="{self.height - 2}" rx="12" class="card"/>'
        return "\n".join([head, f"<style>{STYLE}</style>", f"<defs>{tip}</defs>", card, *self.shapes, "</svg>\n"])


CELL, LEFT, TOP = 46, 96, 166
STREAMS = {
    "text": "input pad pad pad eot answer two plus four is six eot pad pad",
    "audio 1": "input ~ ~ ~ eoa answer pad a1 b1 c1 d1 eoa pad pad",
    "audio 2": "input ~ ~ ~ eoa answer pad pad a2 b2 c2 d2 eoa pad",
    "audio 3": "input ~ ~ ~ eoa answer pad pad pad a3 b3 c3 d3 eoa",
}
"""The streams of a question and its answer: `~` a feature of the question, a1 the first codebook's code of frame a."""
PROMPT = 6
MARKS = {"input", "answer"}


def network() -> str:
    """Draw how a question becomes an answer, with the streams side by side."""
    sheet = Sheet("The network: a spoken question becomes text and speech", 770, 712)
    chain = [("question.wav", "", "speech"), ("encoder", "--encoder", "box"), ("adapter", "--adapter", "box")]
    for i, (name, flag, kind) in enumerate(chain):
        lines = [(name, "bold"), (flag, "small code soft")] if flag else [(name, "bold")]
        sheet.label(24 + 190 * i, 22, 150, lines, 60, kind)
        if i:
            sheet.arrow((190 * i - 14, 52), (22 + 190 * i, 52))
    sheet.write(576, 46, "features become", "small soft")
    sheet.write(576, 66, "positions of the prompt", "small soft")
    into = LEFT + 2.5 * CELL
    sheet.arrow((479, 84), (479, 112), (into, 112), (into, TOP + CELL - 2))
    _streams(sheet)
    below = TOP + 4 * CELL
    sheet.arrow((LEFT + 7 * CELL, below + 6), (LEFT + 7 * CELL, below + 60))
    sheet.write(LEFT + 7 * CELL + 16, below + 30, "a column is one position:", "small soft")
    sheet.write(LEFT + 7 * CELL + 16, below + 50, "the mean of its embeddings goes in", "small soft")
    backbone = [("backbone", "bold"), ("--llm", "small code soft")]
    sheet.label(24, below + 64, 722, backbone, 60, "trunk")
    _heads(sheet, below + 124)
    return sheet.svg()


def _streams(sheet: Sheet) -> None:
    for words, first in (("prompt", 0), ("answer, step by step", PROMPT)):
        sheet.write(LEFT + CELL * first + 4, TOP - 10, words, "soft small bold")
    for row, (stream, tokens) in enumerate(STREAMS.items()):
        y = TOP + CELL * row
        sheet.write(LEFT - 12, y + 28, stream, "small bold", "end")
        for column, token in enumerate(tokens.split()):
            sheet.box(LEFT + CELL * column + 2, y + 2, CELL - 4, CELL - 4, _kind(token, stream), 5)
            words = "" if token == "pad" else "♪" if token == "~" else token
            style = "small soft" if token in ("eot", "eoa") else "small"
            style += " bold" if token.startswith("a") and len(token) == 2 else ""
            if token in MARKS:
                words = {"input": "in", "answer": "go"}[token]
            sheet.write(LEFT + CELL * (column + 0.5), y + 28, words, style, "middle")


def _kind(token: str, stream: str) -> str:
    if token == "pad":
        return "none"
    if token in MARKS:
        return "mark"
    if token in ("eot", "eoa"):
        return "end"
    return "text" if stream == "text" else "speech"


def _heads(sheet: Sheet, top: float) -> None:
    heads = [(24, 140, "text head", "", "box"), (200, 150, "TTS adapter", "optional", "box"),
             (386, 160, "audio heads", "one per stream", "box")]  # fmt: skip
    for x, width, name, words, kind in heads:
        lines = [(name, "bold")] + ([(words, "small soft")] if words else [])
        sheet.label(x, top + 36, width, lines, 60, kind)
    for x in (94, 275):
        sheet.arrow((x, top + 2), (x, top + 34))
    sheet.arrow((352, top + 66), (384, top + 66))
    lower = top + 132
    sheet.label(24, lower, 140, [("two plus ..", "bold")], 60, "text")
    sheet.arrow((94, top + 98), (94, lower - 2))
    last = [(200, 150, "answer.wav", "", "speech"), (386, 160, "codec", "--codec", "box"),
            (582, 164, "pattern", "--pattern", "box")]  # fmt: skip
    for x, width, name, flag, kind in last:
        lines = [(name, "bold")] + ([(flag, "small code soft")] if flag else [])
        sheet.label(x, lower, width, lines, 60, kind)
    sheet.arrow((548, top + 66), (664, top + 66), (664, lower - 2))
    sheet.arrow((580, lower + 30), (548, lower + 30))
    sheet.arrow((384, lower + 30), (352, lower + 30))
    words = "the chosen tokens are the next column; the pattern undoes the delays"
    sheet.write(385, lower + 90, words, "small soft", "middle")


ROOMS = [
    [("recipes", "train and score a corpus"), ("egs", "mini system, own parts"), ("benchmarks", "speed and memory")],
    [("omnikit/cli.py", "the command omnikit"), ("omnikit/train", "fit, resume, validate"),
     ("omnikit/evaluate", "WER, judges, speed"), ("omnikit/bench", "omnikit bench"),
     ("omnikit/serve", "omnikit serve")],
    [("omnikit/offline", "many recordings at once"), ("omnikit/prepare", "corpora, codes, voices"),
     ("omnikit/data", "manifests, samples")],
    [("omnikit/api.py", "load, ask, stream"), ("omnikit/talk", "conversations"),
     ("omnikit/convert", "published checkpoints"), ("omnikit/checkpoint.py", "save and load")],
    [("omnikit/generate", "the running batch"), ("omnikit/engines", "compute decode steps"),
     ("omnikit/model.py", "the network"), ("omnikit/tasks.py", "prompts, labels")],
    [("omnikit/encoders", "--encoder"), ("omnikit/adapters.py", "--adapter"), ("omnikit/llms", "--llm"),
     ("omnikit/codecs", "--codec"), ("omnikit/patterns.py", "--pattern")],
    [("omnikit/interfaces.py", "contracts of parts"), ("omnikit/hparams", "YAML and flags"),
     ("omnikit/audio", "reads recordings"), ("omnikit/pretrained", "the mini system")],
    [("hparams", "a YAML file per part"), ("tests", "make test"), ("docs", "this site")],
]  # fmt: skip
"""Rows of rooms, each a path and what is in it; code imports from its own row and those below."""
KINDS = ["speech", "text", "text", "trunk", "trunk", "mark", "box", "end"]
ROW, GAP = 74, 10


def tree() -> str:
    """Draw the folders in rows."""
    sheet = Sheet("The tree: what is in which folder", 770, 40 + len(ROOMS) * ROW)
    for row, (rooms, kind) in enumerate(zip(ROOMS, KINDS, strict=True)):
        width = (730 + GAP) / len(rooms) - GAP
        for column, (path, words) in enumerate(rooms):
            x, y = 20 + column * (width + GAP), 20 + row * ROW
            name = path.removeprefix("omnikit/") + ("" if path.endswith(".py") else "/")
            lines = [(name, "bold"), (words, "small code soft" if words.startswith("--") else "small soft")]
            sheet.label(x, y, width, lines, ROW - 14, kind)
    words = "rows 2 to 7 are the package omnikit/; code imports from its own row and those below"
    sheet.write(385, 28 + len(ROOMS) * ROW, words, "small soft", "middle")
    return sheet.svg()


PICTURES = {"network.svg": network, "tree.svg": tree}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
