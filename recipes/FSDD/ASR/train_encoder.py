"""Train the mini encoder on recorded digits by CTC on phonemes.

    python train_encoder.py hparams/encoder.yaml --data_folder DIR --held_out george

The same command resumes from the last checkpoint. At the end the encoder's weights and a README are written to
`export_folder`, and the system with this encoder to `system_folder`, from which train.py starts.
"""

from __future__ import annotations

from pathlib import Path

from omnikit import checkpoint
from omnikit.data.manifest_reader import read_manifest
from omnikit.errors import bad_input_exits, full_disk_names
from omnikit.hparams import load_recipe
from omnikit.train.ctc_pretraining import export, train_encoder
from omnikit.train.phoneme_dataset import entries_with_phonemes
from omnikit.train.recipe_checks import check_encoder
from omnikit.train.run import make_output_folder
from omnikit.weights import load_into

CARD = """# The mini encoder, trained on digits

{parameters} parameters, started from {start}: {steps} steps of CTC on phonemes, on strings of digits of the Free Spoken
Digit Dataset (CC BY-SA 4.0), without any recording of {held_out}. `model.safetensors` holds the weights in bf16.

Phone error rate of these weights on other recordings of the same speakers, greedy decoding with the CTC head (which is
not kept):

{table}
"""


def main() -> None:
    recipe = load_recipe(check=check_encoder)
    hparams = recipe.hparams
    folder, held_out = Path(hparams["data_folder"]), hparams["held_out"]
    hparams["encoder"].weights = hparams["initial_weights"]
    with full_disk_names(hparams["output_folder"]):
        make_output_folder(recipe)
        train, valid = (
            entries_with_phonemes(read_manifest(folder / f"{split}-without-{held_out}", hparams["cache_folder"]), split)
            for split in ("train", "valid")
        )
        brain, valid_set = train_encoder(recipe, train, valid, device="cpu", fixed={"held_out": held_out})
        export(brain, valid_set, CARD, start=hparams["initial_weights"] or "nothing", held_out=held_out)
    system = checkpoint.load(hparams["system"])
    load_into(system.encoder, hparams["export_folder"])
    checkpoint.save(system, hparams["system_folder"])
    print(f"weights and card written to {hparams['export_folder']}, the system to {hparams['system_folder']}")


if __name__ == "__main__":
    with bad_input_exits():
        main()
