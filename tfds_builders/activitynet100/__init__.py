"""ActivityNet, 64/12/24 classes of 70 untrimmed videos. See README.md."""
