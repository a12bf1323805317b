"""Names of channels: one spelling per electrode; what is no EEG by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.eeg.channels import default_montage
from memcli.eeg.names import harmonised, key, kind_of, repeated


@pytest.mark.parametrize(
    ("name", "electrode"),
    [
        ("EEG Fp1-REF", "Fp1"),
        ("EEG FP2-LE", "Fp2"),
        ("fp1", "Fp1"),
        ("FPZ", "Fpz"),
        ("T3", "T7"),
        ("EEG T4-A1", "T8"),
        ("t5", "P7"),
        ("EEG T6-REF", "P8"),
        ("Fc5.", "FC5"),
        ("Cz..", "Cz"),
        ("CZ-M1M2", "Cz"),
        ("C3-A1A2", "C3"),
        ("C3-A1+A2", "C3"),
        ("EEG_Pz_AVG", "Pz"),
        ("eeg:oz", "Oz"),
        ("POL F7", "F7"),
        ("  F3  ", "F3"),
        ("A1", "A1"),
        ("TP10", "TP10"),
        ("AFF5h", "AFF5h"),
        ("EEG 001", "EEG 001"),
        ("E17", "E17"),
        ("Fp1-F7", "Fp1-F7"),
        ("EEG Fpz-Cz", "Fpz-Cz"),
    ],
)
def test_one_spelling_for_each_electrode(name: str, electrode: str) -> None:
    assert harmonised(name) == electrode


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("EOG1", "eog"),
        ("Eog", "eog"),
        ("HEOG", "eog"),
        ("VEOG-L", "eog"),
        ("EOG left", "eog"),
        ("HL", "eog"),
        ("Vb", "eog"),
        ("EEG LOC-REF", "eog"),
        ("Ekg1", "ecg"),
        ("EEG EKG1-REF", "ecg"),
        ("Chin 1 EMG", "emg"),
        ("STI 014", "stim"),
        ("Status", "stim"),
        ("TRIGGER", "stim"),
        ("Label", "stim"),
        ("EDF Annotations", "stim"),
        ("EXG3", "misc"),
        ("PHOTIC-REF", "misc"),
        ("Resp oro-nasal", "misc"),
        *((one, "stim") for one in ("TRG", "DI1", "EVENT_ID", "Marker_channel", "trigger_in")),
        *((one, "stim") for one in ("TRIGGER(1)", "STATUS2", "LABEL1", "target", "lbl", "Sync")),
        *((one, "stim") for one in ("Button", "STI101", "Stim_1", "target_label", "EventID")),
        *((one, "eog") for one in ("L-GAZE-X", "R-AREA", "LEFT EYE", "HEO_L", "Blink", "E1-M2")),
        *((one, "eog") for one in ("E2-M1", "EEG E2-A1", "GAZE_Y", "Pupil_L")),
        ("RT", "misc"),
        ("ReRef", "misc"),
        ("GSR1", "misc"),
    ],
)
def test_other_signals_are_known_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_no_electrode_is_taken_for_another_signal() -> None:
    mne = pytest.importorskip("mne")
    for montage in (default_montage(), "biosemi128", "GSN-HydroCel-128", "EGI_256"):
        for name in mne.channels.make_standard_montage(montage).ch_names:
            assert kind_of(name) is None, name


def test_names_of_the_standard_stay_what_they_are() -> None:
    mne = pytest.importorskip("mne")
    old = {"T3", "T4", "T5", "T6"}
    for name in mne.channels.make_standard_montage(default_montage()).ch_names:
        if name not in old:
            assert harmonised(name) == name
            assert key(f"EEG {name.upper()}-REF") == key(name)


def test_repeated_names_are_found_across_spellings() -> None:
    assert repeated(["T3", "Cz", "EEG T7-REF", "Pz"]) == {"t7": ["T3", "EEG T7-REF"]}


@given(st.text(max_size=40))
def test_any_name_has_a_spelling_that_stays(name: str) -> None:
    once = harmonised(name)
    assert key(name) == once.casefold()
    assert kind_of(name) in (None, "eog", "ecg", "emg", "stim", "misc")
    if name.strip(" ."):
        assert harmonised(f"  {name} ") == once


@given(st.sampled_from(["", "EEG ", "eeg "]), st.sampled_from(["", "-REF", "-LE", "-A1", "-Avg"]))
def test_prefix_and_reference_do_not_matter(prefix: str, reference: str) -> None:
    for electrode in ("Fp1", "T7", "CPz", "O2"):
        assert harmonised(f"{prefix}{electrode.swapcase()}{reference}") == electrode
