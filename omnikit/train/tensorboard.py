"""TensorBoard through SpeechBrain's logger; the folder is made when the first figures come."""

from __future__ import annotations


class TensorBoard:
    """Writes the figures of each epoch. `folder`: where."""

    def __init__(self, folder: str):
        self.folder, self.logger = folder, None

    def log_stats(self, where: dict, train: dict, valid: dict) -> None:
        """One point per figure."""
        from speechbrain.utils.train_logger import TensorboardLogger

        self.logger = self.logger or TensorboardLogger(self.folder)
        self.logger.log_stats({k: v for k, v in where.items() if k != "stage"}, train, valid)
