"""The `omnikit` command line; each command imports what it needs when it runs, so that `omnikit --help` is quick."""

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

# Typer reads [..] in help texts as markup, and keeps the line breaks of all paragraphs of a docstring but the first.
# Defaults of other modules are repeated here, since importing these would make `--help` slow; a test compares them.
app = typer.Typer(
    help="Speech in, text and speech out, from one network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PARTS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Typer settings for commands that also take parts by name and options of parts, such as `--codec mimi`."""
Sound = Annotated[
    str,
    typer.Argument(
        metavar="AUDIO", help="Sound file of at most 30 s (wav, flac, ogg, mp3 ..), or a folder or manifest of many."
    ),
]
Words = Annotated[str, typer.Argument(metavar="TEXT", help="Written question.")]
Texts = Annotated[
    str, typer.Argument(metavar="TEXT", help="Text to speak, or a manifest or .txt file (one text per line) of many.")
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="DIR", help="Checkpoint folder, shipped name or hub id. (default: mini)")
]
Device = Annotated[str, typer.Option(help="Device to run on: cpu, cuda ..")]
Engine = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Implementation of the decode steps: auto, torch, static, compiled, openvino (8-bit weights, CPU only).",
    ),
]
Strategy = Annotated[
    str | None, typer.Option(metavar="NAME", help="Decoding strategy, a name in hparams/strategy. (default: parallel)")
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        "--encoder.weights",
        metavar="FILE",
        help="Weights of an encoder that the checkpoint only names. (default: looked for in $OMNIKIT_WEIGHTS)",
    ),
]
MaxSteps = Annotated[
    int | None, typer.Option("--max_steps", metavar="N", help="Truncate an answer after N steps. (default: 1024)")
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time_limit",
        metavar="SECONDS",
        help="Truncate an answer after this many seconds, counted from the start of encoding. (default: no limit)",
    ),
]
Manifest = Annotated[str, typer.Argument(metavar="MANIFEST", help="Manifest file (docs/data.md) or folder of shards.")]
SaveFolder = Annotated[str, typer.Option("--save_folder", metavar="DIR", help="Folder that the shards are written to.")]
ShardSize = Annotated[
    int | None,
    typer.Option("--shard_size", metavar="N", help="Minimum number of manifest entries in a shard. (default: 2048)"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unusable entry instead of skipping it.")]
BatchSize = Annotated[int, typer.Option("--batch_size", help="Batch size for a folder or a manifest.")]
ANSWER, SPEECH = "answer.wav", "speech.wav"


def _output(one: str) -> typer.models.OptionInfo:
    words = f"{one}. For a folder or manifest: folder of the results (results.jsonl, wavs), resumable (docs/batch.md)."
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
    """Accept the options that stand before the name of a command, such as `--version`."""


@app.command(context_settings=PARTS)
def ask(
    context: typer.Context,
    audio: Sound,
    output: Annotated[str | None, _output(f"File that the speech is written to, {ANSWER} by default")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    strategy: Strategy = None,
    engine: Engine = "auto",
    encoder_weights: EncoderWeights = None,
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
    batch_size: BatchSize = 16,
) -> None:
    """Answer a spoken question, or those of a folder or a manifest, with text and speech.

    The text is printed while it is decoded. Parts by name instead of a
    checkpoint build an untrained system (--llm qwen2_0.5b --codec snac_24khz
    ..): each part reads the weights that its part file names, or none with
    --pretrained false. --size tiny builds each part that supports it with few
    layers.
    """
    import torch

    from omnikit.audio.io import check_target, save_audio

    settings, limits = _settings(context, checkpoint, encoder_weights), _limits(max_steps, time_limit)
    about = {"strategy": strategy, "engine": engine, "parts": settings, "max_steps": max_steps}
    about["time_limit"] = time_limit
    job = _job("A1A2", audio, output, batch_size, checkpoint, about)
    output = ANSWER if output is None else output
    if job is None:
        check_target(output)
    omni = _open(settings, checkpoint, device, engine, encoder_weights, strategy=_strategy(strategy))
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
    output: Annotated[str | None, _output("Not allowed for a single recording, whose transcript is printed")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    encoder_weights: EncoderWeights = None,
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
    batch_size: BatchSize = 16,
) -> None:
    """Print the transcript of a sound file, or write those of a folder or a manifest."""
    limits, about = _limits(max_steps, time_limit), {"max_steps": max_steps, "time_limit": time_limit}
    job = _job("A1T1", audio, output, batch_size, checkpoint, {"engine": engine, **about})
    if job is None and output is not None:
        raise ValueError(f"--output {output}: the text of one recording is printed; give a folder or a manifest")
    omni = _load(checkpoint, device, engine, limits, encoder_weights)
    if job is not None:
        return _run(job, omni)
    _print(omni.generate_text("A1T1", omni.spoken_question(audio)))


@app.command()
def speak(
    text: Texts,
    output: Annotated[str | None, _output(f"File that the speech is written to, {SPEECH} by default")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    encoder_weights: EncoderWeights = None,
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
    batch_size: BatchSize = 16,
) -> None:
    """Synthesise speech that utters a text, or those of a manifest or a text file."""
    from omnikit.audio.io import check_target, save_audio

    limits, about = _limits(max_steps, time_limit), {"max_steps": max_steps, "time_limit": time_limit}
    job = _job("T1A1", text, output, batch_size, checkpoint, {"engine": engine, **about})
    output = SPEECH if output is None else output
    if job is None:
        check_target(output)
    omni = _load(checkpoint, device, engine, limits, encoder_weights)
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
    encoder_weights: EncoderWeights = None,
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
) -> None:
    """Answer a written question with text."""
    omni = _load(checkpoint, device, engine, _limits(max_steps, time_limit), encoder_weights)
    _print(omni.generate_text("T1T2", omni.written_question(text)))


@app.command(name="talk")
def talk_in_terminal(
    checkpoint: Checkpoint = None,
    save_folder: Annotated[
        str | None,
        typer.Option(
            "--save_folder", metavar="DIR", help="Folder for the answers, turn-01.wav ... (default: not stored)"
        ),
    ] = None,
    play: Annotated[
        str,
        typer.Option(metavar="WHEN", help="auto: play answers if there is a player (docs/conversations.md); never."),
    ] = "auto",
    device: Device = "cpu",
    strategy: Strategy = None,
    engine: Engine = "auto",
    encoder_weights: EncoderWeights = None,
    max_steps: MaxSteps = None,
    time_limit: TimeLimit = None,
) -> None:
    """Hold a conversation in the terminal, whose answers depend on the turns before.

    A line is a written question, the path of a sound file a spoken one; /help
    lists the commands. Answers are spoken and written. Lines of a pipe are
    answered one after another.
    """
    from omnikit.talk.players import find_player
    from omnikit.talk.session import Session

    player, limits = find_player(play), _limits(max_steps, time_limit)
    omni = _open({}, checkpoint, device, engine, encoder_weights, strategy=_strategy(strategy))
    omni.decoding = dataclasses.replace(omni.decoding, **limits)
    Session(omni.conversation(), player=player, save_folder=save_folder).run(sys.stdin)


@app.command(name="serve")
def serve_clients(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR",
            help="Checkpoint folder or hub id, and the name that clients send as model; may be given several times. "
            "(default: the package's small system, as mini)",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 = all. (default: 127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port to listen on; 0 = a free one. (default: 8000)")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            envvar="OMNIKIT_TOKEN",
            help="Bearer token that clients must send. Other users of the machine can read a command line (ps), so set "
            "the environment variable instead. (default: none)",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without a token: anybody may use the server.")
    ] = False,
    ssl_certfile: Annotated[
        str | None,
        typer.Option("--ssl_certfile", "--ssl-certfile", metavar="FILE", help="Certificate (PEM), to serve https."),
    ] = None,
    ssl_keyfile: Annotated[
        str | None,
        typer.Option("--ssl_keyfile", "--ssl-keyfile", metavar="FILE", help="Key of the certificate (PEM)."),
    ] = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    dtype: Annotated[
        str, typer.Option(help="Type in which all engines but openvino compute: float32, bfloat16, float16.")
    ] = "float32",
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="Answers that are decoded together. (default: 16)")
    ] = None,
    encoder_weights: EncoderWeights = None,
    max_steps: MaxSteps = None,
    max_waiting: Annotated[
        int | None,
        typer.Option("--max_waiting", metavar="N", help="Questions that may wait for a slot. (default: 64)"),
    ] = None,
    wait_seconds: Annotated[
        float | None,
        typer.Option("--wait_seconds", metavar="SECONDS", help="Time that a question may wait for it. (default: 30)"),
    ] = None,
    max_sessions: Annotated[
        int | None, typer.Option("--max_sessions", metavar="N", help="Open Realtime sessions. (default: 64)")
    ] = None,
    max_sessions_per_client: Annotated[
        int | None,
        typer.Option(
            "--max_sessions_per_client", metavar="N", help="Open Realtime sessions of one address. (default: 16)"
        ),
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option("--max_requests", metavar="N", help="HTTP requests at the same time. (default: 128)"),
    ] = None,
    max_requests_per_client: Annotated[
        int | None,
        typer.Option(
            "--max_requests_per_client",
            metavar="N",
            help="HTTP requests of one address at the same time. (default: 64)",
        ),
    ] = None,
    max_items: Annotated[
        int | None,
        typer.Option("--max_items", metavar="N", help="Items in the conversation of a session. (default: 512)"),
    ] = None,
    max_audio_seconds: Annotated[
        float | None,
        typer.Option(
            "--max_audio_seconds",
            metavar="SECONDS",
            help="Length of a spoken question; less if a system's encoder takes less. (default: 30)",
        ),
    ] = None,
    max_body_mib: Annotated[
        float | None,
        typer.Option("--max_body_mib", metavar="MIB", help="Size of a body and of a WebSocket frame. (default: 25)"),
    ] = None,
    request_seconds: Annotated[
        float | None,
        typer.Option("--request_seconds", metavar="SECONDS", help="Time spent on one answer. (default: 120)"),
    ] = None,
    session_minutes: Annotated[
        float | None,
        typer.Option("--session_minutes", metavar="MINUTES", help="Length of a Realtime session. (default: 60)"),
    ] = None,
    idle_seconds: Annotated[
        float | None,
        typer.Option(
            "--idle_seconds", metavar="SECONDS", help="Time after which a silent session is closed. (default: 300)"
        ),
    ] = None,
    send_buffer_seconds: Annotated[
        float | None,
        typer.Option(
            "--send_buffer_seconds",
            metavar="SECONDS",
            help="Time after which a client that does not read its answer is dropped. (default: 30)",
        ),
    ] = None,
    interrupt_min_ms: Annotated[
        float | None,
        typer.Option(
            "--interrupt_min_ms", metavar="MS", help="Speech over an answer that interrupts it. (default: 400)"
        ),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            "--drain_seconds", metavar="SECONDS", help="Time for running answers after SIGTERM. (default: 30)"
        ),
    ] = None,
    allowed_hosts: Annotated[
        str, typer.Option("--allowed_hosts", metavar="A,B", help="Further names of this server in the header Host.")
    ] = "",
    allowed_origins: Annotated[
        str,
        typer.Option(
            "--allowed_origins", metavar="A,B", help="Origins of other pages that may call it, such as https://a.org."
        ),
    ] = "",
) -> None:
    """Serve systems to clients of OpenAI's Realtime protocol and REST calls, and a page with a microphone.

    Its address is printed when it is ready. The first SIGTERM or Ctrl-C lets
    running answers finish, the second ends them. docs/serve.md has examples.
    """
    from omnikit.serve import check_packages

    check_packages()
    from omnikit.serve.run import SystemOptions, run
    from omnikit.serve.settings import ServerSettings
    from omnikit.torchrun import own_device

    given = _without_none(
        host=host, port=port, token=token, ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile,
        max_waiting=max_waiting, wait_seconds=wait_seconds, max_sessions=max_sessions,
        max_sessions_per_client=max_sessions_per_client, max_requests=max_requests,
        max_requests_per_client=max_requests_per_client, max_items=max_items, max_audio_seconds=max_audio_seconds,
        max_body_mib=max_body_mib, request_seconds=request_seconds, session_minutes=session_minutes,
        idle_seconds=idle_seconds, send_buffer_seconds=send_buffer_seconds, interrupt_min_ms=interrupt_min_ms,
        drain_seconds=drain_seconds,
    )  # fmt: skip
    allowed = {"allowed_hosts": _names(allowed_hosts), "allowed_origins": _names(allowed_origins)}
    settings = ServerSettings(insecure=insecure, **allowed, **given)
    options = SystemOptions(own_device(device), engine, dtype, slots, max_steps, _without_none(encoder=encoder_weights))
    run(checkpoint or [], settings, options)


@app.command(context_settings=PARTS)
def bench(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    engine: Engine = "auto",
    encoder_weights: EncoderWeights = None,
    dtype: Annotated[
        str, typer.Option(help="Type in which all engines but openvino compute: float32, bfloat16, float16.")
    ] = "float32",
    seconds: Annotated[float, typer.Option(help="Length of the question in seconds.")] = 3.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads. (default: torch's own number)")] = None,
    streams: Annotated[int, typer.Option(metavar="N", help="Answers that are decoded together.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Measure fewer repeats and shorter answers.")] = False,
) -> None:
    """Time each component of an answer on this machine, with noise as the question.

    Print a table of the median and the 95th percentile (p50 / p95) of each
    component, and how near a decode step comes to the speed of the memory. A
    checkpoint is measured, or parts by name with random weights (--llm
    qwen2_0.5b --codec snac_24khz .., --size tiny).
    """
    import torch

    from omnikit.bench.measure import QUICK, BenchSizes, measure
    from omnikit.bench.table import table
    from omnikit.option_ranges import THREADS

    if threads is not None:
        THREADS.check("threads", threads)
        torch.set_num_threads(threads)
    settings = {"pretrained": False, **found} if (found := _settings(context, checkpoint, encoder_weights)) else {}
    plan = dataclasses.replace(QUICK if quick else BenchSizes(), seconds=seconds, streams=streams)
    omni = _open(settings, checkpoint, device, engine, encoder_weights, dtype=dtype)
    figures = measure(omni, plan)
    typer.echo(
        f"{device}, {torch.get_num_threads()} threads, a question of {seconds:g} s, {streams} at a time", err=True
    )
    typer.echo(table({omni.decoder.engine.name: figures}))


@app.command(context_settings=PARTS)
def info(context: typer.Context, checkpoint: Checkpoint = None) -> None:
    """Show the parts, sizes and ids of a model: of a checkpoint, or of parts by name and their options.

    Example: --codec NAME --llm.config.hidden_size 128. Nothing is computed and
    no weights are read.
    """
    from omnikit.describe import describe_checkpoint, describe_parts

    settings = _settings(context, checkpoint)
    typer.echo(describe_parts(settings) if settings else describe_checkpoint(checkpoint))


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Kind of the published model: mini_omni.")],
    ckpt_dir: Annotated[str, typer.Argument(metavar="CKPT_DIR", help="Folder of the published model, or its hub id.")],
    out_dir: Annotated[str, typer.Argument(metavar="OUT_DIR", help="Folder that the checkpoint is written to.")],
    codec: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="SNAC's folder or hub id; none = text only. (default: SNAC at 24 kHz)"),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="FILE", help="Whisper's .pt file or name. (default: CKPT_DIR's small.pt)")
    ] = None,
) -> None:
    """Convert a published model to an omnikit checkpoint."""
    if kind != "mini_omni":
        raise ValueError(f"KIND {kind}: cannot be converted (choices: mini_omni)")
    from omnikit.convert import mini_omni

    mini_omni.convert(ckpt_dir, out_dir, codec=mini_omni.SNAC_24KHZ if codec is None else codec, encoder=encoder)
    typer.echo(out_dir)


@app.command()
def average(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="DIR DIR ..", help="Checkpoint folders, shipped names or hub ids.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder of the new checkpoint.")],
) -> None:
    """Average the weights of checkpoints that have the same parts, such as several of one training.

    The result often generalizes better than each of them (arXiv 1803.05407).
    """
    from omnikit import checkpoint

    checkpoint.average(checkpoints, output)
    typer.echo(output)


@app.command(name="recipe")
def write_finetuning_recipe(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder that train.py and train.yaml are written to.")],
    checkpoint: Checkpoint = None,
    lora_rank: Annotated[
        int, typer.Option("--lora_rank", metavar="N", help="Rank of LoRA; 0 = train the whole backbone.")
    ] = 8,
) -> None:
    """Write the recipe that fine-tunes a checkpoint on your own data (docs/train.md).

    It is run by: python DIR/train.py DIR/train.yaml --data_folder DIR
    """
    from omnikit.finetune import write_recipe

    for path in write_recipe(folder, checkpoint, lora_rank):
        typer.echo(path)


@app.command(name="tokenize", context_settings=PARTS)
def tokenize_manifest(
    context: typer.Context,
    manifest: Manifest,
    save_folder: SaveFolder,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="Checkpoint whose codec is used instead of --codec.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="With --checkpoint: also compute its encoder's features.")
    ] = False,
    fields: Annotated[
        str,
        typer.Option(metavar="a1,a2", help="Recordings to compute codes of. (default: a2, or a1 where it is missing)"),
    ] = "",
    drop: Annotated[str, typer.Option(metavar="a1,a2", help="Recordings to omit. (default: none)")] = "",
    copies: Annotated[
        int | None, typer.Option(metavar="N", help="Also write N augmented copies of each entry. (default: none)")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(metavar="NAME", help="How copies sound: rooms, telephone, or a file .yaml.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the copies.")] = 0,
    batch_seconds: Annotated[
        float | None, typer.Option("--batch_seconds", help="Seconds of audio encoded together. (default: 40)")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Precision of the encoder: fp32, bf16. (default: fp32)")
    ] = None,
    shard_size: ShardSize = None,
    strict: Strict = False,
    device: Device = "cpu",
) -> None:
    """Compute codes and features of a manifest's recordings, as Parquet shards that are a manifest again.

    Codes: --codec NAME with its options (--codec.weights DIR ..); features of
    the questions: --encoder NAME, and with --copies also those of recordings as
    they may sound elsewhere. A run that was killed resumes when it is started
    again; under torchrun each process computes its share.
    """
    from omnikit.prepare.copies import read_copies
    from omnikit.prepare.tokenize import read_parts, tokenize

    made = read_copies(copies, augment, seed)
    parts = read_parts(_settings(context, checkpoint), checkpoint, features=features, device=device)
    given = _without_none(batch_seconds=batch_seconds, precision=precision, shard_size=shard_size)
    options = {**given, "strict": strict, "copies": made}
    typer.echo(tokenize(manifest, save_folder, parts, fields=_names(fields), drop=_names(drop), **options))


@app.command(name="synthesize")
def synthesize_manifest(
    manifest: Manifest,
    save_folder: SaveFolder,
    voice: Annotated[
        str, typer.Option(metavar="NAME", help="Voice: espeak, checkpoint, or package.module.Class of your own.")
    ] = "espeak",
    checkpoint: Annotated[
        str | None, typer.Option(metavar="DIR", help="Checkpoint of the voice `checkpoint`. (default: mini)")
    ] = None,
    fields: Annotated[str, typer.Option(metavar="a1,a2", help="Recordings to synthesise where missing.")] = "a1,a2",
    audio: Annotated[
        str, typer.Option(metavar="KIND", help="How recordings are stored: embedded, files (flac).")
    ] = "embedded",
    shard_size: ShardSize = None,
    strict: Strict = False,
    device: Annotated[str | None, typer.Option(help="Device of the checkpoint: cpu, cuda .. (default: cpu)")] = None,
) -> None:
    """Synthesise the missing recordings of a manifest's texts, as Parquet shards that are a manifest again.

    All answers get one voice, questions as many as there are. A killed run
    resumes; under torchrun each process synthesises its share.
    """
    from omnikit.prepare.synthesize import synthesize
    from omnikit.prepare.voices import open_voice

    speaker = open_voice(voice, **_without_none(checkpoint=checkpoint, device=device))
    options = {**_without_none(shard_size=shard_size), "audio": audio, "strict": strict}
    typer.echo(synthesize(manifest, save_folder, speaker, voice_name=voice, fields=_names(fields), **options))


def main() -> None:
    """Run the `omnikit` command; an error of the user is printed in one line, with exit status 2."""
    with bad_input_exits():
        try:
            status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        except typer.Abort:  # raised on Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # which Typer's own errors have, such as a missing argument
                raise
            unknown = str(getattr(error, "option_name", "")).lstrip("-")
            raise ValueError(error.format_message() + pointer(unknown)) from None
    raise SystemExit(status)


def _job(
    task: str, word: str, output: str | None, batch_size: int, checkpoint: str | None, about: dict[str, Any]
) -> Job | None:
    """Return the batch job over a folder, manifest or text file; None if the command line has one question or text."""
    from omnikit.offline.single_or_many import holds_many
    from omnikit.option_ranges import COUNT

    COUNT.check("batch_size", batch_size)
    if not holds_many(word, task):
        return None
    from omnikit.offline.batch_inference import Job, checkpoint_stamp

    if output is None:
        raise ValueError(f"{word}: holds many items; --output is missing, the folder for their results")
    return Job(task, word, output, batch_size=batch_size, about={**checkpoint_stamp(checkpoint), **about})


def _run(job: Job, omni: Omni) -> None:
    counts = job.run(omni)
    typer.echo(f"{job.results}: {counts}", err=True)


def _limits(max_steps: int | None, time_limit: float | None) -> dict[str, Any]:
    """Return the limits of an answer that the user gave as options, refusing bad values before the system is loaded."""
    from omnikit.generate import Decoding

    limits = _without_none(max_steps=max_steps, time_limit=time_limit)
    Decoding(**limits)
    return limits


def _load(
    checkpoint: str | None, device: str, engine: str, limits: dict[str, Any], encoder_weights: str | None = None
) -> Omni:
    omni = _open({}, checkpoint, device, engine, encoder_weights)
    omni.decoding = dataclasses.replace(omni.decoding, **limits)
    return omni


def _open(
    settings: dict[str, Any],
    checkpoint: str | None,
    device: str,
    engine: str,
    encoder_weights: str | None = None,
    *,
    strategy: Strategies | None = None,
    dtype: str = "float32",
) -> Omni:
    """Build a system of parts by name if `settings` has any; otherwise load a checkpoint."""
    from omnikit.api import Omni, build, dtype_named, load
    from omnikit.engines import TORCH_ENGINES, check_engine, open_engine
    from omnikit.torchrun import own_device

    device = own_device(device)
    if not settings:
        weights = _without_none(encoder=encoder_weights)
        return load(checkpoint, device=device, strategy=strategy, engine=engine, dtype=dtype, weights=weights)
    check_engine(engine)
    if engine not in TORCH_ENGINES:
        raise ValueError(f"--engine {engine}: needs a --checkpoint, since it stores the weights that it converts")
    as_type = dtype_named(dtype)
    model = build(**{"pretrained": True, **settings}).to(device).to_dtype(as_type)
    return Omni(model, strategy=strategy, engine=open_engine(engine, model))


def _strategy(name: str | None) -> Strategies | None:
    from omnikit.hparams import build_part

    return None if name is None else build_part("strategy", name)


def _settings(context: typer.Context, checkpoint: str | None, encoder_weights: str | None = None) -> dict[str, Any]:
    """Return the parts and options of parts on the command line, such as `--codec mimi`, as a mapping.

    The encoder's weights belong to them, unless they are those of a checkpoint.
    """
    from omnikit.hparams import read_settings

    settings = read_settings(context.args)
    if checkpoint is None and encoder_weights is not None:
        settings["encoder.weights"] = encoder_weights
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


def _without_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _names(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list such as `a1,a2`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print(written: Reply) -> None:
    typer.echo(written.text)
    if words := _truncation(written.end):
        typer.echo(words, err=True)


def _truncation(end: str) -> str:
    """Return a message about the limit that truncated an answer; empty if the model ended it."""
    from omnikit.generate import END

    return "" if end == END else f"the answer was truncated: {end}"


def _report(output: str, seconds: float, took: float, first: float | None = None, *, end: str) -> None:
    words = [f"{Path(output)}: {seconds:.2f} s of speech in {took:.2f} s"]
    if first is not None:
        words.append(f"first sound after {first:.2f} s")
    if seconds:
        words.append(f"real-time factor {took / seconds:.2f}")
    if cut := _truncation(end):
        words.append(cut)
    typer.echo(", ".join(words), err=True)


if __name__ == "__main__":
    main()
