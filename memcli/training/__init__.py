"""What `memcli train` does, from a dataset to a run folder. Light to import: torch comes later."""

from memcli.training.settings import NoProgress, Progress, TrainSettings
from memcli.training.train import train_model

__all__ = ["NoProgress", "Progress", "TrainSettings", "train_model"]
