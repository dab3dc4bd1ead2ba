"""TensorBoard logging with SpeechBrain's logger, which creates its folder at the first epoch's figures."""

from __future__ import annotations


class TensorBoard:
    """A logger that writes the figures of each epoch to a TensorBoard folder."""

    def __init__(self, folder: str):
        self.folder, self.logger = folder, None

    def log_stats(self, where: dict, train: dict, valid: dict) -> None:
        """Write training and validation figures of an epoch; stage and parts are written once, as text."""
        from speechbrain.utils.train_logger import TensorboardLogger

        texts = {k: v for k, v in where.items() if k in ("stage", "parts")}
        if self.logger is None:
            self.logger = TensorboardLogger(self.folder)
            for name, text in texts.items():
                self.logger.writer.add_text(name, str(text))
        self.logger.log_stats({k: v for k, v in where.items() if k not in texts}, train, valid)
