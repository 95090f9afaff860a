"""Procedurally rendered actions, encoded as real .mp4 files and ingested like anyone's: the dataset
that needs no download."""
