"""A folder of your own clips as a dataset; see README.md."""
