"""TensorBoard through SpeechBrain's logger; the folder is made when the first figures come."""

from __future__ import annotations


class TensorBoard:
    """Writes the figures of each epoch. `folder`: where."""

    def __init__(self, folder: str):
        self.folder, self.logger = folder, None

    def log_stats(self, where: dict, train: dict, valid: dict) -> None:
        """One point per figure; stage and parts as text, once."""
        from speechbrain.utils.train_logger import TensorboardLogger

        texts = {k: v for k, v in where.items() if k in ("stage", "parts")}
        if self.logger is None:
            self.logger = TensorboardLogger(self.folder)
            for name, text in texts.items():
                self.logger.writer.add_text(name, str(text))
        self.logger.log_stats({k: v for k, v in where.items() if k not in texts}, train, valid)
