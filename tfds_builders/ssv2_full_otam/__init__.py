"""Something-Something V2, the full split of OTAM (64/12/24 classes). See README.md."""
