"""Something-Something V2, the small split of CMN (64/12/24 classes of 100 videos). See
README.md."""
