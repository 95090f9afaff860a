"""What a trained model does: how misaligned clips are, which frames a sampler selects, pictures."""
