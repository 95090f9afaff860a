"""HMDB51 with the class split of ARN (31/10/10 classes). See README.md."""
