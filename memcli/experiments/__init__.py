"""Whole tables: `memcli reproduce` and `memcli cross`. Resumable; every row is a run of its own."""
