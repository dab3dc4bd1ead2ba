"""Renders evaluation results of the mini system as HTML fragments for its report."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from torch import Tensor

Json = dict
NO_BREAK = "\u2011"
"""A non-breaking hyphen, which keeps the names of splits on one line."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "figures") -> str:
    """Return an HTML table, whose cells are HTML themselves.

    Args:
        kind: CSS class: `figures` aligns all columns but the first to the right, `named` all but two, `mixed` none.
    """
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def not_run(why: str) -> str:
    """Return an HTML paragraph that takes the place of a missing result and gives the reason."""
    return f'<p class="missing">Not run: {html.escape(why)}.</p>'


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def sound_facts(wav: Tensor, sample_rate: int, seconds_taken: float) -> str:
    """Return a sentence about the length, level and generation time of an answer's waveform [N]."""
    if not len(wav):
        return "The answer has no sound."
    seconds, peak = len(wav) / sample_rate, float(wav.abs().max())
    level = 20 * math.log10(max(1e-9, float(wav.square().mean().sqrt())))
    clipped = 100 * float((wav.abs() > 0.999).float().mean())
    return (
        f"{seconds:.2f} s of sound, peak {peak:.2f}, level {level:.0f} dB, {clipped:.2f} % of samples clipped; "
        f"generated in {seconds_taken:.2f} s, {seconds_taken / seconds:.2f} of its length."
    )


def tiles(asr: Json | None, qa: Json | None, tts: Json | None, dialogs: Json | None = None) -> str:
    """Return HTML tiles with the most important figures among the results that exist."""
    found = []
    for split in ("test-clean", "test-other"):
        for group, words in (("template sentences", "sentences"), ("random word strings", "random words")):
            if rate := _group(asr, split, group):
                found.append((f"{rate['wer']:.1f} %", f"word errors, {words} of {split.replace('-', NO_BREAK)}"))
    for split, words in (("test_seen", "known voices"), ("test_unseen", "new voices")):
        ways = (qa or {}).get("splits", {}).get(split, {})
        if "text" in ways:
            found.append((f"{ways['text']['percent']:.1f} %", f"questions right, {words}"))
    for split, words in (("dialogs_test_seen", "known voices"), ("dialogs_test_unseen", "new voices")):
        for way in (dialogs or {}).get("splits", {}).get(split, {}).values():
            found.append((f"{percent(way['follow_ups']['history']['percent'])} %", f"follow-ups right, {words}"))
    for way in (dialogs or {}).get("splits", {}).get("dialogs_test_crop", {}).values():
        right = percent(way["follow_ups"]["cropped"]["percent"])
        found.append((f"{right} %", "follow-ups right, interrupted answers"))
    spoken = (tts or {}).get("intelligibility", {}).get("the system, from text")
    if spoken:
        found.append((f"{spoken['wer']:.1f} %", "word errors of a judge, speech from text"))
    fastest = [s["real_time_factor"] for s in (qa or {}).get("speed", {}).values() if s]
    if fastest:
        found.append((f"{min(fastest):.2f}", "real-time factor, spoken answers"))
    if not found:
        return not_run("no evaluation")
    cells = [f'<div class="tile"><b>{value}</b><span>{html.escape(words)}</span></div>' for value, words in found]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _group(asr: Json | None, split: str, group: str) -> Json | None:
    return (asr or {}).get("splits", {}).get(split, {}).get("groups", {}).get(group)


def recognition(asr: Json | None) -> str:
    """Return an HTML table of word and character error rates by split and group."""
    if asr is None:
        return not_run("speech recognition was not evaluated")
    rows = []
    for split, result in asr["splits"].items():
        for name, r in result["groups"].items():
            group = f'<span class="sub">{html.escape(name)}</span>'
            label = f"<b>{html.escape(split)}</b>" if name == "all" else group
            errors = f"{r['insertions']} / {r['deletions']} / {r['substitutions']}"
            row = [label, str(r["utterances"]), percent(r["wer"]), percent(r["cer"]), errors]
            rows.append([*row, percent(r["exact"])])
    header = ["Split", "Utterances", "WER %", "CER %", "ins / del / sub", "Without an error %"]
    return table(header, rows)


def questions(qa: Json | None) -> str:
    """Return an HTML table of the share of correct answers by split, answer mode and kind of question."""
    if qa is None:
        return not_run("question answering was not evaluated")
    kinds = sorted({kind for ways in qa["splits"].values() for way in ways.values() for kind in way["kinds"]})
    rows = []
    for split, ways in qa["splits"].items():
        for i, (name, way) in enumerate(ways.items()):
            label = f"<b>{html.escape(split)}</b>" if i == 0 else ""
            shares = [percent(way["kinds"].get(kind, {}).get("percent")) for kind in kinds]
            figures = [str(way["asked"]), percent(way["percent"]), percent(way["truncated_percent"])]
            rows.append([label, _spaced(name), *figures, *shares])
    return table(["Split", "Answered as", "Asked", "Right %", "Truncated %", *kinds], rows, "named")


def dialogs(scores: Json | None) -> str:
    """Return an HTML table of the share of right answers in conversations by split, answer mode and kind of question.
    """
    if scores is None:
        return not_run("conversations were not evaluated")
    rows = []
    for split, ways in scores["splits"].items():
        for name, way in ways.items():
            title = f"<b>{html.escape(split)}</b>, {_spaced(name)}"
            rows.append([title, "all follow-ups", *_shares(way["follow_ups"])])
            rows += [["", html.escape(kind), *_shares(shares)] for kind, shares in way["kinds"].items()]
    header = ["Split", "Questions", "Asked", *(f"{title} %" for title in SHARES.values())]
    return table(header, rows, "named")


SHARES = {
    "history": "Right", "alone": "Alone", "frequent_of_text": "Most frequent in training",
    "cropped": "After an interruption (n)",
}  # fmt: skip
"""Titles of the columns with shares of right answers in conversations, by their names in the scores."""


def _shares(scores: Json) -> list[str]:
    figures = {name: percent(scores[name]["percent"]) for name in SHARES}
    figures["cropped"] += f" ({scores['cropped']['asked']})" if scores["cropped"]["asked"] else ""
    return [str(scores["history"]["asked"]), *figures.values()]


def intelligibility(qa: Json | None, tts: Json | None) -> str:
    """Return HTML tables of the judge's word error rates on synthesized texts and on spoken answers."""
    parts = []
    for title, result in (("Speech from text", tts), ("Spoken answers", qa)):
        rates = (result or {}).get("intelligibility") or {}
        rows = [[html.escape(n), bar(r["wer"]), percent(r["wer"]), str(r["utterances"])] for n, r in rates.items()]
        header = [title, "", "WER %", "Utterances"]
        parts.append(table(header, rows, "named") if rows else not_run(f"{title.lower()}: not judged"))
        if result is not None and "truncated_percent" in result:
            parts.append(f'<p class="note">{percent(result["truncated_percent"])} % of the texts were truncated.</p>')
    return "\n".join(parts)


def speed(qa: Json | None, tts: Json | None) -> str:
    """Return an HTML table of the speed of spoken answers and of synthesis: real-time factors and latencies."""
    measured = {way: s for result in (qa, tts) for way, s in ((result or {}).get("speed") or {}).items() if s}
    if not measured:
        return not_run("speed was not measured")
    spreads = {"real_time_factor": "p50 / p95", "first_text": "First text, s", "first_audio": "First sound, s"}
    rows = [
        [_spaced(way), str(s["questions"]), str(s["threads"]), f"{s['real_time_factor']:.2f}",
         *(f"{s[f'median_{name}']:.2f} / {s[f'p95_{name}']:.2f}" for name in spreads)]
        for way, s in measured.items()
    ]  # fmt: skip
    return table(["Speech", "Given", "Threads", "Real-time factor", *spreads.values()], rows)


def bar(value: float) -> str:
    """Return a percentage as an HTML bar."""
    return f'<span class="bar"><i style="width:{min(100.0, value):.1f}%"></i></span>'


def _spaced(name: str) -> str:
    return html.escape(name.replace("_", " "))
