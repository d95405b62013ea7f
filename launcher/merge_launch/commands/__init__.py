"""The commands of merge-launch, one module each."""
