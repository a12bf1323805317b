"""Reading EEG: recordings of any format to the epochs that a model takes."""

from memcli.eeg.epochs import Epoch, EpochOptions, EpochStream, Skipped, read_epochs
from memcli.eeg.files import EEG_SUFFIXES, RecordingSource, find_recordings
from memcli.eeg.recording import Channel, Recording, RecordingInfo, open_recording

__all__ = [
    "EEG_SUFFIXES",
    "Channel",
    "Epoch",
    "EpochOptions",
    "EpochStream",
    "Recording",
    "RecordingInfo",
    "RecordingSource",
    "Skipped",
    "find_recordings",
    "open_recording",
    "read_epochs",
]
