"""Script that runs omnikit's main functions at tiny sizes and exits with status 1 if they use deprecated features.

Usage, from the top folder: `python -m tests.deprecations.main_paths [NAME ..]`; without names it runs all. The
deprecations are those of the libraries in `tests.deprecations.listen.LIBRARIES`. It is a script so that it can run in a
process of its own (many warnings are issued once per process) and with other versions of the libraries.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.deprecations.listen import Deprecation, deprecations

ROOT = Path(__file__).parents[2]
QUESTION = ROOT / "egs" / "mini" / "questions" / "sum.wav"
BACKBONES = ("qwen2_0.5b", "llama", "gemma_2b")
ENCODERS = ("hubert_base", "whisper_small", "whisper_small_hf")
CODECS = ("mimi", "encodec_24khz")


def shipped(folder: Path) -> None:
    """Run the mini system as `omnikit ask`, `transcribe`, `speak` and `chat` do."""
    import omnikit
    from omnikit.generate import Decoding

    for engine in ("torch", "static"):
        omni = omnikit.load(engine=engine)
        omni.decoding = Decoding(max_steps=12)
        assert omni.transcribe(QUESTION) and omni.chat("what is two plus two")
        assert omni.ask(QUESTION).text and list(omni.stream_speech("four", mode="low_latency"))


def backbones(folder: Path, names: tuple[str, ...] = BACKBONES) -> None:
    """Generate answers of untrained systems, with KV caches that grow and of fixed size; save a checkpoint of each."""
    from omnikit import build, checkpoint
    from omnikit.api import Omni
    from omnikit.engines import open_engine
    from omnikit.generate import Decoding

    for name in names:
        lora = {"llm.lora.rank": 2} if name == names[0] else {}
        model = build(size="tiny", llm=name, codec="snac_mini", tts_blocks=1, **lora)
        assert Omni(model, decoding=Decoding(max_steps=4)).answer("hi").sample_rate
        static = Omni(model, decoding=Decoding(max_steps=4), engine=open_engine("static", model))
        assert static.answer("hi").sample_rate
        checkpoint.save(model, folder / name)
        checkpoint.load(folder / name)


def every_backbone(folder: Path) -> None:
    """Generate answers with each backbone that has a part file, and save a checkpoint of each system."""
    from omnikit.hparams import choices

    backbones(folder, tuple(name for name in choices("llm") if name != "any"))


def encoders(folder: Path, names: tuple[str, ...] = ENCODERS) -> None:
    """Compute the features of a padded batch of recordings with several audio encoders."""
    import torch

    from omnikit.hparams import build_part

    for name in names:
        encoder = build_part("encoder", name, size="tiny", weights=None).eval()
        with torch.inference_mode():
            encoder(torch.randn(2, 16000) / 10, torch.tensor([16000, 12000]))


def every_encoder(folder: Path) -> None:
    """Compute the features of a padded batch of recordings with each audio encoder that has a part file."""
    from omnikit.hparams import choices

    encoders(folder, tuple(name for name in choices("encoder") if name not in ("mini", "none")))


def codecs(folder: Path, names: tuple[str, ...] = CODECS) -> None:
    """Encode noise to codes, and decode the codes at once and by a decode stream, with several audio codecs."""
    import torch

    from omnikit.hparams import build_part

    for name in names:
        codec = build_part("codec", name, size="tiny", weights=None).eval()
        with torch.inference_mode():
            codes = codec.encode(torch.randn(1, codec.sample_rate // 2) / 10)
            codec.decode(codes)
            for mode in ("exact", "low_latency"):
                stream = codec.stream(mode=mode)
                for frame in codes.split(1, dim=-1):
                    stream.push(frame)
                stream.finish()


def every_codec(folder: Path) -> None:
    """Encode noise to codes and decode the codes with each audio codec that can be built without weights."""
    from omnikit.hparams import choices

    codecs(folder, tuple(name for name in choices("codec") if name not in ("mel_rvq", "none", "snac_mini")))


def conversion(folder: Path) -> None:
    """Convert a published Mini-Omni folder to a checkpoint, and ask the converted system a question."""
    import omnikit
    from omnikit.convert.mini_omni import convert
    from omnikit.generate import Decoding
    from tests.unit.test_convert import write_published

    published = write_published(folder)
    convert(published / "mini_omni", folder / "omni", codec=str(published / "snac"))
    omni = omnikit.load(folder / "omni")
    omni.decoding = Decoding(max_steps=8)
    tokenizer = omni.model.llm.tokenizer
    assert tokenizer.decode(tokenizer.encode("what is two <|im_end|>")) == "what is two <|im_end|>"
    assert omni.ask(QUESTION).sample_rate


def training(folder: Path, epochs: int = 1) -> None:
    """Run stage 3 of the training with two batches per epoch, a validation and a checkpoint."""
    from tests.recipes.conftest import MINI_SYSTEM, write_data
    from tests.recipes.trees import load_script

    data = write_data(folder)
    options = {
        "encoder.width": 16, "encoder.heads": 2, "encoder.layers": 1, "adapter.hidden": 16, "model.tts_blocks": 1,
        "llm.config.hidden_size": 16, "llm.config.num_hidden_layers": 1, "max_batch_length": 300, "steps_per_epoch": 2,
        "warmup_steps": 1, "initial_weights": "null", "data_folder": data, "output_folder": folder / "out",
        "device": "cpu",
    }  # fmt: skip
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    os.chdir(ROOT / "recipes" / "VoiceAssistant" / "QA")
    recipe = load_script(Path("train.py").absolute())
    for limit in range(1, epochs + 1):
        sys.argv = ["train.py", "hparams/stage3.yaml", str(MINI_SYSTEM), *flags, "--epochs.limit", str(limit)]
        recipe.main()


def resumed_training(folder: Path) -> None:
    """Train a system for one epoch, then resume the run from its checkpoint and train a second epoch."""
    training(folder, epochs=2)


PATHS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        shipped, backbones, encoders, codecs, conversion, training,
        every_backbone, every_encoder, every_codec, resumed_training,
    )
}  # fmt: skip


def canaries(found: list[Deprecation]) -> bool:
    """Use deprecated features on purpose, and return whether they were added to `found`, the list of deprecations."""
    import torch
    from transformers.utils import logging

    namespace = {"__name__": "transformers.canary", "logging": logging}
    source = "def canary():\n    logging.get_logger('transformers.canary').warning_once('`canary` is deprecated')\n"
    exec(compile(source, str(Path(torch.__file__).parents[1] / "transformers" / "canary.py"), "exec"), namespace)
    before = len(found)
    namespace["canary"]()
    torch.jit.script(torch.nn.ReLU())
    return all(any(name in each.message for each in found[before:]) for name in ("canary", "torch.jit.script"))


def main(names: list[str]) -> int:
    with deprecations() as found, tempfile.TemporaryDirectory() as scratch:
        for name in names or PATHS:
            folder = Path(scratch) / name
            folder.mkdir()
            PATHS[name](folder)
        used = list(dict.fromkeys(found))
        working = canaries(found)
    for each in used:
        print(f"{each.caller or 'omnikit'}: {each.message} ({each.place})", file=sys.stderr)
    if not working:
        print("deprecated features that were used on purpose were not noticed", file=sys.stderr)
    return 1 if not working or any(not each.caller for each in used) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
