"""Mathematics that several merge methods share."""
