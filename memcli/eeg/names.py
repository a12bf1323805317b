"""Names of channels: one spelling for each electrode, and what is no EEG by its name.

"EEG T3-REF", "t7" and "T7." are one electrode. The older names of the 10-20 system stand for the
positions that the 10-10 system calls otherwise (T3 is T7, T4 is T8, T5 is P7, T6 is P8).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

Kind = Literal["eeg", "eog", "ecg", "emg", "stim", "misc"]

ALIASES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8"}
"""10-20 to 10-10."""

_PREFIX = re.compile(r"^(?:EEG|POL)[\s_:.-]+(?=\S)", re.IGNORECASE)
_REFERENCE = re.compile(
    r"[-_:/\s]\(?(?:REF\d?|LE|AR|AVE?|AVG|CAR|LINKED|[AM][12](?:[+/]?[AM][12])?|G[12])\)?$",
    re.IGNORECASE,
)
_ELECTRODE = re.compile(
    r"^(N|FP|AFP|AFF?|FF[CT]|FCC|FTT|F[CT]?|TT?P|TPP|T|CCP|CPP|CP?|PPO|POO?|P|OI?|I)"
    r"(\d{1,2}h?|z)$",
    re.IGNORECASE,
)

# Around a word that may stand among others, "Marker_channel" or "TRIGGER(1)", not within one.
_BEFORE, _AFTER = r"(?:.*[^A-Z])?", r"(?:[^A-Z].*)?"
# Names of other signals, without prefix and reference, in capitals. Electrode names hold no EOG,
# ECG, EKG or EMG anywhere.
_OTHERS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "eog",
        re.compile(
            r".*EOG.*|[HV]E[OU][GLRUD]?(?:[\s_-]?[LRUD12])?|H[LR]|V[AB]|[LR]OC|[LIS]O[12]|"
            rf"{_BEFORE}(?:EYES?|GAZE[A-Z]*|PUPIL[A-Z]*|BLINKS?){_AFTER}|EYE.*|"
            r"[LR](?:EFT|IGHT)?[\s_-](?:AREA|POS|VEL|DIAM)(?:[^A-Z].*)?|"
            # Two EOG derivations of the AASM manual; E1 alone is an electrode of dense nets.
            r"(?:EEG )?E[12][\s_:/-]*[AM][12]"
        ),
    ),
    ("ecg", re.compile(r".*(?:ECG|EKG).*|HEART.*|CARDIO.*")),
    ("emg", re.compile(r".*EMG.*|CHIN\d*|MASSETER.*|(?:[LR]-?)?LEG\d*|SUBMENT.*")),
    (
        "stim",
        re.compile(
            rf"{_BEFORE}(?:STIM?|STATUS|TRG|LBL|TTL|DIN|SYNC|CODES?|CLASS|TRIALS?|COND|"
            rf"(?:STIMUL|STIMC|TRIG|MARKER|EVENT|LABEL|BUTTON|TARGET|RESPONSE|CONDITION)[A-Z]*)"
            rf"{_AFTER}|[BE]DF\+? ?ANNOTATIONS.*|D\d{{3}}|D[IO]\d+|DIGITAL.*"
        ),
    ),
    (
        "misc",
        re.compile(
            r"EXG\d+|ERG\d*|AUX[\s_-]?\d*|BIP\d+|MISC\d*|GSR\d*|EDA\d*|SCR|SCL|SKIN.*|RESP.*|ABDO.*|"
            r"THOR.*|AIRFLOW|NASAL.*|SNORE|TEMP.*|PLETH?.*|PPG.*|BVP|PULSE.*|SPO2|SAO2|OSAT|ACC.*|"
            r"GYRO?.*|MAG[XYZ]|[XYZ]|PHOTO.*|PHOTIC|AUDIO.*|MIC|IBI|BURSTS|SUPPR|COUNTER|TIME.*|"
            r"RT|REACTION.*|FEEDBACK.*|AIN\d+|INTERPOLATED|RAW_CQ|CQ_.*|DC\d+|REREF|REF|GND|GROUND|BATTERY.*|POSITION|LIGHT"
        ),
    ),
)


def tidy(name: str) -> str:
    """`name` without odd spaces, full stops at the end, the prefix EEG and the reference."""
    text = " ".join(unicodedata.normalize("NFKC", name).split()).rstrip(".")
    bare = _PREFIX.sub("", text).strip()
    if bare.isdigit():
        return text  # "EEG 001" is a name of its own: 1 is none
    for _ in range(2):  # "Fp1-A2-REF"
        cut = _REFERENCE.sub("", bare).strip(" -_:/")
        if not cut or cut == bare:
            break
        bare = cut
    return bare or text


def harmonised(name: str) -> str:
    """The electrode's usual spelling: "Fp1" for "EEG FP1-REF", "T7" for "T3"; others as tidied.

    A bipolar derivation ("Fp1-F7", "Fpz-Cz") is no electrode and keeps its name.
    """
    bare = tidy(name)
    if alias := ALIASES.get(bare.casefold()):
        return alias
    match = _ELECTRODE.match(bare)
    if match is None:
        return bare
    place, side = match[1].upper(), match[2].lower()
    if place == "FP":
        place = "Fp"
    elif place == "AFP":
        place = "AFp"
    return place + side


def key(name: str) -> str:
    """Equal for all spellings of one channel."""
    return harmonised(name).casefold()


def kind_of(name: str) -> Kind | None:
    """What a channel is by its name alone, where the name says that it is no EEG; else None."""
    text = " ".join(unicodedata.normalize("NFKC", name).split()).upper()
    for candidate in (tidy(name).upper(), text):
        for kind, pattern in _OTHERS:
            if pattern.fullmatch(candidate):
                return kind
    return None


def repeated(names: Iterable[str]) -> dict[str, list[str]]:
    """Original names that stand for the same channel: key to names, where there are several."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return {one: group for one, group in groups.items() if len(group) > 1}
