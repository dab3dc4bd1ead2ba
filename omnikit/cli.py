"""The `omnikit` command. Each command imports what it needs when it runs, so that `omnikit --help` is quick."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnikit import __version__
from omnikit.errors import bad_input_exits
from omnikit.old_names import pointer

if TYPE_CHECKING:
    from omnikit.api import Omni, Reply
    from omnikit.offline.batch_inference import Job
    from omnikit.strategies import Strategy as Strategies

app = typer.Typer(
    help="Speech in, text and speech out, from one network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PARTS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands that also take parts by name and their options."""
Sound = Annotated[
    str,
    typer.Argument(
        metavar="AUDIO", help="A sound file of at most 30 s (wav, flac, ogg, mp3 ..); or many: a folder, a manifest."
    ),
]
Words = Annotated[str, typer.Argument(metavar="TEXT")]
Texts = Annotated[
    str, typer.Argument(metavar="TEXT", help="What is said; or many: a manifest, a .txt file with a text in each line.")
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="DIR", help="A trained model; the small system of the package if not given.")
]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda ..")]
Engine = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Computes the steps: auto, torch, static, compiled, openvino (on CPUs, 8 bit)."
    ),
]
Strategy = Annotated[
    str | None, typer.Option(metavar="NAME", help="How one question is decoded, a name in hparams/strategy.")
]
MaxSteps = Annotated[int | None, typer.Option("--max_steps", metavar="N", help="Cut the answer after so many steps.")]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time_limit",
        metavar="SECONDS",
        help="Cut an answer after so many seconds, counted from the moment at which its question is encoded.",
    ),
]
Manifest = Annotated[str, typer.Argument(metavar="MANIFEST", help="A manifest: a file (docs/data.md) or a folder.")]
SaveFolder = Annotated[str, typer.Option("--save_folder", metavar="DIR", help="Where the shards go.")]
ShardSize = Annotated[int | None, typer.Option("--shard_size", metavar="N", help="Rows of a shard. [default: 2048]")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first thing that makes no row.")]


BatchSize = Annotated[int, typer.Option("--batch_size", help="Of many, how many are decoded together.")]
ANSWER, SPEECH = "answer.wav", "speech.wav"


def _output(one: str) -> typer.models.OptionInfo:
    words = f"{one}. Of many: the folder of results (results.jsonl, wavs); started again, it goes on (docs/batch.md)."
    return typer.Option("--output", "-o", metavar="FILE|DIR", help=words)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"omnikit {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(context_settings=PARTS)
def ask(
    context: typer.Context,
    audio: Sound,
    output: Annotated[str | None, _output(f"Where the speech goes; {ANSWER} if not given")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    strategy: Strategy = None,
    engine: Engine = "auto",
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
    batch_size: BatchSize = 16,
) -> None:
    """Answer a spoken question, or those of a folder or manifest, with text, as it grows, and speech. Parts by name
    instead of a checkpoint make an untrained system (--llm qwen2_0.5b --codec snac_24khz ..), each part with the
    weights that its file names, or with none of them (--pretrained false); --size tiny builds each part that can be
    with few layers."""
    import torch

    from omnikit.audio.io import check_target, save_audio

    settings, limits = _settings(context, checkpoint), _limits(max_steps, time_limit)
    about = {"strategy": strategy, "engine": engine, "parts": settings, "max_steps": max_steps}
    about["time_limit"] = time_limit
    job = _job("A1A2", audio, output, batch_size, checkpoint, about)
    output = ANSWER if output is None else output
    if job is None:
        check_target(output)
    omni = _open(settings, checkpoint, device, engine, strategy=_strategy(strategy))
    omni.decoding = dataclasses.replace(omni.decoding, **limits)
    if job is not None:
        return _run(job, omni)
    begin, first, wavs = time.perf_counter(), None, []
    for chunk in omni.stream(audio):
        typer.echo(chunk.text, nl=False)
        if first is None and len(chunk.wav):
            first = time.perf_counter() - begin
        wavs.append(chunk.wav)
    typer.echo()
    wav = torch.cat(wavs)
    save_audio(output, wav, omni.sample_rate)
    _report(output, len(wav) / omni.sample_rate, time.perf_counter() - begin, first, end=chunk.end)


@app.command()
def transcribe(
    audio: Sound,
    output: Annotated[str | None, _output("Of one recording the text is printed")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
    batch_size: BatchSize = 16,
) -> None:
    """Write what is said in a sound file, or in those of a folder or manifest."""
    limits, about = _limits(max_steps, time_limit), {"max_steps": max_steps, "time_limit": time_limit}
    job = _job("A1T1", audio, output, batch_size, checkpoint, {"engine": engine, **about})
    if job is None and output is not None:
        raise ValueError(f"--output {output}: the text of one recording is printed; give a folder or a manifest")
    omni = _load(checkpoint, device, engine, limits)
    if job is not None:
        return _run(job, omni)
    _print(omni.generate_text("A1T1", omni.spoken_question(audio)))


@app.command()
def speak(
    text: Texts,
    output: Annotated[str | None, _output(f"Where the speech goes; {SPEECH} if not given")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
    batch_size: BatchSize = 16,
) -> None:
    """Say a text, or those of a manifest or a text file."""
    from omnikit.audio.io import check_target, save_audio

    limits, about = _limits(max_steps, time_limit), {"max_steps": max_steps, "time_limit": time_limit}
    job = _job("T1A1", text, output, batch_size, checkpoint, {"engine": engine, **about})
    output = SPEECH if output is None else output
    if job is None:
        check_target(output)
    omni = _load(checkpoint, device, engine, limits)
    if job is not None:
        return _run(job, omni)
    begin = time.perf_counter()
    reply = omni.speak(text)
    save_audio(output, reply.wav, reply.sample_rate)
    _report(output, len(reply.wav) / reply.sample_rate, time.perf_counter() - begin, end=reply.end)


@app.command()
def chat(
    text: Words,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
) -> None:
    """Answer a written question in writing."""
    omni = _load(checkpoint, device, engine, _limits(max_steps, time_limit))
    _print(omni.generate_text("T1T2", omni.written_question(text)))


@app.command(context_settings=PARTS)
def bench(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    dtype: Annotated[
        str, typer.Option(help="In which all engines but openvino compute: float32, bfloat16, float16.")
    ] = "float32",
    seconds: Annotated[float, typer.Option(help="Of the question.")] = 3.0,
    threads: Annotated[int | None, typer.Option(help="Of the CPU. [default: torch's own number]")] = None,
    streams: Annotated[int, typer.Option(metavar="N", help="Answers that a step decodes at a time.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats and shorter answers.")] = False,
) -> None:
    """Time the pieces of an answer on this machine, each by itself: a table of the middle and the slow end (p50 / p95)
    of each, and how near a step comes to what the memory allows. Of a checkpoint, or of parts by name with random
    weights (--llm qwen2_0.5b --codec snac_24khz .., --size tiny). The question is noise."""
    import torch

    from omnikit.bench.measure import QUICK, BenchSizes, measure
    from omnikit.bench.table import table
    from omnikit.option_ranges import THREADS

    if threads is not None:
        THREADS.check("threads", threads)
        torch.set_num_threads(threads)
    settings = {"pretrained": False, **found} if (found := _settings(context, checkpoint)) else {}
    plan = dataclasses.replace(QUICK if quick else BenchSizes(), seconds=seconds, streams=streams)
    omni = _open(settings, checkpoint, device, engine, dtype=dtype)
    figures = measure(omni, plan)
    typer.echo(
        f"{device}, {torch.get_num_threads()} threads, a question of {seconds:g} s, {streams} at a time", err=True
    )
    typer.echo(table({omni.decoder.engine.name: figures}))


@app.command(context_settings=PARTS)
def info(context: typer.Context, checkpoint: Checkpoint = None) -> None:
    """Show the parts, sizes and ids of a model: of a checkpoint, or of parts by name and their options
    (--codec NAME, --llm.config.hidden_size 128 ..). Nothing is computed and no weights are read."""
    from omnikit.describe import describe_checkpoint, describe_parts

    settings = _settings(context, checkpoint)
    typer.echo(describe_parts(settings) if settings else describe_checkpoint(checkpoint))


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What it is: mini_omni.")],
    ckpt_dir: Annotated[str, typer.Argument(metavar="CKPT_DIR", help="The published folder, or its hub id.")],
    out_dir: Annotated[str, typer.Argument(metavar="OUT_DIR", help="The checkpoint to be written.")],
    codec: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder or hub id of the SNAC; none = text only. [default: the 24 kHz one]"),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="FILE", help="Whisper's .pt file or name. [default: small.pt of the folder]")
    ] = None,
) -> None:
    """Make an omnikit checkpoint of a published one."""
    if kind != "mini_omni":
        raise ValueError(f"KIND {kind}: cannot be converted (choices: mini_omni)")
    from omnikit.convert import mini_omni

    mini_omni.convert(ckpt_dir, out_dir, codec=mini_omni.SNAC_24KHZ if codec is None else codec, encoder=encoder)
    typer.echo(out_dir)


@app.command(name="tokenize", context_settings=PARTS)
def tokenize_manifest(
    context: typer.Context,
    manifest: Manifest,
    save_folder: SaveFolder,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="A trained model whose codec is used, in place of --codec.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="With --checkpoint: its encoder's features, too.")
    ] = False,
    fields: Annotated[
        str,
        typer.Option(metavar="a1,a2", help="Recordings that become codes. [default: a2, or a1 where there is none]"),
    ] = "",
    drop: Annotated[str, typer.Option(metavar="a1,a2", help="Recordings that are left out of the shards.")] = "",
    batch_seconds: Annotated[
        float | None, typer.Option("--batch_seconds", help="Of recordings that are encoded together. [default: 40]")
    ] = None,
    shard_size: ShardSize = None,
    strict: Strict = False,
    device: Device = "cpu",
) -> None:
    """Make codes of a manifest's recordings (--codec NAME, with its options: --codec.weights DIR ..) and features of
    the questions (--encoder NAME ..), as Parquet shards that are a manifest again. A run that was killed goes on when
    it is started again; under torchrun each process makes its share."""
    from omnikit.prepare.tokenize import read_parts, tokenize

    parts = read_parts(_settings(context, checkpoint), checkpoint, features=features, device=device)
    options = {**_given(batch_seconds=batch_seconds, shard_size=shard_size), "strict": strict}
    typer.echo(tokenize(manifest, save_folder, parts, fields=_names(fields), drop=_names(drop), **options))


@app.command(name="synthesize")
def synthesize_manifest(
    manifest: Manifest,
    save_folder: SaveFolder,
    voice: Annotated[
        str, typer.Option(metavar="NAME", help="espeak, checkpoint, or package.module.Class of a voice of your own.")
    ] = "espeak",
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="Of the voice `checkpoint`; the small system if not given.")
    ] = None,
    fields: Annotated[str, typer.Option(metavar="a1,a2", help="Recordings that are made where one lacks.")] = "a1,a2",
    audio: Annotated[str, typer.Option(metavar="KIND", help="Where they go: embedded, files (flac).")] = "embedded",
    shard_size: ShardSize = None,
    strict: Strict = False,
    device: Annotated[str | None, typer.Option(help="Where the checkpoint runs: cpu, cuda ..")] = None,
) -> None:
    """Give the texts of a manifest a voice where they have no recording, as Parquet shards that are a manifest again:
    one voice for answers, for questions as many as there are. Resumes and is shared out as `tokenize`."""
    from omnikit.prepare.synthesize import synthesize
    from omnikit.prepare.voices import open_voice

    speaker = open_voice(voice, **_given(checkpoint=checkpoint, device=device))
    options = {**_given(shard_size=shard_size), "audio": audio, "strict": strict}
    typer.echo(synthesize(manifest, save_folder, speaker, voice_name=voice, fields=_names(fields), **options))


def main() -> None:
    """Run the command; what the user got wrong is told in one line, with exit status 2."""
    with bad_input_exits():
        try:
            status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        except typer.Abort:  # of Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # what Typer says of its own: a missing argument ..
                raise
            unknown = str(getattr(error, "option_name", "")).lstrip("-")
            raise ValueError(error.format_message() + pointer(unknown)) from None
    raise SystemExit(status)


def _job(
    task: str, word: str, output: str | None, batch_size: int, checkpoint: str | None, about: dict[str, Any]
) -> Job | None:
    """What is to be done with many recordings or texts; None where the word is or names a single one."""
    from omnikit.offline.single_or_many import holds_many
    from omnikit.option_ranges import COUNT

    COUNT.check("batch_size", batch_size)
    if not holds_many(word, task):
        return None
    from omnikit.offline.batch_inference import Job, checkpoint_stamp

    if output is None:
        raise ValueError(f"{word}: holds many; --output is missing, the folder that takes the results")
    return Job(task, word, output, batch_size=batch_size, about={**checkpoint_stamp(checkpoint), **about})


def _run(job: Job, omni: Omni) -> None:
    counts = job.run(omni)
    typer.echo(f"{job.results}: {counts}", err=True)


def _limits(max_steps: int | None, time_limit: float | None) -> dict[str, Any]:
    """Options of `Decoding`, refused before anything is loaded."""
    from omnikit.generate import Decoding

    limits = _given(max_steps=max_steps, time_limit=time_limit)
    Decoding(**limits)
    return limits


def _load(checkpoint: str | None, device: str, engine: str, limits: dict[str, Any]) -> Omni:
    omni = _open({}, checkpoint, device, engine)
    omni.decoding = dataclasses.replace(omni.decoding, **limits)
    return omni


def _open(
    settings: dict[str, Any],
    checkpoint: str | None,
    device: str,
    engine: str,
    *,
    strategy: Strategies | None = None,
    dtype: str = "float32",
) -> Omni:
    """A system of parts by name, if there are any, or of a checkpoint."""
    from omnikit.api import Omni, build, dtype_named, load
    from omnikit.engines import OF_TORCH, check_engine, open_engine
    from omnikit.torchrun import own_device

    device = own_device(device)
    if not settings:
        return load(checkpoint, device=device, strategy=strategy, engine=engine, dtype=dtype)
    check_engine(engine)
    if engine not in OF_TORCH:
        raise ValueError(f"--engine {engine}: wants a --checkpoint; it keeps what it makes of the weights")
    as_type = dtype_named(dtype)
    model = build(**{"pretrained": True, **settings}).to(device).to_dtype(as_type)
    return Omni(model, strategy=strategy, engine=open_engine(engine, model))


def _strategy(name: str | None) -> Strategies | None:
    from omnikit.hparams import build_part

    return None if name is None else build_part("strategy", name)


def _settings(context: typer.Context, checkpoint: str | None) -> dict[str, Any]:
    """Parts by name and their options, from what else stands on the command line."""
    from omnikit.hparams import read_settings

    settings = read_settings(context.args)
    if settings and checkpoint is not None:
        from omnikit.describe import parts_of

        flag, value = next(iter(settings.items()))
        kind = flag.partition(".")[0]
        parts = parts_of(checkpoint)
        has = f" (its {kind} is {parts[kind]})" if kind in parts else ""
        raise ValueError(
            f"--{flag} {value}: the parts of checkpoint {checkpoint} are fixed{has}; "
            "give parts or --checkpoint, not both"
        )
    return settings


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _names(text: str) -> tuple[str, ...]:
    """`a1,a2` -> both."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print(written: Reply) -> None:
    typer.echo(written.text)
    if words := _cut_words(written.end):
        typer.echo(words, err=True)


def _cut_words(end: str) -> str:
    """What cut an answer; nothing where it ended of itself."""
    from omnikit.generate import END

    return "" if end == END else f"the answer was cut: {end}"


def _report(output: str, seconds: float, took: float, first: float | None = None, *, end: str) -> None:
    words = [f"{Path(output)}: {seconds:.2f} s of speech in {took:.2f} s"]
    if first is not None:
        words.append(f"the first of it after {first:.2f} s")
    if seconds:
        words.append(f"real-time factor {took / seconds:.2f}")
    if cut := _cut_words(end):
        words.append(cut)
    typer.echo(", ".join(words), err=True)


if __name__ == "__main__":
    main()
