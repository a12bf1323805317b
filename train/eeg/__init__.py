"""The EEG model and its training. Source: 000_bcb79d7cf5a52fe8.txt, sections 2.2 and 3.2."""
