"""UCF101 with the class split of ARN (70/10/21 classes). See README.md."""
