"""Recognition from EEG at run time: from recordings to rows, tables and reports."""
